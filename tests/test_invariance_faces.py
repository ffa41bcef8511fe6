"""The faces of the invariance suite: the table, the page, the command, the pytest plugin."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from riemann_ng import cli
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import KFAC
from riemann_ng.symmetry import GROUPS
from riemann_ng.testing.invariance import Cell, Counterexample, InvarianceReport, check_invariance, optimizer
from riemann_ng.testing.invariance.command import Bar, named
from riemann_ng.testing.invariance.html import html_page, strength
from riemann_ng.testing.invariance.records import HELD, NOT_APPLICABLE, REFUTED, SYMBOLS, UNDECIDED
from riemann_ng.testing.invariance.suite import small_problem
from riemann_ng.testing.invariance.table import PLAIN, columns_of, fits, largest_kept, number, terminal_table

SPACES = ("inputs", "activations", "pre-activations", "outputs")
CODE = "import torch\nprint('<again> & again')"


def cells():
    example = Counterexample(0.3, 5, ("fc.A",), "x → x + [1, 0]", 4, "Linear(2, 2)", CODE)
    for on in SPACES:
        yield Cell(on, "translations", HELD, 3e-14, 1e-15, 2, claimed=True)
        yield Cell(on, "orthogonal", HELD, 2e-12, 1e-15, 2, claimed=False, blame="Euclidean(V)")
        yield Cell(on, "general", REFUTED, 0.3, 1e-15, 2, example, False, blame="Euclidean(V)")
        yield Cell(on, "permutations", REFUTED, 0.2, 1e-15, 2, claimed=True)
    yield Cell("parameters", "linear", NOT_APPLICABLE, reason="a layered metric <sees> layers")
    yield Cell("loss", "scale", UNDECIDED, 1e-5, 1e-6, 3, reason="conditioning is poor")


REPORT = InvarianceReport(
    "KFAC() & <others>", "Sequential", {c.key: c for c in cells()}, 1.5, {"steps": 4}, ("a note",)
)


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_of_the_table_is_longer_than_the_terminal(width):
    plain = [line for line in terminal_table(REPORT, width).splitlines() if not line.startswith("   ") or " | " in line]
    assert max(map(columns_of, plain)) <= width


@pytest.mark.parametrize(("width", "matrix"), [(60, False), (120, True)])
def test_a_wide_terminal_gets_a_matrix_and_a_narrow_one_a_list(width, matrix):
    text = terminal_table(REPORT, width)
    heads = [line.split() for line in text.splitlines()]
    assert (list(SPACES) in heads) == matrix
    assert text.count("✓") >= 8 and text.count("✗") >= 8


def test_the_table_says_in_words_what_was_lost_and_why():
    text = " ".join(terminal_table(REPORT, 100).split())
    assert "Refuted: general of inputs; general of activations; general of pre-activations; general of outputs" in text
    assert "lost at Euclidean(V)" in text
    assert "Undecided: scale of loss — conditioning is poor" in text
    assert "Not applicable: linear of parameters — a layered metric <sees> layers" in text
    assert "8 held, 8 refuted, 1 undecided, 1 not applicable" in text
    assert "Note: a note" in text and CODE.splitlines()[1] in terminal_table(REPORT, 100)


def test_claims_that_fail_and_findings_that_exceed_them_are_marked():
    lines = {line.split()[0]: line for line in terminal_table(REPORT, 120).splitlines() if line.strip()}
    assert "0.2!" in lines["permutations"] and "2e-12+" in lines["orthogonal"]
    assert "!" not in lines["translations"] and "+" not in lines["translations"]


def test_a_terminal_of_ascii_gets_ascii_signs():
    text = terminal_table(REPORT, 120, unicode=False)
    assert not set(SYMBOLS.values()) & set(text) - {"?"}
    assert "ok 3e-14" in text and all(sign in text for sign in PLAIN.values())
    assert fits("✓", "utf-8") and not fits("✓", "ascii") and not fits("✓", "no such encoding") and not fits("✓", None)


def test_numbers_are_short():
    assert [number(x) for x in (None, 0.0, 3.14e-14, 0.3217, 1.0, 250.0, float("inf"))] == [
        "", "0", "3e-14", "0.32", "1", "2e+02", "inf",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        (GROUPS, ["affine"]),
        (["orthogonal", "signed permutations", "permutations"], ["orthogonal"]),
        (["translations", "orthogonal", "isometries", "permutations"], ["isometries"]),
        (["signed permutations", "permutations", "translations"], ["translations", "signed permutations"]),
        ([], []),
    ],
)
def test_the_largest_groups_are_those_in_no_larger_one(held, kept):
    found = {("inputs", g): Cell("inputs", g, HELD if g in held else REFUTED, 0.0) for g in {*GROUPS, *held}}
    assert largest_kept(InvarianceReport("s", "m", found)) == {"inputs": kept}


# --- the page ---------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Which tags are open at the end, what is loaded, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.loaded += [value for key, value in attributes if key in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def outline(page):
    found = Outline()
    found.feed(page)
    found.close()
    return found


def test_the_page_is_well_formed_and_loads_nothing():
    page = html_page(REPORT)
    found = outline(page)
    assert (found.open, found.loaded) == ([], [])
    assert not re.search(r"url\(|@import|https?://", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_the_page_says_every_verdict_in_a_word_and_hides_nothing_in_markup():
    text = " ".join(" ".join(outline(html_page(REPORT)).text).split())
    for said in (
        "✓ held",
        "✗ refuted",
        "? undecided",
        "– not applicable",
        "KFAC() & <others>",
        "a note",
        CODE.split("\n")[1],
    ):
        assert said in text
    assert "Claimed, but refuted: permutations of inputs" in text.replace(" :", ":")
    assert "a layered metric <sees> layers" in text and "Euclidean(V)" in text


def test_colours_follow_the_logarithm():
    held = [strength(Cell("a", "g", HELD, x)) for x in (1e-16, 1e-12, 1e-8)]
    lost = [strength(Cell("a", "g", REFUTED, x)) for x in (1e-3, 1e-1, 1.0)]
    assert held == sorted(held, reverse=True) and lost == sorted(lost) and len({*held}) == len({*lost}) == 3
    assert all(0 <= s <= 65 for s in (*held, *lost)) and strength(Cell("a", "g", NOT_APPLICABLE)) == 0


def test_a_report_of_nothing_makes_a_page_too():
    empty = InvarianceReport("s", "m", {})
    assert outline(html_page(empty)).open == [] and "nothing tried" in terminal_table(empty, 80)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_a_page_and_json(capsys, tmp_path):
    page, data = tmp_path / "out.html", tmp_path / "out.json"
    status = cli.main([
        "invariance", "riemann_ng.metrics:KFAC", "--on", "activations", "--group", "general", "--group", "orthogonal",
        "--examples", "1", "--html", str(page), "--json", str(data),
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert status == 0 and "general" in said and "2 held" in said
    report = InvarianceReport.from_json(data.read_text("utf-8"))
    assert report["activations", "general"].verdict == HELD and json.loads(data.read_text("utf-8"))["settings"]
    assert outline(page.read_text("utf-8")).open == []


def test_a_claim_that_is_not_held_is_the_exit_status(capsys):
    line = ["invariance", "torch.optim:Adagrad", "--on", "loss", "--examples", "1"]
    assert cli.main([*line, "--claim", "activations:signed permutations"]) == 0
    assert cli.main([*line, "--claim", "activations:general"]) == 1
    assert "CLAIMED, AND NOT HELD: general of activations: refuted" in capsys.readouterr().out


def test_a_metric_whose_own_claim_is_false_is_the_exit_status(capsys, tmp_path, monkeypatch):
    (tmp_path / "liars.py").write_text(
        "from riemann_ng.inner_products import Euclidean, Gram, second_moment\n"
        "from riemann_ng.metrics import LayerwiseMetric\n"
        "from riemann_ng.symmetry import Symmetry\n"
        "import torch\n"
        "class Quiet(LayerwiseMetric):\n"
        "    def at_layer(self, layer):\n"
        "        return Claiming(layer.space)\n"
        "class Claiming(Euclidean):\n"
        "    symmetry = Symmetry.natural()\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = ["--on", "activations", "--group", "general", "--examples", "1"]
    status = cli.main(["invariance", "liars:Quiet", *line])
    said = capsys.readouterr().out
    assert status == 1 or "refuters disagree" in said, said


PROBLEMS = """
import torch
from torch import nn
from riemann_ng.likelihoods import Gaussian

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(60, 3), torch.randn(60, 3)

