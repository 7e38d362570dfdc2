"""HTTP/1.1 for the standalone server: reads requests, enforces limits, and writes responses.

One thread does it all, on the event loop of a Hub. httptools parses. Each request is handled in a
greenlet, and those of one connection one after the other.
"""

import asyncio
import logging
import socket
import threading
import time
from asyncio import BufferedProtocol, Transport
from collections import deque
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, cast

import httptools
from chalice.app import Response

from chalicelib.http import responses
from chalicelib.http.requests import MAX_BATCH_BYTES
from standalone.entropy import random_uuid
from standalone.greenlets import Hub
from standalone.listening import bound_sockets

MAX_CONNECTIONS = 500
"""Connections open at once. Each takes a file descriptor, as do the database and webhooks."""

MAX_HEADER_BYTES = 10 * 1024
"""Bytes of a request's target and headers, as on API Gateway."""

MAX_BODY_BYTES = MAX_BATCH_BYTES
"""Bytes of a body that are read; most views have lower limits."""

MAX_SILENT_BYTES = MAX_HEADER_BYTES
"""Bytes that the parser may read without reporting a part of the request.

The parser skips blank lines and the extensions of chunks, and reports a header once it is complete.
"""

IDLE_TIMEOUT = 30
"""Seconds after which an idle connection is closed."""

REQUEST_TIMEOUT = 30
"""Seconds within which a request must arrive completely."""

RESPONSE_TIMEOUT = 60
"""Seconds within which a client must read a response."""

LINGER_SECONDS = 2
"""Seconds in which a client may still send after its request was refused.

If the connection were closed at once, a reset could keep the response from the client.
"""

MIN_IDLE_SECONDS = 1
"""Seconds of idleness after which a connection may be closed in favour of another."""

SHUTDOWN_TIMEOUT = 5
"""Seconds that requests in progress have to finish at shutdown."""

CHECK_INTERVAL = 1
"""Seconds between two checks of the time limits."""

READ_BUFFER_BYTES = 16 * 1024
"""Bytes that are read at once. It bounds how many pipelined requests wait in memory."""

BACKLOG = 1024
"""Connections that the system holds until they are accepted."""

log = logging.getLogger(__name__)


VERSIONS = {"0.9", "1.0", "1.1"}
"""Versions of HTTP in requests that are answered."""


class HttpRequest(NamedTuple):
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, list[str]]
    """The values of each header, by its name in lower case."""
    body: bytes
    version: str = "1.1"
    keeps_alive: bool = True
    """Whether the client keeps the connection open."""


class HttpResponse(NamedTuple):
    """A response; the server adds the headers that HTTP itself needs."""

    status: int
    headers: Mapping[str, str | list[str]]
    body: bytes


Answer = Callable[[HttpRequest], HttpResponse]
"""Answers a request; it may wait, in its greenlet."""


def problem(status: HTTPStatus, detail: str) -> HttpResponse:
    """Return an error as a response."""
    return http_response(responses.problem(status, detail))


def http_response(response: Response) -> HttpResponse:
    """Return a view's response, whose body is a text, as it is sent."""
    return HttpResponse(response.status_code, response.headers, response.body.encode())


class _Refused(Exception):
    """A request that no view sees; the connection ends with this response to it."""

    def __init__(self, response: HttpResponse) -> None:
        super().__init__(response.status)
        self.response = response


_MALFORMED = problem(HTTPStatus.BAD_REQUEST, "The request is not valid HTTP/1.1.")
_UNKNOWN_METHOD = problem(HTTPStatus.NOT_IMPLEMENTED, "This HTTP method is unknown.")
_UNKNOWN_VERSION = problem(
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "The only version of HTTP that is supported is 1.1."
)
_UNKNOWN_ENCODING = problem(
    HTTPStatus.NOT_IMPLEMENTED, "The only Transfer-Encoding that is supported is chunked."
)
_TOO_LATE = problem(
    HTTPStatus.REQUEST_TIMEOUT, f"The request did not arrive within {REQUEST_TIMEOUT} seconds."
)
_LARGE_HEAD = problem(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"The target and the headers are larger than {MAX_HEADER_BYTES:,} bytes.",
)
_LARGE_BODY = problem(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {MAX_BODY_BYTES:,} bytes."
)
_CRASHED = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "An internal error occurred.")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_ANSWERED = {"upgrade", "connection", "expect"}
"""Headers that the second parsing of a request need not see."""


