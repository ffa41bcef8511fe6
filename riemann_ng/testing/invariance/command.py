"""`riemann-ng invariance`: the table of one subject, or the atlas of all that are known."""

from __future__ import annotations

import inspect
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from ...errors import RiemannError
from ...likelihoods import Categorical, Gaussian, Likelihood
from ...metrics import RiemannianMetric
from ...networks import Network
from ...norms import Norm
from .atlas import Atlas, AtlasRow, run_atlas
from .atlas_picture import atlas_page, atlas_svg
from .checking import check_invariance
from .html import html_page
from .records import HELD, SYMBOLS, Cell, InvarianceReport, Key
from .suite import small_problem
from .table import fits, terminal_table

EPILOG = """\
The object is a metric, a norm, an optimizer class, a function of a model (or of its parameters) that makes an
optimizer, or what optimizer(...) and update(...) of riemann_ng.testing make. The model is a function without arguments
that returns (model, x, y) or (model, x, y, likelihood); without one it is a small MLP.

  riemann-ng invariance torch.optim:Adagrad
  riemann-ng invariance mine:make_optimizer --model mine:problem --on activations --html out.html
  riemann-ng invariance riemann_ng.metrics:KFAC --claim activations:general

The exit status is 1 if a claim is refuted: one that the expression of a metric makes, one of --claim that is not held,
or, of the atlas, one of theory."""


class CommandError(RiemannError):
    """A command line that names something that is not there."""


