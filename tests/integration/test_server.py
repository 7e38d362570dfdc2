"""Real HTTP over loopback: the standalone server against polite clients and all others."""

import http.client
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import pytest
from chalice.app import Chalice, Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import standalone.server
from app import app
from chalicelib.aws import bootstrap
from chalicelib.core.pagination import Page
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from standalone.bootstrap import Settings, door, run
from standalone.greenlets import wait
from standalone.server import (
    IDLE_TIMEOUT,
    LOCAL_HOSTS,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    REQUEST_TIMEOUT,
    Server,
    StartResponse,
    Wsgi,
    application,
)
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.processes import wait_until
from tests.support.routes import ROUTES, problem

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
TIMER = b'{"hours": 1, "url": "http://localhost/"}'
REQUEST_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
WAIT = 60
"""Seconds after which a test gives up; no answer takes nearly as long."""


class Answer(NamedTuple):
    """What came back; the names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def detail(self, status: int) -> str:
        """Return the detail of the problem that this has to be."""
        assert self.status == status, self
        return str(problem(self.status, self.headers["content-type"], self.body)["detail"])


class Connection:
    """A client that sends what it is told to, byte by byte."""

    def __init__(self, url: str) -> None:
        self.sock = socket.create_connection(address(url), timeout=WAIT)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, method: str = "GET") -> Answer:
        """Return the next answer; `method` is what it answers."""
        status = int(self.file.readline().split()[1])
        lines = http.client.parse_headers(self.file).items()
        headers = {name.lower(): value for name, value in lines}
        assert len(headers) == len(lines), f"One of these is there twice: {lines}."
        length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
        return Answer(status, headers, self.file.read(length))

    def is_closed(self) -> bool:
        """Wait for what comes next, and say whether it is the end."""
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
    """Return a request in full; without a Host."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    first = f"{method} {target} HTTP/1.1\r\n".encode()
    return first + b"".join(headers) + length + b"\r\n" + body


HEALTH = message("GET", "/health", HOST)


def ask(url: str, data: bytes, method: str = "GET") -> Answer:
    """Send one request on a connection of its own; whatever the answer, it has an id."""
    with Connection(url) as client:
        client.send(data)
        answer = client.receive(method)
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
    return answer


