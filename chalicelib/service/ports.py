"""The Protocols that the service needs and that adapters implement.

Every method raises Unavailable if the adapter's backend does not respond.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from chalicelib.core.api_keys import ApiKey
from chalicelib.core.pagination import Cursor, Page, TimerFilter
from chalicelib.core.timer import Outcome, Timer, Wakeup


class Store(Protocol):
    """Stores timers. A confirmed write survives any crash."""

    def add(self, timer: Timer) -> bool:
        """Store a new timer. Return False, and change nothing, if the id exists."""

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        """Return the timer as last written, or None."""

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Timer | None:
        """Apply `Timer.claim` atomically; return the claimed timer, or None."""

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        """Write the timer if the stored version is `timer.version - 1`; return whether it was.

        `adding` is a new timer to store in the same transaction. A timer that is already stored in
        exactly this form may count as written.
        """

    def replace_all(self, changed: Sequence[Timer]) -> list[Timer]:
        """Replace each timer; return those that were written, in order."""

    def remove(self, timer: Timer) -> bool:
        """Delete the timer if it is stored in exactly this version; return whether it is gone."""

    def overdue(self, before: datetime, limit: int) -> list[Timer]:
        """Return timers whose `wake_at` is before this time, longest overdue first."""

    def page(self, tenant: str, filter: TimerFilter, after: Cursor | None, limit: int) -> Page:
        """Return at most `limit` matching timers of the tenant after the cursor, newest first.

        A page may be short, or empty, even if more follow.
        """

    def check(self) -> None:
        """Raise Unavailable if the store does not work."""


class Scheduler(Protocol):
    """Delivers a timer's wake-up to `Worker.deliver` when its next attempt is due.

    A wake-up may arrive late, twice, or for a finished timer: the store decides. Besides
    Unavailable (the timer may or may not be scheduled), methods raise ScheduleRefused (it is not).
    """

    def schedule(self, timer: Timer) -> None:
        """Deliver the wake-up of the timer's current generation at `timer.due_at`."""

    def unschedule(self, timer: Timer) -> None:
        """Delete the schedule of this generation, as far as possible."""

    def requeue(self, wakeups: Sequence[Wakeup]) -> None:
        """Deliver each wake-up when it is due, without a durable schedule.

        A wake-up that was requeued too often is dropped; the sweep then finds its timer.
        """

    def is_behind(self) -> bool:
        """Return whether so many wake-ups are due that the sweep should add none."""

    def check(self) -> None:
        """Raise Unavailable if wake-ups are not being delivered."""


class Sender(Protocol):
    """Sends webhooks."""

    def send(self, timer: Timer, at: datetime) -> Outcome:
        """Make one attempt at `at`, within `timer.timeout` seconds. A failure is an Outcome.

        Raises Unavailable only if nothing was sent.
        """


class ApiKeys(Protocol):
    """Stores API keys."""

    def add(self, key: ApiKey) -> None:
        """Store a new key."""

    def get(self, key_id: str) -> ApiKey | None:
        """Return the key with this id as last written, or None."""

    def remove(self, key_id: str) -> bool:
        """Delete the key; return whether there was one."""

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first."""


class Secrets(Protocol):
    """Stores signing secrets. Raises OperatorError if a change is not allowed."""

    def of(self, tenant: str) -> list[str]:
        """Return the tenant's secrets, newest first."""

    def add(self, tenant: str, secret: str) -> None:
        """Apply `signing.with_secret` atomically."""

    def retire(self, tenant: str, secret: str) -> None:
        """Apply `signing.without_secret` atomically."""
