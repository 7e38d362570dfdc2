"""Ways to call a function for many items."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

MAX_THREADS = 32
"""Calls at the same time."""

T = TypeVar("T")
R = TypeVar("R")


class MapConcurrently(Protocol):
    """Calls a function for each item, at the same time if it can.

    Returns when all calls are over: their results in order, or the Exception that a call raised.
    A BaseException escapes.
    """

    def __call__(self, call: Callable[[T], R], items: Sequence[T], /) -> list[R | Exception]: ...


def one_by_one(call: Callable[[T], R], items: Sequence[T], /) -> list[R | Exception]:
    """Call one after the other."""
    results: list[R | Exception] = []
    for item in items:
        try:
            results.append(call(item))
        except Exception as error:
            results.append(error)
    return results


def in_threads(call: Callable[[T], R], items: Sequence[T], /) -> list[R | Exception]:
    """Call in a thread for each item, `MAX_THREADS` at a time."""
    with ThreadPoolExecutor(min(len(items), MAX_THREADS) or 1) as pool:
        futures = [pool.submit(call, item) for item in items]
    return one_by_one(Future.result, futures)
