"""The TensorBoard listener writes what TensorBoard reads."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import cross_entropy

from riemann_ng.likelihoods import Categorical
from riemann_ng.optim import NaturalGradient, TensorBoard


def test_what_is_written_is_read(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    opt = NaturalGradient(model, Categorical())
    board = TensorBoard(str(tmp_path))
    opt.listeners.append(board)
    x, y = torch.randn(64, 4), torch.arange(64) % 3
    for _ in range(5):
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        board.loss = loss.item()
        opt.step()
    board.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss", "damping", "step/alpha", "change/predicted", "change/actual", "condition"} <= set(
        read.Tags()["scalars"]
    )
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4, 5]
