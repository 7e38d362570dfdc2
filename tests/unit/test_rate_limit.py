"""The rate limiter: how many requests pass, and which buckets are kept."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standalone.rate_limit import (
    BURST_SECONDS,
    DEFAULT_RATE,
    MAX_RATE,
    PURGE_THRESHOLD,
    RateLimiter,
)
from tests.support.clocks import SECOND, Nanoseconds


def passed(limit: RateLimiter, asked: int, caller: str = "a") -> int:
    return sum(limit.take(caller) for _ in range(asked))


TABLE = {
    "one a second": (1, [(0, 5, 2), (0.999, 1, 0), (0.001, 2, 1), (0.5, 1, 0), (0.5, 2, 1)]),
    "as on AWS": (
        DEFAULT_RATE,
        [(0, 2000, 1000), (0.002, 9, 1), (0.001, 9, 0), (0.999, 2000, 500)],
    ),
    "idle": (10, [(0, 20, 20), (1, 20, 10), (3600, 50, 20), (0, 1, 0)]),
    "half used": (10, [(0, 10, 10), (0, 20, 10), (0.5, 9, 5)]),
    "steadily below": (4, [(0.25, 1, 1)] * 50),
    "steadily above": (4, [(0, 8, 8)] + [(0.125, 1, 0), (0.125, 1, 1)] * 20),
    "no whole nanoseconds": (3, [(0, 9, 6), (0.999999999, 9, 2), (0.000000003, 9, 1)]),
    "most": (MAX_RATE, [(0, 3 * MAX_RATE, 2 * MAX_RATE), (0.00001, 2, 1)]),
}
"""Rate, and steps: seconds that pass, requests at once after them, requests that are allowed."""


@pytest.mark.parametrize(("rate", "steps"), TABLE.values(), ids=TABLE)
def test_bursts_and_refills(rate: int, steps: list[tuple[float, int, int]]) -> None:
    """A full bucket holds BURST_SECONDS of tokens; then they come back at the rate."""
    clock = Nanoseconds()
    limit = RateLimiter(rate, clock)
    for seconds, asked, expected in steps:
        clock.forward(seconds)
        assert passed(limit, asked) == expected


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, 60)), max_size=20),
)
def test_limits_requests_to_burst_and_rate(rate: int, steps: list[tuple[int, int]]) -> None:
    """In any interval, at most a full bucket plus the returned tokens pass; and a refused caller
    gets a token within a second."""
    clock = Nanoseconds()
    limit = RateLimiter(rate, clock)
    seen: list[tuple[int, int]] = []
    for nanoseconds, asked in steps:
        clock.now += nanoseconds
        seen.append((clock.now, passed(limit, asked)))
    for first, last in combinations_with_replacement(range(len(seen)), 2):
        elapsed = (seen[last][0] - seen[first][0]) / SECOND
        assert sum(count for _, count in seen[first : last + 1]) <= rate * (BURST_SECONDS + elapsed)
    passed(limit, BURST_SECONDS * rate)
    clock.forward(1)
    assert limit.take("a")


def test_each_caller_has_a_bucket() -> None:
    """Callers do not take tokens from each other."""
    limit = RateLimiter(5, Nanoseconds())
    assert passed(limit, 50, "a") == 10
    assert passed(limit, 50, "b") == 10
    assert passed(limit, 50, "a") == 0


def test_removes_full_buckets() -> None:
    """However many callers there were, only recent buckets stay in memory."""
    clock = Nanoseconds()
    limit = RateLimiter(1, clock)
    for number in range(20 * PURGE_THRESHOLD):
        assert limit.take(str(number))
        clock.forward(0.01)  # 100 callers per second; each bucket is full after one
        assert len(limit._full_at) <= PURGE_THRESHOLD + 1


def test_keeps_buckets_in_use() -> None:
    """Many other callers do not reset a caller's bucket."""
    clock = Nanoseconds()
    limit = RateLimiter(1, clock)
    assert passed(limit, 3, "a") == 2
    for number in range(5 * PURGE_THRESHOLD):
        assert limit.take(str(number))
    assert not limit.take("a")
    assert len(limit._full_at) == 5 * PURGE_THRESHOLD + 1
    clock.forward(2)
    for number in range(10 * PURGE_THRESHOLD):  # purges are rarer, but still happen
        limit.take(f"later {number}")
        clock.forward(0.01)
    assert len(limit._full_at) <= 2 * PURGE_THRESHOLD


class SlowDict(dict[str, int]):
    """A dict whose `get` lets other threads run before the caller goes on."""

    def get(self, caller: str, default: Any = None) -> Any:
        found = super().get(caller, default)
        time.sleep(0.0001)
        return found


def test_threads_share_a_bucket() -> None:
    """Concurrent threads together get exactly one full bucket."""
    limit = RateLimiter(20, Nanoseconds())
    limit._full_at = SlowDict()
    together = threading.Barrier(8)

    def ask(_: int) -> int:
        together.wait(60)
        return passed(limit, 40)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 40


def test_threads_keep_the_limit_on_the_real_clock() -> None:
    """Concurrent threads on the real clock get at most a full bucket plus returned tokens."""
    rate = 100
    began = time.monotonic_ns()
    limit = RateLimiter(rate, time.monotonic_ns)
    limit._full_at = SlowDict()

    def ask(_: int) -> int:
        count = 0
        while time.monotonic_ns() < began + SECOND // 2:
            count += limit.take("a")
        return count

    with ThreadPoolExecutor(8) as pool:
        count = sum(pool.map(ask, range(8)))
    assert (
        BURST_SECONDS * rate
        <= count
        <= rate * (BURST_SECONDS + (time.monotonic_ns() - began) / SECOND)
    )
