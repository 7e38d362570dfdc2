"""One line in the terminal for each event, for people."""

import logging
import sys
from datetime import datetime

from chalicelib.timers import Timer


def attach() -> None:
    """Send what the application logs to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # It would say for every burst how many requests wait for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


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
    if event in ("timer created", "timer rescheduled"):
        return f"fires at {timer.deadline.astimezone():%Y-%m-%d %H:%M:%S} → {timer.url}"
    return ""


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
