"""A user's metric is a class with one method: the page, the example, and the table of methods."""

import re
import runpy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from networks_zoo import ZOO

from riemann_ng.errors import InvalidSetting
from riemann_ng.inner_products import Euclidean, second_moment
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import KFAC, EuclideanMetric, LayerwiseMetric
from riemann_ng.metrics.table import BEGIN, END, Row, largest, markdown, rows, updated
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, InputsOnly, MonteCarlo, Network
from riemann_ng.symmetry import Structure, Symmetry

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "metrics.md"


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


class ForwardOnly(LayerwiseMetric):
    sees_outputs = False

    def at_layer(self, layer):
        return Euclidean(layer.S) * second_moment(layer.inputs)

    def estimator(self, targets=None):
        return InputsOnly()


@dataclass(frozen=True, repr=False)
class Mixed(LayerwiseMetric):
    """Between K-FAC and the one above."""

    share: float = 0.5

    def at_layer(self, layer):
        G = (1 - self.share) * second_moment(layer.cotangents) + self.share * Euclidean(layer.S)
        return G * second_moment(layer.inputs)


def network_of(name):
    make, inputs = ZOO[name]
    x = inputs(40)
    network = Network.from_torch(make(), Categorical(), example=x)
    z = network.outputs(x)
    return network, x, torch.randint(0, z.shape[-1], z.shape[:-1])


@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tied", "recurrent", "lone leaf", "weight norm"])
@pytest.mark.parametrize("metric", [ForwardOnly(), Mixed(), KFAC() + 0.1 * ForwardOnly()], ids=repr)
def test_a_metric_of_ones_own_works_on_every_network(name, metric):
    network, x, y = network_of(name)
    total = metric + 1e-2 * EuclideanMetric()
    v = natural_gradient(network, total, x, y)
    g = total.at(network.observe(x, total.estimator(y)))
    assert torch.allclose(g.flat(v).components, network.differential(x, y).components, atol=1e-9)
    before = network.likelihood.loss(network.outputs(x), y)
    network.move_(v, step=-1e-4)
    assert network.likelihood.loss(network.outputs(x), y) < before


@pytest.mark.parametrize("estimator", [Empirical, MonteCarlo])
def test_it_takes_any_estimator(estimator):
    network, x, y = network_of("mlp")
    chosen = Empirical(y) if estimator is Empirical else MonteCarlo(2, seed=1)
    natural_gradient(network, Mixed(), x, y, estimator=chosen)


def test_its_repr_is_the_call():
    assert [repr(m) for m in (ForwardOnly(), Mixed(), Mixed(0.2), 2 * Mixed())] == [
        "ForwardOnly()", "Mixed()", "Mixed(share=0.2)", "2 * Mixed()",
    ]  # fmt: skip


def test_the_example_is_the_page():
    """One class in both, so that neither goes its own way."""
    page = (ROOT / "docs" / "your_own_metric.md").read_text("utf-8")
    names = runpy.run_path(str(ROOT / "examples" / "your_own_metric.py"))
    assert "class ForwardOnly(LayerwiseMetric):" in page
    network, x, y = network_of("mlp")
    theirs, mine = (natural_gradient(network, m(), x, y) for m in (names["ForwardOnly"], ForwardOnly))
    assert torch.equal(theirs.components, mine.components)
    ten = re.search(r"class ForwardOnly.*?```", page, re.DOTALL)
    assert ten is not None and len([line for line in ten[0].splitlines()[:-1] if line.strip()]) <= 10


# --- the table of methods ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return list(rows())


def test_the_table_on_the_page_is_what_the_code_says(table):
    page = PAGE.read_text("utf-8")
    assert updated(page, table) == page, "write it anew: python -m riemann_ng.metrics.table docs/metrics.md"
    stale = page.replace("| K-FAC | `KFAC()`", "| K-FAC | `KFAK()`")
    assert stale != page and updated(stale, table) == page  # a stale one is told, and mended
    other = [replace(table[0], kept=("affine", "affine")), *table[1:]]
    assert updated(page, other) != page


def test_the_table_says_what_theory_says(table):
    by_name = {row.method: row for row in table}
    for method in ("natural gradient", "Gauss-Newton", "K-FAC", "K-FAC, transported damping"):
        assert by_name[method].kept == ("affine", "affine") and by_name[method].lost == ()
    assert by_name["gradient descent"].kept == ("orthogonal", "isometries")
    assert by_name["K-FAC, weight and bias apart"].kept == ("general", "affine")
    assert by_name["K-FAC, damping of the weights alone"].kept[0] == "isometries"
    assert by_name["K-FAC, Tikhonov damping"].kept[0] == "orthogonal"
    assert "monomial" in by_name["diagonal Fisher"].kept[1]
    assert len(by_name) == len(table) and all(row.lost or row.kept == ("affine", "affine") for row in table)


def test_the_table_does_not_depend_on_the_global_random_state(table):
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    assert list(rows()) == table
    assert torch.equal(torch.get_rng_state(), before)


def test_the_largest_groups():
    assert largest(Symmetry.natural(), "A") == "affine"
    assert largest(Symmetry.naming(Structure("A", "form"), weight={"A": 2}), "A") == "isometries"
    assert largest(Symmetry.naming(Structure("A", "lines")), "A") == "translations, monomial"
    both = Symmetry.naming(Structure("A", "frame", "one"), Structure("A", "origin", "other"))
    assert largest(both, "A") == "nothing"


def test_a_page_without_a_place_for_it():
    with pytest.raises(InvalidSetting, match="the page has no place for the table"):
        updated("nothing here", [])
    row = Row("m", "M()", "g", ("affine", "affine"), ())
    assert updated(f"a\n{BEGIN}\nold\n{END}\nb", [row]) == f"a\n{markdown([row])}\nb"
