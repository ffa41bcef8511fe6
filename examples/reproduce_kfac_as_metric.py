"""K-FAC is the natural gradient of a metric, and takes the same path in every affine frame.

    python examples/reproduce_kfac_as_metric.py

The same as `riemann-ng reproduce kfac-as-metric`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("kfac-as-metric").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
