"""Plans: operations and bytes against those that are counted, rates, ranks, and what the command says."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import riemann_ng as rng
from riemann_ng import cli
from riemann_ng.bench import floor, inspect_command
from riemann_ng.bench.floor import inverses
from riemann_ng.bench.kernels import Halved, Plain
from riemann_ng.bench.loops import RECIPES, Loop
from riemann_ng.bench.plan import Wire, jobs_of, made
from riemann_ng.bench.quantities import Factors, network_of
from riemann_ng.bench.rates import Rates, at
from riemann_ng.bench.recorded import recorded
from riemann_ng.bench.shapes import SHAPES, Layer, Paper, gram_operations, layers_of
from riemann_ng.bench.workloads import autoencoder, categorical, copied, small, transformer
from riemann_ng.errors import InvalidSetting
from riemann_ng.optim import Schedule
from riemann_ng.optim.distributed import Sharing
from riemann_ng.samples import gram
from riemann_ng.testing.invariance.costs import Operations

RATES = Rates(
    "paper", 1, {1: 1e9}, {1: 1e9}, {1: 1e9}, {1: 1e9}, {1: 1e9}, {1: 1e12}, 1e9, 0.0, 0.0, 0.0,
)  # fmt: skip
SMALLS = {work.name: work for work in small()}


def images():
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, stride=2),
        nn.Flatten(), nn.Linear(108, 5),
    )  # fmt: skip
    return categorical("images", conv, torch.randn(6, 3, 9, 9), torch.randint(0, 5, (6,)))


WORKS = {
    "deep": autoencoder(batch=32, widths=(120, 40, 6, 40, 120)),
    "wide": autoencoder(batch=20, widths=(230, 170, 230)),
    "images": images(),
    "tokens": transformer(batch=3, context=16, tokens=30, width=32, heads=2, depth=1),
}
by_work = pytest.mark.parametrize("work", WORKS.values(), ids=list(WORKS))


def counted(run) -> float:
    with Operations() as counter:
        run()
    return counter.total


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [3, 64, 96, 97, 130, 300])
def test_operations_of_a_product_are_those_carried_out(side):
    threads = torch.get_num_threads()
    x = torch.randn(50, side)
    planned = gram_operations(50, side, 64 * threads)
    besides = 0.0 if 2 * side > 3 * 64 * threads else side**2  # one number each for the weight
    copied_over = sum(min(s + 64 * threads, side) ** 2 for s in range(0, side, 64 * threads)) if not besides else 0.0
    assert planned <= counted(lambda: gram(x)) <= planned + besides + 2 * copied_over
    assert side <= 96 or planned < 2.0 * 50 * side**2  # halved, and not for nothing


@by_work
def test_statistics_are_foretold_as_they_are_counted(work):
    """Products by formula; what else is written are numbers of samples and of matrices."""
    layers = layers_of(network_of(work), work.x)
    planned = sum(f for x in layers for _, _, f in x.products(len(work.x), 64 * torch.get_num_threads()))
    heard = floor.Heard(copied(work))
    z, calls = heard.forward()
    g = torch.autograd.grad(z, [y for _, _, y in calls], heard.sampled(z))
    found = counted(lambda: floor.moments(Halved(), calls, g, 1 / len(z)))
    assert planned <= found <= 1.35 * planned
    whole = counted(lambda: floor.moments(Plain(), calls, g, 1 / len(z)))
    if work.name == "images" or max(x.into for x in layers) > 96:
        assert whole > found  # what is foretold is the halved kind


@by_work
def test_inverses_and_their_use_are_foretold_as_they_are_counted(work):
    of = Factors.of(work)
    layers = layers_of(network_of(work), work.x)
    matrices = sum(x.entries for x in layers)
    planned = sum(x.inversions for x in layers)
    few = [(pair, x) for pair, x in zip(of.pairs, layers, strict=True) if x.members == 1]
    own = sum(x.inversions for _, x in few)
    found = counted(lambda: inverses([pair for pair, _ in few], 1e-2))
    assert own <= planned
    assert own <= found <= own + 8 * matrices
    ready = inverses(of.pairs, 1e-2)
    planned = sum(x.applications for x in layers)
    found = counted(lambda: floor.applied(ready, of.blocks))
    assert planned - 4 * matrices <= found <= planned + 4 * matrices


def test_a_wrong_size_is_foretold_wrongly():
    work = WORKS["wide"]
    layers = [Layer(x.path, x.out, x.into + 40, x.sites) for x in layers_of(network_of(work), work.x)]
    of = Factors.of(work)
    found = counted(lambda: inverses(of.pairs, 1e-2))
    assert sum(x.inversions for x in layers) > found


@by_work
def test_a_plain_pass_is_recorded_with_all_its_products(work):
    seen, _ = recorded(work)
    products = 0.0
    for k, x in enumerate(layers_of(network_of(work), work.x)):
        if not x.diagonal_inputs and x.members == 1:
            each = 2 if k == 0 and work.x.is_floating_point() else 3  # nobody asks for the gradient of a batch
            products += each * 2.0 * len(work.x) * x.sites * x.out * (x.into - 1)
    attends = work.name == "W3 transformer"
    assert (products < seen.operations < 1.3 * products) if attends else seen.operations == products
    assert seen.seconds(RATES) > 0


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", SMALLS.values(), ids=list(SMALLS))
def test_sizes_are_those_of_the_network_and_of_its_factors(work):
    network = network_of(work)
    layers = layers_of(network, work.x)
    assert sum(x.parameters for x in layers) == network.tangent_space.dim
    of = Factors.of(work)
    numbers = [M.numel() for pair in of.pairs for M in pair]
    assert sum(x.entries for x in layers) == sum(numbers)


def test_averages_and_inverses_take_the_bytes_that_are_foretold():
    work = autoencoder(batch=16, widths=(60, 50, 60))
    layers = layers_of(network_of(work), work.x)
    loop = Loop(copied(work), RECIPES["empirical"])
    loop.turn()
    memory = loop.opt.memory
    plan = made(layers, 16, 1.0, RATES, Schedule(1, 10))
    held = sum(t.numel() * t.element_size() for t in memory.value.tensors())
    inverted = sum(t.numel() * t.element_size() for t in memory.damped.tensors())
    assert held == plan.memory["averages"] and inverted == plan.memory["inverses"]


@pytest.mark.parametrize(("name", "millions"), [("gpt2-small", 124), ("1.3B", 1312), ("7B", 6706)])
def test_shapes_on_paper_have_their_parameters(name, millions):
    paper = SHAPES[name]
    of = sum(x.parameters for x in paper.layers())
    table = paper.tokens * paper.width  # the head shares the table where it is tied
    assert of / 1e6 == pytest.approx(millions + (table / 1e6 if name != "7B" else 0), rel=0.01)


def test_the_sizes_on_paper_are_those_of_such_a_network():
    work = transformer(batch=2, context=8, tokens=20, width=16, heads=2, depth=2)
    paper = {x.path: x for x in Paper(2, 16, 8, 20).layers()}
    real = {x.path: x for x in layers_of(network_of(work), work.x)}
    for path, name in (("attention.qkv", "attention.qkv"), ("attention.out", "attention.out"), ("mlp.up", "up"),
                       ("mlp.down", "down")):  # fmt: skip
        ours, theirs = paper[path], real[f"layers.0.{name}"]
        assert (ours.out, ours.into, ours.sites) == (theirs.out, theirs.into, theirs.sites)
    assert paper["norms"].uses == sum("norm" in path for path in real)
    seen, _ = recorded(work)
    assert Paper(2, 16, 8, 20).passes(2) == pytest.approx(seen.operations, rel=0.25)


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_step_adds_up_by_its_schedule():
    layers = [Layer("a", 100, 200), Layer("b", 50, 100)]
    plan = made(layers, 32, 0.25, RATES, Schedule(2, 5))
    assert plan.factorization == pytest.approx(sum(d**3 for d in (100, 200, 50, 100)) / 1e9, rel=1e-2)
    assert plan.application == pytest.approx(2e-9 * (100 * 200 * 300 + 50 * 100 * 150), rel=1e-2)
    parts = 0.25 + plan.statistics / 2 + plan.factorization / 5 + plan.application
    assert plan.step == pytest.approx(parts, rel=1e-3)
    sampled = made(layers, 32, 0.25, RATES, Schedule(2, 5), sampled=True)
    assert sampled.statistics == pytest.approx(plan.statistics + 0.25 / 3)


def test_ranks_share_factorizations_by_the_longest_first():
    layers = [Layer("big", 400, 400), *(Layer(f"small{i}", 100, 100) for i in range(16))]
    assert len(jobs_of(layers)) == 34
    one, four, many = (made(layers, 8, 0.0, RATES, Schedule(), wire=Wire(r, 1e9, 0.0)) for r in (1, 4, 1024))
    whole = 2 * 400**3 + 32 * 100**3
    assert one.factorization == pytest.approx(whole / 1e9, rel=1e-2)
    assert four.factorization == pytest.approx(64e6 / 1e9, rel=1e-2)  # the largest two, each by itself
    assert many.factorization == pytest.approx(four.factorization)  # no more than one job each
    assert one.busiest == pytest.approx(1.0) and many.busiest > 100


@pytest.mark.parametrize(("ranks", "parts"), [(1, 0.0), (2, 1.0), (4, 1.5), (1024, 2 * 1023 / 1024)])
def test_an_all_reduce_goes_around_a_ring(ranks, parts):
    assert Wire(ranks, 1e9, 0.0).reduced(1e9) == pytest.approx(parts)
    assert Wire(ranks, 1e9, 0.0).gathered(1e9) == pytest.approx(parts / 2)
    late = Wire(ranks, 1e9, 1e-3).reduced(0.0)
    assert late == pytest.approx({1: 0.0, 2: 2e-3, 4: 4e-3, 1024: 20e-3}[ranks])


def test_what_travels_are_triangles():
    layers = [Layer("a", 3, 4), Layer("tokens", 3, 10, diagonal_inputs=True)]
    plan = made(layers, 8, 0.0, RATES, Schedule(), wire=Wire(2, 1e9, 0.0))
    assert plan.sent["statistics"] == 4 * (6 + 10 + 6 + 10)
    assert plan.sent["gradients"] == 4 * (12 + 30)
    assert "natural gradients" not in plan.sent


def test_fewer_holders_hold_less_and_send_more():
    layers = [Layer(f"{i}", 50, 60) for i in range(8)]
    wire = Wire(4, 1e9, 0.0)
    full, half = (made(layers, 8, 0.0, RATES, Schedule(), wire=wire, sharing=Sharing(fraction=f)) for f in (1.0, 0.5))
    assert half.memory["inverses"] == full.memory["inverses"] / 2
    assert half.sent["natural gradients"] == 4 * 8 * 50 * 60


def test_rates_between_sides_are_between_their_neighbours():
    table = {16: 1.0, 64: 4.0}
    assert at(table, 32) == pytest.approx(2.0)
    assert (at(table, 8), at(table, 64), at(table, 4096)) == (0.5, 4.0, 4.0)


def test_rates_come_back_from_their_file(tmp_path):
    path = tmp_path / "rates.json"
    RATES.save(path)
    assert Rates.load(path) == RATES
    path.write_text('{"gemm": {}}', "utf-8")
    with pytest.raises(InvalidSetting, match="is not of rates: expected applied, bandwidth"):
        Rates.load(path)
    with pytest.raises(InvalidSetting, match="cannot be read as rates"):
        Rates.load(tmp_path / "none.json")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """A module with models, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_to_inspect.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def model():\n    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))\n"
        "def problem():\n    return model(), torch.randn(8, 4), torch.zeros(8, dtype=torch.long)\n"
        "def wrong():\n    return 'a model'\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "mine_to_inspect"
    sys.modules.pop("mine_to_inspect", None)


