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
    hub = Hub()
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join(STOP_TIMEOUT)
    assert not thread.is_alive()


def begin(hub: Hub, call: Callable[[], T]) -> "Future[T]":
    """Make a call in a greenlet of a hub that runs in another thread."""
    done: Future[T] = Future()
    hub.call_soon(partial(hub.start, partial(_fulfil, call, done)))
    return done


def _fulfil(call: Callable[[], T], done: "Future[T]") -> None:
    try:
        done.set_result(call())
    except Exception as error:
        done.set_exception(error)
