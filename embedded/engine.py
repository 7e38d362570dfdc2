"""Alarm in one process: a heap of what fires next, a thread that waits for it, tasks that fire.

What is due takes turns by host, so that a receiver that hangs keeps nobody else's webhooks waiting.

Only the next timers to fire are in memory, at most `HEAP`; the rest wait in the store. `_horizon`
is the border: whatever is due up to it is in the heap, whatever lies beyond is read when the heap
runs low. So that no timer falls between, the border is raised *before* that reading, and a timer is
compared with it *after* its commit: it is seen by one or by both.
"""

import heapq
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial

from chalicelib import timers
from chalicelib.errors import Unavailable
from chalicelib.timers import Ring, Timer
from embedded.sqlite import Position, SqliteStore, micros
from embedded.tasks import Loop

log = logging.getLogger(__name__)

HEAP = 20_000
"""The most rings that are read into memory at once."""

SENDERS = 128
"""How many webhooks are sent at the same time."""

LONGEST_WAIT = 1.0
"""Seconds after which the clock is read again, in case it was stepped or the machine slept."""

END = timedelta(days=1)
"""When a sender counts as gone. Far longer than any attempt, and than a night with the lid closed:
the file lock proves that the senders of a dead process are dead, so nobody waits for this."""

CROWD = HEAP // 4
"""How many rings of one host wait at most; the rest stays in the store, and is read again."""

AGAIN = timedelta(seconds=1)
"""When a ring comes again that could not be answered."""

CROWDED_WAIT = 0.05
"""Seconds to wait for turns while as many rings wait for theirs as the heap may hold."""

UPKEEP = 10.0
"""Seconds between two sweeps."""

BEHIND = timedelta(seconds=1)
"""How late the next ring must be for the engine to count as behind."""

STUCK = 10.0
"""Seconds without a sign of life after which the firing loop counts as broken."""

_BEGINNING: Position = (-(2**63), "")
_END: Position = (2**63 - 1, "")