def with_likelihood():
    return (*good()[:2], None, Gaussian())

def needs(n):
    return good()

def alone():
    return good()[0]

def without_targets():
    return (*good()[:2], None)

make = lambda parameters: torch.optim.SGD(parameters, lr=0.5)
"""


@pytest.fixture
def problems(tmp_path, monkeypatch):
    (tmp_path / "users_problems.py").write_text(PROBLEMS, "utf-8")
    monkeypatch.chdir(tmp_path)
    yield "users_problems"
    sys.modules.pop("users_problems", None)
    sys.path[:] = [p for p in sys.path if p != str(tmp_path)]


@pytest.mark.parametrize("model", ["good", "with_likelihood"])
def test_modules_of_the_current_directory_are_found(problems, model, capsys):
    line = ["invariance", f"{problems}:make", "--model", f"{problems}:{model}", "--on", "activations"]
    assert cli.main([*line, "--group", "orthogonal", "--group", "general", "--quick"]) == 0
    assert "1 held, 1 refuted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one subject, package.module:object, or --atlas; got nothing."),
        (["a:b", "--atlas"], "or --atlas; got a subject and --atlas."),
        (["--atlas", "--on", "loss"], "--on: --atlas has subjects and a model of its own."),
        (["a:b", "--picture", "x.svg"], "--picture: a picture is made with --atlas."),
        (["a:b", "--html", "nowhere/x.html"], "there is no folder 'nowhere' to write 'x.html' to."),
        (["torch.optim"], "the subject 'torch.optim' is not of the form package.module:object."),
        (["torch.optim:Adamm"], "'torch.optim' has no 'Adamm'. It has ASGD, Adadelta"),
        (["not_there.at_all:x"], "there is no module 'not_there', in 'not_there.at_all:x'"),
        (["torch.optim:Adagrad", "--claim", "general"], "the claim 'general' is not of the form KIND:GROUP"),
        (["torch.optim:Adagrad", "--group", "x"], "groups='x' is unknown"),
        (["torch.optim:LBFGS"], "LBFGS.step needs a closure"),
        (["riemann_ng.metrics:FixedMetric"], "riemann_ng.metrics:FixedMetric needs arguments"),
        (["torch.optim:Adagrad", "--model", "users_problems:alone"], "must return (model, x, y) or (model, x, y, lik"),
        (["torch.optim:Adagrad", "--model", "users_problems:needs"], "must be a function without arguments."),
        (["torch.optim:Adagrad", "--model", "users_problems:without_targets"], "so it must return the likelihood too."),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_answered_clearly(problems, arguments, said, capsys):
    assert cli.main(["invariance", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("riemann-ng invariance: error: ") and said in error


def test_an_error_inside_the_users_module_is_shown_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "users_broken.py").write_text("import a_package_that_is_missing", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        named("users_broken:x", "the subject")


def test_the_bar_shows_on_terminals_alone():
    class Screen:
        def __init__(self, tty):
            self.tty, self.written = tty, ""

        def isatty(self):
            return self.tty

        def write(self, text):
            self.written += text

        def flush(self):
            pass

    for tty in (True, False):
        bar = Bar(Screen(tty))
        bar.cell(1, 2, Cell("loss", "scale", HELD))
        bar.done()
        assert ("[##########..........] 1/2 scale of loss: held" in bar.stream.written) == tty


def test_help_answers_what_may_be_named(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["invariance", "--help"])
    said = capsys.readouterr().out
    assert "riemann-ng invariance torch.optim:Adagrad" in said and "--claim KIND:GROUP" in said


# --- the plugin -------------------------------------------------------------------------------------------------------

USERS_TESTS = """
import pytest, torch
from riemann_ng.metrics import KFAC
from riemann_ng.testing.invariance import InvarianceSuite, optimizer

