"""A training problem, in float64 and on its own copy of the model: what subjects are run on, and what a probe moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Distribution, Independent, OneHotCategorical
from torch.utils._pytree import tree_map

from ...errors import RiemannError, UnsupportedLayer
from ...likelihoods import Likelihood
from ...networks import Network
from ...networks.outputs import call_module, examples_in, first_examples, read_output
from ...networks.running import untouched_randomness
from ...reparametrize import Frames, Twin, reparametrize
from .carriers import Carrier

CALL = "check_invariance"


class InvalidSubject(RiemannError):
    """A subject or a model whose invariance cannot be checked: it leaves something behind, or answers differently."""


def as_given(z: Tensor) -> Tensor:
    return z


@dataclass(frozen=True, eq=False)
class Problem:
    """A model with a batch to train on, and inputs at which predictions are compared.

    A probe gives the same problem in other coordinates: `to_original` takes what its module returns to the outputs of
    the original, `twin` carries constants there, `loss_scale` multiplies the loss. Nothing changes `module`: subjects
    that train it get a copy.
    """

    module: nn.Module
    likelihood: Likelihood
    x: Any
    y: Any
    seen: Any
    """Inputs at which predictions are compared: those of the batch, and some held out."""
    predictive: Likelihood
    """The likelihood of the original outputs."""
    read: Callable[[Any], Tensor] = read_output
    to_original: Callable[[Tensor], Tensor] = as_given
    loss_scale: float = 1.0
    twin: Carrier | None = None
    own_network: Network | None = None
    opened: Twin | None = None
    """Where fused modules were opened: what carries constants from the model as given to this one."""

    @property
    def network(self) -> Network:
        """The module, read: the twin's, or the original's. Observations start from the same random state."""
        network = self.own_network if self.twin is None else self.twin.network
        if network is None:
            network = Network.from_torch(self.module, self.likelihood, self.x, read=self.read)
            object.__setattr__(self, "own_network", network)
        network._observations = 0
        return network

    def folded(self) -> Problem:
        """The same problem with outputs as the original gives them: for subjects that bring a loss of their own."""
        if self.to_original is as_given:
            return self
        module = copy.deepcopy(self.module)
        module.register_forward_hook(Unmoved(self.to_original, self.read))
        return replace(self, module=module, likelihood=self.predictive, to_original=as_given, twin=None)

    def outputs(self, module: nn.Module, x: Any) -> Tensor:
        return self.read(call_module(module, x))

    def loss(self, module: nn.Module) -> Tensor:
        return self.loss_scale * self.likelihood.nll(self.outputs(module, self.x), self.y).mean()

    @torch.no_grad()
    def predictions(self, module: nn.Module) -> Tensor:
        """The predictive distributions at `seen`, as one flat tensor."""
        return self.predicted(self.to_original(self.outputs(module, self.seen)))

    def predicted(self, z: Tensor) -> Tensor:
        return parameters_of(self.predictive.distribution(z)).double().flatten()

    @contextmanager
    def shaken(self, size: float, seed: int = 0) -> Iterator[Problem]:
        """The problem with its parameters and inputs perturbed by this relative size."""
        generator = torch.Generator().manual_seed(seed)

        def shake(t: Any) -> Any:
            if not isinstance(t, Tensor) or not t.is_floating_point():
                return t
            noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            return t + size * t.abs().max().clamp(min=1e-30) * noise if t.numel() else t

        trained = [p for p in self.module.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        try:
            with torch.no_grad():
                for p in trained:
                    p.copy_(shake(p))
            yield replace(self, x=tree_map(shake, self.x))
        finally:
            with torch.no_grad():
                for p, old in zip(trained, before, strict=True):
                    p.copy_(old)


@dataclass(frozen=True)
class Unmoved:
    """A forward hook that gives outputs as the original does."""

    to_original: Callable[[Tensor], Tensor]
    read: Callable[[Any], Tensor]

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Tensor:
        return self.to_original(self.read(out))


def parameters_of(distribution: Distribution) -> Tensor:
    """What tells a distribution: probabilities, or mean and deviation."""
    if isinstance(distribution, Independent):
        return parameters_of(distribution.base_dist)
    if isinstance(distribution, CategoricalDistribution | OneHotCategorical):
        return distribution.probs
    try:
        return torch.stack([distribution.mean, distribution.stddev])
    except NotImplementedError:
        return distribution.mean


def problem_of(model: nn.Module | Network, x: Any, y: Any, likelihood: Likelihood | None, held_out: float) -> Problem:
    """A problem in float64 on a copy, with some examples held out; refuses models that no check is possible on."""
    name: str | None = None
    read: Callable[[Any], Tensor] = read_output
    if isinstance(model, Network):
        name, read, likelihood, model = model.name, model.read, likelihood or model.likelihood, model.module
    if not isinstance(model, nn.Module):
        raise InvalidSubject(f"InvalidSubject in {CALL}: the model must be an nn.Module or a Network, got {model!r}.")
    if not isinstance(likelihood, Likelihood):
        raise InvalidSubject(
            f"InvalidSubject in {CALL}: predictions are compared as distributions, and the likelihood is "
            f"{likelihood!r}. Give likelihood=Categorical(), Gaussian(), or what the loss is minus the logarithm of."
        )
    module = copy.deepcopy(model).cpu().double()
    x, y = in_double(x), in_double(y)
    n = examples_in(x)
    network = Network.from_torch(module, likelihood, x, name, read)
    check_deterministic(network, x)
    if all(block.reader is None for block in network.blocks.values()):
        read_as = "\n".join(f"  {path}: {block.assumed}" for path, block in list(network.blocks.items())[:4])
        raise UnsupportedLayer(
            f"UnsupportedLayer in {CALL}: no layer of {type(module).__name__} has activations and pre-activations that "
            f"could be moved; all its parameters are read as constants:\n{read_as}\n"
            f"Supported are linear maps, convolutions, embeddings, normalizations, attention and recurrent layers. "
            f"Put one there, or write yours with them."
        )
    opened = None
    if network._expansions:  # twins are in the open: so is what they are compared with
        opened = reparametrize(network, Frames.identity(), x)
        network, module = opened.network, opened.module
    if y is None:
        with torch.no_grad():
            y = likelihood.sample(network.outputs(x), torch.Generator().manual_seed(20))[0]
    likelihood.validate(network.outputs(x).detach(), y)
    count = n - int(held_out * n)
    here, labels = first_examples(x, count), first_examples(y, count)
    return Problem(module, likelihood, here, labels, x, likelihood, read, own_network=network, opened=opened)


def in_double(x: Any) -> Any:
    """Floating point tensors of a batch in float64, on the CPU."""

    def double(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        t = t.detach().cpu()
        return t.double() if t.is_floating_point() else t

    return tree_map(double, x)


def check_deterministic(network: Network, x: Any) -> None:
    with torch.no_grad(), untouched_randomness(network.module):
        torch.manual_seed(1)
        first = network.outputs(x)
        torch.manual_seed(2)
        second = network.outputs(x)
    if bool(first.isfinite().all()) and not torch.allclose(first, second, rtol=1e-10, atol=1e-12):
        random = [
            name or "self"
            for name, m in network.module.named_modules()
            if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0
        ]
        what = f"dropout is on in {', '.join(random)}" if random else "its forward pass draws random numbers"
        raise InvalidSubject(
            f"InvalidSubject in {CALL}: the model gives two outputs for one input: {what}. A discrepancy could not be "
            f"told from that noise. Pass model.eval(), or a model without randomness."
        )
    if not bool(first.isfinite().all()):
        raise InvalidSubject(f"InvalidSubject in {CALL}: the model's outputs hold NaN or infinity.")
