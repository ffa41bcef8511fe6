"""The command line: `riemann-ng COMMAND`.

A command is one line of `COMMANDS`. What it needs is imported when it is asked for, its own arguments included, so that
`--version` and `--help` answer at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from ._version import __version__


def _demo(given: argparse.Namespace) -> int:
    from . import demo

    demo.main()
    return 0


def _invariance(given: argparse.Namespace) -> int:
    from .testing.invariance import command

    return command.run(given)


def _invariance_arguments(parser: argparse.ArgumentParser) -> None:
    from .testing.invariance import command

    command.add_arguments(parser)


def _reproduce(given: argparse.Namespace) -> int:
    from . import plots
    from .experiments import command

    return command.run(given, plots.png)


def _reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    from .experiments import command

    command.add_arguments(parser)


def _bench(given: argparse.Namespace) -> int:
    from .bench import command

    return command.run(given)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from .bench import command

    command.add_arguments(parser)


def _inspect(given: argparse.Namespace) -> int:
    from .bench import inspect_command

    return inspect_command.run(given)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    from .bench import inspect_command

    inspect_command.add_arguments(parser)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "demo": (_demo, "show the algebra at work on a small example"),
    "invariance": (_invariance, "tell what a metric or an optimizer is invariant to"),
    "reproduce": (_reproduce, "compute published results anew, and check what they claim"),
    "bench": (_bench, "measure what the library costs, beside bare torch"),
    "inspect": (_inspect, "tell what a model is, and what a step of it will cost"),
}
ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "invariance": _invariance_arguments,
    "reproduce": _reproduce_arguments,
    "bench": _bench_arguments,
    "inspect": _inspect_arguments,
}
"""Of the commands that take any."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; `argv` defaults to the arguments of the process."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="riemann-ng", description="Coordinate-free geometry for natural gradients.")
    parser.add_argument("--version", action="version", version=f"riemann-ng {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (run, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(run=run)
        if name in ARGUMENTS and argv[:1] == [name]:
            ARGUMENTS[name](command)
    given = parser.parse_args(argv)
    return int(given.run(given))
