"""The work that the service does without a request: fire, deliver, sweep, reclaim."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from random import random

from chalicelib.core import retry
from chalicelib.core.errors import Unavailable
from chalicelib.core.representation import represent_failure
from chalicelib.core.timer import WAITING, Outcome, Status, Timer, Wakeup
from chalicelib.service.concurrency import MapConcurrently, one_by_one
from chalicelib.service.ports import Scheduler, Sender, Store
from chalicelib.service.transitions import Transitions, log_timer

log = logging.getLogger(__name__)

LEASE_MARGIN = timedelta(seconds=5)
"""An attempt must end this long before its worker does, so that its outcome can be recorded. The
lease lasts this much longer than the worker, because clocks differ."""

MAX_EARLY_WAIT = timedelta(seconds=5)
"""How long a worker waits until an early wake-up is due; an even earlier one is requeued."""

SWEEP_GRACE = timedelta(seconds=30)
"""How long a timer is overdue before the sweep requeues it."""

SWEEP_COOLDOWN = timedelta(minutes=5)
"""How long later sweeps ignore a timer that a sweep has handled."""

SWEEP_BATCH_SIZE = 500

MAX_SWEPT = 20_000
"""The most timers in one sweep: more would still be waiting when their cooldown ends."""

RECORD_RETRY_PAUSE = 0.5
"""Seconds between two tries to record an outcome while the store does not respond."""

RECORD_RESERVE = timedelta(seconds=10)
"""No further try to record an outcome starts this shortly before the worker ends."""


class Worker:
    """Delivers due timers, and finds forgotten ones.

    `clock` returns the aware UTC time, `pause` sleeps for seconds, `chance` returns a random number
    from 0 to 1, `concurrently` calls a function for many timers of a sweep.
    """

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        sender: Sender,
        *,
        clock: Callable[[], datetime],
        pause: Callable[[float], None],
        chance: Callable[[], float] = random,
        concurrently: MapConcurrently = one_by_one,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._sender = sender
        self._clock = clock
        self._pause = pause
        self._chance = chance
        self._concurrently = concurrently
        self._transitions = Transitions(store, scheduler)

    def fire(self, wakeup: Wakeup) -> None:
        """Handle a schedule: if the timer still waits for it, put its wake-up on the queue."""
        timer = self._store.get(wakeup.tenant, wakeup.id)
        if timer is None or not timer.awaits(wakeup):
            _log_ignored(wakeup)
            return
        self._scheduler.requeue([wakeup])

    def deliver(self, wakeup: Wakeup, ends_at: datetime) -> None:
        """Claim the timer, send its webhook, record the outcome.

        `ends_at` is when this worker ends at the latest. Raises only Unavailable; the wake-up
        may then be delivered again.
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
        if not timer.due_at <= at <= ends_at - timedelta(seconds=timer.timeout) - LEASE_MARGIN:
            # The worker was held up, or the clock stepped back.
            self._give_up_claim(timer, wakeup)
            return
        self._attempt(timer, at)

    def sweep(self, until: datetime) -> int:
        """Requeue, schedule or reclaim forgotten timers until that time; return how many.

        A forgotten timer is overdue, could not be scheduled, or has an expired lease. While the
        scheduler is behind, overdue timers are left to it.
        """
        swept = 0
        while swept < MAX_SWEPT and self._clock() < until:
            revived = self._revive(
                self._store.overdue(self._clock() - SWEEP_GRACE, SWEEP_BATCH_SIZE)
            )
            swept += revived
            if not revived:
                break
        return swept

    def reclaim(self, timer: Timer) -> bool:
        """End the claim of a worker that is certainly dead; count it as a failed attempt.

        Returns False if another process was faster.
        """
        now = self._clock()
        after = self._recorded(timer, retry.WORKER_LOST, now, now)
        notice = _failure_notice(after, now)
        if not self._store.replace(after, notice):
            return False
        log_timer("timer reclaimed", after, logging.WARNING)
        self._follow_up(timer, after, notice, now)
        return True

    def _give_up_claim(self, claimed: Timer, wakeup: Wakeup) -> None:
        log_timer("claim released", claimed, logging.WARNING)
        if self._replace_while_leased(claimed.release(), claimed):
            self._scheduler.requeue([wakeup])

    def _attempt(self, claimed: Timer, at: datetime) -> None:
        try:
            outcome = self._sender.send(claimed, at)
        except Unavailable:
            # Nothing was sent, so this is not an attempt. The next wake-up or the sweep makes one.
            self._replace_while_leased(claimed.release(), claimed)
            raise
        except Exception:  # after any crash the timer must not stay claimed
            self._record(claimed, retry.CRASHED, at)
            raise
        self._record(claimed, outcome, at)

    def _record(self, claimed: Timer, outcome: Outcome, at: datetime) -> None:
        now = self._clock()
        after = self._recorded(claimed, outcome, at, now)
        notice = _failure_notice(after, now)
        if not self._replace_while_leased(after, claimed, notice):
            log_timer("outcome dropped", after, logging.WARNING)
            return
        log_timer("webhook delivered" if outcome.succeeded else "webhook failed", after)
        self._follow_up(claimed, after, notice, now)

    def _recorded(self, claimed: Timer, outcome: Outcome, at: datetime, now: datetime) -> Timer:
        retry_at = retry.next_attempt_at(claimed, outcome, now, self._chance())
        return claimed.record(outcome, at, retry_at)

    def _follow_up(self, before: Timer, after: Timer, notice: Timer | None, now: datetime) -> None:
        if after.status is Status.RETRYING:
            self._transitions.reschedule(before, after, now)
        if notice is not None:
            self._transitions.schedule(notice, now)
            log_timer("timer created", notice)

    def _replace_while_leased(
        self, after: Timer, claimed: Timer, notice: Timer | None = None
    ) -> bool:
        # If the outcome is lost, the webhook is sent twice: try as long as the lease allows.
        while True:
            try:
                return self._store.replace(after, notice)
            except Unavailable:
                lease_until = claimed.wake_at
                if (
                    lease_until is None
                    or self._clock() >= lease_until - LEASE_MARGIN - RECORD_RESERVE
                ):
                    raise
                self._pause(RECORD_RETRY_PAUSE)

    def _revive(self, batch: Sequence[Timer]) -> int:
        expired = [timer for timer in batch if timer.status is Status.DELIVERING]
        waiting = [timer for timer in batch if timer.status in WAITING]
        if any(timer.armed for timer in waiting) and self._scheduler.is_behind():
            waiting = [timer for timer in waiting if not timer.armed]
        reclaimed = self._for_each(self.reclaim, expired)
        # Move `wake_at` before requeueing, so that overlapping sweeps requeue a timer once.
        next_check = self._clock() + SWEEP_COOLDOWN
        requeued = self._store.replace_all([timer.with_next_check(next_check) for timer in waiting])
        for timer in requeued:
            log_timer("timer requeued", timer, logging.WARNING)
        self._for_each(self._schedule_late, [timer for timer in requeued if not timer.armed])
        # Last, because a failure ends the sweep: no other timer could be requeued either.
        self._scheduler.requeue([timer.wakeup() for timer in requeued if timer.armed])
        return sum(map(bool, reclaimed)) + len(requeued)

    def _for_each(self, call: Callable[[Timer], object], batch: Sequence[Timer]) -> list[object]:
        """Call for each timer; return the results, without those that raised Unavailable."""
        results: list[object] = []
        for timer, result in zip(batch, self._concurrently(call, batch), strict=True):
            if isinstance(result, Unavailable):
                log_timer("timer postponed", timer, logging.WARNING, error=str(result))
            elif isinstance(result, Exception):
                raise result
            else:
                results.append(result)
        return results

    def _schedule_late(self, timer: Timer) -> None:
        self._scheduler.schedule(timer)
        if not self._store.replace(timer.mark_armed()) and self._transitions.is_overtaken(timer):
            self._transitions.unschedule(timer)


def _failure_notice(timer: Timer, now: datetime) -> Timer | None:
    if timer.status is not Status.FAILED or timer.on_failure is None:
        return None
    return timer.failure_notice(represent_failure(timer, now), now)


def _log_ignored(wakeup: Wakeup) -> None:
    fields = {"timer": wakeup.id, "tenant": wakeup.tenant, "generation": wakeup.generation}
    log.info("wake-up ignored", extra=fields)
