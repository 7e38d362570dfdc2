"""How an exchange waits for sockets and names: it blocks its thread, or switches greenlets."""

import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

T = TypeVar("T")


class WaitStrategy(Protocol):
    """How an exchange waits; other work may go on meanwhile."""

    keeps_connections: bool
    """Whether connections may be kept open: `call_later` works."""

    def wait_io(self, sockets: Mapping[socket.socket, int], seconds: float) -> object:
        """Return once one of the sockets is ready for its events, or after so many seconds.

        Events are those of `selectors`: EVENT_READ, EVENT_WRITE or both.
        """

    def run_blocking(self, call: Callable[[], T]) -> T:
        """Make a call that may block for long; return its result."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> object:
        """Schedule a call that does not block."""


class BlockingWait:
    """Blocks the calling thread.

    It keeps no connections: Lambda freezes the process between events, so nothing could close them.
    """

    keeps_connections = False

    def wait_io(self, sockets: Mapping[socket.socket, int], seconds: float) -> object:
        with selectors.PollSelector() as selector:
            for sock, events in sockets.items():
                selector.register(sock, events)
            return selector.select(seconds)

    def run_blocking(self, call: Callable[[], T]) -> T:
        return call()

    def call_later(self, seconds: float, call: Callable[[], object]) -> object:
        raise NotImplementedError
