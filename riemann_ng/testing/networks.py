"""Hypothesis strategies for networks: every supported layer in a small net, with batches, likelihoods and twins.

    @given(network_cases())
    def test_something(case): ...   # case.network(), case.x, case.y, case.likelihood

    @given(twin_cases(group="affine"))
    def test_something(case): ...   # case.network, case.x, case.y, case.frames, case.twin

Whatever is drawn shrinks to the simplest kind, the narrowest layer, the smallest batch and the first group, and prints
as code that makes it again. Shapes and choices are Hypothesis's; numbers come from a seed, as in `strategies`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..likelihoods import Likelihood
from ..networks import Network
from ..reparametrize import Frames
from .network_cases import EVERYWHERE, LIKELIHOODS, NetworkCase, TwinCase, likelihood_for, network_case, twin_case
from .strategies import made

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def network_cases(
    kinds: Iterable[str] | None = None, likelihood: Likelihood | None = None
) -> SearchStrategy[NetworkCase]:
    """Networks with a batch: of every kind of `ARCHITECTURES`, or of those named; with any likelihood, or this one."""
    names = None if kinds is None else list(kinds)
    return made(lambda draw: network_case(draw, names, likelihood))


def networks(kinds: Iterable[str] | None = None, likelihood: Likelihood | None = None) -> SearchStrategy[Network]:
    """The networks alone, read and verified."""
    return network_cases(kinds, likelihood).map(NetworkCase.network)


def likelihoods(outputs: int = 3) -> SearchStrategy[Likelihood]:
    """Likelihoods for outputs with so many numbers along the last axis."""
    return made(lambda draw: likelihood_for(draw.integer(0, len(LIKELIHOODS) - 1), outputs))


def batches(case: NetworkCase, low: int = 1, high: int = 8) -> SearchStrategy[tuple[Tensor, Tensor]]:
    """Other batches for a network, of `low` to `high` examples, with targets that its likelihood can have produced."""
    return made(lambda draw: case.batch(draw.integer(low, high), draw.integer(2, 999)))


def twin_cases(
    kinds: Iterable[str] | None = None,
    on: Collection[str] = EVERYWHERE,
    group: str | Sequence[str] | None = None,
    likelihood: Likelihood | None = None,
) -> SearchStrategy[TwinCase]:
    """Networks with frames: of a group, of one of several, or of any that the network admits on these spaces."""
    names = None if kinds is None else list(kinds)
    drawn = made(lambda draw: twin_case(draw, names, on, group, likelihood))
    return drawn.filter(lambda case: case is not None).map(present)


def network_frames(
    network: Network, x: Tensor, on: Collection[str] = EVERYWHERE, group: str = "affine"
) -> SearchStrategy[Frames]:
    """Frames of a group on a network of your own, well conditioned."""
    return made(lambda draw: Frames.draw(network, x, on, group, draw.integer(0, 999)))


def present(case: TwinCase | None) -> TwinCase:
    assert case is not None
    return case