@contextmanager
def running(settings: Settings, store: SqliteTimerStore) -> Iterator[str]:
    """Serve as `python -m standalone` does; give the URL."""
    server = Server(door(settings, store), settings.host, settings.port)
    stop = threading.Event()
    runner = threading.Thread(target=run, args=(settings, store, server, stop))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_installed", None)  # puts back what was there
        runner.start()
        try:
            yield f"http://{server.effective_host}:{server.effective_port}"
        finally:
            stop.set()
            runner.join()


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The standalone server, once for the whole file: what one test damages, the next finds."""
    path = tmp_path_factory.mktemp("server") / "timers.db"
    settings = Settings("127.0.0.1", 0, path, Targets.parse(LOOPBACK_TARGETS))
    with running(settings, SqliteTimerStore(path)) as url:
        yield url


@pytest.fixture
def url(shared_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """The standalone server; it must be healthy after the test and have logged no error."""
    yield shared_url
    assert ask(shared_url, HEALTH).status == 200
    logged = caplog.get_records("call")
    assert [record.getMessage() for record in logged if record.levelno >= logging.ERROR] == []


@contextmanager
def serving(wsgi: Wsgi) -> Iterator[tuple[Server, str]]:
    """Serve another application than ours."""
    server = Server(wsgi, "127.0.0.1", 0)
    loop = threading.Thread(target=server.run)
    loop.start()
    try:
        yield server, f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.finish()
        loop.join()


def test_life_of_a_timer(url: str) -> None:
    """A timer is created, found at its Location, cancelled and found cancelled."""
    created = ask(url, message("POST", "/timers", HOST, JSON, body=TIMER))
    assert created.status == 201
    timer = json.loads(created.body)
    at = created.headers["location"]
    assert json.loads(ask(url, message("GET", at, HOST)).body)["id"] == timer["id"]
    assert json.loads(ask(url, message("DELETE", at, HOST)).body)["status"] == "cancelled"
    assert json.loads(ask(url, message("GET", at, HOST)).body)["status"] == "cancelled"


def test_bad_body(url: str) -> None:
    """An error passes the server unchanged, with its pointer."""
    body = b'{"seconds": true, "url": "http://localhost/"}'
    answer = ask(url, message("POST", "/timers", HOST, JSON, body=body))
    assert "Expected `int`, got `bool`" in answer.detail(400)
    assert json.loads(answer.body)["pointer"] == "/seconds"


@pytest.mark.parametrize("size", [256 * 1024 + 1, MAX_BODY_BYTES - 1])
def test_body_too_large_for_a_timer(url: str, size: int) -> None:
    """A body over 256 KB is a 413 on a connection that can be used further."""
    with Connection(url) as client:
        client.send(message("POST", "/timers", HOST, JSON, body=TIMER.ljust(size)))
        assert "larger than 262,144 bytes" in client.receive().detail(413)
        client.send(HEALTH)
        assert client.receive().status == 200


NO_ROUTES = {
    "root": ("GET", "/"),
    "unknown": ("GET", "/nothing"),
    "upper case": ("GET", "/Health"),
    "deeper": ("GET", "/timers/x/y"),
    "deeper, with dots": ("GET", "/timers/../health"),
    "double slash": ("GET", "//timers/x"),
    "no slash": ("GET", "health"),
    "asterisk": ("OPTIONS", "*"),
    "authority": ("CONNECT", "localhost:80"),
    "brackets": ("GET", "//[/timers"),
    "receiver without its slash": ("POST", "/_receiver"),
    "encoded slash": ("GET", "/timers%2Fx"),
    "made-up method": ("BREW", "/nothing"),
}


@pytest.mark.parametrize(("method", "target"), NO_ROUTES.values(), ids=NO_ROUTES)
def test_no_route(url: str, method: str, target: str) -> None:
    """A path that is no route is a 404 that says so."""
    answer = ask(url, message(method, target, HOST))
    assert answer.detail(404) == "There is nothing at this path."


STRANGE_IDS = {
    "UUID": b"00000000-0000-7000-8000-000000000000",
    "dots": b"..",
    "encoded dots": b"%2e%2e",
    "encoded slash": b"x%2Fy",
    "encoded NUL": b"%00",
    "NUL": b"\0",
    "control characters": b"\x01\x7f",
    "broken encoding": b"%",
    "other broken encoding": b"%zz%f",
    "not UTF-8, encoded": b"%ff%fe",
    "UTF-8, encoded": b"gr%C3%B6%C3%9Fe-%F0%9F%98%80",
    "SQL": b"'%20OR%201=1--",
    "template": b"{id}",
    "asterisk": b"*",
    "quotes": b"\"'`",
    "brackets": b"[",
    "only slashes": b"/",
    "long": b"x" * 8192,
    "long, encoded": b"%41" * 3000,
}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("id", STRANGE_IDS.values(), ids=STRANGE_IDS)
def test_strange_id(url: str, method: str, id: bytes) -> None:
    """No strange id is more than unknown."""
    first = b"%s /timers/%s HTTP/1.1\r\n" % (method.encode(), id)
    answer = ask(url, first + HOST + b"\r\n")
    assert answer.detail(404) == "There is no timer with this id."


@pytest.mark.parametrize("target", ["/timers/", "/timers/?", "/timers/#x", "/timers/;x"])
def test_empty_id(url: str, target: str) -> None:
    """Without an id the path is that of all timers."""
    assert set(json.loads(ask(url, message("GET", target, HOST)).body)) >= {"timers"}


METHODS = ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "BREW"]
METHODS += ["GET", "POST", "DELETE"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
def test_wrong_method(url: str, method: str, path: str) -> None:
    """A method that a route has not is a 405 that names those that it has, in whatever order."""
    allowed = {has for has, at in ROUTES if at == path}
    if method in allowed:
        return
    answer = ask(url, message(method, path, HOST), method)
    assert sorted(answer.headers["allow"].split(", ")) == sorted(allowed)
    if method == "HEAD":
        assert answer.status == 405
    else:
        assert answer.detail(405) == f"{method} is not possible here."


@pytest.mark.parametrize("path", ["/health", "/nothing", "/timers/x", "/_receiver/x"])
def test_no_body_after_head(url: str, path: str) -> None:
    """The answer to HEAD has no body, so that the next one on the connection is understood."""
    with Connection(url) as client:
        client.send(message("HEAD", path, HOST))
        head = client.receive("HEAD")
        if head.headers.get("connection") == "close":
            assert client.is_closed()
        else:
            client.send(HEALTH)
            assert client.receive().status == 200


@pytest.mark.parametrize("origin", [b"http://localhost:3000", b"https://evil.example"])
def test_no_cors(url: str, origin: bytes) -> None:
    """No answer of any route to any method lets a web page of another origin in."""
    asked = [b"Origin: %s\r\n" % origin, b"Access-Control-Request-Method: DELETE\r\n"]
    for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT"):
        for path in ("/timers", "/timers/x", "/health", "/nothing", "/_receiver/x"):
            data = message(method, path, HOST, JSON, *asked, body=TIMER)
            answer = ask(url, data, method)
            assert not [name for name in answer.headers if name.startswith("access-control")]


OUR_HOSTS = [
    b"localhost",
    b"LocalHost",
    b"LOCALHOST:8000",
    b"localhost:1",
    b"127.0.0.1",
    b"127.0.0.1:65535",
    b"[::1]",
    b"[::1]:8000",
    b" localhost ",
]

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


@pytest.mark.parametrize("host", OUR_HOSTS)
def test_host_is_ours(url: str, host: bytes) -> None:
    """The names of this machine are answered, on any port and in any case."""
    assert ask(url, message("GET", "/health", b"Host: %s\r\n" % host)).status == 200


def test_every_local_host_is_answered(url: str) -> None:
    """What the settings count as this machine, requests may be sent to."""
    for host in LOCAL_HOSTS:
        authority = f"[{host}]" if ":" in host else host
        assert ask(url, message("GET", "/health", f"Host: {authority}\r\n".encode())).status == 200


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_host_is_not_ours(url: str, host: bytes) -> None:
    """No other name is answered, so that no web page gets in by giving this machine its own."""
    for method, path in [*ROUTES, ("POST", "/_receiver/x"), ("GET", "/nothing")]:
        data = message(method, path, b"Host: %s\r\n" % host, JSON, body=TIMER)
        assert "answers to 127.0.0.1, ::1, localhost only" in ask(url, data).detail(421)


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"host: localhost\r\nHost: evil.example\r\n",
        b"Host: 127.0.0.1:1\r\nHost: evil.example\r\n",
    ],
    ids=["none", "two", "two with a port"],
)
def test_host_is_unclear(url: str, headers: bytes) -> None:
    """Without a Host, or with two, nobody knows who is meant."""
    assert ask(url, message("GET", "/health", headers)).status == 421


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/health", 200),
        ("http://127.0.0.1:8000/health", 200),
        ("http://[::1]/health?x", 200),
        ("http://localhost/nothing", 404),
        ("http://localhost", 404),
        ("http://evil.example/health", 421),
        ("http://localhost.evil.example/health", 421),
        ("http://evil.example@localhost/health", 421),
        ("http:///health", 421),
        ("/health?http://evil.example/", 200),
    ],
)
def test_absolute_target(url: str, target: str, status: int) -> None:
    """A target may name the host itself, and then that one has to be ours, too."""
    assert ask(url, message("GET", target, HOST)).status == status


@pytest.mark.parametrize(
    "origin",
    [
        b"http://localhost",
        b"http://localhost:3000",
        b"https://127.0.0.1:8443",
        b"http://[::1]:8000",
        b"HTTP://LOCALHOST",
    ],
)
def test_origin_is_ours(url: str, origin: bytes) -> None:
    """Web pages of this machine may use it."""
    data = message("POST", "/timers", HOST, JSON, b"Origin: %s\r\n" % origin, body=TIMER)
    assert ask(url, data).status == 201


@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil.example",
        b"http://localhost.evil.example",
        b"http://evil.example:8000",
        b"http://evil[::1]",
        b"http://localhost@evil.example",
        b"http://localhost http://evil.example",
        b"null",
        b"",
        b"localhost",
        b"://",
        b"file://",
        b"chrome-extension://abcdef",
        b"\xff",
    ],
)
def test_origin_is_not_ours(url: str, origin: bytes) -> None:
    """Web pages of other hosts may not use anything, the receiver included."""
    for method, path in [*ROUTES, ("POST", "/_receiver/x"), ("GET", "/nothing")]:
        data = message(method, path, HOST, JSON, b"Origin: %s\r\n" % origin, body=TIMER)
        assert ask(url, data).detail(403) == "Web pages of other hosts may not use this."


POST = b"POST /timers HTTP/1.1\r\n" + HOST + JSON

MALFORMED = {
    "garbage": (b"garbage\r\n\r\n", 400),
    "binary": (b"\0\x01\xff\r\n\r\n", 400),
    "method only": (b"GET\r\n\r\n", 400),
    "lower-case method": (b"get /health HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two spaces": (b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no version": (b"GET /health HTTP/x\r\n" + HOST + b"\r\n", 400),
    "brackets in the target": (b"GET http://[/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "target beyond ASCII": ("GET /timers/größe HTTP/1.1\r\n".encode() + HOST + b"\r\n", 400),
    "target of any bytes": (b"GET /timers/\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "query beyond ASCII": (b"GET /health?\xff=\xe9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "header without a colon": (message("GET", "/health", HOST, b"x\r\n"), 400),
    "header without a name": (message("GET", "/health", HOST, b": x\r\n"), 400),
    "space before the colon": (message("GET", "/health", b"Host : localhost\r\n"), 400),
    "NUL in a header": (message("GET", "/health", HOST, b"X: \0\r\n"), 400),
    "bare LF": (message("GET", "/health", b"Host: localhost\nX: y\r\n"), 400),
    "bare CR": (message("GET", "/health", b"Host: localhost\rX: y\r\n"), 400),
    "folded first header": (message("GET", "/health", b" folded\r\n", HOST), 400),
    "large header": (
        message("GET", "/health", HOST, b"X: %s\r\n" % (b"x" * MAX_HEADER_BYTES)),
        431,
    ),
    "many headers": (
        message("GET", "/health", HOST, *[b"X: y\r\n"] * (MAX_HEADER_BYTES // 5)),
        431,
    ),
    "long target": (message("GET", "/" + "x" * MAX_HEADER_BYTES, HOST), 431),
    "endless header": (b"GET /health HTTP/1.1\r\nX: " + b"x" * MAX_HEADER_BYTES, 431),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "length is no number": (POST + b"Content-Length: ten\r\n\r\n", 400),
    "length is a fraction": (POST + b"Content-Length: 1.0\r\n\r\n", 400),
    "length has a sign": (POST + b"Content-Length: +1\r\n\r\n", 400),
    "length in hexadecimal": (POST + b"Content-Length: 0x1\r\n\r\n", 400),
    "length in other digits": (POST + "Content-Length: ٣\r\n\r\n".encode(), 400),
    "length is missing": (POST + b"Content-Length:\r\n\r\n", 400),
    "length of 5,000 digits": (POST + b"Content-Length: %s\r\n\r\n" % (b"9" * 5000), 400),
    "length of a gigabyte": (POST + b"Content-Length: 1000000000\r\n\r\n", 413),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "two lengths in one": (POST + b"Content-Length: 1, 2\r\n\r\n", 400),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "made-up encoding": (POST + b"Transfer-Encoding: x\r\nContent-Length: 1\r\n\r\n", 501),
    "chunk size is no number": (POST + CHUNKED + b"\r\nxyz\r\n", 400),
    "negative chunk size": (POST + CHUNKED + b"\r\n-1\r\n", 400),
    "chunk size with a prefix": (POST + CHUNKED + b"\r\n0x1\r\n", 400),
    "chunk longer than its size": (POST + CHUNKED + b"\r\n1\r\nabc\r\n", 400),
    "bad chunk extension": (POST + CHUNKED + b"\r\n1;\0\r\na\r\n", 400),
}


@pytest.mark.parametrize(("data", "status"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(url: str, data: bytes, status: int) -> None:
    """What is no HTTP is refused with a problem, and the connection closed."""
    with Connection(url) as client:
        client.send(data)
        answer = client.receive()
        assert answer.detail(status)
        assert answer.headers["connection"] == "close"
        assert client.is_closed()


ODD = {
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n", 200),
    "HTTP/1.0, kept": (b"GET /health HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n", 200),
    "HTTP/0.9": (b"GET /health\r\n" + HOST + b"\r\n", 200),
    "HTTP/7.3": (b"GET /health HTTP/7.3\r\n" + HOST + b"\r\n", 200),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421),
    "blank lines before it": (b"\r\n\r\n\r\n" + HEALTH, 200),
    "upper-case header": (b"GET /health HTTP/1.1\r\nHOST: localhost\r\n\r\n", 200),
    "folded header": (message("GET", "/health", HOST, b"X: y\r\n z\r\n"), 200),
    "header with an underscore": (message("GET", "/health", HOST, b"Ho_st: x\r\n"), 200),
    "empty header": (message("GET", "/health", HOST, b"X:\r\n"), 200),
    "header beyond ASCII": (message("GET", "/health", HOST, b"X: \xff\xe9\r\n"), 200),
    "largest header": (
        message("GET", "/health", HOST, b"X: %s\r\n" % (b"x" * (MAX_HEADER_BYTES - 100))),
        200,
    ),
    "upgrade": (
        message("GET", "/health", HOST, b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n"),
        200,
    ),
    "unknown expectation": (message("GET", "/health", HOST, b"Expect: wonders\r\n"), 200),
    "GET with a body": (message("GET", "/health", HOST, body=b"x" * 1000), 200),
    "length and chunked": (
        POST + CHUNKED + b"Content-Length: 3\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(TIMER), TIMER),
        201,
    ),
    "chunked": (
        POST
        + CHUNKED
        + b"\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (TIMER[:5], len(TIMER) - 5, TIMER[5:]),
        201,
    ),
    "chunk extension and trailer": (
        POST + CHUNKED + b"\r\n%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(TIMER), TIMER),
        201,
    ),
    "chunked and empty": (POST + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "chunked and too large": (
        POST + CHUNKED + b"\r\n40001\r\n%s\r\n0\r\n\r\n" % TIMER.ljust(0x40001),
        413,
    ),
    "authorization beyond ASCII": (
        message("GET", "/nothing", HOST, b"Authorization: Bearer \xff\xe9\r\n"),
        404,
    ),
    "authorization of a route": (
        message("GET", "/health", HOST, b"Authorization: Bearer \xff\xe9\r\n"),
        200,
    ),
    "broken query": (message("GET", "/health?%ff=%zz&a=%&;=x&&=&%00", HOST), 200),
    "long query": (message("GET", "/health?" + "a&" * 4000, HOST), 200),
    "fragment": (message("GET", "/health#x", HOST), 200),
}


@pytest.mark.parametrize(("data", "status"), ODD.values(), ids=ODD)
def test_odd_but_understood(url: str, data: bytes, status: int) -> None:
    """What HTTP allows, or everybody tolerates, gets its usual answer."""
    assert ask(url, data).status == status


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/png", "text/plain", "é"])
@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/nothing"), ("PUT", "/timers")])
def test_other_content_types(url: str, method: str, path: str, kind: str) -> None:
    """A content type that Chalice takes for binary, or that is none, breaks no route."""
    header = f"Content-Type: {kind}\r\n".encode()
    for body in (b"", TIMER, b"\xff\xfe"):
        answer = ask(url, message(method, path, HOST, header, b"Accept: image/png\r\n", body=body))
        assert answer.detail(answer.status)
        assert answer.status in (404, 405, 415)


UNFINISHED = {
    "nothing": b"",
    "blank": b"\r\n",
    "method": b"GET",
    "no blank line": b"GET /health HTTP/1.1\r\n" + HOST,
    "LF only": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(189),
    "body not sent": POST + b"Content-Length: 10\r\n\r\n",
    "half of the body": POST + b"Content-Length: %d\r\n\r\n" % len(TIMER) + TIMER[:10],
    "half a chunk": POST + CHUNKED + b"\r\n5\r\nab",
    "no last chunk": POST + CHUNKED + b"\r\n1\r\na\r\n",
    "half a trailer": POST + CHUNKED + b"\r\n0\r\nX: y",
}


@pytest.mark.parametrize("data", UNFINISHED.values(), ids=UNFINISHED)
def test_unfinished(url: str, data: bytes) -> None:
    """A client that gives up in the middle of a request gets no answer, and is forgotten."""
    with Connection(url) as client:
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()


def test_clients_that_vanish(url: str) -> None:
    """Connections that are cut, before, during or after a request, hurt nobody else."""
    whole = message("POST", "/timers", HOST, JSON, body=TIMER)
    for size in range(0, len(whole) + 1, 7):
        with Connection(url) as client:
            client.send(whole[:size])
            linger = struct.pack("ii", 1, 0)  # close with a reset
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def test_byte_by_byte(url: str) -> None:
    """A request may come in pieces of any size."""
    with Connection(url) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in message("POST", "/timers", HOST, JSON, body=TIMER):
            client.send(bytes([byte]))
        assert client.receive().status == 201


def test_pipelining(url: str) -> None:
    """Requests sent at once are answered one by one, in their order."""
    create = message("POST", "/timers", HOST, JSON, body=TIMER)
    with Connection(url) as client:
        client.send((HEALTH + create + message("GET", "/nothing", HOST)) * 20)
        statuses = [client.receive().status for _ in range(60)]
    assert statuses == [200, 201, 404] * 20


def test_nothing_is_taken_for_a_second_request(url: str) -> None:
    """Of a length and chunks the chunks count, and what follows them is the next request."""
    both = POST + CHUNKED + b"Content-Length: 1000\r\n\r\n1\r\n{\r\n0\r\n\r\n"
    with Connection(url) as client:
        client.send(both + HEALTH)
        assert [client.receive().status for _ in range(2)] == [400, 200]


def test_expect_continue(url: str) -> None:
    """A client that asks first is told to go on."""
    with Connection(url) as client:
        client.send(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(TIMER))
        assert client.receive().status == 100
        client.send(TIMER)
        assert client.receive().status == 201


BEGINNINGS = [
    b"",
    b"POST /timers HTTP/1.1\r\nHost",
    POST + b"Content-Length: %d\r\n\r\n" % len(TIMER),
    POST + CHUNKED + b"\r\n%x\r\n" % len(TIMER),
]
"""How far a slow client has come before it begins to drip."""


def test_slow_clients_keep_nobody_waiting(url: str) -> None:
    """A hundred slow clients do not stop a normal one; and they are served in the end."""
    whole = message("POST", "/timers", HOST, JSON, body=TIMER)
    rests = [whole, whole[len(BEGINNINGS[1]) :], TIMER, TIMER + b"\r\n0\r\n\r\n"]
    with ExitStack() as stack:
        slow = [stack.enter_context(Connection(url)) for _ in range(100)]
        for number, client in enumerate(slow):
            client.send(BEGINNINGS[number % 4])
        for drip in range(3):
            for number, client in enumerate(slow):
                client.send(rests[number % 4][drip : drip + 1])
            assert ask(url, HEALTH).status == 200
            assert ask(url, whole).status == 201
        for number, client in enumerate(slow):
            client.send(rests[number % 4][3:])
            assert client.receive().status == 201


def test_client_that_takes_no_answers() -> None:
    """One that asks a lot at once and reads nothing keeps no other waiting; then it gets it all."""
    large = b"x" * 1024 * 1024

    def wsgi(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        body = large if environ["PATH_INFO"] == "/large" else b"small"
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    asked = 60
    with serving(wsgi) as (_, url), Connection(url) as client:
        client.send(message("GET", "/large", HOST) * asked)
        for _ in range(3):
            with Connection(url) as other:
                other.send(HEALTH)
                assert other.receive().body == b"small"
        assert all(client.receive().body == large for _ in range(asked))


def test_what_is_unsent_at_the_end_is_closed() -> None:
    """Answers that nobody takes lie in a file, of which nothing is left when the server ends."""

    def wsgi(_: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(1024 * 1024))])
        return [b"x" * 1024 * 1024]

    with ExitStack() as block, serving(wsgi) as (server, url):
        client = block.enter_context(Connection(url))
        client.send(HEALTH * 16)  # more than the kernel takes, and less than is waited with
        assert client.receive().status == 200
        (channel,) = server.active_channels.values()
        wait_until(lambda: not channel.requests)
        files = [unsent.buf.file for unsent in channel.outbufs if len(unsent)]
    assert files
    assert all(file.closed for file in files)


def test_client_that_goes_without_its_answers() -> None:
    """One that asks a lot at once and goes leaves nothing behind that the end would wait for."""

    def wsgi(_: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(1024 * 1024))])
        return [b"x" * 1024 * 1024]

    with serving(wsgi) as (server, url):
        with Connection(url) as client:
            client.send(HEALTH * 60)
            assert client.receive().status == 200
        assert server.task_dispatcher.shutdown()


def test_long_reading_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a page of a list is read, other requests are answered."""
    path = tmp_path / "timers.db"
    settings = Settings("127.0.0.1", 0, path, Targets.parse(LOOPBACK_TARGETS))
    store = SqliteTimerStore(path)
    reading, go_on, read = threading.Event(), threading.Event(), store._page

    def slow(*asked: Any) -> Page:
        reading.set()
        go_on.wait(WAIT)
        return read(*asked)

    monkeypatch.setattr(store, "_page", slow)
    with running(settings, store) as url, Connection(url) as client:
        client.send(message("GET", "/timers", HOST))
        assert reading.wait(WAIT)
        assert ask(url, HEALTH).status == 200
        go_on.set()
        assert client.receive().status == 200


