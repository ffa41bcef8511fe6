"""Several processes as one optimizer: the steps of all are those of one process with the joint batch."""

from __future__ import annotations

import dataclasses
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...elements import Covector
from ...errors import InvalidSetting, NonFinite
from ...networks import CurvatureProp, Estimator, InputsOnly, Linearized, MonteCarlo
from ...networks.observation import Observation
from ..groups import gradient_of
from ..inverse_free import Factorized, Inversion
from ..listening import Listener, Pass
from ..ranks import NO_GRADIENT, WRONG, Alone, Ranks, own_gradient
from ..scaling import Units, units_of
from ..steps import Constant, KLClip, QuadraticModel, TrustRegion
from .factorizations import Assignment, SharedInversion, jobs_of
from .failures import ERROR, NOT_FINITE, NOTHING, check_alike, named, raise_failures
from .gradients import Weigher, mean_over_ranks, weigher_of
from .lazily import joint_of
from .pieces import Piece, pieces_of
from .plan import Plan
from .sharing import Sharing, check_started, check_whole, replicated
from .statistics import Launched, Layout, arrived, launch, layout_dtype
from .wire import Wire

if TYPE_CHECKING:
    from ..natural_gradient import NaturalGradient

T = TypeVar("T")
STREAM = 1 << 20
"""How far the seeds of two processes are apart."""
RULES = (Constant, KLClip, TrustRegion, QuadraticModel)


def ranks_of(model: nn.Module, sharing: Sharing | None) -> Ranks:
    """The processes that train this model: those of its `DistributedDataParallel`, or all where a setting says so."""
    if sharing is not None and not isinstance(sharing, Sharing):
        raise InvalidSetting(
            f"InvalidSetting in NaturalGradient: sharing={sharing!r}, expected optim.Sharing(...) or None."
        )
    check_whole(model)
    ddp = replicated(model)
    if sharing is None and (ddp is None or dist.get_world_size(ddp.process_group) == 1):
        return Alone()
    check_started()
    return Joined(model, ddp, sharing)


