"""`python -m tools.chaos [--kills N] [--storms N] [--seed N]`: inject all faults and report."""

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
"""Markers around the generated table in the document."""

CONCURRENT_RUNS = 4
"""Concurrent runs. Most of a run is waiting, so this may exceed the number of cores."""

RUNS_PER_FAULT = 5
"""Runs of the standalone server for each fault other than kill -9."""

SIMULATIONS_PER_STORM = 10
"""Simulated runs for each run on moto, because simulated runs are faster."""

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
    "timers": "Timers created",
    "cancelled": "Cancels",
    "moved": "New deadlines",
    "webhooks": "Webhooks",
    "repeated": "Sent again after a death",
    "refused": "Answered with 503",
    "unanswered": "Cut off by a death",
    "broken": "Promises broken",
}


class Campaign(NamedTuple):
    """Many runs of one kind, each with its own seed."""

    title: str
    run: Callable[[str], Run]
    runs: int


def main() -> None:
    """Run all campaigns, print the table, and write it to the document if no promise was broken."""
    options = _arguments()
    again = f"make chaos KILLS={options.kills} STORMS={options.storms} SEED={options.seed}"
    print(again, _heading(), sep="\n\n", flush=True)  # noqa: T201
    rows: list[str] = []
    broken: list[str] = []
    with ProcessPoolExecutor(CONCURRENT_RUNS, initializer=logging.disable) as pool:
        for title, run, runs in _campaigns(options.kills, options.storms):
            seeds = [f"{options.seed}-{number}" for number in range(runs)]
            try:
                done = Run.together(zip(seeds, pool.map(run, seeds), strict=True))
                rows.append(_row(title, done.figures))
            except Impossible as error:
                done = Run(Counter(), [])
                rows.append(f"| {title} | skipped: {error} |")
            broken += done.violations
            print(rows[-1], *done.violations, sep="\n", flush=True)  # noqa: T201
    if broken:
        sys.exit(f"{len(broken)} promises were broken. Reproduce with: {again}")
    _write(f"{_say_where(again)}\n{_heading()}\n" + "\n".join(rows) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=1000, help="number of times to kill the standalone server"
    )
    parser.add_argument(
        "--storms", type=int, default=50, help="number of runs of the AWS side on moto"
    )
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
        except AssertionError as error:  # for example, the server did not start
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
