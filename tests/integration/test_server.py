"""Real HTTP over loopback: the standalone server with well-behaved and hostile clients."""

import http.client
import json
import logging
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from chalice.app import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import app
from chalicelib.core.pagination import Page
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.http.concurrent_chalice import ConcurrentChalice
from standalone import server as door
from standalone.application import Application
from standalone.greenlets import run_in_thread
from standalone.server import (
    IDLE_TIMEOUT,
    LINGER_SECONDS,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MIN_IDLE_SECONDS,
    READ_BUFFER_BYTES,
    REQUEST_TIMEOUT,
    RESPONSE_TIMEOUT,
    HttpRequest,
    HttpResponse,
    Server,
)
from standalone.settings import LOCAL_HOSTS, Settings
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.http import (
    HEALTH,
    HOST,
    JSON,
    METHODS,
    OTHER_HOSTS,
    TEST_TIMEOUT,
    TIMER,
    Connection,
    Meeting,
    address,
    ask,
    message,
    plain,
    running,
    serving,
)
from tests.support.hub import begin
from tests.support.processes import wait_until
from tests.support.routes import ROUTES

CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one standalone server for this whole file."""
    path = tmp_path_factory.mktemp("server") / "timers.db"
    settings = Settings("127.0.0.1", 0, path, Targets.parse(LOOPBACK_TARGETS))
    with running(settings, SqliteTimerStore(path)) as url:
        yield url


@pytest.fixture
def url(shared_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """The server's URL. After the test it must be healthy and must not have logged an error."""
    yield shared_url
    assert ask(shared_url, HEALTH).status == 200
    logged = caplog.get_records("call")
    assert [record.getMessage() for record in logged if record.levelno >= logging.ERROR] == []


def test_creates_reads_and_cancels_a_timer(url: str) -> None:
    """A timer can be created, read at its Location, and cancelled."""
    created = ask(url, message("POST", "/timers", HOST, JSON, body=TIMER))
    assert created.status == 201
    timer = json.loads(created.body)
    at = urljoin("/timers", created.headers["location"])
    assert json.loads(ask(url, message("GET", at, HOST)).body)["id"] == timer["id"]
    assert json.loads(ask(url, message("DELETE", at, HOST)).body)["status"] == "cancelled"
    assert json.loads(ask(url, message("GET", at, HOST)).body)["status"] == "cancelled"


def test_problems_pass_through_unchanged(url: str) -> None:
    """The problem that a view returns reaches the client with its pointer."""
    body = b'{"seconds": true, "url": "http://localhost/"}'
    answer = ask(url, message("POST", "/timers", HOST, JSON, body=body))
    assert "`seconds`" in answer.detail(400)
    assert json.loads(answer.body)["pointer"] == "/seconds"


@pytest.mark.parametrize("size", [256 * 1024 + 1, MAX_BODY_BYTES - 1])
def test_rejects_bodies_over_256_kb(url: str, size: int) -> None:
    """A body over 256 KB gets a 413, and the connection stays usable."""
    with Connection(url) as client:
        client.send(message("POST", "/timers", HOST, JSON, body=TIMER.ljust(size)))
        assert "larger than 262,144 bytes" in client.receive().detail(413)
        client.send(HEALTH)
        assert client.receive().status == 200


UNKNOWN_PATHS = {
    "unknown": ("GET", "/nothing"),
    "upper case": ("GET", "/Health"),
    "deeper": ("GET", "/timers/x/y"),
    "deeper, with dots": ("GET", "/timers/../health"),
    "double slash": ("GET", "//timers/x"),
    "asterisk": ("OPTIONS", "*"),
    "authority": ("CONNECT", "localhost:80"),
    "brackets": ("GET", "//[/timers"),
    "receiver without its slash": ("POST", "/_receiver"),
    "encoded slash": ("GET", "/timers%2Fx"),
}


@pytest.mark.parametrize(("method", "target"), UNKNOWN_PATHS.values(), ids=UNKNOWN_PATHS)
def test_unknown_paths_are_404(url: str, method: str, target: str) -> None:
    """A path without a route gets a 404."""
    answer = ask(url, message(method, target, HOST))
    assert "path" in answer.detail(404)


