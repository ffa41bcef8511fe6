"""A torch module read as a network of typed layers.

`Network.from_torch(module, likelihood)` gives every trained parameter a typed place; the module is left as it is.
Leaves with a reader are affine maps `S ← Â`; anything else is a constant map of the one-point space, known by its
per-example gradients. The reading is verified, on the example given or on the first batch (see `verification.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..elements import Covector, Vector, register_layout
from ..errors import NonFinite, ShapeMismatch, SpaceMismatch
from ..inner_products import InnerProduct
from ..likelihoods import Likelihood, OutputMetric
from ..linear_maps import LinearMap
from ..points import Point
from ..spaces import AffineSpace, DirectSum
from .blocks import Expansion
from .constants import PerExample
from .coverage import Coverage, cover
from .differential import gradients_of_loss
from .estimators import Estimator, Exact, Linearized
from .functions import Function, check_apart, function_module
from .linearization import linearized
from .linearized import observed_linearized
from .masks import check_mask
from .observation import Observation
from .observing import sent_back
from .outputs import call_module, examples_in, first_examples, read_output, standing_in
from .precision import at_least_single
from .recording import Arrangement, Call, Recording, arrange, frozen_statistics, recording
from .running import devices_explained, plain_attention, uncompiled, untouched_randomness
from .settling import spread_parameters, spread_uses, unfaithful
from .spreading import Spreading
from .structure import Held, check_unchanged, constant, inside, plain_module, read_module
from .tape import Tape
from .verification import examine

NUMBERS = itertools.count(1)


class Network:
    """A module whose parameters have typed places. Build one with `Network.from_torch`.

    `tangent_space` is the direct sum of the blocks' spaces, by the paths of the layers ("self" for a lone leaf);
    `blocks` says how each is read, `frozen` names the parameters left out.
    """

    def __init__(self, module: nn.Module, likelihood: Likelihood, name: str, read: Callable[[Any], Tensor]):
        self.module, self.likelihood, self.name, self.read = plain_module(module), likelihood, name, read
        reading = read_module(self.module, name)
        self.blocks, self.frozen = reading.blocks, reading.frozen
        self._listeners, self._expansions = reading.listeners, reading.expansions
        self._as_read, self._held = dict(self.module.named_parameters()), Held(self.module)
        self._arrangements: dict[str, list[tuple[Arrangement | None, int]]] = {}
        self._clone: set[str] = set()
        self._spreading: Spreading = {}
        self._verified_on = 0
        self._running = self._refuses_batches = False
        self._observations = 0
        self._settle()

    @classmethod
    def from_torch(
        cls,
        module: nn.Module,
        likelihood: Likelihood,
        example: Any = None,
        name: str | None = None,
        read: Callable[[Any], Tensor] = read_output,
    ) -> Network:
        """Reads a module. `example`, a batch of inputs, verifies the reading at once; else the first batch does.

        `name` qualifies the names of the spaces, by default a fresh one, so that two networks never share a space.
        `read` takes the output tensor from what the module returns.
        """
        network = cls(module, likelihood, name or f"net{next(NUMBERS)}", read)
        if example is not None:
            network.verify(example)
        return network

    @classmethod
    def from_function(
        cls, f: Function, parameters: Any, likelihood: Likelihood, example: Any = None, name: str | None = None
    ) -> Network:
        """Reads f(parameters, x) -> outputs; parameters are a tensor, or dicts, lists and tuples of them.

        Names are the keys, joined by dots. The tensors are those given, not copies: see `functions.py`.
        """
        return cls.from_torch(function_module(f, parameters), likelihood, example, name)

    def _settle(self) -> None:
        """Lays out the tangent space: once when read, again when verification has moved a block."""
        self.tangent_space = DirectSum({path: block.space for path, block in self.blocks.items()})
        bare = [path for path, block in self.blocks.items() if block.reader is None]
        constants = [path for path in bare if path not in self._spreading]
        self._per_example = PerExample(self.module, constants, self._functional)
        register_layout(self.tangent_space, self.to_parameters)

    def check_unchanged(self) -> None:
        """Raises `UnsupportedLayer` where a parameter has come, gone, or is another one than when it was read."""
        if not self._held.still:
            check_unchanged(self.module, self._as_read, self.frozen)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name."""
        if self._held.still:
            return dict(self._held.trained)
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    # The module at a batch
    def outputs(self, x: Any) -> Tensor:
        """The output tensor of the module at a batch."""
        n, outer, self._running = examples_in(x), self._running, True
        try:
            with frozen_statistics(self.module), uncompiled(), devices_explained(self.module, x):
                z = self.read(call_module(self.module, x))
        finally:
            self._running = outer
        if z.ndim == 0 or z.shape[0] != n:
            raise ShapeMismatch(
                f"ShapeMismatch in {self.name}: {n} examples went in and an output of shape {list(z.shape)} came out. "
                f"The first dimension of the output is the examples'; reshape it in the module or with `read`."
            )
        return z

    def _functional(self, parameters: dict[str, Tensor], x: Any) -> Tensor:
        """The outputs as a function of some parameters, of nothing that torch differentiates once only."""
        expansions = self._expansions if self._verified_on else {}
        with standing_in(self.module, parameters), recording(self.module, {}, expansions, set()), plain_attention():
            return self.outputs(x)

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Watches the forward passes inside, as `observe` does, with batch norm's statistics frozen."""
        with torch.enable_grad(), self._listening() as watch:
            yield watch

    def _listening(self) -> AbstractContextManager[Recording]:
        listeners = {
            at: (path, self.blocks[path].reader) for at, path in self._listeners.items() if path in self.blocks
        }
        heard = {at: (path, reader) for at, (path, reader) in listeners.items() if reader is not None}
        return recording(self.module, heard, self._expansions, self._clone, self._spreading)

    def watch(self) -> Tape:
        """Observation of a training loop's own forward and backward passes: see `Tape`."""
        return Tape(self)

    def verify(self, x: Any) -> None:
        """Holds the reading against autograd on a batch; blocks whose reading does not hold become constant ones.

        A batch of one cannot show where the examples stand: the first larger one is looked at again.
        """
        self.check_unchanged()
        wrong = unfaithful(self.module, self._expansions, partial(self._opened, x), self.parameters)
        for path, reason in wrong.items():
            del self._expansions[path]
            self._give_up({at: reason for place, at in self._listeners.items() if inside(place, path)})
        z, watch = self._watched(x)
        check_apart(self, x, z)
        while spoiled := watch.spoiled() - self._clone:  # inputs changed in place later on: keep copies
            self._clone |= spoiled
            z, watch = self._watched(x)
        failed = examine(z, watch.calls, self.blocks, self.parameters)
        if len(z) > 1:  # one example does not show what is shared
            trial = partial(self._watched, x)
            spreading: Spreading = {path: how for path, how in self._spreading.items() if path not in failed}
            spreading = spread_uses(trial, z, watch.calls, failed, self.blocks, self.parameters, spreading)
            self._give_up({path: reason for path, reason in failed.items() if path not in spreading})
            spreading = spread_parameters(trial, z, self.blocks, self.parameters, spreading)
            if spreading != self._spreading:
                self._spreading = spreading
                z, watch = self._watched(x)
                failed = examine(z, watch.calls, self.blocks, self.parameters)
                self._give_up(failed)
                self._settle()
        else:
            self._give_up(failed)
        arrangements: dict[str, list[tuple[Arrangement | None, int]]] = {}
        for call in watch.calls:
            arrangements.setdefault(call.path, []).append((call.arrangement, len(call.lead)))
        self._arrangements |= arrangements
        self._verified_on = max(self._verified_on, len(z))

    def _give_up(self, failed: Mapping[str, str]) -> None:
        """Blocks that become constant ones, with the reason, and with them those that hold the same parameters."""
        place = self.parameters
        self._spreading = {path: how for path, how in self._spreading.items() if path not in failed}
        typed = {p: why for p, why in failed.items() if p in self.blocks and self.blocks[p].reader is not None}
        for path, reason in typed.items():
            names = set(self.blocks[path].names.values()) if path in self.blocks else set()
            for at in [at for at, block in self.blocks.items() if names & set(block.names.values())]:
                names |= set(self.blocks.pop(at).names.values())
            self.blocks |= {k: constant(self.name, k, tuple(p.shape), reason) for k, p in place.items() if k in names}
        if failed:
            self._settle()

    def _opened(self, x: Any, expansions: Mapping[str, Expansion]) -> Tensor:
        """The outputs with these modules in the open, and nothing else."""
        with torch.enable_grad(), recording(self.module, {}, expansions, set()), untouched_randomness(self.module):
            return self.outputs(x)

    def _watched(self, x: Any, spreading: Spreading | None = None) -> tuple[Tensor, Recording]:
        with self.recording() as watch, untouched_randomness(self.module):
            watch.spreading = self._spreading if spreading is None else spreading
            watch.begin(self.module, examples_in(x))
            z = self.outputs(x)
        watch.check_complete(z)
        watch.check_finite()
        if not bool(z.detach().sum().isfinite()):
            raise NonFinite(f"NonFinite in {self.name}: the outputs hold NaN or infinity, from finite layers.")
        return z, watch

    # Observation
    def observe(
        self,
        x: Any,
        estimator: Estimator | None = None,
        output: OutputMetric | None = None,
        fraction: float = 1.0,
        mask: Tensor | None = None,
    ) -> Observation:
        """What metrics see of a batch of inputs; labels are needed by `Empirical` alone.

        `output` is the inner product on the outputs, by default the likelihood's Fisher. `fraction` of the batch, its
        first examples, is used. `mask` (examples, sites) is false on padding (see `masks.py`); targets that `Empirical`
        ignores are a mask too. Afterwards the module, its gradients and the global random state are as before: dropout
        has the masks that the next forward of the module will draw.
        """
        estimator = Exact() if estimator is None else estimator
        self.check_unchanged()
        n = examples_in(x)
        if mask is not None:
            check_mask(mask, n)
        if fraction != 1.0:
            n = max(1, math.ceil(fraction * n))
            x, mask = first_examples(x, n), None if mask is None else mask[:n]
        if isinstance(estimator, Linearized):
            return observed_linearized(self, x, estimator, output, mask)
        z, calls = self._seen(x)
        return sent_back(self, x, z, calls, estimator, output, mask)

    def _seen(self, x: Any) -> tuple[Tensor, list[Call]]:
        """A forward pass that was watched, and every use of a block in it, arranged as verified."""
        if self._verified_on < min(examples_in(x), 2):
            self.verify(x)
        z, watch = self._watched(x)
        if not arrange(watch.calls, self._arrangements):  # uses that no batch has shown so far
            self.verify(x)
            z, watch = self._watched(x)
            arrange(watch.calls, self._arrangements)
        return z, watch.calls

    # Elements of the tangent space
    def to_parameters(self, components: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Blocks by path as tensors named and shaped like the module's trained parameters."""
        into: dict[str, Tensor] = {}
        parameters = self.parameters
        for path, block in self.blocks.items():
            block.scatter(components[path], into, parameters)
        return {name: into[name] for name in parameters}

    def vector(self, tensors: Mapping[str, Tensor]) -> Vector:
        """The tangent vector with these components, named and shaped like the trained parameters."""
        return Vector(self.tangent_space, self._gathered("vector", tensors))

    def covector(self, tensors: Mapping[str, Tensor]) -> Covector:
        """The covector with these components: gradients by parameter name."""
        return Covector(self.tangent_space, self._gathered("covector", tensors))

    def _gathered(self, call: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        missing = set(self.parameters) ^ set(tensors)
        if missing:
            raise SpaceMismatch(
                f"SpaceMismatch in {self.name}.{call}: expected one tensor for each trained parameter, and "
                f"{', '.join(sorted(missing))} {'is' if len(missing) == 1 else 'are'} missing or unknown."
            )
        return {path: at_least_single(block.gather(tensors)) for path, block in self.blocks.items()}

    def parameters_point(self) -> Point:
        """Where the parameters are: a point of the affine space whose translations are the tangent space."""
        here = self.vector({name: p.detach() for name, p in self.parameters.items()})
        space = AffineSpace(f"{self.name}.parameters", self.tangent_space.dim, over=self.tangent_space)
        return Point(space, here.data)

    def differential(self, x: Any, y: Any) -> Covector:
        """The differential of the loss, the mean over examples of the negative log-likelihood, at the parameters."""
        return self.covector(gradients_of_loss(self, x, y))

    def _moves(self, call: str, vector: Vector) -> dict[str, Tensor]:
        if not isinstance(vector, Vector) or vector.lives_in != self.tangent_space:
            raise SpaceMismatch(
                f"SpaceMismatch in {self.name}.{call}: expected a vector of its tangent space, got {vector}.\n"
                f"A differential is a covector: an inner product's sharp(differential) is a tangent vector."
            )
        self.check_unchanged()
        return self.to_parameters(vector.blocks)

    def move_(self, vector: Vector, step: float = 1.0) -> None:
        """Moves the parameters by step * vector, in place."""
        moves = self._moves("move_", vector)
        if not all(bool(t.isfinite().all()) for t in moves.values()):
            raise NonFinite(f"NonFinite in {self.name}.move_: the vector holds NaN or infinity; nothing was moved.")
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.add_(moves[name], alpha=step)

    def pushforward(self, vector: Vector, x: Any) -> Tensor:
        """J v: how the outputs at a batch move when the parameters move along a vector."""
        moves = self._moves("pushforward", vector)
        points = {name: p.detach() for name, p in self.parameters.items()}
        tangents = {name: t.to(points[name].dtype) for name, t in moves.items()}
        try:
            return torch.func.jvp(lambda ps: self._functional(ps, x), (points,), (tangents,))[1]
        except NotImplementedError:  # somewhere torch has no forward differentiation: transpose the transpose
            z, pull = torch.func.vjp(lambda ps: self._functional(ps, x), points)[:2]
            push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(z))[1]
            return push(tangents)[0]

    def linearize(self, x: Any) -> LinearMap:
        """J at a batch, from the tangent space to its outputs, flat: made once, then cheap to apply, both ways.

        What it needs is kept as long as the map is. Where parameters have moved since, it refuses.
        """
        return linearized(self, x).map

    def fisher(self, x: Any, output: OutputMetric | None = None) -> InnerProduct:
        """The exact Fisher of a batch, the mean over its examples, without a matrix: `flat` costs about one pass.

        `output` is the inner product on the outputs, by default the likelihood's Fisher.
        """
        return linearized(self, x).form(self.likelihood if output is None else output)

    def coverage(self) -> Coverage:
        """One line per trained parameter, and the frozen ones: its place, its size, what was assumed."""
        return cover(self.blocks, self.parameters, self.frozen, self._verified_on > 0, self._spreading)

    def __repr__(self) -> str:
        return f"Network({type(self.module).__name__}, {self.likelihood}, {len(self.blocks)} blocks, {self.name!r})"
