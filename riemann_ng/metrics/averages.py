"""Running averages of inner products that keep the natural symmetries.

An average starts with the first form it is given, not with an identity matrix: with the weight (1 - β) / (1 - βᵗ) for
the t-th form it is the average started at zero and divided by the weights so far (bias correction). Blended factor by
factor, a moment stays a moment of data, and moves with every frame; an identity matrix in it would name a basis for as
long as βᵗ counts.

Laws: after one form the average is that form; the average of equal forms is that form; of moved forms, the moved one;
restored from its state it goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InvalidSetting, NonFinite, SpaceMismatch
from ..inner_products import BlockDiagonal, Dualized, Gram, InnerProduct, Kronecker, SecondMoment
from ..inner_products.common import check_blend
from ..inner_products.gram import Halved
from ..inner_products.sums import Scaled as ScaledForm
from ..inner_products.sums import Sum as SumOfForms
from ..networks.observation import Observation
from ..spaces import VectorSpace
from .base import FactorsDamped, RiemannianMetric, Scaled, Sum, given, sum_of, value_at

Schedule = Literal["corrected", "growing"]
State = dict[str, Any]
Later = Callable[[], None]


class RunningAverage:
    """The running average of inner products on one space: `average.add(g)`, then `average.value`.

    `schedule` says what the t-th form weighs: "corrected", (1 - β) / (1 - βᵗ); "growing", max(1/t, 1 - β), which is the
    rule min(1 - 1/t, β) of K-FAC's authors: the plain mean until 1/(1 - β) forms have come. A form blends as its kind
    does: products factor by factor. The first one is kept as its matrices, so that no batch is held; without decay the
    average is the last form as it stands.
    """

    def __init__(self, decay: float = 0.95, schedule: Schedule = "corrected"):
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise InvalidSetting(f"InvalidSetting in RunningAverage: decay={decay!r}, expected a number in [0, 1).")
        if schedule not in ("corrected", "growing"):
            raise InvalidSetting(
                f"InvalidSetting in RunningAverage: schedule={schedule!r}, expected 'corrected' or 'growing'."
            )
        self.decay, self.schedule = float(decay), schedule
        self.value: InnerProduct | None = None
        self.count = 0

    @property
    def next_weight(self) -> float:
        """What the next form will weigh in the average; the first one all."""
        t = self.count + 1
        if self.schedule == "growing":
            return max(1 / t, 1 - self.decay)
        return (1 - self.decay) / (1 - self.decay**t)

    def add(self, g: InnerProduct) -> InnerProduct:
        """The average with this form taken in. One that is not finite is refused, and nothing has changed."""
        if not isinstance(g, InnerProduct):
            raise SpaceMismatch(f"SpaceMismatch in RunningAverage.add: expected an inner product, got {given(g)}.")
        if not self.decay:
            value = g
        elif self.value is None:
            if isinstance(g, Dualized) and not g.lasting:
                g.blended(g, self.next_weight)  # refuses: the second form would be too late to find out
            value = InnerProduct.from_state(g.space, g.state())
        else:
            value = self.value.blend(g, self.next_weight)
        check_finite(value, g)
        self.value, self.count = value, self.count + 1
        return value

    def added_over(self, g: InnerProduct, later: list[Later]) -> InnerProduct:
        """The average with this form taken in, over the tensors of the present one once everything in `later` is done.

        What can fail fails here, and nothing has changed; nor is this average's own `value`, which is the caller's
        affair. Moments are written over matrices that an earlier blend has made; all else is made anew.
        """
        if self.value is None or self.count < 2 or not self.decay:
            other = RunningAverage(self.decay, self.schedule)
            other.value, other.count = self.value, self.count
            return other.add(g)
        check_finite(g, g)
        mine: list[Later] = []
        value = taken_in(self.value, g, self.next_weight, mine)
        later.extend(mine)
        return value

    def state(self) -> State:
        """Tensors, numbers and strings."""
        value = None if self.value is None else self.value.state()
        return {"decay": self.decay, "schedule": self.schedule, "count": self.count, "value": value}

    @classmethod
    def from_state(cls, space: VectorSpace, state: Mapping[str, Any]) -> RunningAverage:
        average = cls(state["decay"], state["schedule"])
        average.count = state["count"]
        average.value = None if state["value"] is None else InnerProduct.from_state(space, state["value"])
        return average

    def __repr__(self) -> str:
        schedule = "" if self.schedule == "corrected" else f", schedule={self.schedule!r}"
        return f"RunningAverage({self.decay:.4g}{schedule})"


class MetricAverage:
    """A metric averaged over observations: `average.update(observation)` is the inner product so far.

    The terms of a sum are averaged each by itself and multiples moved out, so that damping stays what it is; factors
    are damped after they have been averaged. A metric in frames of its own is `refreshed` into those of the average.
    """

    def __init__(self, metric: RiemannianMetric, decay: float = 0.95, schedule: Schedule = "corrected"):
        self.metric = metric
        self.averages = [RunningAverage(decay, schedule) for _ in leaves(metric)]

    def update(self, observation: Observation) -> InnerProduct:
        """Takes the observation in. If a part of the metric fails, nothing has changed."""
        before = [(average.value, average.count) for average in self.averages]
        try:
            for leaf, average in zip(leaves(self.metric), self.averages, strict=True):
                g = average.value
                average.add(value_at(leaf, observation) if g is None else leaf.refreshed(g, observation))
            return self.at(observation)
        except BaseException:
            for average, (value, count) in zip(self.averages, before, strict=True):
                average.value, average.count = value, count
            raise

    @property
    def overwrites(self) -> bool:
        """Whether `update_over` can do what it promises: not where factors are damped after they were averaged."""
        return not damps_factors(self.metric)

    def update_over(self, observation: Observation) -> Callable[[], InnerProduct]:
        """As `update`, over the tensors of the averages, which nobody else may hold, when what is returned is called.

        What can fail fails at once, and nothing has changed. Until the call the samples are held.
        """
        later: list[Later] = []
        values = []
        for leaf, average in zip(leaves(self.metric), self.averages, strict=True):
            g = average.value
            new = value_at(leaf, observation) if g is None else leaf.refreshed(g, observation)
            values.append(average.added_over(new, later))
        whole = assembled(self.metric, iter(values), observation)

        def commit() -> InnerProduct:
            for blend in later:
                blend()
            for average, value in zip(self.averages, values, strict=True):
                average.value, average.count = value, average.count + 1
            return whole

        return commit

    def at(self, observation: Observation) -> InnerProduct:
        """The average as it stands; of the observation only references are made."""
        values = [average.value for average in self.averages]
        if None in values:
            raise InvalidSetting(f"InvalidSetting in {self!r}: nothing was averaged yet. Call update(observation).")
        return assembled(self.metric, iter(values), observation)

    @property
    def count(self) -> int:
        return self.averages[0].count

    def state(self) -> State:
        """Tensors, numbers and strings, in the order of the metric's terms."""
        return {"averages": [average.state() for average in self.averages]}

    def load_state(self, space: VectorSpace, state: Mapping[str, Any]) -> None:
        """Takes over what `state` kept, of a metric of the same terms."""
        stored: Sequence[State] = state["averages"]
        if len(stored) != len(self.averages):
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: the state is one of {len(stored)} terms, the metric has "
                f"{len(self.averages)}. Load it into an average of the metric that it was made with."
            )
        self.averages = [RunningAverage.from_state(space, one) for one in stored]

    def __repr__(self) -> str:
        first = self.averages[0]
        schedule = "" if first.schedule == "corrected" else f", schedule={first.schedule!r}"
        return f"MetricAverage({self.metric!r}, {first.decay:.4g}{schedule})"


