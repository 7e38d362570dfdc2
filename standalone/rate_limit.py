"""How often each caller may ask: one token bucket for each of them.

Of a bucket nothing is kept but the moment at which it will be full again, so that nobody has to
fill it: a token that is taken puts that moment off by the time in which one comes back.
"""

import threading
from collections.abc import Callable

DEFAULT_RATE = 500
"""Requests a second for each key, if nobody says otherwise; as on AWS, where they are all keys'."""

BURST_SECONDS = 2
"""How many seconds' worth of tokens a bucket holds; as on AWS."""

MAX_RATE = 100_000
"""Requests a second, far beyond what one process answers."""

MIN_BUCKETS_SWEPT = 1000
"""How many buckets are kept without a look at which of them are full again."""

_SECOND = 1_000_000_000


class RateLimiter:
    """Lets `rate` requests of each caller pass in a second, and twice as many at once.

    The clock counts nanoseconds and must not step back. As long as `rate` is at least 1, a caller
    who is turned away finds a token within a second.
    """

    def __init__(self, rate: int, clock: Callable[[], int]) -> None:
        self._token = -(-_SECOND // rate)  # rounded up: rather a request too few than one too many
        self._bucket = BURST_SECONDS * rate * self._token
        self._clock = clock
        self._full_at: dict[str, int] = {}
        self._many = MIN_BUCKETS_SWEPT
        self._lock = threading.Lock()

    def take(self, caller: str) -> bool:
        """Take a token out of the caller's bucket; False if there is none."""
        with self._lock:
            now = self._clock()
            full_at = max(now, self._full_at.get(caller, now)) + self._token
            if full_at > now + self._bucket:
                return False
            self._full_at[caller] = full_at
            if len(self._full_at) > self._many:
                self._forget_full_ones(now)
            return True

    def _forget_full_ones(self, now: int) -> None:
        self._full_at = {caller: at for caller, at in self._full_at.items() if at > now}
        self._many = max(
            MIN_BUCKETS_SWEPT, 2 * len(self._full_at)
        )  # or each further caller would look again
