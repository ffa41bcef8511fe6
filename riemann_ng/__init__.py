"""riemann_ng: a coordinate-free geometry of natural gradients.

Spaces have names, vectors and covectors are different things, and a covector becomes a step only through an inner
product. `docs/tour.md` is all of it on one page.
"""

from importlib import import_module
from types import ModuleType

from . import geodesics as geodesics
from . import interop as interop
from . import layers as layers
from . import layerwise as layerwise
from . import likelihoods as likelihoods
from . import metrics as metrics
from . import networks as networks
from . import norms as norms
from . import solvers as solvers
from ._version import __version__ as __version__
from .elements import Covector, Vector
from .errors import RiemannError
from .inner_products import (
    Diagonal,
    Euclidean,
    Gram,
    InnerProduct,
    LowRank,
    Pullback,
    QuasiDiagonal,
    RotatedDiagonal,
    UnitWise,
    damp_factors,
    direct_sum,
    euclidean_on_translations,
    explain_symmetry,
    second_moment,
)
from .likelihoods import Bernoulli, Categorical, EuclideanOutput, Gaussian, OutputForm, Poisson
from .linear_maps import LinearMap
from .metrics import (
    EKFAC,
    KFAC,
    PRONG,
    SOAP,
    BatchNormalization,
    BlockTridiagonalKFAC,
    CotangentsOnly,
    EuclideanMetric,
    Fisher,
    FixedMetric,
    ForwardOnly,
    GaussNewton,
    GradientCovariance,
    KLShampoo,
    LayerwiseMetric,
    LearnedPreconditioner,
    NamedFrame,
    RecurrentKFAC,
    RelativeFisher,
    RiemannianMetric,
    RootMeanSquare,
    Shampoo,
    Whitening,
)
from .natural_gradient import natural_gradient
from .networks import CurvatureProp, Empirical, Exact, InputsOnly, Linearized, MonteCarlo, Network, register_layer
from .points import Point, barycenter
from .reparametrize import Frames, in_frames, reparametrize
from .samples import Chunked, Measure, OneHot, Sample
from .spaces import AffineSpace, DirectSum, Family, Hom, OnePoint, Space
from .symmetry import Structure, Symmetry

__all__ = [
    "EKFAC",
    "KFAC",
    "PRONG",
    "SOAP",
    "AffineSpace",
    "BatchNormalization",
    "Bernoulli",
    "BlockTridiagonalKFAC",
    "Categorical",
    "Chunked",
    "CotangentsOnly",
    "Covector",
    "CurvatureProp",
    "Diagonal",
    "DirectSum",
    "Empirical",
    "Euclidean",
    "EuclideanMetric",
    "EuclideanOutput",
    "Exact",
    "Family",
    "Fisher",
    "FixedMetric",
    "ForwardOnly",
    "Frames",
    "GaussNewton",
    "Gaussian",
    "GradientCovariance",
    "Gram",
    "Hom",
    "InnerProduct",
    "InputsOnly",
    "KLShampoo",
    "LayerwiseMetric",
    "LearnedPreconditioner",
    "LinearMap",
    "Linearized",
    "LowRank",
    "Measure",
    "MonteCarlo",
    "NamedFrame",
    "Network",
    "OneHot",
    "OnePoint",
    "OutputForm",
    "Point",
    "Poisson",
    "Pullback",
    "QuasiDiagonal",
    "RecurrentKFAC",
    "RelativeFisher",
    "RiemannError",
    "RiemannianMetric",
    "RootMeanSquare",
    "RotatedDiagonal",
    "Sample",
    "Shampoo",
    "Space",
    "Structure",
    "Symmetry",
    "UnitWise",
    "Vector",
    "Whitening",
    "barycenter",
    "damp_factors",
    "direct_sum",
    "euclidean_on_translations",
    "explain_symmetry",
    "geodesics",
    "in_frames",
    "interop",
    "layers",
    "layerwise",
    "likelihoods",
    "metrics",
    "natural_gradient",
    "networks",
    "norms",
    "optim",
    "register_layer",
    "reparametrize",
    "second_moment",
    "solvers",
    "testing",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("optim", "testing"):  # for those who train or test; the others need not wait for them
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
