"""Fair queue: due wake-ups in one queue per host, and a fair share of the senders for each host.

A receiver that hangs does not delay webhooks to other hosts.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

from chalicelib.core.timer import Wakeup

MAX_QUEUED_PER_HOST = 5_000
"""The most wake-ups of one host in the queue: a quarter of the scheduler's `HEAP_LIMIT`.

The rest stay in the store and are read again when the queue of the host is half empty.
"""


class FairQueue:
    """Hands wake-ups to a fixed number of senders, host by host (round robin).

    A host gets another sender only if it uses fewer than are free. One hanging host takes at most
    half of the senders, a second a quarter, and so on.
    """

    def __init__(self, senders: int) -> None:
        self._free = senders
        self._waiting: OrderedDict[str, deque[Wakeup]] = OrderedDict()
        self._under_way: Counter[str] = Counter()
        self._overfull: set[str] = set()
        self._lock = threading.Condition()
        self._senders = senders
        self._closed = False
        self.size = 0

    def put(self, wakeups: Sequence[Wakeup]) -> None:
        """Queue wake-ups; drop those of a host that has `MAX_QUEUED_PER_HOST` already."""
        with self._lock:
            for wakeup in wakeups:
                waiting = self._waiting.setdefault(wakeup.host, deque())
                if len(waiting) < MAX_QUEUED_PER_HOST:
                    waiting.append(wakeup)
                    self.size += 1
                else:
                    self._overfull.add(wakeup.host)

    def has_room_again(self) -> bool:
        """Return whether a host with dropped wake-ups is down to half its limit.

        Each such host is reported once.
        """
        with self._lock:
            ready = {
                host
                for host in self._overfull
                if len(self._waiting.get(host, ())) < MAX_QUEUED_PER_HOST // 2
            }
            self._overfull -= ready
            return bool(ready)

    def take(self) -> Wakeup | None:
        """Take a sender for the next wake-up; None if no host may send now, or after `close`."""
        with self._lock:
            return None if self._closed else self._next()

    def done(self, wakeup: Wakeup) -> None:
        """Give back the sender that `take` took for this wake-up."""
        with self._lock:
            self._free += 1
            self._under_way[wakeup.host] -= 1
            if not self._under_way[wakeup.host]:
                del self._under_way[wakeup.host]
            if self._closed:
                self._lock.notify_all()

    def close(self) -> None:
        """Let `take` return nothing from now on; return when all senders were given back."""
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: self._free == self._senders)

    def _next(self) -> Wakeup | None:
        # At most as many hosts as senders can be at their limit, so this loop is bounded.
        for host, wakeups in self._waiting.items():
            if self._under_way[host] < self._free:
                wakeup = wakeups.popleft()
                self._under_way[host] += 1
                self._free -= 1
                self.size -= 1
                self._waiting.move_to_end(host)
                if not wakeups:
                    del self._waiting[host]
                return wakeup
        return None
