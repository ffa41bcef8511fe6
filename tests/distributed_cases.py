"""What processes do in the tests of distributed training, and how they are started.

They are forked from a server that has imported everything once. Whatever a process returns comes back; one that fails,
or is killed, is seen by its exit code.
"""

import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver

import torch
import torch.distributed as dist
from optim_cases import CE, data, flat, mlp
from torch.nn.parallel import DistributedDataParallel

from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Empirical, Exact
from riemann_ng.optim import Constant, LevenbergMarquardt, NaturalGradient, QuadraticModel, Schedule, Sharing

SERVER = multiprocessing.get_context("forkserver")
EVERY = Schedule(statistics=1, factorize=2, warmup=1)
QUADRATIC = {"step_size": QuadraticModel(every=2), "damping": LevenbergMarquardt(every=2), "lr": 0.7}
PLAIN = {"damping": 1e-2, "step_size": Constant(), "lr": 0.1}


def start_server():
    """Has everything imported once. What a server imports it finds by the environment, and not by our `sys.path`."""
    SERVER.set_forkserver_preload(["distributed_warm"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(__file__), before]))
    forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


def processes(work, count, *arguments, timeout=20.0, wait=120.0):
    """What `work(rank, *arguments)` returns in each of so many processes; `Failed` where one came to no good end."""
    start_server()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [SERVER.Process(target=begin, args=(work, r, count, folder, timeout, arguments)) for r in range(count)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(wait)
        hung = [job for job in jobs if job.is_alive()]
        for job in hung:
            job.kill()
            job.join()
        assert not hung, "a process hangs"
        codes = [job.exitcode for job in jobs]
        paths = [f"{folder}/{rank}.pt" for rank in range(count)]
        results = [torch.load(path, weights_only=False) if os.path.exists(path) else None for path in paths]
    return Failed(codes, results) if any(codes) else results


@dataclass
class Failed:
    """Exit codes, and what each process returned, or the text of what it raised, if it came to that."""

    codes: list
    results: list


def begin(work, rank, count, folder, timeout, arguments):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", meeting, timedelta(seconds=timeout), count, rank)
    try:
        result = work(rank, *arguments)
    except BaseException as error:
        torch.save(f"{type(error).__name__}: {error}", f"{folder}/{rank}.pt")
        os._exit(1)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def part(x, rank, sizes):
    """One process's rows."""
    start = sum(sizes[:rank])
    return x[start : start + sizes[rank]]


@dataclass
class Run:
    """What came of a training run on one process: parameters after each step, bytes sent and planned."""

    path: torch.Tensor
    sent: dict
    planned: dict
    tally: str
    said: str
    jobs: tuple = ()


def joint(steps, sizes, model=None, **settings):
    """The parameters after each step of one process with the joint batches, and the optimizer."""
    model = mlp() if model is None else model()
    opt = NaturalGradient(model, Categorical(), **settings)
    found = []
    for seed in range(1, steps + 1):
        x, y = data(sum(sizes), seed=seed)
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()
        found.append(flat(model))
    return torch.stack(found), opt


def train(rank, steps, sizes, settings, wrapped=True, model=None):
    """The same by one of several processes with its rows: as `Run`."""
    model = mlp(seed=rank if wrapped else 0) if model is None else model()
    net = DistributedDataParallel(model) if wrapped else model
    opt = NaturalGradient(net, Categorical(), **settings)
    found = []
    for seed in range(1, steps + 1):
        x, y = (part(t, rank, sizes) for t in data(sum(sizes), seed=seed))
        opt.zero_grad()
        if len(x):
            CE(net(x), y).backward()
        opt.step()
        found.append(flat(model))
    plan = opt.ranks.plan
    jobs = (opt.ranks.foretold == plan.assignment, plan.assignment.owner)
    planned = plan.bytes(rank, steps, opt.schedule)
    return Run(torch.stack(found), opt.ranks.sent, planned, str(opt.tally), repr(opt), jobs)


__all__ = ["EVERY", "PLAIN", "QUADRATIC", "Empirical", "Exact", "Failed", "Sharing", "joint", "processes", "train"]
