"""The lines in the terminal."""

import io
import logging
from datetime import timedelta
from typing import Any

import pytest

from chalicelib.core.timer import Outcome
from standalone.log_lines import _LineFormatter, _Lines
from tests.support.fakes import NO_CONTENT, START
from tests.unit.test_timer import delivering, scheduled


def line(event: str, **fields: Any) -> str:
    """Return an event's line without its time."""
    record = logging.makeLogRecord({"msg": event, "levelno": logging.INFO, **fields})
    return _LineFormatter().format(record).partition(" ")[2]


def test_formats_each_event_as_one_line() -> None:
    """A line names the event, the timer, the result and the lateness."""
    at = START + timedelta(hours=1, milliseconds=3)
    good = delivering().record(NO_CONTENT, at, None)
    bad = delivering().record(Outcome(error="connect", detail="refused"), at, None)
    assert line("timer created", state=scheduled()).endswith(" → https://example.com/{id}")
    assert line("webhook delivered", state=good) == (
        "webhook delivered: id-1 (HTTP 204 in 10 ms, 3 ms late)"
    )
    assert line("webhook failed", state=bad) == (
        "webhook failed: id-1 (connect: refused in 0 ms, 3 ms late)"
    )
    assert line("timer cancelled", state=scheduled()) == "timer cancelled: id-1"
    received = {"method": "POST", "path": "/_receiver/x"}
    assert line("webhook received", lateness=1.26, **received) == (
        "webhook received: POST /_receiver/x, 1.3 s after its deadline"
    )
    assert line("webhook received", lateness=None, **received) == (
        "webhook received: POST /_receiver/x"
    )
    assert (
        line("delivery postponed", timer="id-1", error="disk") == "delivery postponed: id-1: disk"
    )
    assert line("wake-up ignored", timer="id-1") == "wake-up ignored: id-1"


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r", "\n", "\x07", "\u202e", "\x9b"])
def test_escapes_control_characters(evil: str) -> None:
    """Control characters from outside are shown as text."""
    shown = line("webhook received", method="POST", path=f"/_receiver/{evil}x", lateness=None)
    assert shown.isprintable()
    assert evil not in shown


class Terminal(io.StringIO):
    """Counts how often it is flushed."""

    writes = 0

    def flush(self) -> None:
        self.writes += 1


def print_all(terminal: io.StringIO, number: int) -> None:
    """Print a burst of events."""
    lines = _Lines(terminal)
    lines.start()
    for it in range(number):
        lines.handle(logging.makeLogRecord({"msg": str(it)}))
    lines.stop()


def test_writes_bursts_in_few_calls() -> None:
    """A burst of events is written in a few calls, and stopping loses none."""
    terminal = Terminal()
    print_all(terminal, 1000)
    assert terminal.getvalue().split() == [str(number) for number in range(1000)]
    assert terminal.writes < 50


class ClosedTerminal(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


def test_survives_a_closed_terminal() -> None:
    """Writing to a closed terminal raises nothing."""
    print_all(ClosedTerminal(), 1)


def test_escapes_what_the_terminal_lacks() -> None:
    """A terminal with few characters shows the others as escapes."""
    content = io.BytesIO()
    terminal = io.TextIOWrapper(content, "latin-1")
    lines = _Lines(terminal)
    lines.start()
    lines.handle(logging.makeLogRecord({"msg": "a → b"}))
    lines.stop()
    assert content.getvalue() == b"a \\u2192 b\n"


class SlowTerminal(io.StringIO):
    """Gets a line from the server while it shows another, as the server stops."""

    lines: _Lines

    def write(self, text: str) -> int:
        if "first" in text:
            self.lines._stopping.set()
            self.lines.handle(logging.makeLogRecord({"msg": "last"}))
        return super().write(text)


def test_stopping_loses_no_line() -> None:
    """A line that comes while the others are written for the last time is written, too."""
    terminal = SlowTerminal()
    lines = terminal.lines = _Lines(terminal)
    lines.handle(logging.makeLogRecord({"msg": "first"}))
    lines.start()
    lines.stop()
    assert terminal.getvalue().split() == ["first", "last"]