class Connection(BufferedProtocol):
    """One client: parses its requests, and answers them in order."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Transport
        self._is_open = False
        self._waiting: deque[HttpRequest | HttpResponse] = deque()
        self._is_busy = False
        self._ends = False
        """Whether the connection ends with the last of the requests that wait."""
        self._begin()
        self.active_at = server.time()
        """When a byte last arrived or a response was written, as all times here by the loop."""
        self.began_at: float | None = None
        """When the first byte of the incoming request arrived."""
        self._full_at: float | None = None
        """Since when a part of a response has waited for the client to read."""
        self._refused_at: float | None = None

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Transport", transport)
        # Even one unread byte counts: a closing connection could wait for its client for ever.
        self._transport.set_write_buffer_limits(high=0)
        self._is_open = True
        if self._ends:  # the server has begun to finish
            self.close()

    def get_buffer(self, _: int) -> memoryview:
        return self._server.buffer  # one for all: it is read at once

    def buffer_updated(self, size: int) -> None:
        self.active_at = self._server.time()
        if not self._ends:
            self._feed(self._server.buffer[:size])
            self._go_on()

    def eof_received(self) -> bool:
        """Return whether to keep the connection open, for the responses to come."""
        self._ends = True
        return self._is_occupied()

    def connection_lost(self, _: Exception | None) -> None:
        self._waiting.clear()
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._full_at = self._server.time()

    def resume_writing(self) -> None:
        self._full_at = None
        self._go_on()

    # Called by the parser

    def on_message_begin(self) -> None:
        self.began_at = self.active_at
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + len(": \r\n"))
        if self._has_head:  # this is a trailer
            return
        values = self._headers.setdefault(name.decode("latin-1").lower(), [])
        values.append(value.decode("latin-1").strip(" \t"))

    def on_headers_complete(self) -> None:
        self._has_head = True
        version = self._parser.get_http_version()
        if version not in VERSIONS:
            raise _Refused(_UNKNOWN_VERSION)
        if self._values("transfer-encoding") not in ([], ["chunked"]):
            raise _Refused(_UNKNOWN_ENCODING)
        if int(self._headers.get("content-length", ["0"])[0]) > MAX_BODY_BYTES:
            raise _Refused(_LARGE_BODY)
        self._expects = self._values("expect") == ["100-continue"] and version != "1.0"
        self._invite_body()

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        self._expects = False  # it did not wait
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            raise _Refused(_LARGE_BODY)

    def on_chunk_complete(self) -> None:
        self._silent = 0

    def on_message_complete(self) -> None:
        self._silent = 0
        self._expects = False
        method = self._parser.get_method().decode()
        if self._parser.should_upgrade() and method != "CONNECT":
            return  # `_ignore_upgrade` parses it again
        self.began_at = None
        self._waiting.append(
            HttpRequest(
                method,
                self._target.decode(),
                self._headers,
                bytes(self._body),
                self._parser.get_http_version(),
                self._parser.should_keep_alive(),
            )
        )

    # Called by the server

    def is_idle(self) -> bool:
        """Return whether no request is arriving, and no response is to be sent."""
        return self.began_at is None and self._full_at is None and not self._is_occupied()

    def check(self, now: float) -> None:
        """Close the connection if a time limit has passed."""
        is_stuck = _is_over(self._full_at, RESPONSE_TIMEOUT, now)
        if is_stuck or _is_over(self._refused_at, LINGER_SECONDS, now):
            self._transport.abort()
        elif _is_over(self.began_at, REQUEST_TIMEOUT, now) and not self._is_busy:
            self._refuse(_TOO_LATE)
            self._go_on()
        elif self.is_idle() and _is_over(self.active_at, IDLE_TIMEOUT, now):
            self.close()

    def close(self) -> None:
        """Close the connection; what was written is still sent."""
        self._transport.close()

    def finish(self) -> None:
        """Close the connection once the request in progress is answered."""
        self._ends = True
        self._waiting.clear()
        if self._is_open:
            self._go_on()

    # Called by itself

    def _is_occupied(self) -> bool:
        return self._is_busy or bool(self._waiting)

    def _values(self, name: str) -> list[str]:
        return [value.lower() for value in self._headers.get(name, ())]

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[str, list[str]] = {}
        self._body = bytearray()
        self._has_head = False
        self._expects = False
        """Whether the client waits for a 100 before it sends the body."""
        self._head_size = 0
        """Bytes of the target, the headers and the trailers so far."""
        self._silent = 0
        """Bytes since the parser has reported a part of the request."""

    def _feed(self, data: memoryview) -> None:
        try:
            self._silent += len(data)
            self._parser.feed_data(data)
            self._check_silence()
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            self._refuse(_refusal_in(error))
        except _Refused as refused:
            self._refuse(refused.response)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(_UNKNOWN_METHOD)
        except httptools.HttpParserError:
            self._refuse(_MALFORMED)

    def _count_head(self, size: int) -> None:
        self._silent = 0
        self._head_size += size
        if self._head_size > MAX_HEADER_BYTES:
            raise _Refused(_LARGE_HEAD)

    def _check_silence(self) -> None:
        if self._silent > MAX_SILENT_BYTES:
            raise _Refused(_LARGE_HEAD)

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """Parse a request again, without the protocol that it offers; a server may ignore that."""
        if self._parser.get_method() == b"CONNECT":
            self._ends = True  # the rest is not HTTP
            return
        old, self._parser = self._parser, httptools.HttpRequestParser(self)
        names = [it for it in self._headers if it not in _ANSWERED]
        lines = [f"{name}: {value}" for name in names for value in self._headers[name]]
        lines.append(f"connection: {'keep-alive' if old.should_keep_alive() else 'close'}")
        method, target = old.get_method().decode(), self._target.decode()
        first = f"{method} {target} HTTP/{old.get_http_version()}"
        self._feed(memoryview("\r\n".join([first, *lines, "", ""]).encode("latin-1")))
        if rest and not self._ends:
            self._feed(rest)

    def _refuse(self, response: HttpResponse) -> None:
        self._waiting.append(response)
        self._ends = True
        self.began_at = None

    def _go_on(self) -> None:
        """Answer the next request, or close the connection if there will be none."""
        if self._is_busy or self._full_at is not None:
            pass
        elif self._waiting:
            self._take(self._waiting.popleft())
        elif self._ends and self._refused_at is None:
            self.close()
        elif not self._ends:
            self._invite_body()
        self._read_or_pause()

    def _invite_body(self) -> None:
        if self._expects and not self._is_occupied():
            self._expects = False
            self._transport.write(_CONTINUE)

    def _take(self, asked: HttpRequest | HttpResponse) -> None:
        if isinstance(asked, HttpResponse):
            self._part(asked)
        else:
            self._is_busy = True
            self._server.hub.start(partial(self._answer, asked))

    def _read_or_pause(self) -> None:
        if self._transport.is_closing() or self._transport.is_reading() != bool(self._waiting):
            return
        # Requests that wait are enough: the client may not fill the memory with more.
        if self._waiting:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _answer(self, request: HttpRequest) -> None:
        try:
            response = self._server.answer(request)
        except Exception:
            log.exception("request crashed")
            response = _CRASHED
        self._is_busy = False
        self.active_at = self._server.time()
        if not self._transport.is_closing():
            self._reply(request, response)
            self._go_on()

    def _reply(self, request: HttpRequest, response: HttpResponse) -> None:
        if not request.keeps_alive:
            self._ends = True
            self._waiting.clear()
        closes = self._ends and not self._waiting
        self._transport.write(_encode(response, request, closes, self._server.date()))

    def _part(self, response: HttpResponse) -> None:
        """Respond, and read on for a moment: closed at once, the client might get a reset only."""
        self._transport.write(_encode(response, None, True, self._server.date()))
        self._transport.write_eof()
        self._refused_at = self._server.time()


class Server:
    """Accepts connections at each address of a host. Port 0 picks a free one.

    `answer` answers each request, in a greenlet of the hub. Raises OSError.
    """

    def __init__(self, answer: Answer, hub: Hub, host: str, port: int) -> None:
        self.answer = answer
        self.hub = hub
        self.time = hub.loop.time
        self.buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self.connections: set[Connection] = set()
        self._listeners = bound_sockets(host, port)
        for listener in self._listeners:
            listener.setblocking(False)
            listener.listen(BACKLOG)
        self.host, self.port = self._listeners[0].getsockname()[:2]
        self._accepts = False
        self._is_finishing = False
        self._finished = threading.Event()
        self._tasks: set[asyncio.Task[object]] = set()
        self._second = 0
        self._date = ""

    def start(self) -> None:
        """Accept connections, once the hub runs."""
        self.hub.call_soon(self._accept_again)
        self.hub.call_soon(self._check_regularly)

    def finish(self) -> bool:
        """Refuse connections; return whether all requests in progress were answered in time.

        Other threads than the hub's may call it.
        """
        self.hub.call_soon(self._finish)
        return self._finished.wait(SHUTDOWN_TIMEOUT)

    def forget(self, connection: Connection) -> None:
        """Take note that a connection is closed."""
        self.connections.discard(connection)
        if self._is_finishing:
            self._finish()
        else:
            self._accept_again()

    def date(self) -> str:
        """Return the time as the Date header has it."""
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True)
        return self._date

    def check(self, now: float) -> None:
        """Close the connections whose time limits have passed at this time of the loop."""
        for connection in list(self.connections):
            connection.check(now)

    def _check_regularly(self) -> None:
        self.hub.call_later(CHECK_INTERVAL, self._check_regularly)  # first: the rest may fail
        self.check(self.time())
        if not self._is_finishing:
            self._accept_again()

    def _accept_again(self) -> None:
        if not self._accepts:
            self._accepts = True
            for listener in self._listeners:
                self.hub.loop.add_reader(listener, self._accept, listener)

    def _accept_no_more(self) -> None:
        self._accepts = False
        for listener in self._listeners:
            self.hub.loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        if len(self.connections) >= MAX_CONNECTIONS:
            self._accept_no_more()  # until a connection is closed, or the next check
            self._close_idle()
            return
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):  # the client has left
            return
        except OSError as error:  # too many files are open, for instance
            log.warning("connections postponed", extra={"error": str(error)})
            self._accept_no_more()
            self._close_idle()
            return
        self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        connection = Connection(self)
        self.connections.add(connection)
        opening = self.hub.loop.connect_accepted_socket(lambda: connection, sock)
        task = self.hub.loop.create_task(opening)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _close_idle(self) -> None:
        """Close the connection that has been idle for longest, if any is idle for long."""
        idle = [it for it in self.connections if it.is_idle()]
        longest = min(idle, key=lambda it: it.active_at, default=None)
        if longest is not None and _is_over(longest.active_at, MIN_IDLE_SECONDS, self.time()):
            longest.close()

    def _finish(self) -> None:
        if not self._is_finishing:
            self._is_finishing = True
            self._accept_no_more()
            for listener in self._listeners:
                listener.close()
            for connection in list(self.connections):
                connection.finish()
        if not self.connections:
            self._finished.set()


def _is_over(since: float | None, limit: float, now: float) -> bool:
    return since is not None and now - since > limit


def _refusal_in(error: httptools.HttpParserCallbackError) -> HttpResponse:
    """Return the response that a callback of the parser has raised."""
    if isinstance(error.__context__, _Refused):
        return error.__context__.response
    raise error


def _encode(response: HttpResponse, request: HttpRequest | None, closes: bool, date: str) -> bytes:
    """Return a response as bytes."""
    status = HTTPStatus(response.status)
    lines = [f"HTTP/1.1 {status.value} {responses.name_of(status)}", f"Date: {date}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if responses.REQUEST_ID_HEADER not in response.headers:
        lines.append(f"{responses.REQUEST_ID_HEADER}: {random_uuid()}")
    if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        lines.append(f"Content-Length: {len(response.body)}")
    if closes:
        lines.append("Connection: close")
    elif request is not None and request.version == "1.0":
        lines.append("Connection: keep-alive")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head if request is not None and request.method == "HEAD" else head + response.body