def test_more_connections_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections over the limit wait, and get their turn when others have gone."""
    monkeypatch.setattr(standalone.server, "MAX_CONNECTIONS", 4)
    with serving(application(app)) as (_, url), ExitStack() as stack:
        clients = [stack.enter_context(Connection(url)) for _ in range(20)]
        for client in clients:
            client.send(message("GET", "/nothing", HOST))
        for client in clients:
            with client:
                assert client.receive().status == 404


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with no service behind it, whose loop turns only when a test turns it."""
    monkeypatch.setattr(bootstrap, "_installed", None)
    server = Server(application(app), "127.0.0.1", 0)
    yield server
    server.finish()
    server.run()


def turn(server: Server, until: Callable[[], object]) -> None:
    """Turn the server's loop until something is true."""
    give_up = time.monotonic() + WAIT
    while not until():
        assert time.monotonic() < give_up
        server.turn()


def begin(server: Server, client: Connection, data: bytes) -> Any:
    """Send a part of a request; return the server's channel when it has come."""
    client.send(data)
    channels = server.active_channels
    turn(server, lambda: channels and next(iter(channels.values())).request)
    return next(iter(channels.values()))


def local(server: Server) -> str:
    return f"http://127.0.0.1:{server.effective_port}"


@pytest.mark.parametrize("beginning", BEGINNINGS[1:])
def test_dripping_is_ended(still: Server, beginning: bytes) -> None:
    """A request that has not come whole within PATIENCE is given up, even if it still drips."""
    with Connection(local(still)) as client:
        channel = begin(still, client, beginning)
        now = channel.began + REQUEST_TIMEOUT + 1
        channel.last_activity = now  # the last drop has just come
        still.maintenance(now)
        turn(still, lambda: not still.active_channels)
        assert client.is_closed()


