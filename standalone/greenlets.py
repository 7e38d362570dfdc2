"""Greenlets: many requests and webhooks in one thread; one that waits lets the others run.

Each request to the server and each webhook is a greenlet, not a thread. With a hundred threads,
switching the GIL after each commit cost more CPU than the work itself.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from selectors import DefaultSelector
from socket import socket
from typing import Any, Generic, TypeVar

import uvloop
from greenlet import getcurrent, greenlet

from chalicelib.service.concurrency import MapConcurrently

MAX_IDLE = 256
"""The most greenlets that are kept for later calls."""

MAX_BLOCKING_THREADS = 64
"""The most concurrent blocking calls, each in a thread."""

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Hub:
    """An event loop, and the greenlets of the thread that calls `run`. Implements WaitStrategy."""

    keeps_connections = True

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        # Readers of the loop cost more: each wait would make new ones. They may also resume a
        # greenlet for an earlier wait.
        self._selector = DefaultSelector()
        self.loop.add_reader(self._selector.fileno(), self._resume_ready)
        self.executor = ThreadPoolExecutor(MAX_BLOCKING_THREADS, "blocking")
        self.idle: list[_Greenlet] = []
        """Greenlets without a call. A new one costs as much as parsing and answering a request."""

    def run(self) -> None:
        """Run until `stop`, then close the loop."""
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()
            self._selector.close()

    def stop(self) -> None:
        """Let `run` return soon; any thread may ask for it."""
        self.call_soon(self.loop.stop)

    def call_soon(self, call: Callable[[], object]) -> None:
        """Make a call, which must not wait, in the loop's thread; any thread may ask for it.

        A loop that has ended makes no more calls.
        """
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(call)

    def start(self, call: Callable[[], object]) -> None:
        """Make a call in a new greenlet soon; only for the loop's thread."""
        # A greenlet switches back to its maker when it waits, so the loop makes it.
        self.loop.call_soon(self._begin, call)

    def wait_io(self, sockets: Mapping[socket, int], seconds: float) -> None:
        """Pause this greenlet until a socket is ready, or for at most so many seconds."""
        current = getcurrent()
        assert isinstance(current, _Greenlet)  # noqa: S101  # only greenlets send webhooks
        timeout = self.loop.call_later(seconds, current.switch)
        watched = []
        try:
            for sock, events in sockets.items():
                self._selector.register(sock, events, current.switch)
                watched.append(sock)
            current.pause()
        finally:
            timeout.cancel()
            for sock in watched:
                self._selector.unregister(sock)

    def resume_all(self, paused: Sequence["_Greenlet"]) -> None:
        """Let paused greenlets of this hub continue soon; any thread may ask for it."""
        self.call_soon(partial(_switch_all, paused))

    def run_blocking(self, call: Callable[[], T]) -> T:
        return run_in_thread(call)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Make a call, which must not wait, in so many seconds; only for the loop's thread."""
        self.loop.call_later(seconds, call)

    def _begin(self, call: Callable[[], object]) -> None:
        current = self.idle.pop() if self.idle else _Greenlet(self)
        current.switch(call)

    def _resume_ready(self) -> None:
        # Once each: a greenlet may have waited for several sockets.
        for resume in dict.fromkeys(key.data for key, _ in self._selector.select(0)):
            resume()


class _Greenlet(greenlet):
    """Makes one call after the other; in between, it is idle."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self._maker = getcurrent()

    def run(self, call: Callable[[], object]) -> None:
        while True:
            try:
                Context().run(call)
            except Exception:
                log.exception("greenlet crashed")
            del call  # it may hold a large request
            if len(self.hub.idle) == MAX_IDLE:
                return
            self.hub.idle.append(self)
            call = self._maker.switch()

    def pause(self) -> None:
        """Let other greenlets run until `switch` is called."""
        self._maker.switch()


class Promise(Generic[T]):
    """The result of work in another thread, for the greenlet or thread that makes the promise."""

    def __init__(self) -> None:
        current = getcurrent()
        self.greenlet = current if isinstance(current, _Greenlet) else None
        self._kept = None if self.greenlet else threading.Event()
        self._result: T
        self._error: Exception | None = None

    def wait(self) -> T:
        """Return the result, or raise the error; meanwhile other greenlets of this thread run."""
        if self._kept is not None:
            self._kept.wait()
        elif self.greenlet is not None:
            self.greenlet.pause()
        if self._error is not None:
            raise self._error
        return self._result

    def keep(self, result: T) -> None:
        """Set the result; `tell` lets the greenlet or thread go on."""
        self._result = result

    def fail(self, error: Exception) -> None:
        """Set an error instead of a result."""
        self._error = error

    def tell(self) -> None:
        """Let a thread go on; greenlets go on together, by `tell_all`."""
        if self._kept is not None:
            self._kept.set()


class _Group(Generic[T, R]):
    """Calls in greenlets of their own; `gatherer` continues after the last one."""

    def __init__(self, call: Callable[[T], R], items: Sequence[T], gatherer: _Greenlet) -> None:
        self._call = call
        self._missing = len(items)
        self._gatherer = gatherer
        self.results: list[R | Exception] = [NotImplementedError()] * len(items)
        for index, item in enumerate(items):
            gatherer.hub.start(partial(self._run, index, item))

    def _run(self, index: int, item: T) -> None:
        try:
            self.results[index] = self._call(item)
        except Exception as error:
            self.results[index] = error
        self._missing -= 1
        if not self._missing:
            self._gatherer.hub.resume_all([self._gatherer])


def run_in_thread(call: Callable[[], T]) -> T:
    """Make a blocking call in a thread while other greenlets run; return its result.

    Outside a greenlet, the call is made directly.
    """
    current = getcurrent()
    if not isinstance(current, _Greenlet):
        return call()
    promise: Promise[T] = Promise()
    current.hub.executor.submit(_keep, promise, call)
    return promise.wait()


def gather(
    call: Callable[[T], R], items: Sequence[T], /, *, elsewhere: MapConcurrently
) -> list[R | Exception]:
    """Call for each item concurrently; return the result of each, or its exception.

    In a greenlet each call gets its own greenlet; in any other thread `elsewhere` makes the calls.
    """
    current = getcurrent()
    if not isinstance(current, _Greenlet):
        return elsewhere(call, items)
    group = _Group(call, items, current)
    if items:
        current.pause()
    return group.results


def tell_all(promises: Iterable[Promise[Any]]) -> None:
    """Let all greenlets and threads go on whose promises are kept; wake each hub once."""
    paused: dict[Hub, list[_Greenlet]] = {}
    for promise in promises:
        promise.tell()
        if promise.greenlet is not None:
            paused.setdefault(promise.greenlet.hub, []).append(promise.greenlet)
    for hub, greenlets in paused.items():
        hub.resume_all(greenlets)


def _switch_all(paused: Sequence[_Greenlet]) -> None:
    for current in paused:
        current.switch()


def _keep(promise: Promise[T], call: Callable[[], T]) -> None:
    try:
        promise.keep(call())
    except Exception as error:
        promise.fail(error)
    tell_all([promise])
