"""Several processes are one optimizer: their steps are those of one process with the joint batch."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_cases import EVERY, PLAIN, QUADRATIC, Empirical, Exact, Failed, Sharing, joint, part, processes, train
from optim_cases import CE, data, flat, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import riemann_ng as rng
from riemann_ng.errors import InvalidSetting
from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import MonteCarlo
from riemann_ng.optim import GeodesicCorrected, KLClip, NaturalGradient, Schedule, TrustRegion
from riemann_ng.optim.distributed.factorizations import Job, shared_out
from riemann_ng.optim.distributed.sharing import check_started

CLOSE = {"rtol": 0.0, "atol": 1e-12}  # of float64, after a few steps whose sums are made in another order
REDUCED = {"metric": rng.KFAC(sharing="reduce"), "constants": rng.optim.ConstantBlocks(4), **QUADRATIC}


class Blocks(rng.LayerwiseMetric):
    """The Fisher's own blocks, a metric of per-example gradients."""

    def at_layer(self, layer):
        return rng.second_moment(layer.gradients)


class Mixed(nn.Module):
    """Kinds of layers whose statistics travel otherwise: one-hot inputs, members of a family, a bare parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.gain = nn.Embedding(7, 4), nn.Parameter(torch.ones(4))
        self.convolution, self.out = nn.Conv1d(4, 4, 2, groups=2), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        words = self.words((10 * x).long().abs() % 7) * self.gain
        return self.out(self.convolution(words.mT).tanh().mean(-1))


CASES = {
    "exact": (2, [12, 12], {"estimator": Exact(), **QUADRATIC}, True, mlp),
    "empirical": (2, [12, 12], {"estimator": Empirical(), **QUADRATIC}, True, mlp),
    "uneven": (2, [5, 19], {"estimator": Exact(), **QUADRATIC}, True, mlp),
    "uneven empirical": (2, [5, 19], {"estimator": Empirical(), **QUADRATIC}, True, mlp),
    "four": (4, [7, 3, 9, 5], {"estimator": Exact(), **PLAIN}, True, mlp),
    "unwrapped": (2, [5, 19], {"estimator": Exact(), "sharing": Sharing(), **QUADRATIC}, False, mlp),
    "small buckets": (2, [8, 8], {"estimator": Exact(), "sharing": Sharing(bucket=100), **QUADRATIC}, True, mlp),
    "everywhere": (2, [8, 8], {"estimator": Exact(), "sharing": Sharing(factorize="everywhere"), **PLAIN}, True, mlp),
    "half": (4, [4, 6, 8, 6], {"estimator": Exact(), "sharing": Sharing(fraction=0.5), **QUADRATIC}, True, mlp),
    "one": (4, [4, 6, 8, 6], {"estimator": Empirical(), "sharing": Sharing(fraction=0.25), **PLAIN}, True, mlp),
    "kinds": (2, [5, 11], {"estimator": Exact(), **QUADRATIC}, True, Mixed),
    "kinds, diagonal": (2, [5, 11], {"constants": rng.optim.ConstantBlocks(2), **PLAIN}, True, Mixed),
    "reduced": (2, [5, 11], {"estimator": Exact(), **REDUCED}, True, Mixed),
    "per example": (2, [5, 11], {"estimator": Exact(), "metric": Blocks(), **QUADRATIC}, True, mlp),
    "clipped": (2, [5, 11], {"estimator": Exact(), "damping": 1e-2, "step_size": KLClip(1e-2)}, True, mlp),
    "bounded": (2, [5, 11], {"estimator": Exact(), "damping": 1e-2, "step_size": TrustRegion(0.1)}, True, mlp),
    "Tikhonov": (2, [5, 11], {"estimator": Exact(), **PLAIN, "damping": rng.optim.Tikhonov(1e-2)}, True, mlp),
}
COUNTED = {"exact", "empirical", "four", "unwrapped", "small buckets", "everywhere", "half", "one", "kinds"}


@pytest.mark.parametrize("name", CASES)
def test_the_steps_are_those_of_the_joint_batch(name):
    count, sizes, settings, wrapped, model = CASES[name]
    settings = {"estimator": Exact(), **settings, "schedule": EVERY}
    runs = processes(train, count, 4, sizes, settings, wrapped, None if model is mlp and wrapped else model)
    assert not isinstance(runs, Failed), runs
    alone, opt = joint(4, sizes, model, **{k: v for k, v in settings.items() if k != "sharing"})
    assert all(torch.equal(run.path, runs[0].path) for run in runs)  # identical on every rank
    assert torch.allclose(runs[0].path, alone, **CLOSE)
    assert {run.tally for run in runs} == {str(opt.tally)} == {"nothing"}
    if name in COUNTED:
        for run in runs:
            assert {k: v for k, v in run.sent.items() if k != "agreement"} == {
                k: v for k, v in run.planned.items() if v
            }
            assert run.jobs[0]
            assert run.sent["agreement"] < 4 * 300


def own_statistics(rank, steps, sizes, settings):
    """The mistake: gradients are averaged, and every process keeps statistics of its own."""
    model = mlp()
    net = DistributedDataParallel(model)
    opt = NaturalGradient(model, Categorical(), **settings)
    for seed in range(1, steps + 1):
        x, y = (part(t, rank, sizes) for t in data(sum(sizes), seed=seed))
        opt.zero_grad()
        CE(net(x), y).backward()
        opt.step()
    return flat(model)


def test_without_the_reduction_processes_drift_apart():
    settings = {"estimator": Exact(), "schedule": EVERY, **PLAIN}
    found = processes(own_statistics, 2, 4, [12, 12], settings)
    alone, _ = joint(4, [12, 12], **settings)
    assert (found[0] - found[1]).abs().max() > 1e-4
    assert all((one - alone[-1]).abs().max() > 1e-4 for one in found)


def counting(rank, settings):
    """What the collectives of torch are given, seen from outside."""
    given = {}

    def seen(name):
        function = getattr(dist, name)

        def call(tensor, *arguments, **options):
            t = arguments[0] if name == "all_gather" else tensor
            given[name] = given.get(name, 0) + t.numel() * t.element_size()
            return function(tensor, *arguments, **options)

        return call

    for name in ("all_reduce", "broadcast", "all_gather"):
        setattr(dist, name, seen(name))
    run = train(rank, 4, [12, 12], settings)
    return given, run


def test_what_is_counted_is_what_is_sent():
    given, run = processes(counting, 2, {"estimator": Exact(), "schedule": EVERY, **QUADRATIC})[0]
    assert sum(given.values()) == sum(run.sent.values())
    assert given["broadcast"] == run.planned["factorizations"]
    sides = {"0": (6, 5), "2": (3, 7)}  # of the cotangents, and of the inputs with their one
    halves = sum(d * (d + 1) // 2 for both in sides.values() for d in both)
    assert run.planned["statistics"] == 4 * 8 * (halves + 4 + 2)  # four moments, their masses, two flags
    assert run.planned["factorizations"] == 2 * 8 * halves


# --- loops ------------------------------------------------------------------------------------------------------------

PARTS = [[6, 3], [4, 11]]  # of each process, the examples of its parts


def accumulate(rank, settings):
    """Parts whose losses are divided by all examples of the process, sent back one by one."""
    model = mlp()
    net = DistributedDataParallel(model)
    opt = NaturalGradient(net, Categorical(), **settings)
    for seed in (1, 2, 3):
        x, y = (part(t, rank, [9, 15]) for t in data(24, seed=seed))
        opt.zero_grad()
        own = PARTS[rank]
        with net.no_sync():
            (CE(net(x[: own[0]]), y[: own[0]]) * own[0] / sum(own)).backward()
        (CE(net(x[own[0] :]), y[own[0] :]) * own[1] / sum(own)).backward()
        opt.step()
    return flat(model)


@pytest.mark.parametrize("estimator", [Exact(), Empirical()], ids=str)
def test_accumulated_gradients(estimator):
    settings = {"estimator": estimator, "schedule": EVERY, **QUADRATIC}
    found = processes(accumulate, 2, settings)
    assert torch.equal(*found) and torch.allclose(found[0], joint(3, [24], **settings)[0][-1], **CLOSE)


class Branches(nn.Module):
    """Of two layers the first feature of a batch says which is used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.out = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x, left):
        return self.out((self.left if left else self.right)(x).tanh())


