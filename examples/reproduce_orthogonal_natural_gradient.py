"""Orthogonal natural gradients against the annihilator that they mean: formulas, steps, and digits task after task.

    python examples/reproduce_orthogonal_natural_gradient.py

The same as `riemann-ng reproduce orthogonal-natural-gradient`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("orthogonal-natural-gradient").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
