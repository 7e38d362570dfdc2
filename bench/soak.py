"""`make soak`: run at a steady rate and check that memory, files and latency stay flat.

RETENTION=0 deletes finished timers at once, so the number of stored timers stays flat as well.
"""

import argparse
import json
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

from bench import document, report
from bench.engines import BENCH_FOLDER, Timers
from bench.load import Request, Response, get, send
from bench.measures import GRACE, Bench, Receiver, percentiles

WINDOWS = 60
"""Number of samples, at most."""

SHOWN = 10
"""Number of samples in the table."""

LONGEST = 10_000
"""Milliseconds that the longest timer waits."""


class Flat(NamedTuple):
    """The permitted growth of a figure, from the median of the first half to that of the second."""

    key: str
    title: str
    ratio: float
    floor: float
    """Smaller values count as this value."""


FLAT = (
    Flat("memory", "memory, MB", 1.2, 30),
    Flat("database", "database, MB", 1.5, 5),
    Flat("log", "write-ahead log, MB", 1.5, 5),
    Flat("rows", "stored timers", 1.5, 1000),
    Flat("create", "create p99, ms", 3, 10),
    Flat("read", "read p99, ms", 3, 10),
    Flat("late", "lateness p99, ms", 3, 10),
)

Sample = dict[str, float]


@dataclass
class Soak:
    """A server under a steady load, and its undelivered timers."""

    bench: Bench
    engine: Timers
    rate: float
    random: Random = field(default_factory=lambda: Random(0))
    pending: dict[str, int] = field(default_factory=dict)
    """The deadline of each timer that has not arrived, in Unix milliseconds."""
    recent: list[str] = field(default_factory=list)
    arrived: int = 0
    faults: list[str] = field(default_factory=list)

    def window(self, seconds: float) -> tuple[list[Response], list[Response]]:
        """Create and read timers, in turn, for this many seconds."""
        count = 2 * max(1, round(self.rate * seconds))
        asked = (make() for make in cycle((self._create, self._read)))
        responses = send(self.engine.port, count, lambda: next(asked), rate=2 * self.rate)
        created = [response for response in responses if response.request.deadline]
        return created, [response for response in responses if not response.request.deadline]

    def _create(self) -> Request:
        return self.bench.timer(time.time_ns() // 1_000_000 + self.random.randint(0, LONGEST))

    def _read(self) -> Request:
        return get(f"/timers/{self.random.choice(self.recent)}" if self.recent else "/health")

    def sample(self, seconds: float) -> Sample:
        """Run for this many seconds; return the figures at the end, in MB and ms."""
        created, read = self.window(seconds)
        self._add_pending(created)
        late = self._settle(self.bench.receiver.forget())
        database = self.engine.database
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT count(*) FROM timers").fetchone()[0]
        return {
            "memory": self.engine.memory() / 1e6,
            "database": database.stat().st_size / 1e6,
            "log": Path(f"{database}-wal").stat().st_size / 1e6,
            "rows": rows,
            "create": percentiles([response.seconds * 1000 for response in created])[1],
            "read": percentiles([response.seconds * 1000 for response in read])[1],
            "late": percentiles(late)[1],
        }

    def finish(self) -> None:
        """Wait for the undelivered timers."""
        end = time.time() + LONGEST / 1000 + GRACE
        while self.pending and time.time() < end:
            time.sleep(0.2)
            self._settle(self.bench.receiver.forget())
        self.faults += [f"{id} did not arrive" for id in self.pending]

    def _add_pending(self, created: Sequence[Response]) -> None:
        self.faults += [f"a create got {a.status}" for a in created if a.status != 201]
        new = {json.loads(a.body)["id"]: a.request.deadline for a in created if a.status == 201}
        self.pending |= new
        self.recent = list(new)

    def _settle(self, arrivals: Sequence[tuple[str, float]]) -> list[float]:
        late = []
        for id, at in arrivals:
            if id not in self.pending:
                self.faults.append(f"{id} arrived twice")
                continue
            late.append(at - self.pending.pop(id))
        self.faults += ["one arrived early" for lateness in late if lateness < 0]
        self.arrived += len(late)
        return late


def rising(samples: Sequence[Sample]) -> list[str]:
    """Report the figures that grew too much from the first half of the samples to the second."""
    half = len(samples) // 2
    found = []
    for flat in FLAT:
        first, second = (
            median(sample[flat.key] for sample in part) for part in (samples[:half], samples[half:])
        )
        if second > flat.ratio * max(first, flat.floor):
            numbers = f"from {report.number(first)} to {report.number(second)}"
            found.append(f"{flat.title}: {numbers}, more than {flat.ratio} times as much")
    return found


def soak(soaked: Soak, seconds: float) -> list[Sample]:
    """Run for this many seconds in windows, and return a sample of each."""
    windows = min(WINDOWS, max(2, round(seconds)))
    samples = []
    for number in range(windows):
        samples.append(soaked.sample(seconds / windows))
        line = ", ".join(f"{flat.title} {report.number(samples[-1][flat.key])}" for flat in FLAT)
        print(f"{number + 1} of {windows}: {line}", file=sys.stderr, flush=True)
    soaked.finish()
    return samples


def section(soaked: Soak, samples: Sequence[Sample], seconds: float, about: str) -> str:
    """Return the section of the document."""
    lines = [["minute", *(flat.title for flat in FLAT)], ["---:"] * (len(FLAT) + 1)]
    for number in range(1, len(samples) + 1):
        if number % max(1, len(samples) // SHOWN) == 0:
            sample = samples[number - 1]
            minute = f"{number * seconds / len(samples) / 60:.2g}"
            lines.append([minute, *(report.number(sample[flat.key]) for flat in FLAT)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    limits = ", ".join(f"{flat.title.split(',')[0]} (× {flat.ratio})" for flat in FLAT)
    return f"""\
`make soak MINUTES={seconds / 60:.3g} RATE={soaked.rate:.0f}`: {soaked.rate:.0f} creates a second
({Timers.durability}) and as many reads. Each timer is due within {LONGEST // 1000} s, with
`RETENTION=0`. The machine: {about}.

{table}

All {soaked.arrived:,} webhooks arrived once, none early. The median of the second half must not
exceed a multiple of the first half's:
{limits}.
"""


def main() -> None:
    """Run the soak; write the section, or print the faults and exit with status 1."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the engine
    seconds, folder = options.minutes * 60, BENCH_FOLDER / "data"
    shutil.rmtree(folder, ignore_errors=True)
    with Receiver() as receiver, Timers(folder, {"RETENTION": "0"}) as engine:
        about = report.machine(folder)
        bench = Bench(engine, receiver)
        bench.warm_up(1000)
        receiver.forget()
        soaked = Soak(bench, engine, options.rate)
        samples = soak(soaked, seconds)
        text = section(soaked, samples, seconds, about)
    shutil.rmtree(folder)
    print(text)
    if faults := rising(samples) + soaked.faults:
        sys.exit("\n".join(faults[:20]))
    document.write("soak", text)


if __name__ == "__main__":
    main()
