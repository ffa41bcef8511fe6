"""How several processes share the work of one optimizer: a setting, and what it needs to be possible."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, get_args

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import InvalidSetting, UnsupportedLayer
from ...networks.structure import plain_module

Factorize = Literal["shared", "everywhere"]


@dataclass(frozen=True)
class Sharing:
    """One optimizer on several processes: `NaturalGradient(model, ..., sharing=Sharing())`.

    `fraction` is the part of the processes that hold the inverses of one layer. At 1, all do: inverses are sent around
    when they are made, and steps need no more. Below, those who hold them send the natural gradient of that layer at
    every step: less memory, more communication. `factorize="everywhere"` has every process make all factorizations,
    and sends none of it. `bucket` is how many bytes of statistics travel together.
    """

    fraction: float = 1.0
    factorize: Factorize = "shared"
    bucket: int = 25 * 2**20

    def __post_init__(self) -> None:
        number = isinstance(self.fraction, (int, float)) and not isinstance(self.fraction, bool)
        if not number or not 0 < self.fraction <= 1:
            raise InvalidSetting(
                f"InvalidSetting in Sharing: fraction={self.fraction!r}, expected a part of the processes in (0, 1]."
            )
        if self.factorize not in get_args(Factorize):
            raise InvalidSetting(
                f"InvalidSetting in Sharing: factorize={self.factorize!r}, expected "
                f"{' or '.join(map(repr, get_args(Factorize)))}."
            )
        if self.factorize == "everywhere" and self.fraction != 1:
            raise InvalidSetting(
                f"InvalidSetting in Sharing: fraction={self.fraction!r} with factorize='everywhere': processes that "
                f"make all factorizations hold them all. Leave one of the two out."
            )
        if isinstance(self.bucket, bool) or not isinstance(self.bucket, int) or self.bucket < 1:
            raise InvalidSetting(f"InvalidSetting in Sharing: bucket={self.bucket!r}, expected a number of bytes.")

    def holders(self, ranks: int) -> int:
        """How many of so many processes hold one layer's inverses."""
        return max(1, round(self.fraction * ranks))


def replicated(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper that keeps copies of a model alike, if it has one."""
    while not isinstance(model, DistributedDataParallel):
        inside = model._modules.get("_orig_mod") if "_orig_mod" in model._modules else None
        if inside is None:
            return None
        model = inside
    return model


def check_whole(model: nn.Module) -> None:
    """Refuses parameters of which every process holds a part."""
    known = sys.modules.get("torch.distributed.tensor")  # to import it costs half a second, and who has one has done so
    if known is None:
        return
    for name, p in plain_module(model).named_parameters():
        if isinstance(p, known.DTensor):
            raise UnsupportedLayer(
                f"UnsupportedLayer in NaturalGradient: the parameter {name!r} is sharded, a DTensor "
                f"{list(p.shape)} placed {p.placements}; natural gradients are of whole parameters, and this process "
                f"holds {list(p.to_local().shape)} of it. Replicate the model, DistributedDataParallel(model), and "
                f"save memory by sharing=Sharing(fraction=...); the plan for sharded ones is in the manual, "
                f"'Sharded parameters'."
            )


def check_started() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise InvalidSetting(
            "InvalidSetting in NaturalGradient: sharing=... is of several processes, and torch.distributed is not "
            "started. Run under torchrun and call torch.distributed.init_process_group() first, or leave it out."
        )
