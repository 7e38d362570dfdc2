"""`python -m tools.chaos [--kills N] [--storms N] [--seed N]`: all faults, and what came of it."""

import argparse
import logging
import os
import platform
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.support.processes import ROOT
from tools.chaos import aws, standalone
from tools.chaos.ledger import Run
from tools.chaos.standalone import KILLS_PER_DATABASE, Impossible

DOCUMENT = ROOT / "docs/reliability.md"

BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
"""What stands around the figures in the document."""

CONCURRENT_RUNS = 4
"""How many runs go on at the same time; most of theirs is waiting."""

RUNS_PER_FAULT = 5
"""How often the standalone server is struck by each of the faults that are no kill."""

SIMULATIONS_PER_STORM = 10
"""Runs in simulated time for each one on moto: they are so much faster."""

FAULTS: dict[str, Callable[[Path, str], Run]] = {
    "full disk": standalone.full_disk,
    "read-only file": standalone.read_only,
    "torn log": standalone.torn_log,
    "stepped clock": standalone.stepped_clock,
    "no name resolved": standalone.no_names,
    "receiver hangs": standalone.hanging,
}

COLUMNS = {
    "runs": "Runs",
    "deaths": "Deaths",
    "timers": "Timers promised",
    "cancelled": "Cancels",
    "moved": "New deadlines",
    "webhooks": "Webhooks",
    "repeated": "Again after a death",
    "refused": "Answered with 503",
    "unanswered": "Cut off by a death",
    "broken": "Promises broken",
}


class Campaign(NamedTuple):
    """Many runs of one kind, each by a seed of its own."""

    title: str
    run: Callable[[str], Run]
    runs: int


def main() -> None:
    """Run all, print what came of it, and write it into the document if nothing was broken."""
    given = _arguments()
    again = f"make chaos KILLS={given.kills} STORMS={given.storms} SEED={given.seed}"
    print(again, _heading(), sep="\n\n", flush=True)  # noqa: T201
    rows: list[str] = []
    broken: list[str] = []
    with ProcessPoolExecutor(CONCURRENT_RUNS, initializer=logging.disable) as pool:
        for title, run, runs in _campaigns(given.kills, given.storms):
            seeds = [f"{given.seed}-{number}" for number in range(runs)]
            try:
                done = Run.together(zip(seeds, pool.map(run, seeds), strict=True))
                rows.append(_row(title, done.figures))
            except Impossible as error:
                done = Run(Counter(), [])
                rows.append(f"| {title} | not done: {error} |")
            broken += done.violations
            print(rows[-1], *done.violations, sep="\n", flush=True)  # noqa: T201
    if broken:
        sys.exit(f"{len(broken)} promises were broken. Again: {again}")
    _write(f"{_say_where(again)}\n{_heading()}\n" + "\n".join(rows) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="of the standalone server")
    parser.add_argument("--storms", type=int, default=50, help="runs of the AWS side on moto")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**32))
    return parser.parse_args()


def _campaigns(kills: int, storms: int) -> Iterator[Campaign]:
    databases = -(-kills // KILLS_PER_DATABASE)
    yield Campaign("kill -9", partial(_in_folder, standalone.kills), databases)
    for title, fault in FAULTS.items():
        yield Campaign(title, partial(_in_folder, fault), RUNS_PER_FAULT)
    yield Campaign("AWS, simulated", aws.simulated, storms * SIMULATIONS_PER_STORM)
    yield Campaign("AWS, on moto", aws.emulated, storms)


def _in_folder(fault: Callable[[Path, str], Run], seed: str) -> Run:
    with TemporaryDirectory() as folder:
        try:
            return fault(Path(folder), seed)
        except AssertionError as error:  # it did not start, for instance
            return Run(Counter(), [str(error)])


def _heading() -> str:
    titles = ["Fault", *COLUMNS.values()]
    return f"| {' | '.join(titles)} |\n|---|{'---:|' * len(COLUMNS)}"


def _row(title: str, figures: Counter[str]) -> str:
    return f"| {title} | {' | '.join(f'{figures[name]:,}' for name in COLUMNS)} |"


def _say_where(again: str) -> str:
    python, cores = platform.python_version(), os.cpu_count()
    return (
        f"`{again}`, {datetime.now(UTC):%Y-%m-%d}, on {platform.system()} {platform.machine()},"
        f" {cores} cores, Python {python}, SQLite {sqlite3.sqlite_version}:\n"
    )


def _write(figures: str) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}")


if __name__ == "__main__":
    main()
