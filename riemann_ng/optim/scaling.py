"""From the loop's own loss to the mean loss over examples: what it was divided by, and by what it was multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.amp import GradScaler

from ..errors import InvalidSetting

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient


@dataclass(frozen=True)
class Units:
    """`gradient` multiplies `.grad` (None: nothing to do), `score` what arrived at the outputs.

    `divided_by` is what the loss as it was sent back divides the sum over examples by.
    """

    gradient: float | Tensor | None = None
    score: float = 1.0
    divided_by: float = 1.0
    overflow: bool = False


def units_of(opt: NaturalGradient, examples: int, divided_by: float | None) -> Units:
    """The units of a step of so many examples.

    torch's gradient scaler leaves its findings on the optimizer while it calls `step`: `found_inf`, and `grad_scale`,
    which is None where the loop has called `unscale_` before. Then `.grad` is in true units, and what was heard in the
    backward pass is not.
    """
    share = 1.0 if divided_by is None or not examples else divided_by / examples
    divided = float(examples if divided_by is None else divided_by)
    found, scale = opt.__dict__.get("found_inf"), opt.__dict__.get("grad_scale")
    if found is None and not scaling(opt.scaler):
        return Units(None if share == 1.0 else share, share, divided)
    if found is not None and bool(found):
        return Units(overflow=True)
    if scale is not None:
        sent = float(scale)
        return Units(share / scale, share / sent, divided / sent)
    if not scaling(opt.scaler):
        if not (opt.policy.adapts_every or opt._listener.empirical):
            return Units(None if share == 1.0 else share, share, divided)
        raise InvalidSetting(
            "InvalidSetting in NaturalGradient.step: the loop has called scaler.unscale_, and what came through the "
            "backward pass is still multiplied by the scale, which is not known here. Set opt.scaler = scaler once."
        )
    assert opt.scaler is not None
    sent = float(opt.scaler.get_scale())
    return Units(None if share == 1.0 else share, share / sent, divided / sent)


def scaling(scaler: GradScaler | None) -> bool:
    return scaler is not None and scaler.is_enabled()
