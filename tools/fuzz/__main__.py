"""`python -m tools.fuzz [--examples N] [--seed N]`: fuzz the standalone server."""

import argparse
import sys
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory

from tools.fuzz import fuzz


def main() -> None:
    """Run the fuzzer and print its counts; exit with status 1 on a failure."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=500, help="requests for each operation")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**32))
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        run = fuzz(Path(folder), options.examples, options.seed, shown=True)
    print(f"\n{run}\n\nReproduce with: make fuzz EXAMPLES={options.examples} SEED={options.seed}")  # noqa: T201
    sys.exit(not run.passed or bool(run.fault))


if __name__ == "__main__":
    main()
