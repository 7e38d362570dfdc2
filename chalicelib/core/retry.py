"""When to try again, or never: pure decisions on what an attempt came to."""

from datetime import datetime, timedelta
from http import HTTPStatus

from chalicelib.core.timer import Outcome, RetryPolicy, Timer

WORKER_LOST = Outcome(error="worker lost", detail="the process that was sending it died")
"""What a claim came to whose lease ran out."""

BACKOFF_FACTOR = 4
"""How many times as long as the one before each wait may be."""

TRANSIENT_ERRORS = frozenset({"dns", "connect", "tls", "timeout", WORKER_LOST.error})
"""Classes of errors that may be over by the next attempt."""

TRANSIENT_STATUSES = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)


def is_transient(outcome: Outcome) -> bool:
    """Say whether the same request may succeed later.

    A 1xx as the final answer is half an answer; a redirect is never followed, so it is none.
    """
    if outcome.status is None:
        return outcome.error in TRANSIENT_ERRORS
    return outcome.status in TRANSIENT_STATUSES or not 200 <= outcome.status < 500


def longest_wait(policy: RetryPolicy, made: int) -> int:
    """Return the most seconds to wait after so many attempts were made."""
    return int(min(policy.initial_delay * BACKOFF_FACTOR ** (made - 1), policy.max_delay))


def next_attempt_at(
    timer: Timer, outcome: Outcome, now: datetime, chance: float
) -> datetime | None:
    """Return when the claimed timer is to be tried again after this outcome, or None for never.

    `chance` is a random number from 0 to 1: waits are spread over their whole range (full jitter),
    so that many timers that failed together do not come back together.
    """
    made = timer.attempt - timer.attempts_before
    if not is_transient(outcome) or made >= timer.retry.max_attempts:
        return None
    if outcome.error == WORKER_LOST.error:
        return now  # the receiver has not said anything
    wait = chance * longest_wait(timer.retry, made)
    if outcome.retry_after is not None:
        # Later than asked for by a random wait, or all who were told the same come at once.
        wait = min(outcome.retry_after + wait, timer.retry.max_delay)
    return now + timedelta(seconds=wait)
