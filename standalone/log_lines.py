"""Prints log events to the terminal, one line for each."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TextIO

from chalicelib.core.timer import Timer

STOP_TIMEOUT = 2
"""Seconds that the last lines may take at the end."""

FLUSH_INTERVAL = 0.02
"""Seconds for which lines are collected before they are written."""


@contextmanager
def attached() -> Iterator[None]:
    """Print log events to standard output inside this context."""
    lines = _Lines(sys.stdout)
    lines.setFormatter(_LineFormatter())
    # Lines show neither threads, processes nor source files, so records need not have them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001  # as its documentation says
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    lines.start()
    try:
        yield
    finally:
        lines.stop()


class _Lines(logging.Handler):
    """Collects lines, which one thread writes many at once.

    Each write releases the interpreter lock. When threads wrote their own lines, the server handled
    a tenth of the requests.
    """

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal
        self._lines: list[str] = []
        self._arrived = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write all lines so far, then end the thread, unless nobody reads them."""
        self._stopping.set()
        self._arrived.set()
        self._thread.join(STOP_TIMEOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Collect the line of an event."""
        self._lines.append(self.format(record) + "\n")
        if not self._arrived.is_set():
            self._arrived.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._arrived.wait()
            self._stopping.wait(FLUSH_INTERVAL)
            self._write_out()
        self._write_out()  # lines that came during the last write

    def _write_out(self) -> None:
        self._arrived.clear()  # first: a line from now on sets it again
        with self.lock:  # type: ignore[union-attr]  # None only in a handler without threads
            lines, self._lines = self._lines, []
        with suppress(OSError):  # a closed terminal is no error
            self._terminal.write(_shown(self._terminal, "".join(lines)))
            self._terminal.flush()


def _shown(terminal: TextIO, text: str) -> str:
    """Return a text with escapes for characters that the terminal can't show."""
    encoding = terminal.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created)  # noqa: DTZ006  # in local time
        line = f"{at.time().isoformat('milliseconds')} {_text(record)}"
        # Paths and errors come from outside: they must not move the cursor.
        line = line if line.isprintable() else ascii(line)[1:-1]
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _text(record: logging.LogRecord) -> str:
    match vars(record):
        case {"state": Timer() as timer}:
            subject = f": {timer.id} {_detail(record.msg, timer)}"
        case {"method": method, "path": path, "lateness": None}:
            subject = f": {method} {path}"
        case {"method": method, "path": path, "lateness": float() as lateness}:
            subject = f": {method} {path}, {_duration(lateness)} after its deadline"
        case fields:
            values = [str(fields[name]) for name in ("timer", "error") if name in fields]
            subject = "".join(f": {value}" for value in values)
    return (record.getMessage() + subject).rstrip()


def _detail(event: str, timer: Timer) -> str:
    if event in ("webhook delivered", "webhook failed"):
        last = timer.attempts[-1]
        result, took = last.outcome.reason, _duration(last.outcome.duration)
        return f"({result} in {took}, {_duration(last.lateness)} late)"
    if event in ("timer created", "timer changed"):
        at = timer.deadline.astimezone().replace(tzinfo=None)
        return f"fires at {at.isoformat(' ', 'seconds')} → {timer.url}"
    return ""


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
