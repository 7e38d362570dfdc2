"""A Hub that runs in its own thread, and greenlets that tests start in it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from standalone.greenlets import Hub

T = TypeVar("T")

STOP_TIMEOUT = 60
"""Seconds after which a hub that does not stop fails the test."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Yield a hub that runs in its own thread until the end of the block."""
    hub, over = Hub(), threading.Event()
    thread = threading.Thread(target=hub.run, args=(over.is_set,))
    thread.start()
    try:
        yield hub
    finally:
        hub.dispatcher.call_soon(over.set)
        thread.join(STOP_TIMEOUT)
    assert not thread.is_alive()


def begin(hub: Hub, call: Callable[[], T]) -> "Future[T]":
    """Make a call in a greenlet of a hub that runs in another thread."""
    done: Future[T] = Future()
    hub.dispatcher.call_soon(partial(_start, hub, call, done))
    return done


def _start(hub: Hub, call: Callable[[], T], done: "Future[T]") -> None:
    hub.dispatcher.start(call).add_done_callback(partial(_copy, done))


def _copy(done: "Future[T]", finished: "Future[T]") -> None:
    if (error := finished.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(finished.result())
