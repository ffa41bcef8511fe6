"""Random targets from a generator of one's own: the global one is never moved."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution


def uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform numbers drawn where the generator lives, brought to where `like` is; never coarser than float32."""
    dtype = at_least_single(like.dtype)
    return torch.rand(shape, generator=generator, device=generator.device, dtype=dtype).to(like.device)


def normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    dtype = at_least_single(like.dtype)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype).to(like.device)


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Half precision has too few numbers between 0 and 1 to draw from."""
    return torch.promote_types(dtype, torch.float32)


def draw_from(distribution: Distribution, draws: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`distribution.sample((draws,))` with its randomness taken from `generator`.

    The samplers of torch.distributions know only the global generator: it is seeded from `generator` for the
    duration of the call and put back, so not for two threads at once.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        return distribution.sample(torch.Size((draws,)))
