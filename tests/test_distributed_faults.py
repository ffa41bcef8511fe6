"""What goes wrong on one of several processes, and runs that are stopped and go on with more or fewer."""

import io
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from distributed_cases import EVERY, PLAIN, QUADRATIC, Empirical, Exact, Failed, Sharing, joint, part, processes
from optim_cases import CE, data, flat, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from riemann_ng.errors import InvalidSetting, UnsupportedLayer
from riemann_ng.likelihoods import Categorical
from riemann_ng.optim import NaturalGradient
from riemann_ng.optim.distributed import load_checkpoint, save_checkpoint

SETTINGS = {"estimator": Exact(), "schedule": EVERY, **QUADRATIC}
CLOSE = {"rtol": 0.0, "atol": 1e-12}


def rows(rank, count, seed):
    return (part(t, rank, [24 // count] * count) for t in data(24, seed=seed))


# --- one process is wrong ---------------------------------------------------------------------------------------------


def poisoned(rank, where, wrapped):
    """Three steps; in the second, something of rank 1 is not a number."""
    model = mlp()
    net = DistributedDataParallel(model) if wrapped else model
    opt = NaturalGradient(net, Categorical(), **SETTINGS, **({} if wrapped else {"sharing": Sharing()}))
    found, reports = [], []
    for seed in (1, 2, 3):
        x, y = rows(rank, 2, seed)
        bad = rank == 1 and seed == 2
        if bad and where == "input":
            x = x * torch.nan
        if bad and where == "statistics":  # the gradient stays as it is
            opt._listener.estimator = None
            opt._listener._observe = spoiling(opt._listener, opt._listener._observe)

        def closure(x=x, y=y, bad=bad):
            opt.zero_grad()
            loss = CE(net(x), y)
            loss.backward()
            return loss * torch.nan if bad and where == "loss" else loss

        if bad and where == "statistics":
            opt._listener.estimator = Exact()
        if where == "loss":
            opt.step(closure)
        else:
            closure()
            opt.step()
        reports.append(opt.report.skipped)
        found.append(flat(model))
    return found, reports, opt.tally.counts, opt.steps


def spoiling(listener, observe):
    def observed(heard, divided_by):
        observe(heard, divided_by)
        for layer in heard.observation.layers.values():
            layer._inputs.data.matrices.mul_(torch.nan)
        del listener._observe

    return observed


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("input", "a gradient that is not finite on rank 1"),
        ("statistics", "statistics that are not finite on rank 1"),
        ("loss", "a loss that is not finite on rank 1"),
    ],
)
def test_a_process_with_nan_is_named_and_the_step_left_out_by_all(where, why, wrapped):
    runs = processes(poisoned, 2, where, wrapped)
    assert not isinstance(runs, Failed), runs
    for found, reports, counts, steps in runs:
        assert reports == ["", why, ""] and counts == {why: 1} and steps == 2
        assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    assert torch.equal(runs[0][0][2], runs[1][0][2])


def stumbling(rank):
    model = mlp()
    opt = NaturalGradient(model, Categorical(), estimator=Empirical(), schedule=EVERY, sharing=Sharing(), **PLAIN)
    x, y = rows(rank, 2, 1)
    if rank == 1:
        opt._listener._observe = stumble
    CE(model(x), y).backward()
    before = flat(model)
    try:
        opt.step()
    except Exception as error:
        return f"{type(error).__name__}: {error}", torch.equal(before, flat(model))


def stumble(*_):
    raise ValueError("a batch of another shape")


def test_an_error_on_one_process_is_one_on_all():
    (other, still), (own, mine) = processes(stumbling, 2)
    assert own == "ValueError: a batch of another shape" and still and mine
    assert other.startswith("RankFailed: RankFailed in NaturalGradient.step: rank 1 could not observe its batch")
    assert other.endswith("It said: ValueError: a batch of another shape")


def strangers(rank, what):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)) if rank and what == "layers" else mlp()
    opt = NaturalGradient(model.double(), Categorical(), sharing=Sharing(), **SETTINGS)
    if rank and what == "steps":
        opt.steps = 7
    if rank and what == "damping":
        opt.memory.damping = 0.5
    x, y = rows(rank, 2, 1)
    CE(model(x), y).backward()
    try:
        opt.step()
    except Exception as error:
        return str(error)


