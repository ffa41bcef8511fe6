"""The spectrum of one inner product relative to another: the only eigenvalues that do not depend on coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DegenerateMetric, SpaceMismatch
from ..factorizations import RankDeficient
from ..inner_products import InnerProduct


def spectrum(g: InnerProduct, relative_to: InnerProduct, like: Tensor | None = None) -> Tensor:
    """The numbers λ with g = λ h along some direction, from the least to the largest, each as often as it comes.

    h, `relative_to`, is definite; g may be degenerate, and zeros tell its kernel. Of direct sums it is found summand by
    summand, of products by their factors. Seen in any other frame, by moved forms, the spectrum is the same.
    """
    for name, form in (("the form", g), ("relative_to", relative_to)):
        if not isinstance(form, InnerProduct):
            raise SpaceMismatch(
                f"SpaceMismatch in spectrum: {name} is {form!r}, expected an inner product. Of a metric take its "
                f"value, metric.at(observation)."
            )
    if g.space != relative_to.space:
        raise SpaceMismatch(
            f"SpaceMismatch in spectrum: {g!r} relative to {relative_to!r}: they live on different spaces."
        )
    parts, references = g.summands(), relative_to.summands()
    if parts is not None and references is not None:
        probe = torch.empty(0, **(g if g.dtype is not None else relative_to)._options(like))
        return torch.cat([spectrum(part, references[name], probe) for name, part in parts.items()]).sort().values
    try:
        return g.pencil_with(relative_to, like).spectrum.flatten().sort().values
    except RankDeficient as short:
        raise DegenerateMetric(
            f"DegenerateMetric in spectrum: relative_to={relative_to!r} has rank {relative_to.rank(like)} of "
            f"{g.space.dim}, and what is to be measured by must be definite. Damp it by a named h, form + λ * h.",
            g.space,
            relative_to.rank(like),
        ) from short
