"""What a metric claims: the symmetry of its expression, at the point where it is checked."""

from __future__ import annotations

from dataclasses import replace

from ...errors import RiemannError
from ...metrics.base import value_at
from ...symmetry import Symmetry
from .probes import Probe
from .problems import Problem
from .records import NOT_APPLICABLE, REFUTED, Cell
from .running import same_randomness
from .subjects import Metric, OfNorm, Subject


def static_symmetry(subject: Subject, problem: Problem) -> Symmetry | None:
    """None of subjects that are no expressions."""
    try:
        with same_randomness():
            if isinstance(subject, Metric):
                metric, observation = subject.observed(problem)
                with observation:
                    return value_at(metric, observation).symmetry
            if isinstance(subject, OfNorm):
                return subject.at(problem).symmetry
    except RiemannError:  # a norm or a form that cannot tell
        return None
    return None


def claimed(cell: Cell, probe: Probe, symmetry: Symmetry | None, problem: Problem) -> Cell:
    """The cell with what the expression claims of it, and with what is to blame where it does not."""
    if symmetry is None or cell.verdict == NOT_APPLICABLE:
        return cell
    keeps, blame = probe.claim(symmetry, problem)
    blame = blame.replace(f"{problem.network.name}/", "").replace(f"{problem.network.name}.", "")
    return replace(cell, claimed=keeps, blame=blame if cell.verdict == REFUTED or keeps is False else "")
