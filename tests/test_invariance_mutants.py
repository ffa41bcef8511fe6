"""The suite finds what is wrong: every mutant is refuted where the method that it spoils is held."""

import pytest
from invariance_mutants import MUTANTS, by_layer

from riemann_ng.likelihoods import Bernoulli
from riemann_ng.testing.invariance.checking import check_cells, named_probes
from riemann_ng.testing.invariance.subjects import Subject


@pytest.fixture(params=MUTANTS)
def mutant(request):
    return MUTANTS[request.param]


def cell_of(subject, mutant, **options):
    model, x, y = mutant.problem()
    probe = named_probes([mutant.cell])[0] if isinstance(mutant.cell, tuple) else mutant.cell
    given = by_layer(subject) if callable(subject) and not isinstance(subject, Subject) else subject
    report = check_cells(given, model, x, y, [probe], Bernoulli(), **{**mutant.options, **options})
    return report[probe.key]


def test_the_mutant_is_refuted(mutant):
    cell = cell_of(mutant.wrong, mutant)
    assert cell.verdict == "refuted" and cell.cases <= 50
    assert cell.discrepancy > 1e-2


def test_what_it_spoils_is_held(mutant):
    if mutant.right is mutant.wrong:  # it is the twin that is wrong
        cell = cell_of(mutant.right, type(mutant)(None, None, mutant.cell.key, mutant.problem))
    else:
        cell = cell_of(mutant.right, mutant)
    assert cell.verdict == "held", cell
    assert cell.discrepancy < 1e-7


def test_there_are_enough_of_them():
    assert len(MUTANTS) >= 15