def test_a_model_is_told_by_its_layers(mine, capsys):
    assert cli.main(["inspect", f"{mine}:model"]) == 0
    said = capsys.readouterr().out
    assert "0.weight" in said and "factors" in said and "not verified yet" in said


def test_a_plan_has_its_schema(mine, capsys, tmp_path):
    RATES.save(tmp_path / "rates.json")
    given = ["inspect", f"{mine}:problem", "--plan", "--rates", "rates.json", "--ranks", "1,4", "--json", "plan.json"]
    assert cli.main(given) == 0
    found = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert found["schema"] == 1 and found["device"] == "paper" and [p["ranks"] for p in found["plans"]] == [1, 4]
    for plan in found["plans"]:
        assert set(plan) == {
            "ranks", "passes", "statistics", "factorization", "application", "averaging", "step", "sent", "waiting",
            "memory", "operations", "busiest", "bytes",
        }  # fmt: skip
        assert plan["bytes"] == sum(plan["memory"].values())
    said = capsys.readouterr().out
    assert "statistics, to the wire" in said and "memory of a rank" in said


def test_models_that_nobody_can_run_are_planned_on_paper(capsys):
    given = ["inspect", "--shapes", "7B", "--plan", "--ranks", "64,256,1024", "--teraflops", "200"]
    assert cli.main(given) == 0
    said = capsys.readouterr().out
    assert "mlp.down" in said and "on paper, 200 teraflops" in said and "1024" in said


