"""One optimizer on several processes."""

from importlib import import_module
from typing import TYPE_CHECKING

from .failures import RankFailed
from .joined import Joined, ranks_of
from .plan import Plan
from .sharing import Sharing

if TYPE_CHECKING:
    from .checkpoints import load_checkpoint, save_checkpoint

__all__ = ["Joined", "Plan", "RankFailed", "Sharing", "load_checkpoint", "ranks_of", "save_checkpoint"]


def __getattr__(name: str) -> object:
    if name in ("load_checkpoint", "save_checkpoint"):  # half a second of imports, which nobody else is to wait for
        return getattr(import_module(".checkpoints", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
