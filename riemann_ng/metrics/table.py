"""Which metric is which method: a table made of what the metrics themselves say, their repr, value and symmetry.

python -m riemann_ng.metrics.table docs/metrics.md    # writes it between the page's markers
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting
from ..likelihoods import Bernoulli, EuclideanOutput
from ..networks import Network
from ..symmetry import COMPOSITE, GROUPS, WITHIN, Structure, Symmetry
from .adaptive import RootMeanSquare, Shampoo
from .base import RiemannianMetric, value_at
from .constant import EuclideanMetric, FixedMetric
from .covariance import GradientCovariance
from .ekfac import EKFAC
from .fisher import Fisher, GaussNewton
from .kfac import KFAC
from .kl_shampoo import KLShampoo
from .named_frames import NamedFrame
from .normalization import BatchNormalization, Whitening
from .one_sided import PRONG, CotangentsOnly, ForwardOnly
from .recurrent import RecurrentKFAC
from .relative_fisher import RelativeFisher
from .soap import SOAP
from .tridiagonal import BlockTridiagonalKFAC

BEGIN, END = "<!-- methods: generated, see riemann_ng/metrics/table.py -->", "<!-- end of methods -->"
NETWORK, LAYER = "net", "fc"
NUMBER = re.compile(r"\d+\.\d+(e-?\d+)?")


@dataclass(frozen=True)
class Row:
    """One method. `kept` are the largest groups that the layer's value keeps on 𝒜 and on 𝒮, `lost` what is to blame."""

    method: str
    metric: str
    value: str
    kept: tuple[str, str]
    lost: tuple[str, ...]


def methods(network: Network, x: Tensor, last: str = "out") -> list[tuple[str, RiemannianMetric]]:
    """The methods by their usual names; `x` is a batch at which factors are fixed once, `last` the output layer."""
    initial = FixedMetric(KFAC().at(network.observe(x)), "KFAC at the start")
    frame = NamedFrame.of(KFAC(), network.observe(x), "K-FAC at the start")
    return [
        ("gradient descent", EuclideanMetric()),
        ("natural gradient", Fisher()),
        ("natural gradient, by layer", Fisher(structure="block-diagonal")),
        ("natural gradient, by unit", Fisher(structure="unit-wise")),
        ("quasi-diagonal natural gradient", Fisher(structure="quasi-diagonal")),
        ("diagonal Fisher", Fisher(structure="diagonal")),
        ("Gauss-Newton", GaussNewton(EuclideanOutput())),
        ("K-FAC", KFAC()),
        ("K-FAC, reduce", KFAC(sharing="reduce")),
        ("K-FAC, weight and bias apart", KFAC(bias="separate")),
        ("K-FAC, Tikhonov damping", KFAC() + 0.01 * EuclideanMetric()),
        ("K-FAC, damping of the weights alone", KFAC() + 0.01 * EuclideanMetric(on="translations")),
        ("K-FAC, factored damping", KFAC().damp_factors(0.01)),
        ("K-FAC, transported damping", KFAC() + 0.01 * initial),
        ("EKFAC", EKFAC()),
        ("EKFAC, transported frame", EKFAC(reference=initial)),
        ("K-FAC, block-tridiagonal", BlockTridiagonalKFAC()),
        ("K-FAC of recurrent layers, over 3 steps", RecurrentKFAC()),
        ("inputs alone, FOOF", ForwardOnly()),
        ("inputs alone, transported reference", ForwardOnly(initial)),
        ("natural neural networks, PRONG", PRONG()),
        ("batch normalization of activations", BatchNormalization(epsilon=0.0)),
        ("batch normalization of pre-activations", BatchNormalization("pre-activations", 0.0)),
        ("whitening of pre-activations", Whitening("pre-activations")),
        ("whitening of both", Whitening("both")),
        ("cotangents alone", CotangentsOnly()),
        ("relative Fisher of tanh units", RelativeFisher("tanh", shared=(last,))),
        ("covariance of gradients", GradientCovariance()),
        ("covariance of gradients, centred, TONGA", GradientCovariance(centred=True)),
        ("root mean square, Adam and RMSProp", RootMeanSquare()),
        ("Adam, in K-FAC's frame at the start", RootMeanSquare(frame=frame)),
        ("Shampoo", Shampoo()),
        ("SOAP", SOAP()),
        ("SOAP, relative to K-FAC at the start", SOAP(frame=frame)),
        ("KL-Shampoo", KLShampoo()),
        ("KL-Shampoo, no root", KLShampoo(power=1.0)),
    ]


