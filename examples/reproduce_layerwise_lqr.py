"""Newton, Gauss-Newton and Fisher steps by optimal control along the layers, and learned inverses.

    python examples/reproduce_layerwise_lqr.py

The same as `riemann-ng reproduce layerwise-lqr`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("layerwise-lqr").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
