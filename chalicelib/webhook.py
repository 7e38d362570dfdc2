"""Sender: one attempt over HTTP, through requests at the adapter level.

Whatever the receiver does, an attempt ends in time and reads a bounded number of bytes: the socket
itself keeps both bounds, so dripped headers, endless `100 Continue` and gzip bombs fall under them
as well. Every connection is made for one attempt only, to an address that was checked, without
redirects and without the proxies of the environment. What is sent is signed with all the secrets of
its tenant; while these can't be read, nothing is sent.
"""

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any

import certifi
import msgspec
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from chalicelib import signing
from chalicelib.errors import Unavailable
from chalicelib.guard import Targets
from chalicelib.timers import Outcome, Timer

# It would write URLs and headers of receivers into the log: they may be secrets.
logging.getLogger("urllib3").setLevel(logging.ERROR)

USER_AGENT = "Timers/1"

MAX_BYTES = 16 * 1024
"""The most bytes that are read from a receiver, of whatever kind.

As much as Node's clients take for the headers. The standard library parses those in quadratic time:
256 KiB of them took a minute.
"""

ANSWER_KEPT = 1024
"""How many bytes of the answer's body are kept."""

BODY_PATIENCE = 2.0
"""Seconds to wait for the body once the status is known; the status alone decides."""


FRESH = timedelta(minutes=1)
"""How long secrets are remembered, and so how long a retired one may still sign."""

SecretsOf = Callable[[str], Sequence[str]]
"""Returns a tenant's secrets, newest first, or raises Unavailable."""


class Remembered:
    """Secrets that are read at most once in `FRESH`, whatever the number of threads that ask."""

    def __init__(self, read: SecretsOf, clock: Callable[[], datetime]) -> None:
        self._read = read
        self._clock = clock  # wall time: a function that is frozen may miss the passing of another
        self._lock = threading.Lock()
        self._known: dict[str, tuple[datetime, Future[Sequence[str]]]] = {}

    def of(self, tenant: str) -> Sequence[str]:
        """Return the tenant's secrets, newest first; raise Unavailable if they can't be read."""
        with self._lock:
            now = self._clock()
            read_at, found = self._known.get(tenant, (now - FRESH, Future()))
            fresh = timedelta(0) <= now - read_at < FRESH
            if not fresh:
                found = Future()
                self._known[tenant] = now, found
        if not fresh:
            self._fill(tenant, found)
        return found.result()

    def _fill(self, tenant: str, found: "Future[Sequence[str]]") -> None:
        try:
            found.set_result(self._read(tenant))
        except BaseException as error:
            # Those who wait for this reading fail with it; the next one tries again.
            with self._lock:
                self._known.pop(tenant, None)
            found.set_exception(error)


class WebhookSender:
    """Posts webhooks to what `targets` allows, signed with all of `secrets_of` their tenant.

    `tls` is for receivers with certificates of another authority than the public ones.
    """

    def __init__(
        self,
        targets: Targets,
        tls: ssl.SSLContext | None = None,
        *,
        secrets_of: SecretsOf = lambda _: (),
    ) -> None:
        tls = tls or ssl.create_default_context(cafile=certifi.where())
        self._adapter = _Adapter(targets, tls)
        self._secrets_of = secrets_of

    def send(self, timer: Timer, at: datetime) -> Outcome:
        """Make one attempt at `at`, over within `timer.timeout`. A failure is an Outcome.

        Only Unavailable escapes, before anything is sent: the secrets can't be read.
        """
        asked = time.monotonic()
        secrets = self._secrets_of(timer.tenant)
        began = time.monotonic()
        left = timer.timeout - (began - asked)
        if left < timer.timeout / 2:
            raise Unavailable("The secrets took so long to read that the receiver had no time.")
        try:
            outcome = self._exchange(timer, at, secrets, left)
        except Exception as error:
            # Receivers can answer so that the standard library fails in any way: RecursionError …
            outcome = _failure(error)
        return msgspec.structs.replace(outcome, duration=round(time.monotonic() - began, 6))

    def _exchange(
        self, timer: Timer, at: datetime, secrets: Sequence[str], timeout: float
    ) -> Outcome:
        body = timer.body.encode()
        headers = _headers(timer, at) | _signature(timer, at, secrets, body)
        try:
            request = requests.Request(timer.method, timer.target, headers, data=body).prepare()
        except requests.exceptions.InvalidHeader:
            # It will not pass, and what requests says of it quotes the header.
            raise _Stopped("refused target", "a header can't be sent") from None
        limit = urllib3.Timeout(total=timeout)
        # Not through a Session: that reads the whole body of a redirect, however long.
        response = self._adapter.send(request, stream=True, timeout=limit)  # type: ignore[arg-type]  # requests takes urllib3's own Timeout, its stubs do not say so
        try:
            return Outcome(
                status=response.status_code,
                answer=_beginning(response.raw),
                retry_after=_retry_after(response.raw.headers.get("Retry-After"), at),
            )
        finally:
            response.close()


