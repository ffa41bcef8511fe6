"""`riemann-ng inspect`: what a model is to the library, and what a step of it will cost."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ..errors import RiemannError
from ..likelihoods import Categorical, Likelihood
from ..networks import Network
from ..networks.coverage import in_bytes
from ..optim import Schedule
from ..optim.distributed import Sharing
from ..testing.invariance import command as invariance
from .command import CommandError, check_file, positive, whole
from .harness import device_name
from .plan import Plan, Wire, check_ranks, made
from .rates import Rates, at, measured
from .recorded import recorded
from .shapes import SHAPES, Layer, layers_of, shape_named
from .workloads import WORKLOADS, Workload, workload

EPILOG = """\
MODEL is package.module:function, without arguments: it returns a module, or (module, x, y), or (module, x, y,
likelihood). --plan needs a batch.

  riemann-ng inspect mine:problem
  riemann-ng inspect --workload W1 --plan --json plan.json
  riemann-ng inspect --shapes 7B --plan --ranks 64,256,1024 --bandwidth 25 --latency 10 --teraflops 200
  riemann-ng inspect --workload W3 --plan --ranks 4 --fraction 0.5 --rates rates.json

Rates of this machine are measured at the start, or read from --rates; --save-rates keeps them. Without a measured
machine, --teraflops and --memory-bandwidth say what is hoped for."""


def add_arguments(parser: ArgumentParser) -> None:
    """What may follow `riemann-ng inspect`."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="package.module:function")
    add("--workload", metavar="W1", help=f"one of {', '.join(WORKLOADS)} in place of a model")
    add("--shapes", metavar="NAME", help=f"sizes alone: {', '.join(SHAPES)}")
    add("--plan", action="store_true", help="foretell time and memory of a step")
    add("--ranks", default="1", metavar="R,...", help="processes, each with a batch of its own (1)")
    add("--bandwidth", default="25", metavar="GB/s", help="between two ranks (25)")
    add("--latency", default="10", metavar="US", help="of a message, in microseconds (10)")
    add("--fraction", default="1", metavar="F", help="of the ranks that hold the inverses of one layer (1)")
    add("--batch", default="1", metavar="N", help="examples of a rank, of --shapes (1)")
    add("--statistics", default="1", metavar="N", help="every so many steps (1)")
    add("--factorize", default="10", metavar="N", help="every so many steps (10)")
    add("--estimator", choices=("empirical", "sampled"), default="empirical", help="where statistics come from")
    add("--rates", type=Path, metavar="FILE", help="rates of a machine, in place of measured ones")
    add("--save-rates", type=Path, metavar="FILE", help="keep what was measured")
    add("--teraflops", metavar="T", help="of products, in place of measured rates; factorizations at a tenth of it")
    add("--memory-bandwidth", default="2000", metavar="GB/s", help="with --teraflops (2000)")
    add("--clock", choices=("wall", "cpu"), default="wall")
    add("--json", type=Path, metavar="FILE", help="write the plan there")


def run(given: Namespace) -> int:
    """The exit status: 0, or 2 where the command makes no sense."""
    try:
        return inspected(given)
    except RiemannError as error:
        print(f"riemann-ng inspect: error: {error}", file=sys.stderr)
        return 2


def inspected(given: Namespace) -> int:
    subjects = [x for x in (given.model, given.workload, given.shapes) if x is not None]
    if len(subjects) != 1:
        raise CommandError("name one model: MODEL, or --workload, or --shapes.")
    ranks = [check_ranks(whole("--ranks", r)) for r in given.ranks.split(",")]
    wires = [
        Wire(r, 1e9 * positive("--bandwidth", given.bandwidth), 1e-6 * positive("--latency", given.latency))
        for r in ranks
    ]
    schedule = Schedule(whole("--statistics", given.statistics), whole("--factorize", given.factorize))
    sharing, batch = Sharing(fraction(given.fraction)), whole("--batch", given.batch)
    for option, path in (("--json", given.json), ("--save-rates", given.save_rates)):
        check_file(option, path)
    if given.rates is not None and given.teraflops is not None:
        raise CommandError("--rates and --teraflops: a machine has one set of rates.")
    hoped = None if given.teraflops is None else hoped_for(given)
    rates = Rates.load(given.rates) if given.rates is not None else hoped
    if given.shapes is not None:
        paper = shape_named(given.shapes)
        layers, work = paper.layers(), None
        print(sizes(layers))
    else:
        work, network = subject(given)
        print(network.coverage())
        if not given.plan:
            return 0
        if work is None:
            raise CommandError(f"--plan needs a batch: {given.model} must return (module, x, y).")
        layers, batch = layers_of(network, work.x), len(work.x)
    if not given.plan:
        return 0
    if rates is None:
        rates = measured(device_name("cpu"), process_time if given.clock == "cpu" else perf_counter)
        if given.save_rates is not None:
            rates.save(given.save_rates)
    if work is not None:
        seen, _ = recorded(work)
        passes = seen.seconds(rates)
    else:
        passes = paper.passes(batch) / at(rates.gemm, paper.width)
    plans = [
        made(layers, batch, passes, rates, schedule, given.estimator == "sampled", wire, sharing) for wire in wires
    ]
    print("\n" + table(plans, rates))
    if given.json is not None:
        found = {"schema": 1, "device": rates.device, "plans": [plan.as_json() for plan in plans]}
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def fraction(given: str) -> float:
    number = positive("--fraction", given)
    if number > 1:
        raise CommandError(f"--fraction {given}: expected a part of the ranks, at most 1.")
    return number


