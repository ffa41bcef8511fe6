"""Hessian-free, Krylov, TONGA, conjugate directions: which are natural gradients, and what they gain.

    python examples/reproduce_revisiting.py

The same as `riemann-ng reproduce revisiting`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("revisiting").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
