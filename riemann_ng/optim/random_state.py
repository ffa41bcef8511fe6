"""The global random state of a forward, kept so that a forward of the optimizer's own has the same dropout masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """That of the CPU, and of one accelerator where the parameters are on one."""

    cpu: Tensor
    device: torch.device | None = None
    own: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        if device.type != "cuda":
            return cls(torch.get_rng_state())
        return cls(torch.get_rng_state(), device, torch.cuda.get_rng_state(device))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, random numbers are those that were drawn from here on; afterwards all is as before."""
        with torch.random.fork_rng(devices=[] if self.device is None else [self.device]):
            torch.set_rng_state(self.cpu)
            if self.device is not None and self.own is not None:
                torch.cuda.set_rng_state(self.own, self.device)
            yield
