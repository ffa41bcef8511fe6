"""The natural gradient of deep linear networks: straight lines, whatever the depth and the inputs.

    python examples/reproduce_deep_linear.py

The same as `riemann-ng reproduce deep-linear`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("deep-linear").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
