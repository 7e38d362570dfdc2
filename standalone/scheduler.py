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

from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import Timer, Wakeup
from standalone.greenlets import Hub
from standalone.sqlite.schema import to_micros
from standalone.sqlite.timer_store import FiringPosition, SqliteTimerStore

log = logging.getLogger(__name__)

HEAP_LIMIT = 20_000
"""The most rings that are read into memory at once."""

MAX_SENDERS = 128
"""How many webhooks are sent at the same time."""

MAX_WAIT = 1.0
"""Seconds after which the clock is read again, in case it was stepped or the machine slept."""

LEASE = timedelta(days=1)
"""When a sender counts as gone. Far longer than any attempt, and than a night with the lid closed:
the file lock proves that the senders of a dead process are dead, so nobody waits for this."""

MAX_QUEUED_PER_HOST = HEAP_LIMIT // 4
"""How many rings of one host wait at most; the rest stays in the store, and is read again."""

REQUEUE_DELAY = timedelta(seconds=1)
"""When a ring comes again that could not be answered."""

BACKLOG_WAIT = 0.05
"""Seconds to wait for turns while as many rings wait for theirs as the heap may hold."""

SWEEP_INTERVAL = 10.0
"""Seconds between two sweeps."""

BEHIND_AFTER = timedelta(seconds=1)
"""How late the next ring must be for the engine to count as behind."""

HEARTBEAT_TIMEOUT = 10.0
"""Seconds without a sign of life after which the firing loop counts as broken."""

_BEGINNING: FiringPosition = (-(2**63), "")
_END: FiringPosition = (2**63 - 1, "")


class FairQueue:
    """Rings that are due, handed to the senders host by host.

    No host has more senders at work than stand free: one that hangs, with however many timers,
    leaves half of them to the others, and the next that hangs half of those.
    """

    def __init__(self, senders: int) -> None:
        self._free = senders
        self._waiting: OrderedDict[str, deque[Wakeup]] = OrderedDict()
        self._under_way: Counter[str] = Counter()
        self._crowded: set[str] = set()
        self._lock = threading.Lock()
        self._senders = senders
        self._closed = False
        self.size = 0

    def put(self, wakeups: Sequence[Wakeup]) -> None:
        """Let rings wait for their turn; of a host with too many of them, not these."""
        with self._lock:
            for wakeup in wakeups:
                waiting = self._waiting.setdefault(wakeup.host, deque())
                if len(waiting) < MAX_QUEUED_PER_HOST:
                    waiting.append(wakeup)
                    self.size += 1
                else:
                    self._crowded.add(wakeup.host)

    def room_again(self) -> bool:
        """Say, once, that a host whose rings were turned away has room for them now."""
        with self._lock:
            free = {
                h for h in self._crowded if len(self._waiting.get(h, ())) < MAX_QUEUED_PER_HOST // 2
            }
            self._crowded -= free
            return bool(free)

    def take(self) -> Wakeup | None:
        """Return the next ring that may be sent; None if there is none, or once closed."""
        with self._lock:
            return None if self._closed else self._next()

    def done(self, wakeup: Wakeup) -> None:
        """Give back the sender that a ring was taken for."""
        with self._lock:
            self._free += 1
            self._under_way[wakeup.host] -= 1
            if not self._under_way[wakeup.host]:
                del self._under_way[wakeup.host]

    def close(self) -> None:
        """Hand out nothing more."""
        with self._lock:
            self._closed = True

    def is_over(self) -> bool:
        """Say whether it is closed, and all that was taken is done."""
        with self._lock:
            return self._closed and self._free == self._senders

    def _next(self) -> Wakeup | None:
        # Hosts that may not have one more are at most as many as there are senders.
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


