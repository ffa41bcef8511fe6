"""Gradient descent between inserted layers, which are a metric's frames, is the natural gradient.

    python examples/reproduce_structured.py

The same as `riemann-ng reproduce structured`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("structured").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
