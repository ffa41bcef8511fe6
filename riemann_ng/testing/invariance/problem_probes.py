"""Changes of the training problem: of its loss, its batch, its classes, and of how often a layer is called.

Nothing geometric: a method may well see them (descent sees the scale of the loss), and a user wants to know. Numbers
that a subject draws at random follow the order of the examples; where it depends on them, two runs that differ say
nothing, and the verdict is "undecided".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ...likelihoods import Categorical
from ...networks import Network
from ...networks.outputs import examples_in
from ...reparametrize import Frames, NoTwin, Twin, admissible
from .carriers import RelabelledTwin, SplitTwin, renamed_parameters
from .probes import Probe, in_frames
from .problems import Problem, as_given
from .records import REFUTED, UNDECIDED, Cell
from .running import Runner
from .subjects import Direction, Metric, OfNorm, Subject


@dataclass(frozen=True)
class LossScale(Probe):
    """The loss times a number. A metric measures steps and not losses: its step is multiplied, and the cell says so."""

    on: str = "loss"
    group: str = "scale"

    def factor(self, seed: int) -> float:
        return 3.0 if seed % 2 else 0.25

    def reason(self, problem: Problem, subject: Subject) -> str:
        own = subject.brings_loss or (isinstance(subject, Direction) and not isinstance(subject, (Metric, OfNorm)))
        return "the subject computes the loss itself, and nobody else can multiply it" if own else ""

    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        return replace(problem, loss_scale=problem.loss_scale * self.factor(seed))

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        return (), f"loss → {self.factor(seed):g} loss"

    def cell(self, runner: Runner, cases: int) -> Cell:
        cell = runner.cell(self, cases)
        if cell.verdict != REFUTED or not isinstance(runner.subject, Direction):
            return cell
        degree = self.degree(runner.subject, runner.problem)
        return (
            cell if degree is None else replace(cell, reason=f"the step goes like the power {degree:.3g} of the loss")
        )

    def degree(self, subject: Direction, problem: Problem) -> float | None:
        """d where a loss multiplied by c multiplies the step by c^d; None where it turns the step."""
        v = subject.vector(problem).components
        w = subject.vector(replace(problem, loss_scale=3.0 * problem.loss_scale)).components
        along = torch.nn.functional.cosine_similarity(v, w, dim=-1)
        return round(math.log(float(w.norm() / v.norm())) / math.log(3), 6) if float(along) > 1 - 1e-9 else None


class BatchProbe(Probe):
    """The same examples in another arrangement. Law: the loss and its gradient are as before."""

    def arranged(self, n: int, seed: int) -> Tensor:
        """Which example stands where."""
        raise NotImplementedError

    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        n = examples_in(problem.x)
        order = self.arranged(n, seed)

        def arrange(t: Any) -> Any:
            return t[order] if isinstance(t, Tensor) and t.ndim and t.shape[0] == n else t

        return replace(problem, x=tree_map(arrange, problem.x), y=tree_map(arrange, problem.y))

    def cell(self, runner: Runner, cases: int) -> Cell:
        return unless_drawn(runner.cell(self, cases), runner)


@dataclass(frozen=True)
class Duplication(BatchProbe):
    """Every example twice, or three times."""

    on: str = "batch"
    group: str = "duplication"

    def arranged(self, n: int, seed: int) -> Tensor:
        return torch.arange(n).repeat(2) if seed % 2 else torch.arange(n).repeat_interleave(3)

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        return (), f"every example {'twice' if seed % 2 else 'three times'}"


@dataclass(frozen=True)
class Order(BatchProbe):
    """The examples in another order."""

    on: str = "batch"
    group: str = "order"

    def arranged(self, n: int, seed: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        return (), f"examples in the order {self.arranged(examples_in(problem.x), seed).tolist()}"


@dataclass(frozen=True)
class Relabelling(Probe):
    """The classes in another order: logits and labels alike, and the likelihood is that of the new classes."""

    on: str = "outputs"
    group: str = "relabelling"

    def reason(self, problem: Problem, subject: Subject) -> str:
        if not isinstance(problem.likelihood, Categorical):
            return f"the targets of {problem.likelihood!r} are no classes"
        if subject.brings_loss and problem.likelihood.weight is not None:
            return "the subject computes the loss itself, and its class weights cannot be moved from outside"
        found = admissible(problem.network, problem.x, "outputs", "permutations")
        return "" if found is None else found.split("model class. ", 1)[-1].rstrip(".")

    def frames(self, problem: Problem, seed: int) -> Frames:
        return Frames.draw(problem.network, problem.x, "outputs", "permutations", seed)

    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        assert isinstance(problem.likelihood, Categorical)
        frames = self.frames(problem, seed)
        there = in_frames(problem, frames)
        assert isinstance(there.twin, Twin)
        order = frames["output"].linear[0].argmax(1)  # class k of the twin is class order[k] of the original
        twin = RelabelledTwin(there.twin, order, there.x)
        classes = problem.likelihood
        return replace(
            there,
            likelihood=twin.likelihood,
            y=relabelled(problem.y, order, classes.ignore_index, classes.dim),
            predictive=there.likelihood,  # predictions are told by the names that classes have in the original
            to_original=as_given,
            twin=twin,
        )

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        order = self.frames(problem, seed)["output"].linear[0].argmax(1)
        return (), f"class k becomes class {order.argsort().tolist()}[k]"

    def cell(self, runner: Runner, cases: int) -> Cell:
        return unless_drawn(runner.cell(self, cases), runner)


def relabelled(y: Tensor, order: Tensor, ignored: int | None, dim: int) -> Tensor:
    """Labels, or probabilities of classes, by the new names."""
    if y.is_floating_point():
        return y.index_select(dim, order)
    kept = torch.ones_like(y, dtype=torch.bool) if ignored is None else y != ignored
    return torch.where(kept, order.argsort()[y.long().where(kept, 0)], y.long()).to(y)


@dataclass(frozen=True)
class Splitting(Probe):
    """Layers with several sites, called on half of them at a time: by one module twice, or by two that share weights.

    The same parameters and the same function, by another graph.
    """

    on: str = "parameters"
    group: str = "splitting"

    def reason(self, problem: Problem, subject: Subject) -> str:
        return "" if splittable(problem) else "no linear or embedding layer is called with several sites"

    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        module, paths = copy.deepcopy(problem.module), splittable(problem)
        for path in paths:
            halves = Halves(module.get_submodule(path), apart=seed % 2 == 0)
            if not path:
                module = halves
                continue
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, halves)
        network = Network.from_torch(module, problem.likelihood, problem.x, read=problem.read)
        if coarser(problem.network, network):
            raise NoTwin(f"NoTwin: with {', '.join(paths)} split the model is read with fewer layers")
        return replace(problem, module=module, twin=SplitTwin(problem.network, network, renamed_parameters(paths)))

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        how = "by one module, twice" if seed % 2 else "by two modules that share their weights"
        return tuple(splittable(problem)), f"half of the sites at a time, {how}"

    def cell(self, runner: Runner, cases: int) -> Cell:
        return unless_drawn(runner.cell(self, cases), runner)


class Halves(nn.Module):
    """A layer on the first half of the sites and on the rest."""

    def __init__(self, layer: nn.Module, apart: bool):
        super().__init__()
        self.layer = self.other = layer
        if apart:
            shared = {id(p): p for p in layer.parameters()}
            self.other = copy.deepcopy(layer, shared)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([self.layer(x[:, :half]), self.other(x[:, half:])], dim=1)


def splittable(problem: Problem) -> list[str]:
    """The paths of layers, each one module at one path, that see at least two sites of every example."""
    n, handles = examples_in(problem.x), []
    found: dict[str, bool] = {}
    counted: dict[int, int] = {}
    for _, m in problem.module.named_modules(remove_duplicate=False):
        counted[id(m)] = counted.get(id(m), 0) + 1

    def hook(path: str, least: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            x = args[0] if args and isinstance(args[0], Tensor) else None
            good = x is not None and x.ndim >= least and x.shape[0] == n and x.shape[1] > 1
            found[path] = found.get(path, True) and good

        return note

    for path, m in problem.module.named_modules():
        plain = type(m) in (nn.Linear, nn.Embedding) and not m._forward_hooks and not m._forward_pre_hooks
        if plain and counted[id(m)] == 1:
            handles.append(m.register_forward_hook(hook(path, 3 if isinstance(m, nn.Linear) else 2)))
    try:
        with torch.no_grad():
            problem.network.outputs(problem.x)
    finally:
        for handle in handles:
            handle.remove()
    return [path for path, good in found.items() if good]


def coarser(original: Network, split: Network) -> bool:
    """Whether parameters that have a layer in the original have none when it is split."""
    bare = [sum(block.reader is None for block in network.blocks.values()) for network in (original, split)]
    return bare[1] > bare[0]


class OtherDraws(TorchDispatchMode):
    """Every random operation is made twice, and the second result taken: other numbers from the same generators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if torch.Tag.nondeterministic_seeded in func.tags else out


def depends_on_draws(runner: Runner) -> bool:
    """Whether the predictions depend on the random numbers that the subject draws."""
    with OtherDraws():  # type: ignore[no-untyped-call]
        run = runner.run(runner.problem)
    return runner.compared(run, runner.base()) > 1e-8


def unless_drawn(cell: Cell, runner: Runner) -> Cell:
    """A difference is no refutation where random numbers alone make one."""
    if cell.verdict != REFUTED or not depends_on_draws(runner):
        return cell
    reason = (
        "the subject draws random numbers, which follow the order of the examples and of the classes: the two runs "
        "can agree in law at most, and one run does not tell. Check it without sampling"
    )
    return replace(cell, verdict=UNDECIDED, counterexample=None, reason=reason)


OF_THE_PROBLEM: tuple[Probe, ...] = (Relabelling(), Splitting(), LossScale(), Duplication(), Order())