def rows() -> Iterator[Row]:
    """The table at a small classifier; what is said is of the layer `fc`, and of no number in it."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [(LAYER, nn.Linear(3, 4)), ("tanh", nn.Tanh()), ("out", nn.Linear(4, 3))]
        module = nn.Sequential(OrderedDict(layers)).double()
    before, x = (torch.randn(24, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    steps = torch.randn(24, 3, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (24, 3), generator=generator).double()
    network = Network.from_torch(module, Bernoulli(), example=x, name=NETWORK)
    A, S = f"{NETWORK}/{LAYER}.A", f"{NETWORK}/{LAYER}.S"
    for method, metric in methods(network, before):
        batch = steps if isinstance(metric, RecurrentKFAC) else x
        with network.observe(batch, metric.estimator(y), output=metric.output) as seen:
            g = value_at(metric, seen)
            part = (g.summands() or {}).get(LAYER, g)
            kept = largest(g.symmetry, A), largest(g.symmetry, S)
            value = NUMBER.sub("λ", plain(part.expression()))
            yield Row(method, plain(metric), value, kept, culprits(g.symmetry, A, S))


def culprits(symmetry: Symmetry, *spaces: str) -> tuple[str, ...]:
    """What any group is lost at; the weight of a term is left out where the term stands there already."""
    blamed = dict.fromkeys(c for V in spaces for group in GROUPS for c in symmetry.blame(V, group))
    terms = dict.fromkeys(plain(c) for c in blamed if isinstance(c, Structure))
    weights = dict.fromkeys(plain(c) for c in blamed if isinstance(c, str))
    return (*terms, *(w for w in weights if not any(term in w for term in terms)))


def plain(said: object) -> str:
    """Without the network's name, which is an accident."""
    return str(said).replace(f"{NETWORK}/{LAYER}.", "").replace(f"{NETWORK}/", "").replace(f" of {LAYER}", "")


def largest(symmetry: Symmetry, space: str) -> str:
    """The groups kept on a space that lie in no larger one that is kept."""
    kept = [group for group in GROUPS if symmetry.keeps(space, group)]
    names = [group for group in kept if not any(group in WITHIN.get(other, ()) for other in kept)]
    for name, parts in COMPOSITE.items():
        if set(parts) <= set(names):
            names = [name, *(n for n in names if n not in parts)]
    return ", ".join(names) or "nothing"


def markdown(table: Sequence[Row]) -> str:
    """The table, between its markers."""
    lines = [
        "| method | metric | its value on one layer | keeps on 𝒜 | keeps on 𝒮 | what is lost, at |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        lost = "; ".join(f"`{culprit}`" for culprit in row.lost) or "nothing"
        lines.append(f"| {row.method} | `{row.metric}` | `{row.value}` | {row.kept[0]} | {row.kept[1]} | {lost} |")
    return "\n".join([BEGIN, *lines, END])


def updated(page: str, table: Sequence[Row]) -> str:
    """A page with the table between its markers made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InvalidSetting(
            f"InvalidSetting in metrics.table: the page has no place for the table, {BEGIN} ... {END}."
        )
    return before + markdown(table) + after


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(updated(path.read_text("utf-8"), list(rows())), "utf-8")
