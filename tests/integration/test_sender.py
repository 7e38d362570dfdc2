"""One attempt over real loopback sockets, to receivers kind and hostile."""

import gc
import gzip
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme
from msgspec.structs import replace
from pytest_httpserver import HTTPServer
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from werkzeug import Request, Response

from chalicelib.core.signing import new_secret
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import Outcome, Timer, Webhook, new_timer
from chalicelib.webhook import sender as sender_module
from chalicelib.webhook.sender import MAX_ANSWER_KEPT, MAX_RESPONSE_BYTES, WebhookSender
from standalone.greenlets import Hub
from tests.support.fakes import START
from tests.support.hub import begin, running_loop
from tests.support.processes import wait_until

PATIENCE = 10.0
"""Seconds after which a receiver gives up, whatever its test is about."""

SOON = 5.0
"""Seconds that an attempt with a timeout of 0.3 s may take on a busy machine."""

FLOOD = 64 * 1024 * 1024
"""Bytes that an endless answer ends with after all; the kernel's buffers hold far less."""

OK = b"HTTP/1.1 200 OK\r\n"
OK_EMPTY = OK + b"Content-Length: 0\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"

Handler = Callable[[socket.socket], None]


class Receiver:
    """Hands its connections to a handler, one after the other."""

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
            conn.settimeout(PATIENCE)
            # The sender hangs up on the hostile ones.
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
) -> Iterator[Receiver]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        running = Receiver(listener, handler, tls)
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield running
        finally:
            running.stopping = True
            socket.create_connection(listener.getsockname()[:2]).close()
            thread.join()


