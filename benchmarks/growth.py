"""How cost grows with width, depth, batch, outputs and sites: fitted exponents beside those of theory."""

import argparse

import torch

from riemann_ng.bench.growth import CURVES, fitted, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(markdown([fitted(curve, arguments.rounds) for curve in CURVES]))


if __name__ == "__main__":
    main()
