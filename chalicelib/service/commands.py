"""The commands of owners: create, read, change, cancel, fire and retry timers."""

from collections.abc import Callable, Container, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeVar

from chalicelib.core.changes import URL_FIELDS, Change
from chalicelib.core.errors import (
    Conflict,
    IdempotencyKeyReused,
    ScheduleRefused,
    Unavailable,
)
from chalicelib.core.pagination import ListQuery, Page
from chalicelib.core.targets import Targets
from chalicelib.core.timer import (
    IdempotencyKey,
    Status,
    Timer,
    TimerSpec,
    Webhook,
    keyed_id,
    new_timer,
)
from chalicelib.service.concurrency import MapConcurrently, one_by_one
from chalicelib.service.ports import Scheduler, Store
from chalicelib.service.transitions import MAX_RACES, Transitions, log_timer

MAX_PAGES_READ = 10
"""Pages read from the store to fill one page of a list, when few timers match."""

T = TypeVar("T")
R = TypeVar("R")


class Created(NamedTuple):
    """The timer of a create request."""

    timer: Timer
    is_new: bool
    """False if an earlier request with the same Idempotency-Key created it."""


class Commands:
    """Owners' commands, on the timers of their tenant.

    `now` is the time of the request; everything that one request does happens at that time.
    Commands raise TimerNotFound, Conflict, InvalidRequest or Unavailable; a create also raises
    IdempotencyKeyReused.
    """

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        *,
        targets: Targets,
        new_id: Callable[[], str],
        concurrently: MapConcurrently = one_by_one,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._targets = targets
        self._new_id = new_id
        self._concurrently = concurrently
        self._transitions = Transitions(store, scheduler)

    def create(self, tenant: str, spec: TimerSpec, now: datetime) -> Created:
        """Store a timer and schedule it, once for each Idempotency-Key.

        Raises IdempotencyKeyReused if the key came with a different request, and Conflict if its
        timer was cancelled.
        """
        self._check_targets(spec.webhook, URL_FIELDS)
        timer = self._new(tenant, spec, now)
        for _ in range(MAX_RACES):
            if self._store.add(timer):
                self._schedule_new(timer, now)
                log_timer("timer created", timer)
                return Created(timer, is_new=True)
            if spec.idempotency_key is None:
                raise Unavailable("The id of the new timer is taken; send the request again.")
            if (earlier := self._earlier(timer, spec.idempotency_key, now)) is not None:
                return Created(earlier, is_new=False)
        raise Unavailable("Too many requests have this Idempotency-Key at once.")

    def create_all(
        self, tenant: str, specs: Sequence[TimerSpec | Exception], now: datetime
    ) -> list[Created | Exception]:
        """Create each timer; return the results in order. An error among `specs` stays as it is.

        Their creation times are microseconds apart, so lists keep the order of the request.
        """
        numbered = [
            spec if isinstance(spec, Exception) else (now + number * timedelta.resolution, spec)
            for number, spec in enumerate(specs)
        ]
        return self._each(partial(self._create_numbered, tenant), numbered)

    def get(self, tenant: str, timer_id: str, now: datetime) -> Timer:
        """Return the tenant's timer, or raise TimerNotFound."""
        return self._transitions.get(tenant, timer_id, now)

    def list_timers(self, tenant: str, query: ListQuery, now: datetime) -> Page:
        """Return a page of the tenant's timers; see `Store.page`."""
        timers: list[Timer] = []
        after = query.after
        for _ in range(MAX_PAGES_READ):
            page = self._store.page(tenant, query.filter, after, query.limit - len(timers))
            timers += [timer for timer in page.timers if not timer.is_expired(now)]
            after = page.next
            if after is None or len(timers) >= query.limit:
                break
        return Page(timers, after)

    def cancel(self, tenant: str, timer_id: str, now: datetime) -> Timer:
        """Cancel a waiting timer: no webhook is sent after this returns."""
        before, after = self._transitions.apply(tenant, timer_id, Timer.cancel, now)
        # A repeated cancel does this too: the first one may have failed to delete the schedule.
        self._transitions.unschedule(before)
        if after is not before:
            log_timer("timer cancelled", after)
        return after

    def cancel_all(
        self, tenant: str, timer_ids: Sequence[str], now: datetime
    ) -> list[Timer | Exception]:
        """Cancel each timer; return the results in order."""
        return self._each(partial(self.cancel, tenant, now=now), timer_ids)

    def change(self, tenant: str, timer_id: str, change: Change, now: datetime) -> Timer:
        """Change a waiting timer; a new deadline restarts it, with all attempts ahead."""
        apply = partial(self._apply, change)
        before, after = self._transitions.apply(tenant, timer_id, apply, now)
        if change.deadline is not None:
            self._transitions.reschedule(before, after, now)
        log_timer("timer changed", after)
        return after

    def fire_now(self, tenant: str, timer_id: str, now: datetime) -> Timer:
        """Make a waiting timer due now, with all attempts ahead."""
        before, after = self._transitions.apply(tenant, timer_id, Timer.fire_now, now)
        self._transitions.reschedule(before, after, now)
        log_timer("timer fired", after)
        return after

    def retry(self, tenant: str, timer_id: str, now: datetime) -> Timer:
        """Make a failed timer due now, with all attempts ahead."""
        before, after = self._transitions.apply(tenant, timer_id, Timer.retry_now, now)
        self._transitions.reschedule(before, after, now)
        log_timer("timer retried", after)
        return after

    def retry_all(
        self, tenant: str, timer_ids: Sequence[str], now: datetime
    ) -> list[Timer | Exception]:
        """Retry each failed timer; return the results in order."""
        return self._each(partial(self.retry, tenant, now=now), timer_ids)

    def check(self) -> None:
        """Raise Unavailable unless timers can be stored and fire."""
        self._store.check()
        self._scheduler.check()

    def _create_numbered(self, tenant: str, numbered: tuple[datetime, TimerSpec]) -> Created:
        now, spec = numbered
        return self.create(tenant, spec, now)

    def _apply(self, change: Change, timer: Timer, now: datetime) -> Timer:
        after = change.apply(timer, now)
        # Other URLs stay, also if they are no longer allowed.
        self._check_targets(after, change.webhook.fields)
        return after

    def _check_targets(self, webhook: Webhook, names: Container[str]) -> None:
        for name in URL_FIELDS:
            if name in names and (url := getattr(webhook, name)) is not None:
                self._targets.check_url(url, f"/{name}")

    def _new(self, tenant: str, spec: TimerSpec, now: datetime) -> Timer:
        if (key := spec.idempotency_key) is None:
            return new_timer(self._new_id(), tenant, spec.webhook, spec.deadline, now)
        id = keyed_id(tenant, key.key)
        return new_timer(id, tenant, spec.webhook, spec.deadline, now, key.fingerprint)

    def _schedule_new(self, timer: Timer, now: datetime) -> None:
        try:
            self._scheduler.schedule(timer)
        except ScheduleRefused:
            # The schedule first: a new timer with this key would reuse the schedule's name.
            self._transitions.unschedule(timer)
            if self._store.remove(timer):
                raise
            self._transitions.leave_to_sweep(timer, now)
        except Unavailable:
            self._transitions.leave_to_sweep(timer, now)

    def _earlier(self, timer: Timer, key: IdempotencyKey, now: datetime) -> Timer | None:
        """Return the stored timer with this Idempotency-Key; None if it is gone or changing."""
        stored = self._store.get(timer.tenant, timer.id)
        if stored is None:
            return None
        if stored.is_expired(now):
            self._store.remove(stored)
            return None
        if not key.is_of(stored):
            raise IdempotencyKeyReused(
                "This Idempotency-Key was used for a different request: send a new key."
            )
        if stored.status is Status.CANCELLED:
            raise Conflict(
                f"The timer of this Idempotency-Key, {stored.id}, was cancelled."
                " To create another timer, send a new key."
            )
        if stored.version > 1:
            return stored
        # Its creator may still roll it back if the schedule is refused.
        confirmed = stored.confirm()
        return confirmed if self._store.replace(confirmed) else None

    def _each(
        self, command: Callable[[T], R], items: Sequence[T | Exception]
    ) -> list[R | Exception]:
        valid = [item for item in items if not isinstance(item, Exception)]
        results = iter(self._concurrently(command, valid))
        return [item if isinstance(item, Exception) else next(results) for item in items]