@pytest.mark.parametrize(
    ("what", "message"),
    [("layers", "has read the layers of the network otherwise"), ("steps", "is at another step"),
     ("damping", "has another damping")],
)  # fmt: skip
def test_processes_that_are_not_alike_are_told_so(what, message):
    found = processes(strangers, 2, what)
    assert found[0] == found[1] and f"rank 1 {message} than rank 0" in found[0]


def without_examples(rank):
    """The last batch has one example, and two processes: while no statistics are due, one of them makes the step."""
    model = mlp()
    settings = {**SETTINGS, "schedule": type(EVERY)(statistics=2, factorize=2, warmup=1)}
    opt = NaturalGradient(model, Categorical(), sharing=Sharing(), **settings)
    reports = []
    for n in (24, 1, 1):
        x, y = data(n)
        own = slice(0, n // 2 + n % 2) if rank == 0 else slice(n // 2 + n % 2, n)
        opt.zero_grad()
        if len(x[own]):
            CE(model(x[own]), y[own]).backward()
        opt.step()
        reports.append(opt.report.skipped)
    return flat(model), reports


def test_a_batch_with_fewer_examples_than_processes():
    runs = processes(without_examples, 2)
    assert not isinstance(runs, Failed), runs
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] == ["", "", "statistics of no forward on rank 1"]


def summing(rank, wrapped):
    """A loss that is a sum, with uneven parts."""
    model = mlp()
    net = DistributedDataParallel(model) if wrapped else model
    sharing = {} if wrapped else {"sharing": Sharing()}
    opt = NaturalGradient(net, Categorical(), divided_by=1, **{**SETTINGS, "estimator": Empirical()}, **sharing)
    for seed in (1, 2, 3):
        x, y = (part(t, rank, [5, 19]) for t in data(24, seed=seed))
        opt.zero_grad()
        CE(net(x), y, reduction="sum").backward()
        opt.step()
    return flat(model)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_loss_that_divides_by_something_else(wrapped):
    found = processes(summing, 2, wrapped)
    assert not isinstance(found, Failed), found
    alone = joint(3, [24], **{**SETTINGS, "estimator": Empirical()})[0][-1]
    assert torch.equal(*found) and torch.allclose(found[0], alone, **CLOSE)


# --- one process is lost ----------------------------------------------------------------------------------------------


def dying(rank, folder, where):
    model = mlp()
    net = DistributedDataParallel(model)
    opt = NaturalGradient(net, Categorical(), **SETTINGS)
    for seed in range(1, 4):
        x, y = rows(rank, 2, seed)
        opt.zero_grad()
        loss = CE(net(x), y)
        if rank == 1 and seed == 2 and where == "forward":
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
        if rank == 1 and seed == 3 and where == "step":  # when it would send the inverses it has made
            opt.ranks.wire.start_giving = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        if seed == 2 and where == "checkpoint":
            if rank == 1:
                opt.state_dict = lambda: os.kill(os.getpid(), signal.SIGKILL)
            save_checkpoint(f"{folder}/run", model, opt)
        opt.step()


@pytest.mark.parametrize("where", ["forward", "step", "checkpoint"])
def test_a_process_that_is_killed_ends_the_job(where, tmp_path):
    began = time.monotonic()
    found = processes(dying, 2, str(tmp_path), where, timeout=5.0, wait=60.0)
    assert isinstance(found, Failed) and found.codes == [1, -signal.SIGKILL]
    assert "Error" in found.results[0]
    assert time.monotonic() - began < 60  # far above the timeout of five seconds, far below waiting for ever
    assert not (tmp_path / "run").exists()
    model = mlp()
    opt = NaturalGradient(model, Categorical(), **SETTINGS)
    with pytest.raises(InvalidSetting, match=r"there is no checkpoint '.*run'"):
        load_checkpoint(tmp_path / "run", model, opt)
    save_checkpoint(tmp_path / "run", model, opt)  # what was left beside is in nobody's way
    load_checkpoint(tmp_path / "run", model, opt)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(InvalidSetting, match="is there already"):
        save_checkpoint(tmp_path / "run", model, opt)


