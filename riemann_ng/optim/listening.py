"""How an optimizer hears of a training loop: the forwards that go through the model, and what their backward sends.

Two hooks on the model, and none on its layers but inside a forward whose statistics are due. A forward counts once its
gradient has arrived: what is evaluated without gradients, or with gradients that nobody asks for, is no part of a step.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFinite, UnsupportedLayer
from ..likelihoods import OutputMetric
from ..networks import Empirical, Estimator, Linearized, Network
from ..networks.observation import Observation, observation_folded
from ..networks.outputs import examples_in
from ..networks.recording import in_backward
from ..networks.stacking import stacked
from ..networks.tape import Tape, batch_of, output_edge
from .random_state import RandomState


@dataclass(eq=False)
class Pass:
    """One forward of the loop, with what it was asked for: see `Wanted`."""

    x: Any
    z: Tensor
    began: RandomState | None
    plain: bool
    """Whether the network's own forward would give the same outputs: nothing was rounded by autocast."""
    score: Tensor | None = None
    arrived: bool = False
    observation: Observation | None = None
    tape: Tape | None = None
    refused: bool = False
    """Whether there are no statistics because something was not finite."""

    @property
    def examples(self) -> int:
        return self.z.shape[0]


@dataclass(frozen=True)
class Wanted:
    """What the next forwards are heard for: statistics; further forwards like them; the gradient at their outputs."""

    statistics: bool = False
    again: bool = False
    score: bool = False


