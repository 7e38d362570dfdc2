"""A raw HTTP client, and the standalone server inside the test process."""

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import pytest

from chalicelib import runtime
from standalone.bootstrap import Runner, build_application
from standalone.greenlets import Hub, Promise, tell_all
from standalone.server import Answer, HttpResponse, Server
from standalone.settings import Settings
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.hub import running_hub
from tests.support.routes import problem

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
TIMER = b'{"hours": 1, "url": "http://localhost/"}'
REQUEST_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
METHODS = ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "GET", "POST", "DELETE"]
TEST_TIMEOUT = 60
"""Seconds after which a test fails, far more than any response takes."""

OTHER_HOSTS = [
    b"",
    b"evil.example",
    b"evil.example:8000",
    b"127.0.0.1.evil.example",
    b"localhost.evil.example",
    b"localhost.",
    b"evil.localhost",
    b"0.0.0.0",
    b"127.0.0.2",
    b"127.1",
    b"2130706433",
    b"0x7f.1",
    b"::1",
    b"[::2]",
    b"[::ffff:127.0.0.1]",
    b"[0:0:0:0:0:0:0:1]",
    b"[",
    b"]",
    b"[::1",
    b"[::1]evil",
    b"evil[::1]",
    b"[::1%25evil]",
    b"localhost:",
    b"localhost:x",
    b"localhost:8000x",
    b"localhost:80:80",
    b"localhost@evil.example",
    b"evil.example@localhost",
    b"localhost/evil",
    b"localhost?evil",
    b"localhost#evil",
    b"localhost\\evil",
    b"localhost\tevil",
    b"localhost, evil.example",
    b"127.0.0.1:80, evil.example",
    b"local\xc2\xadhost",
    b"\xff",
    b"http://localhost",
    b"x" * 5000,
]
"""Host headers that name no local host, although some look like one."""


class Response(NamedTuple):
    """A response; the header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def detail(self, status: int) -> str:
        """Return the detail of the problem; fail unless it is a problem with this status."""
        assert self.status == status, self
        return str(problem(self.status, self.headers["content-type"], self.body)["detail"])


class Connection:
    """A client that sends exactly the bytes it is given."""

    def __init__(self, url: str) -> None:
        self.sock = socket.create_connection(address(url), timeout=TEST_TIMEOUT)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, method: str = "GET") -> Response:
        """Return the next response; `method` is the method of its request."""
        status = int(self.file.readline().split()[1])
        lines = http.client.parse_headers(self.file).items()
        headers = {name.lower(): value for name, value in lines}
        assert len(headers) == len(lines), f"Duplicate header: {lines}."
        length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
        return Response(status, headers, self.file.read(length))

    def is_closed(self) -> bool:
        """Wait for the next byte; return whether the server has closed the connection instead."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def message(method: str, target: str, *headers: bytes, body: bytes = b"") -> bytes:
    """Return the bytes of a request. It has no Host header unless one is given."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    first = f"{method} {target} HTTP/1.1\r\n".encode()
    return first + b"".join(headers) + length + b"\r\n" + body


HEALTH = message("GET", "/health", HOST)


def ask(url: str, data: bytes, method: str = "GET") -> Response:
    """Send one request on its own connection; check that the response has a request id."""
    with Connection(url) as client:
        client.send(data)
        response = client.receive(method)
    assert REQUEST_ID.fullmatch(response.headers["x-request-id"])
    return response


@contextmanager
def running(settings: Settings, store: SqliteTimerStore) -> Iterator[str]:
    """Run the standalone server in this process; yield its URL."""
    hub = Hub()
    server = Server(build_application(settings, store), hub, settings.host, settings.port)
    stop = threading.Event()
    runner = threading.Thread(target=Runner(settings, store, hub, server, stop).run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_installed", None)  # restored at the end
        runner.start()
        try:
            yield f"http://{server.host}:{server.port}"
        finally:
            stop.set()
            runner.join()


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[Server, str]]:
    """Serve any application; yield the server and its URL."""
    with running_hub() as hub:
        server = Server(answer, hub, "127.0.0.1", 0)
        server.start()
        try:
            yield server, f"http://127.0.0.1:{server.port}"
        finally:
            server.finish()


def plain(body: bytes) -> HttpResponse:
    """Return a response with this body."""
    return HttpResponse(200, {"Content-Type": "text/plain"}, body)


class Meeting:
    """A barrier for greenlets: all wait until the last one arrives."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._present: list[Promise[None]] = []

    def wait(self) -> None:
        here: Promise[None] = Promise()
        here.keep(None)
        self._present.append(here)
        self._missing -= 1
        if not self._missing:
            tell_all(self._present)
        here.wait()