def branch(rank, settings, find):
    model = Branches()
    net = DistributedDataParallel(model, find_unused_parameters=find) if find is not None else model
    sharing = {} if find is not None else {"sharing": Sharing()}
    opt = NaturalGradient(net, Categorical(), **settings, **sharing)
    for seed in (1, 2, 3):
        x, y = (part(t, rank, [9, 15]) for t in data(24, seed=seed))
        opt.zero_grad()
        CE(net(x, rank == 0), y).backward()
        opt.step()
    return flat(model)


@pytest.mark.parametrize("find", [True, None])
@pytest.mark.parametrize("estimator", [Exact(), Empirical()], ids=str)
def test_a_layer_that_one_process_skips(find, estimator):
    settings = {"estimator": estimator, "schedule": EVERY, **QUADRATIC}
    found = processes(branch, 2, settings, find)
    assert not isinstance(found, Failed), found
    model = Branches()
    opt = NaturalGradient(model, Categorical(), **settings)
    for seed in (1, 2, 3):
        x, y = data(24, seed=seed)
        opt.zero_grad()
        (CE(model(x[:9], True), y[:9]) * 9 / 24).backward()
        (CE(model(x[9:], False), y[9:]) * 15 / 24).backward()
        opt.step()
    assert torch.equal(*found) and torch.allclose(found[0], flat(model), **CLOSE)