def hoped_for(given: Namespace) -> Rates:
    rate = 1e12 * positive("--teraflops", given.teraflops)
    memory = 1e9 * positive("--memory-bandwidth", given.memory_bandwidth)
    return Rates(
        f"on paper, {given.teraflops} teraflops", 1, {1: rate}, {1: rate}, {1: rate / 10}, {1: rate / 10}, {1: rate},
        {1: memory}, memory / 8, 0.0, 0.0, 0.0,
    )  # fmt: skip


def subject(given: Namespace) -> tuple[Workload | None, Network]:
    if given.workload is not None:
        work = workload(given.workload)
        return work, Network.from_torch(work.module, work.likelihood, work.x)
    factory = invariance.named(given.model, "the model")
    made_of: Any = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    if isinstance(made_of, nn.Module):
        return None, Network.from_torch(made_of, Categorical())
    if not isinstance(made_of, tuple) or len(made_of) not in (3, 4) or not isinstance(made_of[0], nn.Module):
        raise CommandError(
            f"the model {given.model!r} must return a module, (module, x, y) or (module, x, y, likelihood), got "
            f"{type(made_of).__name__}."
        )
    module, x, y = made_of[:3]
    likelihood: Likelihood = made_of[3] if len(made_of) == 4 else Categorical()
    network = Network.from_torch(module, likelihood, x)

    def loss(z: torch.Tensor) -> torch.Tensor:
        if isinstance(likelihood, Categorical):
            return cross_entropy(z.flatten(0, -2), y.flatten())
        return z.square().mean()  # of the cost of a pass, what the loss is makes no difference

    return Workload(given.model, module, likelihood, x, y, loss), network


def sizes(layers: Sequence[Layer]) -> str:
    head = ("layer", "uses", "out", "into", "parameters", "factors")
    lines = [head] + [
        (
            x.path, str(x.uses), f"{x.out:,}" + (" diagonal" if x.diagonal_outputs else ""),
            f"{x.into:,}" + (" diagonal" if x.diagonal_inputs else ""), f"{x.parameters:,}", in_bytes(4 * x.entries),
        )
        for x in layers
    ]  # fmt: skip
    lines.append(
        ("", "", "", "", f"{sum(x.parameters for x in layers):,}", in_bytes(4 * sum(x.entries for x in layers)))
    )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def table(plans: Sequence[Plan], rates: Rates) -> str:
    """A column for each number of ranks."""
    rows: list[tuple[str, list[str]]] = [("ranks", [str(p.ranks) for p in plans])]
    for name in ("passes", "statistics", "factorization", "application", "step"):
        rows.append((f"{name}, ms", [f"{1e3 * getattr(p, name):.3g}" for p in plans]))
    rows.append(("step over a plain pass", [f"{p.step / p.passes:.2f}" for p in plans]))
    bare = [p.passes + p.waiting["gradients"] for p in plans]
    rows.append(
        ("step over a plain step of these ranks", [f"{p.step / b:.2f}" for p, b in zip(plans, bare, strict=True)])
    )
    for name in plans[0].sent:
        if any(p.ranks > 1 for p in plans):
            rows.append((f"{name}, to the wire", [in_bytes(int(p.sent[name])) for p in plans]))
            rows.append((f"{name}, waiting, ms", [f"{1e3 * p.waiting[name]:.3g}" for p in plans]))
    rows.append(("busiest rank's factorizations over the mean", [f"{p.busiest:.2f}" for p in plans]))
    for name in plans[0].memory:
        rows.append((name, [in_bytes(int(p.memory[name])) for p in plans]))
    rows.append(("memory of a rank", [in_bytes(int(p.bytes)) for p in plans]))
    width = max(len(name) for name, _ in rows)
    columns = [max(len(cells[i]) for _, cells in rows) for i in range(len(plans))]
    lines = [f"Foretold from the rates of: {rates.device}, {rates.threads} thread(s)."]
    for name, cells in rows:
        lines.append(name.ljust(width) + "  " + "  ".join(c.rjust(w) for c, w in zip(cells, columns, strict=True)))
    return "\n".join(lines)
