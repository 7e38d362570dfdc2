"""One line in the terminal for each event, for people."""

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
"""Seconds for which lines are gathered before they are written."""


@contextmanager
def attached() -> Iterator[None]:
    """Send what the application logs meanwhile to standard output.

    One thread writes it: with a hundred that wait for the terminal in turn, the server does a tenth
    of its work. It writes many lines at once: each write hands the interpreter around.
    """
    lines = _Gathering(sys.stdout)
    lines.setFormatter(_Lines())
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.basicConfig(level=logging.INFO, handlers=[_Handler(records)])
    # It would say for every burst how many requests wait for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    listener = _Listener(records, lines)
    listener.start()
    try:
        yield
    finally:
        listener.stop()


class _Gathering(logging.StreamHandler[TextIO]):
    def flush(self) -> None:
        """Do nothing yet."""

    def write_out(self) -> None:
        """Write what was gathered."""
        with suppress(OSError):  # the terminal is gone
            super().flush()


class _Listener(QueueListener):
    def __init__(self, records: "queue.SimpleQueue[logging.LogRecord]", lines: _Gathering) -> None:
        super().__init__(records, lines)
        self._records = records
        self._lines = lines
        self._stopping = threading.Event()

    def dequeue(self, block: bool) -> logging.LogRecord:
        """Return the next record; where there is none, write out, and then wait for a few."""
        if not self._records.empty():
            return super().dequeue(block)
        self._lines.write_out()
        record = super().dequeue(block)
        self._stopping.wait(FLUSH_INTERVAL)
        return record

    def stop(self) -> None:
        """Write all that came until now, and end."""
        self._stopping.set()
        super().stop()
        self._lines.write_out()


class _Handler(QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # it stays in this process: nothing to make ready for a journey


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created)  # noqa: DTZ006  # the reader's own clock
        line = f"{at:%H:%M:%S}.{at.microsecond // 1000:03} {_words(record)}"
        # What is shown comes from outside: it must not move the cursor.
        line = line if line.isprintable() else ascii(line)[1:-1]
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _words(record: logging.LogRecord) -> str:
    match vars(record):
        case {"state": Timer() as timer}:
            about = f": {timer.id} {_detail(record.msg, timer)}"
        case {"method": method, "path": path, "lateness": None}:
            about = f": {method} {path}"
        case {"method": method, "path": path, "lateness": float() as lateness}:
            about = f": {method} {path}, {_seconds(lateness)} after its deadline"
        case fields:
            known = [str(fields[name]) for name in ("timer", "error") if name in fields]
            about = "".join(f": {field}" for field in known)
    return (record.getMessage() + about).rstrip()


def _detail(event: str, timer: Timer) -> str:
    if event in ("webhook delivered", "webhook failed"):
        last = timer.attempts[-1]
        result, took = last.outcome.reason, _seconds(last.outcome.duration)
        return f"({result} in {took}, {_seconds(last.lateness)} late)"
    if event in ("timer created", "timer changed"):
        return f"fires at {timer.deadline.astimezone():%Y-%m-%d %H:%M:%S} → {timer.url}"
    return ""


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
