"""The use cases, and the Protocols of what they need from outside."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from random import random
from typing import Any, NamedTuple, Protocol, TypeVar

from chalicelib.core import representation, retry
from chalicelib.core.errors import KeyReused, ScheduleRefused, TimerNotFound, Unavailable
from chalicelib.core.pagination import Cursor, Page, TimerFilter
from chalicelib.core.timer import (
    WAITING,
    Outcome,
    Status,
    Timer,
    TimerSpec,
    Wakeup,
    Webhook,
    keyed_id,
    new_timer,
)

log = logging.getLogger(__name__)

LEASE_MARGIN = timedelta(seconds=5)
"""How long before its worker's end a POST must be over, to be recorded, and how long after that end
the lease lasts, for clocks that differ."""

MAX_EARLY_WAIT = timedelta(seconds=5)
"""A ring that is earlier than this is forwarded; one less early is waited out."""

SWEEP_GRACE = timedelta(seconds=30)
"""How long a timer may be overdue before the sweep takes it for forgotten."""

SWEEP_COOLDOWN = timedelta(minutes=5)
"""How long the sweep then leaves it alone."""

SWEEP_BATCH_SIZE = 500

MAX_SWEPT = 20_000
"""The most that one sweep rings for: more would only wait, and be rung for again meanwhile."""

RECORD_RETRY_PAUSE = 0.5
"""Seconds between two tries to record an outcome while the store does not answer."""

RECORD_RESERVE = timedelta(seconds=10)
"""How long before its worker's end no further try begins."""

MAX_RACES = 10
"""How often a change starts over because another one came between its read and its write."""


MAX_THREADS = 32
"""Calls that are made at the same time, at most."""

MAX_PAGES_READ = 10
"""How many pages are read to fill one, where most timers do not match."""

T = TypeVar("T")
R = TypeVar("R")

SideBySide = Callable[[Sequence[Callable[[], object]]], list[BaseException | None]]
"""Makes calls, at the same time or not; returns what each has raised, in their order."""


