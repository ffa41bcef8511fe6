"""Adam, Shampoo, SOAP, batch normalization, whitening, K-FAC and EKFAC, each as one metric.

    python examples/reproduce_adaptive_and_kfac.py

The same as `riemann-ng reproduce adaptive-and-kfac`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("adaptive-and-kfac").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