def leaves(metric: RiemannianMetric) -> list[RiemannianMetric]:
    """The metrics that are averaged by themselves."""
    if isinstance(metric, Sum):
        return [leaf for term in metric.terms for leaf in leaves(term)]
    return leaves(metric.of) if isinstance(metric, (Scaled, FactorsDamped)) else [metric]


def damps_factors(metric: RiemannianMetric) -> bool:
    if isinstance(metric, Sum):
        return any(damps_factors(term) for term in metric.terms)
    return isinstance(metric, FactorsDamped) or (isinstance(metric, Scaled) and damps_factors(metric.of))


def taken_in(value: InnerProduct, g: InnerProduct, weight: float, later: list[Later]) -> InnerProduct:
    """`value.blend(g, weight)`, where moments are blended over the matrices of `value` only `later`."""
    if isinstance(value, BlockDiagonal) and isinstance(g, BlockDiagonal) and value.space == g.space:
        parts = {name: taken_in(part, g.parts[name], weight, later) for name, part in value.parts.items()}
        return BlockDiagonal(parts, value.space)
    if isinstance(value, Kronecker) and isinstance(g, Kronecker):
        theirs = g.factors_on(tuple(f.space for f in value.factors))
        if theirs is not None:
            factors = [taken_in(f, h, weight, later) for f, h in zip(value.factors, theirs, strict=True)]
            return Kronecker(factors, value.space)
    if isinstance(value, Gram) and isinstance(g, SecondMoment) and g.blends_over(value):
        check_blend(value, g, g, weight)
        later.append(partial(g.blend_over, value.triangle, weight))
        return Halved.of(value.space, value.triangle, value.name, value.symmetry + g.symmetry)
    return value.blend(g, weight)


