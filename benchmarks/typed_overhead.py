"""What types cost: `sharp` of a Kronecker form against the two bare torch solves that it consists of.

Three stages: `warm`, the factorizations are kept; `cold`, they are made, for forms that are there; `from matrices`, the
forms are made too, unvalidated, as a metric makes them at each refresh. The bare side does the same work with
`cholesky` and `cholesky_solve`. Typed and bare calls alternate, and medians are taken: of the ratio of neighbours, and
of their difference.

Goals: at most 1.05 times the bare solves from dimension 256 on, at most 30 µs over them in dimension 16.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from torch import Tensor

import riemann_ng as rng

DIMS = (16, 64, 256, 512)
ROUNDS = {16: 2000, 64: 600, 256: 60, 512: 20}
Work = Callable[[], Tensor]


def seconds(work: Work) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def bare_solve(X: Tensor, L: Tensor, K: Tensor) -> Tensor:
    return torch.cholesky_solve(torch.cholesky_solve(X, L).mT, K).mT


def stages(d: int, dtype: torch.dtype, rounds: int) -> Iterator[tuple[str, Work, Work]]:
    """Name, bare work and typed work of each stage."""
    generator = torch.Generator().manual_seed(d)
    G, A = (F.mT @ F / (4 * d) for F in torch.randn(2, 4 * d, d, generator=generator, dtype=dtype))
    X = torch.randn(d, d, generator=generator, dtype=dtype)
    S, V = rng.Space("S", d), rng.Space("A", d)
    kept = rng.Gram(S, G) * rng.Gram(V, A)
    covector = rng.Covector(kept.space, X)
    L, K = torch.linalg.cholesky(G), torch.linalg.cholesky(A)

    def bare_cold() -> Tensor:
        return bare_solve(X, torch.linalg.cholesky(G), torch.linalg.cholesky(A))

    def form() -> rng.InnerProduct:
        return rng.Gram(S, G, validate=False) * rng.Gram(V, A, validate=False)

    fresh = [form() for _ in range(rounds + 1)]
    yield "warm", lambda: bare_solve(X, L, K), lambda: kept.sharp(covector).data
    yield "cold", bare_cold, lambda: fresh.pop().sharp(covector).data
    yield "from matrices", bare_cold, lambda: form().sharp(covector).data


def measure(d: int, dtype: torch.dtype, threads: int, scale: float) -> Iterator[dict[str, object]]:
    torch.set_num_threads(threads)
    rounds = max(5, int(ROUNDS[d] * scale))
    for stage, bare, typed in stages(d, dtype, rounds):
        torch.testing.assert_close(typed(), bare(), rtol=1e-2, atol=1e-3)
        times = [(seconds(bare), seconds(typed)) for _ in range(rounds)]
        yield {
            "stage": stage,
            "dim": d,
            "dtype": str(dtype).removeprefix("torch."),
            "threads": threads,
            "rounds": rounds,
            "bare_us": 1e6 * statistics.median(bare for bare, _ in times),
            "ratio": statistics.median(typed / bare for bare, typed in times),
            "over_us": 1e6 * statistics.median(typed - bare for bare, typed in times),
        }


def verdict(row: dict[str, object]) -> str:
    ratio, over = float(str(row["ratio"])), float(str(row["over_us"]))
    if row["dim"] == 16:
        return "met" if over <= 30 else "missed"
    return ("met" if ratio <= 1.05 else "missed") if int(str(row["dim"])) >= 256 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scale", type=float, default=1.0, help="how many rounds, relative to the usual number")
    arguments = parser.parse_args()
    rows = [
        row
        for threads in arguments.threads
        for dtype in (torch.float32, torch.float64)
        for d in DIMS
        for row in measure(d, dtype, threads, arguments.scale)
    ]
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))
        return
    print(f"{'stage':14} {'dim':>4} {'dtype':8} {'threads':>7} {'bare µs':>10} {'ratio':>7} {'over µs':>9}  goal")
    for row in rows:
        print(
            f"{row['stage']:14} {row['dim']:4} {row['dtype']:8} {row['threads']:7} {row['bare_us']:10.1f} "
            f"{row['ratio']:7.3f} {row['over_us']:9.1f}  {verdict(row)}"
        )


if __name__ == "__main__":
    main()