# --- stopped, and gone on ---------------------------------------------------------------------------------------------


def leg(rank, count, seeds, before, after, settings):
    """A part of a run on so many processes, from one checkpoint to the next: a folder, or a file of plain states."""
    model = mlp(seed=rank)
    net = DistributedDataParallel(model) if count > 1 else model
    opt = NaturalGradient(net, Categorical(), **SETTINGS, **settings)
    if before is not None and before.endswith(".pt"):
        for thing, state in zip((model, opt), torch.load(before, weights_only=True), strict=True):
            thing.load_state_dict(state)
    elif before is not None:
        load_checkpoint(before, net, opt)
    for seed in seeds:
        x, y = rows(rank, count, seed)
        opt.zero_grad()
        CE(net(x), y).backward()
        opt.step()
    if after is not None and after.endswith(".pt"):
        if rank == 0:  # the state of any one is that of all
            torch.save([model.state_dict(), opt.state_dict()], after)
        dist.barrier()
    elif after is not None:
        save_checkpoint(after, net, opt)
    return flat(model)


@pytest.mark.parametrize("settings", [{}, {"sharing": Sharing(fraction=0.5)}], ids=["all hold", "half hold"])
@pytest.mark.parametrize("kind", ["", ".pt"], ids=["folder", "plain"])
def test_two_processes_then_four_then_one(kind, settings, tmp_path):
    first, second = str(tmp_path / f"first{kind}"), str(tmp_path / f"second{kind}")
    for count, seeds, before, after in ((2, (1, 2, 3), None, first), (4, (4, 5), first, second)):
        found = processes(leg, count, count, seeds, before, after, settings)
        assert not isinstance(found, Failed), found
        assert all(torch.equal(one, found[0]) for one in found)
    last = leg(0, 1, (6, 7), second, None, {})
    assert torch.allclose(last, joint(7, [24], **SETTINGS)[0][-1], **CLOSE)
    forgotten = leg(0, 1, (6, 7), None, None, {})  # the control: without what was saved it is another run
    assert not torch.allclose(last, forgotten, rtol=0.0, atol=1e-3)


def test_the_state_holds_tensors_numbers_and_strings(tmp_path):
    [found] = processes(leg, 1, 1, (1, 2), None, str(tmp_path / "run"), {"sharing": Sharing()})
    model = mlp(seed=5)
    opt = NaturalGradient(model, Categorical(), **SETTINGS)
    load_checkpoint(tmp_path / "run", model, opt)
    assert torch.equal(flat(model), found)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


# --- sharded parameters -----------------------------------------------------------------------------------------------


def sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = mlp()
    fully_shard(model[2], mesh=init_device_mesh("cpu", (2,)))
    try:
        NaturalGradient(model, Categorical())
    except UnsupportedLayer as error:
        return str(error)


def test_sharded_parameters_are_refused_by_name():
    said = processes(sharded, 2)
    assert "the parameter '2.weight' is sharded, a DTensor [3, 6] placed (Shard(dim=0),)" in said[0]
    assert "this process holds [2, 6] of it" in said[0] and "this process holds [1, 6] of it" in said[1]
    assert all("Replicate the model, DistributedDataParallel(model)" in text for text in said)
    NaturalGradient(mlp(), Categorical())  # whole ones are not


def hooked(rank):
    net = DistributedDataParallel(mlp())
    first = NaturalGradient(net, Categorical(), **SETTINGS)
    second = NaturalGradient(net, Categorical(), **SETTINGS)  # takes the wrapper over
    first.close()
    x, y = rows(rank, 2, 1)
    CE(net(x), y).backward()
    second.step()
    other = DistributedDataParallel(mlp())
    other.register_comm_hook(None, lambda state, bucket: bucket)
    try:
        NaturalGradient(other, Categorical())
    except InvalidSetting as error:
        return flat(net.module), str(error)


def test_one_wrapper_serves_one_optimizer_after_another():
    found = processes(hooked, 2)
    assert torch.allclose(found[0][0], joint(1, [24], **SETTINGS)[0][-1], **CLOSE)
    assert "has a communication hook of its own" in found[1][1]
