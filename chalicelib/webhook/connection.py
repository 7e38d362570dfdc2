"""One connection to a receiver, bounded in time and in bytes received.

SSRF: a host name is resolved once, and the connection goes to one of its allowed addresses.
"""

import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from itertools import zip_longest
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from chalicelib.core.targets import Targets
from chalicelib.webhook.errors import ExchangeError, describe, timed_out
from chalicelib.webhook.tls import Tls
from chalicelib.webhook.waiting import WaitStrategy

MAX_RESPONSE_BYTES = 16 * 1024
"""Bytes that are read from a receiver in one exchange, headers included.

Node's clients accept as much for headers.
"""

MAX_WIRE_BYTES = 64 * 1024
"""Bytes that are read from the network in one exchange: TLS adds some to the response."""

NEXT_ADDRESS_DELAY = 0.25
"""Seconds after which the next address is tried too (RFC 8305: Connection Attempt Delay)."""

MAX_ADDRESSES = 16
"""Addresses of one name that are tried."""

Address = tuple[socket.AddressFamily, Any]
"""A family, and an address in the form its sockets take: host and port come first."""


class Connection:
    """A connected socket, plain or TLS. It never blocks; the wait strategy waits for it.

    Methods raise ExchangeError after the deadline, and OSError if the connection fails.
    """

    def __init__(self, sock: socket.socket, waiting: WaitStrategy, ends_at: float) -> None:
        self._sock = sock
        self._waiting = waiting
        self._tls: Tls | None = None
        self._unsent = bytearray()
        self.connected_at = time.monotonic()
        self.idle_since: float | None = None
        """When it began to wait for another exchange, by the monotonic clock."""
        self.begin(ends_at)

    def begin(self, ends_at: float) -> None:
        """Begin an exchange that ends at `ends_at`, by the monotonic clock."""
        self._ends_at = ends_at
        self._bytes_left = MAX_RESPONSE_BYTES
        self._wire_bytes_left = MAX_WIRE_BYTES

    def end_within(self, seconds: float) -> None:
        """Shorten the exchange to so many seconds from now; never extend it."""
        self._ends_at = min(self._ends_at, time.monotonic() + seconds)

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Make the TLS handshake, which checks the certificate for this host."""
        tls = Tls(context, host)
        try:
            while not tls.handshake():
                self._send_all(tls.encrypted(b""))
                while (received := self._received()) is None:
                    self._wait(EVENT_READ)
                tls.put(received)
        except ssl.SSLError:
            with suppress(OSError):
                self._sock.send(tls.encrypted(b""))  # the alert tells the receiver why
            raise
        self._send_all(tls.encrypted(b""))
        self._tls = tls
        self.begin(self._ends_at)  # the certificates do not count as a response

    def queue(self, data: bytes) -> None:
        """Queue bytes for `flush`."""
        self._unsent += data if self._tls is None else self._tls.encrypted(data)

    def flush(self) -> bool:
        """Send queued bytes without waiting; return whether all are sent."""
        with suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        return not self._unsent

    def wait_to_flush(self, *, may_read: bool) -> None:
        """Wait until the socket takes bytes, or, if `may_read`, until some have arrived."""
        self._wait(EVENT_READ | EVENT_WRITE if may_read else EVENT_WRITE)

    def receive(self) -> bytes:
        """Wait for bytes and return them; b"" is the end of the stream."""
        while (data := self.receive_now()) is None:
            self._wait(EVENT_READ)
        return data

    def receive_now(self) -> bytes | None:
        """Return the bytes that have arrived, None if there are none; b"" is the end of the stream.

        Raises ExchangeError after MAX_RESPONSE_BYTES.
        """
        if not self._bytes_left:
            raise _too_large()
        data = self._received() if self._tls is None else self._decrypted(self._tls)
        if data is not None:
            data = data[: self._bytes_left]
            self._bytes_left -= len(data)
        return data

    @property
    def is_untouched(self) -> bool:
        """Whether the receiver has sent nothing in this exchange."""
        return self._bytes_left == MAX_RESPONSE_BYTES

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to be sent or read, not even the end of the stream."""
        try:
            if self._unsent or (self._tls is not None and self._tls.take() is not None):
                return False
        except ssl.SSLError:  # a broken record, or an alert
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self.idle_since = None
        self._sock.close()

    def _send_all(self, data: bytes) -> None:
        self._unsent += data
        while not self.flush():
            self._wait(EVENT_WRITE)

    def _decrypted(self, tls: Tls) -> bytes | None:
        while (data := tls.take()) is None:
            self._reply(tls)
            if (received := self._received()) is None:
                return None
            tls.put(received)
        return data

    def _reply(self, tls: Tls) -> None:
        # TLS itself may have to answer: to a renegotiation, or a request for a certificate.
        if reply := tls.encrypted(b""):
            self._unsent += reply
            with suppress(OSError):  # reading goes on, and tells why the connection ended
                self.flush()

    def _received(self) -> bytes | None:
        if not self._wire_bytes_left:
            raise _too_large()
        try:
            limit = self._bytes_left if self._tls is None else MAX_RESPONSE_BYTES
            data = self._sock.recv(min(self._wire_bytes_left, limit))
        except BlockingIOError:
            return None
        self._wire_bytes_left -= len(data)
        return data

    def _wait(self, events: int) -> None:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise timed_out()
        self._waiting.wait_io({self._sock: events}, left)


