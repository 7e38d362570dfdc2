"""Prints log events to the terminal, one line for each."""

import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

from chalicelib.core.timer import Timer

FLUSH_INTERVAL = 0.02
"""Seconds for which lines are collected before they are written."""


@contextmanager
def attached() -> Iterator[None]:
    """Print log events to standard output inside this context.

    One thread writes many lines at once, because every write releases the interpreter lock: when a
    hundred threads wrote their own lines, the server handled a tenth of the requests.
    """
    lines = _BufferedHandler(sys.stdout)
    lines.setFormatter(_LineFormatter())
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.basicConfig(level=logging.INFO, handlers=[_InProcessHandler(records)])
    listener = _Listener(records, lines)
    listener.start()
    try:
        yield
    finally:
        listener.stop()


class _BufferedHandler(logging.StreamHandler[TextIO]):
    def flush(self) -> None:
        """Do nothing: `write_out` does it once for many lines."""

    def write_out(self) -> None:
        """Write the collected lines; a closed terminal is no error."""
        with suppress(OSError):
            super().flush()


class _Listener(QueueListener):
    def __init__(
        self, records: "queue.SimpleQueue[logging.LogRecord]", lines: _BufferedHandler
    ) -> None:
        super().__init__(records, lines)
        self._records = records
        self._lines = lines
        self._stopping = threading.Event()

    def dequeue(self, block: bool) -> logging.LogRecord:
        """Return the next record. If there is none, write out and wait for a batch."""
        if not self._records.empty():
            return super().dequeue(block)
        self._lines.write_out()
        record = super().dequeue(block)
        self._stopping.wait(FLUSH_INTERVAL)
        return record

    def stop(self) -> None:
        """Write all records so far, then end the thread."""
        self._stopping.set()
        super().stop()
        self._lines.write_out()


class _InProcessHandler(QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # no pickling: it stays in this process


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created)  # noqa: DTZ006  # in local time
        line = f"{at:%H:%M:%S}.{at.microsecond // 1000:03} {_text(record)}"
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
        return f"fires at {timer.deadline.astimezone():%Y-%m-%d %H:%M:%S} → {timer.url}"
    return ""


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
