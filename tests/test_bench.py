"""The harness: the floor computes what the library computes, figures add up, a wrong command line is answered."""

import json
from itertools import pairwise

import pytest
import torch

import riemann_ng as rng
from riemann_ng import cli
from riemann_ng.bench import floor, harness, parts, peers
from riemann_ng.bench.fresh import milliseconds
from riemann_ng.bench.goals import shortfalls
from riemann_ng.bench.growth import exponent
from riemann_ng.bench.kernels import Halved, Plain
from riemann_ng.bench.loops import RECIPES, BareLoop, Loop, Recipe
from riemann_ng.bench.matrix_free import KeptGraph, conjugate_gradients, dual_solve
from riemann_ng.bench.quantities import QUANTITIES, SMALL, Case, Factors, Skipped, network_of
from riemann_ng.bench.records import Row, markdown
from riemann_ng.bench.timing import Spread, ratio, taking_turns
from riemann_ng.bench.workloads import WORKLOADS, Workload, copied, small, workload

SMALLS = {work.name: work for work in small()}
KERNELS = [Plain(), Halved()]
by_kernels = pytest.mark.parametrize("kernels", KERNELS, ids=lambda k: k.name)
by_work = pytest.mark.parametrize("name", SMALLS)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12)


# --- the floor is the library's arithmetic ----------------------------------------------------------------------------


def moments_of(work: Workload, estimator: rng.networks.Estimator) -> list[floor.Pair]:
    with network_of(work).observe(work.x, estimator) as seen:
        return [
            (rng.second_moment(x.cotangents).member_matrices(), rng.second_moment(x.inputs).member_matrices())
            for x in seen.layers.values()
        ]


def alike(ours: list[floor.Pair], bare: list[floor.Pair]) -> list[bool]:
    return [close(a, b) for one, other in zip(ours, bare, strict=True) for a, b in zip(one, other, strict=True)]


@by_work
@by_kernels
def test_bare_statistics_are_the_librarys(name, kernels):
    work = SMALLS[name]
    empirical = moments_of(work, rng.Empirical(work.targets))
    assert all(alike(empirical, floor.empirical_statistics(copied(work), kernels)()))
    if name != "W3 transformer":  # tokens of one example have directions in common, which the loop takes one by one
        assert all(alike(moments_of(work, rng.Exact()), floor.exact_statistics(copied(work), kernels)()))


@by_work
def test_sampled_statistics_differ_by_their_labels_alone(name):
    work = SMALLS[name]
    sampled = floor.sampled_statistics(copied(work), Plain())
    ours, first, second = moments_of(work, rng.MonteCarlo(1)), sampled(), sampled()
    assert all(close(A, B) for (_, A), (_, B) in zip(ours, first, strict=True))  # of inputs
    assert not all(alike(first, second))


@by_work
@by_kernels
def test_the_bare_loop_takes_the_librarys_steps(name, kernels):
    work = SMALLS[name]
    ours, other = copied(work), copied(work)
    loop, bare = Loop(ours, RECIPES["empirical"]), BareLoop(other, RECIPES["empirical"], kernels)
    for _ in range(12):  # over a factorization
        loop.turn()
        bare.turn()
    pairs = zip(ours.module.parameters(), other.module.parameters(), work.module.parameters(), strict=True)
    for a, b, before in pairs:
        assert close(a, b)
        assert not close(a, before)


@pytest.mark.parametrize("planted", [{"damping": 0.11}, {"decay": 0.8}, {"momentum": 0.8}, {"factorize": 5}])
def test_a_loop_that_does_something_else_takes_other_steps(planted):
    work = SMALLS["W1 autoencoder"]
    ours, other = copied(work), copied(work)
    recipe = Recipe("planted", False, **planted)
    loop, bare = Loop(ours, RECIPES["empirical"]), BareLoop(other, recipe, Plain())
    for _ in range(12):
        loop.turn()
        bare.turn()
    assert not all(close(a, b) for a, b in zip(ours.module.parameters(), other.module.parameters(), strict=True))


