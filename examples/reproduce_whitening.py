"""Layers that see whitened or normalized inputs: gradient descent there is a natural gradient.

    python examples/reproduce_whitening.py

The same as `riemann-ng reproduce whitening`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("whitening").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
