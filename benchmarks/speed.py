"""`riemann-ng bench` on the small workloads, with all that is asked of it handed on."""

import sys

from riemann_ng.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
