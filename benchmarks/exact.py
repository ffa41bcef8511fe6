"""Exact K-FAC statistics of the autoencoder, in plain forward and backward passes.

`observe(x, Exact())` and then the second moments of all layers' cotangents, beside a loop over the 784 directions
(measured on some of them). Goal: at most 90 passes; the loop takes about 340.
"""

import argparse
import json
import resource

import torch
from workloads import autoencoder, interleaved

from riemann_ng.inner_products import second_moment
from riemann_ng.networks import Exact, Network


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", type=int, default=0, metavar="K", help="also loop over the first K directions")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = autoencoder()
    network = Network.from_torch(work.module, work.likelihood, work.x)
    for _ in range(3):
        work.plain()
    plain_peak = peak()

    def exact() -> None:
        observation = network.observe(work.x, Exact())
        for layer in observation.layers.values():
            second_moment(layer.cotangents).member_matrices()

    def loop() -> None:
        outputs, edges = work.x, []
        for layer in work.module:
            outputs = layer(outputs)
            edges += [outputs] if isinstance(layer, torch.nn.Linear) else []
        roots = work.likelihood.diagonal_roots(outputs.detach())
        for k in range(args.loop):
            column = torch.zeros_like(outputs)
            column[:, k] = roots[:, k]
            for g in torch.autograd.grad(outputs, edges, column, retain_graph=True):
                g.mT @ g

    works = {"plain": lambda: [work.plain() for _ in range(10)], "exact": exact}
    if args.loop:
        works["loop"] = loop
    taken = interleaved(works, args.rounds)
    plain = taken["plain"] / 10
    report = {
        "threads": args.threads,
        "plain ms": round(1e3 * plain, 2),
        "exact, passes": round(taken["exact"] / plain, 1),
        "peak MiB": round(peak()),
        "peak MiB of plain passes": round(plain_peak),
    }
    if args.loop:
        report["loop over 784, passes"] = round(taken["loop"] / plain / args.loop * 784, 1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
