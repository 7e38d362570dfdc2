"""The load generator: keep-alive connections that each send one request at a time."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import NamedTuple

CONNECTIONS = 32

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


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._received = b""
        self._response: asyncio.Future[tuple[int, bytes]] = asyncio.Future()

    def ask(self, content: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        self._received, self._response = b"", asyncio.Future()
        self.transport.write(content)
        return self._response

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length and len(body) >= int(length[1]):
            self._response.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._response.done():
            self._response.set_exception(exc or ConnectionError("The server hung up."))


async def send(
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
    loop = asyncio.get_running_loop()
    opened = [
        (await loop.create_connection(_Connection, "127.0.0.1", port))[1]
        for _ in range(min(connections, count))
    ]
    numbers = iter(range(count))
    responses: list[Response] = []
    began = time.perf_counter()

    async def work(connection: _Connection) -> None:
        for number in numbers:
            due = began + number / rate if rate else time.perf_counter()
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            request = make()
            status, body = await connection.ask(request.content)
            responses.append(Response(request, status, body, time.perf_counter() - due))

    try:
        await asyncio.gather(*map(work, opened))
    finally:
        for connection in opened:
            connection.transport.close()
    return responses