@by_work
def test_bare_inverses_are_the_librarys(name):
    work = SMALLS[name]
    of = Factors.of(work)
    pairs = [[matrix(f) for f in part.factors] for part in of.value.summands().values()]
    bare = floor.inverses(pairs, 1e-2)
    ours = of.ready().sharp(of.gradient)
    for (path, _), x in zip(of.value.summands().items(), floor.applied(bare, of.blocks), strict=True):
        assert close(ours.component(path).data.flatten(), x.flatten())


def matrix(g):
    if isinstance(g, rng.Diagonal):
        return g.diagonal_entries()
    blocks = g.dense_blocks()
    return g.dense_matrix() if blocks is None else blocks


@by_work
def test_bare_products_and_solves_are_the_librarys(name):
    work = SMALLS[name]
    network = network_of(work)
    df = network.differential(work.x, work.targets)
    v = rng.Vector(network.tangent_space, torch.randn(network.tangent_space.dim, dtype=torch.float64))
    F = network.fisher(work.x)
    tangents = by_parameters(network, v)
    kept = KeptGraph(copied(work))
    ours = by_parameters(network, F.flat(v))
    assert all(close(a, b) for a, b in zip(ours, kept.product(tangents), strict=True))
    flat = torch.cat([x.flatten() for x in by_parameters(network, df)])
    g = rng.Fisher(structure="matrix-free").at(network.observe(work.x, rng.networks.Linearized()))
    solved = (g + 1e-3 * rng.Euclidean(network.tangent_space)).sharp(df, rng.solvers.CG(iterations=10))
    expected = torch.cat([x.flatten() for x in by_parameters(network, solved)])
    found = conjugate_gradients(copied(work), flat, 1e-3)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)  # ten steps magnify rounding


def by_parameters(network, element):
    """Elements as tensors in the order of the module's parameters."""
    parts = network.to_parameters({path: element.component(path).data for path in network.tangent_space})
    return [parts[name] for name in network.parameters]


def test_the_bare_dual_solve_is_the_librarys():
    torch.manual_seed(0)
    work = SMALLS["convolutional"]
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(108, 4))
    some = type(work)("conv", module.double(), work.likelihood, work.x, work.targets, work.loss)
    network = network_of(some)
    df = network.differential(some.x, some.targets)
    g = rng.Fisher(structure="dual").at(network.observe(some.x, rng.Exact()))
    ours = by_parameters(network, (g + 1e-3 * rng.Euclidean(network.tangent_space)).sharp(df))
    bare = dual_solve(some, 1e-3)(by_parameters(network, df))
    assert all(torch.allclose(a, b.detach(), rtol=1e-7, atol=1e-9) for a, b in zip(ours, bare, strict=True))


# --- figures ----------------------------------------------------------------------------------------------------------


def test_works_take_turns_and_the_first_round_does_not_count():
    done: list[str] = []
    clock = iter(range(1000))
    works = {name: (lambda name=name: done.append(name)) for name in ("a", "b", "c")}
    times = taking_turns(works, rounds=3, clock=lambda: float(next(clock)))
    assert "".join(done) == "abcbcacababc"
    assert times == {name: [1.0] * 3 for name in works}


def test_ratios_are_of_the_same_round():
    times = {"a": [2.0, 20.0, 200.0], "b": [1.0, 10.0, 100.0]}
    assert ratio(times, "a", "b") == Spread(2.0, 2.0, 2.0)
    assert Spread.of([1.0, 2.0, 4.0, 8.0, 9.0]).times(2) == Spread(8.0, 4.0, 16.0)


def test_the_floor_is_the_faster_of_its_kinds_and_peers_count():
    times = {
        "plain": [1.0] * 5, "riemann_ng": [3.0] * 5, "floor, plain": [2.0] * 5, "floor, halved": [4.0] * 5,
        "curvlinops": [2.5] * 5,
    }  # fmt: skip
    rows = {row.who: row for row in harness.rows_of("W1", "statistics", times, "")}
    assert rows["riemann_ng"].over_floor == Spread(1.5, 1.5, 1.5)
    assert rows["riemann_ng"].short == ("1.50 times the floor, at most 1.15", "behind curvlinops with 2.50")
    assert rows["floor, plain"].over_floor is None and rows["curvlinops"].short == ()


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (("W1", "statistics", 1.4, 1.15, {}), []),
        (("W1", "statistics", 1.4, 1.16, {}), ["1.16 times the floor, at most 1.15"]),
        (("W2", "statistics", 1.4, 1.29, {"asdfghjkl": 1.5}), []),
        (("W1", "exact", 91.0, 0.2, {}), ["91.00 passes, at most 90"]),
        (("W1", "apply", 0.7, 3.0, {"a": 0.8, "b": 0.6}), ["behind b with 0.60"]),
    ],
)
def test_what_falls_short_says_so(figures, said):
    assert shortfalls(*figures) == said


