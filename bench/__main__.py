"""`make bench`: compare Timers with its peers and write the results to docs/benchmarks.md."""

import argparse
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import document, report
from bench.engines import BENCH_FOLDER, BullMq, CeleryOnRedis, Engine, Quirrel, Timers
from bench.measures import (
    Bench,
    Delivery,
    Figures,
    Receiver,
    ceiling,
    many,
)

ENGINES: tuple[type[Engine], ...] = (Timers, CeleryOnRedis, BullMq, Quirrel)

PLOT = document.DOCUMENT.with_suffix(".svg")

DATA = BENCH_FOLDER / "data"

TITLES = {
    "low": "20 a second",
    "small": "1,000 due in one second",
    "large": "10,000 due in one second",
}

FAULTS = ("missing", "early", "duplicates")


@dataclass(frozen=True)
class Sizes:
    """The number of timers in each measurement."""

    warm_up: int = 1000
    creates: int = 4000
    low: int = 300
    rate: float = 20
    small: int = 1000
    large: int = 10_000
    mixed: int = 10_000
    mixed_rate: float = 1000
    pending: int = 100_000
    recovery: int = 1000
    many: int = 1_000_000
    ahead: float = 3
    """Minimum seconds to create the timers of a burst before they fall due."""
    outage: float = 3
    """Seconds that an engine is down."""
    settle: float = 5
    """Seconds of rest before an engine is measured."""

    def time_for(self, number: int, rate: float) -> float:
        """Return the seconds to create a burst by an engine that creates `rate` a second."""
        return self.ahead + 2 * number / rate


@dataclass(frozen=True)
class Results:
    """The figures of all rounds, by engine."""

    figures: dict[str, dict[str, list[float]]]
    late: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    """The lateness of each timer in milliseconds, by measurement and engine."""

    def add(self, engine: Engine, measure: str, found: Figures) -> None:
        """Store the figures of one measurement, and print them as progress."""
        title = ", ".join(f"{key} {report.number(value)}" for key, value in found.items())
        print(f"{engine.name}: {measure}: {title}", file=sys.stderr, flush=True)
        for key, value in found.items():
            is_fault = key in FAULTS and measure != "recovery"
            self.figures[engine.name][key if is_fault else f"{measure}.{key}"].append(value)

    def add_delivery(self, engine: Engine, measure: str, found: Delivery) -> None:
        """Store one measurement and the lateness of each of its timers."""
        self.add(engine, measure, found.figures())
        self.late[measure][engine.name] += found.late


def measure(
    engines: Sequence[type[Engine]], receiver: Receiver, folder: Path, sizes: Sizes, rounds: int
) -> Results:
    """Measure the engines in turn; each starts each round with no data."""
    results = Results({engine.name: defaultdict(list) for engine in engines})
    for _ in range(rounds):
        _each(engines, folder, lambda engine: _speed(engine, receiver, sizes, results))
    _each(engines, folder, lambda engine: _endurance(engine, receiver, sizes, results))
    return results


def _each(
    engines: Sequence[type[Engine]], folder: Path, measurement: Callable[[Engine], None]
) -> None:
    for engine_type in engines:
        with engine_type(folder / engine_type.__name__) as engine:
            measurement(engine)
        shutil.rmtree(engine.folder)


def _speed(engine: Engine, receiver: Receiver, sizes: Sizes, results: Results) -> None:
    bench = Bench(engine, receiver)
    bench.warm_up(sizes.warm_up)
    found = bench.creates(sizes.creates)
    results.add(engine, "creates", found)
    time.sleep(sizes.settle)  # for an engine's work after its response
    results.add_delivery(engine, "low", bench.steady(sizes.low, sizes.rate))
    for name, number in (("small", sizes.small), ("large", sizes.large)):
        ahead = sizes.time_for(number, found["rate"])
        results.add_delivery(engine, name, bench.burst(number, ahead))
    if "mixed" not in engine.skips:
        ahead = sizes.time_for(sizes.mixed, found["rate"])
        results.add(engine, "mixed", bench.mixed(sizes.mixed, sizes.mixed_rate, ahead))
    engine.sync_each_write()
    results.add(engine, "synced", bench.creates(sizes.creates))


def _endurance(engine: Engine, receiver: Receiver, sizes: Sizes, results: Results) -> None:
    bench = Bench(engine, receiver)
    bench.warm_up(sizes.warm_up)
    results.add(engine, "pending", bench.pending(sizes.pending, sizes.settle))
    found = bench.recovery(sizes.recovery, sizes.ahead, sizes.outage)
    results.add(engine, "recovery", found)


def section(
    results: Results, versions: Mapping[str, str], about: Sequence[str], million: Figures
) -> str:
    """Return the section of the document; `about` describes the machine."""
    durability = {engine.name: engine.durability for engine in ENGINES}
    of = {key: report.number(value) for key, value in million.items()}
    rounds = len(results.figures[Timers.name]["creates.rate"])
    facts = [*about, *(f"{name}: {version}" for name, version in versions.items())]
    listed = "\n".join(f"* {fact}" for fact in facts)
    return f"""\
`make bench ROUNDS={rounds}`: the engines take turns in each round.

{listed}

{report.table(results.figures, durability)}

Each cell has the median of the rounds and their range. A ratio above 1 means that Timers is better
by that factor. An engine with a dash skips the measurement. Each column's head says when a
confirmed timer is durable.

![Lateness of each timer]({PLOT.name})

**A million waiting timers** in Timers ({Timers.durability}) take {of["memory"]} MB of memory,
compared with {of["empty"]} MB for none: {of["bytes"]} bytes for each. A server that starts on them
responds after {of["ready"]} s, and an overdue webhook arrives after {of["first"]} s.
"""


def available_engines() -> list[type[Engine]]:
    """Return the engines that can run here, and report the others."""
    reasons = {engine: engine.missing() for engine in ENGINES}
    for engine, reason in reasons.items():
        if reason is not None:
            print(f"{engine.name} is skipped: {reason}.", file=sys.stderr)
    return [engine for engine, reason in reasons.items() if reason is None]


def main() -> None:
    """Measure, print the section, and write it to the document."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the engines
    rounds, sizes, engines = parser.parse_args().rounds, Sizes(), available_engines()
    DATA.mkdir(exist_ok=True)
    with Receiver() as receiver:
        most = report.number(ceiling(receiver, 20_000))
        about = [report.machine(DATA), f"Load: up to {most} requests a second on a bare server"]
        results = measure(engines, receiver, DATA, sizes, rounds)
        million = many(sizes.many, receiver, DATA, sizes.settle)
    shutil.rmtree(DATA)
    text = section(results, {engine.name: engine.version() for engine in engines}, about, million)
    print(text)
    report.plot({TITLES[measure]: late for measure, late in results.late.items()}, PLOT)
    document.write("standalone", text)


if __name__ == "__main__":
    main()