def test_a_workload_is_inspected_without_a_plan(capsys, monkeypatch):
    monkeypatch.setattr(inspect_command, "workload", lambda name: copied(SMALLS["W1 autoencoder"]))
    assert cli.main(["inspect", "--workload", "W1"]) == 0
    assert "0.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "name one model: MODEL, or --workload, or --shapes."),
        (["a:b", "--workload", "W1"], "name one model"),
        (["a"], "the model 'a' is not of the form package.module:object."),
        (["no_such_module:f"], "there is no module 'no_such_module'"),
        (["--workload", "W9"], "there is no workload 'W9'; there are W1"),
        (["--shapes", "9B"], "there is no shape '9B'; there are gpt2-small, 1.3B, 7B."),
        (["--shapes", "7B", "--ranks", "0"], "--ranks 0: expected a whole number, 1 or more."),
        (["--shapes", "7B", "--ranks", "70000"], "70000 ranks: expected 1 to 65,536."),
        (["--shapes", "7B", "--bandwidth", "-1"], "--bandwidth -1: expected a positive number."),
        (["--shapes", "7B", "--fraction", "2"], "--fraction 2: expected a part of the ranks, at most 1."),
        (["--shapes", "7B", "--rates", "x", "--teraflops", "1"], "a machine has one set of rates."),
        (["--shapes", "7B", "--plan", "--rates", "none.json"], "none.json cannot be read as rates"),
        (["mine_to_inspect:wrong"], "must return a module, (module, x, y) or (module, x, y, likelihood), got str."),
        (["mine_to_inspect:model", "--plan"], "--plan needs a batch: mine_to_inspect:model must return"),
    ],
)
def test_a_wrong_command_line_is_answered_clearly(given, message, capsys, mine):
    assert cli.main(["inspect", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("riemann-ng inspect: error: ") and message in said


def test_the_import_of_the_library_brings_none_of_this():
    code = "import sys, riemann_ng; print([m for m in sys.modules if m.startswith('riemann_ng.bench')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" and rng.__name__ == "riemann_ng"
