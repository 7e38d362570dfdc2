"""Sender: one attempt over HTTP, through requests at the adapter level.

Whatever the receiver does, an attempt ends in time and reads a bounded number of bytes: the socket
itself keeps both bounds, so dripped headers, endless `100 Continue` and gzip bombs fall under them
as well. Connections are made to addresses that were checked, without redirects and without the
proxies of the environment, and may be kept for a moment, for the next webhook to the same receiver.
What is sent is signed with all the secrets of its tenant; while these can't be read, nothing is
sent.
"""

import logging
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from ipaddress import ip_address
from typing import Any, Protocol, TypeVar

import certifi
import msgspec
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import check_header_validity
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from chalicelib.core import signing
from chalicelib.core.errors import Unavailable
from chalicelib.core.targets import Targets
from chalicelib.core.timer import Outcome, Timer

# It would write URLs and headers of receivers into the log: they may be secrets.
logging.getLogger("urllib3").setLevel(logging.ERROR)

USER_AGENT = "Timers/1"

MAX_RESPONSE_BYTES = 16 * 1024
"""The most bytes that are read from a receiver, of whatever kind.

As much as Node's clients take for the headers. The standard library parses those in quadratic time:
256 KiB of them took a minute.
"""

MAX_ANSWER_KEPT = 1024
"""How many bytes of the answer's body are kept."""

BODY_TIMEOUT = 2.0
"""Seconds to wait for the body once the status is known; the status alone decides."""


SECRETS_TTL = timedelta(minutes=1)
"""How long secrets are remembered on AWS, and so how long a retired one may still sign."""

KEEPALIVE_SECONDS = 0.5
"""Seconds for which a connection waits for the next webhook to the same receiver.

Within a burst that is long enough, and no common server closes a silent connection that early.
"""

MAX_CONNECTION_AGE = 10.0
"""Seconds after which a connection is not kept any more: the name may lead elsewhere by then."""

MAX_POOLS = 64
"""To how many receivers connections are kept at a time, at most."""

MAX_CONNECTIONS_PER_RECEIVER = 64
"""How many are kept to each, at most: as many as one host has senders."""

T = TypeVar("T")

SecretsOf = Callable[[str], Sequence[str]]
"""Returns a tenant's secrets, newest first, or raises Unavailable."""


class SecretsCache:
    """Secrets that are read at most once in a while, whatever the number of threads that ask."""

    def __init__(
        self, read: SecretsOf, clock: Callable[[], datetime], fresh: timedelta = SECRETS_TTL
    ) -> None:
        self._read = read
        self._fresh = fresh
        self._clock = clock  # wall time: a function that is frozen may miss the passing of another
        self._lock = threading.Lock()
        self._known: dict[str, tuple[datetime, Future[Sequence[str]]]] = {}

    def of(self, tenant: str) -> Sequence[str]:
        """Return the tenant's secrets, newest first; raise Unavailable if they can't be read."""
        with self._lock:
            now = self._clock()
            read_at, found = self._known.get(tenant, (now - self._fresh, Future()))
            fresh = timedelta(0) <= now - read_at < self._fresh
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


class WaitStrategy(Protocol):
    """How a sender waits, so that others can go on meanwhile."""

    def wait_io(self, sock: socket.socket, writing: bool, seconds: float) -> object:
        """Return when the socket can be read from, or written to, or so much time has passed."""

    def run_blocking(self, call: Callable[[], T]) -> T:
        """Make a call that takes long; return its result."""

    @property
    def call_later(self) -> Callable[[float, Callable[[], object]], object] | None:
        """Make a call, which must not wait, after so many seconds; None where nobody would."""


class BlockingWait:
    """Waits as a thread does: the system lets the others go on. It keeps no connection."""

    def wait_io(self, sock: socket.socket, writing: bool, seconds: float) -> object:
        poll = select.poll()
        poll.register(sock, select.POLLOUT if writing else select.POLLIN)
        return poll.poll(seconds * 1000)

    def run_blocking(self, call: Callable[[], T]) -> T:
        return call()

    call_later = None  # between two events a process on Lambda stands still


