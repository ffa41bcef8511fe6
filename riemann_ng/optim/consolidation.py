"""Elastic weight consolidation: parameters are held near where a task left them, in a metric of that task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..elements import Vector
from ..errors import InvalidSetting, NonFinite
from ..inner_products import InnerProduct
from ..likelihoods import Likelihood
from ..metrics import Fisher, RiemannianMetric
from ..metrics.averages import finite
from ..metrics.base import given, value_at
from ..networks import Network

State = dict[str, Any]


class Consolidation:
    """½ λ Σ F_t(θ - θ_t, θ - θ_t) over the tasks t so far (EWC, Kirkpatrick et al. 2017), for any torch optimizer.

        hold = Consolidation(model, likelihood)
        loss = criterion(model(x), y) + hold.penalty()      # in the loop
        hold.remember(x)                                    # after a task

    `metric` is any metric of the library, taken where the task left the parameters; by default the diagonal of the
    exact Fisher, which is EWC, and names the coordinates. One form and one point are kept for each task, at most
    `capacity` of them. A diagonal form tells nothing of what parameters do together, so old outputs may move in first
    order: how far is a matter of `strength` λ.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        metric: RiemannianMetric = Fisher(structure="diagonal"),
        strength: float = 1.0,
        capacity: int = 100,
    ):
        if not isinstance(metric, RiemannianMetric):
            raise refused(f"metric={given(metric)}, expected a metric, an instance, as Fisher(structure='diagonal').")
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < float("inf"):
            raise refused(f"strength={strength!r}, expected a number of 0 or more.")
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise refused(f"capacity={capacity!r}, expected a number of tasks, 1 or more.")
        self.metric, self.strength, self.capacity = metric, float(strength), capacity
        self.network = Network.from_torch(model, likelihood)
        self._tasks: list[tuple[dict[str, Tensor], InnerProduct]] = []
        self._loaded: list[tuple[dict[str, Tensor], State]] = []

    @property
    def count(self) -> int:
        """How many tasks are remembered."""
        return len(self._tasks) + len(self._loaded)

    @torch.no_grad()
    def remember(self, x: Any, y: Any = None) -> None:
        """Holds the parameters where they are, in the metric seen at a batch; y where the metric looks at labels."""
        if self.count >= self.capacity:
            raise InvalidSetting(
                f"InvalidSetting in Consolidation.remember: {self.count} tasks are remembered, and capacity="
                f"{self.capacity}. Nothing was remembered. Allow more, or begin anew with another Consolidation."
            )
        with self.network.observe(x, self.metric.estimator(y), output=self.metric.output) as seen:
            g = value_at(self.metric, seen)
            lasting = InnerProduct.from_state(g.space, g.state()) if next(iter(g.tensors()), None) is not None else g
        if not finite(lasting):
            raise NonFinite("NonFinite in Consolidation.remember: the metric holds NaN or infinity at this batch.")
        self._settle()
        self._tasks.append(({name: p.detach().clone() for name, p in self.network.parameters.items()}, lasting))

    def penalty(self) -> Tensor:
        """The penalty where the parameters are now, as a term of the loss: a number with a gradient."""
        self.network.check_unchanged()
        self._settle()
        parameters = self.network.parameters
        total = next(iter(parameters.values())).new_zeros(())
        for point, g in self._tasks:
            with torch.no_grad():
                away = self.network.vector({name: p - point[name] for name, p in parameters.items()})
                pull = g.flat(away)
                value = 0.5 * self.strength * pull(away)
                slope = Vector(g.space, pull.data).to_parameters()
            for name, p in parameters.items():  # of value zero, with the gradient that is known
                value = value + (self.strength * slope[name].to(p) * (p - p.detach())).sum()
            total = total + value
        return total

    def _settle(self) -> None:
        space = self.network.tangent_space
        tasks = [(point, InnerProduct.from_state(space, form)) for point, form in self._loaded]
        if any(g.space != space for _, g in self._tasks):
            raise refused("a layer is read anew since a task was remembered. Remember batches of two examples or more.")
        self._tasks, self._loaded = self._tasks + tasks, []

    def state_dict(self) -> State:
        """Tensors, numbers and strings."""
        tasks = [*self._loaded, *((point, g.state()) for point, g in self._tasks)]
        return {"metric": repr(self.metric), "strength": self.strength, "tasks": [list(task) for task in tasks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave, of a consolidation made alike."""
        if (state["metric"], state["strength"]) != (repr(self.metric), self.strength):
            raise InvalidSetting(
                f"InvalidSetting in Consolidation.load_state_dict: the state is of metric={state['metric']}, strength="
                f"{state['strength']}, and this has metric={self.metric!r}, strength={self.strength}. Make it alike."
            )
        self._tasks, self._loaded = [], [(dict(point), form) for point, form in state["tasks"]]

    def __repr__(self) -> str:
        return f"Consolidation(model, {self.network.likelihood}, metric={self.metric!r}, strength={self.strength})"


def refused(reason: str) -> InvalidSetting:
    return InvalidSetting(f"InvalidSetting in Consolidation: {reason}")