def test_a_figure_that_falls_short_stands_out_on_the_page():
    report = harness.Harness().report
    spread = Spread(2.0, 1.9, 2.1)
    report.rows += [
        Row("W1", "statistics", "riemann_ng", 4, spread, spread, spread, short=("2.00 times the floor",)),
        Row("W1", "invert", "riemann_ng", 4, spread, spread, spread),
    ]
    page = markdown(report)
    assert "| *2.00* |" in page and "2.00 times the floor" in page
    assert page.count("*2.00*") == 1


def test_an_exponent_is_that_of_a_power():
    assert exponent((2, 4, 8), (3 * 2**2.5, 3 * 4**2.5, 3 * 8**2.5)) == pytest.approx(2.5)
    assert exponent((2, 4, 8), (1.0, 2.0, 4.0)) != pytest.approx(2.5)


def test_code_runs_in_a_fresh_interpreter():
    assert milliseconds("x = sum(range(10))") > 0


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """Workloads of no size under their usual names, and what is measured of them in fresh processes left out."""
    for name, work in zip(("W1", "W2", "W3"), SMALLS.values(), strict=True):
        monkeypatch.setitem(WORKLOADS, name, lambda work=work: copied(work))
    monkeypatch.setattr(harness, "workload", lambda name, device: WORKLOADS[name]())
    monkeypatch.setattr(harness, "peak_elsewhere", lambda name, who, recipe: 12.0)
    monkeypatch.setattr(harness, "import_times", lambda rounds: (1000.0, [310.0, 311.0, 312.0]))


NUMBERS = {"milliseconds", "passes", "over_floor"}
FIELDS = {"workload", "quantity", "who", "rounds", "share", "mebibytes", "note", "short", *NUMBERS}


def test_json_has_its_schema(tiny, tmp_path, capsys):
    out, page = tmp_path / "found.json", tmp_path / "found.md"
    given = ["bench", "--workload", "all", "--rounds", "1", "--json", str(out), "--markdown", str(page)]
    wanted = "statistics,empirical,invert,apply,fvp,dual,step-default,memory,import"
    given[2] = "W1,W2,W3,W6"
    assert cli.main([*given, "--quantity", wanted]) == 0
    found = json.loads(out.read_text("utf-8"))
    assert set(found) == {"schema", "device", "threads", "clock", "versions", "plain", "rows", "left"}
    assert found["schema"] == 1 and set(found["versions"]) == {"riemann_ng", "torch"}
    assert set(found["plain"]) == {"W1", "W2", "W3"}
    for row in found["rows"]:
        assert set(row) == FIELDS
        for spread in (row[name] for name in NUMBERS if row[name] is not None):
            assert set(spread) == {"median", "low", "high"} and spread["low"] <= spread["median"] <= spread["high"]
    ours = {(r["workload"], r["quantity"]) for r in found["rows"] if r["who"] == "riemann_ng"}
    assert {(w, q) for w in ("W1", "W2", "W3") for q in ("statistics", "apply", "step-default", "memory")} <= ours
    assert {(x["workload"], x["quantity"], x["why"]) for x in found["left"]} == {
        ("W1", "dual", "too many output directions for a kernel of 64 examples"),
        ("W2", "dual", "the floor is written for linear layers and convolutions alone"),
        ("W3", "dual", "too many output directions for a kernel of 64 examples"),
        ("W6", "", "needs a GPU, and runs with --device cuda"),
    }
    imported = next(r for r in found["rows"] if r["quantity"] == "import")
    assert imported["short"] == ["311 ms, at most 300"]
    said = capsys.readouterr().out
    assert "left out: W6: needs a GPU" in said and "A plain pass: W1" in said
    assert page.read_text("utf-8").count("\n| W1 |") >= 7


