"""Receivers on loopback sockets, well-behaved and hostile, and senders to post to them."""

import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import trustme
from msgspec.structs import replace

from chalicelib.core.targets import Targets
from chalicelib.core.timer import Outcome, Webhook, new_timer
from chalicelib.webhook.sender import WebhookSender
from tests.support.fakes import START

RECEIVER_TIMEOUT = 10.0
"""Seconds after which a receiver gives up, in every test."""

MAX_ATTEMPT_SECONDS = 5.0
"""How long an attempt with a timeout of 0.3 s may take on a busy machine."""

FLOOD_BYTES = 64 * 1024 * 1024
"""Bytes after which an \"endless\" response ends; the kernel's buffers hold far fewer."""

OK = b"HTTP/1.1 200 OK\r\n"
OK_EMPTY = OK + b"Content-Length: 0\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"

Handler = Callable[[socket.socket], None]
"""Serves one connection of a receiver."""


class SocketReceiver:
    """Passes its connections to a handler, one after the other."""

    def __init__(self, listener: socket.socket, handler: Handler, tls: ssl.SSLContext | None):
        self.listener, self.handler, self.tls = listener, handler, tls
        self.port: int = listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}/"
        self.connections = 0
        self.stopping = False

    def run(self) -> None:
        while True:
            conn = self.listener.accept()[0]
            if self.stopping:
                conn.close()
                return
            self.connections += 1
            conn.settimeout(RECEIVER_TIMEOUT)
            # The sender hangs up on hostile handlers.
            with conn, suppress(OSError):
                self.serve(conn)

    def serve(self, conn: socket.socket) -> None:
        if self.tls is None:
            self.handler(conn)
            return
        with self.tls.wrap_socket(conn, server_side=True) as wrapped:
            self.handler(wrapped)


@contextmanager
def receiver(
    handler: Handler, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[SocketReceiver]:
    """Run a receiver in a thread."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        running = SocketReceiver(listener, handler, tls)
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield running
        finally:
            running.stopping = True
            socket.create_connection(listener.getsockname()[:2]).close()
            thread.join()


@contextmanager
def swallowing(host: str, port: int = 0) -> Iterator[int]:
    """Yield a port of this address that answers no connection: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def read_head(conn: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = conn.recv(1)
        if not byte:
            raise ConnectionError("The sender hung up within the head.")
        head += byte
    return head


def answering(response: bytes) -> Handler:
    """Send a response and wait until the sender hangs up."""

    def handle(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(response)
        conn.recv(1)

    return handle


def closing(response: bytes) -> Handler:
    """Send a response and hang up."""

    def handle(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(response)

    return handle


def dripping(beginning: bytes, drop: bytes) -> Handler:
    """Send the beginning of a response, then one drop every 20 ms; an empty drop is silence."""

    def handle(conn: socket.socket) -> None:
        read_head(conn)
        drip(conn, beginning, drop)

    return handle


def drip(conn: socket.socket, beginning: bytes, drop: bytes) -> None:
    conn.sendall(beginning)
    end = time.monotonic() + RECEIVER_TIMEOUT
    while time.monotonic() < end:
        if not drop and not conn.recv(65536):
            return
        conn.sendall(drop)
        time.sleep(0.02)


class Flooding:
    """Sends the beginning of a response, then as many pieces as the sender reads; counts bytes."""

    def __init__(self, beginning: bytes, piece: bytes):
        self.beginning, self.piece, self.written = beginning, piece, 0

    def __call__(self, conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(self.beginning)
        while self.written < FLOOD_BYTES:
            self.written += conn.send(self.piece)


def resetting(conn: socket.socket) -> None:
    """Reset the connection after the request."""
    read_head(conn)
    reset_on_close(conn)


def reset_on_close(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(conn: socket.socket) -> None:
    """Read the request and never respond."""
    conn.recv(65536)
    conn.recv(1)


class Recording:
    """Sends one response to each connection, and records the requests."""

    def __init__(self, response: bytes = NO_CONTENT):
        self.response = response
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    def __call__(self, conn: socket.socket) -> None:
        head, body = read_head(conn), b""
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        while len(body) < int(length[1] if length else 0):
            body += conn.recv(65536)
        self.heads.append(head)
        self.bodies.append(body)
        conn.sendall(self.response)


class Scripted:
    """Sends one of these responses to each request, in order, on any number of connections.

    None closes the connection without a response.
    """

    def __init__(self, responses: list[bytes | None]) -> None:
        self.responses = iter(responses)
        self.requests: list[bytes] = []
        self.left = threading.Event()

    def __call__(self, conn: socket.socket) -> None:
        try:
            while True:
                self.requests.append(read_head(conn))
                response = next(self.responses)
                if response is None:
                    return
                conn.sendall(response)
        finally:
            self.left.set()


class FakeResolver:
    """Replaces `socket.getaddrinfo`; knows these names only, and records the lookups."""

    def __init__(self, addresses: dict[str, list[str]], delay: float = 0.0):
        self.addresses, self.delay = addresses, delay
        self.lookups: list[str] = []
        self.real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in self.addresses:
            numeric = socket.AI_NUMERICHOST
            return list(self.real(host, port, type=socket.SOCK_STREAM, flags=numeric))
        self.lookups.append(host)
        time.sleep(self.delay)
        return [self._entry(address, port) for address in self.addresses[host]]

    def _entry(self, address: str, port: int) -> Any:
        if ":" in address:
            return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
        return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


def server_context(authority: trustme.CA, *hosts: str) -> ssl.SSLContext:
    """Return the receiver's side of TLS, with a certificate for these hosts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*hosts).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return the sender's side of TLS."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def sender_to(targets: str, authority: trustme.CA | None = None) -> WebhookSender:
    """Return a sender that blocks its thread and allows `targets`."""
    tls = None if authority is None else trusting(authority)
    return WebhookSender(Targets.parse(targets), tls)


def post(
    sender: WebhookSender, url: str, timeout: float = RECEIVER_TIMEOUT, **fields: Any
) -> Outcome:
    """Send a webhook with these fields."""
    timer = new_timer("id-1", "default", Webhook(url=url, **fields), START, START)
    return sender.send(replace(timer, timeout=timeout), START)


def post_to(
    sender: WebhookSender,
    handler: Handler,
    timeout: float = RECEIVER_TIMEOUT,
    tls: ssl.SSLContext | None = None,
) -> Outcome:
    """Send a webhook to a receiver with this handler."""
    with receiver(handler, tls=tls) as running:
        return post(sender, running.url, timeout)