STRANGE_IDS = {
    "UUID": b"00000000-0000-7000-8000-000000000000",
    "dots": b"..",
    "encoded dots": b"%2e%2e",
    "encoded slash": b"x%2Fy",
    "encoded NUL": b"%00",
    "broken encoding": b"%",
    "other broken encoding": b"%zz%f",
    "not UTF-8, encoded": b"%ff%fe",
    "UTF-8, encoded": b"gr%C3%B6%C3%9Fe-%F0%9F%98%80",
    "SQL": b"'%20OR%201=1--",
    "template": b"{id}",
    "asterisk": b"*",
    "quotes": b"\"'`",
    "brackets": b"[",
    "parameter": b";x",
    "only slashes": b"/",
    "long": b"x" * 8192,
    "long, encoded": b"%41" * 3000,
}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("id", STRANGE_IDS.values(), ids=STRANGE_IDS)
def test_strange_ids_are_404(url: str, method: str, id: bytes) -> None:
    """A strange id is treated as an unknown one."""
    first = b"%s /timers/%s HTTP/1.1\r\n" % (method.encode(), id)
    answer = ask(url, first + HOST + b"\r\n")
    assert answer.detail(404) == "There is no timer with this id."


@pytest.mark.parametrize("target", ["/timers/", "/timers/?", "/timers/#x"])
def test_an_empty_id_lists_all_timers(url: str, target: str) -> None:
    """The path with an empty id is that of the list."""
    assert set(json.loads(ask(url, message("GET", target, HOST)).body)) >= {"timers"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
def test_wrong_methods_are_405(url: str, method: str, path: str) -> None:
    """An unsupported method gets a 405 whose Allow header lists the supported ones."""
    allowed = set(app.routes[path.replace("/x", "/{timer_id}")])
    if method in allowed:
        return
    answer = ask(url, message(method, path, HOST), method)
    assert set(answer.headers["allow"].split(", ")) == allowed
    if method == "HEAD":
        assert answer.status == 405
        return
    named, _, advised = answer.detail(405).partition(":")
    assert method in named
    assert set(re.findall("[A-Z]{3,}", advised)) == allowed - {"HEAD"}


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/timers/x/cancel", "DELETE /timers/{id}"),
        ("/timers/x/delete?now", "DELETE /timers/{id}"),
        ("/timers/x/fired", "api-docs"),
        ("/nothing", "api-docs"),
    ],
)
def test_an_unknown_path_tells_what_to_do(url: str, path: str, advice: str) -> None:
    """The error names the request that was meant, or the page with all paths."""
    detail = ask(url, message("POST", path, HOST)).detail(404)
    assert advice in detail
    assert "/api-docs" not in detail  # a proxy may put a prefix before our paths


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/health", "/timers", "/timers?limit=1", "/openapi.json", "/api-docs", "/console"),
        *("/console/console.js", "/console/", "/_receiver", "/_receiver/x"),
        *("/nothing", "/timers/x", "/timers?limit=0", "/console/nothing"),
    ],
)
def test_head_is_get_without_the_body(url: str, path: str) -> None:
    """HEAD has the status and headers of GET, also its Content-Length; errors are alike."""
    get, head = (ask(url, message(method, path, HOST), method) for method in ("GET", "HEAD"))
    varying = {"date": "", "x-request-id": ""}
    assert (head.status, head.headers | varying) == (get.status, get.headers | varying)


