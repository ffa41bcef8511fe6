"""The front door: what an import costs, what the command line says, and how the house is built."""

import ast
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import riemann_ng
from riemann_ng import __version__, cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "riemann_ng"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The rooms, from the ground up: a room imports only from rooms before it.
FLOORS = [
    "_version", "errors", "symmetry", "factorizations", "spaces", "elements", "points", "actions", "linear_maps",
    "samples", "solvers", "inner_products", "likelihoods", "layers", "networks", "metrics", "norms", "natural_gradient",
    "layerwise", "geodesics", "reparametrize", "optim", "testing", "interop", "bench", "experiments", "plots", "demo",
    "cli", "__main__",
]  # fmt: skip
ROOF = "__init__"  # gathers the public names from every floor; no room looks up to it

# Rooms that are public by name and bring what `import riemann_ng` must not.
ON_REQUEST = {"optim", "testing", "interop", "experiments", "plots"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


# --- what an import costs ---------------------------------------------------------------------------------------------


def test_import_brings_no_optional_package():
    code = f"""import sys, riemann_ng
for name in set(riemann_ng.__all__) - {ON_REQUEST}: getattr(riemann_ng, name)
print(sorted({{"geomstats", "matplotlib", "hypothesis", "pytest", "riemann_ng.cli"}} & set(sys.modules)))"""
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_package_is_a_command():
    done = python("-m", "riemann_ng", "--version")
    assert (done.returncode, done.stdout) == (0, f"riemann-ng {__version__}\n")


def test_demo_runs(capsys):
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "riemann-ng: error: the following arguments are required: COMMAND"),
        (["levitate"], "invalid choice: 'levitate' (choose from demo"),
        (["demo", "--levitate"], "riemann-ng: error: unrecognized arguments: --levitate"),
    ],
)
def test_a_wrong_command_line_is_answered_clearly(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    said = capsys.readouterr().err.replace("'demo'", "demo")  # quoted until Python 3.11
    assert message in said


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said and summary in said for name, (_, summary) in cli.COMMANDS.items())


# --- the floors -------------------------------------------------------------------------------------------------------


def imported_rooms(source: str, module: tuple[str, ...]) -> Iterator[str]:
    """The rooms that a module imports; `module` is its path inside the package, "__init__" included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = ["riemann_ng", *module][: -node.level] if node.level else []
            base = here + (node.module.split(".") if node.module else [])
            paths = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for path in paths:
            if path[0] == "riemann_ng":
                yield path[1] if len(path) > 1 and path[1] in FLOORS else ROOF


def climbs(source: str, module: tuple[str, ...]) -> list[str]:
    """What a module imports from its own floor's neighbours above."""
    allowed = FLOORS[: FLOORS.index(module[0]) + 1]
    return [room for room in imported_rooms(source, module) if room not in allowed]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_floors_below(path):
    module = path.relative_to(PACKAGE).with_suffix("").parts
    if module == (ROOF,):
        return
    assert module[0] in FLOORS, f"{module[0]} is a room without a floor: give it a place in FLOORS"
    assert climbs(path.read_text("utf-8"), module) == []


@pytest.mark.parametrize(
    ("source", "module", "found"),
    [
        ("from riemann_ng.metrics import KFAC", ("solvers", "cg"), ["metrics"]),
        ("import riemann_ng.metrics.kfac", ("solvers", "cg"), ["metrics"]),
        ("from riemann_ng import metrics", ("solvers", "cg"), ["metrics"]),
        ("from riemann_ng import KFAC", ("solvers", "cg"), [ROOF]),
        ("import riemann_ng", ("solvers", "cg"), [ROOF]),
        ("from .. import metrics", ("solvers", "cg"), ["metrics"]),
        ("from ..metrics import KFAC", ("solvers", "cg"), ["metrics"]),
        ("from .metrics import KFAC", ("spaces",), ["metrics"]),
        ("def f():\n    from riemann_ng.metrics import KFAC", ("solvers", "__init__"), ["metrics"]),
        ("if TYPE_CHECKING:\n    from riemann_ng.metrics import KFAC", ("solvers", "__init__"), ["metrics"]),
        ("from .metrics import x\nfrom . import cg\nfrom ..spaces import Space", ("solvers", "__init__"), []),
        ("import torch\nfrom riemann_ng.solvers.cg import CG\nfrom riemann_ng import errors", ("solvers", "auto"), []),
    ],
)
def test_a_climb_is_seen_however_it_is_written(source, module, found):
    assert climbs(source, module) == found


# --- the house --------------------------------------------------------------------------------------------------------


def test_no_star_imports():
    imports = [(path, node) for path in MODULES for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    assert not [path for path, node in imports if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]


def test_files_are_read_in_one_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {path: lines for path, lines in lengths.items() if lines > 350} == {}


def test_public_names_resolve_and_are_documented():
    def documented(value: object, name: str) -> bool:
        text = value.__doc__ or ""
        return bool(text.strip()) and not text.startswith(f"{name}(")  # what a dataclass writes by itself

    names = [name for name in riemann_ng.__all__ if not name.startswith("__")]
    assert names
    assert [name for name in names if not documented(getattr(riemann_ng, name), name)] == []


def test_contributing_stays_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) <= 60


def test_the_changelog_has_a_place_for_the_next_change():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


MACHINE_PATH = re.compile(r"(?<![\w.~/-])(?:/(?:home|root|Users|opt|mnt|tmp|work|workspace|data)/|[A-Z]:\\)\w")


def written_files(folder: Path, ignored: list[str]) -> Iterator[Path]:
    """The files that git does not ignore, without asking git: a downloaded archive has none."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored):
            continue
        if path.is_dir():
            yield from written_files(path, ignored)
        else:
            yield path


def test_no_file_names_a_path_of_one_machine():
    ignored = [".git", *(ROOT / ".gitignore").read_text("utf-8").split()]
    texts = {}
    for path in written_files(ROOT, ignored):
        try:
            texts[path] = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # not a text
    assert Path(__file__) in texts
    assert {str(path): MACHINE_PATH.findall(text) for path, text in texts.items() if MACHINE_PATH.search(text)} == {}


def test_a_machine_path_is_seen():
    slash = "/"
    assert MACHINE_PATH.search(f"see {slash}home/ada/notes") and MACHINE_PATH.search(f"'{slash}tmp/x'")
    assert not MACHINE_PATH.search(f"https:{slash}/example.org/home/page, and/or ./opt/x, {slash}usr/bin/env")
