"""What `import riemann_ng` costs over `import torch`: fresh processes, interleaved, medians.

The public names are all asked for, so that nothing is hidden by importing late; rooms that are opened on request
(testing, interop, ...) are not part of it.
"""

import statistics
import subprocess
import sys

ROUNDS = 9
TORCH = "import torch"
LIBRARY = """import torch, riemann_ng
on_request = {"testing", "interop", "experiments", "plots"}
for name in set(riemann_ng.__all__) - on_request: getattr(riemann_ng, name)"""


def milliseconds(code: str) -> float:
    """How long the code runs in a fresh interpreter, without the interpreter's own start."""
    timed = f"from time import perf_counter\nstart = perf_counter()\n{code}\nprint(1e3 * (perf_counter() - start))"
    return float(subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    milliseconds(LIBRARY)  # fills the file cache and writes the bytecode
    rounds = [(milliseconds(TORCH), milliseconds(LIBRARY)) for _ in range(ROUNDS)]
    torch, library = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"import torch {torch:.0f} ms, with riemann_ng {library:.0f} ms: {library - torch:.0f} ms more (goal: 300)")


if __name__ == "__main__":
    main()
