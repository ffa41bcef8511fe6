"""How far a run is: a bar on a terminal, by tqdm where it is installed, and nothing elsewhere."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, TextIO

from ..testing.invariance.command import Bar


class Progress:
    """Told (done, total, text) after every part of an experiment; `close()` takes the bar away."""

    def __init__(self, stream: TextIO, tqdm: bool | None = None):
        self.shown = stream.isatty()
        self.stream, self._plain = stream, Bar(stream)
        self.tqdm = find_spec("tqdm") is not None if tqdm is None else tqdm
        self._bar: Any = None

    def __call__(self, done: int, total: int, text: str) -> None:
        if not self.shown:
            return
        if not self.tqdm:
            self._plain.show(done, total, text)
            return
        if self._bar is None:
            self._bar = import_module("tqdm").tqdm(total=total, file=self.stream, leave=False, dynamic_ncols=True)
        self._bar.total, self._bar.n = total, done
        self._bar.set_description_str(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._plain.done()
