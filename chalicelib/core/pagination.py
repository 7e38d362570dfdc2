"""Lists of timers: filter, order, cursor and page. Pure."""

from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from chalicelib.core.timer import Status, Timer


class Cursor(NamedTuple):
    """The position of a timer in a list, which is sorted by creation time and id, descending.

    Neither field ever changes, so a cursor stays valid while timers are created, fired and deleted.
    """

    created_at: datetime
    id: str


class TimerFilter(Struct, frozen=True, kw_only=True):
    """Conditions on the timers of a list; None matches all timers."""

    status: Status | None = None
    label: str | None = None
    since: datetime | None = None
    """Created at this time or later."""
    until: datetime | None = None
    """Created before this time."""

    def matches(self, timer: Timer) -> bool:
        return (
            self.status in (None, timer.status)
            and self.label in (None, timer.label)
            and (self.since is None or self.since <= timer.created_at)
            and (self.until is None or timer.created_at < self.until)
        )


class Page(NamedTuple):
    """Part of a list."""

    timers: list[Timer]
    next: Cursor | None
    """The cursor of the last timer on this page; None on the last page."""


def cursor_of(timer: Timer) -> Cursor:
    return Cursor(timer.created_at, timer.id)
