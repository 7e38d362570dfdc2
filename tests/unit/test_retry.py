"""When to try again: one table, and the bounds of what it comes to."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chalicelib.core.retry import WORKER_LOST, longest_wait, next_attempt_at
from chalicelib.core.timer import Outcome, RetryPolicy
from tests.support.fakes import NO_CONTENT, START
from tests.unit.test_timer import delivering

NOW = START + timedelta(hours=3)
HALF = 0.5
THREE = RetryPolicy(max_attempts=3, initial_delay=60, max_delay=100)


def answered(status: int, retry_after: float | None = None) -> Outcome:
    return Outcome(status=status, retry_after=retry_after)


@pytest.mark.parametrize(
    ("outcome", "attempt", "policy", "seconds"),
    [
        # What may pass waits a share of 10 s, then of four times as long each time.
        (answered(500), 1, RetryPolicy(), 5),
        (answered(500), 2, RetryPolicy(), 20),
        (answered(500), 7, RetryPolicy(), 20_480),
        (answered(500), 8, RetryPolicy(), None),
        # … up to the longest wait, as many times as the policy has it.
        (answered(503), 1, THREE, 30),
        (answered(503), 2, THREE, 50),
        (answered(503), 3, THREE, None),
        (answered(503), 1, RetryPolicy(max_attempts=1), None),
        # Answers that may be different next time, and those that may not.
        *((answered(status), 1, RetryPolicy(), 5) for status in (408, 425, 429, 502, 504, 599)),
        *((answered(status), 1, RetryPolicy(), 5) for status in (100, 103)),
        *((answered(status), 1, RetryPolicy(), None) for status in (301, 304, 307, 308)),
        *((answered(status), 1, RetryPolicy(), None) for status in (400, 401, 404, 409, 410, 422)),
        (NO_CONTENT, 1, RetryPolicy(), None),
        # Errors likewise.
        *((Outcome(error=e), 1, RetryPolicy(), 5) for e in ("dns", "connect", "tls", "timeout")),
        *((Outcome(error=e), 1, RetryPolicy(), None) for e in ("refused target", "too large")),
        # A lost worker says nothing about the receiver: at once.
        (WORKER_LOST, 1, RetryPolicy(), 0),
        (WORKER_LOST, 7, RetryPolicy(), 0),
        (WORKER_LOST, 8, RetryPolicy(), None),
        # Retry-After comes before the wait, up to the longest.
        (answered(503, 7), 1, RetryPolicy(), 12),
        (answered(429, 0), 1, RetryPolicy(), 5),
        (answered(503, 10**9), 1, RetryPolicy(), 43_200),
        (answered(503, 40), 1, THREE, 70),
        (answered(503, 90), 1, THREE, 100),
        (answered(503, 500), 1, THREE, 100),
        (answered(404, 7), 1, RetryPolicy(), None),
    ],
)
def test_decision(
    outcome: Outcome, attempt: int, policy: RetryPolicy, seconds: float | None
) -> None:
    """What an attempt came to, the how manieth it was and the policy decide; half of the longest
    wait is taken here."""
    timer = replace(delivering(), attempt=attempt, retry=policy)
    again = next_attempt_at(timer, outcome, NOW, HALF)
    assert again == (None if seconds is None else NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(("attempt", "again"), [(8, True), (9, True), (10, False)])
def test_attempts_before_a_redrive_do_not_count(attempt: int, again: bool) -> None:
    """The policy begins anew when the owner sets a new moment."""
    timer = replace(delivering(), attempt=attempt, attempts_before=2)
    assert (next_attempt_at(timer, answered(500), NOW, HALF) is not None) is again


def test_the_default_lasts_about_eight_hours() -> None:
    """Eight attempts, whose waits come to 7.6 hours on average."""
    policy = RetryPolicy()
    average = sum(longest_wait(policy, made) for made in range(1, policy.max_attempts)) / 2
    assert 7.5 < average / 3600 < 8


@given(
    initial=st.integers(1, 86_400),
    longest=st.integers(1, 86_400),
    made=st.integers(1, 15),
    chance=st.floats(0, 1),
    after=st.none() | st.floats(0, 1e12),
)
def test_bounds(initial: int, longest: int, made: int, chance: float, after: float | None) -> None:
    """No wait is negative, none exceeds the longest, whatever the receiver asks for; without a
    wish of its own none exceeds the exponential bound."""
    policy = RetryPolicy(max_attempts=16, initial_delay=initial, max_delay=longest)
    timer = replace(delivering(), attempt=made, retry=policy)
    again = next_attempt_at(timer, answered(503, after), NOW, chance)
    assert again is not None
    wait = (again - NOW).total_seconds()
    assert 0 <= wait <= longest
    if after is None:
        assert wait <= initial * 4 ** (made - 1)