def draws(rank, steps, alike):
    model = mlp()
    schedule, settings = Schedule(1, 1), {"damping": 1.0, "step_size": rng.optim.Constant(), "lr": 0.0}
    opt = NaturalGradient(
        model, Categorical(), estimator=MonteCarlo(1), schedule=schedule, decay=0.999, averages="growing",
        sharing=Sharing(), **settings,
    )  # fmt: skip
    if alike:  # the mistake
        opt._listener.estimator = opt.estimator
    x, y = data(12)
    found = []
    for _ in range(steps):
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()
        found.append(opt.memory.value.matrix()[-9:, -9:].clone())
    return found[0], found[-1], opt._listener.estimator


def test_labels_are_drawn_by_every_process_for_itself():
    steps = 150
    found = processes(draws, 2, steps, False)
    assert torch.equal(found[0][1], found[1][1]) and found[0][2] == MonteCarlo(1) != found[1][2]
    model, (x, _) = mlp(), data(12)
    network = rng.Network.from_torch(model, Categorical(), x)
    exact = rng.KFAC().at(network.observe(x, Exact())).matrix()[-9:, -9:]
    off = (found[0][1] - exact).norm() / (found[0][0] - exact).norm()
    assert off < 5 / steps**0.5  # of the first draw's error, in distribution
    same = processes(draws, 2, 1, True)
    alone = rng.KFAC().at(network.observe(x, MonteCarlo(1))).matrix()[-9:, -9:]
    assert torch.allclose(same[0][0], alone, **CLOSE)  # where all draw alike nothing is gained
    assert not torch.allclose(found[0][0], alone, rtol=0.0, atol=1e-3)


def overlapping(rank):
    model = mlp()
    net = DistributedDataParallel(model)
    opt = NaturalGradient(net, Categorical(), estimator=Exact(), schedule=EVERY, **PLAIN)
    x, y = (part(t, rank, [12, 12]) for t in data(24))
    found = []
    with net.no_sync():
        loss = CE(net(x[:6]), y[:6]) / 2
        found.append(opt.ranks.sent.get("statistics", 0))
        loss.backward()
    loss = CE(net(x[6:]), y[6:]) / 2
    found.append(opt.ranks.sent["statistics"])
    loss.backward()
    opt.step()
    net(x[:1])  # whose gradient nobody asks for
    CE(net(x), y).backward()
    opt.step()
    return [*found, opt.ranks.sent["statistics"], opt.ranks.plan.statistics], flat(model)


def test_statistics_travel_during_the_backward_pass():
    runs = processes(overlapping, 2)
    (parted, before_backward, whole, planned), end = runs[0]
    assert (parted, before_backward) == (0, planned)  # nothing inside no_sync, and all when the last forward ends
    assert whole == 3 * planned  # one was sent in vain
    assert torch.equal(end, runs[1][1])
    assert torch.allclose(end, joint_twice(), **CLOSE)