class Turns:
    """Rings that are due, handed to the senders host by host.

    No host has more senders at work than stand free: one that hangs, with however many timers,
    leaves half of them to the others, and the next that hangs half of those.
    """

    def __init__(self, senders: int) -> None:
        self._free = senders
        self._waiting: OrderedDict[str, deque[Ring]] = OrderedDict()
        self._under_way: Counter[str] = Counter()
        self._crowded: set[str] = set()
        self._lock = threading.Lock()
        self._senders = senders
        self._closed = False
        self.size = 0

    def put(self, rings: Sequence[Ring]) -> None:
        """Let rings wait for their turn; of a host with too many of them, not these."""
        with self._lock:
            for ring in rings:
                waiting = self._waiting.setdefault(ring.host, deque())
                if len(waiting) < CROWD:
                    waiting.append(ring)
                    self.size += 1
                else:
                    self._crowded.add(ring.host)

    def room_again(self) -> bool:
        """Say, once, that a host whose rings were turned away has room for them now."""
        with self._lock:
            free = {h for h in self._crowded if len(self._waiting.get(h, ())) < CROWD // 2}
            self._crowded -= free
            return bool(free)

    def take(self) -> Ring | None:
        """Return the next ring that may be sent; None if there is none, or once closed."""
        with self._lock:
            return None if self._closed else self._next()

    def done(self, ring: Ring) -> None:
        """Give back the sender that a ring was taken for."""
        with self._lock:
            self._free += 1
            self._under_way[ring.host] -= 1
            if not self._under_way[ring.host]:
                del self._under_way[ring.host]

    def close(self) -> None:
        """Hand out nothing more."""
        with self._lock:
            self._closed = True

    def is_over(self) -> bool:
        """Say whether it is closed, and all that was taken is done."""
        with self._lock:
            return self._closed and self._free == self._senders

    def _next(self) -> Ring | None:
        # Hosts that may not have one more are at most as many as there are senders.
        for host, rings in self._waiting.items():
            if self._under_way[host] < self._free:
                ring = rings.popleft()
                self._under_way[host] += 1
                self._free -= 1
                self.size -= 1
                self._waiting.move_to_end(host)
                if not rings:
                    del self._waiting[host]
                return ring
        return None


class Engine:
    """Rings for the timers of `store` by the wall time that `clock` returns."""

    def __init__(self, store: SqliteStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._heap: list[tuple[Position, Ring]] = []
        self._horizon = _BEGINNING
        self._changed = threading.Condition()
        self._due = Turns(SENDERS)
        self.loop = Loop()
        self._stopping = threading.Event()
        self._low = threading.Event()
        self._alive_at = time.monotonic()
        self._threads: list[threading.Thread] = []

    def start(self, deliver: Callable[[Ring, datetime], None], upkeep: Callable[[], bool]) -> None:
        """Begin to fire: call `deliver(ring, ends_at)` for what is due, in tasks of `loop`.

        Call `upkeep` now and then, and soon again if it says that there was something to do.
        """
        self.refill()
        self._start(lambda: self.loop.run(self._due.is_over), "senders")
        self._start(lambda: self._release(lambda: self._hand_out(deliver)), "release")
        self._start(self._fill, "fill")
        self._start(lambda: self._keep_up(upkeep), "upkeep")

    def stop(self) -> None:
        """Finish what is being sent; leave the rest to the next start."""
        self._stopping.set()
        self._low.set()
        with self._changed:
            self._changed.notify_all()
        self._due.close()
        self.loop.tasks.soon(lambda: None)
        for thread in self._threads:
            thread.join()

    def set(self, timer: Timer) -> None:
        self.forward([timers.ring(timer)])

    def clear(self, timer: Timer) -> None:
        """Do nothing: the ring stays in the heap, and the store will not honour it."""

    def forward(self, rings: Sequence[Ring]) -> None:
        self._push((_position(ring), ring) for ring in rings)

    def is_behind(self) -> bool:
        """Say whether what is due already has to wait for a sender; it all gets its turn."""
        with self._changed:
            late = self._heap and self._heap[0][0][0] < micros(self._clock() - BEHIND)
        return bool(late) or self._due.size > 0

    def check(self) -> None:
        if time.monotonic() - self._alive_at > STUCK:
            raise Unavailable("The firing loop does not respond.")

    def pop_due(self) -> tuple[list[Ring], float]:
        """Take what is due from the heap; return it and the seconds to wait for the next one."""
        with self._changed:
            now = micros(self._clock())
            due: list[Ring] = []
            while self._heap and self._heap[0][0][0] <= now and len(due) < SENDERS:
                due.append(heapq.heappop(self._heap)[1])
            if len(self._heap) < HEAP // 2 and self._horizon != _END:
                self._low.set()
            if due or not self._heap:
                return due, 0.0 if due else LONGEST_WAIT
            return due, min(LONGEST_WAIT, (self._heap[0][0][0] - now) / 1e6)

    def refill(self) -> None:
        """Read the next rings behind the horizon into the heap."""
        with self._changed:
            horizon, self._horizon = self._horizon, _END
        try:
            read = self._store.waiting(horizon, HEAP)
        except Unavailable:
            with self._changed:
                self._horizon = min(self._horizon, horizon)
            raise
        self._push(read)
        if len(read) == HEAP:
            with self._changed:
                self._horizon = min(self._horizon, read[-1][0])

    def _begin_anew(self) -> None:
        """Read all that waits again, from the first: a ring that comes twice does nothing."""
        with self._changed:
            # What stayed would lie beyond the horizon, and count as if all before it were here.
            self._heap, self._horizon = [], _BEGINNING
            self._low.set()

    def _push(self, entries: Iterable[tuple[Position, Ring]]) -> None:
        with self._changed:
            first = self._heap[0] if self._heap else None
            for entry in entries:
                if entry[0] <= self._horizon:
                    heapq.heappush(self._heap, entry)
            if len(self._heap) > 2 * HEAP:
                # The far half goes back to where it is kept anyway.
                self._heap = heapq.nsmallest(HEAP, self._heap)
                self._horizon = self._heap[-1][0]
            if self._heap and self._heap[0] is not first:
                self._changed.notify_all()

    def _start(self, loop: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _release(self, hand_out: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            self.loop.tasks.soon(self._show_life)  # both threads have to go round for that
            if self._due.room_again():
                self._begin_anew()
            if self._due.size >= HEAP:
                self._stopping.wait(CROWDED_WAIT)
                continue
            with self._changed:
                due, seconds = self.pop_due()
                if not due:
                    self._changed.wait(seconds)
            if due:
                self._due.put(due)
                self.loop.tasks.soon(hand_out)

    def _show_life(self) -> None:
        self._alive_at = time.monotonic()

    def _hand_out(self, deliver: Callable[[Ring, datetime], None]) -> None:
        while (ring := self._due.take()) is not None:
            self.loop.tasks.start(partial(self._send, deliver, ring))

    def _send(self, deliver: Callable[[Ring, datetime], None], ring: Ring) -> None:
        try:
            deliver(ring, self._clock() + END)
        except Unavailable as error:
            log.warning("delivery put off", extra={"timer": ring.id, "error": str(error)})
            self._push([((micros(self._clock() + AGAIN), ring.id), ring)])
        except Exception:
            # The claim stays, the sweep takes it back; the others go on.
            log.exception("delivery broke", extra={"timer": ring.id})
        finally:
            self._due.done(ring)
            self._hand_out(deliver)

    def _fill(self) -> None:
        while self._low.wait() and not self._stopping.is_set():
            self._low.clear()
            try:
                self.refill()
            except Unavailable as error:
                log.warning("refill put off", extra={"error": str(error)})
                self._low.set()
                self._stopping.wait(LONGEST_WAIT)

    def _keep_up(self, upkeep: Callable[[], bool]) -> None:
        found = False
        while not self._stopping.wait(LONGEST_WAIT if found else UPKEEP):
            try:
                found = upkeep()
            except Unavailable as error:
                log.warning("sweep put off", extra={"error": str(error)})
            except Exception:
                log.exception("sweep broke")


def _position(ring: Ring) -> Position:
    return micros(ring.due_at), ring.id