def test_the_root_leads_a_browser_to_the_console(url: str) -> None:
    """A browser that opens the server's URL arrives at the console."""
    root = ask(url, message("GET", "/", HOST, b"Accept: text/html,*/*;q=0.8\r\n"))
    assert root.status == 302
    console = ask(url, message("GET", urljoin("/", root.headers["location"]), HOST))
    assert (console.status, console.headers["content-type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize("path", ["/health", "/nothing", "/timers/x", "/_receiver/x"])
def test_head_responses_have_no_body(url: str, path: str) -> None:
    """A response to HEAD has no body; otherwise the next response could not be parsed."""
    with Connection(url) as client:
        client.send(message("HEAD", path, HOST))
        head = client.receive("HEAD")
        if head.headers.get("connection") == "close":
            assert client.is_closed()
        else:
            client.send(HEALTH)
            assert client.receive().status == 200


@pytest.mark.parametrize(
    "names", ["Idempotency-Key Idempotency-Key", "idempotency-key IDEMPOTENCY-KEY"]
)
@pytest.mark.parametrize("values", ["a b", "a a", "a, b c"])
def test_two_idempotency_keys_are_400(url: str, names: str, values: str) -> None:
    """A repeated Idempotency-Key is refused: two keys would be two timers."""
    pairs = zip(names.split(), values.rsplit(" ", 1), strict=True)
    lines = [f"{name}: {value}\r\n".encode() for name, value in pairs]
    for more in ([], [b"X: y\r\n"]):
        data = message("POST", "/timers", HOST, lines[0], *more, lines[1], JSON, body=TIMER)
        assert "Idempotency-Key" in ask(url, data).detail(400)


def test_one_idempotency_key_may_have_a_comma(url: str) -> None:
    """A comma belongs to the key; the key is not split there."""
    keys = [b"a,b", b"a, b", b"a,", b"a", b"a, idempotency-key: b"]
    for key in keys:
        data = message("POST", "/timers", HOST, JSON, b"Idempotency-Key: %s\r\n" % key, body=TIMER)
        assert [ask(url, data).status for _ in range(2)] == [201, 200], key


@pytest.mark.parametrize("origin", [b"http://localhost:3000", b"https://evil.example"])
def test_sends_no_cors_headers(url: str, origin: bytes) -> None:
    """No response lets a web page of another origin read it."""
    asked = [b"Origin: %s\r\n" % origin, b"Access-Control-Request-Method: DELETE\r\n"]
    for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT"):
        for path in ("/timers", "/timers/x", "/health", "/nothing", "/_receiver/x"):
            data = message(method, path, HOST, JSON, *asked, body=TIMER)
            answer = ask(url, data, method)
            assert not [name for name in answer.headers if name.startswith("access-control")]


LOCAL_HOST_HEADERS = [
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


@pytest.mark.parametrize("host", LOCAL_HOST_HEADERS)
def test_answers_to_local_hosts(url: str, host: bytes) -> None:
    """Local host names are accepted with any port and in any case."""
    assert ask(url, message("GET", "/health", b"Host: %s\r\n" % host)).status == 200


def test_answers_to_every_host_it_may_listen_on(url: str) -> None:
    """Every host that the settings treat as local is accepted in a Host header."""
    for host in LOCAL_HOSTS:
        authority = f"[{host}]" if ":" in host else host
        assert ask(url, message("GET", "/health", f"Host: {authority}\r\n".encode())).status == 200


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_refuses_other_hosts(url: str, host: bytes) -> None:
    """Other host names get a 421, which stops DNS rebinding."""
    for method, path in [*ROUTES, ("POST", "/_receiver/x"), ("GET", "/nothing")]:
        data = message(method, path, b"Host: %s\r\n" % host, JSON, body=TIMER)
        assert ask(url, data).detail(421)


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"host: localhost\r\nHost: evil.example\r\n",
        b"Host: 127.0.0.1:1\r\nHost: evil.example\r\n",
    ],
    ids=["none", "two", "two with a port"],
)
def test_refuses_a_missing_or_duplicate_host(url: str, headers: bytes) -> None:
    """A request without a Host header, or with two, gets a 421."""
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
        ("http://[/", 421),
        ("/health?http://evil.example/", 200),
    ],
)
def test_checks_the_host_of_an_absolute_target(url: str, target: str, status: int) -> None:
    """An absolute target must name a local host as well."""
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
def test_accepts_local_origins(url: str, origin: bytes) -> None:
    """Web pages from this machine may use the API."""
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
def test_refuses_other_origins(url: str, origin: bytes) -> None:
    """Web pages of other hosts get a 403 everywhere, from the receiver too."""
    for method, path in [*ROUTES, ("POST", "/_receiver/x"), ("GET", "/nothing")]:
        data = message(method, path, HOST, JSON, b"Origin: %s\r\n" % origin, body=TIMER)
        assert ask(url, data).detail(403)


POST = b"POST /timers HTTP/1.1\r\n" + HOST + JSON

