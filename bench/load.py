"""The load generator: keep-alive connections that each send one request at a time.

It shares the machine with the engines, so it is one thread on epoll, and parses no more of a
response than its status and length.
"""

import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

CONNECTIONS = 32

PIECE = 65536
"""Bytes of a response to read at once."""

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Request(NamedTuple):
    """A request as its bytes; the deadline of the timer that it creates, in Unix milliseconds."""

    content: bytes
    deadline: int = 0


class Response(NamedTuple):
    """The response to a request, and its seconds since the request should have been sent."""

    request: Request
    status: int
    body: bytes
    seconds: float


def post(path: str, body: bytes, deadline: int = 0) -> Request:
    """Return a POST of JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return Request(head.encode() + body, deadline)


def get(path: str) -> Request:
    """Return a GET."""
    return Request(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


def send(
    port: int,
    count: int,
    make: Callable[[], Request],
    *,
    rate: float | None = None,
    connections: int = CONNECTIONS,
) -> list[Response]:
    """Send requests made by `make`, `rate` a second or as fast as responses come.

    The time that a request waits for a free connection counts as part of its response time.
    """
    with ExitStack() as opened, select.epoll() as ready:
        idle = deque(_Connection(port) for _ in range(min(connections, count)))
        for connection in idle:
            opened.enter_context(connection.socket)
            ready.register(connection.socket, select.EPOLLIN)
        return _Load(ready, idle, make, rate).send(count)


class _Connection:
    """A connection, and the request that it waits for, with the time when that was due."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: Request, due: float) -> None:
        """Send a request."""
        self._request, self._due, self._received = request, due, b""
        self.socket.sendall(request.content)

    def receive(self) -> Response | None:
        """Read what has arrived; return the response once it is whole."""
        if not (piece := self.socket.recv(PIECE)):
            raise ConnectionError("The server hung up.")
        self._received += piece
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not length or len(body) < int(length[1]):
            return None
        return Response(self._request, int(head[9:12]), body, time.perf_counter() - self._due)


class _Load:
    """Requests on their way over some connections."""

    def __init__(
        self,
        ready: select.epoll,
        idle: deque[_Connection],
        make: Callable[[], Request],
        rate: float | None,
    ) -> None:
        self._ready = ready
        self._idle = idle
        self._make = make
        self._rate = rate
        self._connections = {connection.socket.fileno(): connection for connection in idle}
        self._sent = 0
        self._began = time.perf_counter()

    def send(self, count: int) -> list[Response]:
        """Send this many requests and return their responses."""
        responses: list[Response] = []
        while len(responses) < count:
            pause = self._send_due(count)
            for number, _ in self._ready.poll(pause):
                connection = self._connections[number]
                if response := connection.receive():
                    responses.append(response)
                    self._idle.append(connection)
        return responses

    def _send_due(self, count: int) -> float | None:
        """Send what is due; return the seconds until more is, or None if a response comes first."""
        while self._idle and self._sent < count:
            now = time.perf_counter()
            due = self._began + self._sent / self._rate if self._rate else now
            if due > now:
                return due - now
            self._idle.popleft().ask(self._make(), due)
            self._sent += 1
        return None
