"""Transport: one bounded HTTP exchange with a receiver, through requests at the adapter level.

An exchange ends by its deadline and reads a bounded number of bytes. The socket itself enforces
both limits, so they also cover slow headers, endless `100 Continue` responses and gzip bombs.

SSRF: a host name is resolved once, all its addresses are checked against the allow-list, and the
connection is pinned to them. Redirects are not followed, and proxy settings are ignored.

A connection may be kept open briefly for the next webhook to the same receiver.
"""

import logging
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol, TypeVar

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import check_header_validity
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from chalicelib.core import urls
from chalicelib.core.targets import Targets

# urllib3 would log the URLs and headers of receivers, which may hold secrets.
logging.getLogger("urllib3").setLevel(logging.ERROR)

MAX_RESPONSE_BYTES = 16 * 1024
"""Bytes that are read from a receiver in one exchange, headers included.

Node's clients accept as much for headers. The standard library parses headers in quadratic time:
256 KiB took a minute.
"""

BODY_TIMEOUT = 2.0
"""Seconds to wait for the body once the status is known. Only the status decides the outcome."""

KEEPALIVE_SECONDS = 0.5
"""Seconds for which an idle connection stays open.

Long enough within a burst; no common server closes an idle connection that early.
"""

MAX_CONNECTION_AGE = 10.0
"""Seconds after which a connection is not reused, because the name may resolve differently."""

MAX_POOLS = 64
"""Receivers whose connections are kept open at a time."""

MAX_CONNECTIONS_PER_RECEIVER = 64
"""Idle connections per receiver: as many as the senders that one host may use."""

T = TypeVar("T")


class WaitStrategy(Protocol):
    """How an exchange waits; other work may go on meanwhile."""

    keeps_connections: bool
    """Whether connections may be kept open: `call_later` works."""

    def wait_io(self, sock: socket.socket, writing: bool, seconds: float) -> object:
        """Return once the socket is readable (or writable), or after so many seconds."""

    def run_blocking(self, call: Callable[[], T]) -> T:
        """Make a call that may block for long; return its result."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> object:
        """Schedule a call that does not block."""


class BlockingWait:
    """Blocks the calling thread.

    It keeps no connections: Lambda freezes the process between events, so nothing could close them.
    """

    keeps_connections = False

    def wait_io(self, sock: socket.socket, writing: bool, seconds: float) -> object:
        poll = select.poll()
        poll.register(sock, select.POLLOUT if writing else select.POLLIN)
        return poll.poll(seconds * 1000)

    def run_blocking(self, call: Callable[[], T]) -> T:
        return call()

    def call_later(self, seconds: float, call: Callable[[], object]) -> object:
        raise NotImplementedError


class ExchangeError(Exception):
    """An exchange that got no response; `error` is its class, as in `Outcome.error`.

    Not an OSError: urllib3 would catch that and reword it.
    """

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error

    @classmethod
    def of(cls, error: Exception) -> "ExchangeError":
        """Classify any exception that an exchange may raise."""
        if isinstance(error, cls):
            return error
        if isinstance(error, requests.Timeout):
            return _timed_out()
        if isinstance(error, requests.exceptions.SSLError):
            return cls("tls", _describe(_root(error)))
        return cls("connect", _describe(_root(error)))


class _ConnectionDropped(Exception):
    """The receiver ended a reused connection without sending a byte. Not an OSError, as above."""


class Response(NamedTuple):
    """A receiver's final response."""

    status: int
    headers: Mapping[str, str]
    """Names are case-insensitive."""
    body: bytes
    """The first bytes of the body, as they were sent: not decompressed."""


class Transport:
    """Exchanges requests and responses with the receivers that `targets` allows."""

    def __init__(self, targets: Targets, tls: ssl.SSLContext | None, waiting: WaitStrategy) -> None:
        tls = tls or ssl.create_default_context(cafile=certifi.where())
        self._adapter = _Adapter(targets, tls, waiting)
        self._keeps_connections = waiting.keeps_connections

    def exchange(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes,
        timeout: float,
        *,
        max_body: int,
    ) -> Response:
        """Send one request and return its response, within `timeout` seconds.

        Reads at most `max_body` bytes of the body. `ExchangeError.of` classifies all errors.
        """
        if body or not self._keeps_connections:
            # A receiver that does not read the body would take it for the next request.
            headers = headers | {"Connection": "close"}
        request = _prepared(method, url, headers, body)
        response = self._send(request, time.monotonic() + timeout)
        try:
            return Response(
                response.status_code, response.raw.headers, _beginning(response.raw, max_body)
            )
        finally:
            response.close()

    def close(self) -> None:
        """Close all idle connections."""
        self._adapter.close()

    def _send(self, request: requests.PreparedRequest, ends_at: float) -> requests.Response:
        try:
            return self._adapter.post(request, ends_at)
        except _ConnectionDropped:
            # Most likely the receiver closed the connection before this webhook arrived. If not, it
            # gets the webhook twice, as after any fault, and can tell by the id. The pool has not
            # replaced the dropped connection yet, so this one is fresh.
            return self._adapter.post(request, ends_at)


