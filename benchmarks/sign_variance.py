"""The variance of one-pass estimates of the Fisher on token outputs: random signs against a sampled label.

Both send one cotangent back, so their costs are the same. For a direction w the estimate of w·F w is the mean over
examples of <ξ, J w>², with ξ the cotangent that is sent back: `CurvatureProp` draws one sign per token and class,
`MonteCarlo` one label per token. J w is made once; then estimates are cheap, and their variance is counted: for
directions that move all tokens, and for what they do to the last one alone.
"""

import argparse
import json

import torch
from workloads import WORKLOADS

import riemann_ng as rng


def relative_variances(confidence: float, last: bool, draws: int) -> dict[str, float]:
    """Of the estimate for one example: variance over the squared truth, the mean over examples and directions."""
    workload = WORKLOADS["W3"]()
    network = rng.Network.from_torch(workload.module, workload.likelihood, example=workload.x)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[torch.Tensor]] = {"signs": [], "label": []}
    for _ in range(4):
        w = rng.Vector(network.tangent_space, torch.randn(network.tangent_space.dim, generator=generator))
        moved = network.pushforward(w, workload.x).double() * confidence
        if last:
            moved[:, :-1] = 0
        z = network.outputs(workload.x).detach().double() * confidence
        root = workload.likelihood.root(z)
        truth = root.pair(moved).square().sum(1)
        for name in found:
            estimates = []
            for _ in range(draws):
                if name == "signs":
                    signs = torch.randint(0, 2, (len(z), root.count), generator=generator) * 2.0 - 1
                    xi = root.combine(signs.double())
                else:
                    xi = workload.likelihood.sampled_cotangents(z, generator, 1)[:, 0]
                estimates.append((xi * moved).flatten(1).sum(1).square())
            spread = torch.stack(estimates)
            bias = float((spread.mean(0) / truth - 1).mean().abs())
            assert bias < 6 * float((spread.var(0) / truth.square()).mean() / (draws * len(z))) ** 0.5, (name, bias)
            found[name].append((spread.var(0) / truth.square()).mean())
    return {name: float(torch.stack(values).mean()) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    for last in (False, True):
        for confidence in (1.0, 10.0, 30.0):
            rows = {name: round(v, 2) for name, v in relative_variances(confidence, last, draws).items()}
            print(json.dumps({"tokens": "last" if last else "all", "logits times": confidence, **rows}))


if __name__ == "__main__":
    main()
