"""Ways to call a function for many items."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

MAX_THREADS = 32
"""The most concurrent calls of `in_threads`."""

T = TypeVar("T")
R = TypeVar("R")


class MapConcurrently(Protocol):
    """Calls a function for each item, concurrently if it can.

    Returns, once all calls are over, the result of each in order, or the Exception it raised.
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
