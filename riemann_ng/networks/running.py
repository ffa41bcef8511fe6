"""The circumstances under which a module is run while it is observed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from ..errors import DtypeMismatch

if TYPE_CHECKING:
    from .network import Network


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled code runs as written: a compiled graph has no layers to watch, and is no function to `torch.func`."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by its formula: its fused kernels know no forward differentiation, no second one and no `vmap`."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def untouched_randomness(module: nn.Module) -> Iterator[None]:
    """The global random state is afterwards as before."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        yield


@contextmanager
def devices_explained(module: nn.Module, x: Any) -> Iterator[None]:
    """Says so where a forward fails and the batch is on no device of the module's, or in no dtype of it."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        tensors, parameters = [t for t in tree_leaves(x) if isinstance(t, Tensor)], list(module.parameters())
        batch, own = {str(t.device) for t in tensors}, {str(p.device) for p in parameters}
        if batch and not batch & own:
            raise DtypeMismatch(
                f"DtypeMismatch in Network: the batch is on {', '.join(sorted(batch))}, the parameters are on "
                f"{', '.join(sorted(own))}. Move one of them: x.to({sorted(own)[0]!r})."
            ) from error
        given, wanted = ({str(t.dtype) for t in ts if t.is_floating_point()} for ts in (tensors, parameters))
        if given and wanted and not given & wanted and "type" in str(error):
            raise DtypeMismatch(
                f"DtypeMismatch in Network: the batch is in {', '.join(sorted(given))}, the parameters are in "
                f"{', '.join(sorted(wanted))}. Bring one to the other: x.to({min(wanted)}), or "
                f"module.to({min(given)}) before the network is read."
            ) from error
        raise


@contextmanager
def draws_undone(network: Network) -> Iterator[None]:
    """After an error inside, the network's next random observation draws what it would have drawn without."""
    before = network._observations
    try:
        yield
    except BaseException:
        network._observations = before
        raise
