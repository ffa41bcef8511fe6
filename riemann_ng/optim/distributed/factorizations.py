"""Factorizations shared out: each is made by one process, and its inverse sent to those who hold it.

Who makes which is decided by what they are predicted to cost, n³ for a matrix of side n: the dearest first, each to
the process that has least to do so far. Everyone decides alike, for everyone knows the sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ...elements import Covector, Element, Vector
from ...errors import DegenerateMetric, RiemannError
from ...inner_products import BlockDiagonal, InnerProduct, Kronecker, inverted
from ...inner_products.damped import light_symmetry
from ...inner_products.pencils import DIAGONAL
from ...inner_products.ready import ByInverse, has_inverses
from ...inner_products.sums import Scaled
from ...solvers import Solver
from ...solvers.base import checked_covector
from ...spaces import Family
from ...symmetry import Symmetry
from ..inverse_free import Factorized, Inversion
from .pieces import Piece, mirrored, packed, unpacked
from .sharing import Sharing
from .wire import Wire


@dataclass(frozen=True)
class Job:
    """One factorization: of `members` matrices of a side, in a layer."""

    path: str
    members: int
    side: int

    @property
    def cost(self) -> float:
        return self.members * float(self.side) ** 3

    @property
    def numbers(self) -> int:
        """What its inverse is on the wire."""
        return self.members * self.side * (self.side + 1) // 2


def shared_out(costs: Sequence[float], ranks: int) -> list[int]:
    """Which of so many processes does which job: longest processing time first."""
    load, owner = [0.0] * ranks, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner[i] = load.index(min(load))
        load[owner[i]] += costs[i]
    return owner


def groups_of(ranks: int, holders: int) -> list[range]:
    """The processes, so many side by side; the last group may be smaller."""
    return [range(start, min(start + holders, ranks)) for start in range(0, ranks, holders)]


@dataclass(frozen=True)
class Assignment:
    """Which process makes which factorization, and which hold it."""

    jobs: tuple[Job, ...]
    owner: tuple[int, ...]
    ranks: int
    holders: int
    group: Mapping[str, int] = field(default_factory=dict)
    """Of every layer, the processes that hold its inverses: the number of their group."""

    @classmethod
    def of(cls, jobs: Sequence[Job], ranks: int, sharing: Sharing) -> Assignment:
        holders = sharing.holders(ranks)
        if holders == ranks:
            owner = shared_out([job.cost for job in jobs], ranks)
            return cls(tuple(jobs), tuple(owner), ranks, holders, dict.fromkeys((job.path for job in jobs), 0))
        groups = groups_of(ranks, holders)
        layers: dict[str, float] = {}
        for job in jobs:
            layers[job.path] = layers.get(job.path, 0.0) + job.cost
        group = dict(zip(layers, shared_out(list(layers.values()), len(groups)), strict=True))
        found = [0] * len(jobs)
        for g, members in enumerate(groups):
            mine = [i for i, job in enumerate(jobs) if group[job.path] == g]
            for i, rank in zip(mine, shared_out([jobs[i].cost for i in mine], len(members)), strict=True):
                found[i] = members[rank]
        return cls(tuple(jobs), tuple(found), ranks, holders, group)

    @property
    def groups(self) -> list[range]:
        return groups_of(self.ranks, self.holders)

    def made_by(self, rank: int) -> list[int]:
        return [i for i, owner in enumerate(self.owner) if owner == rank]

    def load(self, rank: int) -> float:
        return sum(self.jobs[i].cost for i in self.made_by(rank))

    def holding(self, path: str) -> range:
        """The processes that hold a layer; all, of one that nobody factorizes."""
        return self.groups[self.group[path]] if path in self.group else range(self.ranks)

    def numbers(self, rank: int) -> int:
        """Of inverses, what one process sends or gets when factorizations are made."""
        alone = self.holders == 1
        return 0 if alone else sum(job.numbers for job in self.jobs if rank in self.holding(job.path))


def jobs_of(pieces: Sequence[Piece]) -> list[Job]:
    """The factorizations that products of these moments will need, of each layer that on S first.

    Constant blocks have no explicit inverses: everyone factorizes them.
    """
    layers: dict[str, list[Piece]] = {}
    for p in pieces:
        layers.setdefault(p.path, []).insert(0, p)
    return [
        Job(path, p.members, p.side) for path, both in layers.items() for p in both if not (p.diagonal or p.constant)
    ]


def dense_leaves(g: InnerProduct, path: str = "") -> Iterator[tuple[str, InnerProduct]]:
    """The matrices that are factorized, by the layer they belong to."""
    if isinstance(g, BlockDiagonal):
        for name, part in g.parts.items():
            yield from dense_leaves(part, path or name)
    elif isinstance(g, Kronecker):
        for factor in g.factors:
            yield from dense_leaves(factor, path)
    elif isinstance(g, Scaled):
        yield from dense_leaves(g.of, path)
    elif g.dtype is not None and not isinstance(g, ByInverse) and g.structure.kind not in DIAGONAL:
        yield path, g


def replaced(g: InnerProduct, found: Mapping[int, InnerProduct]) -> InnerProduct:
    """The form with its dense leaves by what was found for them; the others are inverted as they stand."""
    if isinstance(g, BlockDiagonal):
        return BlockDiagonal({name: replaced(part, found) for name, part in g.parts.items()}, g.space)
    if isinstance(g, Kronecker):
        return Kronecker([replaced(factor, found) for factor in g.factors], g.space)
    if isinstance(g, Scaled):
        return Scaled(g.scalar, replaced(g.of, found))
    if id(g) in found:
        return found[id(g)]
    whole = inverted(g)
    assert whole is not None
    return whole


def job_of(path: str, g: InnerProduct) -> Job:
    V = g.space
    m, d = (V.members, V.of.dim) if isinstance(V, Family) and g.by_members else (1, V.dim)
    return Job(path, m, d)


class Learner(Protocol):
    """Who is told how the work was shared out."""

    learned: Assignment | None


class SharedInversion(Inversion):
    """Factorizations of matrices shared out over the processes; what has no explicit inverse is made by everyone."""

    def __init__(self, of: Inversion, wire: Wire, sharing: Sharing, learner: Learner):
        self.of, self.wire, self.sharing, self.learner = of, wire, sharing, learner
        self.remembers = of.remembers
        self._alone = False

    def inverted(self, damped: InnerProduct, before: InnerProduct | None) -> InnerProduct:
        alone, self._alone = self._alone, False
        parts = self._parts(damped)
        able = {path: part for path, part in parts.items() if has_inverses(part)}
        if not able or not (alone or self._spreads):
            self.learner.learned = Assignment.of([], self.wire.size, self.sharing)
            return self.of.inverted(damped, before)
        held, plan = self._shared(BlockDiagonal(able))
        mine = {} if held is None else held.summands() or {}
        mine |= {path: self.of.inverted(part, None) for path, part in parts.items() if path not in able}
        if self._spreads:
            return Spread(damped, self.wire, mine, plan)
        return BlockDiagonal({path: mine[path] for path in parts}, damped.space)  # type: ignore[arg-type]

    def for_steps_alone(self, damped: InnerProduct, before: InnerProduct | None) -> InnerProduct | None:
        parts = self._parts(damped)
        if not parts:
            return self.of.for_steps_alone(damped, before)
        if self._spreads or not all(map(has_inverses, parts.values())):
            self._alone = True  # what each process holds, or what holds its ingredients, is no state of a run
            return None
        return self._shared(damped)[0]

    @property
    def _spreads(self) -> bool:
        return self.sharing.holders(self.wire.size) < self.wire.size

    def _parts(self, damped: InnerProduct) -> dict[str, InnerProduct]:
        """The layers of a form whose factorizations can be shared out; none where they are not to be."""
        shared = self.sharing.factorize == "shared" and self.wire.size > 1 and isinstance(self.of, Factorized)
        return (damped.summands() or {}) if shared else {}

    def _shared(self, damped: InnerProduct) -> tuple[InnerProduct | None, Assignment]:
        """The form by its inverses, as far as this process holds them, and who does what."""
        leaves = list(dense_leaves(damped))
        plan = Assignment.of([job_of(path, g) for path, g in leaves], self.wire.size, self.sharing)
        self.learner.learned = plan
        forms, found = [g for _, g in leaves], dict[int, InnerProduct]()
        for i, numbers in self._travelled(forms, plan).items():
            found[id(forms[i])] = by_inverse(forms[i], numbers, plan.jobs[i])
        if plan.holders == self.wire.size:
            return replaced(damped, found), plan
        parts = (damped.summands() or {}).items()
        mine = {path: replaced(part, found) for path, part in parts if self.wire.rank in plan.holding(path)}
        return BlockDiagonal(mine) if mine else None, plan

    def _travelled(self, forms: Sequence[InnerProduct], plan: Assignment) -> dict[int, Tensor]:
        """The inverses that this process is to hold, packed: its own, and what others have made for it."""
        rank, device, dtype = self.wire.rank, self.wire.device, forms[0].dtype if forms else torch.float32
        own, said = [torch.empty(0, dtype=dtype, device=device)], ""
        try:
            own += [packed_inverse(forms[i], plan.jobs[i]) for i in plan.made_by(rank)]
        except RiemannError as failure:
            said = str(failure) or type(failure).__name__
        failed = [row[0] for row in self.wire.table([float(bool(said))])]
        if any(failed):  # the same error everywhere: the first one's
            first = failed.index(1.0)
            raise DegenerateMetric(f"{self.wire.texts(said)[first]}\nThis was on rank {first}, which makes this one.")
        group = next(members for members in plan.groups if rank in members)
        sent = []
        for owner in group:
            jobs = plan.made_by(owner)
            size = sum(plan.jobs[i].numbers for i in jobs)
            flat = torch.cat(own) if owner == rank else torch.empty(size, dtype=dtype, device=device)
            if size:
                sent.append((jobs, self.wire.start_giving(flat, owner, group, "factorizations")))
        found: dict[int, Tensor] = {}
        for jobs, one in sent:
            found |= zip(jobs, one.wait().split([plan.jobs[i].numbers for i in jobs]), strict=True)
        return found


def packed_inverse(g: InnerProduct, job: Job) -> Tensor:
    P = inverted(g)
    assert isinstance(P, ByInverse)
    return packed(P.inverse.reshape(job.members, job.side, job.side))


def by_inverse(g: InnerProduct, numbers: Tensor, job: Job) -> ByInverse:
    P = mirrored(unpacked(numbers, job.members, job.side))
    family = isinstance(g.space, Family) and g.by_members
    return ByInverse(g.space, P if family else P[0], f"by_inverse({g.space})", light_symmetry(g))


class Spread(InnerProduct):
    """A direct sum of which this process inverts some summands; the rest of a vector comes from those who do.

    `sharp` is a collective operation: every process calls it, with the same covector.
    """

    def __init__(self, whole: InnerProduct, wire: Wire, held: Mapping[str, InnerProduct], plan: Assignment):
        self.space, self.whole, self.wire, self.held, self.plan = whole.space, whole, wire, held, plan

    def flat_components(self, x: Tensor) -> Tensor:
        return self.whole.flat_components(x)

    def sharp(self, covector: Element, solver: Solver | None = None) -> Vector:
        checked_covector(self, covector, "sharp")
        assert isinstance(covector, Covector)
        blocks = {path: g.sharp(covector.component(path)).data for path, g in self.held.items()}
        sent = []
        for number, members in enumerate(self.plan.groups):
            paths = [path for path, g in self.plan.group.items() if g == number]
            if not paths:
                continue
            spaces = [covector.component(path) for path in paths]
            known = self.wire.rank == members[0]  # what the others send is written over
            pieces = [(blocks[path] if known else x.data).flatten() for path, x in zip(paths, spaces, strict=True)]
            flat = torch.cat(pieces)
            sent.append((paths, spaces, self.wire.start_broadcast(flat, members[0], "natural gradients")))
        for paths, spaces, one in sent:
            pieces = one.wait().split([x.data.numel() for x in spaces])
            blocks |= {p: flat.reshape(x.data.shape) for p, x, flat in zip(paths, spaces, pieces, strict=True)}
        return Vector._of(self.space, None, {path: blocks[path] for path in (self.whole.summands() or {})})

    def tensors(self) -> Iterator[Tensor]:
        yield from self.whole.tensors()

    def summands(self) -> dict[str, InnerProduct] | None:
        return self.whole.summands()

    @property
    def symmetry(self) -> Symmetry:
        return self.whole.symmetry

    def expression(self) -> str:
        return self.whole.expression()
