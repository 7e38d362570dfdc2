"""Retry policy: exponential backoff with full jitter. Pure: returns a decision."""

from datetime import datetime, timedelta
from http import HTTPStatus

from chalicelib.core.timer import Outcome, RetryPolicy, Timer

WORKER_LOST = Outcome(error="worker lost", detail="the process that was sending it died")
"""The outcome of an attempt whose lease expired."""

CRASHED = Outcome(error=WORKER_LOST.error, detail="the delivery crashed; the log says why")
"""The outcome of an attempt that an unexpected exception ended: the webhook may have arrived."""

BACKOFF_FACTOR = 4
"""Each wait's upper bound is this many times the previous one."""

TRANSIENT_ERRORS = frozenset({"dns", "connect", "tls", "timeout", WORKER_LOST.error})
"""Errors that may not occur again at the next attempt."""

TRANSIENT_STATUSES = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)


def is_transient(outcome: Outcome) -> bool:
    """Return whether the same request may succeed later.

    A final 1xx is an incomplete response, so it is transient. A redirect is permanent, because it
    is never followed.
    """
    if outcome.status is None:
        return outcome.error in TRANSIENT_ERRORS
    return outcome.status in TRANSIENT_STATUSES or not 200 <= outcome.status < 500


def longest_wait(policy: RetryPolicy, made: int) -> int:
    """Return the upper bound of the wait after `made` attempts, in seconds."""
    return int(min(policy.initial_delay * BACKOFF_FACTOR ** (made - 1), policy.max_delay))


def next_attempt_at(
    timer: Timer, outcome: Outcome, now: datetime, chance: float
) -> datetime | None:
    """Return when to retry the claimed timer after this outcome, or None for never.

    `chance` is a random number from 0 to 1. Full jitter spreads the waits over their whole range,
    so timers that failed together are not retried together.
    """
    made = timer.attempt - timer.attempts_before
    if not is_transient(outcome) or made >= timer.retry.max_attempts:
        return None
    if outcome == WORKER_LOST:
        return now  # not the receiver's fault
    wait = chance * longest_wait(timer.retry, made)
    if outcome.retry_after is not None:
        # The jitter comes on top: many timers may get the same Retry-After.
        wait = min(outcome.retry_after + wait, timer.retry.max_delay)
    return now + timedelta(seconds=wait)