class HeapScheduler:
    """Rings for the timers of `store` by the wall time that `clock` returns."""

    def __init__(self, store: SqliteTimerStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._heap: list[tuple[FiringPosition, Wakeup]] = []
        self._horizon = _BEGINNING
        self._changed = threading.Condition()
        self._due = FairQueue(MAX_SENDERS)
        self.loop = Hub()
        self._stopping = threading.Event()
        self._low = threading.Event()
        self._alive_at = time.monotonic()
        self._threads: list[threading.Thread] = []

    def start(
        self, deliver: Callable[[Wakeup, datetime], None], upkeep: Callable[[], bool]
    ) -> None:
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

    def schedule(self, timer: Timer) -> None:
        self.requeue([timer.wakeup()])

    def unschedule(self, timer: Timer) -> None:
        """Do nothing: the ring stays in the heap, and the store will not honour it."""

    def requeue(self, wakeups: Sequence[Wakeup]) -> None:
        self._push((_position(wakeup), wakeup) for wakeup in wakeups)

    def is_behind(self) -> bool:
        """Say whether what is due already has to wait for a sender; it all gets its turn."""
        with self._changed:
            late = self._heap and self._heap[0][0][0] < to_micros(self._clock() - BEHIND_AFTER)
        return bool(late) or self._due.size > 0

    def check(self) -> None:
        if time.monotonic() - self._alive_at > HEARTBEAT_TIMEOUT:
            raise Unavailable("The firing loop does not respond.")

    def pop_due(self) -> tuple[list[Wakeup], float]:
        """Take what is due from the heap; return it and the seconds to wait for the next one."""
        with self._changed:
            now = to_micros(self._clock())
            due: list[Wakeup] = []
            while self._heap and self._heap[0][0][0] <= now and len(due) < MAX_SENDERS:
                due.append(heapq.heappop(self._heap)[1])
            if len(self._heap) < HEAP_LIMIT // 2 and self._horizon != _END:
                self._low.set()
            if due or not self._heap:
                return due, 0.0 if due else MAX_WAIT
            return due, min(MAX_WAIT, (self._heap[0][0][0] - now) / 1e6)

    def refill(self) -> None:
        """Read the next rings behind the horizon into the heap."""
        with self._changed:
            horizon, self._horizon = self._horizon, _END
        try:
            read = self._store.waiting(horizon, HEAP_LIMIT)
        except Unavailable:
            with self._changed:
                self._horizon = min(self._horizon, horizon)
            raise
        self._push(read)
        if len(read) == HEAP_LIMIT:
            with self._changed:
                self._horizon = min(self._horizon, read[-1][0])

    def _begin_anew(self) -> None:
        """Read all that waits again, from the first: a ring that comes twice does nothing."""
        with self._changed:
            # What stayed would lie beyond the horizon, and count as if all before it were here.
            self._heap, self._horizon = [], _BEGINNING
            self._low.set()

    def _push(self, entries: Iterable[tuple[FiringPosition, Wakeup]]) -> None:
        with self._changed:
            first = self._heap[0] if self._heap else None
            for entry in entries:
                if entry[0] <= self._horizon:
                    heapq.heappush(self._heap, entry)
            if len(self._heap) > 2 * HEAP_LIMIT:
                # The far half goes back to where it is kept anyway.
                self._heap = heapq.nsmallest(HEAP_LIMIT, self._heap)
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
            if self._due.size >= HEAP_LIMIT:
                self._stopping.wait(BACKLOG_WAIT)
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

    def _hand_out(self, deliver: Callable[[Wakeup, datetime], None]) -> None:
        while (wakeup := self._due.take()) is not None:
            self.loop.tasks.start(partial(self._send, deliver, wakeup))

    def _send(self, deliver: Callable[[Wakeup, datetime], None], wakeup: Wakeup) -> None:
        try:
            deliver(wakeup, self._clock() + LEASE)
        except Unavailable as error:
            log.warning("delivery postponed", extra={"timer": wakeup.id, "error": str(error)})
            self._push([((to_micros(self._clock() + REQUEUE_DELAY), wakeup.id), wakeup)])
        except Exception:
            # The claim stays, the sweep takes it back; the others go on.
            log.exception("delivery crashed", extra={"timer": wakeup.id})
        finally:
            self._due.done(wakeup)
            self._hand_out(deliver)

    def _fill(self) -> None:
        while self._low.wait() and not self._stopping.is_set():
            self._low.clear()
            try:
                self.refill()
            except Unavailable as error:
                log.warning("refill postponed", extra={"error": str(error)})
                self._low.set()
                self._stopping.wait(MAX_WAIT)

    def _keep_up(self, upkeep: Callable[[], bool]) -> None:
        found = False
        while not self._stopping.wait(MAX_WAIT if found else SWEEP_INTERVAL):
            try:
                found = upkeep()
            except Unavailable as error:
                log.warning("sweep postponed", extra={"error": str(error)})
            except Exception:
                log.exception("sweep crashed")


def _position(wakeup: Wakeup) -> FiringPosition:
    return to_micros(wakeup.due_at), wakeup.id
