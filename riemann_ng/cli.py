"""The command line: `riemann-ng COMMAND`.

A command is one line of `COMMANDS`. What it needs is imported when it runs, so that `--version` and `--help` answer
at once.
"""

import argparse
from collections.abc import Callable, Sequence

from ._version import __version__


def _demo() -> None:
    from . import demo

    demo.main()


COMMANDS: dict[str, tuple[Callable[[], None], str]] = {
    "demo": (_demo, "show the algebra at work on a small example"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; `argv` defaults to the arguments of the process."""
    parser = argparse.ArgumentParser(prog="riemann-ng", description="Coordinate-free geometry for natural gradients.")
    parser.add_argument("--version", action="version", version=f"riemann-ng {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (run, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, description=summary).set_defaults(run=run)
    parser.parse_args(argv).run()
    return 0
