"""Solves with the exact Fisher: ten conjugate-gradient steps in plain passes, and the dual solve against them.

Goals: ten steps in at most 14 plain forward and backward passes on W1 and W2, 17 on W3, the linearization included; the
dual solve of 64 examples with 10 classes faster than conjugate gradients to its residual.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from workloads import autoencoder, convolutional, interleaved, transformer

from riemann_ng.elements import Covector
from riemann_ng.inner_products import Euclidean
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics.fisher import Fisher
from riemann_ng.networks import Exact, Linearized, Network
from riemann_ng.solvers import CG, Dual

GOALS = {"W1 autoencoder": 14, "W2 convolutional": 14, "W3 transformer": 17}
DAMPING = 1e-3


def ten_steps(rounds: int) -> None:
    metric, solver = Fisher(structure="matrix-free"), CG(iterations=10)
    for work in (autoencoder(), convolutional(), transformer()):
        network = Network.from_torch(work.module, work.likelihood, work.x)
        space = network.tangent_space
        xi = Covector(space, torch.randn(space.dim))
        damping = DAMPING * Euclidean(space)

        def solve(work=work, network=network, xi=xi, damping=damping) -> None:  # type: ignore[no-untyped-def]
            g = metric.at(network.observe(work.x, Linearized())) + damping
            g.sharp(xi, solver)

        kept = metric.at(network.observe(work.x, Linearized())) + damping
        works: dict[str, Callable[[], object]] = {
            "plain": work.plain,
            "ten steps": solve,
            "steps alone": lambda kept=kept, xi=xi: kept.sharp(xi, solver),  # type: ignore[misc]
            "observe": lambda network=network, work=work: network.observe(work.x, Linearized()),  # type: ignore[misc]
        }
        taken = interleaved(works, rounds)
        ratios = {name: round(taken[name] / taken["plain"], 2) for name in works if name != "plain"}
        print(json.dumps({"workload": work.name, "plain ms": round(1e3 * taken["plain"], 2), **ratios,
                          "goal": GOALS[work.name]}))  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))


def dual(rounds: int) -> None:
    for name, module, x in (
        ("W2 convolutional", convolutional().module, torch.randn(64, 1, 28, 28)),
        ("MLP 784-256-256-10", mlp(), torch.randn(64, 784)),
    ):
        network = Network.from_torch(module, Categorical(), x)
        y = torch.randint(0, 10, (64,))
        xi, damping = network.differential(x, y), DAMPING * Euclidean(network.tangent_space)

        def by_dual(network=network, x=x, xi=xi, damping=damping):  # type: ignore[no-untyped-def]
            g = Fisher(structure="dual").at(network.observe(x, Exact())) + damping
            return Dual().solve(g, xi)

        residual = by_dual().report.residual

        def by_cg(network=network, x=x, xi=xi, damping=damping, residual=residual):  # type: ignore[no-untyped-def]
            g = Fisher(structure="matrix-free").at(network.observe(x, Linearized())) + damping
            return CG(tolerance=max(residual, 1e-6)).solve(g, xi)

        works: dict[str, Callable[[], object]] = {
            "plain": lambda module=module, x=x, y=y: cross_entropy(module(x), y).backward(),  # type: ignore[misc]
            "observe": lambda network=network, x=x: network.observe(x, Exact()),  # type: ignore[misc]
            "dual": by_dual,
            "CG": by_cg,
        }
        taken = interleaved(works, rounds)
        ratios = {key: round(taken[key] / taken["plain"], 1) for key in works if key != "plain"}
        steps = by_cg().report
        print(json.dumps({"workload": name, "parameters": network.tangent_space.dim,
                          "plain ms": round(1e3 * taken["plain"], 2), **ratios, "dual's residual": f"{residual:.1e}",
                          "CG's": f"{steps.residual:.1e}", "CG steps": steps.iterations}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ten_steps(args.rounds)
    dual(max(3, args.rounds // 2))


if __name__ == "__main__":
    main()
