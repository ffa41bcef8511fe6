"""What figures are held against."""

from __future__ import annotations

FLOOR = {"W1": 1.15, "W3": 1.15, "W4": 1.15, "W2": 1.3, "W5": 1.3}
"""Times the floor, of statistics and steps."""
HELD_AGAINST_FLOOR = ("statistics", "empirical", "step-empirical", "step-sampled")
PASSES = {
    ("W1", "exact"): 90.0, ("W2", "exact"): 5.0,
    ("W1", "fvp"): 1.25, ("W2", "fvp"): 1.2, ("W3", "fvp"): 1.55,
    ("W1", "cg"): 14.0, ("W2", "cg"): 14.0, ("W3", "cg"): 17.0,
    ("W1", "step-default"): 1.9, ("W2", "step-default"): 1.3, ("W3", "step-default"): 1.6,
}  # fmt: skip
"""Plain forward and backward passes at most."""
SHARE = {"typed": 0.02}
"""Of a step."""
IMPORT = 300.0
"""Milliseconds over `import torch`."""


def shortfalls(
    workload: str, quantity: str, passes: float | None, over_floor: float | None, peers: dict[str, float]
) -> list[str]:
    """What a figure misses; `peers` are the passes of others."""
    missed = []
    if quantity in HELD_AGAINST_FLOOR and over_floor is not None and over_floor > FLOOR.get(workload, float("inf")):
        missed.append(f"{over_floor:.2f} times the floor, at most {FLOOR[workload]:g}")
    most = PASSES.get((workload, quantity))
    if most is not None and passes is not None and passes > most:
        missed.append(f"{passes:.2f} passes, at most {most:g}")
    if peers and passes is not None:
        best = min(peers, key=lambda name: peers[name])
        if peers[best] < passes:
            missed.append(f"behind {best} with {peers[best]:.2f}")
    return missed