class WebhookSender:
    """Posts webhooks to what `targets` allows, signed with all of `secrets_of` their tenant.

    `tls` is for receivers with certificates of another authority than the public ones; `waiting`
    for those who are no thread of their own.
    """

    def __init__(
        self,
        targets: Targets,
        tls: ssl.SSLContext | None = None,
        *,
        secrets_of: SecretsOf = lambda _: (),
        waiting: WaitStrategy = BlockingWait(),  # noqa: B008  # it has no state
    ) -> None:
        tls = tls or ssl.create_default_context(cafile=certifi.where())
        self._adapter = _Adapter(targets, tls, waiting)
        self._keeps = waiting.call_later is not None
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
        if body or not self._keeps:
            # A receiver that does not read a body would take it for the next request.
            headers["Connection"] = "close"
        try:
            request = _prepared(timer.method, timer.target, headers, body)
        except requests.exceptions.InvalidHeader:
            # It will not pass, and what requests says of it quotes the header.
            raise _Stopped("refused target", "a header can't be sent") from None
        response = self._answer(request, time.monotonic() + timeout)
        try:
            return Outcome(
                status=response.status_code,
                answer=_beginning(response.raw),
                retry_after=_retry_after(response.raw.headers.get("Retry-After"), at),
            )
        finally:
            response.close()

    def _answer(self, request: requests.PreparedRequest, ends_at: float) -> requests.Response:
        try:
            return self._adapter.post(request, ends_at)
        except _Dropped:
            # The receiver had ended the connection before it knew of this webhook, most likely. If
            # not, it gets it twice, as after any fault, and knows it by its id. In the pool nothing
            # has taken the place of that connection yet, so this one is fresh.
            return self._adapter.post(request, ends_at)


class _Dropped(Exception):
    """A connection that was kept has ended without a word. No OSError, as below."""


class _Stopped(Exception):
    """We ended the exchange ourselves. No OSError, so that urllib3 does not reword it."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error


class _Bounded:
    """Mixed into a socket: the whole exchange is bounded in time and in bytes received.

    The socket itself never blocks; what would, waits as the sender says.
    """

    waiting: WaitStrategy
    expires = float("inf")
    room = MAX_RESPONSE_BYTES
    is_clean = False
    """Whether nothing has come behind the latest answer."""

    def settimeout(self, seconds: float | None) -> None:
        """Let the exchange end within so many seconds, if it had longer."""
        if super().gettimeout() != 0:  # type: ignore[misc]
            super().settimeout(0)  # type: ignore[misc]
        if seconds is not None:
            self.expires = min(self.expires, time.monotonic() + seconds)

    def gettimeout(self) -> float:
        """Return the seconds that are left; what is nothing to a socket means that it can block."""
        return max(self.expires - time.monotonic(), 0.001)

    def begin_anew(self) -> None:
        """Have the time and the room of another exchange."""
        self.expires, self.room, self.is_clean = float("inf"), MAX_RESPONSE_BYTES, False

    def end(self, read: Any) -> None:
        """Have an answer behind that was read with this BufferedReader."""
        room, self.room = self.room, 0  # so that only what it has already can be seen
        try:
            read.peek()
        except _Stopped:
            self.is_clean = not getattr(self, "pending", int)()  # what TLS has already
        self.room = room

    def connect(self, address: Any) -> None:
        left = self._left()
        try:
            super().connect(address)  # type: ignore[misc]
        except BlockingIOError:
            self.waiting.wait_io(self, True, left)  # type: ignore[arg-type]
            self._left()
            if fault := self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # type: ignore[attr-defined]
                raise OSError(fault, os.strerror(fault)) from None

    def recv_into(self, buffer: Any, *_: Any) -> int:
        if self.room == 0:
            raise _Stopped("too large", f"more than {MAX_RESPONSE_BYTES:,} bytes")
        received: int = self._do(super().recv_into, False, buffer, min(len(buffer), self.room))  # type: ignore[misc]
        self.room -= received
        return received

    def send(self, *args: Any) -> int:
        sent: int = self._do(super().send, True, *args)  # type: ignore[misc]
        return sent

    def sendall(self, data: Any, *flags: Any) -> None:
        with memoryview(data) as left:
            sent = 0
            while sent < len(left):
                sent += self.send(left[sent:], *flags)

    def _do(self, call: Callable[..., T], writing: bool, *args: Any) -> T:
        left = self._left()
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
            left = self._left()

    def _left(self) -> float:
        left = self.expires - time.monotonic()
        if left <= 0:
            raise _too_late()
        return left


class _PlainSocket(_Bounded, socket.socket):
    pass


class _TlsSocket(_Bounded, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        try:
            self._do(super().do_handshake, False, block)
        except _Stopped:
            self.close()  # nobody else has it yet; SSLSocket closes itself for its own errors only
            raise


class _Answer(HTTPResponse):
    """http.client's, which says to its socket whether all that came is its own."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock

    def _close_conn(self) -> None:
        self._sock.end(self.fp)
        super()._close_conn()  # type: ignore[misc]  # typeshed does not know it


