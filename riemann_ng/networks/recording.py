"""One forward pass, watched: what every block was evaluated at, and where its gradient will arrive.

A call keeps the input of a module and the *edge* of the graph that its output hangs on. The edge stays right when the
output is later changed in place, and backpropagation to edges never touches a weight. Hooks live only while
recording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import NonFinite, UnsupportedLayer
from ..samples import Compact, Folded, OneHot, folded
from ..spaces import VectorSpace
from .blocks import Expansion, Reader, within
from .outputs import standing_in
from .precision import HALVES, at_least_single
from .spreading import BareReader, Spreading

Lead = tuple[int, ...]
CHECKPOINT = "CheckpointFunctionBackward"


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return bool(torch._C._current_graph_task_id() != -1)


def graph_is_kept() -> bool:
    """Whether the backward pass that is running leaves its graph for another one."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def names_in_graph(z: Tensor) -> set[str]:
    """The kinds of nodes that z depends on."""
    seen, ahead = set(), [z.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead.extend(following for following, _ in node.next_functions)
    return {node.name() for node in seen}


@dataclass(frozen=True)
class Arrangement:
    """Where the examples stand among the leading dimensions of a call: on one axis of their own, or merged with sites.

    `merged` is "" (the axis is the examples'), "major" (examples × sites) or "minor" (sites × examples).
    """

    axis: int
    merged: str = ""

    def apply(self, values: Tensor, lead: int, n: int) -> Tensor:
        """(*leading, sites, *shape) as (n, sites, *shape)."""
        axis = self.axis
        if self.merged:
            size = values.shape[axis] // n
            values = values.unflatten(axis, (n, size) if self.merged == "major" else (size, n))
            axis, lead = (axis if self.merged == "major" else axis + 1), lead + 1
        return values.movedim(axis, 0).flatten(1, lead)

    def __str__(self) -> str:
        return f"examples {self.merged + ' ' if self.merged else ''}on axis {self.axis}"


def arrangements(lead: Lead, n: int) -> list[Arrangement]:
    """What leading dimensions can mean for n examples, the most usual first."""
    own = [Arrangement(axis) for axis, size in enumerate(lead) if size == n]
    merged = [
        Arrangement(axis, how)
        for axis, size in enumerate(lead)
        if size > n and size % n == 0
        for how in ("major", "minor")
    ]
    return own + merged


@dataclass
class Call:
    """One use of a block in one forward pass. `edge` is where its gradient arrives, `entry` where its input's would."""

    path: str
    reader: Reader
    x: Tensor
    edge: GradientEdge
    lead: Lead
    shape: tuple[int, ...]
    finite: Tensor
    version: int
    entry: GradientEdge | None = None
    arrangement: Arrangement | None = None
    folded: Folded | None = None
    """What is left of the features where the input was let go."""
    spoiled: bool = False
    """Whether the input had been changed in place when it was let go."""

    def let_go(self, space: VectorSpace, n: int) -> None:
        """From here on the features are known by their second moment, where that is no larger than the input."""
        data = self.data(n)
        rows = prod(data.counts if isinstance(data, Compact) else data.shape[:3]) if not isinstance(data, OneHot) else 1
        known = folded(data, space, 1 / rows)
        if isinstance(known, Folded):
            self.spoiled, self.folded = self.x._version != self.version, known
            self.x = self.x.new_empty(0)
            self.version = self.x._version

    def features(self, n: int) -> Tensor | OneHot:
        """The features, (n, 1, sites, *input_space.shape), at least in single precision."""
        data = self.data(n)
        return data.dense() if isinstance(data, Compact) else data

    def data(self, n: int) -> Tensor | OneHot | Compact:
        """The features as a sample keeps them."""
        if self.folded is not None:
            return self.folded
        x, arrangement, lead = at_least_single(self.x), self.arrangement, len(self.lead)
        assert arrangement is not None
        compact = self.reader.compact(x, n, lambda features: arrangement.apply(features, lead, n)[:, None])
        if compact is not None:
            return compact
        features = self.reader.features(x)
        if isinstance(features, OneHot):
            indices = arrangement.apply(features.indices, lead, n)
            return OneHot(indices[:, None], torch.float32 if features.dtype in HALVES else features.dtype)
        return arrangement.apply(features, lead, n)[:, None]

    def cotangents(self, gradient: Tensor, n: int) -> Tensor:
        """A gradient of the output, as cotangents (n, sites, *output_space.shape)."""
        assert self.arrangement is not None
        return self.arrangement.apply(self.reader.values(at_least_single(gradient)), len(self.lead), n)

    def zeros(self, z: Tensor) -> Tensor:
        """The gradient where none arrives."""
        return z.new_zeros(self.shape)


@dataclass
class Recording:
    """The calls of one forward pass, in their order."""

    calls: list[Call] = field(default_factory=list)
    clone: set[str] = field(default_factory=set)
    """Blocks whose input is changed in place later in the forward, and is therefore copied."""
    active: bool = True
    silent: set[str] = field(default_factory=set)
    """Blocks that were used with gradients off."""
    spreading: Spreading = field(default_factory=dict)
    bare: dict[str, nn.Parameter] = field(default_factory=dict)
    """Parameters by name, of which some are spread."""
    examples: int = 0
    uses: Counter[str] = field(default_factory=Counter)
    standing: ExitStack = field(default_factory=ExitStack)

    def begin(self, module: nn.Module, n: int) -> None:
        """A forward of so many examples is about to start: what is spread over them stands in for the parameters."""
        self.end()
        self.examples = n
        if not torch.is_grad_enabled():
            return
        spread: dict[str, Tensor] = {}
        for name, how in ((name, how[0]) for name, how in self.spreading.items() if name in self.bare):
            rows = how.first(self.bare[name], n)
            self.record(name, BareReader(module, name, tuple(self.bare[name].shape)), rows.detach(), rows)
            spread[name] = how.back(rows)
        if spread:
            self.standing.enter_context(standing_in(module, spread))

    def end(self) -> None:
        """The forward is over."""
        self.standing.close()
        self.uses.clear()
        self.examples = 0

    def use(self, path: str, reader: Reader, x: Any, y: Any) -> Tensor | None:
        """Records a call of a module; the tensor, of the same numbers, that the forward goes on with in place of y."""
        how = self.spreading.get(path, {}).get(self.uses[path]) if self.examples else None
        self.uses[path] += 1
        if not self.active or not torch.is_grad_enabled():
            self.record(path, reader, x, y)
            return None
        if how is not None:
            x, y = how.first(x.detach(), self.examples), how.first(y, self.examples)
        self.record(path, reader, x, y)
        onward = reader.onward(x, y)
        if how is not None:
            return how.back(onward)
        return None if onward is y else onward

    def record(self, path: str, reader: Reader, x: Tensor, y: Tensor) -> None:
        """Notes that a block's module was evaluated at x and gave y."""
        if not self.active or in_backward():  # a checkpoint that computes its part again
            return
        if not torch.is_grad_enabled() or not y.requires_grad:
            self.silent.add(path)
            return
        kept = reader.kept(x.detach())
        if path in self.clone and kept.data_ptr() == x.data_ptr():
            kept = kept.clone()
        lead = tuple(y.shape[: reader.leading(y)])
        finite = y.detach().sum().isfinite()
        entry = get_gradient_edge(x) if x.requires_grad else None
        edge = get_gradient_edge(y)
        self.calls.append(Call(path, reader, kept, edge, lead, tuple(y.shape), finite, kept._version, entry))

    def spoiled(self) -> set[str]:
        """Blocks whose recorded input has been changed in place since."""
        return {call.path for call in self.calls if call.spoiled or call.x._version != call.version}

    def check_complete(self, z: Tensor) -> None:
        """Refuses a forward that hides its layers from autograd, as checkpoints of the reentrant kind do."""
        if self.silent and CHECKPOINT in names_in_graph(z):
            raise UnsupportedLayer(
                f"UnsupportedLayer in Network: {sorted(self.silent)[0]!r} is inside a checkpoint of the reentrant "
                f"kind, which hides its layers and allows no gradient but loss.backward(). "
                f"Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        if not z.requires_grad:
            raise UnsupportedLayer(
                "UnsupportedLayer in Network: the output depends on no trained parameter, for autograd: the forward "
                "ran inside torch.inference_mode(), or uses torch.no_grad(), .detach() or a reentrant checkpoint. "
                "Observe where gradients can be had."
            )

    def check_finite(self) -> None:
        """Names the first call whose output is not finite."""
        flags = torch.stack([call.finite for call in self.calls]).tolist() if self.calls else []
        for call, finite in zip(self.calls, flags, strict=True):
            if not finite:
                raise NonFinite(
                    f"NonFinite in observe: the output of {call.path or 'the network'!r} holds NaN or infinity. "
                    f"Look at its parameters and its input; nothing was changed."
                )


def arrange(calls: Sequence[Call], verified: Mapping[str, Sequence[tuple[Arrangement | None, int]]]) -> bool:
    """Gives every call the arrangement that was verified for it; whether there was one for all of them.

    Arrangements come by block, in the order of its uses, with the number of leading dimensions they are for.
    """
    uses: Counter[str] = Counter()
    for call in calls:
        known = verified.get(call.path, [])
        index, uses[call.path] = uses[call.path], uses[call.path] + 1
        if index >= len(known) or known[index][1] != len(call.lead):
            return False
        call.arrangement = known[index][0]
    return True


@contextmanager
def recording(
    module: nn.Module,
    listeners: Mapping[str, tuple[str, Reader]],
    expansions: Mapping[str, Expansion],
    clone: set[str],
    spreading: Spreading | None = None,
) -> Iterator[Recording]:
    """Watches the forward passes of `module`; every hook is gone afterwards, also after an exception.

    `listeners` says, for the path of a module (or of a part of a fused one), which block its calls are uses of.
    """
    watch = Recording(clone=clone, spreading=spreading or {}, bare=dict(module.named_parameters()))
    handles: list[Any] = []
    replaced: dict[nn.Module, Any] = {}
    modules = dict(module.named_modules())
    try:
        handles.append(module.register_forward_hook(lambda *_: watch.standing.close(), always_call=True))
        for path, expand in expansions.items():

            def record(part: str, x: Tensor, y: Tensor, path: str = path) -> None:
                at = within(path, part)
                if at in listeners:
                    watch.record(*listeners[at], x, y)

            replaced[modules[path]] = vars(modules[path]).get("forward")  # of another recording
            modules[path].forward = expand(modules[path], record)
        for path, (block, reader) in listeners.items():
            if path in modules and modules[path] not in replaced:
                handles.append(modules[path].register_forward_hook(_hook(watch, block, reader), with_kwargs=True))
        yield watch
    finally:
        watch.active = False
        watch.end()
        for handle in handles:
            handle.remove()
        for m, before in replaced.items():
            del m.forward
            if before is not None:
                m.forward = before


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norm as in evaluation: the statistics of a batch couple its examples, and would be updated by a look."""
    kinds = nn.modules.batchnorm._BatchNorm
    frozen = [m for m in module.modules() if isinstance(m, kinds) and m.training and m.running_mean is not None]
    try:
        for m in frozen:
            m.training = False
        yield
    finally:
        for m in frozen:
            m.training = True


def _hook(watch: Recording, path: str, reader: Reader) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        x = args[0] if args else next(iter(kwargs.values()))
        return watch.use(path, reader, x, output)

    return hook


def backpropagate(z: Tensor, cotangent: Tensor, calls: Sequence[Call], keep: bool) -> list[Tensor | None]:
    """The gradients of <cotangent, z> at the outputs of the calls; None where nothing arrives."""
    if not calls:
        return []
    gradients = torch.autograd.grad(z, [call.edge for call in calls], cotangent, retain_graph=keep, allow_unused=True)
    return list(gradients)
