"""Who is told of steps, and what they say."""

import importlib
import io
import sys
import types

import pytest
import torch
from optim_cases import CE, data, flat, mlp, run, step
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import MissingDependency
from riemann_ng.likelihoods import Categorical
from riemann_ng.optim import NaturalGradient, Progress, QuadraticModel, StepListener, StepReport, TensorBoard
from riemann_ng.optim.conditions import worst_conditioned


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Keeping(StepListener):
    def __init__(self, conditions):
        self.conditions, self.reports = conditions, []

    def __call__(self, report):
        self.reports.append(report)


def test_every_step_is_told_and_conditions_only_where_asked(monkeypatch):
    model, opt = mlp(), None
    opt = NaturalGradient(model, Categorical())
    plain, curious, told = Keeping(False), Keeping(True), []
    opt.listeners += [plain, told.append]
    x, y = data()
    with monkeypatch.context() as patched:
        patched.setattr("riemann_ng.optim.natural_gradient.worst_conditioned", None)
        for _ in range(3):
            step(model, opt, x, y)
    opt.zero_grad()
    opt.step()
    assert [r.step for r in told] == [1, 2, 3, 3] and told[-1].skipped == "no gradient" and plain.reports == told
    assert all(r.condition is None for r in told)
    opt.listeners.append(curious)
    for _ in range(9):
        step(model, opt, x, y)
    seen = [r for r in curious.reports if r.condition is not None]
    assert [r.step for r in seen] == [r.step for r in curious.reports if r.factorized] == [11]
    assert seen[0].worst in ("0", "2") and seen[0].condition > 1


def test_listeners_do_not_change_the_run():
    model, opt = mlp(), None
    opt = NaturalGradient(model, Categorical())
    opt.listeners.append(Keeping(True))
    for x, y in [data(seed=s) for s in range(1, 7)]:
        step(model, opt, x, y)
    assert torch.equal(flat(model), flat(run(6)[0]))


def test_condition_numbers():
    V, W = rng.Space("V", 2), rng.Space("W", 3)
    g = rng.Gram(V, torch.diag(torch.tensor([1.0, 100.0])))
    h = rng.Diagonal(W, torch.tensor([1.0, 2.0, 5.0]))
    assert worst_conditioned(rng.direct_sum({"a": g, "b": h})) == ("a", pytest.approx(100))
    path, number = worst_conditioned(rng.direct_sum({"a": g, "b": g * h}))
    assert path == "b" and number == pytest.approx(500)
    assert worst_conditioned(rng.Gram(V, torch.zeros(2, 2)))[1] == float("inf")


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere():
    model = mlp()
    opt = NaturalGradient(model, Categorical())
    terminal, pipe = Terminal(), io.StringIO()
    shown, silent = Progress(every=0, conditions=True, file=terminal), Progress(file=pipe)
    opt.listeners += [shown, silent]
    x, y = data()
    for _ in range(6):
        shown.loss = step(model, opt, x, y)
    opt.zero_grad()
    opt.step()
    said = terminal.getvalue()
    assert pipe.getvalue() == "" and "\n" not in said
    lines = [line.rstrip() for line in said.split("\r")[1:]]
    assert len(lines) == 7 and lines[1].startswith("loss 1.") and "step 2, λ=" in lines[1] and "worst" in lines[1]
    assert "predicted -" in lines[4] and "actual -" in lines[4] and "skipped: no gradient" in lines[6]
    widths = [len(part) for part in said.split("\r")[1:]]
    assert all(later >= len(line) for line, later in zip(lines, widths[1:], strict=False))
    rare = Progress(every=1000, file=Terminal())
    rare(StepReport(1, 1.0))
    rare(StepReport(2, 1.0))
    assert rare.file.getvalue().count("\r") <= 1


class Writer:
    def __init__(self, directory):
        self.directory, self.scalars, self.texts, self.closed = directory, {}, [], False

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name, []).append((step, value))

    def add_text(self, name, text, step):
        self.texts.append(text)

    def close(self):
        self.closed = True


def test_tensorboard_gets_what_there_is(monkeypatch):
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    board = TensorBoard("runs/first")
    model = mlp()
    opt = NaturalGradient(model, Categorical(), step_size=QuadraticModel())
    opt.listeners.append(board)
    x, y = data()

    def closure():
        opt.zero_grad()
        loss = CE(model(x), y)
        loss.backward()
        return loss

    losses = [float(opt.step(closure).detach()) for _ in range(5)]
    opt.zero_grad()
    opt.step()
    scalars = board.writer.scalars
    assert board.writer.directory == "runs/first" and scalars["loss"] == list(enumerate(losses, start=1))
    assert len(scalars["damping"]) == 6 and len(scalars["step/alpha"]) == len(scalars["change/predicted"]) == 5
    assert [step for step, _ in scalars["change/actual"]] == [5] and len(scalars["condition"]) == 3
    assert "skipped: no gradient" in board.writer.texts[-1] and "worst-conditioned" in board.writer.texts[0]
    board.close()
    assert board.writer.closed


def test_tensorboard_that_is_missing_says_so(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'tensorboard'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependency, match="Install it: pip install tensorboard"):
        TensorBoard("runs")


def test_reports_say_what_happened():
    text = str(StepReport(3, 1e-2, 0.5, 0.1, -0.2, -0.1, loss=1.25, worst="0", condition=1e4, trouble=("trouble",)))
    assert (
        text == "step 3, loss 1.25, λ=1.00e-02, α=0.5, μ=0.1, predicted -0.2, actual -0.1, worst '0' 1.0e+04, trouble"
    )
    model, opt = run(2)
    assert str(opt.report).startswith("step 2, λ=1.00e+00, α=") and isinstance(model, nn.Module)
    assert str(opt.tally) == "nothing" and opt.tally["no gradient"] == 0
