"""Many tasks in one thread: one that waits, for the disk or a socket, lets the others go on.

Each request to the server is a task, and each webhook that is sent: a greenlet, and not a thread.
Of those a hundred would wait for a commit, and then all for the interpreter: handing it around cost
more than what they did with it.
"""

import heapq
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from chalicelib.service.concurrency import MapConcurrently, one_by_one

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 5
"""Seconds that are left at the end to requests under way."""

MAX_BLOCKING_THREADS = 64
"""How many calls that take long are made at the same time, each in a thread."""

T = TypeVar("T")
R = TypeVar("R")


class Dispatcher:
    """The tasks of one thread, which calls `run`; waitress calls this its dispatcher.

    `wake` makes that thread call `run` soon, wherever it waits.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._is_woken = False
        self._ready: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._under_way = 0
        self._is_closed = False
        self._aside = ThreadPoolExecutor(MAX_BLOCKING_THREADS, "aside")

    def add_task(self, request: Any) -> None:
        """Let `request.service` be called in the next `run`, or after `shutdown` its `cancel`."""
        with self._changed:
            if not self._is_closed:
                self._under_way += 1
                self.start(request.service).add_done_callback(self._end)
                return
        request.cancel()

    def start(self, call: Callable[[], T]) -> "Future[T]":
        """Make a call in a task of its own; for the thread that calls `run`."""
        done: Future[T] = Future()
        # Made in `run`, a task returns there whenever it has to wait.
        self._ready.append(lambda: _Task(self, call, done).switch())
        return done

    def aside(self, call: Callable[[], T]) -> "Future[T]":
        """Make a call in another thread."""
        return self._aside.submit(call)

    def run(self) -> None:
        """Go on with each task that can."""
        self._is_woken = False  # first, so that what comes from now on wakes again
        while self._ready:
            self._ready.popleft()()

    def soon(self, call: Callable[[], object]) -> None:
        """Make a call, which must not wait, in the next `run`; for any thread."""
        self._ready.append(call)
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    def shutdown(self) -> bool:
        """Begin no more requests; say whether those under way were over in time."""
        with self._changed:
            self._is_closed = True
            return self._changed.wait_for(lambda: not self._under_way, SHUTDOWN_TIMEOUT)

    def _end(self, request: "Future[None]") -> None:
        if (error := request.exception()) is not None:
            log.error("request crashed", exc_info=error)
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()


class Hub:
    """Runs tasks, in the thread that calls `run`, and lets them wait for sockets; is a Waiting."""

    keeps_connections = True

    def __init__(self) -> None:
        self.tasks = Dispatcher(self._wake)
        self._until: dict[_Task, float] = {}
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._waker: socket.socket | None = None

    def run(self, is_over: Callable[[], bool]) -> None:
        """Run tasks; whoever makes that it is over calls `tasks.soon` then."""
        waker, woken = socket.socketpair()
        with waker, woken, selectors.DefaultSelector() as self._selector:
            self._selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(1))
            self._waker = waker  # before looking: what came until now needs none
            self.tasks.run()
            while not is_over():
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._give_up_waiting()
                self.tasks.run()
            self._waker = None

    def wait_io(self, sock: socket.socket, writing: bool, seconds: float) -> None:
        task = getcurrent()
        assert isinstance(task, _Task)  # noqa: S101  # nothing else sends webhooks
        event = selectors.EVENT_WRITE if writing else selectors.EVENT_READ
        self._selector.register(sock, event, task.switch)
        self._until[task] = time.monotonic() + seconds
        task.pause()
        del self._until[task]
        self._selector.unregister(sock)

    def run_blocking(self, call: Callable[[], T]) -> T:
        return run_in_thread(call)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), call))

    def _patience(self) -> float | None:
        ends = [*self._until.values(), *(entry[0] for entry in self._later[:1])]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _give_up_waiting(self) -> None:
        now = time.monotonic()
        for task in [task for task, end in self._until.items() if end <= now]:
            task.switch()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    def _wake(self) -> None:
        if self._waker is not None:
            self._waker.send(b"x")


class _Task(greenlet):
    def __init__(self, tasks: Dispatcher, call: Callable[[], T], done: "Future[T]") -> None:
        super().__init__()
        self.tasks = tasks
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

    def pause(self) -> None:
        """Let the others go on until `switch` is called."""
        self._maker.switch()


def wait(future: "Future[T]") -> T:
    """Return a future's result; a task that waits for it lets the others go on."""
    task = getcurrent()
    if isinstance(task, _Task):
        future.add_done_callback(lambda _: task.tasks.soon(task.switch))
        task.pause()
    return future.result()


def run_in_thread(call: Callable[[], T]) -> T:
    """Make a call that would keep the other tasks waiting; return its result."""
    task = getcurrent()
    return wait(task.tasks.aside(call)) if isinstance(task, _Task) else call()


def gather(
    call: Callable[[T], R], items: Sequence[T], /, *, elsewhere: MapConcurrently
) -> list[R | Exception]:
    """Make the calls at the same time; return what each has raised.

    In a task they are tasks as well, in any other thread it is done `elsewhere`.
    """
    task = getcurrent()
    if not isinstance(task, _Task):
        return elsewhere(call, items)
    started = [task.tasks.start(partial(call, item)) for item in items]
    return one_by_one(wait, started)