class _Connection:
    """Mixed into urllib3's connections: connects to checked addresses only, in bounded sockets.

    After a request without `Connection: close` it is kept, if the receiver answers it in full.
    """

    response_class = _Answer
    targets: Targets
    waiting: WaitStrategy
    host: str
    port: int
    timeout: float
    sock: Any
    connected_at = 0.0
    kept_at: float | None = None
    """Since when it waits for another request, by the monotonic clock."""
    is_reused = False
    may_be_kept = False

    def request(self, *args: Any, headers: Mapping[str, str], **kwargs: Any) -> None:
        self.is_reused, self.kept_at = self.kept_at is not None, None
        self.may_be_kept = "Connection" not in headers
        if self.is_reused:
            self.sock.begin_anew()
        super().request(*args, headers=headers, **kwargs)  # type: ignore[misc]

    def getresponse(self) -> Any:
        sock = self.sock
        try:
            response = super().getresponse()  # type: ignore[misc]
        except (ConnectionError, ssl.SSLError) as error:
            if self.is_reused and sock.room == MAX_RESPONSE_BYTES:
                raise _Dropped from error
            raise
        self.may_be_kept &= _is_framed(response)
        sock.settimeout(BODY_TIMEOUT)
        return response

    def keep(self) -> bool:
        """Wait for another request; False if that is impossible."""
        now, later = time.monotonic(), self.waiting.call_later
        if later is None or not self.may_be_kept or now > self.connected_at + MAX_CONNECTION_AGE:
            return False
        if self.sock is None or not self.sock.is_clean:
            return False
        self.kept_at = now
        later(KEEPALIVE_SECONDS, partial(self._give_up, now))
        return True

    def close(self) -> None:
        self.kept_at = None  # urllib3 may connect it anew
        super().close()  # type: ignore[misc]

    def _give_up(self, kept_at: float) -> None:
        if self.kept_at == kept_at:
            with suppress(OSError):
                self.close()

    def _new_conn(self) -> socket.socket:
        expires = time.monotonic() + self.timeout
        found = _resolved(self.host, self.port, self.waiting)
        _check(self.targets, self.host, self.port, found)
        sock = _connect(found, expires, self.waiting)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connected_at = time.monotonic()
        return sock


def _is_framed(answer: Any) -> bool:
    """Say whether there is no doubt about where the answer ends, and that it is the final one."""
    length, coding = (answer.headers.get(it) for it in ("Content-Length", "Transfer-Encoding"))
    if answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return coding is None and length in (None, "0")
    return answer.status >= HTTPStatus.OK and (length is None) != (coding is None)


class _Pool:
    """Mixed into urllib3's pools: keeps a connection only as long as it says itself."""

    def _put_conn(self, conn: Any) -> None:
        if conn is not None and not conn.keep():
            conn.close()
        super()._put_conn(conn)  # type: ignore[misc]


