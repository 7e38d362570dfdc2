"""Which timers a list shows, in what order, and where it goes on. Pure."""

from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from chalicelib.core.timer import Status, Timer


class Cursor(NamedTuple):
    """Where a timer stands in a list: newest first, and of the same moment the greatest id first.

    Neither ever changes, so that timers that come, fire and go move no others.
    """

    created_at: datetime
    id: str


class TimerFilter(Struct, frozen=True, kw_only=True):
    """Which of a tenant's timers are wanted; None: whatever they are."""

    status: Status | None = None
    label: str | None = None
    since: datetime | None = None
    """Created at this moment or later."""
    until: datetime | None = None
    """Created before this moment."""

    def matches(self, timer: Timer) -> bool:
        return (
            self.status in (None, timer.status)
            and self.label in (None, timer.label)
            and (self.since is None or self.since <= timer.created_at)
            and (self.until is None or timer.created_at < self.until)
        )


class Page(NamedTuple):
    """A piece of a list."""

    timers: list[Timer]
    next: Cursor | None
    """Behind which it goes on; None at its end."""


def cursor_of(timer: Timer) -> Cursor:
    """Return where the timer stands."""
    return Cursor(timer.created_at, timer.id)