MALFORMED = {
    "garbage": (b"garbage\r\n\r\n", 501),
    "binary": (b"\0\x01\xff\r\n\r\n", 501),
    "method only": (b"GET\r\n\r\n", 501),
    "target without a slash": (b"GET health HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "lower-case method": (b"get /health HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "made-up method": (b"BREW /health HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "control characters in the target": (b"GET /timers/\x01\x7f HTTP/1.1\r\n\r\n", 400),
    "NUL in the target": (b"GET /timers/\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "HTTP/7.3": (b"GET /health HTTP/7.3\r\n" + HOST + b"\r\n", 400),
    "HTTP/2.0": (b"GET /health HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(189), 501),
    "LF only": (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
    "folded header": (message("GET", "/health", HOST, b"X: y\r\n z\r\n"), 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no version": (b"GET /health HTTP/x\r\n" + HOST + b"\r\n", 400),
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
    "endless header": (b"GET /health HTTP/1.1\r\nX: " + b"x" * (10 * READ_BUFFER_BYTES), 431),
    "many short headers": (
        message("GET", "/health", HOST)[:-2] + b"X: y\r\n" * READ_BUFFER_BYTES,
        431,
    ),
    "endless blank lines": (b"\r\n" * READ_BUFFER_BYTES, 431),
    "endless trailer": (POST + CHUNKED + b"\r\n0\r\nX: " + b"x" * 10 * READ_BUFFER_BYTES, 431),
    "many trailers": (POST + CHUNKED + b"\r\n0\r\n" + b"X: y\r\n" * READ_BUFFER_BYTES, 431),
    "endless chunk extension": (
        POST + CHUNKED + b"\r\n1;" + b"x" * (10 * READ_BUFFER_BYTES),
        431,
    ),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "length is no number": (POST + b"Content-Length: ten\r\n\r\n", 400),
    "length is a fraction": (POST + b"Content-Length: 1.0\r\n\r\n", 400),
    "length has a sign": (POST + b"Content-Length: +1\r\n\r\n", 400),
    "length in hexadecimal": (POST + b"Content-Length: 0x1\r\n\r\n", 400),
    "length in other digits": (POST + "Content-Length: ٣\r\n\r\n".encode(), 400),
    "length is missing": (POST + b"Content-Length:\r\n\r\n", 400),
    "length of 5,000 digits": (POST + b"Content-Length: %s\r\n\r\n" % (b"9" * 5000), 400),
    "length and chunks": (POST + CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "chunks beyond the limit": (
        POST + CHUNKED + b"\r\n%x\r\n" % (MAX_BODY_BYTES + 1) + b"x" * (MAX_BODY_BYTES + 1),
        413,
    ),
    "length of a gigabyte": (POST + b"Content-Length: 1000000000\r\n\r\n", 413),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "two lengths in one": (POST + b"Content-Length: 1, 2\r\n\r\n", 400),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "made-up encoding": (POST + b"Transfer-Encoding: x\r\n\r\n", 501),
    "made-up encoding and length": (
        POST + b"Transfer-Encoding: x\r\nContent-Length: 1\r\n\r\n",
        400,
    ),
    "chunk size is no number": (POST + CHUNKED + b"\r\nxyz\r\n", 400),
    "negative chunk size": (POST + CHUNKED + b"\r\n-1\r\n", 400),
    "chunk size with a prefix": (POST + CHUNKED + b"\r\n0x1\r\n", 400),
    "chunk longer than its size": (POST + CHUNKED + b"\r\n1\r\nabc\r\n", 400),
    "bad chunk extension": (POST + CHUNKED + b"\r\n1;\0\r\na\r\n", 400),
}


@pytest.mark.parametrize(("data", "status"), MALFORMED.values(), ids=MALFORMED)
def test_rejects_malformed_requests(url: str, data: bytes, status: int) -> None:
    """Malformed HTTP gets a problem, and the connection is closed."""
    with Connection(url) as client:
        client.send(data)
        answer = client.receive()
        assert answer.detail(status)
        assert answer.headers["connection"] == "close"
        assert client.is_closed()


ODD_BUT_VALID = {
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n", 200),
    "HTTP/1.0, kept": (b"GET /health HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n", 200),
    "HTTP/0.9": (b"GET /health\r\n" + HOST + b"\r\n", 200),
    "two spaces": (b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n", 200),
    "blank lines before it": (b"\r\n\r\n\r\n" + HEALTH, 200),
    "upper-case header": (b"GET /health HTTP/1.1\r\nHOST: localhost\r\n\r\n", 200),
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
    "upgrade with a body": (
        message(
            "POST", "/timers", HOST, JSON, b"Connection: Upgrade\r\nUpgrade: h2c\r\n", body=TIMER
        ),
        201,
    ),
    "unknown expectation": (message("GET", "/health", HOST, b"Expect: wonders\r\n"), 200),
    "GET with a body": (message("GET", "/health", HOST, body=b"x" * 1000), 200),
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


@pytest.mark.parametrize(("data", "status"), ODD_BUT_VALID.values(), ids=ODD_BUT_VALID)
def test_accepts_odd_but_valid_requests(url: str, data: bytes, status: int) -> None:
    """Unusual requests that HTTP allows, or most servers tolerate, get the usual response."""
    assert ask(url, data).status == status


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/png", "text/plain", "é"])
@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/nothing"), ("PUT", "/timers")])
def test_rejects_other_content_types(url: str, method: str, path: str, kind: str) -> None:
    """Content types that Chalice treats as binary, and invalid ones, break no route."""
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
    "body not sent": POST + b"Content-Length: 10\r\n\r\n",
    "half of the body": POST + b"Content-Length: %d\r\n\r\n" % len(TIMER) + TIMER[:10],
    "half a chunk": POST + CHUNKED + b"\r\n5\r\nab",
    "no last chunk": POST + CHUNKED + b"\r\n1\r\na\r\n",
    "half a trailer": POST + CHUNKED + b"\r\n0\r\nX: y",
}


@pytest.mark.parametrize("data", UNFINISHED.values(), ids=UNFINISHED)
def test_drops_unfinished_requests(url: str, data: bytes) -> None:
    """An unfinished request gets no response, and its connection is closed."""
    with Connection(url) as client:
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()


def test_survives_connection_resets(url: str) -> None:
    """Connection resets at any point of a request affect no other client."""
    whole = message("POST", "/timers", HOST, JSON, body=TIMER)
    for size in range(0, len(whole) + 1, 7):
        with Connection(url) as client:
            client.send(whole[:size])
            linger = struct.pack("ii", 1, 0)  # close with a reset
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def test_reads_requests_byte_by_byte(url: str) -> None:
    """A request may arrive in pieces of any size."""
    with Connection(url) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in message("POST", "/timers", HOST, JSON, body=TIMER):
            client.send(bytes([byte]))
        assert client.receive().status == 201


def test_answers_pipelined_requests_in_order(url: str) -> None:
    """Pipelined requests are answered in order."""
    create = message("POST", "/timers", HOST, JSON, body=TIMER)
    with Connection(url) as client:
        client.send((HEALTH + create + message("GET", "/nothing", HOST)) * 20)
        statuses = [client.receive().status for _ in range(60)]
    assert statuses == [200, 201, 404] * 20


def test_the_last_request_is_the_last(url: str) -> None:
    """The server ignores all bytes after a request with `Connection: close`."""
    with Connection(url) as client:
        client.send(message("GET", "/health", HOST, b"Connection: close\r\n") + HEALTH + b"\0")
        answer = client.receive()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert client.is_closed()


@pytest.mark.parametrize("lengths", ["length first", "chunks first"])
def test_prevents_request_smuggling(url: str, lengths: str) -> None:
    """A request with two lengths is refused, and what follows it is not taken for a request."""
    both = [CHUNKED, b"Content-Length: 1000\r\n"]
    lines = b"".join(both if lengths == "chunks first" else reversed(both))
    with Connection(url) as client:
        client.send(POST + lines + b"\r\n1\r\n{\r\n0\r\n\r\n" + HEALTH)
        assert client.receive().detail(400)
        assert client.is_closed()


def test_goes_on_after_an_upgrade_is_ignored(url: str) -> None:
    """A client that offers HTTP/2 gets HTTP/1.1, with its next requests too."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    with Connection(url) as client:
        client.send(message("POST", "/timers", HOST, JSON, offer, body=TIMER) + HEALTH)
        assert [client.receive().status for _ in range(2)] == [201, 200]
        client.send(message("GET", "/health", HOST, offer))
        assert client.receive().status == 200


@pytest.mark.parametrize(
    ("version", "choice", "closes"),
    [("1.1", "upgrade", False), ("1.1", "upgrade, close", True), ("1.0", "upgrade", True)],
)
def test_an_ignored_upgrade_keeps_the_rest(
    url: str, version: str, choice: str, closes: bool
) -> None:
    """Without the upgrade, a request's version and its other wishes count."""
    offer = f"Connection: {choice}\r\nUpgrade: websocket\r\n".encode()
    with Connection(url) as client:
        client.send(HEALTH.replace(b"1.1", version.encode()).replace(HOST, HOST + offer))
        assert ("close" in client.receive().headers.get("connection", "")) is closes


def test_an_ignored_upgrade_gets_one_100(url: str) -> None:
    """A client that waits for a 100, and offers another protocol, gets one 100."""
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n"
    with Connection(url) as client:
        client.send(message("POST", "/timers", HOST, JSON, offer, body=TIMER))
        assert [client.receive().status for _ in range(2)] == [100, 201]


def test_a_304_has_no_length(url: str) -> None:
    """A length would be that of the file, which is not sent."""
    tag = ask(url, message("GET", "/console", HOST)).headers["etag"]
    known = ask(url, message("GET", "/console", HOST, f"If-None-Match: {tag}\r\n".encode()))
    assert known.status == 304
    assert "content-length" not in known.headers


@pytest.mark.parametrize("expected", [b"100-continue", b"100-Continue"])
def test_answers_expect_100_continue(url: str, expected: bytes) -> None:
    """A client that sends Expect: 100-continue gets a 100 before it sends the body."""
    with Connection(url) as client:
        client.send(POST + b"Expect: " + expected + b"\r\n")
        client.send(b"Content-Length: %d\r\n\r\n" % len(TIMER))
        assert client.receive().status == 100
        client.send(TIMER)
        assert client.receive().status == 201


def test_a_pipelined_request_gets_its_100_in_turn() -> None:
    """A client that waits for a 100 gets it after the responses to its earlier requests."""
    slow = Slow()
    with serving(slow) as (_, url), Connection(url) as client:
        client.send(HEALTH + POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert slow.working.wait(TEST_TIMEOUT)
        slow.go_on.set()
        assert [client.receive().status for _ in range(2)] == [200, 100]
        client.send(b"{}")
        assert client.receive().status == 200


BEGINNINGS = [
    b"",
    b"POST /timers HTTP/1.1\r\nHost",
    POST + b"Content-Length: %d\r\n\r\n" % len(TIMER),
    POST + CHUNKED + b"\r\n%x\r\n" % len(TIMER),
]
"""The bytes that slow clients send before they slow down."""


def test_slow_clients_delay_nobody(url: str) -> None:
    """A hundred slow clients do not delay a normal one, and are answered in the end."""
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


LARGE = b"x" * 1024 * 1024


def large_or_small(request: HttpRequest) -> HttpResponse:
    return plain(LARGE if request.target == "/large" else b"small")


def test_a_client_that_reads_nothing_delays_nobody() -> None:
    """A client with many unread responses delays nobody, and gets all of them later."""
    asked = 60
    with serving(large_or_small) as (_, url), Connection(url) as client:
        client.send(message("GET", "/large", HOST) * asked)
        for _ in range(3):
            with Connection(url) as other:
                other.send(HEALTH)
                assert other.receive().body == b"small"
        assert all(client.receive().body == LARGE for _ in range(asked))


def test_unread_responses_are_bounded() -> None:
    """No further request is handled while a client does not read, and it is dropped in the end."""
    handled: list[str] = []

    def answer(request: HttpRequest) -> HttpResponse:
        handled.append(request.target)
        return plain(LARGE)

    with serving(answer) as (server, url), Connection(url) as client:
        client.send(HEALTH * 200)
        wait_until(lambda: connection(server)._full_at is not None)
        assert len(handled) < 20
        later = in_loop(server, server.time) + RESPONSE_TIMEOUT
        in_loop(server, lambda: server.check(later - 1))
        assert server.connections
        in_loop(server, lambda: server.check(later + 1))
        wait_until(lambda: not server.connections)
        assert len(handled) < 20


def test_pipelined_requests_are_bounded() -> None:
    """While a request is handled, the server stops reading the client's next ones."""
    slow = Slow()
    with serving(slow) as (server, url), Connection(url) as client:
        client.send(HEALTH)
        assert slow.working.wait(TEST_TIMEOUT)
        sending = threading.Thread(target=send_until_closed, args=(client, HEALTH * 100_000))
        sending.start()
        slow.go_on.set()
        for _ in range(1000):
            assert client.receive().status == 200
            assert len(connection(server)._waiting) <= READ_BUFFER_BYTES / len(HEALTH) + 1
        client.sock.shutdown(socket.SHUT_RDWR)  # ends the sending
        sending.join()


def send_until_closed(client: Connection, data: bytes) -> None:
    with suppress(OSError):
        client.send(data)


def test_forgets_requests_of_a_closed_connection() -> None:
    """Requests of a closed connection do not delay the shutdown."""
    with serving(lambda _: plain(LARGE)) as (server, url):
        with Connection(url) as client:
            client.send(HEALTH * 60)
            assert client.receive().status == 200
        assert server.finish()


def test_a_slow_list_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store reads a page, other requests are answered."""
    path = tmp_path / "timers.db"
    settings = Settings("127.0.0.1", 0, path, Targets.parse(LOOPBACK_TARGETS))
    store = SqliteTimerStore(path)
    reading, go_on, read = threading.Event(), threading.Event(), store._page

    def slow(*asked: Any) -> Page:
        reading.set()
        go_on.wait(TEST_TIMEOUT)
        return read(*asked)

    monkeypatch.setattr(store, "_page", slow)
    with running(settings, store) as url, Connection(url) as client:
        client.send(message("GET", "/timers", HOST))
        assert reading.wait(TEST_TIMEOUT)
        assert ask(url, HEALTH).status == 200
        go_on.set()
        assert client.receive().status == 200


def test_connections_over_the_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections over the limit are served when others close."""
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 4)
    with serving(Application(app)) as (_, url), ExitStack() as stack:
        clients = [stack.enter_context(Connection(url)) for _ in range(20)]
        for client in clients:
            client.send(message("GET", "/nothing", HOST))
        for client in clients:
            with client:
                assert client.receive().status == 404


def test_an_idle_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit, the connection that has been idle for longest is closed."""
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 2)
    with serving(Application(app)) as (server, url), ExitStack() as stack:
        first, second = (stack.enter_context(Connection(url)) for _ in range(2))
        for client in (second, first):  # so the second is idle for longer
            client.send(message("GET", "/nothing", HOST))
            assert client.receive().status == 404
            for idle in server.connections:
                idle.active_at -= MIN_IDLE_SECONDS + 1
        with Connection(url) as third:
            third.send(message("GET", "/nothing", HOST))
            assert third.receive().status == 404
            assert second.is_closed()
            first.send(message("GET", "/nothing", HOST))
            assert first.receive().status == 404


def test_room_is_made_for_a_client_that_came_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no connection is idle for long at first, the next check looks again."""
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(door, "IDLE_TIMEOUT", 1000)
    with serving(Application(app)) as (server, url), Connection(url) as first:
        idle = connection(server)
        with Connection(url) as second:
            second.send(message("GET", "/nothing", HOST))
            wait_until(lambda: not server._accepts)
            idle.active_at -= MIN_IDLE_SECONDS + 1
            assert second.receive().status == 404
        assert first.is_closed()


def test_a_closing_connection_does_not_wait_for_ever() -> None:
    """A client is dropped, too, if it leaves only the last bytes of its responses unread."""
    handled: list[str] = []

    def answer(request: HttpRequest) -> HttpResponse:
        handled.append(request.target)
        return plain(b"x" * 16_384)

    with serving(answer) as (server, url), Connection(url) as client:
        only = connection(server)
        sent = 0
        while not is_stuck(server, only):
            client.send(HEALTH)
            sent += 1
            wait_until(lambda: len(handled) == sent)  # noqa: B023  # called at once
        in_loop(server, only.close)
        in_loop(server, lambda: server.check(server.time() + RESPONSE_TIMEOUT + 1))
        wait_until(lambda: not server.connections)


def is_stuck(server: Server, connection: door.Connection) -> bool:
    """Return whether bytes wait for the client to read; the loop writes between both looks."""
    return all(in_loop(server, connection._transport.get_write_buffer_size) for _ in range(3))


def in_loop(server: Server, call: Callable[[], Any]) -> Any:
    """Make a call in the thread of the server's loop; return its result."""
    return begin(server.hub, call).result(TEST_TIMEOUT)


def connection(server: Server) -> door.Connection:
    """Return the server's only connection, once it is accepted."""
    wait_until(lambda: server.connections)
    (only,) = server.connections
    return only


@pytest.fixture
def server() -> Iterator[Server]:
    """A server without a service."""
    with serving(Application(app)) as (server, _):
        yield server


def local(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def started(server: Server, client: Connection, data: bytes) -> float:
    """Send a part of a request; return when its first byte arrived, by the loop's clock."""
    client.send(data)
    wait_until(lambda: server.connections and connection(server).began_at is not None)
    began = connection(server).began_at
    assert began is not None
    return began


@pytest.mark.parametrize("beginning", BEGINNINGS[1:])
def test_refuses_requests_that_take_too_long(server: Server, beginning: bytes) -> None:
    """A request gets a 408 after REQUEST_TIMEOUT, even while bytes still arrive."""
    with Connection(local(server)) as client:
        began = started(server, client, beginning)
        connection(server).active_at = began + REQUEST_TIMEOUT  # a byte has just arrived
        in_loop(server, lambda: server.check(began + REQUEST_TIMEOUT + 1))
        assert client.receive().detail(408)
        assert client.is_closed()


@pytest.mark.parametrize("beginning", BEGINNINGS[1:])
def test_allows_slow_requests_until_the_timeout(server: Server, beginning: bytes) -> None:
    """A slow request is kept until REQUEST_TIMEOUT."""
    with Connection(local(server)) as client:
        began = started(server, client, beginning)
        in_loop(server, lambda: server.check(began + REQUEST_TIMEOUT - 1))
        client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)


def test_request_timeout_restarts_with_each_request(server: Server) -> None:
    """REQUEST_TIMEOUT counts from the first byte of the current request."""
    with Connection(local(server)) as client:
        started(server, client, HEALTH[:9])
        only = connection(server)
        only.began_at = long_ago = server.time() - 2 * REQUEST_TIMEOUT
        client.send(HEALTH[9:] + HEALTH[:9])
        assert client.receive().status
        wait_until(lambda: only.began_at not in (None, long_ago))
        in_loop(server, lambda: server.check(server.time()))
        client.send(HEALTH[9:])
        assert client.receive().status


def test_closes_idle_connections(server: Server) -> None:
    """An idle connection is closed after IDLE_TIMEOUT."""
    with Connection(local(server)) as client:
        active_at = connection(server).active_at
        in_loop(server, lambda: server.check(active_at + IDLE_TIMEOUT - 1))
        assert server.connections
        in_loop(server, lambda: server.check(active_at + IDLE_TIMEOUT + 1))
        assert client.is_closed()


def test_a_refused_client_may_finish_sending(server: Server) -> None:
    """A client that goes on sending after a refusal gets the response, not a reset."""
    with Connection(local(server)) as client:
        client.send(POST + b"Content-Length: 1000000000\r\n\r\n")
        for _ in range(100):
            client.send(b"x" * 10_000)
        assert client.receive().detail(413)
        assert client.sock.recv(1) == b""
        in_loop(server, lambda: server.check(server.time() + LINGER_SECONDS + 1))
        wait_until(lambda: not server.connections)


def test_finish_closes_all_connections() -> None:
    """After `finish` all connections are closed, and new ones are refused."""
    with serving(Application(app)) as (server, url), Connection(url) as client:
        client.send(message("GET", "/nothing", HOST))
        assert client.receive().status == 404
        assert server.finish()
        assert client.is_closed()
        with pytest.raises(ConnectionRefusedError):
            Connection(url)


def test_finish_closes_a_connection_that_has_just_come() -> None:
    """A connection that is accepted, but not open yet, is closed like the others."""
    with serving(Application(app)) as (server, url), Connection(url) as idle:
        assert connection(server)
        in_loop(server, server._accept_no_more)
        with Connection(url) as client:

            def accept_and_finish() -> None:
                server._accept(server._listeners[0])
                server._finish()

            in_loop(server, accept_and_finish)
            assert client.is_closed()
            assert idle.is_closed()
        assert server.finish()


class Slow:
    """An application whose greenlets answer when the test allows it."""

    def __init__(self) -> None:
        self.working = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, _: HttpRequest) -> HttpResponse:
        self.working.set()
        run_in_thread(lambda: self.go_on.wait(TEST_TIMEOUT))
        return plain(b"done")


def test_finish_answers_requests_in_progress() -> None:
    """A request in progress is answered before the server closes."""
    slow = Slow()
    with serving(slow) as (server, url), Connection(url) as client:
        client.send(HEALTH)
        assert slow.working.wait(TEST_TIMEOUT)
        finishing = threading.Thread(target=server.finish)
        finishing.start()
        slow.go_on.set()
        answer = client.receive()
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        finishing.join()


def test_finish_closes_nothing_while_requests_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a request outlasts the shutdown's patience, its connection stays open for the response."""
    monkeypatch.setattr(door, "SHUTDOWN_TIMEOUT", 0)
    slow = Slow()
    with serving(slow) as (server, url), Connection(url) as client:
        client.send(HEALTH)
        assert slow.working.wait(TEST_TIMEOUT)
        assert not server.finish()
        slow.go_on.set()
        assert client.receive().body == b"done"


def test_unexpected_errors_are_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is logged; its 500 reveals nothing."""

    def broken(_: HttpRequest) -> HttpResponse:
        raise KeyError("secret")

    with serving(broken) as (_, url):
        for _ in range(2):
            answer = ask(url, HEALTH)
            assert answer.detail(500)
            assert b"secret" not in answer.body
    assert "secret" in caplog.text


def test_arbitrary_bytes_never_break_the_server(url: str) -> None:
    """No bytes spliced into a request make the server fail."""
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


def test_the_receiver_accepts_every_request(url: str) -> None:
    """The receiver answers any method and path under its prefix with an empty 204."""
    for method in ("POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "REPORT"):
        for path in ("/_receiver/", "/_receiver/hello", "/_receiver/a/b?c=d", "/_receiver/%ff/.."):
            answer = ask(url, message(method, path, HOST, body=b"\xff"), method)
            assert (answer.status, answer.body) == (204, b"")


def test_each_greenlet_has_its_own_request() -> None:
    """Concurrent views each see their own request; plain Chalice would mix them up."""
    together = Meeting(8)
    other = ConcurrentChalice("other", configure_logs=False)

    def view() -> Response:
        together.wait()
        assert other.current_request is not None
        return Response(other.current_request.headers["x-number"], {"Content-Type": "text/plain"})

    other.route("/", methods=["GET"])(view)
    with serving(Application(other)) as (_, url), ThreadPoolExecutor(8) as pool:
        requests = [message("GET", "/", HOST, b"X-Number: %d\r\n" % n) for n in range(8)]
        answers = list(pool.map(lambda data: ask(url, data), requests))
    assert [answer.body for answer in answers] == [b"%d" % n for n in range(8)]


CLIENTS = 32
TIMERS = 10_000


def test_many_clients_create_ten_thousand_timers(url: str) -> None:
    """Concurrent clients each get their own timer, and can read it again."""

    def create(numbers: range) -> None:
        with closing(http.client.HTTPConnection(*address(url), timeout=TEST_TIMEOUT)) as connection:

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