def test_a_peer_that_is_absent_or_fails_is_left_out_by_name(tiny, tmp_path, monkeypatch):
    class Works(peers.Peer):
        package, module, works = "torch", "torch", {"apply": "run"}

        def about(self):
            return ""

        def run(self, work):
            return work.plain

    class Fails(Works):
        def run(self, work):
            raise RuntimeError("of its own\nand more")

    class Missing(Works):
        package = "no_such_package"

    monkeypatch.setattr(harness, "PEERS", {"works": Works(), "fails": Fails(), "missing": Missing()})
    out = tmp_path / "found.json"
    assert cli.main(["bench", "--peers", "--workload", "W1", "--quantity", "apply,invert", "--rounds", "2",
                     "--json", str(out)]) == 0  # fmt: skip
    found = json.loads(out.read_text("utf-8"))
    assert found["versions"]["missing"] == "not installed"
    left = {(x["quantity"], x["who"]): x["why"] for x in found["left"]}
    assert left["apply", "missing"] == "not installed (pip install no_such_package)"
    assert left["apply", "fails"] == "fails with RuntimeError: of its own"
    assert set(left) == {("apply", "missing"), ("apply", "fails")}  # of what they do not know nothing is said
    assert [r["who"] for r in found["rows"] if r["quantity"] == "apply"] == ["riemann_ng", "floor", "works"]


def test_the_parts_of_a_step_add_up_to_it(tiny):
    clock = iter(range(10**6))
    found = parts.profile(copied(SMALLS["W1 autoencoder"]), "empirical", 1, lambda: float(next(clock)))
    assert set(found) == set(parts.PARTS)
    loop = parts.Timed(copied(SMALLS["W1 autoencoder"]), "default", lambda: float(next(clock)))
    loop.listen()
    loop.ten()
    whole = loop.taken["passes"] + loop.taken["step"]
    assert sum(loop.parts(0.0).values()) == pytest.approx(whole)
    assert all(loop.taken[part] > 0 for part in ("observe", "made", "sharp", "rule"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--workload", "W9"], "--workload W9: there is none of that name; there are W1, W2, W3, W4, W5, W6."),
        (["--workload", ","], "--workload: expected one or more of W1, W2"),
        (["--quantity", "speed"], "--quantity speed: there is none of that name; there are statistics, empirical"),
        (["--rounds", "0"], "--rounds 0: expected a whole number, 1 or more."),
        (["--rounds", "-3"], "--rounds -3: expected a whole number, 1 or more."),
        (["--threads", "two"], "--threads two: expected a whole number, 1 or more."),
        (["--seconds", "nan"], "--seconds nan: expected a positive number."),
        (["--threads", "2", "--clock", "cpu"], "--clock cpu adds up the time of all threads: give --threads 1"),
        (["--json", "no/such/folder/x.json"], "there is no folder 'no/such/folder' to write it in."),
        (["--json", "."], "--json .: it is a folder, expected a file."),
    ],
)
def test_a_wrong_command_line_is_answered_clearly(given, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *given]) == 2
    said = capsys.readouterr().err.replace(str(tmp_path) + "/", "")
    assert said.startswith("riemann-ng bench: error: ") and message in said


def test_help_names_every_quantity(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["bench", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in harness.ALL)


def test_every_quantity_is_a_case_or_says_why_not():
    for work in SMALLS.values():
        for make, said in {**QUANTITIES, **SMALL}.values():
            assert said
            try:
                case = make(copied(work))
            except Skipped as why:
                assert str(why)
                continue
            assert isinstance(case, Case) and "riemann_ng" in case.works
            for run in case.works.values():
                run()


def test_workloads_are_as_described():
    sizes = {name: sum(p.numel() for p in workload(name).module.parameters()) for name in ("W1", "W2", "W3")}
    widths = (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784)
    assert sizes["W1"] == sum(a * b + b for a, b in pairwise(widths))
    assert sizes["W2"] == 160 + 4640 + 18496 + 5770
    assert set(WORKLOADS) == {"W1", "W2", "W3", "W4", "W5", "W6"}
    with pytest.raises(rng.errors.InvalidSetting, match="there is no workload 'W7'; there are W1, W2"):
        workload("W7")