class Joined(Ranks):
    """The processes of one group. What each of them hears is a part of the joint batch.

    `sent` counts the bytes that this process gave to the wire, by what they were for; `plan` foretells them.
    """

    def __init__(self, model: nn.Module, ddp: DistributedDataParallel | None, sharing: Sharing | None):
        self.sharing, self.how, self.ddp = sharing, sharing or Sharing(), ddp
        group = dist.group.WORLD if ddp is None else ddp.process_group
        assert group is not None
        self.wire = Wire(group, next(model.parameters()).device)
        self.learned: Assignment | None = None
        self._launched: list[Launched] = []
        self._usable: list[Launched] = []
        self._rest: list[Pass] = []
        self._anyone_rests = False
        self._all = 0
        self._weigher: Weigher | None = None
        self._opt: Callable[[], NaturalGradient | None] = lambda: None

    # Settings

    def estimator(self, estimator: Estimator) -> Estimator:
        if isinstance(estimator, (MonteCarlo, CurvatureProp)):
            return dataclasses.replace(estimator, seed=estimator.seed + STREAM * self.wire.rank)
        return estimator

    def inversion(self, inversion: Inversion) -> Inversion:
        return SharedInversion(inversion, self.wire, self.how, self)

    def listen(self, opt: NaturalGradient, listener: Listener) -> None:
        if not isinstance(opt.step_size, RULES) or isinstance(opt.estimator, Linearized):
            raise InvalidSetting(
                f"InvalidSetting in NaturalGradient: {opt.step_size!r} with {opt.estimator!r} looks at single examples "
                f"of the batch, and these are on several processes. Use one of Constant(), KLClip(...), "
                f"TrustRegion(...), QuadraticModel(...), and an estimator that is not Linearized()."
            )
        me = self._opt = weakref.ref(opt)
        if self.ddp is not None:
            if listener.folds and not listener.empirical:
                listener.told = self.heard
            self._weigher = weigher_of(self.ddp, self.wire)
            self._weigher.divisor = lambda: divisor_of(me())

    # What is known of the work

    def pieces(self, opt: NaturalGradient) -> list[Piece]:
        return pieces_of(opt.network, opt.constants.full, not isinstance(opt.estimator, InputsOnly))

    def layout(self, opt: NaturalGradient) -> Layout:
        return Layout(tuple(self.pieces(opt)), layout_dtype(opt.network), self.how.bucket)

    @property
    def sent(self) -> dict[str, int]:
        return dict(self.wire.counted)

    @property
    def foretold(self) -> Assignment:
        """Who will make which factorization, by the sizes of layers alone: of products of moments, as `KFAC`."""
        opt = self._opt()
        assert opt is not None
        shared = self.how.factorize == "shared" and isinstance(opt.inversion, Factorized) and opt.solver is None
        possible = shared and (self.how.fraction < 1 or opt.memory.steps_alone)
        return Assignment.of(jobs_of(self.pieces(opt)) if possible else [], self.wire.size, self.how)

    @property
    def plan(self) -> Plan:
        """As foretold, and once factorizations were made, as they were."""
        opt = self._opt()
        assert opt is not None
        dims = {path: block.space.dim for path, block in opt.network.blocks.items()}
        beside = 8 if self.ddp is not None else 0
        assignment = self.foretold if self.learned is None else self.learned
        return Plan.of(self.layout(opt), dims, self.wire.size, assignment, beside)

    # One step

    def agreed(self, why: str) -> str:
        flags = self.wire.table([float(bool(why))])
        wrong = [rank for rank, (flag,) in enumerate(flags) if flag]
        if wrong:
            self._drain()
            why = self.wire.texts(why)[wrong[0]] + named(wrong)
        return why

    def heard(self, p: Pass) -> None:
        """Starts the statistics of a forward on their way, where its backward pass will average gradients."""
        opt = self._opt()
        if opt is None or self.ddp is None or not self.ddp.require_backward_grad_sync:
            return
        known = {q for group in self._launched for q in group.passes}
        passes = [q for q in opt._listener.passes() if q.arrived and q not in known and q is not p] + [p]
        seen = [q.observation for q in passes if q.observation is not None]
        flag = NOT_FINITE if len(seen) < len(passes) else 0.0
        self._launched.append(launch(self.wire, self.layout(opt), passes, seen, flag))
        for q in passes:
            q.observation = None

    def gradient(self, opt: NaturalGradient, passes: Sequence[Pass]) -> tuple[Units, Covector | None, str]:
        units, df, why = own_gradient(opt, passes)
        own, here = sum(p.examples for p in passes), set(passes)
        self._usable = [group for group in self._launched if here.issuperset(group.passes)]
        there = {q for group in self._usable for q in group.passes}
        self._rest = [p for p in passes if p not in there]
        mask = sum(1 << i for i, group in enumerate([*self._launched, None]) if group is None or group in self._usable)
        rows = self.wire.table(
            [own, divisor_of(opt), WRONG.index(why), bool(self._rest), mask, fingerprint(opt), opt.steps,
             opt.memory.damping]
        )  # fmt: skip
        check_alike(rows)
        self._all = int(sum(row[0] for row in rows))
        self._anyone_rests = any(row[3] for row in rows)
        codes = [int(row[2]) for row in rows]
        why = self._refusal(codes)
        if why:
            self._drain()
            return units, None, why
        if self.ddp is not None:
            if df is None or opt.divided_by is None or not self._all:
                return units, df, ""
            whole = gradient_of(opt.network, units_of(opt, 1, 1.0).gradient)  # alike everywhere, as own shares are not
            assert whole is not None
            return units, whole * (sum(row[1] for row in rows) / self._all), ""
        if df is None:
            df = opt.network.covector({name: p.new_zeros(p.shape) for name, p in opt.network.parameters.items()})
        weight = own / self._all if self._all else 1 / self.wire.size
        return units, mean_over_ranks(self.wire, df, weight, self.how.bucket), ""

    def _refusal(self, codes: Sequence[int]) -> str:
        """Why the gradients of all together are none; "" where they are one."""
        for code, why in enumerate(WRONG):
            wrong = [rank for rank, found in enumerate(codes) if found == code]
            if not wrong or not why:
                continue
            if why == NO_GRADIENT:
                if len(wrong) == len(codes):
                    return why
                if self.ddp is None:
                    continue
            if self._weigher is not None and why == WRONG[3]:  # by now it is everyone's: whose was it?
                flags = self.wire.table([float(self._weigher.finite)])
                wrong = [rank for rank, (finite,) in enumerate(flags) if not finite] or wrong
            return why + named(wrong)
        return ""

    def observation(self, listener: Listener, divided_by: float) -> Observation | None:
        if not listener.folds:
            return self.joined(lambda: listener.observation(divided_by))
        groups, rest = self._usable, self._rest
        self._launched, self._usable, self._rest = [], [], []
        if self._anyone_rests or not groups:
            groups = [*groups, self._launch(lambda: listener.observations(divided_by, rest), rest, not groups)]
        return self._of(groups)

    def joined(self, make: Callable[[], Observation | None]) -> Observation | None:
        opt = self._opt()
        assert opt is not None
        if opt._listener.folds:

            def seen() -> list[Observation]:
                found = make()
                return [] if found is None else [found]

            return self._of([self._launch(seen, [], True)])
        found, flag, error = attempted(make)
        flag = NOTHING if found is None and not flag else flag
        raise_failures(self.wire, [row[0] for row in self.wire.table([flag])], error)
        return None if found is None else joint_of(found, self.wire, opt.constants.full)

    def _launch(self, make: Callable[[], list[Observation]], passes: list[Pass], first: bool) -> Launched:
        """Starts the sums of what this process has yet to tell; `first` if it has told nothing so far."""
        opt = self._opt()
        assert opt is not None
        seen, flag, error = attempted(make)
        if not seen and not flag:
            flag = NOT_FINITE if passes else NOTHING if first else 0.0
        launched = launch(self.wire, self.layout(opt), passes, seen or [], flag)
        launched.error = error
        return launched

    def _of(self, groups: Sequence[Launched]) -> Observation | None:
        opt = self._opt()
        assert opt is not None
        observation, flags = arrived(self.layout(opt), groups, max(self._all, 1))
        raise_failures(self.wire, flags, next((g.error for g in groups if g.error is not None), None))
        return observation

    def _drain(self) -> None:
        """Waits for what is on its way and will not be used."""
        for group in self._launched:
            group.wait()
        self._launched, self._usable, self._rest = [], [], []

    def examples(self, own: int) -> int:
        return self._all

    def sums(self, values: Tensor) -> Tensor:
        return self.wire.sums(values)

    def mean(self, value: float | None, examples: int) -> float | None:
        rows = self.wire.table([0.0 if value is None else value, examples, value is None and examples > 0])
        total = sum(row[1] for row in rows)
        return None if any(row[2] for row in rows) or not total else sum(row[0] * row[1] for row in rows) / total


def attempted(make: Callable[[], T]) -> tuple[T | None, float, Exception | None]:
    """What is made, or how it failed: a process that fails by itself would leave the others waiting."""
    try:
        return make(), 0.0, None
    except NonFinite:
        return None, NOT_FINITE, None
    except Exception as error:
        return None, ERROR, error


def divisor_of(opt: NaturalGradient | None) -> float:
    """What this process's loss divides its sum over examples by."""
    if opt is None:
        return 1.0
    return float(sum(p.examples for p in opt._listener.passes()) if opt.divided_by is None else opt.divided_by) or 1.0


def fingerprint(opt: NaturalGradient) -> float:
    """How the network was read, as a number: that of processes that read it alike."""
    read = [(path, block.space.shape, type(block.reader).__name__) for path, block in opt.network.blocks.items()]
    return float(zlib.crc32(repr(read).encode()))