def read_head(conn: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = conn.recv(1)
        if not byte:
            raise ConnectionError("hung up within the head")
        head += byte
    return head


def answering(answer: bytes) -> Handler:
    """Answer the request and wait for the sender to hang up."""

    def handle(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(answer)
        conn.recv(1)

    return handle


def closing(answer: bytes) -> Handler:
    """Answer the request and hang up."""

    def handle(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(answer)

    return handle


def dripping(beginning: bytes, drop: bytes) -> Handler:
    """Answer with the beginning and then, slowly, with drops, or not at all."""

    def handle(conn: socket.socket) -> None:
        read_head(conn)
        drip(conn, beginning, drop)

    return handle


def drip(conn: socket.socket, beginning: bytes, drop: bytes) -> None:
    conn.sendall(beginning)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not drop and not conn.recv(65536):
            return
        conn.sendall(drop)
        time.sleep(0.02)


class Flooding:
    """Answers with a beginning and then as much as the sender takes; counts it."""

    def __init__(self, beginning: bytes, piece: bytes):
        self.beginning, self.piece, self.written = beginning, piece, 0

    def __call__(self, conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(self.beginning)
        while self.written < FLOOD:
            self.written += conn.send(self.piece)


def resetting(conn: socket.socket) -> None:
    read_head(conn)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(conn: socket.socket) -> None:
    conn.recv(65536)
    conn.recv(1)


class Recording:
    """Answers as told, and keeps what was asked."""

    def __init__(self, answer: bytes = NO_CONTENT):
        self.answer = answer
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    def __call__(self, conn: socket.socket) -> None:
        head, body = read_head(conn), b""
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        while len(body) < int(length[1] if length else 0):
            body += conn.recv(65536)
        self.heads.append(head)
        self.bodies.append(body)
        conn.sendall(self.answer)


class Names:
    """Stands in for DNS: what it does not know has no address. Remembers what it was asked."""

    def __init__(self, known: dict[str, list[str]], takes: float = 0.0):
        self.known, self.takes = known, takes
        self.asked: list[str] = []
        self.real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in self.known:
            numeric = socket.AI_NUMERICHOST
            return list(self.real(host, port, type=socket.SOCK_STREAM, flags=numeric))
        self.asked.append(host)
        time.sleep(self.takes)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.known[host]
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names({"receiver.example": ["127.0.0.1"]})
    monkeypatch.setattr(socket, "getaddrinfo", names)
    return names


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """The receiver's side of TLS, with a certificate for 127.0.0.1 and receiver.example."""
    return server_context(authority, "127.0.0.1", "receiver.example")


def server_context(authority: trustme.CA, *hosts: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*hosts).configure_cert(context)
    return context


class AsTask(WebhookSender):
    """Sends in tasks of a loop, as the standalone server does."""

    def __init__(self, loop: Hub, *args: Any) -> None:
        super().__init__(*args, waiting=loop)
        self.loop = loop

    def send(self, timer: Timer, at: datetime) -> Outcome:
        return begin(self.loop, partial(super().send, timer, at)).result(2 * PATIENCE)

    def let_go(self) -> None:
        """Close the connections that are kept."""
        begin(self.loop, self._adapter.close).result(PATIENCE)


@pytest.fixture(autouse=True)
def kept_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most receivers here wait for the end of the connection, and no test for them."""
    monkeypatch.setattr(sender_module, "KEEPALIVE_SECONDS", 0.0)


@pytest.fixture(scope="module", params=["as a thread", "as a task"])
def sender(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[WebhookSender]:
    """One that may post to loopback and trusts the authority of these tests; each way to wait."""
    if request.param == "as a thread":
        yield sender_to(LOOPBACK_TARGETS, authority)
    else:
        with running_loop() as loop:
            yield AsTask(loop, Targets.parse(LOOPBACK_TARGETS), trusting(authority))


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def sender_to(targets: str, authority: trustme.CA | None = None) -> WebhookSender:
    tls = None if authority is None else trusting(authority)
    return WebhookSender(Targets.parse(targets), tls)


def post(sender: WebhookSender, url: str, timeout: float = PATIENCE, **fields: Any) -> Outcome:
    timer = new_timer("id-1", "default", Webhook(url=url, **fields), START, START)
    return sender.send(replace(timer, timeout=timeout), START)


def post_to(
    sender: WebhookSender,
    handler: Handler,
    timeout: float = PATIENCE,
    tls: ssl.SSLContext | None = None,
) -> Outcome:
    with receiver(handler, tls=tls) as running:
        return post(sender, running.url, timeout)


@pytest.fixture(params=["http", "https"])
def maybe_tls(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> ssl.SSLContext | None:
    """Run the test twice: without TLS and with it."""
    return tls if request.param == "https" else None


# The request


def sent(sender: WebhookSender, **fields: Any) -> list[str]:
    """Return the head and the body that a webhook with these fields is sent with, line by line."""
    recording = Recording()
    with receiver(recording) as running:
        post(sender, running.url, **fields)
    return (recording.heads[0] + recording.bodies[0]).decode().split("\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_custom_request(sender: WebhookSender, method: str) -> None:
    """Method, headers and body are the owner's; what we say of ourselves may be said otherwise."""
    headers = {"X-A": "1", "user-agent": "mine", "ACCEPT": "x/y", "Content-Type": "text/plain"}
    lines = sent(sender, method=method, headers=headers, body="häl\r\nlo")
    assert lines[0] == f"{method} / HTTP/1.1"
    assert lines[-2:] == ["häl", "lo"]
    assert {"X-A: 1", "user-agent: mine", "ACCEPT: x/y", "Content-Length: 8"} <= set(lines)
    names = [line.split(":")[0].lower() for line in lines[1 : lines.index("")]]
    assert len(names) == len(set(names))


def test_get_has_no_body(sender: WebhookSender) -> None:
    """Nor a length of one."""
    lines = sent(sender, method="GET")
    assert lines[0] == "GET / HTTP/1.1"
    assert not [line for line in lines if line.lower().startswith("content-")]


@pytest.mark.parametrize("value", ["\xa0s3cr3t", "s3cr3t\r\nX: y", " s3cr3t"])
def test_a_header_that_can_not_be_sent(sender: WebhookSender, value: str) -> None:
    """What got past the API all the same fails for good, and is not quoted."""
    webhook_ = Webhook(url="http://127.0.0.1:9/", headers={"X": value})
    outcome = sender.send(new_timer("id-1", "default", webhook_, START, START), START)
    assert (outcome.error, outcome.detail) == ("refused target", "a header can't be sent")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("999999999", 999_999_999),
        ("Sat, 31 Jan 2026 12:01:30 GMT", 90),
        ("Sat, 31 Jan 2026 13:01:30 +0100", 90),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("Sat, 31 Jan 2026 12:01:30 -0000", None),
        ("-1", None),
        ("1.5", None),
        ("1e9", None),
        ("１２", None),
        ("9" * 400, None),
        ("soon", None),
        ("", None),
        ("Sat, 99 Jan 99999 12:01:30 GMT", None),
    ],
)
def test_retry_after(sender: WebhookSender, value: str, seconds: float | None) -> None:
    """Seconds or a date, from the moment of the attempt; what is neither counts as nothing."""
    head = f"HTTP/1.1 503 X\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n"
    outcome = post_to(sender, answering(head.encode()))
    assert (outcome.status, outcome.retry_after) == (503, seconds)


def test_request(sender: WebhookSender) -> None:
    """The request is a POST with an empty body and these headers, and no others."""
    deadline = datetime(2026, 1, 31, 11, 59, 58, 250000, tzinfo=UTC)
    timer = new_timer("id-1", "default", Webhook(url=""), deadline, START)
    recording = Recording()
    with receiver(recording) as running:
        url = f"http://127.0.0.1:{running.port}/hook?x=1"
        at = datetime(2026, 1, 31, 12, 0, 7, 999999, tzinfo=UTC)
        sender.send(replace(timer, url=url, attempt=3), at)
    assert recording.heads[0].decode().split("\r\n") == [
        "POST /hook?x=1 HTTP/1.1",
        f"Host: 127.0.0.1:{running.port}",
        "webhook-id: id-1",
        f"webhook-timestamp: {int(START.timestamp()) + 7}",
        "timer-attempt: 3",
        "timer-scheduled-at: 2026-01-31T11:59:58.250000Z",
        "User-Agent: Timers/1",
        "Accept: */*",
        "Accept-Encoding: identity",
        *([] if isinstance(sender, AsTask) else ["Connection: close"]),
        "Content-Length: 0",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "/"),
        ("/", "/"),
        ("?x=1", "/?x=1"),
        ("/a/b;c=d/", "/a/b;c=d/"),
        ("/a?b=c&b=d;e+f=%20&g", "/a?b=c&b=d;e+f=%20&g"),
        ("/a%2Fb?c=%3D%26", "/a%2Fb?c=%3D%26"),
        ("//a//b", "//a//b"),
        ("/?to=http://example.com/%7Bid%7D", "/?to=http://example.com/%7Bid%7D"),
        ("/ü?ü", "/%C3%BC?%C3%BC"),
        ("/a#b", "/a"),
        ("/timers/{id}?timer={id}", "/timers/id-1?timer=id-1"),
    ],
)
def test_path(sender: WebhookSender, given: str, sent: str) -> None:
    """Path and query are sent as given, with `{id}` replaced and nothing but ASCII."""
    recording = Recording()
    with receiver(recording) as running:
        post(sender, f"http://127.0.0.1:{running.port}{given}")
    assert recording.heads[0].decode().startswith(f"POST {sent} HTTP/1.1\r\n")


