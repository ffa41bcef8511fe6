"""What every typed layer is checked against: the same layer restated with torch's own functions, and torch.func."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemann_ng import AffineSpace, DirectSum, OneHot, Vector
from riemann_ng.layers import Compose, EvaluationLayer, Layer, ParametricLayer, Recurrent
from riemann_ng.layers.composition import Composite

Parameters = dict[str, dict[str, Tensor]]


@dataclass
class Case:
    """A layer, activations for it, and the restatement: a function of activations and torch's own parameters."""

    layer: Layer
    x: Tensor
    restated: Callable[[Tensor, Parameters], Tensor]


def space(name: str, dim: int) -> AffineSpace:
    return AffineSpace(name, dim)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def channels_first(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function on (examples, channels, *sites), as one on fields."""
    return lambda x, *args, **kwargs: f(x.movedim(-1, 1).contiguous(), *args, **kwargs).movedim(1, -1)


def leaves(layer: Layer) -> dict[str, ParametricLayer]:
    if isinstance(layer, ParametricLayer):
        return {"": layer}
    if isinstance(layer, Recurrent):
        return leaves(layer.cell)
    if isinstance(layer, Composite):
        found = [(f"{n}.{p}".strip("."), leaf) for n, part in layer.parts.items() for p, leaf in leaves(part).items()]
        return dict(found)
    return {}


def torch_parameters(layer: Layer, blocks: dict[str, Tensor]) -> Parameters:
    return {path: leaf.as_parameters(blocks[path]) for path, leaf in leaves(layer).items()}


def blocks_of(layer: Layer, element) -> dict[str, Tensor]:
    return element.blocks if isinstance(layer.tangent_space, DirectSum) else {"": element.data}


def a_tangent(layer: Layer, seed: int) -> Vector | None:
    V = layer.tangent_space
    return None if V is None else Vector(V, randn(seed, *V.shape))


def close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    assert actual.shape == expected.shape, f"{what}: {actual.shape} instead of {expected.shape}"
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def check(case: Case, seed: int = 0) -> None:
    """All the laws of a layer at one point, in one random direction."""
    layer, x = case.layer, case.x
    parameters = torch_parameters(layer, layer.parameters)
    y = layer.forward(x)
    close(y, case.restated(x, parameters), "forward")

    dw, dy = a_tangent(layer, seed + 1), randn(seed + 2, *y.shape)
    tangent_blocks = {} if dw is None else blocks_of(layer, dw)
    directions = torch_parameters(layer, tangent_blocks)
    dx = randn(seed + 3, *layer.tangent_shape(x))
    pushed = layer.pushforward(x, dx, dw)
    pulled, covector = layer.pullback(x, dy)
    if x.is_floating_point():
        push_oracle = torch.func.jvp(case.restated, (x, parameters), (dx, directions))[1]
        _, pull = torch.func.vjp(case.restated, x, parameters)
        dx_oracle, gradients = pull(dy)
        close(pulled, dx_oracle, "pullback to the activations")
    else:
        push_oracle = torch.func.jvp(lambda p: case.restated(x, p), (parameters,), (directions,))[1]
        gradients = torch.func.vjp(lambda p: case.restated(x, p), parameters)[1](dy)[0]
    close(pushed, push_oracle, "pushforward")

    pairing = (dy * pushed).sum()
    if covector is None:
        assert dw is None and not layer.samples(x, dy)
        close((pulled * dx).sum(), pairing, "adjointness")
        return
    assert dw is not None
    close((pulled * dx).sum() + covector(dw), pairing, "adjointness")
    for path, gradient in torch_parameters(layer, blocks_of(layer, covector)).items():
        for name, tensor in gradient.items():
            close(tensor, gradients[path][name], f"covector at {path!r}, {name}")
    close(layer.moved(dw, 0.5).forward(x), case.restated(x, _moved(parameters, directions, 0.5)), "moved")
    close(layer.forward(x), y, "forward after moved")
    check_samples(layer, x, dy, dw)


def check_samples(layer: Layer, x: Tensor, dy: Tensor, dw: Vector) -> None:
    """J v = Σ dW·input, paired with cotangents for any layer and site by site for one evaluation."""
    samples, blocks = layer.samples(x, dy), blocks_of(layer, dw)
    assert set(samples) == set(layer.parameter_spaces)
    total = torch.zeros((), dtype=torch.float64)
    for path, (inputs, cotangents) in samples.items():
        assert inputs.counts == cotangents.counts and inputs.counts[:2] == (len(x), 1)
        assert cotangents.space.dual * inputs.space.dual == layer.parameter_spaces[path]
        values = values_of(blocks[path], inputs.dense(), inputs.space.shape)
        total = total + (values * cotangents.dense().reshape(values.shape)).sum()
    close(total, (dy * layer.pushforward(x, None, dw)).sum(), "samples against the pushforward")
    if isinstance(layer, EvaluationLayer):
        values = values_of(dw.data, layer.inputs(x).flatten(3), layer.input_space.shape)
        close(values.reshape(dy.shape), layer.pushforward(x, None, dw), "J v = V a")
    if isinstance(layer, ParametricLayer):
        inputs = layer.inputs(x)
        dense = torch.nn.functional.one_hot(inputs.indices, layer.tokens.dim) if isinstance(inputs, OneHot) else inputs
        assert tuple(dense.shape) == (*samples[""][0].counts, *layer.input_space.shape)
        close(layer.cotangents(dy).flatten(3), samples[""][1].dense(), "cotangents")


def values_of(data: Tensor, inputs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """dW·input by loops over the members of a family: (examples, 1, sites, dim S)."""
    inputs = inputs.reshape(*inputs.shape[:3], *shape)
    if data.ndim == 2:
        return inputs @ data.mT
    return torch.cat([inputs[..., m, :] @ data[m].mT for m in range(len(data))], dim=-1)


def _moved(parameters: Parameters, directions: Parameters, step: float) -> Parameters:
    return {p: {n: t + step * directions[p][n] for n, t in of.items()} for p, of in parameters.items()}


def chain(*layers: Layer) -> Compose:
    return Compose(list(layers))