def assembled(metric: RiemannianMetric, values: Any, observation: Observation) -> InnerProduct:
    """The metric put together again from the values of its leaves, in their order."""
    if isinstance(metric, Sum):
        return sum_of([assembled(term, values, observation) for term in metric.terms])
    if isinstance(metric, Scaled):
        return metric.scalar * assembled(metric.of, values, observation)
    if isinstance(metric, FactorsDamped):
        return metric.damped(assembled(metric.of, values, observation), observation)
    value: InnerProduct = next(values)
    return value


def check_finite(value: InnerProduct, g: InnerProduct) -> None:
    """One look at all tensors, by their sums: to wait for the device once."""
    if not finite(value):
        where = [path for path, part in (value.summands() or {}).items() if not finite(part)]
        of = f"in {', '.join(map(repr, where))} of " if where else ""
        raise NonFinite(
            f"NonFinite in RunningAverage.add: {of}{g!r} there is NaN or infinity. The average is as it was; look for "
            f"the batch that it was made from."
        )


def finite(g: InnerProduct) -> bool:
    sums = [t.detach() if t.ndim == 0 else t.detach().sum() for t in looked_at(g) if t.is_floating_point()]
    if len({t.dtype for t in sums}) > 1:
        sums = [t.to(torch.float64) for t in sums]
    return not sums or bool(torch.stack(sums).isfinite().all())


def looked_at(g: InnerProduct) -> Iterator[Tensor]:
    """Tensors that are finite where the form is."""
    if isinstance(g, (BlockDiagonal, Kronecker)):
        for part in g.parts.values() if isinstance(g, BlockDiagonal) else g.factors:
            yield from looked_at(part)
    elif isinstance(g, SumOfForms):
        for part in g.terms:
            yield from looked_at(part)
    elif isinstance(g, ScaledForm):
        yield from looked_at(g.of)
        yield from (c for c in (g.scalar,) if isinstance(c, Tensor))
    elif isinstance(g, Halved):
        yield g.diagonal_entries()
    elif isinstance(g, SecondMoment) and g.sample.blends_in_place:
        yield g.sample.squares()
    else:
        yield from g.tensors()
