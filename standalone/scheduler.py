"""Scheduler in one process: a heap of the next wake-ups, and greenlets that send the webhooks.

Only the next wake-ups are in memory, at most twice `HEAP_LIMIT`; the rest wait in the store. The
horizon is the border: wake-ups up to it are in the heap, later ones are read when the heap runs
low. To miss no timer, a refill raises the horizon before it reads, and a new timer is compared with
the horizon after its commit. A timer may be seen twice, never zero times.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import Timer, Wakeup
from standalone.fair_queue import FairQueue
from standalone.greenlets import Hub
from standalone.sqlite.schema import to_micros
from standalone.sqlite.timer_store import FiringPosition, SqliteTimerStore

log = logging.getLogger(__name__)

HEAP_LIMIT = 20_000
"""The most wake-ups that one refill reads into memory."""

MAX_SENDERS = 128
"""The most webhooks that are sent concurrently."""

MAX_WAIT = 1.0
"""Seconds after which the clock is read again: it may be stepped, or the machine may sleep."""

LEASE_END = datetime(9999, 12, 31, tzinfo=UTC)
"""The end of each claim's lease: no clock ends it, however far it is stepped.

A claim lasts as long as its process. The lock file proves at the next start that the process is
dead.
"""

REQUEUE_DELAY = timedelta(seconds=1)
"""Time until a wake-up is tried again after the store was unavailable."""

BACKLOG_WAIT = 0.05
"""Seconds to pause while the fair queue holds `HEAP_LIMIT` wake-ups."""

UPKEEP_INTERVAL = 10.0
"""Seconds between two rounds of upkeep."""

BEHIND_AFTER = timedelta(seconds=1)
"""How late the next wake-up must be for the scheduler to count as behind."""

HEARTBEAT_TIMEOUT = 10.0
"""Seconds without a heartbeat after which the scheduler counts as broken."""

_BEGINNING: FiringPosition = (-(2**63), "")
_END: FiringPosition = (2**63 - 1, "")


class HeapScheduler:
    """Fires the timers of `store`, in greenlets of `hub`, by the wall time that `clock` returns."""

    def __init__(self, store: SqliteTimerStore, hub: Hub, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._hub = hub
        self._clock = clock
        self._heap: list[tuple[FiringPosition, Wakeup]] = []
        self._horizon = _BEGINNING
        self._changed = threading.Condition()
        self._due = FairQueue(MAX_SENDERS)
        self._stopping = threading.Event()
        self._low = threading.Event()
        self._alive_at = time.monotonic()
        self._threads: list[threading.Thread] = []

    def start(
        self, deliver: Callable[[Wakeup, datetime], None], upkeep: Callable[[], bool]
    ) -> None:
        """Start the threads: call `deliver(wakeup, ends_at)` for due timers, in greenlets.

        Call `upkeep` regularly, and again soon if it returns True (there was something to do).
        """
        self._deliver, self._upkeep = deliver, upkeep
        self.refill()
        self._start_thread(self._release_due, "release")
        self._start_thread(self._refill_when_low, "refill")
        self._start_thread(self._upkeep_regularly, "upkeep")

    def stop(self) -> None:
        """Finish the webhooks under way; the next start fires the others."""
        self._stopping.set()
        self._low.set()
        with self._changed:
            self._changed.notify_all()
        self._due.close()
        for thread in self._threads:
            thread.join()

    def schedule(self, timer: Timer) -> None:
        self.requeue([timer.wakeup()])

    def unschedule(self, timer: Timer) -> None:
        """Do nothing: the wake-up stays in the heap, but the store will refuse its claim."""

    def requeue(self, wakeups: Sequence[Wakeup]) -> None:
        self._push((_position(wakeup), wakeup) for wakeup in wakeups)

    def is_behind(self) -> bool:
        """Return whether due wake-ups wait for a sender; a sweep need not requeue them."""
        with self._changed:
            late = self._heap and self._heap[0][0][0] < to_micros(self._clock() - BEHIND_AFTER)
        return bool(late) or self._due.size > 0

    def check(self) -> None:
        if time.monotonic() - self._alive_at > HEARTBEAT_TIMEOUT:
            raise Unavailable("The scheduler does not respond.")

    def pop_due(self) -> tuple[list[Wakeup], float]:
        """Take due wake-ups from the heap; return them and the seconds to wait for the next one."""
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
        """Read the next wake-ups beyond the horizon into the heap."""
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

    def _reread_all(self) -> None:
        """Read the store again from the start; a wake-up that comes twice has no effect."""
        with self._changed:
            # Empty the heap: entries beyond the new horizon would keep it from running low.
            self._heap, self._horizon = [], _BEGINNING
            self._low.set()

    def _push(self, entries: Iterable[tuple[FiringPosition, Wakeup]]) -> None:
        with self._changed:
            first = self._heap[0] if self._heap else None
            for entry in entries:
                if entry[0] <= self._horizon:
                    heapq.heappush(self._heap, entry)
            if len(self._heap) > 2 * HEAP_LIMIT:
                # Drop the later half: the store has it.
                self._heap = heapq.nsmallest(HEAP_LIMIT, self._heap)
                self._horizon = self._heap[-1][0]
            if self._heap and self._heap[0] is not first:
                self._changed.notify_all()

    def _start_thread(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _release_due(self) -> None:
        while not self._stopping.is_set():
            self._hub.call_soon(self._beat)  # a heartbeat needs both threads
            if self._due.has_room_again():
                self._reread_all()
            if self._due.size >= HEAP_LIMIT:
                self._stopping.wait(BACKLOG_WAIT)
                continue
            with self._changed:
                due, seconds = self.pop_due()
                if not due:
                    self._changed.wait(seconds)
            if due:
                self._due.put(due)
                self._hub.call_soon(self._start_sends)

    def _beat(self) -> None:
        self._alive_at = time.monotonic()

    def _start_sends(self) -> None:
        while (wakeup := self._due.take()) is not None:
            self._hub.start(partial(self._send, wakeup))

    def _send(self, wakeup: Wakeup) -> None:
        try:
            self._deliver(wakeup, LEASE_END)
        except Unavailable as error:
            log.warning("delivery postponed", extra={"timer": wakeup.id, "error": str(error)})
            self._push([((to_micros(self._clock() + REQUEUE_DELAY), wakeup.id), wakeup)])
        except Exception:
            # Other deliveries go on. The worker has recorded the crash, unless that crashed, too.
            log.exception("delivery crashed", extra={"timer": wakeup.id})
        finally:
            self._due.done(wakeup)
            self._start_sends()

    def _refill_when_low(self) -> None:
        while self._low.wait() and not self._stopping.is_set():
            self._low.clear()
            try:
                self.refill()
            except Unavailable as error:
                log.warning("refill postponed", extra={"error": str(error)})
                self._low.set()
                self._stopping.wait(MAX_WAIT)

    def _upkeep_regularly(self) -> None:
        had_work = False
        while not self._stopping.wait(MAX_WAIT if had_work else UPKEEP_INTERVAL):
            try:
                had_work = self._upkeep()
            except Unavailable as error:
                log.warning("sweep postponed", extra={"error": str(error)})
            except Exception:
                log.exception("sweep crashed")


def _position(wakeup: Wakeup) -> FiringPosition:
    return to_micros(wakeup.due_at), wakeup.id