def joint_twice():
    model = mlp()
    opt = NaturalGradient(model, Categorical(), estimator=Exact(), schedule=EVERY, **PLAIN)
    for _ in range(2):
        x, y = data(24)
        CE(model(x), y).backward()
        opt.step()
    return flat(model)


def beside(rank, count):
    """Statistics of inputs that are not the loop's own."""
    model = mlp()
    sharing = {"sharing": Sharing()} if count > 1 else {}
    opt = NaturalGradient(model, Categorical(), estimator=Exact(), schedule=EVERY, **PLAIN, **sharing)
    sizes = [24 // count] * count
    for seed in (1, 2):
        opt.observe(part(data(24, seed=seed + 10)[0], rank, sizes))
        x, y = (part(t, rank, sizes) for t in data(24, seed=seed))
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()
    return flat(model)


def test_inputs_beside_the_loop():
    found = processes(beside, 2, 2)
    assert torch.equal(*found) and torch.allclose(found[0], beside(0, 1), **CLOSE)


def test_under_torchrun():
    example = Path(__file__).parent.parent / "examples" / "distributed.py"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(example)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 processes and one differ by")


# --- settings ---------------------------------------------------------------------------------------------------------


def test_work_is_shared_out_by_what_it_costs():
    assert shared_out([27.0, 8.0, 8.0, 8.0, 1.0], 2) == [0, 1, 1, 1, 1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        costs = [Job("", 1, int(side)).cost for side in torch.randint(1, 9, (7,), generator=generator)]
        owner = shared_out(costs, 3)
        longest = max(sum(c for c, o in zip(costs, owner, strict=True) if o == rank) for rank in range(3))
        best = min(
            max(sum(c for c, o in zip(costs, way, strict=True) if o == rank) for rank in range(3))
            for way in itertools.product(range(3), repeat=7)
        )
        assert longest <= (4 / 3 - 1 / 9) * best + 1e-9  # Graham's bound


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0}, "fraction=0, expected a part of the processes"),
        ({"fraction": True}, "fraction=True, expected a part of the processes"),
        ({"factorize": "nowhere"}, "factorize='nowhere', expected 'shared' or 'everywhere'"),
        ({"fraction": 0.5, "factorize": "everywhere"}, "processes that make all factorizations hold them all"),
        ({"bucket": 0}, "bucket=0, expected a number of bytes"),
    ],
)
def test_a_wrong_sharing_is_refused(settings, message):
    with pytest.raises(InvalidSetting, match=message):
        Sharing(**settings)


def test_it_needs_processes():
    with pytest.raises(InvalidSetting, match=r"torch.distributed is not started. Run under torchrun"):
        NaturalGradient(mlp(), Categorical(), sharing=Sharing())
    with pytest.raises(InvalidSetting, match=r"torch.distributed is not started"):
        check_started()
    with pytest.raises(InvalidSetting, match=r"sharing=0.5, expected optim.Sharing"):
        NaturalGradient(mlp(), Categorical(), sharing=0.5)


def refused(rank):
    found = []
    for settings in (
        {"step_size": GeodesicCorrected(), "damping": 1e-2},
        {"metric": rng.Fisher(), "estimator": rng.networks.Linearized(), "decay": 0.0, "solver": rng.solvers.CG(),
         "schedule": Schedule(1, 1), **PLAIN},
    ):  # fmt: skip
        try:
            NaturalGradient(mlp(), Categorical(), sharing=Sharing(), **settings)
        except InvalidSetting as error:
            found.append(str(error))
    model = mlp()
    opt = NaturalGradient(model, Categorical(), metric=rng.EKFAC(), sharing=Sharing(), **PLAIN)
    x, y = data(12)
    CE(model(x), y).backward()
    try:
        opt.step()
    except rng.RiemannError as error:
        found.append(str(error))
    return found, repr(opt)


def test_what_needs_single_examples_is_refused_by_everyone():
    runs = processes(refused, 2)
    assert runs[0] == runs[1]
    (corrected, linear, by_example), said = runs[0]
    assert "GeodesicCorrected" in corrected and "looks at single examples of the batch" in corrected
    assert "Linearized()" in linear
    assert "single elements of" in by_example and "they are on several processes" in by_example
    assert "sharing=Sharing(fraction=1.0" in said
