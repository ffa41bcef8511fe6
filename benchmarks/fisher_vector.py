"""Exact Fisher-vector products of one batch with the linearization kept, in plain forward and backward passes.

Goals: at most 1.25 for the autoencoder, 1.2 for the convolutional network, 1.55 for the transformer.
"""

import argparse
import json
import resource

import torch
from workloads import autoencoder, convolutional, interleaved, transformer

from riemann_ng.elements import Vector
from riemann_ng.networks import Network

GOALS = {"W1 autoencoder": 1.25, "W2 convolutional": 1.2, "W3 transformer": 1.55}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for work in (autoencoder(), convolutional(), transformer()):
        network = Network.from_torch(work.module, work.likelihood, work.x)
        F = network.fisher(work.x)
        v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
        J = F.phi  # type: ignore[attr-defined]
        xi = torch.randn(J.codomain.dim)
        works = {
            "plain": work.plain,
            "product": lambda F=F, v=v: F.flat(v),
            "forward half": lambda J=J, v=v: J._apply(v.data),
            "backward half": lambda J=J, xi=xi: J._transpose(xi),
            "linearize": lambda network=network, work=work: network.linearize(work.x),
        }
        taken = interleaved(works, args.rounds)
        ratios = {name: round(taken[name] / taken["plain"], 3) for name in works if name != "plain"}
        report = {"workload": work.name, "plain ms": round(1e3 * taken["plain"], 2), **ratios, "goal": GOALS[work.name]}
        print(json.dumps(report))
    print(json.dumps({"peak MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}))


if __name__ == "__main__":
    main()
