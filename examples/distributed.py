"""One optimizer on several processes, held against one process with the joint batch.

python examples/distributed.py
torchrun --nproc-per-node 2 examples/distributed.py
"""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Exact
from riemann_ng.optim import NaturalGradient, QuadraticModel, Sharing

STEPS, EXAMPLES = 20, 96


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)).double()


def rings(seed):
    """Points, and whether they are in one of two rings."""
    x = torch.randn(EXAMPLES, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x.norm(dim=1) * 2).long() % 2


def train(model, likelihood=Categorical(), rows=slice(None), **settings):
    """Steps on some rows of every batch; the optimizer."""
    opt = NaturalGradient(model, likelihood, estimator=Exact(), step_size=QuadraticModel(every=2), **settings)
    for seed in range(STEPS):
        x, y = (t[rows] for t in rings(seed))
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    return opt


def main():
    rank, count = dist.get_rank(), dist.get_world_size()
    uneven = [EXAMPLES * (i * (i + 1)) // (count * (count + 1)) for i in range(count + 1)]  # shares 1 : 2 : 3 ...
    model = make()
    opt = train(DistributedDataParallel(model), rows=slice(uneven[rank], uneven[rank + 1]), sharing=Sharing())

    alone = make()
    train(alone)
    off = max(float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), alone.parameters(), strict=True))
    assert off < 1e-9, off
    planned = opt.ranks.plan.bytes(rank, STEPS, opt.schedule)
    assert all(opt.ranks.sent.get(what, 0) == size for what, size in planned.items())
    if rank == 0:
        print(f"{count} processes and one differ by {off:.0e} after {STEPS} steps; sent by each: {planned}")


if __name__ == "__main__":
    if "RANK" in os.environ:  # under torchrun
        dist.init_process_group("gloo")
        main()
    else:
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
            main()
    dist.destroy_process_group()
