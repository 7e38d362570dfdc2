"""The retry policy: a table of decisions, and the bounds of the waits."""

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
        # Transient failures wait half of 10 s, then four times as long each time.
        (answered(500), 1, RetryPolicy(), 5),
        (answered(500), 2, RetryPolicy(), 20),
        (answered(500), 7, RetryPolicy(), 20_480),
        (answered(500), 8, RetryPolicy(), None),
        # … up to max_delay, until max_attempts.
        (answered(503), 1, THREE, 30),
        (answered(503), 2, THREE, 50),
        (answered(503), 3, THREE, None),
        (answered(503), 1, RetryPolicy(max_attempts=1), None),
        # Transient statuses, and permanent ones.
        *((answered(status), 1, RetryPolicy(), 5) for status in (408, 425, 429, 502, 504, 599)),
        *((answered(status), 1, RetryPolicy(), 5) for status in (100, 103)),
        *((answered(status), 1, RetryPolicy(), None) for status in (301, 304, 307, 308)),
        *((answered(status), 1, RetryPolicy(), None) for status in (400, 401, 404, 409, 410, 422)),
        (NO_CONTENT, 1, RetryPolicy(), None),
        # Transient errors, and permanent ones.
        *((Outcome(error=e), 1, RetryPolicy(), 5) for e in ("dns", "connect", "tls", "timeout")),
        *((Outcome(error=e), 1, RetryPolicy(), None) for e in ("refused target", "too large")),
        # A lost worker says nothing about the receiver, so the retry is immediate.
        (WORKER_LOST, 1, RetryPolicy(), 0),
        (WORKER_LOST, 7, RetryPolicy(), 0),
        (WORKER_LOST, 8, RetryPolicy(), None),
        # The wait is added to Retry-After, up to max_delay.
        (answered(503, 7), 1, RetryPolicy(), 12),
        (answered(429, 0), 1, RetryPolicy(), 5),
        (answered(503, 10**9), 1, RetryPolicy(), 43_200),
        (answered(503, 40), 1, THREE, 70),
        (answered(503, 90), 1, THREE, 100),
        (answered(503, 500), 1, THREE, 100),
        (answered(404, 7), 1, RetryPolicy(), None),
    ],
)
def test_decides_whether_and_when_to_retry(
    outcome: Outcome, attempt: int, policy: RetryPolicy, seconds: float | None
) -> None:
    """The outcome, the attempt's number and the policy decide; chance is 0.5 here."""
    timer = replace(delivering(), attempt=attempt, retry=policy)
    again = next_attempt_at(timer, outcome, NOW, HALF)
    assert again == (None if seconds is None else NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(("attempt", "again"), [(8, True), (9, True), (10, False)])
def test_attempts_before_a_new_deadline_do_not_count(attempt: int, again: bool) -> None:
    """The policy starts over when the owner sets a new deadline or retries the timer."""
    timer = replace(delivering(), attempt=attempt, attempts_before=2)
    assert (next_attempt_at(timer, answered(500), NOW, HALF) is not None) is again


def test_default_policy_lasts_about_eight_hours() -> None:
    """The waits between the eight attempts add up to 7.6 hours on average."""
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
def test_waits_are_bounded(
    initial: int, longest: int, made: int, chance: float, after: float | None
) -> None:
    """No wait exceeds max_delay; without Retry-After none exceeds the exponential bound."""
    policy = RetryPolicy(max_attempts=16, initial_delay=initial, max_delay=longest)
    timer = replace(delivering(), attempt=made, retry=policy)
    again = next_attempt_at(timer, answered(503, after), NOW, chance)
    assert again is not None
    wait = (again - NOW).total_seconds()
    assert 0 <= wait <= longest
    if after is None:
        assert wait <= initial * 4 ** (made - 1)
