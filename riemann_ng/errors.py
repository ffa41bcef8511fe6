"""Every error of the library, under one root.

An error says what was given, what was expected and how to mend it. The state of every object is as it was before
the call that failed.
"""


class RiemannError(Exception):
    """The root of all errors raised on purpose by riemann_ng."""


class InvalidSpace(RiemannError):
    """A space that cannot exist: no name, no dimension, two summands of one name."""


class SpaceMismatch(RiemannError):
    """An element or a map of the wrong space, or of the wrong kind (a vector where a covector belongs)."""


class ShapeMismatch(RiemannError):
    """A tensor whose shape is not that of its space."""


class DtypeMismatch(RiemannError):
    """Tensors of different dtypes or devices in one operation, or of a dtype that is not floating point."""


class NonFinite(RiemannError):
    """NaN or infinity where a number is needed."""


class NotAnInnerProduct(RiemannError):
    """A form that is not symmetric, not positive, or scaled by a number that is not positive."""


class DegenerateMetric(RiemannError):
    """A form with a kernel was asked for something that only a definite one has.

    `space` and `rank` say where and how degenerate.
    """

    def __init__(self, message: str, space: object = None, rank: int | None = None):
        super().__init__(message)
        self.space, self.rank = space, rank


class NotConverged(RiemannError):
    """An iterative solver stopped before it met its tolerance; `report` is its account."""

    def __init__(self, message: str, report: object = None):
        super().__init__(message)
        self.report = report


class InvalidSetting(RiemannError):
    """A setting of a solver or a method that means nothing (a negative tolerance)."""


class NotClosed(RiemannError):
    """An operation that leads out of a kind of form (blending two different frames, say)."""


class MissingDependency(RiemannError):
    """An optional package is absent, or was started in a way that cannot be mended from here."""


class InvalidTargets(RiemannError):
    """Targets that a likelihood cannot take: of the wrong shape or type, or outside what it can produce."""


class UnsupportedLayer(RiemannError):
    """A module that cannot be described, not even by per-example gradients."""


class ObservationMismatch(RiemannError):
    """A metric that needs what the observation did not collect."""
