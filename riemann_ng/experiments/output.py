"""Results on a terminal and in files. A file is written beside its place and moved there: it is whole, or as before."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch

from .._version import __version__
from .base import Experiment
from .records import Check, Results, Table, number


def terminal(experiment: Experiment, results: Results, width: int | None = None, unicode: bool = True) -> str:
    """What was claimed and what was measured, in lines no longer than `width`."""
    width = max(60, min(140, shutil.get_terminal_size((100, 24)).columns if width is None else width))
    text = "\n".join(line.rstrip() for line in _lines(experiment, results, width, unicode))
    return text if unicode else text.replace("±", "+-").encode("ascii", "replace").decode()


def _lines(experiment: Experiment, results: Results, width: int, unicode: bool) -> Iterator[str]:
    yield from textwrap.wrap(f"{experiment.name}: {experiment.title} ({experiment.source})", width)
    data = f", {results.data}" if results.data else ""
    yield f"{results.size}, seed {results.seed}{data}, {results.seconds:.1f} s"
    yield ""
    measured = max((len(number(check.measured)) for check in results.checks), default=0)
    bound = max((len(check.bound) for check in results.checks), default=0)
    room = width - measured - bound - 7
    for check in results.checks:
        sign = ("✓" if check.held else "✗") if unicode else ("ok" if check.held else "NO")
        claim = f"control: {check.claim}" if check.control else check.claim
        first, *rest = textwrap.wrap(claim, max(room, 24))
        yield f"{sign:<3}{first:<{room}}  {number(check.measured):>{measured}}  {check.bound}"
        yield from (f"   {line}" for line in rest)
    for fault in results.faults:
        yield ""
        yield f"STOPPED in {fault.part!r}:"
        yield from fault.error.splitlines()
    for check in results.failed:
        yield ""
        yield from textwrap.wrap(f"FAILED: {check}", width)
        if check.why:
            yield from textwrap.wrap(f"(the bound: {check.why})", width)


def as_json(experiment: Experiment, results: Results) -> str:
    """Every number, with what made it."""
    record = {
        "name": results.name, "title": experiment.title, "source": experiment.source, "claim": experiment.claim,
        "held": results.held, "size": results.size, "seed": results.seed, "data": results.data,
        "seconds": results.seconds, "versions": versions(),
        "checks": [_check(check) for check in results.checks],
        "numbers": results.numbers,
        "tables": [_table(table) for table in results.tables],
        "pictures": [asdict(picture) for picture in results.pictures],
        "faults": [asdict(fault) for fault in results.faults],
    }  # fmt: skip
    return json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _check(check: Check) -> dict[str, Any]:
    return asdict(check) | {"held": check.held}


def _table(table: Table) -> dict[str, Any]:
    return {"caption": table.caption, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}


def finite(value: Any) -> Any:
    """JSON has no infinity: numbers that are not finite become words."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    return {
        "riemann_ng": __version__, "torch": str(torch.__version__), "numpy": numpy.__version__,
        "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }  # fmt: skip


def write(path: Path, content: str | bytes) -> None:
    """The file's content, all of it or what was there before."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