class _BoundedSocket:
    """Mixed into a socket: bounds the whole exchange in time and in bytes received.

    The socket itself never blocks; the wait strategy waits for it.
    """

    waiting: WaitStrategy
    expires_at = float("inf")
    """End of the exchange, by the monotonic clock."""
    bytes_left = MAX_RESPONSE_BYTES
    is_clean = False
    """Whether nothing followed the latest response."""

    def settimeout(self, seconds: float | None) -> None:
        """Shorten the exchange to so many seconds from now; never extend it."""
        if super().gettimeout() != 0:  # type: ignore[misc]
            super().settimeout(0)  # type: ignore[misc]
        if seconds is not None:
            self.expires_at = min(self.expires_at, time.monotonic() + seconds)

    def gettimeout(self) -> float:
        """Return the seconds left, at least 1 ms: callers read 0 as non-blocking."""
        return max(self.expires_at - time.monotonic(), 0.001)

    def reset_limits(self) -> None:
        """Reset both limits for the next exchange."""
        self.expires_at = float("inf")
        self.bytes_left = MAX_RESPONSE_BYTES
        self.is_clean = False

    def finish_response(self, reader: Any) -> None:
        """Note whether bytes followed the response that this BufferedReader has read."""
        left, self.bytes_left = self.bytes_left, 0  # peek at buffered bytes only
        try:
            reader.peek()
        except ExchangeError:
            self.is_clean = not getattr(self, "pending", int)()  # TLS has a buffer of its own
        self.bytes_left = left

    def connect(self, address: Any) -> None:
        left = self._time_left()
        try:
            super().connect(address)  # type: ignore[misc]
        except BlockingIOError:
            self.waiting.wait_io(self, True, left)  # type: ignore[arg-type]
            self._time_left()
            if fault := self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # type: ignore[attr-defined]
                raise OSError(fault, os.strerror(fault)) from None

    def recv_into(self, buffer: Any, *_: Any) -> int:
        if self.bytes_left == 0:
            raise ExchangeError("too large", f"more than {MAX_RESPONSE_BYTES:,} bytes")
        size = min(len(buffer), self.bytes_left)
        received: int = self._call(super().recv_into, False, buffer, size)  # type: ignore[misc]
        self.bytes_left -= received
        return received

    def send(self, *args: Any) -> int:
        sent: int = self._call(super().send, True, *args)  # type: ignore[misc]
        return sent

    def sendall(self, data: Any, *flags: Any) -> None:
        with memoryview(data) as left:
            sent = 0
            while sent < len(left):
                sent += self.send(left[sent:], *flags)

    def _call(self, call: Callable[..., T], writing: bool, *args: Any) -> T:
        """Make a non-blocking call, and repeat it until the socket is ready for it."""
        left = self._time_left()
        while True:
            try:
                return call(*args)
            except ssl.SSLWantReadError:
                writing = False
            except ssl.SSLWantWriteError:
                writing = True
            except BlockingIOError:
                pass
            self.waiting.wait_io(self, writing, left)  # type: ignore[arg-type]
            left = self._time_left()

    def _time_left(self) -> float:
        left = self.expires_at - time.monotonic()
        if left <= 0:
            raise _timed_out()
        return left


class _PlainSocket(_BoundedSocket, socket.socket):
    pass


