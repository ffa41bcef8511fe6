"""Checkpoints of a run by `torch.distributed.checkpoint`, whole or not at all, for any number of processes.

The state of a run is the same on every process and holds nothing of how work was shared, so it is written once, each
tensor by one process, and read by as many as there are.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ...errors import InvalidSetting
from .sharing import replicated

State = dict[str, Any]
SKELETON, PLACE = "skeleton", "tensor"
"""All of a state that is no tensor, and what stands there for one."""


def plain(model: nn.Module) -> nn.Module:
    ddp = replicated(model)
    return model if ddp is None else ddp.module


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes model and optimizer to a new folder. Every process calls this.

    It is written beside, under the name with `.partial`, and moved to its name when all of it is on the disk: where a
    process is lost before, there is no checkpoint of that name, and what is left beside is replaced by the next one.
    """
    final = Path(path)
    partial = final.with_name(final.name + ".partial")
    if final.exists():
        raise InvalidSetting(
            f"InvalidSetting in save_checkpoint: {str(path)!r} is there already. Name another folder, with the step "
            f"in it, or remove this one first."
        )
    if first():
        shutil.rmtree(partial, ignore_errors=True)
    meet()
    flat: State = {}
    skeleton = taken_apart({"model": plain(model).state_dict(), "optimizer": optimizer.state_dict()}, flat)
    flat[SKELETON] = written(skeleton)
    with quiet():
        save(flat, checkpoint_id=partial, no_dist=not dist.is_initialized())
    meet()
    if first():
        os.replace(partial, final)
    meet()


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads what `save_checkpoint` wrote into a model and an optimizer made alike, on any number of processes."""
    if not Path(path).is_dir():
        beside = Path(path).with_name(Path(path).name + ".partial")
        raise InvalidSetting(
            f"InvalidSetting in load_checkpoint: there is no checkpoint {str(path)!r}"
            f"{'; the one being written there was never finished' if beside.exists() else ''}."
        )
    reader = FileSystemReader(path)
    metadata = reader.read_metadata()
    flat: State = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype)
        for name, kept in metadata.state_dict_metadata.items()
        if isinstance(kept, TensorStorageMetadata)
    }
    with quiet():
        load(flat, storage_reader=reader, no_dist=not dist.is_initialized())
    state = put_together(torch.load(BytesIO(flat[SKELETON].numpy().tobytes()), weights_only=True), flat)
    plain(model).load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


def written(skeleton: State) -> Tensor:
    """Numbers and strings as bytes in a tensor: nothing has to be unpickled but by `weights_only`."""
    file = BytesIO()
    torch.save(skeleton, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def taken_apart(state: Any, tensors: State) -> Any:
    """The state with a name in the place of each tensor, which goes to the others."""
    if isinstance(state, Tensor):
        name = f"tensor {len(tensors)}"
        tensors[name] = state.detach()
        return {PLACE: name}
    if isinstance(state, Mapping):
        return {key: taken_apart(value, tensors) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(taken_apart(value, tensors) for value in state)
    return state


def put_together(state: Any, tensors: State) -> Any:
    if isinstance(state, dict) and PLACE in state:
        return tensors[state[PLACE]]
    if isinstance(state, dict):
        return {key: put_together(value, tensors) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(put_together(value, tensors) for value in state)
    return state


def first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def meet() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, torch does not warn of how it uses its own interfaces."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")
        yield
