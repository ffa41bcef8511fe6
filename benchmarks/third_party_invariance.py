"""What optimizers of other libraries are invariant to, as they are shipped.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/third_party_invariance.py [name ...] [--markdown] [--html FOLDER]

Every method takes four steps on a small network and on its twins. Learning rates are such that predictions move by a
tenth or more; all else is at its default unless the row says otherwise, weight decay excepted, which is off. Libraries
that are not installed are left out, by name.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riemann_ng.likelihoods import Categorical
from riemann_ng.testing.invariance import InvarianceReport, Subject, check_invariance, optimizer, update
from riemann_ng.testing.invariance.atlas_subjects import split
from riemann_ng.testing.invariance.html import html_page
from riemann_ng.testing.invariance.suite import small_problem
from riemann_ng.testing.invariance.table import largest_kept, number

sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).parent.resolve()]  # kfac.py there is ours
ON = ("activations", "pre-activations", "outputs", "layers", "loss", "batch")
STEPS = {"torch.optim.RAdam": 10}  # its first five are descent with momentum
SHORT = {
    "signed permutations": "signed perm.",
    "translations": "transl.",
    "uniform scale": "scale",
    "orthogonal": "orth.",
}


def of_torch() -> Iterator[tuple[str, Subject]]:
    opt = torch.optim
    rates: dict[str, dict[str, Any]] = {
        "SGD": {"lr": 0.5}, "ASGD": {"lr": 0.5}, "Adadelta": {"lr": 10.0},
        "Adafactor": {"lr": 0.05, "weight_decay": 0.0},
        "Adagrad": {"lr": 0.05}, "Adam": {"lr": 0.05}, "AdamW": {"lr": 0.05, "weight_decay": 0.0},
        "Adamax": {"lr": 0.05}, "NAdam": {"lr": 0.05}, "RAdam": {"lr": 0.05}, "RMSprop": {"lr": 0.02},
        "Rprop": {"lr": 0.05},
    }  # fmt: skip
    for name, options in rates.items():
        yield f"torch.optim.{name}", made(getattr(opt, name), options)
    yield (
        "torch.optim.Muon, SGD for biases",
        optimizer(lambda m: split(m, lambda p: opt.Muon(p, lr=0.05, weight_decay=0.0), lambda p: opt.SGD(p, lr=0.5))),
    )


def of_pytorch_optimizer() -> Iterator[tuple[str, Subject]]:
    other = import_module("pytorch_optimizer")
    rates: dict[str, dict[str, Any]] = {
        "SOAP": {"lr": 0.05, "weight_decay": 0.0, "precondition_frequency": 1}, "Shampoo": {"lr": 0.3},
        "ScalableShampoo": {"lr": 0.3, "start_preconditioning_step": 1, "preconditioning_compute_steps": 1},
        "Kron": {"lr": 0.05}, "Lamb": {"lr": 0.1}, "LARS": {"lr": 20.0}, "Lion": {"lr": 0.03},
        "AdaBelief": {"lr": 0.05}, "Adan": {"lr": 0.05}, "SCION": {"lr": 0.05},
        "SPlus": {"lr": 0.2, "weight_decay": 0.0},
    }  # fmt: skip
    for name, options in rates.items():
        yield f"pytorch_optimizer.{name}", made(getattr(other, name), options)

    def muon(model: nn.Module) -> torch.optim.Optimizer:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}]
        return other.Muon(groups, lr=0.05, adamw_lr=0.05)

    yield "pytorch_optimizer.Muon, AdamW for biases", optimizer(muon)


def made(factory: Callable[..., Any], options: dict[str, Any]) -> Subject:
    return optimizer(lambda model: factory(model.parameters(), **options))


def of_curvlinops() -> Iterator[tuple[str, Subject]]:
    other = import_module("curvlinops")

    def step(separate: bool, damping: float, lr: float) -> Callable[[nn.Module, Any, Any], None]:
        def f(model: nn.Module, x: Any, y: Any) -> None:
            loss, params = nn.CrossEntropyLoss(), list(model.parameters())
            factors = other.KFACLinearOperator(
                model, loss, params, [(x, y)], fisher_type="type-2", separate_weight_and_bias=separate,
                check_deterministic=False,
            )  # fmt: skip
            inverse = other.KFACInverseLinearOperator(factors, damping=damping)
            steps = inverse @ list(torch.autograd.grad(loss(model(x), y), params))
            with torch.no_grad():
                for p, s in zip(params, steps, strict=True):
                    p -= lr * s.to(p)

        return f

    for separate, words in ((True, "weight and bias apart (its default)"), (False, "bias inside")):
        for damping in (0.01,):
            yield f"curvlinops K-FAC, {words}, damping {damping:g}", update(step(separate, damping, 0.05))


def of_kfac_pytorch() -> Iterator[tuple[str, Subject]]:
    other = import_module("kfac.preconditioner")

    def factory(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
        class Stepping(torch.optim.SGD):
            def __init__(self, model: nn.Module):
                super().__init__(model.parameters(), lr=0.1)
                settings = {"factor_update_steps": 1, "inv_update_steps": 1, "kl_clip": 1e9, "lr": 0.1, **options}
                self.preconditioner = other.KFACPreconditioner(model, **settings)

            def step(self, closure: Any = None) -> Any:
                self.preconditioner.step()
                return super().step(closure)

        return Stepping

    yield "kfac-pytorch, damping 0.001", optimizer(factory(damping=0.001))
    yield "kfac-pytorch, KL clip 0.001", optimizer(factory(damping=0.001, kl_clip=0.001, lr=0.1))


LIBRARIES = {
    "torch": of_torch, "pytorch_optimizer": of_pytorch_optimizer, "curvlinops": of_curvlinops,
    "kfac-pytorch": of_kfac_pytorch,
}  # fmt: skip


def line(name: str, report: InvarianceReport) -> list[str]:
    """A row of the table: the largest groups kept, and what is said of the problem."""
    kept = {on: [SHORT.get(g, g) for g in groups] for on, groups in largest_kept(report).items()}
    cells = [", ".join(groups) or "nothing" for groups in kept.values()]
    for key in (("layers", "joint scale"), ("loss", "scale"), ("batch", "duplication"), ("batch", "order")):
        cell = report.cells.get(key)
        short = {"held": "yes", "refuted": f"no ({number(cell.discrepancy)})"} if cell is not None else {}
        cells.append(short.get(cell.verdict, cell.verdict) if cell is not None else "")
    undecided = [f"{c.group} of {c.on} ({number(c.discrepancy)})" for c in report.of("undecided")]
    return [name, *cells, "; ".join(undecided)]


HEAD = [
    "method",
    "activations",
    "pre-activations",
    "outputs",
    "joint scale",
    "loss scale",
    "batch doubled",
    "order",
    "undecided",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names of methods; all where none is given")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--html", type=Path, help="a folder for one page for each method")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model, x, y = small_problem()
    if given.markdown:
        print("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD))
    for library, subjects in LIBRARIES.items():
        try:
            found = list(subjects())
        except ImportError as error:
            print(f"({library} is not installed: {error})")
            continue
        for name, subject in found:
            if given.names and not any(part in name for part in given.names):
                continue
            try:
                report = check_invariance(
                    subject, model, x, y, Categorical(), on=ON, steps=STEPS.get(name), name=name, shrink=False,
                    progress=False,
                )  # fmt: skip
            except Exception as error:  # another library's; the others are still looked at
                print(f"({name}: {type(error).__name__}: {str(error).splitlines()[0]})", flush=True)
                continue
            row = line(name, report)
            print("| " + " | ".join(row) + " |" if given.markdown else "   ".join(row), flush=True)
            for note in report.notes:
                print(f"(note on {name}: {note})")
            if given.html is not None:
                (given.html / f"{name.replace(' ', '_')}.html").write_text(html_page(report), "utf-8")


if __name__ == "__main__":
    main()