@pytest.mark.parametrize("beginning", BEGINNINGS[1:])
def test_slowness_has_its_time(still: Server, beginning: bytes) -> None:
    """A request that comes slowly is waited for until PATIENCE is over."""
    with Connection(local(still)) as client:
        channel = begin(still, client, beginning)
        now = channel.began + REQUEST_TIMEOUT - 1
        channel.last_activity = now
        still.maintenance(now)
        assert not channel.will_close


def test_patience_begins_with_each_request(still: Server) -> None:
    """The time of a request counts from its own first byte, not from that of the one before."""
    with Connection(local(still)) as client:
        channel = begin(still, client, HEALTH[:9])
        channel.began = long_ago = time.time() - REQUEST_TIMEOUT - 1
        first = channel.request
        client.send(HEALTH[9:] + HEALTH[:9])
        turn(still, lambda: channel.request is not first)
        assert channel.began > long_ago + REQUEST_TIMEOUT
        still.maintenance(time.time())
        assert not channel.will_close


@pytest.mark.parametrize("step", [3600, -3600])
@pytest.mark.parametrize("began", ["before", "after"])
def test_time_is_not_what_the_clock_says(
    still: Server, step: int, began: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is stepped cuts off no request that is arriving, also none that began after the
    step and before it was noticed; and each still has its time and no more."""
    wall, steady = time.time, time.monotonic
    with Connection(local(still)) as client:
        channel = begin(still, client, HEALTH[:9])
        for later, closed in (
            (0, False),
            (REQUEST_TIMEOUT - 1, False),
            (2 * REQUEST_TIMEOUT, True),
        ):
            monkeypatch.setattr(time, "time", lambda later=later: wall() + step + later)
            monkeypatch.setattr(time, "monotonic", lambda later=later: steady() + later)
            if not later and began == "after":
                channel.began = channel.last_activity = time.time()
            still.readable()
            assert channel.will_close == closed


def test_two_steps_that_cancel_out(still: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set right again before the next look for silent connections does not cut off
    what began meanwhile."""
    wall, steady = time.time, time.monotonic
    still.readable()
    with Connection(local(still)) as client:
        monkeypatch.setattr(time, "time", lambda: wall() - 3600)
        channel = begin(still, client, HEALTH[:9])
        monkeypatch.setattr(time, "time", lambda: wall() + 6)
        monkeypatch.setattr(time, "monotonic", lambda: steady() + 6)
        still.readable()
        assert not channel.will_close


def test_silence_is_ended(still: Server) -> None:
    """A connection on which nothing comes is closed after IDLE."""
    with Connection(local(still)) as client:
        turn(still, lambda: still.active_channels)
        channel = next(iter(still.active_channels.values()))
        still.maintenance(channel.last_activity + IDLE_TIMEOUT - 1)
        assert not channel.will_close
        still.maintenance(channel.last_activity + IDLE_TIMEOUT + 1)
        turn(still, lambda: not still.active_channels)
        assert client.is_closed()


def test_kept_connection_may_be_old(still: Server) -> None:
    """However long ago its first request was, a connection that is in use is kept."""
    with Connection(local(still)) as client:
        channel = begin(still, client, HEALTH[:9])
        client.send(HEALTH[9:])
        turn(still, lambda: channel.request is None)
        assert client.receive().status
        turn(still, lambda: not channel.requests)
        channel.last_activity = channel.began + REQUEST_TIMEOUT + 100
        still.maintenance(channel.last_activity)
        assert not channel.will_close


def test_finish_closes_everything() -> None:
    """After `finish` nobody is answered, no connection is open, and `run` has returned."""
    with serving(application(app)) as (server, url), Connection(url) as client:
        client.send(message("GET", "/nothing", HOST))
        assert client.receive().status == 404
        server.finish()
        assert client.is_closed()
    with pytest.raises(ConnectionRefusedError):
        Connection(url)


class Slow:
    """An application that answers only when it is let go on."""

    def __init__(self) -> None:
        self.working = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, _: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        self.working.set()
        self.go_on.wait(WAIT)
        start_response("200 OK", [("Content-Length", "4")])
        return [b"done"]


def test_finish_answers_first() -> None:
    """A request that is being worked on while the server finishes is still answered."""
    slow = Slow()
    with serving(slow) as (server, url), Connection(url) as client:
        client.send(HEALTH)
        assert slow.working.wait(WAIT)
        finishing = threading.Thread(target=server.finish)
        finishing.start()
        slow.go_on.set()
        assert client.receive().body == b"done"
        finishing.join()


def test_finish_gives_up_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a request takes too long nothing is closed under it, and it is answered after all."""
    slow = Slow()
    with serving(slow) as (server, url), Connection(url) as client:
        client.send(HEALTH)
        assert slow.working.wait(WAIT)
        with monkeypatch.context() as patch:
            patch.setattr(server.task_dispatcher, "shutdown", lambda: False)  # has waited long
            server.finish()
        slow.go_on.set()
        assert client.receive().body == b"done"
        client.send(HEALTH)
        assert client.receive().body == b"done"


def test_broken_application(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody foresaw is a 500 that gives nothing away, and is logged with all of it."""

    def broken(_: dict[str, Any], __: StartResponse) -> list[bytes]:
        raise KeyError("secret")

    with serving(broken) as (_, url):
        for _ in range(2):
            answer = ask(url, HEALTH)
            assert answer.detail(500)
            assert b"secret" not in answer.body
    assert "secret" in caplog.text


def test_client_that_sends_anything(url: str) -> None:
    """Whatever bytes come in the place of others in a request, no answer is a fault of ours."""
    whole = message("POST", "/timers?a=b", HOST, JSON, b"Expect: 100-continue\r\n", body=TIMER)
    whole += POST + CHUNKED + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(TIMER), TIMER)
    places = st.integers(0, len(whole))

    @settings(deadline=None, suppress_health_check=[HealthCheck.nested_given])
    @given(places, st.integers(0, 10), st.binary() | st.sampled_from([b"\r\n", b"\0", b"9" * 5000]))
    def check(start: int, length: int, piece: bytes) -> None:
        with Connection(url) as client:
            client.send(whole[:start] + piece + whole[start + length :])
            client.sock.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                for line in client.file:
                    if line.startswith(b"HTTP/"):
                        assert int(line.split()[1]) not in (500, 502, 503)

    check()


