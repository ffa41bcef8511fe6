"""`riemann-ng reproduce`: what it says, what it writes, and how it ends."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from riemann_ng import cli
from riemann_ng.errors import MissingDependency
from riemann_ng.experiments import EXPERIMENTS, Experiment, Panel, Picture, Series, Table
from riemann_ng.experiments import output as files
from riemann_ng.experiments.progress import Progress
from riemann_ng.plots import png

PICTURE = Picture(
    "curves", "Two <curves>.",
    [
        Panel("left", "x", "y", [
            Series("a", [1, 2], [1e-3, float("nan")]), Series("", [1, 2], [0, 2], "points"),
        ], "xy", limit=1.0),
        Panel("right", "", "σ", [
            Series("b", [0, 1], [1, 2], "bars"), Series("c", [0, 1], [2, 1], "bars"),
        ], categories="pq"),
    ],
)  # fmt: skip


def toy(wrong=False, crash=False):
    def part(run):
        run.below("one is less than two", 1, 2, "arithmetic")
        run.above("two is not", 2, 3 if wrong else 1, control=True)
        run.number("x", run.normal("x", 1))
        run.number("none", float("nan"))
        run.table(Table("words & numbers", ("word", "number"), [("a<b", 1.5)]))
        run.picture(PICTURE)
        if crash:
            raise ZeroDivisionError("by hand")

    return Experiment("toy", "A toy & more", "nobody 2000", "One is less than two.", (("arithmetic", part),))


@pytest.fixture
def registered(monkeypatch):
    """A toy in place of every reproduction; more of it under the name "toy"."""

    def register(**options):
        monkeypatch.setitem(sys.modules, "riemann_ng.experiments.a_toy", SimpleNamespace(EXPERIMENT=toy(**options)))
        for name in list(EXPERIMENTS):
            monkeypatch.delitem(EXPERIMENTS, name)
        monkeypatch.setitem(EXPERIMENTS, "toy", "a_toy")

    register()
    return register


def test_the_list_names_all(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)


def test_it_says_what_was_claimed_and_measured(registered, capsys):
    assert cli.main(["reproduce", "toy"]) == 0
    said, bar = capsys.readouterr()
    assert "toy: A toy & more (nobody 2000)" in said and "quick, seed 0" in said
    assert "✓  one is less than two" in said and "✓  control: two is not" in said and "1 of 1 hold." in said
    assert bar == ""  # no terminal, no bar


def test_a_claim_that_fails_ends_with_one_and_is_named(registered, capsys, tmp_path):
    registered(wrong=True)
    assert cli.main(["reproduce", "all", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "FAILED: control: two is not: expected > 3, measured 2" in said and "0 of 1 hold; not toy." in said
    assert json.loads((tmp_path / "toy.json").read_text("utf-8"))["held"] is False
    assert "✗ fails" in (tmp_path / "report.html").read_text("utf-8")


def test_a_part_that_crashes_ends_with_one_too(registered, capsys, tmp_path):
    registered(crash=True)
    assert cli.main(["reproduce", "toy", "--out", str(tmp_path)]) == 1
    assert "STOPPED in 'arithmetic':" in capsys.readouterr().out
    assert "by hand" in json.loads((tmp_path / "toy.json").read_text("utf-8"))["faults"][0]["error"]


def test_what_is_written(registered, tmp_path, capsys):
    out = tmp_path / "new folder"
    assert cli.main(["reproduce", "toy", "toy", "--full", "--seed", "7", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "toy-curves.png", "toy.json"]
    record = json.loads((out / "toy.json").read_text("utf-8"))
    assert (record["seed"], record["size"], record["held"]) == (7, "full", True)
    assert record["numbers"]["none"] == "nan" and isinstance(record["numbers"]["x"], float)
    assert {"torch", "riemann_ng", "python", "numpy", "machine", "threads"} == set(record["versions"])
    assert record["checks"][0] == {
        "claim": "one is less than two", "measured": 1.0, "relation": "below", "expected": 2.0, "within": 0.0,
        "control": False, "why": "arithmetic", "held": True,
    }  # fmt: skip
    assert record["pictures"][0]["panels"][0]["series"][0]["x"] == [1.0, 2.0]
    drawn = (out / "toy-curves.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and drawn == png(PICTURE)
    page = (out / "report.html").read_text("utf-8")
    assert (
        "A toy &amp; more" in page
        and "a&lt;b" in page
        and "data:image/png;base64," in page
        and "Two &lt;curves&gt;." in page
    )
    assert "http" not in page
    again = tmp_path / "again"
    cli.main(["reproduce", "toy", "--full", "--seed", "7", "--out", str(again)])
    same = json.loads((again / "toy.json").read_text("utf-8"))
    assert same | {"seconds": 0} == record | {"seconds": 0}
    cli.main(["reproduce", "toy", "--seed", "8", "--out", str(again)])
    assert json.loads((again / "toy.json").read_text("utf-8"))["numbers"]["x"] != record["numbers"]["x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to reproduce: toy, or all; --list says what they are"),
        (["tony"], "no reproduction is called 'tony'; did you mean 'toy'?"),
        (["toy", "--quick", "--full"], "--quick and --full: a run has one size"),
        (["toy", "--seed", "x"], "--seed x: expected a whole number from 0 to 2**63 - 1"),
        (["toy", "--seed=-1"], "--seed -1: expected a whole number"),
        (["toy", "--seed", "9223372036854775808"], "expected a whole number from 0 to 2**63 - 1"),
        (["toy", "--out", "{file}"], "it is a file, expected a folder"),
        (["toy", "--out", "{folder}/a/b"], "to make it in"),
        (["toy", "--data", "{folder}/none"], "there is no such folder"),
        (["toy", "--data", "{folder}"], "there is no 'train-images-idx3-ubyte' in"),
    ],
)
def test_what_makes_no_sense_is_answered_before_anything_runs(registered, tmp_path, arguments, message, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    given = [text.format(file=file, folder=tmp_path) for text in arguments]
    assert cli.main(["reproduce", *given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("riemann-ng reproduce: error: ") and message in said.err and said.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and file.read_text() == "mine"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "numbers.json"
    files.write(path, "before")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        files.write(path, "after")
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["numbers.json"]


def test_without_matplotlib_everything_else_is_written(registered, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"matplotlib cannot be imported .*pip install 'riemann-ng\[plots\]'"):
        png(PICTURE)
    assert cli.main(["reproduce", "toy", "--out", str(tmp_path)]) == 0
    assert "riemann-ng reproduce: no pictures: MissingDependency" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "toy.json"]
    assert "data:image" not in (tmp_path / "report.html").read_text("utf-8")


def test_a_terminal_of_plain_letters(capsys):
    found = toy()
    text = files.terminal(found, found.run(), width=60, unicode=False)
    assert text.isascii() and "ok one is less than two" in text
    assert max(map(len, files.terminal(found, found.run(), width=60).splitlines())) <= 60


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("tqdm", [True, False])
def test_a_bar_on_a_terminal_and_none_elsewhere(tqdm):
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        bar = Progress(stream, tqdm)
        toy().run(progress=bar)
        bar.close()
        said = stream.getvalue()
        assert bool(said) is shown
        if shown:
            assert "toy: arithmetic" in said and said.endswith("\r")


def test_pictures_leave_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    matplotlib.rcParams["lines.linewidth"] = 9.0
    thick = png(PICTURE)
    matplotlib.rcParams["lines.linewidth"] = before["lines.linewidth"]
    assert thick == png(PICTURE) and dict(matplotlib.rcParams) == before
    assert png(PICTURE) != png(Picture("one", "", PICTURE.panels[:1]))
