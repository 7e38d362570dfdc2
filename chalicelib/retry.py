"""When to try again, or never: pure decisions on what an attempt came to."""

from datetime import datetime

from chalicelib.timers import Outcome, Timer

WORKER_LOST = Outcome(error="worker lost", detail="the process that was sending it died")
"""What a claim came to whose lease ran out."""

MAX_ATTEMPTS = 8
"""After so many attempts a timer fails, so that one that kills its worker does not live forever."""


def next_attempt_at(timer: Timer, outcome: Outcome, now: datetime) -> datetime | None:
    """Return when the claimed timer is to be tried again after this outcome, or None for never."""
    made = timer.attempt - timer.attempts_before
    if outcome.error == WORKER_LOST.error and made < MAX_ATTEMPTS:
        return now
    return None