class Listener:
    """The loop's forwards since the last step.

    One that waits for its gradient is kept alive by its own graph alone, but where the graph itself is listened to.
    """

    def __init__(
        self,
        network: Network,
        estimator: Estimator,
        output: OutputMetric | None,
        fraction: float,
        compiled: bool,
        folds: bool = False,
    ):
        """`folds`: only second moments are asked of what is observed, and batches are let go as these are made."""
        self.network, self.estimator, self.output, self.fraction = network, estimator, output, fraction
        self.folds = folds
        self.tape = network.watch()
        self.tape.folds = folds and self.empirical
        self.wanted = Wanted()
        self.compiled = compiled
        self.told: Callable[[Pass], None] | None = None
        """Is called with each pass whose statistics are known before its gradient arrives."""
        self._arrived: list[Pass] = []
        self._waiting: weakref.WeakSet[Pass] = weakref.WeakSet()
        self._taped: list[Pass] = []
        self._began: RandomState | None = None
        self._before = network.module.register_forward_pre_hook(Ear(self.begin), with_kwargs=True)
        self._after = network.module.register_forward_hook(Ear(self.hear), with_kwargs=True, always_call=True)

    @property
    def empirical(self) -> bool:
        """Whether statistics come from the loss's own backward pass."""
        return isinstance(self.estimator, Empirical)

    @property
    def shares(self) -> bool:
        """Whether statistics come from the loop's own forward."""
        return self.fraction == 1 and not isinstance(self.estimator, Linearized)

    def expect(self, wanted: Wanted) -> None:
        """Inside a forward it is too late for a tape where code is compiled: there it is started here."""
        self.wanted = wanted
        if self.compiled and self._tapes:
            self.tape.start()
            self._before.remove()
            self._before = self.network.module.register_forward_pre_hook(Ear(self.begin), with_kwargs=True)
        else:
            self.tape.stop()

    @property
    def _tapes(self) -> bool:
        return self.wanted.statistics and self.shares

    # A forward

    def _is_own(self, module: nn.Module) -> bool:
        """Whether it is the loop's, of this very module and not of a copy."""
        inside = in_backward() or self.network._running
        return torch.is_grad_enabled() and not inside and module is self.network.module

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_own(module):
            return
        x = batch_of(module, args, kwargs)
        if self.network._verified_on < min(examples_in(x), 2):
            self._verify(x)
        self._began = RandomState.now(next(module.parameters()).device) if self.wanted.again else None
        if self._tapes and self.network._verified_on and not self.tape.recording and not self.compiled:
            self.tape.start()
            self.tape._begin(module, args, kwargs)
        if self.tape.recording:  # its hook came later: ours is to run after it
            self._after.remove()
            self._after = module.register_forward_hook(Ear(self.hear), with_kwargs=True, always_call=True)

    def _verify(self, x: Any) -> None:
        """Holds the network's reading against autograd on a batch, unless that is not finite: then on the next one."""
        with suppress(NonFinite):
            self.network.verify(x)

    def hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not self._is_own(module):
            return
        if not self.compiled:
            self.tape.stop()
        z = None if out is None else self.network.read(out)  # nothing comes out of a forward that failed
        if z is None or not z.requires_grad:
            return
        plain = not torch.is_autocast_enabled(z.device.type)
        heard = Pass(batch_of(module, args, kwargs), z.detach(), self._began, plain)
        if self.tape.examples:
            heard.tape = self.tape.parted()
            if not self.empirical:
                self._observe(heard, None)
                if self.told is not None:
                    self.told(heard)
        if heard.tape is not None:
            self._taped.append(heard)
        self._waiting.add(heard)
        edge = output_edge(z)
        edge.node.register_prehook(arrival(weakref.ref(self), heard, edge.output_nr))

    def arrived(self, heard: Pass, g: Tensor) -> None:
        if not heard.arrived:
            heard.arrived = True
            self._arrived.append(heard)
        if self.wanted.score:
            heard.score = g.detach() if heard.score is None else heard.score + g.detach()

    def _observe(self, heard: Pass, divided_by: float | None) -> None:
        """Statistics of one pass from what its tape holds."""
        tape = heard.tape
        assert tape is not None
        try:
            try:
                heard.observation = tape.observe(self.estimator, self.output, divided_by=divided_by)
            except UnsupportedLayer:  # a use of a layer that no batch has shown so far: it is looked at now
                self.tape.stop()
                self._verify(heard.x)
                heard.observation = tape.observe(self.estimator, self.output, divided_by=divided_by)
        except NonFinite:
            heard.refused = True
        if self.folds and heard.observation is not None and not self.empirical:
            heard.observation = observation_folded(heard.observation)
        tape.clear()
        heard.tape = None

    # What a step asks

    def passes(self) -> list[Pass]:
        """The passes that the gradient is of; all of them where none has said so, as of a loss inside the model."""
        return self._arrived or list(self._waiting)

    def observation(self, divided_by: float) -> Observation | None:
        """The statistics of these passes together, None where there are none; for which the gradient was multiplied."""
        seen = self.observations(divided_by, self.passes())
        return stacked(seen, self.estimator) if seen else None

    def observations(self, divided_by: float, passes: Sequence[Pass]) -> list[Observation]:
        """The statistics of each of these passes; of none of them where one has none."""
        for p in passes:
            if p.tape is not None:
                self._observe(p, divided_by)
            elif p.observation is None and not p.refused and not self.empirical:
                p.observation = self._observed_again(p)
        seen = [p.observation for p in passes if p.observation is not None]
        return seen if len(seen) == len(passes) else []

    def _observed_again(self, p: Pass) -> Observation | None:
        try:
            return self.network.observe(p.x, self.estimator, self.output, self.fraction)
        except NonFinite:
            return None

    def zero(self) -> None:
        """Lets go of passes whose gradients have arrived, and are set to zero now."""
        for p in self._arrived:
            release(p)
        self._taped = [p for p in self._taped if not p.arrived]
        self._arrived.clear()

    def forget(self) -> None:
        """Lets go of everything heard."""
        for p in [*self._arrived, *self._taped]:
            release(p)
        self._arrived.clear()
        self._taped.clear()
        self._waiting = weakref.WeakSet()
        self.tape.clear()

    def close(self) -> None:
        self._before.remove()
        self._after.remove()
        self.tape.close()
        self.forget()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


def release(p: Pass) -> None:
    """Lets the graph go that the tape of a pass holds."""
    if p.tape is not None:
        p.tape.close()
        p.tape = None


def arrival(listener: weakref.ref[Listener], heard: Pass, index: int) -> Callable[[Sequence[Tensor | None]], None]:
    """A hook for the outputs' gradient. The graph holds it, and it holds the pass."""

    def hook(gradients: Sequence[Tensor | None]) -> None:
        g = gradients[index]
        if g is not None and (me := listener()) is not None:
            me.arrived(heard, g)

    return hook


def is_compiled(model: nn.Module) -> bool:
    """Whether it is a wrapper of `torch.compile`, or was compiled in place."""
    return "_orig_mod" in model._modules or model._compiled_call_impl is not None


class Ear:
    """A hook on the model that keeps no optimizer alive. In a copy of the model it is deaf."""

    def __init__(self, hook: Callable[..., None] | None = None):
        self.hook = None if hook is None else weakref.WeakMethod(hook)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __call__(self, *args: Any) -> None:
        hook = None if self.hook is None else self.hook()
        if hook is not None:
            hook(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ear:
        return Ear()

    def __reduce__(self) -> tuple[type[Ear], tuple[()]]:
        return Ear, ()