def test_receiver_takes_everything(url: str) -> None:
    """The built-in receiver answers any request to any path below it with 204 and no body."""
    for method in ("POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "BREW"):
        for path in ("/_receiver/", "/_receiver/hello", "/_receiver/a/b?c=d", "/_receiver/%ff/.."):
            answer = ask(url, message(method, path, HOST, body=b"\xff"), method)
            assert (answer.status, answer.body) == (204, b"")


class Meeting:
    """Where tasks wait for one another."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._complete: Future[None] = Future()

    def wait(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._complete.set_result(None)
        wait(self._complete)


def test_each_task_has_its_own_request() -> None:
    """Views that run side by side each see their own request, which Chalice alone does not keep."""
    together = Meeting(8)
    other = Chalice("other", configure_logs=False)

    def view() -> Response:
        together.wait()
        assert other.current_request is not None
        return Response(other.current_request.headers["x-number"], {"Content-Type": "text/plain"})

    other.route("/", methods=["GET"])(view)
    with serving(application(other)) as (_, url), ThreadPoolExecutor(8) as pool:
        requests = [message("GET", "/", HOST, b"X-Number: %d\r\n" % n) for n in range(8)]
        answers = list(pool.map(lambda data: ask(url, data), requests))
    assert [answer.body for answer in answers] == [b"%d" % n for n in range(8)]


CLIENTS = 32
TIMERS = 10_000


def test_ten_thousand_timers(url: str) -> None:
    """Many clients at once each get their own timer back, and find it again."""

    def create(numbers: range) -> None:
        with closing(http.client.HTTPConnection(*address(url), timeout=WAIT)) as connection:

            def ask(method: str, path: str, body: str | None = None) -> tuple[int, Any]:
                headers = {"Content-Type": "application/json"}
                connection.request(method, path, body, headers)
                with connection.getresponse() as response:
                    return response.status, json.loads(response.read())

            for number in numbers:
                target = f"http://localhost/{number}"
                status, created = ask("POST", "/timers", f'{{"hours": 9, "url": "{target}"}}')
                assert (status, created["url"]) == (201, target)
                ids.append(created["id"])
                if number % 10 == 0:
                    status, read = ask("GET", f"/timers/{created['id']}")
                    assert (status, read["url"], read["id"]) == (200, target, created["id"])

    ids: list[str] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(create, [range(n, TIMERS, CLIENTS) for n in range(CLIENTS)]))
    assert len(set(ids)) == TIMERS
