"""The classical methods on a deep autoencoder of curves-like images, each from one command.

python examples/train_curves.py --list
python examples/train_curves.py --method hessian-free --steps 2000
python examples/train_curves.py                                 (every method, some steps each)
"""

import argparse
import math
import time
from itertools import pairwise

import torch
from torch import nn

from riemann_ng import optim
from riemann_ng.experiments import curves_like
from riemann_ng.likelihoods import Bernoulli

WIDTHS = (784, 100, 25, 6, 25, 100, 784)
METHODS = {
    "k-fac": optim.NaturalGradient,
    "published-k-fac": optim.PublishedKFAC,
    "online": optim.OnlineNaturalGradient,
    "hessian-free": optim.HessianFree,
    "krylov": optim.KrylovSubspaceDescent,
    "conjugate": optim.NaturalConjugateGradient,
    "conjugate-joint": lambda m, p: optim.NaturalConjugateGradient(m, p, method="joint"),
    "minres": optim.MinresNaturalGradient,
    "tonga": optim.TONGA,
    "prong": lambda m, p: optim.PRONG(m, p, lr=1e-4, momentum=0.9),
    "sngd": lambda m, p: optim.SNGD(m, p, lr=3e-3, momentum=0.9),
    "geodesic": optim.GeodesicNaturalGradient,
    "adam": optim.Adam,
    "muon": optim.Muon,
    "spectral": optim.SpectralNaturalGradient,
}


def autoencoder(widths=WIDTHS, seed=0):
    """Tanh units, a linear code in the middle, logits at the end; drawn with variance 1 / fan-in."""
    generator, layers = torch.Generator().manual_seed(seed), []
    for k, (n, m) in enumerate(pairwise(widths)):
        layer = nn.Linear(n, m)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator) / n**0.5)
            layer.bias.zero_()
        layers += [layer] if m == min(widths) or k == len(widths) - 2 else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def train(method, steps, images, batch=128, seed=0):
    """The loss on all images before and after, and the optimizer."""
    model, likelihood = autoencoder(seed=seed), Bernoulli()
    opt = METHODS[method](model, likelihood)
    generator = torch.Generator().manual_seed(seed)

    def loss_on_all():
        with torch.no_grad():
            return float(likelihood.loss(model(images), images))

    before = loss_on_all()
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch,), generator=generator)]
        opt.zero_grad()
        likelihood.loss(model(x), x).backward()
        opt.step()
    return before, loss_on_all(), opt


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Train an autoencoder of curves-like images.")
    parser.add_argument("--method", choices=[*METHODS, "all"], default="all", help="one of --list, or all")
    parser.add_argument("--steps", type=int, default=25, help="how many steps each")
    parser.add_argument("--images", type=int, default=1000, help="how many images there are to draw batches from")
    parser.add_argument("--batch", type=int, default=128, help="examples a step")
    parser.add_argument("--list", action="store_true", help="the names of the methods")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(METHODS))
        return {}
    torch.manual_seed(0)
    images, ends = curves_like(given.images, seed=0), {}
    mean = images.mean(0).clamp(1e-6, 1 - 1e-6)
    flat = float(Bernoulli().loss(torch.logit(mean).expand_as(images), images))
    print(f"{given.steps} steps, batches of {given.batch}; the mean image has a loss of {flat:.1f}")
    for method in METHODS if given.method == "all" else [given.method]:
        start = time.process_time()
        before, after, opt = train(method, given.steps, images, given.batch)
        seconds = time.process_time() - start
        ends[method] = after
        print(
            f"{method:<16} {before:8.2f} -> {after:8.2f}   {seconds:6.1f} s of CPU   in trouble: {opt.tally}",
            flush=True,
        )
        opt.close()
        assert math.isfinite(after) and after < before, method
    return ends


if __name__ == "__main__":
    main()
