"""`make bench-lambda`: measure the start and the work of each Lambda function.

    bundle, as deployed ──► unpacked with and without .pyc ──► a fresh process for each measurement

The processes take turns, so other load on the machine affects all alike. They have the Python and
the libraries of Lambda's runtime. They write no .pyc files, as Lambda's file system is read-only.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bench import account, document
from bench.account import MeasuredAccount
from bench.report import processor
from infra import bundle
from tests.e2e.localstack.stack import RUNTIME
from tests.support.processes import ROOT, environment

FUNCTIONS: dict[str, tuple[str, Callable[[MeasuredAccount], Any]]] = {
    "API": ("app.app", MeasuredAccount.create),
    "authorizer": ("app.authorizer", MeasuredAccount.authorize),
    "fire": ("app.fire", MeasuredAccount.fire),
    "deliver": ("app.deliver", MeasuredAccount.deliver),
    "sweep": ("app.sweep", MeasuredAccount.sweep),
}
"""The handler of each function, and the maker of its events."""

COLUMNS = (
    "Function",
    "import, ms",
    "… without .pyc",
    "first event, ms",
    "… without .pyc",
    "further event, ms",
    "AWS calls",
    "modules",
    "MB",
)

WITH, WITHOUT = "with .pyc", "without"


class Life(NamedTuple):
    """The figures of one process: milliseconds of CPU time, and MB."""

    imported: float
    first: float
    further: float
    """The mean of all events but the first."""
    memory: float
    modules: frozenset[str]
    services: frozenset[str]
    """The AWS services that were called."""
    calls: float
    """AWS calls for each event."""
    webhooks: float
    """Webhooks for each event."""
    answer: Any


class Measured(NamedTuple):
    """The lives of all functions, by function and kind of bundle.

    The last life of each has the warm events.
    """

    lives: dict[tuple[str, str], list[Life]]
    zip_bytes: int


def measure(runs: int, events: int) -> Measured:
    """Start each function `runs` times with each bundle; the last process gets more events."""
    with TemporaryDirectory() as name, account.measured_account(Path(name)) as busy:
        size, bundles = _bundles(Path(name))
        lives: dict[tuple[str, str], list[Life]] = {}
        for run in range(runs):
            for function in FUNCTIONS:
                for kind, folder in bundles.items():
                    warm = events if run == runs - 1 and kind == WITH else 0
                    life = _life(function, folder, busy, 1 + warm)
                    if function == "deliver" and life.webhooks != 1:
                        raise RuntimeError("deliver did not send one webhook for each event.")
                    lives.setdefault((function, kind), []).append(life)
        return Measured(lives, size)


def _bundles(folder: Path) -> tuple[int, dict[str, Path]]:
    """Return the size of the zip, and the folders of both kinds of bundle."""
    package(folder / "made")
    made = folder / "made/deployment.zip"
    with zipfile.ZipFile(made) as zipped:
        unpacked = {WITH: folder / "with", WITHOUT: folder / "without"}
        zipped.extractall(unpacked[WITH])
        plain = [name for name in zipped.namelist() if not name.endswith(".pyc")]
        zipped.extractall(unpacked[WITHOUT], plain)
    return made.stat().st_size, unpacked


def package(made: Path) -> None:
    """Fill a folder with the zip that `make deploy` would ship, and its template."""
    with TemporaryDirectory() as project:
        bundle.build(ROOT, Path(project))
        # Chalice also writes its zips there, so use a copy without the deployed ones.
        settings = Path(project, ".chalice")
        settings.unlink()
        shutil.copytree(ROOT / ".chalice", settings, ignore=shutil.ignore_patterns("deploy*"))
        subprocess.run(
            [Path(sys.executable).with_name("chalice"), "package", "--stage", "dev", made],
            cwd=project,
            env=environment(AWS_DEFAULT_REGION="eu-central-1"),
            stdout=subprocess.DEVNULL,
            check=True,
        )


def _life(function: str, folder: Path, busy: MeasuredAccount, many: int) -> Life:
    handler, event = FUNCTIONS[function]
    events, report = folder.with_name("events.json"), folder.with_name("report.json")
    events.write_text(json.dumps([event(busy) for _ in range(many)]))
    busy.calls.clear()
    busy.arrivals.clear()
    lasting = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [f"{RUNTIME}/bin/python", "-P", ROOT / "bench/invoked.py", handler, events, report],
        env=lasting | busy.settings | {"PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,  # its logs
        check=True,
    )
    found = json.loads(report.read_bytes())
    return Life(
        found["imported"],
        found["first"],
        found["further"],
        found["memory"],
        frozenset(found["modules"]),
        frozenset(busy.calls),
        len(busy.calls) / many,
        len(busy.arrivals) / many,
        found["answer"],
    )


def section(measured: Measured, runs: int, events: int) -> str:
    """Return the figures in Markdown."""
    rows = "\n".join(_row(function, measured.lives) for function in FUNCTIONS)
    cells = "|".join(["---"] * len(COLUMNS))
    return f"""\
## Lambda

`make bench-lambda`: {runs} cold starts of each kind, in turn, then {events} events.
{_machine()}

| {" | ".join(COLUMNS)} |
|{cells}|
{rows}

All milliseconds are CPU time: minimum and median of the cold starts, and the mean of further
events. The zip has {measured.zip_bytes:,} bytes. A process has the libraries of Lambda's runtime
and the bundle: with its .pyc files, as `make deploy` ships it, or without, as a plain
`chalice deploy` does. AWS is moto behind TLS on loopback. Signing, encrypting and parsing count;
waiting does not. For each new connection, botocore reads the certificates of the authorities. A
first sweep opens 32 connections, so this is most of its time.

The events are POST /timers, a valid key, the schedule of a distant timer (its message is sent), one
message whose receiver responds at once, and a sweep that finds nothing in 32 shards."""


def _row(function: str, lives: dict[tuple[str, str], list[Life]]) -> str:
    compiled, plain = lives[function, WITH], lives[function, WITHOUT]
    last = compiled[-1]
    cells = [
        function,
        *(_spread([life.imported for life in kind]) for kind in (compiled, plain)),
        *(_spread([life.first for life in kind]) for kind in (compiled, plain)),
        f"{last.further:.1f}",
        f"{last.calls:.1f}",
        f"{len(last.modules)}",
        f"{last.memory:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(figures: list[float]) -> str:
    return f"{min(figures):.0f} · {median(figures):.0f}"


def _machine() -> str:
    pins = (ROOT / "tests/e2e/localstack/runtime-requirements.txt").read_text().splitlines()
    boto = next(pin.replace("==", " ") for pin in pins if pin.startswith("boto3"))
    return (
        f"{os.cpu_count()} × {processor()},"
        f" Linux {platform.release()}, Python {platform.python_version()}, {boto}."
    )


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold_start", description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--events", type=int, default=200)
    options = parser.parse_args()
    text = section(measure(options.runs, options.events), options.runs, options.events)
    document.write("lambda", text)
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
