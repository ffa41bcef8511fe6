"""Observation of a training loop's own passes: its forward is watched, its backward listened to.

with network.watch() as tape:
    loss = criterion(model(x), y)
observation = tape.observe(MonteCarlo(1))    # sent back through the loop's own graph, which is kept
loss.backward()

with network.watch() as tape:
    criterion(model(x), y).backward()
observation = tape.observe(Empirical())      # from the loss's own backward: nothing is run at all
"""

from __future__ import annotations

import inspect
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import NonFinite, ObservationMismatch, ShapeMismatch, UnsupportedLayer
from ..likelihoods import OutputMetric
from ..samples import Compact
from .arriving import Arrived, folded_call, trace_of
from .estimators import Empirical, Estimator, Exact
from .masks import check_mask
from .observation import Observation
from .observing import assembled, sent_back
from .outputs import examples_in
from .precision import at_least_single
from .recording import Call, Recording, arrange, in_backward
from .running import uncompiled
from .stacking import stacked

if TYPE_CHECKING:
    from .network import Network


@dataclass
class Pass:
    """One forward of the network's module: its output, the calls of its layers, and what has been sent back so far."""

    x: Any
    z: Tensor
    watch: Recording
    boxes: list[Arrived]
    version: int
    handles: list[Any] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        return self.watch.calls

    def listen(self) -> None:
        edges = [call.edge for call in self.calls] + [output_edge(self.z)]
        for edge, box in zip(edges, self.boxes, strict=True):
            self.handles.append(edge.node.register_prehook(box.add(edge.output_nr)))

    def fold(self, network: Network) -> None:
        """From here on layers' inputs and gradients are let go as the backward pass comes by: see `Tape.folds`."""
        if not arrange(self.calls, network._arrangements):
            return
        n = self.z.shape[0]
        for call, box in zip(self.calls, self.boxes, strict=False):
            block = network.blocks[call.path]
            if block.reader is not None and call.path not in network._spreading:
                box.fold = partial(folded_call, call, block.input_space, block.output_space, n)
        if not network._per_example.names:
            self.boxes[-1].fold = trace_of

    def release(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


class Tape:
    """What the forward and backward passes of a training loop say about its network. Made by `network.watch()`.

    It records between `start` and `stop`, or inside `with`: every forward of the network's module with gradients
    enabled is one pass, and several passes are more examples. Off, it has no hook anywhere and costs nothing. A pass
    is kept, with its graph, until `observe` or `clear`; `close` is the end of it. Stopping removes every hook, also
    after an exception; gradients of passes already recorded are still received.

    While it records, whatever is compiled in the process runs as written. The forward is the loop's own: dropout and
    autocast are as they are there, and batch norm in training mode uses the batch's statistics, which couple its
    examples: then "per example" is what comes back to one example from the losses of all.
    """

    def __init__(self, network: Network):
        self.network = network
        self._passes: list[Pass] = []
        self._open = ExitStack()
        self._watch: Recording | None = None
        self._inside: Any = None
        self._closed = False
        self.folds = False
        """Whether of layers' inputs and gradients only second moments are kept, where these are smaller.

        They are taken as a backward pass comes by that frees its graph. It is for `Empirical()`, without a mask.
        """

    # On and off

    @property
    def recording(self) -> bool:
        return self._watch is not None

    @property
    def examples(self) -> int:
        """How many examples have been recorded since the last observation."""
        return sum(p.z.shape[0] for p in self._passes)

    def start(self) -> Tape:
        if self._closed:
            raise ObservationMismatch(
                "ObservationMismatch in Tape.start: the tape is closed. Make another: network.watch()."
            )
        if self._watch is None:
            self.network.check_unchanged()
            with ExitStack() as opened:
                opened.enter_context(uncompiled())
                module = self.network.module
                opened.callback(module.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
                self._watch = opened.enter_context(self.network._listening())
                opened.callback(module.register_forward_hook(self._end, with_kwargs=True, always_call=True).remove)
                self._watch.active = False  # outside the module's own forward its layers' calls belong to no pass
                self._open = opened.pop_all()
        return self

    def stop(self) -> None:
        self._watch = None
        self._open.close()

    def clear(self) -> None:
        """Forgets what has been recorded, and lets its graph go."""
        for p in self._passes:
            p.release()
        self._passes.clear()

    def parted(self) -> Tape:
        """What has been recorded so far, as a tape of its own that records no more."""
        other = Tape(self.network)
        other._passes, self._passes = self._passes, []
        return other

    def close(self) -> None:
        self.stop()
        self.clear()
        self._closed = True

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.stop()  # a forgotten tape does not leave its circumstances behind

    def __enter__(self) -> Tape:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # One pass

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._watch is not None
        if not torch.is_grad_enabled() or in_backward() or self.network._running:  # no pass of the loop's
            self._watch.active = False
            return
        if not self.network._verified_on:
            self.stop()
            self.network.verify(batch_of(module, args, kwargs))
            self.start()
        self._watch.calls, self._watch.silent, self._watch.active = [], set(), True
        if self.network._spreading:
            self._watch.begin(module, examples_in(batch_of(module, args, kwargs)))

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if self._watch is None or not self._watch.active:
            return
        self._watch.active = False
        self._watch.end()
        z = None if out is None else self.network.read(out)  # nothing comes out of a forward that failed
        if z is not None and z.requires_grad and z.numel():
            self._watch.check_complete(z)
            seen = Recording(self._watch.calls)
            x = batch_of(module, args, kwargs) if self.network._per_example.names else None
            p = Pass(x, z, seen, [Arrived() for _ in range(len(seen.calls) + 1)], z._version)
            p.listen()
            if self.folds:
                p.fold(self.network)
            self._passes.append(p)
        self._watch.calls = []

    # Observation

    def observe(
        self,
        estimator: Estimator | None = None,
        output: OutputMetric | None = None,
        mask: Tensor | None = None,
        divided_by: float | None = None,
    ) -> Observation:
        """What metrics see of the passes recorded since the last observation, which are then let go.

        `Empirical()` without targets reads the gradients of the loop's own backward. `divided_by` is what its losses
        were divided by: by default each by its own number of examples, as a mean over a batch is. It is 1 for a sum;
        examples × parts where the mean over each of so many parts was divided by their number; the number of tokens
        for a mean over tokens; and divided by the scale where a gradient scaler multiplied the loss. Any other
        estimator sends its own cotangents through the graph, before the loop's backward frees it, and keeps it.
        """
        estimator = Exact() if estimator is None else estimator
        n = self.examples
        if n == 0:
            raise ObservationMismatch(
                "ObservationMismatch in Tape.observe: no forward pass with gradients and examples has been recorded. "
                "Call the network's module itself, with gradients enabled, while the tape records: inside `with`, or "
                "after start()."
            )
        self.network.check_unchanged()
        if mask is not None:
            check_mask(mask, n)
        parts, at = [], 0
        for p in self._passes:
            rows = slice(at, at + p.z.shape[0])
            at = rows.stop
            part = None if mask is None else mask[rows]
            parts.append(self._of_pass(p, picked(estimator, rows, n), output, part, divided_by))
        self.clear()
        return stacked(parts, estimator)

    def _of_pass(
        self, p: Pass, estimator: Estimator, output: OutputMetric | None, mask: Tensor | None, divided_by: float | None
    ) -> Observation:
        network = self.network
        p.watch.check_finite()
        if p.z._version != p.version:
            raise ObservationMismatch(
                "ObservationMismatch in Tape.observe: the network's output was changed in place after its forward, and "
                "is not what the likelihood is about any more. Change a copy of it."
            )
        if spoiled := p.watch.spoiled():
            raise UnsupportedLayer(
                f"UnsupportedLayer in Tape.observe: the input of {sorted(spoiled)[0]!r} was changed in place between "
                f"the forward pass and this observation. Observe before the batch's memory is used again."
            )
        if not arrange(p.calls, network._arrangements):
            raise UnsupportedLayer(
                "UnsupportedLayer in Tape.observe: this forward used a layer in a way that no batch has shown so far, "
                "and its reading is not verified. Call network.verify(x) with this batch, and watch again."
            )
        if isinstance(estimator, Empirical) and estimator.targets is None:
            return self._from_backward(p, estimator, output, mask, divided_by)
        for box in p.boxes:
            box.open = False
        try:
            return sent_back(network, p.x, p.z, p.calls, estimator, output, mask, keep=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise ObservationMismatch(
                f"ObservationMismatch in Tape.observe: the graph was freed before {estimator} could send anything "
                f"through it. Observe before loss.backward(), or call loss.backward(retain_graph=True)."
            ) from None
        finally:
            for box in p.boxes:
                box.open = True

    def _from_backward(
        self, p: Pass, estimator: Estimator, output: OutputMetric | None, mask: Tensor | None, divided_by: float | None
    ) -> Observation:
        network, at_output = self.network, p.boxes[-1].total
        if not isinstance(at_output, Tensor):
            raise ObservationMismatch(
                "ObservationMismatch in Tape.observe: Empirical() without targets reads the loss's own backward, and "
                "none has come through. Call loss.backward() first, or give Empirical(targets)."
            )
        scale = float(p.z.shape[0] if divided_by is None else divided_by)
        found = [box.total for box in p.boxes[:-1]]
        there = [(call.path, g) for call, g in zip(p.calls, found, strict=True) if g is not None]
        sums = [g.squares() if isinstance(g, Compact) else g.sum() for _, g in there]
        flags = torch.stack([total.isfinite() for total in sums]).tolist() if there else []
        for (path, _), finite in zip(there, flags, strict=True):
            if not finite:
                raise NonFinite(
                    f"NonFinite in Tape.observe: the gradient at the output of {path!r} holds NaN or infinity. "
                    f"Look at the loss; where a gradient scaler overflowed, skip the step and clear() the tape."
                )
        directions = [at_least_single(at_output) * scale]
        output = network.likelihood if output is None else output
        return assembled(network, p.x, p.z, p.calls, [[g] for g in found], directions, estimator, output, mask, scale)


def output_edge(z: Tensor) -> GradientEdge:
    """Where the gradient of an output arrives, whether it or what it was rounded from is used in the loss."""
    edge = get_gradient_edge(z)
    while edge.node.name() == "ToCopyBackward0":
        edge = GradientEdge(*edge.node.next_functions[0])  # type: ignore[arg-type]
    return edge


def picked(estimator: Estimator, rows: slice, n: int) -> Estimator:
    """The estimator for some rows of all the examples."""
    if not isinstance(estimator, Empirical) or not isinstance(estimator.targets, Tensor):
        return estimator
    if len(estimator.targets) != n:
        raise ShapeMismatch(
            f"ShapeMismatch in Tape.observe: {n} examples were recorded, and {len(estimator.targets)} targets given."
        )
    return Empirical(estimator.targets[rows])


def batch_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call as a batch: positional ones as a tuple, else by keyword."""
    if not kwargs:
        return args
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if args else dict(kwargs)