def _too_large() -> ExchangeError:
    return ExchangeError("too large", f"more than {MAX_RESPONSE_BYTES:,} bytes")


def connect(
    host: str, port: int, targets: Targets | None, ends_at: float, waiting: WaitStrategy
) -> Connection:
    """Connect to the address of this host that responds first, by `ends_at`.

    Only addresses that `targets` allows are tried; None allows all. Raises ExchangeError.
    """
    addresses = _resolve(host, port, waiting)
    if targets is not None:
        addresses = _allowed(targets, host, port, addresses)
    sock = _Race(addresses, ends_at, waiting).run()
    return Connection(sock, waiting, ends_at)


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
        raise ExchangeError("dns", describe(error)) from None
    return list(dict.fromkeys((entry[0], entry[4]) for entry in entries))


def _allowed(targets: Targets, host: str, port: int, addresses: Sequence[Address]) -> list[Address]:
    allowed = [
        (family, address)
        for family, address in addresses
        if targets.allows(host, ip_address(address[0].partition("%")[0]), port)
    ]
    if not allowed:
        found = ", ".join(address[0] for _, address in addresses[:3])
        raise ExchangeError("refused target", targets.refusal(host, port, found))
    return allowed


class _Race:
    """Connects to several addresses as RFC 8305 (Happy Eyeballs) says: the first to connect wins.

    Address families alternate, so that a broken IPv6 network costs one delay.
    """

    def __init__(self, addresses: Sequence[Address], ends_at: float, waiting: WaitStrategy) -> None:
        self._untried = deque(_alternating(addresses)[:MAX_ADDRESSES])
        self._ends_at = ends_at
        self._waiting = waiting
        self._next_at = 0.0
        self._connecting: list[socket.socket] = []
        self._failure = OSError("no address")

    def run(self) -> socket.socket:
        """Return the first connected socket; raise ExchangeError if there is none in time."""
        try:
            while self._untried or self._connecting:
                if winner := self._next_step():
                    self._connecting.remove(winner)
                    return winner
        finally:
            for loser in self._connecting:
                loser.close()
        raise ExchangeError("connect", describe(self._failure))

    def _next_step(self) -> socket.socket | None:
        now = time.monotonic()
        if now >= self._ends_at:
            raise timed_out()
        if self._untried and (not self._connecting or now >= self._next_at):
            self._start(*self._untried.popleft())
            self._next_at = now + NEXT_ADDRESS_DELAY
        else:
            until = min(self._ends_at, self._next_at) if self._untried else self._ends_at
            self._waiting.wait_io(dict.fromkeys(self._connecting, EVENT_WRITE), until - now)
        return self._first_connected()

    def _start(self, family: socket.AddressFamily, address: Any) -> None:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # this machine has no IPv6, or no more files
            self._failure = error
            return
        self._connecting.append(sock)
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(sock, error)

    def _first_connected(self) -> socket.socket | None:
        for sock in list(self._connecting):
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop(sock, OSError(error, os.strerror(error)))
            elif _is_connected(sock):
                return sock
        return None

    def _drop(self, sock: socket.socket, error: OSError) -> None:
        self._failure = error
        self._connecting.remove(sock)
        sock.close()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _alternating(addresses: Sequence[Address]) -> list[Address]:
    """Return the addresses so that families take turns, beginning with the first one's."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = zip_longest(first, other)
    return [address for pair in pairs for address in pair if address is not None]