class _TlsSocket(_BoundedSocket, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        try:
            self._call(super().do_handshake, False, block)
        except ExchangeError:
            self.close()  # nothing else holds it yet, and SSLSocket only closes on its own errors
            raise


class _HttpResponse(HTTPResponse):
    """http.client's response; tells its socket when it is read to its end."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock

    def _close_conn(self) -> None:
        self._sock.finish_response(self.fp)
        super()._close_conn()  # type: ignore[misc]  # typeshed does not know it


class _CheckedConnection:
    """Mixed into urllib3's connections: connects to checked addresses only, with bounded sockets.

    A connection is kept open if the request had no `Connection: close` and the response was
    complete.
    """

    response_class = _HttpResponse
    targets: Targets
    waiting: WaitStrategy
    host: str
    port: int
    timeout: float
    sock: Any
    connected_at = 0.0
    idle_since: float | None = None
    """When it began to wait for another request, by the monotonic clock."""
    is_reused = False
    may_be_kept = False

    def request(self, *args: Any, headers: Mapping[str, str], **kwargs: Any) -> None:
        self.is_reused, self.idle_since = self.idle_since is not None, None
        self.may_be_kept = "Connection" not in headers
        if self.is_reused:
            self.sock.reset_limits()
        super().request(*args, headers=headers, **kwargs)  # type: ignore[misc]

    def getresponse(self) -> Any:
        sock = self.sock
        try:
            response = super().getresponse()  # type: ignore[misc]
        except (ConnectionError, ssl.SSLError) as error:
            if self.is_reused and sock.bytes_left == MAX_RESPONSE_BYTES:
                raise _ConnectionDropped from error
            raise
        self.may_be_kept &= _is_framed(response)
        sock.settimeout(BODY_TIMEOUT)
        return response

    def keep_open(self) -> bool:
        """Wait for another request; return False if the connection can't be reused."""
        now = time.monotonic()
        if not self.waiting.keeps_connections or not self.may_be_kept:
            return False
        if now > self.connected_at + MAX_CONNECTION_AGE:
            return False
        if self.sock is None or not self.sock.is_clean:
            return False
        self.idle_since = now
        self.waiting.call_later(KEEPALIVE_SECONDS, partial(self._close_if_idle_since, now))
        return True

    def close(self) -> None:
        self.idle_since = None  # urllib3 may connect this object again
        super().close()  # type: ignore[misc]

    def _close_if_idle_since(self, moment: float) -> None:
        if self.idle_since == moment:
            with suppress(OSError):
                self.close()

    def _new_conn(self) -> socket.socket:
        expires_at = time.monotonic() + self.timeout
        addresses = _resolve(self.host, self.port, self.waiting)
        _check(self.targets, self.host, self.port, addresses)
        sock = _connect(addresses, expires_at, self.waiting)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connected_at = time.monotonic()
        return sock


def _is_framed(response: Any) -> bool:
    """Return whether a response is final and its end is beyond doubt."""
    length = response.headers.get("Content-Length")
    coding = response.headers.get("Transfer-Encoding")
    if response.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return coding is None and length in (None, "0")
    return response.status >= HTTPStatus.OK and (length is None) != (coding is None)


class _Pool:
    """Mixed into urllib3's pools: closes each connection that can't be kept open."""

    def _put_conn(self, conn: Any) -> None:
        if conn is not None and not conn.keep_open():
            conn.close()
        super()._put_conn(conn)  # type: ignore[misc]


class _Adapter(HTTPAdapter):
    def __init__(self, targets: Targets, tls: ssl.SSLContext, waiting: WaitStrategy) -> None:
        # urllib3 makes sockets and connections by class, so the classes carry the settings.
        settings = {"targets": targets, "waiting": waiting}
        tls.sslsocket_class = type("TlsSocket", (_TlsSocket,), settings)
        self._tls = tls
        super().__init__(pool_connections=MAX_POOLS, pool_maxsize=MAX_CONNECTIONS_PER_RECEIVER)
        self.poolmanager.pool_classes_by_scheme = {
            "http": _pool_class(HTTPConnectionPool, HTTPConnection, settings),
            "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, settings),
        }

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)

    def post(self, request: requests.PreparedRequest, ends_at: float) -> requests.Response:
        """Send a request; return its response, with the body still unread."""
        limit = urllib3.Timeout(total=max(ends_at - time.monotonic(), 0.001))
        # A Session would read the whole body of a redirect, however long.
        return self.send(request, stream=True, timeout=limit)  # type: ignore[arg-type]  # requests takes urllib3's own Timeout, its stubs do not say so

    def get_connection_with_tls_context(self, request: Any, *_: Any, **__: Any) -> Any:
        """Return the pool of a receiver; the original looks for proxies and certificates first."""
        return self.poolmanager.connection_from_url(request.url)

    def request_url(self, request: Any, _: Any) -> str:
        """Return the target of the request line; the original looks for proxies."""
        return urls.parse(request.url).target

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the TLS context verifies, and has loaded the authorities already."""

    def build_response(self, _: Any, resp: Any) -> requests.Response:
        """Return the fields that are used here; the original also parses cookies."""
        response = requests.Response()
        response.status_code, response.raw = resp.status, resp
        return response


def _pool_class(pool: type, connection: type, settings: dict[str, Any]) -> type:
    connection = type("Connection", (_CheckedConnection, connection), settings)
    return type("Pool", (_Pool, pool), {"ConnectionCls": connection})


Address = tuple[socket.AddressFamily, Any]
"""A family, and an address in the form its sockets take: host and port come first."""


def _resolve(host: str, port: int, waiting: WaitStrategy) -> list[Address]:
    lookup = partial(_look_up, host, port)
    try:
        ip_address(host)
    except ValueError:
        return waiting.run_blocking(lookup)
    return lookup()  # a literal address needs no resolver, so it does not block


def _look_up(host: str, port: int) -> list[Address]:
    # The resolver has time limits of its own (resolv.conf); nothing can shorten them.
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ExchangeError("dns", _describe(error)) from None
    return list(dict.fromkeys((entry[0], entry[4]) for entry in entries))


def _check(targets: Targets, host: str, port: int, addresses: list[Address]) -> None:
    """Raise ExchangeError if any of the host's addresses is not allowed."""
    for _, (address, *_) in addresses:
        if not targets.allows(host.lower(), ip_address(address.partition("%")[0]), port):
            detail = f"{host} resolves to {address}, not allowed on port {port} (ALLOWED_TARGETS)"
            raise ExchangeError("refused target", detail)