class _Stopped(Exception):
    """We ended the exchange ourselves. No OSError, so that urllib3 does not reword it."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error


class _Bounded:
    """Mixed into a socket: the whole exchange is bounded in time and in bytes received."""

    expires = float("inf")
    room = MAX_BYTES

    def recv_into(self, buffer: Any, *_: Any) -> int:
        self._keep_deadline()
        if self.room == 0:
            raise _Stopped("too large", f"more than {MAX_BYTES:,} bytes")
        try:
            received: int = super().recv_into(buffer, min(len(buffer), self.room))  # type: ignore[misc]
        except TimeoutError:
            raise _too_late() from None
        self.room -= received
        return received

    def send(self, *args: Any) -> int:
        self._keep_deadline()
        return super().send(*args)  # type: ignore[misc,no-any-return]

    def sendall(self, *args: Any) -> None:
        self._keep_deadline()
        try:
            super().sendall(*args)  # type: ignore[misc]
        except TimeoutError:
            raise _too_late() from None

    def _keep_deadline(self) -> None:
        left = self.expires - time.monotonic()
        if left <= 0:
            raise _too_late()
        self.settimeout(min(left, threading.TIMEOUT_MAX))  # type: ignore[attr-defined]


class _PlainSocket(_Bounded, socket.socket):
    pass


class _TlsSocket(_Bounded, ssl.SSLSocket):
    pass


class _Connection:
    """Mixed into urllib3's connections: connects to checked addresses only, in bounded sockets."""

    targets: Targets
    host: str
    port: int
    timeout: float
    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock.expires = self._expires

    def getresponse(self) -> Any:
        sock = self.sock
        response = super().getresponse()  # type: ignore[misc]
        sock.expires = min(sock.expires, time.monotonic() + BODY_PATIENCE)
        return response

    def _new_conn(self) -> socket.socket:
        self._expires = time.monotonic() + self.timeout
        addresses = _resolve(self.targets, self.host, self.port)
        sock = _connect(addresses, self.port, self._expires)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What the TLS handshake keeps to: it goes past `_Bounded`, and a new socket has no timeout.
        sock.settimeout(max(self._expires - time.monotonic(), 0.001))
        return sock


class _Pool:
    """Mixed into urllib3's pools: keeps no connection.

    A receiver may close one just as it is used again, and then nobody knows what arrived.
    """

    def _put_conn(self, conn: HTTPConnection | None) -> None:
        if conn is not None:
            conn.close()


class _Adapter(HTTPAdapter):
    def __init__(self, targets: Targets, tls: ssl.SSLContext) -> None:
        tls.sslsocket_class = _TlsSocket
        self._tls = tls
        super().__init__()
        self.poolmanager.pool_classes_by_scheme = {
            "http": _pool_class(HTTPConnectionPool, HTTPConnection, targets),
            "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, targets),
        }

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the context verifies, and need not load the authorities each time."""

    def build_response(self, _: Any, resp: Any) -> requests.Response:
        """Return only what is used here; the original also parses the receiver's cookies."""
        response = requests.Response()
        response.status_code, response.raw = resp.status, resp
        return response


def _pool_class(pool: type, connection: type, targets: Targets) -> type:
    bound = type("Connection", (_Connection, connection), {"targets": targets})
    return type("Pool", (_Pool, pool), {"ConnectionCls": bound})


def _resolve(targets: Targets, host: str, port: int) -> list[str]:
    # The resolver keeps its own time limits (resolv.conf), which no other can cut short.
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Stopped("dns", _words(error)) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not targets.allows(host.lower(), ip_address(address.partition("%")[0]), port):
            raise _Stopped("refused target", f"{host} is at {address}, port {port}")
    return addresses


def _connect(addresses: list[str], port: int, expires: float) -> socket.socket:
    failure: OSError | None = None
    for address in addresses:
        left = expires - time.monotonic()
        if left <= 0:
            break
        try:
            return _PlainSocket(
                fileno=socket.create_connection((address, port), timeout=left).detach()
            )
        except TimeoutError:
            break
        except OSError as error:
            failure = error
    raise _Stopped("connect", _words(failure)) if failure else _too_late()


def _signature(timer: Timer, at: datetime, secrets: Sequence[str], body: bytes) -> dict[str, str]:
    if not secrets:
        return {}
    return {"webhook-signature": signing.sign(secrets, timer.id, int(at.timestamp()), body)}


def _headers(timer: Timer, at: datetime) -> dict[str, str]:
    ours = {
        "webhook-id": timer.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "timer-attempt": str(timer.attempt),
        "timer-scheduled-at": timer.deadline.isoformat().replace("+00:00", "Z"),
        "User-Agent": USER_AGENT,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    # The owner's may replace Accept and User-Agent; no other of ours can be among them.
    given = {name.lower() for name in timer.headers}
    return timer.headers | {n: value for n, value in ours.items() if n.lower() not in given}


def _retry_after(value: str | None, at: datetime) -> float | None:
    """Return the seconds that a Retry-After (RFC 9110) asks for, counted from the attempt."""
    if value is None:
        return None
    try:
        if re.fullmatch("[0-9]{1,9}", value):
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - at).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
        return None


def _beginning(body: urllib3.HTTPResponse) -> str:
    pieces, left = b"", ANSWER_KEPT
    # The status has decided: however the rest fails, what has come is worth keeping.
    with suppress(Exception):
        while left > 0 and (piece := body.read1(left, decode_content=False)):
            pieces += piece
            # Below 0 after a chunk that claims a negative size: it comes longer than asked for.
            left -= len(piece)
    return pieces[:ANSWER_KEPT].decode(errors="replace")


def _failure(error: Exception) -> Outcome:
    if isinstance(error, _Stopped):
        return Outcome(error=error.error, detail=str(error))
    if isinstance(error, requests.Timeout):
        return Outcome(error="timeout", detail=str(_too_late()))
    if isinstance(error, requests.exceptions.SSLError):
        return Outcome(error="tls", detail=_words(_root(error)))
    return Outcome(error="connect", detail=_words(_root(error)))


def _too_late() -> _Stopped:
    return _Stopped("timeout", "no answer in time")


def _root(error: BaseException) -> BaseException:
    # What is none of these is how http.client found out: the ValueError of an int().
    while isinstance(error.__context__, OSError | HTTPException | HTTPError):
        error = error.__context__
    return error


def _words(error: BaseException) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, HTTPException) and not isinstance(error, OSError):
        words = f"no valid HTTP: {words}"
    return words.strip()[:200]
