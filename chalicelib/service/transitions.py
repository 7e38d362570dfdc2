"""Changes of stored timers and of their schedules, for owners' commands and for the worker.

The stored timer decides. Its schedule follows: a new one is created before the old one is deleted,
and a schedule that can't be created now is left to the sweep.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from chalicelib.core.errors import TimerNotFound, Unavailable
from chalicelib.core.timer import Timer, Wakeup, canonical_id
from chalicelib.service.ports import Scheduler, Store

log = logging.getLogger(__name__)

MAX_RACES = 10
"""How often a change is tried while concurrent writes to the same timer come first."""


class Transitions:
    """Applies changes to the timers of a store and keeps their schedules in step."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler

    def get(self, tenant: str, timer_id: str, now: datetime) -> Timer:
        """Return the tenant's timer, its id in any case; raise TimerNotFound."""
        timer = self._store.get(tenant, canonical_id(timer_id))
        if timer is None or timer.is_expired(now):
            raise TimerNotFound("There is no timer with this id.")
        return timer

    def apply(
        self,
        tenant: str,
        timer_id: str,
        change: Callable[[Timer, datetime], Timer],
        now: datetime,
    ) -> tuple[Timer, Timer]:
        """Apply `change` to the timer and write the result; return the timer before and after.

        If `change` returns the same timer, nothing is written. Its errors propagate.
        """
        for _ in range(MAX_RACES):
            before = self.get(tenant, timer_id, now)
            after = change(before, now)
            if after is before or self._store.replace(after):
                return before, after
        raise Unavailable("Too many requests are changing this timer at once.")

    def schedule(self, timer: Timer, now: datetime) -> None:
        """Schedule the stored timer; if that fails now, leave it to the sweep."""
        try:
            self._scheduler.schedule(timer)
        except Unavailable:
            self.leave_to_sweep(timer, now)

    def reschedule(self, before: Timer, after: Timer, now: datetime) -> None:
        """Schedule the new generation, then delete the schedule of the old one."""
        self.schedule(after, now)
        self.unschedule(before)
        # A concurrent change may have run before our schedule existed, so it could not delete it.
        if self.is_overtaken(after):
            self.unschedule(after)

    def unschedule(self, timer: Timer) -> None:
        """Delete the schedule of this generation; a failure is harmless."""
        try:
            self._scheduler.unschedule(timer)
        except Unavailable:
            # Its wake-up will find a newer generation or a finished timer, and do nothing.
            log_timer("schedule not deleted", timer, logging.WARNING)

    def is_overtaken(self, timer: Timer) -> bool:
        """Return whether the stored timer no longer waits for this generation."""
        try:
            current = self._store.get(timer.tenant, timer.id)
        except Unavailable:
            return False
        return current is None or not current.awaits(timer.wakeup())

    def leave_to_sweep(self, timer: Timer, now: datetime) -> None:
        """Mark the timer as unarmed, so that the sweep schedules it."""
        try:
            self.apply(timer.tenant, timer.id, partial(_mark_unarmed, timer.wakeup()), now)
        except (Unavailable, TimerNotFound):
            # The sweep still finds it once it is overdue.
            log_timer("timer not scheduled", timer, logging.ERROR)


def log_timer(event: str, timer: Timer, level: int = logging.INFO, **more: str) -> None:
    """Log an event of a timer: a static name, and fields."""
    fields: dict[str, Any] = {"timer": timer.id, "tenant": timer.tenant, "state": timer}
    log.log(level, event, extra=fields | more)


def _mark_unarmed(wakeup: Wakeup, current: Timer, now: datetime) -> Timer:
    return current.mark_unarmed(now) if current.awaits(wakeup) else current
