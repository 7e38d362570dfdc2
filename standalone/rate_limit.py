"""Rate limits by GCRA: a token bucket per caller, stored as the time at which it will be full.

Taking a token moves that time forward by the time that one token takes to refill.
"""

import threading
from collections.abc import Callable

DEFAULT_RATE = 500
"""Requests per second for each key. On AWS the same number is the default for all keys together."""

BURST_SECONDS = 2
"""A full bucket holds the tokens of this many seconds, as on AWS."""

MAX_RATE = 100_000
"""Requests per second, far more than one process can handle."""

PURGE_THRESHOLD = 1000
"""The number of buckets above which the full ones are removed."""

_SECOND = 1_000_000_000


class RateLimiter:
    """Allows each caller `rate` requests per second, and bursts of `BURST_SECONDS` times as many.

    `clock` counts nanoseconds and must be monotonic. `rate` is 1 or more: a refused caller gets a
    token within a second.
    """

    def __init__(self, rate: int, clock: Callable[[], int]) -> None:
        self._token = -(-_SECOND // rate)  # rounded up: never more than `rate`
        self._bucket = BURST_SECONDS * rate * self._token
        self._clock = clock
        self._full_at: dict[str, int] = {}
        self._purge_above = PURGE_THRESHOLD
        self._lock = threading.Lock()

    def take(self, caller: str) -> bool:
        """Take a token from the caller's bucket; return False if it is empty."""
        with self._lock:
            now = self._clock()
            full_at = max(now, self._full_at.get(caller, now)) + self._token
            if full_at > now + self._bucket:
                return False
            self._full_at[caller] = full_at
            if len(self._full_at) > self._purge_above:
                self._remove_full_buckets(now)
            return True

    def _remove_full_buckets(self, now: int) -> None:
        self._full_at = {caller: at for caller, at in self._full_at.items() if at > now}
        # Twice as many as are left: otherwise each new caller would cause a purge.
        self._purge_above = max(PURGE_THRESHOLD, 2 * len(self._full_at))
