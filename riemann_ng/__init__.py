"""riemann_ng: a coordinate-free geometry of natural gradients.

Spaces have names, vectors and covectors are different things, and a covector becomes a step only through an inner product.
`docs/tour.md` is all of it on one page.
"""

from . import solvers as solvers
from ._version import __version__ as __version__
from .elements import Covector, Point, Vector, barycenter
from .errors import RiemannError
from .inner_products import (
    Diagonal,
    Euclidean,
    Gram,
    InnerProduct,
    LowRank,
    Pullback,
    RotatedDiagonal,
    damp_factors,
    direct_sum,
    second_moment,
)
from .linear_maps import LinearMap
from .samples import Chunked, Measure, OneHot, Sample
from .spaces import AffineSpace, DirectSum, Family, Hom, OnePoint, Space
from .symmetry import Structure, Symmetry

__all__ = [
    "AffineSpace",
    "Chunked",
    "Covector",
    "Diagonal",
    "DirectSum",
    "Euclidean",
    "Family",
    "Gram",
    "Hom",
    "InnerProduct",
    "LinearMap",
    "LowRank",
    "Measure",
    "OneHot",
    "OnePoint",
    "Point",
    "Pullback",
    "RiemannError",
    "RotatedDiagonal",
    "Sample",
    "Space",
    "Structure",
    "Symmetry",
    "Vector",
    "barycenter",
    "damp_factors",
    "direct_sum",
    "second_moment",
    "solvers",
]
