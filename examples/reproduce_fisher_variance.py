"""Two estimators of the Fisher, how they scatter, and where one of them does not.

    python examples/reproduce_fisher_variance.py

The same as `riemann-ng reproduce fisher-variance`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("fisher-variance").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
