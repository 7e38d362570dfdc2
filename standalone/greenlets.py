"""Greenlets: many requests and webhooks in one thread; one that waits lets the others run.

Each request to the server and each webhook is a greenlet, not a thread. With a hundred threads,
switching the GIL after each commit cost more CPU than the work itself.
"""

import heapq
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from chalicelib.service.concurrency import MapConcurrently, one_by_one

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 5
"""Seconds that requests under way have to finish at shutdown."""

MAX_BLOCKING_THREADS = 64
"""The most concurrent blocking calls, each in a thread."""

T = TypeVar("T")
R = TypeVar("R")


class Dispatcher:
    """Runs the greenlets of one thread, which calls `run`. Serves waitress as its task dispatcher.

    `wake` must make that thread call `run` soon; any thread may call it.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._is_woken = False
        self._ready: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._under_way = 0
        self._is_closed = False
        self._executor = ThreadPoolExecutor(MAX_BLOCKING_THREADS, "blocking")

    def add_task(self, request: Any) -> None:
        """Call `request.service` in a greenlet, or `request.cancel` after `shutdown`."""
        with self._changed:
            if not self._is_closed:
                self._under_way += 1
                self.start(request.service).add_done_callback(self._end)
                return
        request.cancel()

    def start(self, call: Callable[[], T]) -> "Future[T]":
        """Make a call in a new greenlet at the next `run`; only for the thread that calls `run`."""
        done: Future[T] = Future()
        # A greenlet switches back to its maker when it waits, so `run` makes it.
        self._ready.append(partial(self._begin, call, done))
        return done

    def submit_blocking(self, call: Callable[[], T]) -> "Future[T]":
        """Make a blocking call in another thread."""
        return self._executor.submit(call)

    def run(self) -> None:
        """Run every greenlet that is ready."""
        self._is_woken = False  # first: calls from now on wake again
        while self._ready:
            self._ready.popleft()()

    def call_soon(self, call: Callable[[], object]) -> None:
        """Make a call, which must not wait, in the next `run`; any thread may ask for it."""
        self._ready.append(call)
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    def shutdown(self) -> bool:
        """Start no more requests; return whether those under way finished in time."""
        with self._changed:
            self._is_closed = True
            return self._changed.wait_for(lambda: not self._under_way, SHUTDOWN_TIMEOUT)

    def _begin(self, call: Callable[[], T], done: "Future[T]") -> None:
        _Greenlet(self, call, done).switch()

    def _end(self, request: "Future[None]") -> None:
        if (error := request.exception()) is not None:
            log.error("request crashed", exc_info=error)
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()


class Hub:
    """Event loop: runs greenlets in the thread that calls `run`. Implements WaitStrategy."""

    keeps_connections = True

    def __init__(self) -> None:
        self.dispatcher = Dispatcher(self._wake)
        self._ends: dict[_Greenlet, float] = {}
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._waker: socket.socket | None = None
        self._waker_lock = threading.Lock()

    def run(self, is_over: Callable[[], bool]) -> None:
        """Run greenlets until `is_over`; use `call_soon` to wake the loop then."""
        waker, woken = socket.socketpair()
        with waker, woken, selectors.DefaultSelector() as self._selector:
            self._selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(1))
            try:
                self._waker = waker  # before the first run, which handles earlier calls
                self.dispatcher.run()
                while not is_over():
                    ready = self._selector.select(self._seconds_to_wait())
                    # Once each: a greenlet may have waited for several sockets.
                    for resume in dict.fromkeys(key.data for key, _ in ready):
                        resume()
                    self._run_expired()
                    self.dispatcher.run()
            finally:
                with self._waker_lock:  # another thread may be sending on it: close it afterwards
                    self._waker = None

    def wait_io(self, sockets: Mapping[socket.socket, int], seconds: float) -> None:
        """Pause this greenlet until a socket is ready, or for at most so many seconds."""
        current = getcurrent()
        assert isinstance(current, _Greenlet)  # noqa: S101  # only greenlets send webhooks
        registered = []
        try:
            for sock, events in sockets.items():
                self._selector.register(sock, events, current.switch)
                registered.append(sock)
            self._ends[current] = time.monotonic() + seconds
            current.pause()
        finally:
            self._ends.pop(current, None)
            for sock in registered:
                self._selector.unregister(sock)

    def run_blocking(self, call: Callable[[], T]) -> T:
        return run_in_thread(call)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Make a call, which must not wait, in so many seconds; only for the thread of `run`."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), call))

    def _seconds_to_wait(self) -> float | None:
        ends = [*self._ends.values(), *(entry[0] for entry in self._later[:1])]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _run_expired(self) -> None:
        now = time.monotonic()
        for expired in [waiting for waiting, end in self._ends.items() if end <= now]:
            expired.switch()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    def _wake(self) -> None:
        with self._waker_lock:
            if self._waker is not None:
                self._waker.send(b"x")


class _Greenlet(greenlet):
    """Makes one call, and puts its result or error into a future."""

    def __init__(self, dispatcher: Dispatcher, call: Callable[[], T], done: "Future[T]") -> None:
        super().__init__()
        self.dispatcher = dispatcher
        self._maker = getcurrent()
        self._call = call
        self._done = done

    def run(self) -> None:
        try:
            result = self._call()
        except Exception as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(result)

    def resume_soon(self, _: object) -> None:
        """Continue in the dispatcher's next run; a callback for futures, from any thread."""
        self.dispatcher.call_soon(self.switch)

    def pause(self) -> None:
        """Let other greenlets run until `switch` is called."""
        self._maker.switch()


def wait(future: "Future[T]") -> T:
    """Return the result of a future; meanwhile other greenlets of this thread run."""
    current = getcurrent()
    if isinstance(current, _Greenlet):
        future.add_done_callback(current.resume_soon)
        current.pause()
    return future.result()


def run_in_thread(call: Callable[[], T]) -> T:
    """Make a blocking call in a thread while other greenlets run; return its result.

    Outside a greenlet, the call is made directly.
    """
    current = getcurrent()
    if not isinstance(current, _Greenlet):
        return call()
    return wait(current.dispatcher.submit_blocking(call))


def gather(
    call: Callable[[T], R], items: Sequence[T], /, *, elsewhere: MapConcurrently
) -> list[R | Exception]:
    """Call for each item concurrently; return the result of each, or its exception.

    In a greenlet each call gets its own greenlet; in any other thread `elsewhere` makes the calls.
    """
    current = getcurrent()
    if not isinstance(current, _Greenlet):
        return elsewhere(call, items)
    started = [current.dispatcher.start(partial(call, item)) for item in items]
    return one_by_one(wait, started)
