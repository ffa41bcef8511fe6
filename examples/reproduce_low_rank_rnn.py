"""Learning in a linear recurrent network of low rank, in the space of overlaps.

    python examples/reproduce_low_rank_rnn.py

The same as `riemann-ng reproduce low-rank-rnn`, which also writes pictures and a page.
"""

from riemann_ng.experiments import experiment

results = experiment("low-rank-rnn").run()
for check in results.checks:
    print("holds" if check.held else "FAILS", check)
for name, value in results.numbers.items():
    print(f"{name}: {value:.4g}")
assert results.held, results.faults or results.failed