def add_arguments(parser: ArgumentParser) -> None:
    """What may follow `riemann-ng invariance`."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("subject", nargs="?", metavar="package.module:object", help="what to check")
    add("--model", metavar="package.module:function", help="makes the model and the batch")
    add("--on", action="append", metavar="KIND", help="what to move, such as activations; may be repeated")
    add("--group", action="append", metavar="GROUP", help="such as general; may be repeated")
    add("--examples", type=int, default=2, metavar="N", help="random elements of each group (2)")
    add("--steps", type=int, metavar="N", help="steps of training")
    add("--seed", type=int, default=0, metavar="N")
    add("--claim", action="append", default=[], metavar="KIND:GROUP", help="must be held; may be repeated")
    add("--html", type=Path, metavar="FILE", help="write the report as a page")
    add("--json", type=Path, metavar="FILE", help="write the report as JSON")
    add("--atlas", action="store_true", help="check known methods against theory")
    add("--quick", action="store_true", help="fewer methods of the atlas; one element of each group")
    add("--picture", type=Path, metavar="FILE", help="write the atlas as a picture (SVG)")
    add("--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="processes for the atlas")


def run(given: Namespace) -> int:
    """The exit status: 1 if a claim is refuted, 2 where the question makes no sense."""
    try:
        check_options(given)
        return run_on_all(given) if given.atlas else run_on_one(given)
    except RiemannError as error:
        print(f"riemann-ng invariance: error: {error}", file=sys.stderr)
        return 2


def check_options(given: Namespace) -> None:
    if given.atlas == (given.subject is not None):
        what = "a subject and --atlas" if given.atlas else "nothing"
        raise CommandError(f"name one subject, package.module:object, or --atlas; got {what}.")
    ignored = ["model", "on", "group", "claim", "steps"] if given.atlas else ["picture"]
    if set_ones := [f"--{name}" for name in ignored if getattr(given, name)]:
        means = "--atlas has subjects and a model of its own" if given.atlas else "a picture is made with --atlas"
        raise CommandError(f"{set_ones[0]}: {means}.")
    for path in (given.html, given.json, given.picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise CommandError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to.")


def run_on_one(given: Namespace) -> int:
    claims = [claim(text) for text in given.claim]
    subject = subject_named(given.subject)
    model, x, y, likelihood = problem_named(given.model)
    bar = Bar(sys.stderr)
    options: dict[str, Any] = {
        "likelihood": likelihood, "examples": 1 if given.quick else given.examples, "steps": given.steps,
        "seed": given.seed, "name": given.subject, "progress": bar.cell,
    }  # fmt: skip
    report = check_invariance(subject, model, x, y, on=given.on, groups=given.group, **options)
    if missing := [key for key in claims if key not in report.cells]:
        more = check_invariance(subject, model, x, y, cells=missing, **options)
        report = merged(report, more)
    bar.done()
    write(given, html_page(report), report.to_json())
    print(terminal_table(report, unicode=fits("".join(SYMBOLS.values()), sys.stdout.encoding)))
    broken = [report[key] for key in claims if report[key].verdict != HELD]
    for cell in broken:
        print(f"CLAIMED, AND NOT HELD: {cell}")
    return 1 if broken or any(cell.surprising for cell in report) else 0


def merged(report: InvarianceReport, more: InvarianceReport) -> InvarianceReport:
    return InvarianceReport(
        report.subject, report.model, {**report.cells, **more.cells}, report.seconds + more.seconds, report.settings,
        tuple(dict.fromkeys(report.notes + more.notes)),
    )  # fmt: skip


def run_on_all(given: Namespace) -> int:
    bar = Bar(sys.stderr)
    atlas: Atlas = run_atlas(given.quick, jobs=given.jobs, cases=given.examples, progress=bar.row)
    bar.done()
    write(given, atlas_page(atlas), atlas.to_json())
    if given.picture is not None:
        given.picture.write_text(atlas_svg(atlas), "utf-8")
    print(str(atlas).encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))
    return 1 if atlas.mismatches else 0


def write(given: Namespace, page: str, data: str) -> None:
    for path, text in ((given.html, page), (given.json, data)):
        if path is not None:
            path.write_text(text, "utf-8")


# What a command line names


def named(text: str, what: str) -> Any:
    """The object at package.module:object, modules beside the current directory included."""
    module_name, colon, path = text.partition(":")
    if not colon or not module_name or not path:
        raise CommandError(f"{what} {text!r} is not of the form package.module:object.")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise CommandError(
            f"there is no module {error.name!r}, in {text!r}; modules are looked for in the current directory and "
            f"among those installed."
        ) from None
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = ", ".join(n for n in dir(found) if not n.startswith("_"))
            raise CommandError(f"{module_name!r} has no {path!r}. It has {public[:300]}.") from None
    return found


def subject_named(text: str) -> Any:
    """What is to be checked; of metrics and norms that need no arguments, the class will do."""
    found = named(text, "the subject")
    if isinstance(found, type) and issubclass(found, (RiemannianMetric, Norm)):
        try:
            return found()
        except TypeError as error:
            raise CommandError(f"{text} needs arguments ({error}). Make one in a module, and name that.") from None
    return found


def problem_named(text: str | None) -> tuple[Any, Any, Any, Likelihood]:
    """A model, inputs, targets and a likelihood, by default a small MLP with classes."""
    if text is None:
        return (*small_problem(), Categorical())
    factory = named(text, "the model")
    if not callable(factory) or [p for p in parameters(factory) if p.default is p.empty]:
        raise CommandError(f"the model {text!r} must be a function without arguments.")
    made = factory()
    if not isinstance(made, tuple) or len(made) not in (3, 4):
        raise CommandError(
            f"the model {text!r} must return (model, x, y) or (model, x, y, likelihood), got {type(made).__name__}. y "
            f"may be None: labels are then drawn from the model."
        )
    model, x, y = made[:3]
    if len(made) == 4:
        return model, x, y, made[3]
    if isinstance(model, Network):
        return model, x, y, model.likelihood
    if y is None:
        raise CommandError(f"the model {text!r} returns no targets, so it must return the likelihood too.")
    return model, x, y, Gaussian() if y.is_floating_point() else Categorical()


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind not in kinds]


def claim(text: str) -> Key:
    on, colon, group = text.partition(":")
    if not colon:
        raise CommandError(f"the claim {text!r} is not of the form KIND:GROUP, such as activations:general.")
    return on.strip(), group.strip()


class Bar:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, stream: TextIO, width: int = 79):
        self.stream, self.width, self.shown = stream, width, stream.isatty()

    def cell(self, done: int, total: int, cell: Cell) -> None:
        self.show(done, total, f"{cell.group} of {cell.on}: {cell.verdict}")

    def row(self, done: int, total: int, row: AtlasRow) -> None:
        self.show(done, total, row.name + (" differs from theory" if row.mismatches else ""))

    def show(self, done: int, total: int, text: str) -> None:
        if self.shown:
            full = round(20 * done / max(total, 1))
            line = f"[{'#' * full}{'.' * (20 - full)}] {done}/{total} {text}"
            self.stream.write("\r" + line[: self.width].ljust(self.width))
            self.stream.flush()

    def done(self) -> None:
        if self.shown:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()


__all__: Sequence[str] = ["add_arguments", "run"]