def test_plain_server(sender: WebhookSender, httpserver: HTTPServer) -> None:
    """An ordinary HTTP server understands the request and its empty body."""
    seen: list[tuple[str, bytes, str | None]] = []

    def handle(request: Request) -> Response:
        seen.append((request.full_path, request.get_data(), request.headers["webhook-id"]))
        return Response("thanks", 202)

    httpserver.expect_request("/hook", method="POST").respond_with_handler(handle)
    outcome = post(sender, httpserver.url_for("/hook?x=1"))
    assert (outcome.status, outcome.answer) == (202, "thanks")
    assert seen == [("/hook?x=1", b"", "id-1")]


def test_no_cookies(sender: WebhookSender) -> None:
    """A cookie that a receiver sets does not come back with the next attempt."""
    recording = Recording(b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b; Path=/\r\n\r\n")
    with receiver(recording) as running:
        for _ in range(2):
            post(sender, running.url)
    assert b"cookie" not in recording.heads[1].lower()


def test_fresh_connection(authority: trustme.CA, maybe_tls: ssl.SSLContext | None) -> None:
    """A sender in a thread, as on Lambda, makes a connection for every attempt, even if a receiver
    would keep the last one: nobody could close it later. What ends unanswered is not sent again."""
    sender, answers = sender_to(LOOPBACK_TARGETS, authority), Answers([OK_EMPTY, OK_EMPTY, None])
    with receiver(answers, tls=maybe_tls) as running:
        assert posts(sender, running, 3) == [200, 200, None]
        assert running.connections == 3


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_environment(
    scheme: str,
    sender: WebhookSender,
    tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Proxies and the passwords of a netrc file in the environment are none of ours."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    recording = Recording()
    context = tls if scheme == "https" else None
    with receiver(closing(NO_CONTENT)) as proxy, receiver(recording, tls=context) as running:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        outcome = post(sender, running.url)
        assert outcome.status == 204
        assert proxy.connections == 0
    assert b"authorization" not in recording.heads[0].lower()


def test_many_at_once(sender: WebhookSender) -> None:
    """One sender serves many threads and receivers at the same time."""
    handlers = [closing(b"HTTP/1.1 200 OK\r\n\r\n%d" % number) for number in range(12)]

    def roundtrip(handler: Handler) -> str:
        return post_to(sender, handler).answer

    with ThreadPoolExecutor(max_workers=12) as pool:
        assert list(pool.map(roundtrip, handlers)) == [str(number) for number in range(12)]


# The answer


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success(status: int, sender: WebhookSender) -> None:
    """Any 2xx is a success, with its status and how long it took."""
    outcome = post_to(sender, closing(b"HTTP/1.1 %d Fine\r\n\r\n" % status))
    assert outcome.succeeded
    assert (outcome.status, outcome.error) == (status, None)
    assert 0 < outcome.duration < SOON


@pytest.mark.parametrize("status", [101, 103, 304, 400, 404, 408, 410, 429, 500, 503, 999])
def test_refusals(status: int, sender: WebhookSender) -> None:
    """Every other status is an outcome at once: nothing is retried here, or waited for."""
    answer = b"HTTP/1.1 %d No\r\nRetry-After: 3600\r\nLocation: /\r\n\r\n" % status
    with receiver(closing(answer)) as running:
        outcome = post(sender, running.url)
        assert running.connections == 1
    assert not outcome.succeeded
    assert (outcome.status, outcome.error) == (status, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(status: int, sender: WebhookSender) -> None:
    """A redirect is an outcome, and not followed."""
    with receiver(closing(NO_CONTENT)) as other:
        answer = f"HTTP/1.1 {status} Moved\r\nLocation: http://127.0.0.1:{other.port}/\r\n\r\n"
        outcome = post_to(sender, closing(answer.encode()))
        assert outcome.status == status
        assert other.connections == 0


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (OK + b"\r\n", ""),
        (OK + b"\r\nthanks", "thanks"),
        (OK + b"Content-Length: 6\r\n\r\nthanks and more", "thanks"),
        (OK + b"Content-Length: 600\r\n\r\ncut off", "cut off"),
        (OK + b"Content-Length: 6, 6\r\n\r\nthanks", "thanks"),
        (OK + b"Content-Length: -1\r\n\r\nthanks", "thanks"),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nthanks", "thanks"),
        (OK + b"\r\n" + b"a" * MAX_ANSWER_KEPT, "a" * MAX_ANSWER_KEPT),
        (OK + b"\r\n" + b"a" * (MAX_ANSWER_KEPT + 1), "a" * MAX_ANSWER_KEPT),
        (OK + b"\r\n" + "ü".encode() * MAX_ANSWER_KEPT, "ü" * (MAX_ANSWER_KEPT // 2)),
        (OK + b"\r\na" + "ü".encode() * 512, "a" + "ü" * 511 + "\ufffd"),
        (OK + b"\r\n\xff\xfe\x00", "\ufffd\ufffd\x00"),
        (CHUNKED + b"3\r\ntha\r\n3\r\nnks\r\n0\r\n\r\n", "thanks"),
        (CHUNKED + b"fff\r\n" + b"a" * 0xFFF + b"\r\n0\r\n\r\n", "a" * MAX_ANSWER_KEPT),
        (CHUNKED + b"3\r\ntha\r\ngarbage\r\n", "tha"),
        (CHUNKED + b"-5\r\n" + b"a" * 8000, "a" * MAX_ANSWER_KEPT),
        (CHUNKED + b"-" + b"f" * 40 + b"\r\nthanks", ""),
        (b"HTTP/1.0 200\r\n\r\nthanks", "thanks"),
        (b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" + OK + b"\r\nthanks", "thanks"),
    ],
)
def test_answer(answer: bytes, kept: str, sender: WebhookSender) -> None:
    """The first KiB of the body is kept, as UTF-8 as far as that goes, whatever becomes of it."""
    outcome = post_to(sender, closing(answer))
    assert (outcome.status, outcome.answer) == (200, kept)


@pytest.mark.parametrize("status", [200, 302, 500])
def test_gzip_bomb(status: int, sender: WebhookSender, maybe_tls: ssl.SSLContext | None) -> None:
    """A compressed body is not unpacked."""
    bomb = gzip.compress(bytes(10_000_000))
    answer = b"HTTP/1.1 %d So\r\nContent-Encoding: gzip\r\n\r\n" % status + bomb
    outcome = post_to(sender, closing(answer), tls=maybe_tls)
    assert outcome.status == status
    assert outcome.answer == bomb[:MAX_ANSWER_KEPT].decode(errors="replace")


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", b"a" * 65536),
        (CHUNKED, b"1\r\na\r\n" * 8192),
        (CHUNKED + b"1;", b"a" * 65536),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"trailer: a\r\n" * 8192),
    ],
)
def test_endless_body(
    head: bytes, piece: bytes, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """However much body a receiver has, the status counts and a bounded part of it is read."""
    flooding = Flooding(head, piece)
    outcome = post_to(sender, flooding, tls=maybe_tls)
    assert outcome.status == int(head.split()[1])
    assert len(outcome.answer) <= MAX_ANSWER_KEPT
    assert flooding.written < FLOOD


@pytest.mark.parametrize("drop", [b"", b"a"])
def test_slow_body(
    drop: bytes,
    sender: WebhookSender,
    maybe_tls: ssl.SSLContext | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A body that does not come to its end is soon given up, and the status counts."""
    monkeypatch.setattr(sender_module, "BODY_TIMEOUT", 0.2)
    outcome = post_to(sender, dripping(OK + b"\r\nthan", drop), timeout=60, tls=maybe_tls)
    assert outcome.status == 200
    assert outcome.answer.startswith("than")
    assert outcome.duration < SOON


def test_enough_body(sender: WebhookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as much of the body has come as is kept, nothing more is waited for."""
    monkeypatch.setattr(sender_module, "BODY_TIMEOUT", 60.0)
    outcome = post_to(sender, answering(OK + b"\r\n" + b"a" * MAX_ANSWER_KEPT), timeout=60)
    assert outcome.answer == "a" * MAX_ANSWER_KEPT
    assert outcome.duration < SOON


def test_body_past_the_timeout(sender: WebhookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout also ends the body, though patience with it would last longer."""
    monkeypatch.setattr(sender_module, "BODY_TIMEOUT", 60.0)
    outcome = post_to(sender, dripping(OK + b"\r\n", b""), timeout=0.9)
    assert outcome.status == 200
    assert outcome.duration < SOON


@pytest.mark.parametrize(
    "header",
    [
        b"Set-Cookie: a=b; max-age=" + b"9" * 4000,
        b'Content-Type: multipart/x;"' + b";" * 16_000,
        b"Content-Type: multipart/mixed",
        b"Location: http://[",
        b"\xff\xfe: \x00",
        b": nameless",
        b"X: y\rContent-Length: 5",
    ],
)
def test_strange_headers(header: bytes, sender: WebhookSender) -> None:
    """Headers that make no sense neither spoil the outcome nor take long to read."""
    outcome = post_to(sender, closing(OK + header + b"\r\n\r\nthanks"))
    assert outcome.status == 200
    assert outcome.duration < SOON


# Time


def test_silence(sender: WebhookSender, maybe_tls: ssl.SSLContext | None) -> None:
    """A receiver that does not answer is a timeout, in time."""
    outcome = post_to(sender, silent, timeout=0.3, tls=maybe_tls)
    assert (outcome.error, outcome.detail) == ("timeout", "no answer in time")
    assert 0.25 < outcome.duration < SOON


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 ", b"2"),
        (OK, b"a"),
        (OK, b"a: b\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n", b"a"),
    ],
)
def test_dripped_head(
    beginning: bytes, drop: bytes, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """The timeout is for the whole exchange, however busily the head drips in."""
    outcome = post_to(sender, dripping(beginning, drop), timeout=0.3, tls=maybe_tls)
    assert outcome.error == "timeout"
    assert outcome.duration < SOON


@pytest.mark.parametrize("drop", [b"", b"a"])
def test_slow_handshake(drop: bytes, sender: WebhookSender) -> None:
    """The timeout also ends a TLS handshake that does not come to its end."""

    def handle(conn: socket.socket) -> None:
        # The beginning of a handshake record of 16 KiB.
        drip(conn, b"\x16\x03\x03\x40\x00" if drop else b"", drop)

    with receiver(handle) as running:
        outcome = post(sender, f"https://127.0.0.1:{running.port}/", timeout=0.3)
    assert outcome.error == "timeout"
    assert outcome.duration < SOON


def test_slow_names(sender: WebhookSender, names: Names) -> None:
    """The time that name resolution takes counts: no webhook leaves after its timeout."""
    names.takes = 0.3
    with receiver(silent) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/", timeout=0.2)
        assert outcome.error == "timeout"
        assert running.connections == 0


def test_slow_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout also ends connecting to an address that does not answer."""
    Deaf.waits = []

    def connect(sock: socket.socket, address: tuple[str, int]) -> None:
        raise BlockingIOError

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(select, "poll", Deaf)
    outcome = post(sender_to(LOOPBACK_TARGETS), "http://127.0.0.1:9/", timeout=0.3)
    assert outcome.error == "timeout"
    assert 0 < Deaf.waits[0] <= 300


class Deaf:
    """A poll that no socket ever makes ready."""

    waits: ClassVar[list[float]] = []

    def register(self, sock: socket.socket, events: int) -> None:
        pass

    def poll(self, milliseconds: float) -> list[Any]:
        self.waits.append(milliseconds)
        time.sleep(milliseconds / 1000)
        return []


# Bytes


@pytest.mark.parametrize(
    "piece",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"a" * 65536,
        OK + b"".join(b"a%d: %s\r\n" % (number, b"b" * 1000) for number in range(90)),
        OK + b'Content-Type: multipart/x;"' + (b";" * 60_000 + b"\r\n ") * 4,
    ],
)
def test_too_large(piece: bytes, sender: WebhookSender, maybe_tls: ssl.SSLContext | None) -> None:
    """A head without end is read up to a bound, and is an outcome of its own."""
    flooding = Flooding(b"", piece)
    outcome = post_to(sender, flooding, tls=maybe_tls)
    assert (outcome.error, outcome.detail) == ("too large", "more than 16,384 bytes")
    assert flooding.written < FLOOD


@pytest.mark.parametrize(
    ("size", "error"), [(MAX_RESPONSE_BYTES, None), (MAX_RESPONSE_BYTES + 1, "too large")]
)
def test_largest_head(
    size: int, error: str | None, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A head of exactly that many bytes is read, one of a byte more is not."""
    head = OK + b"a: " + b"b" * (size - len(OK) - 7) + b"\r\n\r\n"
    assert len(head) == size
    outcome = post_to(sender, answering(head + b"body"), timeout=5, tls=maybe_tls)
    assert outcome.error == error


# Errors


@pytest.mark.parametrize(
    ("handler", "detail"),
    [
        (resetting, "Connection reset by peer"),
        (closing(b""), "Remote end closed connection without response"),
        (closing(b"\x1b[2Jhello\r\n\r\n"), "no valid HTTP: \x1b[2Jhello"),
        (closing(b"SSH-2.0-OpenSSH_9.6\r\n"), "no valid HTTP: SSH-2.0-OpenSSH_9.6"),
        (closing(b"HTTP/1.1 abc\r\n\r\n"), "no valid HTTP: HTTP/1.1 abc"),
        (closing(b"HTTP/1.1 99 Red\r\n\r\n"), "no valid HTTP: HTTP/1.1 99 Red"),
        (closing(b"HTTP/2.0 200 OK\r\n\r\n"), "no valid HTTP: HTTP/2.0"),
        (closing(OK + b"a: b\r\n" * 101), "no valid HTTP: got more than 100 headers"),
        (
            closing(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            "Content-Length contained multiple unmatching values (1, 2)",
        ),
    ],
)
def test_broken_answers(handler: Handler, detail: str, sender: WebhookSender) -> None:
    """A connection without a valid answer is a connect error that says what came."""
    outcome = post_to(sender, handler)
    assert (outcome.status, outcome.error, outcome.detail) == (None, "connect", detail)


def test_any_fault(sender: WebhookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the standard library does with an answer, the failure is an outcome."""
    monkeypatch.setattr(sender_module._Bounded, "room", 1_000_000)
    nested = b"X: y\r" + b"Content-Type: message/x\r\r" * 2500
    outcome = post_to(sender, closing(OK + nested + b"\r\n\r\n"))
    assert outcome.error == "connect"
    assert outcome.detail.startswith("maximum recursion depth exceeded")


def test_closed_port(sender: WebhookSender) -> None:
    """A port that nobody listens on is a connect error."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        outcome = post(sender, f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert (outcome.error, outcome.detail) == ("connect", "Connection refused")


def test_second_address(sender: WebhookSender, names: Names) -> None:
    """If the first address refuses the connection, the second is tried."""
    names.known["receiver.example"] = ["127.0.0.2", "127.0.0.1"]
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/")
    assert outcome.status == 204


def test_no_address_accepts(sender: WebhookSender, names: Names) -> None:
    """If all addresses refuse the connection, it is a connect error."""
    names.known["receiver.example"] = ["127.0.0.2", "127.0.0.3"]
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/")
        assert running.connections == 0
    assert (outcome.error, outcome.detail) == ("connect", "Connection refused")


def test_ipv6(sender: WebhookSender) -> None:
    """An IPv6 literal is posted to, and stands in brackets in the Host header."""
    recording = Recording()
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("This machine has no IPv6 loopback.")
    with receiver(recording, host="::1") as running:
        outcome = post(sender, f"http://[::1]:{running.port}/")
    assert outcome.status == 204
    assert f"\r\nHost: [::1]:{running.port}\r\n".encode() in recording.heads[0]


# Names and targets


def test_unknown_name(sender: WebhookSender, names: Names) -> None:
    """A name without an address is a dns error."""
    outcome = post(sender, "http://unknown.example/")
    assert outcome.error == "dns"
    assert outcome.detail.strip()


def test_impossible_name(sender: WebhookSender) -> None:
    """A name that can't be asked for is a dns error, too."""
    assert post(sender, f"http://{'a' * 64}.example/").error == "dns"


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["127.0.0.1", "10.0.0.1"],
        ["10.0.0.1", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%lo"],
    ],
)
def test_refused_addresses(addresses: list[str], sender: WebhookSender, names: Names) -> None:
    """If any address of a name is forbidden on that port, nothing is connected to."""
    names.known["receiver.example"] = addresses
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/")
        assert running.connections == 0
    assert outcome.error == "refused target"
    assert outcome.detail.startswith("receiver.example is at ")


@pytest.mark.parametrize("targets", ["", "10.0.0.0/8", "127.0.0.1:1", "::1", "other.example"])
def test_loopback_refused(targets: str, names: Names) -> None:
    """Loopback itself is refused where nothing allows this address and port."""
    with receiver(closing(NO_CONTENT)) as running:
        for host in ("127.0.0.1", "2130706433", "receiver.example"):
            outcome = post(sender_to(targets), f"http://{host}:{running.port}/")
            assert outcome.error == "refused target"
        assert running.connections == 0


def test_rebinding(names: Names) -> None:
    """A name is resolved once, so that it can't point elsewhere after it was checked."""
    rebound = iter([["127.0.0.1"], *repeat(["127.0.0.2"], 10)])

    class Rebinding(dict[str, list[str]]):
        def __getitem__(self, name: str) -> list[str]:
            return next(rebound)

    names.known = Rebinding(names.known)
    trap = receiver(closing(NO_CONTENT), host="127.0.0.2")
    with trap as inner, receiver(closing(NO_CONTENT), port=inner.port):
        outcome = post(sender_to("127.0.0.1"), f"http://receiver.example:{inner.port}/")
        assert outcome.status == 204
        assert inner.connections == 0
    assert names.asked == ["receiver.example"]


@pytest.mark.parametrize(
    ("targets", "host", "asked"),
    [
        ("receiver.example", "RECEIVER.Example", "receiver.example"),
        ("Receiver.Example.", "receiver.example.", "receiver.example"),
        ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_host_entries(targets: str, host: str, asked: str, names: Names) -> None:
    """A host entry is matched with the name that is resolved, however either is written."""
    names.known[asked] = ["127.0.0.1"]
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender_to(targets), f"http://{host}:{running.port}/")
    assert outcome.status == 204
    assert names.asked == [asked]


# TLS


def test_trusted(authority: trustme.CA, sender: WebhookSender, names: Names) -> None:
    """A certificate of a trusted authority for the URL's host is accepted, wherever that is."""
    context = server_context(authority, "receiver.example")
    asked_for: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    with receiver(closing(NO_CONTENT), tls=context) as running:
        outcome = post(sender, f"https://receiver.example:{running.port}/")
    assert outcome.status == 204
    assert asked_for == ["receiver.example"]


def test_untrusted(tls: ssl.SSLContext) -> None:
    """A certificate of an unknown authority is a tls error, and no request is sent."""
    recording = Recording()
    outcome = post_to(sender_to(LOOPBACK_TARGETS), recording, tls=tls)
    assert outcome.error == "tls"
    assert "certificate verify failed: unable to get local issuer" in outcome.detail
    assert recording.heads == []


@pytest.mark.parametrize("host", ["receiver.example", "127.0.0.1"])
def test_wrong_name(host: str, authority: trustme.CA, sender: WebhookSender, names: Names) -> None:
    """A trusted certificate for another host is a tls error, and no request is sent."""
    recording = Recording()
    context = server_context(authority, "other.example", "127.0.0.2")
    with receiver(recording, tls=context) as running:
        outcome = post(sender, f"https://{host}:{running.port}/")
    assert outcome.error == "tls"
    assert "is not valid for" in outcome.detail
    assert recording.heads == []


def test_no_tls(sender: WebhookSender) -> None:
    """A receiver of https that does not speak TLS is a tls error."""

    def handle(conn: socket.socket) -> None:
        conn.recv(1)
        conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with receiver(handle) as running:
        outcome = post(sender, f"https://127.0.0.1:{running.port}/")
    assert outcome.error == "tls"


# Connections that are kept


class Answers:
    """Answers one request after the other, on as many connections as need be.

    What is None is not answered, but the connection closed.
    """

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = iter(answers)
        self.requests: list[bytes] = []
        self.left = threading.Event()

    def __call__(self, conn: socket.socket) -> None:
        try:
            while True:
                self.requests.append(read_head(conn))
                answer = next(self.answers)
                if answer is None:
                    return
                conn.sendall(answer)
        finally:
            self.left.set()


@pytest.fixture
def keeping(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[AsTask]:
    """A sender that keeps connections for as long as a test may take."""
    monkeypatch.setattr(sender_module, "KEEPALIVE_SECONDS", 60.0)
    with running_loop() as loop:
        yield AsTask(loop, Targets.parse(LOOPBACK_TARGETS), trusting(authority))


def posts(sender: WebhookSender, running: Receiver, number: int) -> list[int | None]:
    """Post so many webhooks one after the other, and close what is kept; return the statuses."""
    statuses = [post(sender, running.url).status for _ in range(number)]
    if isinstance(sender, AsTask):
        sender.let_go()
    return statuses


@pytest.mark.parametrize(
    "answer",
    [
        OK_EMPTY,
        NO_CONTENT,
        OK + b"Content-Length: 3\r\n\r\nand",
        OK + b"Content-Length: %d\r\n\r\n" % MAX_ANSWER_KEPT + b"a" * MAX_ANSWER_KEPT,
        CHUNKED + b"3\r\nand\r\n0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: " + b"a" * (MAX_RESPONSE_BYTES // 2) + b"\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_kept_connection(
    answer: bytes, keeping: AsTask, maybe_tls: ssl.SSLContext | None
) -> None:
    """The next webhook to the same receiver takes it, with all of an exchange's room, once the
    answer before is read to its end."""
    with receiver(Answers([answer] * 4), tls=maybe_tls) as running:
        assert posts(keeping, running, 4) == [int(answer[9:12])] * 4
        assert running.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length: 9999\r\n\r\n" + b"a" * 9999,
        OK_EMPTY + OK_EMPTY,
        NO_CONTENT + b"a" * (8192 - len(NO_CONTENT)) + b"HTTP/1.1 418 Stray\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ],
)
def test_a_connection_that_is_not_kept(
    answer: bytes, keeping: AsTask, maybe_tls: ssl.SSLContext | None
) -> None:
    """One that the receiver wants to close, or on which anything is left to come, is used once:
    no webhook takes an answer that was another's."""
    with receiver(Answers([answer] * 3), tls=maybe_tls) as running:
        statuses = posts(keeping, running, 3)
        assert statuses == [int(answer[9:12])] * 3
        assert running.connections == 3


def test_a_kept_connection_on_which_more_has_come(keeping: AsTask) -> None:
    """No webhook takes what came before it was sent for its answer."""
    more, came = threading.Event(), threading.Event()

    def talkative(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(OK_EMPTY)
        assert more.wait(PATIENCE)
        conn.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
        came.set()

    with receiver(talkative) as running:
        assert post(keeping, running.url).status == 200
        more.set()
        assert came.wait(PATIENCE)
        assert post(keeping, running.url).status == 200
        keeping.let_go()


def test_a_kept_connection_is_closed_in_time(
    keeping: AsTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing comes for KEPT, the receiver sees its end."""
    monkeypatch.setattr(sender_module, "KEEPALIVE_SECONDS", 0.05)
    answers = Answers([OK_EMPTY])
    with receiver(answers) as running:
        assert post(keeping, running.url).status == 200
        assert answers.left.wait(PATIENCE)


def test_a_kept_connection_does_not_live_for_ever(
    keeping: AsTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After LIFE the name is looked up anew, however much is sent."""
    monkeypatch.setattr(sender_module, "MAX_CONNECTION_AGE", 0.0)
    with receiver(Answers([OK_EMPTY] * 2)) as running:
        assert posts(keeping, running, 2) == [200, 200]
        assert running.connections == 2


def test_a_kept_connection_that_the_receiver_has_closed(
    keeping: AsTask, maybe_tls: ssl.SSLContext | None
) -> None:
    """Whether its end is noticed before or after sending, no webhook fails for it."""
    with receiver(closing(OK_EMPTY), tls=maybe_tls) as running:
        assert posts(keeping, running, 20) == [200] * 20
        assert running.connections == 20


def test_a_kept_connection_that_ends_without_an_answer(
    keeping: AsTask, maybe_tls: ssl.SSLContext | None
) -> None:
    """The receiver may have closed it before it knew of the webhook, which then goes over a fresh
    one, once, and is the same."""
    answers = Answers([OK_EMPTY, None, OK_EMPTY])
    with receiver(answers, tls=maybe_tls) as running:
        assert posts(keeping, running, 2) == [200, 200]
        assert running.connections == 2
    assert len(set(answers.requests)) == 1


def test_what_ends_without_an_answer_on_a_fresh_connection(
    keeping: AsTask, maybe_tls: ssl.SSLContext | None
) -> None:
    """That is a failure, also where it took the place of one that was kept: nothing is sent more
    often than that."""
    answers = Answers([None, OK_EMPTY, None, None, None])
    with receiver(answers, tls=maybe_tls) as running:
        assert posts(keeping, running, 3) == [None, 200, None]
        assert len(answers.requests) == 4
        assert posts(keeping, running, 1) == [None]
        assert len(answers.requests) == 5


def test_what_ends_after_a_kept_one_was_closed(
    keeping: AsTask, maybe_tls: ssl.SSLContext | None
) -> None:
    """A connection that was made anew in the place of one that was kept is a fresh one."""
    requests: list[bytes] = []

    def once(conn: socket.socket) -> None:
        requests.append(read_head(conn))
        if len(requests) == 1:
            conn.sendall(OK_EMPTY)

    with receiver(once, tls=maybe_tls) as running:
        assert posts(keeping, running, 2) == [200, None]
    assert len(requests) == 2


def test_a_body_is_not_taken_for_a_request(keeping: AsTask) -> None:
    """Behind a request with a body no other one follows: there are receivers that read none."""
    answers = Answers([OK_EMPTY] * 4)  # this one answers the body as well
    with receiver(answers) as running:
        for _ in range(2):
            assert post(keeping, running.url, body="POST / HTTP/1.1\r\n\r\n").status == 200
        assert running.connections == 2
    assert b"Connection: close" in answers.requests[0]


def test_an_answer_before_the_body_was_read(keeping: AsTask) -> None:
    """It counts, also on a connection that was kept: nothing is sent again after an answer."""
    requests: list[bytes] = []

    def hasty(conn: socket.socket) -> None:
        for _ in range(2):
            requests.append(read_head(conn))
            conn.sendall(OK_EMPTY)
        time.sleep(0.2)  # or the reset would overtake what was sent

    with receiver(hasty) as running:
        assert post(keeping, running.url).status == 200
        assert post(keeping, running.url, body="a" * 8_000_000).status == 200
    assert len(requests) == 2


def test_all_kept_connections_may_have_ended(keeping: AsTask) -> None:
    """What takes the place of one is fresh, and no other that was kept as long."""
    both = threading.Barrier(2)

    def ending(conn: socket.socket) -> None:
        read_head(conn)
        if running.connections <= both.parties:
            both.wait(PATIENCE)
        conn.sendall(OK_EMPTY)
        read_head(conn)

    with receiver(ending) as running:
        second = threading.Thread(target=running.run)
        second.start()
        try:
            with ThreadPoolExecutor(both.parties) as pool:
                sent = [pool.submit(post, keeping, running.url) for _ in range(both.parties)]
            assert [it.result().status for it in sent] == [200, 200]
            assert posts(keeping, running, 1) == [200]
            assert running.connections == 3
        finally:
            running.stopping = True
            while second.is_alive():  # which of the two takes it is up to the system
                socket.create_connection(("127.0.0.1", running.port)).close()
                second.join(0.1)


def test_a_kept_connection_that_ends_within_an_answer(keeping: AsTask) -> None:
    """Whoever has begun to answer has got the webhook: it is not sent once more."""
    requests: list[bytes] = []

    def breaking(conn: socket.socket) -> None:
        for answer in (OK_EMPTY, b"HTTP/1.1 "):
            requests.append(read_head(conn))
            conn.sendall(answer)
        time.sleep(0.2)  # or the reset would overtake what was sent
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with receiver(breaking) as running:
        assert posts(keeping, running, 2) == [200, None]
    assert len(requests) == 2


def test_a_kept_connection_that_is_in_use_again(
    keeping: AsTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not closed when the time is over for which it was kept before."""
    monkeypatch.setattr(sender_module, "KEEPALIVE_SECONDS", 0.2)
    pauses = iter([0.0, 0.4, 0.0])

    def slow(conn: socket.socket) -> None:
        for pause in pauses:
            read_head(conn)
            time.sleep(pause)
            conn.sendall(OK_EMPTY)

    with receiver(slow) as running:
        assert posts(keeping, running, 3) == [200] * 3
        assert running.connections == 1


def test_both_tries_have_the_time_of_one(keeping: AsTask) -> None:
    """Sending once more takes no longer than the timeout allows in all."""
    hold, timeout = 2.0, 2.5

    def hanging(conn: socket.socket) -> None:
        read_head(conn)
        if running.connections == 1:
            conn.sendall(OK_EMPTY)
            read_head(conn)
            time.sleep(hold)
        else:
            conn.recv(1)

    with receiver(hanging) as running:
        assert post(keeping, running.url).status == 200
        outcome = post(keeping, running.url, timeout)
        assert running.connections == 2
    assert outcome.error == "timeout"
    assert outcome.duration < hold + timeout


# Afterwards


def open_files() -> int:
    gc.collect()
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.parametrize(
    "handler",
    [
        closing(NO_CONTENT),
        answering(OK + b"\r\nand"),
        answering(OK + b"Content-Length: 3\r\n\r\nand"),
        Flooding(OK + b"\r\n", b"a" * 65536),
        Flooding(b"", b"a" * 65536),
        closing(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"),
        closing(OK + b"Content-Length: 1, 2\r\n\r\n"),
        closing(b"garbage\r\n\r\n"),
        closing(b""),
        resetting,
        silent,
    ],
)
def test_nothing_left(
    handler: Handler, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """No socket and no thread is left of an attempt, whatever its end."""
    files, threads = open_files(), threading.active_count()
    post_to(sender, handler, timeout=0.3, tls=maybe_tls)
    # A connection is kept for 0 s; a thread of a test before may have ended only now.
    wait_until(lambda: open_files() <= files and threading.active_count() <= threads)


def test_nothing_left_of_a_failed_handshake(tls: ssl.SSLContext) -> None:
    """No socket is left where the certificate is refused."""
    sender = sender_to(LOOPBACK_TARGETS)
    before = open_files()
    assert post_to(sender, closing(NO_CONTENT), tls=tls).error == "tls"
    assert open_files() == before


# Signed


def test_the_signature_verifies_where_it_arrives(httpserver: HTTPServer) -> None:
    """Headers and body as a receiver gets them satisfy the library, with either of two secrets, and
    not with one that was retired; without secrets there is no such header."""
    old, new, retired = (new_secret(bytes([number]) * 32) for number in (1, 2, 3))
    kept: list[str] = []
    seen: list[tuple[dict[str, str], bytes]] = []

    def receive(request: Request) -> Response:
        seen.append((dict(request.headers), request.get_data()))
        return Response(status=204)

    httpserver.expect_request("/").respond_with_handler(receive)
    signing_sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), secrets_of=lambda _: kept)
    for method in ("POST", "GET", "DELETE"):
        signed = Webhook(url=httpserver.url_for("/"), method=method, body='{"a": "\u00e4\u2603"}')
        timer = new_timer("id-1", "default", signed, START, START)
        for secrets in ([new, old], []):
            kept[:] = secrets
            assert signing_sender.send(timer, datetime.now(UTC)).status == 204
        (headers, body), (unsigned, _) = seen[-2:]
        for secret in (old, new):
            assert Verifier(secret).verify(body, headers) == {"a": "\u00e4\u2603"}
        with pytest.raises(WebhookVerificationError):
            Verifier(retired).verify(body, headers)
        assert "webhook-signature" not in {name.lower() for name in unsigned}
