"""What an optimizer remembers of its metric: the running average, the damping, and the form that is inverted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..elements import Covector, Vector
from ..errors import InvalidSetting, NonFinite, RiemannError
from ..inner_products import InnerProduct
from ..inner_products.common import degenerate_of
from ..metrics import RiemannianMetric
from ..metrics.averages import MetricAverage
from ..metrics.averages import finite as finite_form
from ..metrics.base import named, value_at
from ..networks.observation import Observation
from ..solvers import Solver
from ..spaces import VectorSpace
from .damping import Damping
from .finite import finite
from .inverse_free import Inversion

State = dict[str, Any]
FAILURES = (RiemannError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Ingredients:
    """What a damped form is made of: the metric and the reference as they stood, and λ."""

    value: InnerProduct
    reference: InnerProduct
    damping: float

    def state(self) -> State:
        return {"value": self.value.state(), "reference": self.reference.state(), "damping": self.damping}

    @classmethod
    def from_state(cls, space: VectorSpace, state: State) -> Ingredients:
        value, reference = (InnerProduct.from_state(space, state[name]) for name in ("value", "reference"))
        return cls(value, reference, state["damping"])


class Memory:
    """`value` is the metric averaged so far, `damped` its damped form as it stood at the last factorization.

    `lasts` says whether they are of use beyond the step they were made in: if so they are kept as their matrices, and
    are part of the state; if not, they hold their batch until the next one comes.
    """

    def __init__(
        self,
        metric: RiemannianMetric,
        policy: Damping,
        decay: float,
        solver: Solver | None,
        inversion: Inversion,
        lasts: bool,
        steps_alone: bool = False,
        products_alone: bool = False,
        weights: Literal["corrected", "growing"] = "corrected",
    ):
        """`steps_alone`: nothing but steps are asked of the damped form; it is kept as small as these need it.

        `products_alone`: nothing is inverted, for whoever asks has a way of its own; a sharp is zero.
        """
        self.metric, self.policy, self.decay, self.solver = metric, policy, decay, solver
        self.inversion, self.lasts, self.steps_alone = inversion, lasts, steps_alone
        self.products_alone, self.weights = products_alone, weights
        self.damping = policy.start
        self._strength: float | None = None
        self._pending: State | None = None
        self._start_over()

    def _start_over(self) -> None:
        self.average = MetricAverage(self.metric, self.decay, self.weights) if self.decay else None
        self._value: InnerProduct | None = None
        self._own = False  # whether nobody else holds the value's tensors
        self.reference: InnerProduct | None = None
        self.damped: InnerProduct | None = None
        self._made_of: Ingredients | None = None

    @property
    def strength(self) -> float:
        """What the metric is damped with: λ, unless a policy has found another by trial."""
        return self.damping if self._strength is None else self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = value

    @property
    def empty(self) -> bool:
        return self._value is None and self._pending is None

    @property
    def value(self) -> InnerProduct | None:
        """The average so far. Whoever asks holds it from now on: the next one is made beside it."""
        self._own = False
        return self._value

    @property
    def overwrites(self) -> bool:
        """Whether the next statistics can be written over the average: see `update_over`."""
        return self._own and self.average is not None and self.average.overwrites

    def update(self, observation: Observation) -> None:
        """Takes an observation in; if that fails nothing has changed."""
        reference = self._refreshed_reference(observation)
        if self.average is not None:
            value = self.average.update(observation)
        else:
            value = self._held(value_at(self.metric, observation))
            if not finite_form(value):
                raise NonFinite(f"NonFinite in {self.metric!r}: there is NaN or infinity in {value!r}.")
        self._value, self.reference, self._own = value, reference, self.average is not None

    def update_over(self, observation: Observation) -> Callable[[], None]:
        """As `update`, over the tensors of the average, when what is returned is called; what can fail fails at once.

        Until the call everything is as it was, and the samples are held. It is for steps that make no factorizations:
        when they are over nothing can go wrong any more, and no second average is held meanwhile.
        """
        assert self.average is not None
        reference, commit = self._refreshed_reference(observation), self.average.update_over(observation)

        def done() -> None:
            self._value, self.reference = commit(), reference

        return done

    def _refreshed_reference(self, observation: Observation) -> InnerProduct:
        wanted, before = self.policy.reference, self.reference
        reference = value_at(wanted, observation) if before is None else wanted.refreshed(before, observation)
        return before if reference is before and before is not None else self._held(reference)

    def _held(self, g: InnerProduct) -> InnerProduct:
        """The form as its matrices, if it is to last: then it does not hold the batch that it was made of."""
        made_of_tensors = next(iter(g.tensors()), None) is not None
        return InnerProduct.from_state(g.space, g.state()) if self.lasts and made_of_tensors else g

    def sharp(self, df: Covector) -> Vector:
        """The natural gradient, with the factorization that there is."""
        assert self.damped is not None
        if self.products_alone:
            return Vector.zeros(self.damped.space, like=df.data)
        with named(self.metric):
            return self.damped.sharp(df, self.solver)

    def renewed_sharp(self, df: Covector) -> Vector | None:
        """The natural gradient with the average as it stands, damped and factorized.

        None where that fails: then the last factorization stays. If there was none, the failure is raised.
        """
        assert self._value is not None and self.reference is not None
        last = self.damped, self._made_of
        try:
            of = Ingredients(self._value, self.reference, self.strength)
            self.damped, alone = self._made(of)
            self._made_of = None if alone else of
            self._own = self._own and alone
            v = self.sharp(df)
            if last[0] is None or finite(v):
                return v
        except FAILURES:
            if last[0] is None:
                self.damped, self._made_of = last
                raise
        self.damped, self._made_of = last
        return None

    def distrust(self) -> None:
        """The next step makes its factorizations anew."""
        self.damped, self._made_of = None, None

    def _made(self, of: Ingredients) -> tuple[InnerProduct, bool]:
        """The damped form, ready to be inverted, and whether it is on its own: it holds nothing of its ingredients."""
        damped = self.policy.damped(of.value, of.damping, of.reference)
        if self.products_alone or (self.solver is not None and not self.inversion.remembers):
            return damped, False
        with named(self.metric), degenerate_of(damped.space, damped.rank, "NaturalGradient.step"):
            alone = self.inversion.for_steps_alone(damped, self.damped) if self.steps_alone and self.lasts else None
            return (self.inversion.inverted(damped, self.damped), False) if alone is None else (alone, True)

    def mark(self) -> Callable[[], None]:
        """A function that puts everything back to where it is now."""
        kept = dict(self.__dict__)
        averages = [] if self.average is None else [(a, a.value, a.count) for a in self.average.averages]

        def back() -> None:
            self.__dict__.update(kept)
            for average, value, count in averages:
                average.value, average.count = value, count

        return back

    # State

    def state(self) -> State:
        if self._pending is not None:  # loaded, and not yet used
            return self._pending
        value, self._own = self._value, False
        lasting = self.lasts and value is not None
        made_of = self._made_of if lasting and not self.inversion.remembers else None
        damped = self.damped if lasting and made_of is None else None
        return {
            "metric": repr(self.metric),
            "damping": self.damping,
            "strength": self._strength,
            "average": None if self.average is None or not lasting else self.average.state(),
            "value": value.state() if lasting and value is not None else None,
            "reference": None if self.reference is None else self.reference.state(),
            "made_of": None if made_of is None else made_of.state(),
            "damped": None if damped is None else damped.state(),
        }

    def check_loadable(self, state: Mapping[str, Any]) -> None:
        """Raises `InvalidSetting` where the state is one of another metric."""
        if state["metric"] != repr(self.metric) or (state["average"] is not None and self.average is None):
            raise InvalidSetting(
                f"InvalidSetting in load_state_dict: the state is of metric={state['metric']}, "
                f"{'with' if state['average'] is not None else 'without'} an average, and this optimizer has "
                f"metric={self.metric!r}, decay={self.decay}. Make it alike."
            )

    def load(self, state: Mapping[str, Any]) -> None:
        """Keeps a state until the spaces that it is on are known."""
        self._start_over()
        self._pending = dict(state)
        self.damping, self._strength = state["damping"], state.get("strength")

    def settle(self, space: VectorSpace) -> bool:
        """Takes the tangent space as it is by now: a loaded state is put on it. Where it has changed it starts over.

        That happens when a batch of one example came first, and a larger one shows that a layer is used otherwise.
        """
        if self._pending is not None:
            self._restore(space, self._pending)
            self._pending = None
        known = self._value if self.reference is None else self.reference
        if known is None or known.space == space:
            return False
        self._start_over()
        return True

    def _restore(self, space: VectorSpace, state: Mapping[str, Any]) -> None:
        def form(stored: State | None) -> InnerProduct | None:
            return None if stored is None else InnerProduct.from_state(space, stored)

        value, reference = form(state["value"]), form(state["reference"])
        made_of = None if state["made_of"] is None else Ingredients.from_state(space, state["made_of"])
        damped = form(state["damped"]) if made_of is None else self._made(made_of)[0]
        if self.average is not None and state["average"] is not None:
            self.average.load_state(space, state["average"])
        self._value, self.reference, self.damped, self._made_of = value, reference, damped, made_of
