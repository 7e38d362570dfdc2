"""Lists of timers: filter, order and cursor. Pure."""

from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from chalicelib.core.timer import Status, Timer


class Cursor(NamedTuple):
    """A timer's place in lists, which are sorted by creation, newest first, then by id, descending.

    Neither value ever changes, so no timer moves when others are created, fire or expire.
    """

    created_at: datetime
    id: str


class TimerFilter(Struct, frozen=True, kw_only=True):
    """The conditions of a list; None matches every timer."""

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


class ListQuery(NamedTuple):
    """A request for one page of a list."""

    filter: TimerFilter
    after: Cursor | None
    """The last timer of the previous page; None for the first page."""
    limit: int


class Page(NamedTuple):
    """Part of a list."""

    timers: list[Timer]
    next: Cursor | None
    """Where the next page starts; None at the end of the list."""


def cursor_of(timer: Timer) -> Cursor:
    """Return the timer's place in lists."""
    return Cursor(timer.created_at, timer.id)