make = optimizer(lambda model: torch.optim.SGD(model.parameters(), lr=0.5))

def test_holds(invariance, riemann_examples):
    report = invariance.holds(make, under=[("activations", "orthogonal")])
    assert report["activations", "orthogonal"].cases == riemann_examples == N

def test_fails(invariance):
    invariance.fails(make, under=[("activations", "general")])

def test_a_false_claim(invariance):
    invariance.holds(make, under=[("activations", "general")])

class TestSGD(InvarianceSuite):
    subject = make
    held = [("activations", "orthogonal")]

    def test_examples(self):
        assert self.examples == N
"""


@pytest.mark.parametrize(("arguments", "n"), [((), 3), (("--riemann-examples", "1"), 1)])
def test_the_plugin_in_a_users_tests(tmp_path, arguments, n):
    (tmp_path / "test_users.py").write_text(USERS_TESTS.replace("== N", f"== {n}"), "utf-8")
    root = Path(__file__).parent.parent
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "-p", "riemann_ng.testing.plugin", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 failed, 6 passed" in done.stdout, done.stdout + done.stderr
    assert "expected held, of lambda model: torch.optim.SGD(model.parameters(), lr=0.5)" in done.stdout
    assert "general of activations: refuted" in done.stdout


def test_the_plugin_refuses_no_examples(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "riemann_ng.testing.plugin", "--riemann-examples", "0", str(tmp_path)],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert "--riemann-examples is at least 1, got 0" in done.stderr + done.stdout


def test_a_real_report_goes_through_every_face():
    model, x, y = small_problem()
    adam = optimizer(lambda model: torch.optim.Adam(model.parameters(), lr=0.05), "Adam")
    for subject in (adam, KFAC()):
        report = check_invariance(subject, model, x, y, Categorical(), on="outputs", examples=1, shrink=False)
        assert outline(html_page(report)).open == []
        assert InvarianceReport.from_json(report.to_json()).cells == report.cells
        assert "outputs" in terminal_table(report, 80)
