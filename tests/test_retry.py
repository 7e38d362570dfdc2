"""When to try again: one table."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from chalicelib.retry import MAX_ATTEMPTS, WORKER_LOST, next_attempt_at
from chalicelib.timers import Outcome
from tests.fakes import NO_CONTENT, START
from tests.test_timers import delivering


@pytest.mark.parametrize(
    ("outcome", "attempt", "attempts_before", "again"),
    [
        (NO_CONTENT, 1, 0, False),
        (Outcome(status=500), 1, 0, False),
        (Outcome(error="connect"), 1, 0, False),
        (WORKER_LOST, 1, 0, True),
        (WORKER_LOST, MAX_ATTEMPTS - 1, 0, True),
        (WORKER_LOST, MAX_ATTEMPTS, 0, False),
        (WORKER_LOST, MAX_ATTEMPTS + 1, 2, True),
        (WORKER_LOST, MAX_ATTEMPTS + 2, 2, False),
    ],
)
def test_decision(outcome: Outcome, attempt: int, attempts_before: int, again: bool) -> None:
    """Only a lost worker's attempt is made again, at once, up to MAX_ATTEMPTS since the last
    moment that the owner set."""
    timer = replace(delivering(), attempt=attempt, attempts_before=attempts_before)
    now = START + timedelta(hours=3)
    assert next_attempt_at(timer, outcome, now) == (now if again else None)
