"""`riemann-ng reproduce`: published results as commands."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import MissingDependency, RiemannError
from ..testing.invariance.table import fits
from .base import Experiment
from .idx import MNIST, find
from .output import as_json, terminal, write
from .progress import Progress
from .records import Picture, Results
from .registry import EXPERIMENTS, experiment
from .report import report

EPILOG = """\
  riemann-ng reproduce --list
  riemann-ng reproduce deep-linear --out results
  riemann-ng reproduce all --full --seed 3 --data mnist --out results

Every claim is measured against what was expected, and beside it controls, cases in which it must fail. With --out there
are a JSON file of every number, the pictures, and report.html with all of it. The exit status is 1 if a claim does not
hold, 2 where the command makes no sense."""
Draw = Callable[[Picture], bytes]


class CommandError(RiemannError):
    """A command line that names something that is not there."""


def add_arguments(parser: ArgumentParser) -> None:
    """What may follow `riemann-ng reproduce`."""
    parser.epilog, parser.formatter_class = EPILOG, RawDescriptionHelpFormatter
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="what to reproduce; all is everything")
    add("--list", action="store_true", help="name the reproductions")
    add("--quick", action="store_true", help="small problems, in less than a minute each; the default")
    add("--full", action="store_true", help="larger problems, and longer training")
    add("--seed", default="0", metavar="N", help="another draw of everything that is random (0)")
    add("--out", type=Path, metavar="DIR", help="write numbers, pictures and a page there")
    add("--data", type=Path, metavar="DIR", help="the files of MNIST, in place of scikit-learn's digits")


def run(given: Namespace, draw: Draw | None = None) -> int:
    """The exit status. `draw` makes PNG files of pictures; without it there are none."""
    try:
        if given.list:
            return show_list()
        chosen, seed = check_options(given)
        return reproduce(chosen, not given.full, seed, given.out, given.data, draw)
    except RiemannError as error:
        print(f"riemann-ng reproduce: error: {error}", file=sys.stderr)
        return 2


def show_list() -> int:
    for name in EXPERIMENTS:
        found = experiment(name)
        say(f"{name:<20} {found.title} ({found.source})")
    return 0


def check_options(given: Namespace) -> tuple[list[Experiment], int]:
    """The experiments that are named, and the seed."""
    if not given.names:
        raise CommandError(f"name what to reproduce: {', '.join(EXPERIMENTS)}, or all; --list says what they are.")
    if given.quick and given.full:
        raise CommandError("--quick and --full: a run has one size.")
    if not (given.seed.isascii() and given.seed.isdigit() and int(given.seed) < 2**63):
        raise CommandError(f"--seed {given.seed}: expected a whole number from 0 to 2**63 - 1.")
    names = list(EXPERIMENTS) if "all" in given.names else list(dict.fromkeys(given.names))
    chosen = [experiment(name) for name in names]
    if given.out is not None:
        check_folder(given.out)
    if given.data is not None:
        if not given.data.is_dir():
            raise CommandError(f"--data {given.data}: there is no such folder.")
        for pair in MNIST.values():
            for name in pair:
                find(given.data, name)
    return chosen, int(given.seed)


def check_folder(path: Path) -> None:
    """Refuses a folder that cannot be written to, before anything is computed."""
    if path.exists() and not path.is_dir():
        raise CommandError(f"--out {path}: it is a file, expected a folder.")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"--out {path}: there is no folder {str(path.parent)!r} to make it in.")


def reproduce(
    chosen: list[Experiment], quick: bool, seed: int, out: Path | None, data: Path | None, draw: Draw | None
) -> int:
    found: list[tuple[Experiment, Results]] = []
    drawn: dict[str, bytes] = {}
    for each in chosen:
        bar = Progress(sys.stderr)
        try:
            results = each.run(quick, seed, data, bar)
        finally:
            bar.close()
        found.append((each, results))
        say(terminal(each, results, unicode=fits("✓✗", sys.stdout.encoding)) + "\n")
        if out is not None:
            out.mkdir(exist_ok=True)
            write(out / f"{each.name}.json", as_json(each, results))
            for name, png in pictures(results, draw):
                write(out / name, png)
                drawn[name] = png
            write(out / "report.html", report(found, drawn))
    failed = [each.name for each, results in found if not results.held]
    say(f"{len(found) - len(failed)} of {len(found)} hold" + (f"; not {', '.join(failed)}" if failed else "") + ".")
    if out is not None:
        say(f"The report is {out / 'report.html'}.")
    return 1 if failed else 0


def pictures(results: Results, draw: Draw | None) -> Iterator[tuple[str, bytes]]:
    """Files by name; a message and nothing more where pictures cannot be drawn."""
    for picture in results.pictures if draw is not None else ():
        assert draw is not None
        try:
            yield f"{results.name}-{picture.name}.png", draw(picture)
        except MissingDependency as missing:
            print(f"riemann-ng reproduce: no pictures: {missing}", file=sys.stderr)
            return


def say(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)