def _connect(addresses: list[Address], expires_at: float, waiting: WaitStrategy) -> socket.socket:
    """Return a socket to the first address that accepts the connection."""
    failure: OSError | None = None
    for family, address in addresses:
        sock = _PlainSocket(family, socket.SOCK_STREAM)
        sock.waiting = waiting
        sock.settimeout(expires_at - time.monotonic())
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise ExchangeError("connect", _describe(failure)) if failure else _timed_out()


def _prepared(
    method: str, url: str, headers: dict[str, str], body: bytes
) -> requests.PreparedRequest:
    """Prepare a request without cookies, authentication and hooks: in a quarter of the time.

    An invalid header raises ExchangeError, because requests would quote it in its own error.
    """
    try:
        for header in headers.items():
            check_header_validity(header)
    except requests.exceptions.InvalidHeader:
        # "refused target" is permanent: the header would be invalid at the next attempt too.
        raise ExchangeError("refused target", "a header is not valid") from None
    request = requests.PreparedRequest()
    request.prepare_method(method)
    request.url = _as_sent(url)
    # A plain dict is faster, and no two of these names differ in case alone.
    request.headers = headers  # type: ignore[assignment]
    request.prepare_body(body, None)
    return request


@lru_cache(1024)  # a burst has few URLs, and preparing one takes a tenth of the time
def _as_sent(url: str) -> str:
    try:
        parts = urls.parse(url)
    except ValueError as error:
        raise ExchangeError("refused target", str(error)) from None
    return f"{parts.scheme}://{parts.host_header}{parts.target}"


def _beginning(body: urllib3.HTTPResponse, size: int) -> bytes:
    """Return up to `size` bytes of a body; fewer if the rest fails or is late."""
    received, left = b"", size
    # The status has decided the outcome, so an error here only ends the reading.
    with suppress(Exception):
        while left > 0 and (piece := body.read1(left, decode_content=False)):
            received += piece
            # May fall below 0: a chunk that claims a negative size returns more than was asked for.
            left -= len(piece)
    return received[:size]


def _timed_out() -> ExchangeError:
    return ExchangeError("timeout", "no response in time")


def _root(error: BaseException) -> BaseException:
    """Return the first network or HTTP error in a chain; a ValueError below it says less."""
    while isinstance(error.__context__, OSError | HTTPException | HTTPError):
        error = error.__context__
    return error


def _describe(error: BaseException) -> str:
    """Return an error in at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, HTTPException) and not isinstance(error, OSError):
        text = f"not valid HTTP: {text}"
    return text.strip()[:200]
