"""Three tasks, one after the other: handwritten digits, each time with their pixels in another order.

python examples/continual_learning.py

One network with one output for each class hears of a task while it lasts, and never again. When a task is over, the
true labels' outputs at a few of its images are remembered, and steps that would change them are not made: OGD projects
gradients in the coordinates, the projected natural gradient projects in its metric. Said of each method are the average
accuracy on all tasks at the end, and how much of an earlier task's accuracy is gone by then.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from riemann_ng.experiments.digits import digits
from riemann_ng.likelihoods import Categorical
from riemann_ng.optim import OGD, Consolidation, Constant, ProjectedNaturalGradient

EPOCHS, STORED = 5, 100


def tasks():
    """Images and labels for training and for testing."""
    data = digits(dtype=torch.float32)
    for seed in range(3):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        yield data.flat[:, order], data.labels, data.test_flat[:, order], data.test_labels


def accuracy(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def run(make):
    """Average accuracy at the end, and the mean loss of it on earlier tasks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    opt, penalty, remember = make(model)
    generator, after, parts = torch.Generator().manual_seed(0), [], list(tasks())
    for x, y, x_test, y_test in parts:
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(x), generator=generator).split(64):
                opt.zero_grad()
                (cross_entropy(model(x[batch]), y[batch]) + penalty()).backward()
                opt.step()
        after.append(accuracy(model, x_test, y_test))
        remember(x[:STORED], y[:STORED])
    end = [accuracy(model, x_test, y_test) for _, _, x_test, y_test in parts]
    return sum(end) / 3, sum(a - b for a, b in zip(after[:2], end[:2], strict=True)) / 2


def nothing(*_):
    return 0.0


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.3), nothing, nothing


def ewc(model):
    hold = Consolidation(model, Categorical(), strength=1.0)
    return torch.optim.SGD(model.parameters(), lr=0.3), hold.penalty, lambda x, y: hold.remember(x)


def ogd(model):
    opt = OGD(model, Categorical(), lr=0.3)
    return opt, nothing, opt.remember


def projected(model):
    opt = ProjectedNaturalGradient(model, Categorical(), lr=0.05, momentum=0.0, damping=0.1, step_size=Constant())
    return opt, nothing, opt.remember


def main():
    found = {}
    for name, make in (("SGD", sgd), ("EWC", ewc), ("OGD", ogd), ("projected natural gradient", projected)):
        found[name] = run(make)
        average, forgotten = found[name]
        print(f"{name:27} average accuracy {100 * average:5.1f} %, forgotten {100 * forgotten:5.1f} points")
    return found


if __name__ == "__main__":
    found = main()
    averages, forgotten = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
    assert averages["projected natural gradient"] > averages["OGD"] + 0.05
    assert averages["OGD"] > averages["SGD"] + 0.1
    assert forgotten["projected natural gradient"] < forgotten["OGD"] < forgotten["SGD"]
