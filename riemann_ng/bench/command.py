"""`riemann-ng bench`: what the library costs here, beside the same bare, and beside other libraries."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from ..errors import RiemannError
from .harness import ALL, Harness
from .quantities import OTHERS, QUANTITIES, SMALL
from .records import Report, markdown, table
from .workloads import WORKLOADS

EPILOG = """\
  riemann-ng bench --workload W1,W2,W3 --threads 1 --json results.json
  riemann-ng bench --workload W1 --quantity statistics,invert,apply --peers

Works take turns in one process. The unit is a plain forward and backward pass of the same batch in the same round; the
floor is the same passes, products and factorizations called bare in torch. Medians with quartiles. quantities:

"""


class CommandError(RiemannError):
    """A command line that names something that is not there."""


def add_arguments(parser: ArgumentParser) -> None:
    """What may follow `riemann-ng bench`."""
    said = {**{k: v for k, (_, v) in {**QUANTITIES, **SMALL}.items()}, **OTHERS}
    parser.epilog = EPILOG + "\n".join(f"  {name:15} {what}" for name, what in said.items())
    add = parser.add_argument
    add("--workload", default="W1,W2,W3", metavar="W1,...", help=f"of {', '.join(WORKLOADS)}; all is everything")
    add("--quantity", default="all", metavar="NAME,...", help="what to measure (all)")
    add("--peers", action="store_true", help="other libraries too, those that are installed")
    add("--rounds", metavar="N", help="of each case (as many as fit into --seconds, at least 4)")
    add("--seconds", default="3", metavar="S", help="for each case (3)")
    add("--threads", metavar="N", help="of torch (as it comes)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu counts this process's own time, of one thread")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--markdown", type=Path, metavar="FILE", help="write the table there")


def run(given: Namespace) -> int:
    """The exit status: 0, or 2 where the command makes no sense."""
    try:
        workloads = names("--workload", given.workload, tuple(WORKLOADS))
        quantities = names("--quantity", given.quantity, ALL)
        rounds = None if given.rounds is None else whole("--rounds", given.rounds)
        threads = None if given.threads is None else whole("--threads", given.threads)
        seconds = positive("--seconds", given.seconds)
        for option, path in (("--json", given.json), ("--markdown", given.markdown)):
            check_file(option, path)
        if given.clock == "cpu" and (threads or torch.get_num_threads()) > 1:
            raise CommandError("--clock cpu adds up the time of all threads: give --threads 1 with it.")
        if given.device == "cuda" and not torch.cuda.is_available():
            raise CommandError("--device cuda: torch sees no GPU here.")
        if given.device == "cuda" and given.clock == "cpu":
            raise CommandError("--clock cpu does not see the work of a GPU: leave it out.")
    except RiemannError as error:
        print(f"riemann-ng bench: error: {error}", file=sys.stderr)
        return 2
    if threads is not None:
        torch.set_num_threads(threads)

    def keep(report: Report) -> None:
        if given.json is not None:
            given.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", "utf-8")
        if given.markdown is not None:
            given.markdown.write_text(markdown(report), "utf-8")

    report = Harness(given.device, rounds, seconds, given.clock, given.peers, say, keep).run(workloads, quantities)
    say("")
    print(table(report))
    return 0


def say(text: str) -> None:
    """Over itself, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r{text:<40}", end="", file=sys.stderr, flush=True)


def names(option: str, given: str, known: tuple[str, ...]) -> list[str]:
    """A list with commas, of known names in their order."""
    wanted = [name for name in given.split(",") if name]
    if not wanted:
        raise CommandError(f"{option}: expected one or more of {', '.join(known)}.")
    unknown = [name for name in wanted if name not in known and name != "all"]
    if unknown:
        raise CommandError(f"{option} {unknown[0]}: there is none of that name; there are {', '.join(known)}.")
    return [name for name in known if name in wanted or "all" in wanted]


def whole(option: str, given: str) -> int:
    if not (given.isascii() and given.isdigit() and int(given) > 0):
        raise CommandError(f"{option} {given}: expected a whole number, 1 or more.")
    return int(given)


def positive(option: str, given: str) -> float:
    try:
        number = float(given)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise CommandError(f"{option} {given}: expected a positive number.")
    return number


def check_file(option: str, path: Path | None) -> None:
    """Refuses what cannot be written to, before anything is measured."""
    if path is None:
        return
    if path.is_dir():
        raise CommandError(f"{option} {path}: it is a folder, expected a file.")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{option} {path}: there is no folder {str(path.parent)!r} to write it in.")