def one_by_one(calls: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    """Make the calls after one another."""
    faults: list[BaseException | None] = []
    for call in calls:
        try:
            call()
        except Exception as fault:
            faults.append(fault)
        else:
            faults.append(None)
    return faults


def in_threads(calls: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    """Run the calls in a thread each; all are over when this returns."""
    with ThreadPoolExecutor(min(len(calls), MAX_THREADS) or 1) as pool:
        return [future.exception() for future in [pool.submit(call) for call in calls]]


class Created(NamedTuple):
    """A timer that was asked for."""

    timer: Timer
    is_new: bool
    """False if an earlier request with the same Idempotency-Key has made it."""


class Store(Protocol):
    """Keeps timers. Whatever it has confirmed outlives a crash.

    Every method raises Unavailable if the store does not answer.
    """

    def add(self, timer: Timer) -> bool:
        """Store a new timer; False, and nothing changed, if the id exists."""

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        """Return the timer as last written, or None."""

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Timer | None:
        """Do `timers.claim` in one step that no other write can come between."""

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        """Write the timer if the stored version is `timer.version - 1`; say whether it was.

        `adding` is a new timer that is stored in the same step, or not at all. To write once more
        exactly what is stored may count as written.
        """

    def replace_all(self, changed: Sequence[Timer]) -> list[Timer]:
        """Do `replace` for each; return those that were written, in their order."""

    def remove(self, timer: Timer) -> bool:
        """Delete the timer if it is stored in this very version; say whether it is gone."""

    def overdue(self, before: datetime, limit: int) -> list[Timer]:
        """Return timers with `wake_at` before that moment, longest overdue first."""

    def page(self, tenant: str, listing: TimerFilter, before: Cursor | None, limit: int) -> Page:
        """Return at most `limit` of the tenant's timers that match, newest first.

        They stand behind `before`, if given. A page may be short, even empty, with more behind it.
        """

    def check(self) -> None:
        """Return if the store works, or raise Unavailable."""


class Scheduler(Protocol):
    """Sees to it that `Service.deliver` is called with a timer's Ring when its attempt is due.

    It may ring late, twice, or for what is long over; the store decides. Methods raise Unavailable
    if the alarm may not have been set, AlarmRefused if it definitely was not.
    """

    def schedule(self, timer: Timer) -> None:
        """Ring for the timer's present generation at `timer.due_at`."""

    def unschedule(self, timer: Timer) -> None:
        """Take back the alarm of this generation, as far as that goes."""

    def requeue(self, wakeups: Sequence[Wakeup]) -> None:
        """Ring again when each is due, at once if it is; no lasting alarm is set for it.

        A ring that was forwarded too often is dropped, for the sweep to find its timer.
        """

    def is_behind(self) -> bool:
        """Say whether so much is due already that the sweep should add nothing."""

    def check(self) -> None:
        """Return if alarms are going off, or raise Unavailable."""


class Sender(Protocol):
    """Posts webhooks."""

    def send(self, timer: Timer, at: datetime) -> Outcome:
        """Make one attempt at `at`, over within `timer.timeout`. A failure is an Outcome.

        Only Unavailable escapes, and only if nothing was sent.
        """


class Service:
    """What can be done with timers, whatever they are kept in and sent by.

    `clock` returns the aware UTC time, `new_id` an unused timer id, `pause` sleeps for seconds,
    `chance` is a random number from 0 to 1, `side_by_side` makes the calls of a sweep and of
    requests for many timers.
    """

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        sender: Sender,
        *,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        pause: Callable[[float], None],
        chance: Callable[[], float] = random,
        side_by_side: SideBySide = one_by_one,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._sender = sender
        self._clock = clock
        self._new_id = new_id
        self._pause = pause
        self._chance = chance
        self._side_by_side = side_by_side

    def now(self) -> datetime:
        """Return the time that deadlines are measured against."""
        return self._clock()

    def create(self, tenant: str, order: TimerSpec) -> Created:
        """Store a timer and set its alarm, once for each Idempotency-Key.

        Raises KeyReused if the key was for something else.
        """
        timer = self._new(tenant, order)
        for _ in range(MAX_RACES):
            if self._store.add(timer):
                self._arm_new(timer)
                _log("timer created", timer)
                return Created(timer, is_new=True)
            if order.idempotency_key is None:
                raise Unavailable("The new timer's id was taken; please send the request again.")
            if (earlier := self._earlier(timer)) is not None:
                return Created(earlier, is_new=False)
        raise Unavailable("There are too many requests with this key at once.")

    def create_all(
        self, tenant: str, orders: Sequence[TimerSpec | Exception]
    ) -> list[Created | Exception]:
        """Create each, at the same time; return what became of it. An error stays what it is."""
        return self._each(lambda order: self.create(tenant, order), orders)

    def get(self, tenant: str, timer_id: str) -> Timer:
        """Return the tenant's timer or raise TimerNotFound."""
        timer = self._store.get(tenant, timer_id)
        if timer is None or timer.is_expired(self._clock()):
            raise TimerNotFound("There is no timer with this id.")
        return timer

    def page(self, tenant: str, listing: TimerFilter, before: Cursor | None, limit: int) -> Page:
        """Return the tenant's newest timers that match; see `Store.page`."""
        found: list[Timer] = []
        for _ in range(MAX_PAGES_READ):
            page = self._store.page(tenant, listing, before, limit - len(found))
            found += [timer for timer in page.timers if not timer.is_expired(self._clock())]
            before = page.next
            if before is None or len(found) >= limit:
                break
        return Page(found, before)

    def cancel(self, tenant: str, timer_id: str) -> Timer:
        """Cancel a waiting timer; no webhook leaves after this returns. Raise Conflict else."""
        before, after = self._change(tenant, timer_id, Timer.cancel)
        # Also when it is repeated: the alarm may have stayed when it could not be cleared.
        self._clear(before)
        if after is not before:
            _log("timer cancelled", after)
        return after

    def cancel_all(self, tenant: str, timer_ids: Sequence[str]) -> list[Timer | Exception]:
        """Cancel each, at the same time; return what became of it."""
        return self._each(lambda timer_id: self.cancel(tenant, timer_id), timer_ids)

    def change(
        self,
        tenant: str,
        timer_id: str,
        deadline: datetime | None = None,
        edit: Callable[[Webhook], Webhook] = lambda webhook: webhook,
    ) -> Timer:
        """Edit a waiting timer's webhook; a new deadline puts all its attempts ahead of it."""
        before, after = self._change(
            tenant, timer_id, lambda timer, _: timer.change(edit(timer), deadline)
        )
        if deadline is not None:
            self._rearm(before, after)
        _log("timer changed", after)
        return after

    def fire_now(self, tenant: str, timer_id: str) -> Timer:
        """Make a waiting timer due now, with all its attempts ahead of it."""
        before, after = self._change(tenant, timer_id, Timer.fire_now)
        self._rearm(before, after)
        _log("timer fired", after)
        return after

    def retry(self, tenant: str, timer_id: str) -> Timer:
        """Put a failed timer back: due now, with all its attempts ahead of it."""
        before, after = self._change(tenant, timer_id, Timer.retry_now)
        self._rearm(before, after)
        _log("timer retried", after)
        return after

    def retry_all(self, tenant: str, timer_ids: Sequence[str]) -> list[Timer | Exception]:
        """Put each failed timer back, at the same time; return what became of it."""
        return self._each(lambda timer_id: self.retry(tenant, timer_id), timer_ids)

    def fire(self, wakeup: Wakeup) -> None:
        """Answer an alarm that went off ahead of time, or behind it to make sure: ring when due."""
        timer = self._store.get(wakeup.tenant, wakeup.id)
        if timer is None or not _waits_for(timer, wakeup):
            _log_ignored(wakeup)
            return
        self._scheduler.requeue([wakeup])

    def deliver(self, wakeup: Wakeup, ends_at: datetime) -> None:
        """Answer an alarm: claim the timer, post its webhook, record what came of it.

        `ends_at` is when this worker will be gone, at the latest. Only Unavailable escapes, and
        then the alarm may ring again.
        """
        if wakeup.due_at - self._clock() > MAX_EARLY_WAIT:
            self._scheduler.requeue([wakeup])
            return
        while (early := wakeup.due_at - self._clock()) > timedelta(0):
            self._pause(early.total_seconds())
        timer = self._store.claim(wakeup, self._clock(), ends_at + LEASE_MARGIN)
        if timer is None:
            _log_ignored(wakeup)
            return
        at = self._clock()
        timeout = timedelta(seconds=timer.timeout)
        if not timer.due_at <= at <= ends_at - timeout - LEASE_MARGIN:
            # The worker was held up, or the clock stepped back: leave it to the next ring.
            _log("claim released", timer, logging.WARNING)
            if self._replace_while_leased(timer.release(), timer):
                self._scheduler.requeue([wakeup])
            return
        try:
            outcome = self._sender.send(timer, at)
        except Unavailable:
            # Nothing was sent, so this is no attempt: the next ring, or the sweep, makes one.
            self._replace_while_leased(timer.release(), timer)
            raise
        self._record(timer, outcome, at)

    def sweep(self, until: datetime) -> int:
        """Look after timers that their alarm has forgotten, until that moment; return how many.

        Those are the overdue, those whose alarm could not be set, and those whose worker is lost.
        While the alarm is behind, the overdue are left to it, and what comes after them waits too.
        """
        found = 0
        while found < MAX_SWEPT and self._clock() < until:
            batch = self._store.overdue(self._clock() - SWEEP_GRACE, SWEEP_BATCH_SIZE)
            revived = self._revive(batch)
            found += revived
            if not revived:
                break
        return found

    def reclaim(self, timer: Timer) -> bool:
        """Take a claim from a worker that is certainly dead; count it as an attempt."""
        now = self._clock()
        retry_at = retry.next_attempt_at(timer, retry.WORKER_LOST, now, self._chance())
        after = timer.record(retry.WORKER_LOST, now, retry_at)
        notice = _notice(after, now)
        if not self._store.replace(after, notice):
            return False
        _log("timer reclaimed", after, logging.WARNING)
        self._follow_up(timer, after, notice)
        return True

    def check(self) -> None:
        """Return if timers can be stored and fire, or raise Unavailable."""
        self._store.check()
        self._scheduler.check()

    def _new(self, tenant: str, order: TimerSpec) -> Timer:
        id, fingerprint = self._new_id(), None
        if order.idempotency_key is not None:
            id, fingerprint = (
                keyed_id(tenant, order.idempotency_key.key),
                order.idempotency_key.fingerprint,
            )
        return new_timer(id, tenant, order.webhook, order.deadline, self._clock(), fingerprint)

    def _arm_new(self, timer: Timer) -> None:
        try:
            self._scheduler.schedule(timer)
        except ScheduleRefused:
            # First: once it is removed, the next one with its key has an alarm of the same name.
            self._clear(timer)
            if self._store.remove(timer):
                raise
            self._leave_to_sweep(timer)
        except Unavailable:
            self._leave_to_sweep(timer)

    def _earlier(self, timer: Timer) -> Timer | None:
        """Return the timer that has this one's id, if that can be promised to somebody.

        None if it is gone by now, or changing: try again.
        """
        kept = self._store.get(timer.tenant, timer.id)
        if kept is None:
            return None
        if kept.is_expired(self._clock()):
            self._store.remove(kept)
            return None
        if kept.fingerprint != timer.fingerprint:
            raise KeyReused("This Idempotency-Key was used for a different request.")
        if kept.version > 1:
            return kept
        # Its creator may be about to take it back.
        promised = kept.confirm()
        return promised if self._store.replace(promised) else None

    def _each(self, what: Callable[[T], R], of: Sequence[T | Exception]) -> list[R | Exception]:
        results: list[R | Exception] = [
            it if isinstance(it, Exception) else Unavailable("It was not tried.") for it in of
        ]

        def call(index: int, it: T) -> None:
            results[index] = what(it)

        given = [(index, it) for index, it in enumerate(of) if not isinstance(it, Exception)]
        faults = self._side_by_side([partial(call, index, it) for index, it in given])
        for (index, _), fault in zip(given, faults, strict=True):
            if isinstance(fault, Exception):
                results[index] = fault
        return results

    def _change(
        self, tenant: str, timer_id: str, decide: Callable[[Timer, datetime], Timer]
    ) -> tuple[Timer, Timer]:
        for _ in range(MAX_RACES):
            before = self.get(tenant, timer_id)
            after = decide(before, self._clock())
            if after is before or self._store.replace(after):
                return before, after
        raise Unavailable("The timer is being changed by too many requests at once.")

    def _record(self, claimed: Timer, outcome: Outcome, at: datetime) -> None:
        now = self._clock()
        retry_at = retry.next_attempt_at(claimed, outcome, now, self._chance())
        after = claimed.record(outcome, at, retry_at)
        notice = _notice(after, now)
        if not self._replace_while_leased(after, claimed, notice):
            _log("outcome dropped", after, logging.WARNING)
            return
        _log("webhook delivered" if outcome.succeeded else "webhook failed", after)
        self._follow_up(claimed, after, notice)

    def _follow_up(self, before: Timer, after: Timer, notice: Timer | None) -> None:
        if after.status is Status.RETRYING:
            self._rearm(before, after)
        if notice is not None:
            self._arm(notice)
            _log("timer created", notice)

    def _replace_while_leased(
        self, after: Timer, claimed: Timer, notice: Timer | None = None
    ) -> bool:
        # An outcome that is not recorded is a webhook sent twice: keep trying while we may.
        while True:
            try:
                return self._store.replace(after, notice)
            except Unavailable:
                if (
                    claimed.wake_at is None
                    or self._clock() >= claimed.wake_at - LEASE_MARGIN - RECORD_RESERVE
                ):
                    raise
                self._pause(RECORD_RETRY_PAUSE)

    def _revive(self, batch: Sequence[Timer]) -> int:
        lost = [timer for timer in batch if timer.status is Status.DELIVERING]
        waiting = [timer for timer in batch if timer.status in WAITING]
        if any(timer.armed for timer in waiting) and self._scheduler.is_behind():
            waiting = [timer for timer in waiting if not timer.armed]
        freed: list[bool] = []
        self._attempt(lambda timer: freed.append(self.reclaim(timer)), lost)
        # First out of the sweep's sight, then rung: overlapping sweeps ring once.
        again_at = self._clock() + SWEEP_COOLDOWN
        kept = self._store.replace_all([timer.with_next_check(again_at) for timer in waiting])
        for timer in kept:
            _log("timer requeued", timer, logging.WARNING)
        self._attempt(self._arm_late, [timer for timer in kept if not timer.armed])
        # Last, since a fault here ends the sweep: with no way to ring, more would only be put off.
        self._scheduler.requeue([timer.wakeup() for timer in kept if timer.armed])
        return sum(freed) + len(kept)

    def _attempt(self, what: Callable[[Timer], object], batch: Sequence[Timer]) -> None:
        # One timer that can't be helped now must not keep the sweep from the others.
        faults = self._side_by_side([partial(what, timer) for timer in batch])
        for timer, fault in zip(batch, faults, strict=True):
            if fault is None:
                continue
            if not isinstance(fault, Unavailable):
                raise fault
            _log("timer postponed", timer, logging.WARNING, error=str(fault))

    def _arm_late(self, timer: Timer) -> None:
        self._scheduler.schedule(timer)
        if not self._store.replace(timer.mark_armed()) and self._is_overtaken(timer):
            self._clear(timer)

    def _arm(self, timer: Timer) -> None:
        # The moment is stored, so it counts; an alarm that can't be set now is set by the sweep.
        try:
            self._scheduler.schedule(timer)
        except Unavailable:
            self._leave_to_sweep(timer)

    def _rearm(self, before: Timer, after: Timer) -> None:
        self._arm(after)
        self._clear(before)
        # Whoever was faster could not clear an alarm that was not set yet.
        if self._is_overtaken(after):
            self._clear(after)

    def _is_overtaken(self, timer: Timer) -> bool:
        try:
            current = self._store.get(timer.tenant, timer.id)
        except Unavailable:
            return False
        return current is None or not _waits_for(current, timer.wakeup())

    def _leave_to_sweep(self, timer: Timer) -> None:
        def unarm(current: Timer, now: datetime) -> Timer:
            waits = _waits_for(current, timer.wakeup())
            return current.mark_unarmed(now) if waits else current

        try:
            self._change(timer.tenant, timer.id, unarm)
        except (Unavailable, TimerNotFound):
            # Then the sweep finds it when it is overdue.
            _log("timer not scheduled", timer, logging.ERROR)

    def _clear(self, timer: Timer) -> None:
        try:
            self._scheduler.unschedule(timer)
        except Unavailable:
            # It will ring for an older generation or a finished timer, and do nothing.
            _log("schedule not deleted", timer, logging.WARNING)


def _waits_for(timer: Timer, wakeup: Wakeup) -> bool:
    # Its generation says it all; what else a ring carries may differ between versions.
    return timer.status in WAITING and timer.generation == wakeup.generation


def _notice(timer: Timer, now: datetime) -> Timer | None:
    if timer.status is not Status.FAILED or timer.on_failure is None:
        return None
    return timer.failure_notice(representation.represent_failure(timer, now), now)


def _log_ignored(wakeup: Wakeup) -> None:
    fields = {"timer": wakeup.id, "tenant": wakeup.tenant, "generation": wakeup.generation}
    log.info("wake-up ignored", extra=fields)


def _log(event: str, timer: Timer, level: int = logging.INFO, **more: str) -> None:
    fields: dict[str, Any] = {"timer": timer.id, "tenant": timer.tenant, "state": timer}
    log.log(level, event, extra=fields | more)
