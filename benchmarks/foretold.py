"""What `riemann-ng inspect --plan` foretells of W1 to W5, held against what is measured here: within 30 % or not."""

import argparse
from time import process_time

import torch

from riemann_ng.bench.harness import device_name
from riemann_ng.bench.loops import RECIPES, Loop
from riemann_ng.bench.plan import made
from riemann_ng.bench.quantities import Factors, network_of
from riemann_ng.bench.rates import Rates, measured
from riemann_ng.bench.recorded import recorded
from riemann_ng.bench.shapes import layers_of
from riemann_ng.bench.timing import Spread, taking_turns
from riemann_ng.bench.workloads import copied, workload
from riemann_ng.optim import Schedule

WITHIN = 0.3


def held_against(name: str, rates: Rates, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds foretold and measured."""
    work = workload(name)
    layers = layers_of(network_of(work), work.x)
    seen, _ = recorded(work)
    plan = made(layers, len(work.x), seen.seconds(rates), rates, Schedule(1, 10))
    of = Factors.of(work)
    ready = of.ready()
    times = taking_turns(
        {
            "passes": work.plain, "factorization": of.ready, "application": lambda: ready.sharp(of.gradient),
            "step": Loop(copied(work), RECIPES["empirical"]).ten,
        },
        rounds, clock=process_time,
    )  # fmt: skip
    found = {key: Spread.of(taken).median * (0.1 if key == "step" else 1) for key, taken in times.items()}
    return {key: (1e3 * getattr(plan, key), 1e3 * taken) for key, taken in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates = measured(device_name("cpu"), process_time)
    print("| | of | foretold, ms | measured, ms | ratio | within 30 % |\n| --- | --- | --- | --- | --- | --- |")
    for name in ("W1", "W2", "W3", "W4", "W5"):
        for what, (foretold, taken) in held_against(name, rates, arguments.rounds).items():
            off = foretold / taken
            said = "yes" if 1 - WITHIN <= off <= 1 + WITHIN else "**no**"
            print(f"| {name} | {what} | {foretold:.2f} | {taken:.2f} | {off:.2f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
