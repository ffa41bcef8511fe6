"""Small random networks with a batch and a likelihood: one `NetworkCase`, made of a `Draw`, whose repr is its code.

    case = network_case(Draw.seeded(3), "conv1d")
    case.module(), case.x, case.y, case.likelihood, case.network()

Nothing here needs Hypothesis; `riemann_ng.testing.networks` has the strategies, and `architectures` what is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, NegativeBinomial, Poisson
from ..networks import Network
from ..networks.running import untouched_randomness
from ..reparametrize import GROUPS, Frames, Twin, admissible, reparametrize
from .architectures import ARCHITECTURES, HELPERS, Call
from .draws import Draw


@dataclass(frozen=True, eq=False)
class NetworkCase:
    """A module made by `make`, a batch for it, and targets that its likelihood can have produced.

    `shape` is that of one input; with `tokens`, inputs are integers below it. All numbers come from `seed`, all of them
    in float64, and neither torch's global generator nor its default dtype is touched. `module()` and `network()` are
    new at every call and equal, in evaluation mode.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    likelihood: Likelihood
    examples: int = 8
    tokens: int = 0
    seed: int = 0

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(4 * self.seed + stream)

    def module(self) -> nn.Module:
        with untouched_randomness(nn.Identity()):
            module = self.make().double().eval()
        randomize_(module, self._generator(0))
        return module

    @cached_property
    def x(self) -> Tensor:
        return self.batch(self.examples)[0]

    @cached_property
    def y(self) -> Tensor:
        return self.batch(self.examples)[1]

    def batch(self, examples: int, stream: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs, and targets drawn from the likelihood at the outputs there. Another stream, another batch."""
        generator = self._generator(stream)
        if self.tokens:
            x = torch.randint(0, self.tokens, (examples, *self.shape), generator=generator)
        else:
            x = torch.randn(examples, *self.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            return x, self.likelihood.sample(self.module()(x), generator)[0]

    def network(self) -> Network:
        """A module read, and verified on the batch."""
        return Network.from_torch(self.module(), self.likelihood, self.x)

    def code(self) -> str:
        """A program that makes `network`, `x` and `y` again."""
        helpers = [name for name in re.findall(r"\b\w+", repr(self)) if name in HELPERS]
        imports = [
            "from torch import nn\n", f"from riemann_ng.likelihoods import {type(self.likelihood).__name__}",
            *[f"from riemann_ng.testing.architectures import {', '.join(dict.fromkeys(helpers))}"] * bool(helpers),
            "from riemann_ng.testing.network_cases import NetworkCase",
        ]  # fmt: skip
        return "\n".join([*imports, "", f"case = {self!r}", "network, x, y = case.network(), case.x, case.y", ""])

    def __repr__(self) -> str:
        make = f"lambda: {self.make!r}" if isinstance(self.make, Call) else repr(self.make)
        tokens = f", tokens={self.tokens}" if self.tokens else ""
        said = f"{self.shape}, {self.likelihood!r}, examples={self.examples}{tokens}, seed={self.seed}"
        return f"NetworkCase({make}, {said})"


def randomize_(module: nn.Module, generator: torch.Generator) -> None:
    """All parameters and running statistics anew: no bias at zero, no scale at one, nothing saturated."""

    def normal(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=torch.float64)

    seen: set[int] = set()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if id(p) in seen:
                continue
            seen.add(id(p))
            around = 1.0 if p.ndim == 1 and name.rpartition(".")[-1] == "weight" else 0.0  # the scale of a norm
            width = p[0].numel() ** 0.5 if p.ndim > 1 else 4.0
            p.copy_(around + normal(p) / width)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * normal(b))
            elif name.endswith("running_var"):
                b.copy_(torch.exp(0.3 * normal(b)))


LIKELIHOODS: tuple[Callable[[], Likelihood], ...] = (
    Gaussian, Categorical, Bernoulli, Poisson, lambda: Gaussian(scale=0.5), lambda: NegativeBinomial(total_count=3.0),
)  # fmt: skip


def likelihood_for(index: int, outputs: int) -> Likelihood:
    """One of `LIKELIHOODS`, for outputs of this size along their last axis. A single class is no choice."""
    made = LIKELIHOODS[index]()
    return Gaussian() if outputs == 1 and isinstance(made, Categorical) else made


def network_case(
    draw: Draw, kind: str | Iterable[str] | None = None, likelihood: Likelihood | None = None
) -> NetworkCase:
    """A network of a kind of `ARCHITECTURES`, of one of several, or of any, with enough examples for its moments."""
    kinds = list(ARCHITECTURES) if kind is None else [kind] if isinstance(kind, str) else list(kind)
    for name in kinds:
        if name not in ARCHITECTURES:
            raise InvalidSetting(
                f"InvalidSetting in network_case: no kind of network is called {name!r}. The kinds are "
                f"{', '.join(ARCHITECTURES)}."
            )
    # what every kind draws comes first, so that Hypothesis can go to a simpler kind and keep it
    name, index, more, seed = (
        draw.one_of(kinds),
        draw.integer(0, len(LIKELIHOODS) - 1),
        draw.integer(0, 4),
        draw.integer(0, 999),
    )
    made = ARCHITECTURES[name](draw)
    chosen = likelihood_for(index, made.outputs) if likelihood is None else likelihood
    return NetworkCase(made.make, made.shape, chosen, 3 * made.features + more, made.tokens, seed)


EVERYWHERE = ("activations", "pre-activations")
"""All spaces between layers, the network's input and output among them."""


@dataclass(frozen=True, eq=False)
class TwinCase:
    """A network with a batch, and frames of a group on some of its spaces."""

    case: NetworkCase
    on: tuple[str, ...]
    group: str
    frame_seed: int = 0

    @property
    def x(self) -> Tensor:
        return self.case.x

    @property
    def y(self) -> Tensor:
        return self.case.y

    @cached_property
    def network(self) -> Network:
        return self.case.network()

    @cached_property
    def frames(self) -> Frames:
        return Frames.draw(self.network, self.x, self.on, self.group, self.frame_seed)

    @cached_property
    def twin(self) -> Twin:
        return reparametrize(self.network, self.frames, self.x)

    def __repr__(self) -> str:
        return f"TwinCase({self.case!r}, {self.on!r}, {self.group!r}, frame_seed={self.frame_seed})"


def twin_case(
    draw: Draw,
    kind: str | Iterable[str] | None = None,
    on: Collection[str] = EVERYWHERE,
    group: str | Sequence[str] | None = None,
    likelihood: Likelihood | None = None,
) -> TwinCase | None:
    """A network with frames of a group, of one of several, or of any; None where it admits none of them."""
    wanted = (group,) if isinstance(group, str) else GROUPS if group is None else tuple(group)
    index, seed = draw.integer(0, len(wanted) - 1), draw.integer(0, 999)
    case = network_case(draw, kind, likelihood)
    network = case.network()
    free = [name for name in wanted if admissible(network, case.x, on, name) is None]
    return TwinCase(case, tuple(on), free[index % len(free)], seed) if free else None
