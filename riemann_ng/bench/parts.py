"""Where the time of a step goes: the parts of the library's loop, timed inside the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .loops import RECIPES, Loop
from .timing import Clock
from .workloads import Workload, copied

PARTS = {
    "watch": "what hooks add to the loop's own passes, with moments that are made there",
    "observe": "samples made of what they heard",
    "moments": "taken into the running average",
    "factorize": "damped and inverted, as often as it comes",
    "apply": "the inverse applied",
    "model": "the step rule",
    "rest": "everything else",
}
TIMED = ("passes", "observe", "update", "commit", "made", "sharp", "rule", "step")


class Timed(Loop):
    """A loop that says what its parts took."""

    def __init__(self, work: Workload, recipe: str, clock: Clock):
        super().__init__(work, RECIPES[recipe])
        self.clock, self.taken = clock, dict.fromkeys(TIMED, 0.0)

    def timed(self, what: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            try:
                return f(*args, **kwargs)
            finally:
                self.taken[what] += self.clock() - start

        return run

    def listen(self) -> None:
        """From here on the parts are timed."""
        opt, memory = self.opt, self.opt.memory
        for holder, method, what in (
            (opt._listener, "observation", "observe"), (memory, "update", "update"), (memory, "_made", "made"),
            (memory, "sharp", "sharp"), (opt.step_size, "displacement", "rule"), (opt, "step", "step"),
        ):  # fmt: skip
            object.__setattr__(holder, method, self.timed(what, getattr(holder, method)))
        over = memory.update_over
        object.__setattr__(memory, "update_over", lambda seen: self.timed("commit", over(seen)))
        passes = self.timed("passes", lambda: self.of.loss(self.of.module(self.of.x)).backward())

        def turn() -> None:
            opt.zero_grad()
            passes()
            opt.step()

        self.turn = turn  # type: ignore[method-assign]

    def parts(self, plain: float) -> dict[str, float]:
        """Of a step, beyond the plain passes; all in the same unit."""
        t = self.taken
        inside = sum(t[part] for part in ("observe", "update", "commit", "made", "sharp", "rule"))
        return {
            "watch": t["passes"] - plain, "observe": t["observe"], "moments": t["update"] + t["commit"],
            "factorize": t["made"], "apply": t["sharp"], "model": t["rule"],
            "rest": t["step"] - inside,
        }  # fmt: skip


def profile(work: Workload, recipe: str, rounds: int, clock: Clock) -> dict[str, float]:
    """In plain passes, over so many turns of ten steps beside ten plain passes."""
    loop = Timed(copied(work), recipe, clock)
    loop.ten()
    loop.listen()
    unit = 0.0
    for _ in range(rounds):
        start = clock()
        for _ in range(10):
            work.plain()
        unit += clock() - start
        loop.ten()
    return {part: taken / unit for part, taken in loop.parts(unit).items()}
