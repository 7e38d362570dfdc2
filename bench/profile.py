"""`make profile`: where the processor time of the standalone server goes, per create and webhook.

    load ──► server ◄── py-spy: which function holds the interpreter, 200 times a second

The processor time of the process comes from /proc. Its split comes from py-spy's samples: by
thread, and by the part of the code that the innermost known function belongs to.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from bench.engines import BENCH_FOLDER, Timers
from bench.measures import Bench, Receiver

RATE = 200
"""Samples a second."""

WARM_UP, CREATES, WEBHOOKS = 1000, 8000, 8000

AHEAD = 2.0
"""Seconds to create each thousand of the webhooks before they fall due."""

Parts = Mapping[str, tuple[str, ...]]

PARTS: Parts = {
    "log lines": ("standalone/log_lines", "logging/"),
    "SQLite": ("standalone/sqlite",),
    "validation": ("http/bodies", "http/requests", "http/raw_json", "http/fingerprints", "core/"),
    "commands and worker": ("chalicelib/service",),
    "responses": ("chalicelib/http",),
    "Chalice and its event": ("chalice/", "app.py"),
    "HTTP server": ("uvloop", "asyncio/", "standalone/server"),
    "sender": ("chalicelib/webhook", "requests/"),
    "scheduler": ("standalone/scheduler", "standalone/fair_queue"),
    "greenlets, threads": ("standalone/greenlets", "concurrent/", "threading", "selectors"),
}
"""Pieces of the paths of each part's files; a file belongs to the first part that has one."""


class Profile(NamedTuple):
    """Where the server's processor time went during some operations."""

    operations: int
    seconds: float
    """Processor time of the server."""
    samples: Counter[tuple[str, str]]
    """By thread and part."""

    def table(self, title: str) -> str:
        """Return the microseconds of one operation, by thread and by part, in Markdown."""
        whole = 1e6 * self.seconds / self.operations
        lines = [f"| {title} | us | |", "|---|---:|---:|", f"| in all | {whole:.0f} | 100 % |"]
        for place, of in ((0, "thread"), (1, "part")):
            counts: Counter[str] = Counter()
            for key, number in self.samples.items():
                counts[key[place]] += number
            for name, number in counts.most_common():
                share = number / self.samples.total()
                lines.append(f"| {of}: {name} | {share * whole:.0f} | {share:.0%} |")
        return "\n".join(lines)


def watch(engine: Timers, load: Callable[[], int]) -> Profile:
    """Return where the server spends its time under a load, which returns its operations."""
    file, pid = engine.folder / "samples", engine.pid
    command = f"record --pid {pid} --duration unlimited --rate {RATE} --format raw --output {file}"
    options = "--gil --threads --nonblocking --full-filenames"
    spy = subprocess.Popen(
        [Path(sys.executable).with_name("py-spy"), *command.split(), *options.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1)  # py-spy reads the symbols of the process first
    before = processor(pid)
    operations = load()
    spent = processor(pid) - before
    spy.send_signal(signal.SIGINT)  # it writes its file
    spy.wait()
    return Profile(operations, spent, parts_of(file.read_text().splitlines()))


def processor(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parts_of(stacks: Iterable[str], parts: Parts = PARTS) -> Counter[tuple[str, str]]:
    """Count py-spy's stacks ("thread;outermost;…;innermost 17") by thread and part."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in stacks:
        stack, _, number = line.rpartition(" ")
        thread, *frames = stack.split(";")
        counts[thread.rpartition(": ")[2].strip('"'), _part(frames, parts)] += int(number)
    return counts


def _part(frames: list[str], parts: Parts) -> str:
    for frame in reversed(frames):
        for part, files in parts.items():
            if any(file in frame for file in files):
                return part
    return "other"


def main() -> None:
    """Print the tables."""
    folder = BENCH_FOLDER / "data" / "profile"
    with Receiver() as receiver, Timers(folder) as engine:
        bench = Bench(engine, receiver)
        bench.warm_up(WARM_UP)
        print(watch(engine, lambda: _creates(bench)).table("One create"))
        print()
        print(_webhooks(bench, engine).table("One webhook"))
    shutil.rmtree(folder)


def _creates(bench: Bench) -> int:
    bench.creates(CREATES)
    return CREATES


def _webhooks(bench: Bench, engine: Timers) -> Profile:
    due = time.time() + AHEAD * WEBHOOKS / 1000
    bench.receiver.forget()
    responses = bench.create(WEBHOOKS, repeat(round(due * 1000)))
    time.sleep(max(0.0, due - 2 - time.time()))

    def deliver() -> int:
        bench.delivered(responses)
        return WEBHOOKS

    return watch(engine, deliver)


if __name__ == "__main__":
    main()
