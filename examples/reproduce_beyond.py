"""Spectral steps, damping, Adam and finite steps that do not see coordinates, each beside one that does.

    python examples/reproduce_beyond.py

The same as `riemann-ng reproduce beyond`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("beyond").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
