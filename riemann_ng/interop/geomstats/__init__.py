"""geomstats both ways: our metrics as geomstats metrics, theirs as inner products at a point.

`as_geomstats` gives an inner product, or a field of them, the geodesics, distances, Christoffel symbols and curvatures
of geomstats; `from_geomstats` takes any geomstats metric at a point as an inner product on the tangent space there.
geomstats computes with torch tensors here, whatever was imported first; if it was started on another backend,
importing this package says so. Starting it from here leaves the environment and torch's default dtype as they were,
and geomstats with the same default: ask for `geomstats.backend.set_default_dtype("float64")` if that is what you want.
"""

from .as_metric import FieldMetric as FieldMetric
from .as_metric import InnerProductMetric as InnerProductMetric
from .as_metric import as_geomstats as as_geomstats
from .at_point import from_geomstats as from_geomstats
from .at_point import tangent_inclusion as tangent_inclusion
from .places import OffManifold as OffManifold
from .places import OnManifold as OnManifold
from .places import constraint_errors as constraint_errors
from .places import project_ as project_
from .training import ManifoldNaturalGradient as ManifoldNaturalGradient
from .training import OnTangentSpaces as OnTangentSpaces
from .training import Retracted as Retracted