class _Adapter(HTTPAdapter):
    def __init__(self, targets: Targets, tls: ssl.SSLContext, waiting: WaitStrategy) -> None:
        bound = {"targets": targets, "waiting": waiting}
        tls.sslsocket_class = type("TlsSocket", (_TlsSocket,), bound)
        self._tls = tls
        super().__init__(pool_connections=MAX_POOLS, pool_maxsize=MAX_CONNECTIONS_PER_RECEIVER)
        self.poolmanager.pool_classes_by_scheme = {
            "http": _pool_class(HTTPConnectionPool, HTTPConnection, bound),
            "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, bound),
        }

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)

    def post(self, request: requests.PreparedRequest, ends_at: float) -> requests.Response:
        """Send a request; return the answer, whose body is still to be read."""
        limit = urllib3.Timeout(total=max(ends_at - time.monotonic(), 0.001))
        # Not through a Session: that reads the whole body of a redirect, however long.
        return self.send(request, stream=True, timeout=limit)  # type: ignore[arg-type]  # requests takes urllib3's own Timeout, its stubs do not say so

    def get_connection_with_tls_context(self, request: Any, *_: Any, **__: Any) -> Any:
        """Return the pool for a receiver; the original looks for proxies and certificates first."""
        return self.poolmanager.connection_from_url(request.url)

    def request_url(self, request: Any, _: Any) -> str:
        """Return what stands in the first line; the original looks for proxies."""
        return str(request.path_url)

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the context verifies, and need not load the authorities each time."""

    def build_response(self, _: Any, resp: Any) -> requests.Response:
        """Return only what is used here; the original also parses the receiver's cookies."""
        response = requests.Response()
        response.status_code, response.raw = resp.status, resp
        return response


def _pool_class(pool: type, connection: type, bound: dict[str, Any]) -> type:
    connection = type("Connection", (_Connection, connection), bound)
    return type("Pool", (_Pool, pool), {"ConnectionCls": connection})


Address = tuple[socket.AddressFamily, Any]
"""A family, and an address as its sockets take it: host and port come first."""


def _resolved(host: str, port: int, waiting: WaitStrategy) -> list[Address]:
    resolve = partial(_resolve, host, port)
    try:
        ip_address(host)
    except ValueError:
        return waiting.run_blocking(resolve)
    return resolve()  # nobody has to be asked


def _resolve(host: str, port: int) -> list[Address]:
    # The resolver keeps its own time limits (resolv.conf), which no other can cut short.
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Stopped("dns", _words(error)) from None
    return list(dict.fromkeys((entry[0], entry[4]) for entry in found))


def _check(targets: Targets, host: str, port: int, found: list[Address]) -> None:
    for _, (address, *_) in found:
        if not targets.allows(host.lower(), ip_address(address.partition("%")[0]), port):
            raise _Stopped("refused target", f"{host} is at {address}, port {port}")


def _connect(found: list[Address], expires: float, waiting: WaitStrategy) -> socket.socket:
    failure: OSError | None = None
    for family, address in found:
        sock = _PlainSocket(family, socket.SOCK_STREAM)
        sock.waiting = waiting
        sock.settimeout(expires - time.monotonic())
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
    raise _Stopped("connect", _words(failure)) if failure else _too_late()


def _prepared(
    method: str, url: str, headers: dict[str, str], body: bytes
) -> requests.PreparedRequest:
    # Without its cookies, its authentication and its hooks, which take a quarter of the time.
    for header in headers.items():
        check_header_validity(header)
    request = requests.PreparedRequest()
    request.prepare_method(method)
    request.url = _as_sent(url)
    # A plain dict will do, and is quicker: no two of these names differ in case alone.
    request.headers = headers  # type: ignore[assignment]
    request.prepare_body(body, None)
    return request


@lru_cache(1024)  # a burst has few URLs, and one takes a tenth of the time
def _as_sent(url: str) -> str:
    request = requests.PreparedRequest()
    request.prepare_url(url, "")
    return str(request.url)


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
    pieces, left = b"", MAX_ANSWER_KEPT
    # The status has decided: however the rest fails, what has come is worth keeping.
    with suppress(Exception):
        while left > 0 and (piece := body.read1(left, decode_content=False)):
            pieces += piece
            # Below 0 after a chunk that claims a negative size: it comes longer than asked for.
            left -= len(piece)
    return pieces[:MAX_ANSWER_KEPT].decode(errors="replace")


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
