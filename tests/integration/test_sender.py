"""WebhookSender over real loopback sockets: the request it sends and the outcome it returns."""

import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pytest_httpserver import HTTPServer
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from werkzeug import Request, Response

from chalicelib.core.signing import new_secret
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import Webhook, new_timer
from chalicelib.webhook.retry_after import MAX_LENGTH, MAX_SECONDS
from chalicelib.webhook.sender import WebhookSender
from chalicelib.webhook.transport import MAX_BODY_KEPT
from tests.integration.conftest import GreenletSender
from tests.support.fakes import START
from tests.support.receivers import (
    CHUNKED,
    MAX_ATTEMPT_SECONDS,
    NO_CONTENT,
    OK,
    Handler,
    Recording,
    answering,
    closing,
    post,
    post_to,
    receiver,
)

# The request


def sent(sender: WebhookSender, **fields: Any) -> list[str]:
    """Return the head and body of the request for a webhook with these fields, as lines."""
    recording = Recording()
    with receiver(recording) as running:
        post(sender, running.url, **fields)
    return (recording.heads[0] + recording.bodies[0]).decode().split("\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_sends_the_owners_method_headers_and_body(sender: WebhookSender, method: str) -> None:
    """The owner's headers may replace User-Agent and Accept."""
    headers = {"X-A": "1", "user-agent": "mine", "ACCEPT": "x/y", "Content-Type": "text/plain"}
    lines = sent(sender, method=method, headers=headers, body="häl\r\nlo")
    assert lines[0] == f"{method} / HTTP/1.1"
    assert lines[-2:] == ["häl", "lo"]
    assert {"X-A: 1", "user-agent: mine", "ACCEPT: x/y", "Content-Length: 8"} <= set(lines)
    names = [line.split(":")[0].lower() for line in lines[1 : lines.index("")]]
    assert len(names) == len(set(names))


def test_get_has_no_body(sender: WebhookSender) -> None:
    """A GET has no Content-Length and no Content-Type."""
    lines = sent(sender, method="GET")
    assert lines[0] == "GET / HTTP/1.1"
    assert not [line for line in lines if line.lower().startswith("content-")]


@pytest.mark.parametrize("value", ["\xa0s3cr3t", "s3cr3t\r\nX: y", " s3cr3t", "s3\0cr3t"])
def test_invalid_stored_header_fails_for_good(sender: WebhookSender, value: str) -> None:
    """The error does not quote the header, because it may be a secret."""
    webhook = Webhook(url="http://127.0.0.1:9/", headers={"X": value})
    outcome = sender.send(new_timer("id-1", "default", webhook, START, START), START)
    assert (outcome.error, outcome.detail) == ("refused target", "a header is not valid")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("999999999", 999_999_999),
        ("Sat, 31 Jan 2026 12:01:30 GMT", 90),
        ("Sat, 31 Jan 2026 13:01:30 +0100", 90),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("Sat, 31 Jan 2026 12:01:30 -0000", 90),
        ("Saturday, 31-Jan-26 12:01:30 GMT", 90),
        ("Sat Jan 31 12:01:30 2026", 90),
        ("1.5", 2),
        ("0.01", 1),
        ("9" * 400, MAX_SECONDS),
        ("120\r\nRetry-After: 60", 120),
        ("60\r\nRetry-After: Sat, 31 Jan 2026 12:01:30 GMT", 90),
        ("Saturday, 31-Jan-26 12:01:30 GMT\r\nRetry-After: soon", 90),
        ("7, 5", 7),
        ("," * MAX_LENGTH + "7", None),
        ("-1", None),
        ("1e9", None),
        ("１２", None),
        ("soon", None),
        ("", None),
        ("Sat, 99 Jan 99999 12:01:30 GMT", None),
    ],
)
def test_reads_retry_after_as_seconds_or_date(
    sender: WebhookSender, value: str, seconds: float | None
) -> None:
    """Retry-After counts from the attempt; an invalid value is ignored."""
    head = f"HTTP/1.1 503 X\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n"
    outcome = post_to(sender, answering(head.encode()))
    assert (outcome.status, outcome.retry_after) == (503, seconds)


def test_default_request_has_these_headers_only(sender: WebhookSender) -> None:
    """The default webhook is a POST with an empty body."""
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
        "Content-Length: 0",
        *([] if isinstance(sender, GreenletSender) else ["Connection: close"]),
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
        ("/a/../b/./c", "/a/../b/./c"),
        ("/a?", "/a?"),
        ("/ü?ü b", "/%C3%BC?%C3%BC%20b"),
        ("/{timer_id}%zz", "/%7Btimer_id%7D%25zz"),
        ("/a#b", "/a"),
        ("/timers/{id}?timer={id}", "/timers/id-1?timer=id-1"),
        ("/%7e%c3%bc/a/../b/./c", "/%7e%c3%bc/a/../b/./c"),
    ],
)
def test_sends_path_and_query_as_given(sender: WebhookSender, given: str, sent: str) -> None:
    """`{id}` is replaced, and characters that no URL may hold are encoded, also in old timers."""
    recording = Recording()
    with receiver(recording) as running:
        post(sender, f"http://127.0.0.1:{running.port}{given}")
    assert recording.heads[0].decode().startswith(f"POST {sent} HTTP/1.1\r\n")


def test_ordinary_http_server_accepts_the_request(
    sender: WebhookSender, httpserver: HTTPServer
) -> None:
    """A common HTTP server parses the request and its empty body."""
    seen: list[tuple[str, bytes, str | None]] = []

    def handle(request: Request) -> Response:
        seen.append((request.full_path, request.get_data(), request.headers["webhook-id"]))
        return Response("thanks", 202)

    httpserver.expect_request("/hook", method="POST").respond_with_handler(handle)
    outcome = post(sender, httpserver.url_for("/hook?x=1"))
    assert (outcome.status, outcome.answer) == (202, "thanks")
    assert seen == [("/hook?x=1", b"", "id-1")]


def test_returns_no_cookies(sender: WebhookSender) -> None:
    """A cookie that a receiver sets is not sent with the next attempt."""
    recording = Recording(b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b; Path=/\r\n\r\n")
    with receiver(recording) as running:
        for _ in range(2):
            post(sender, running.url)
    assert b"cookie" not in recording.heads[1].lower()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_ignores_proxies_and_netrc(
    scheme: str,
    sender: WebhookSender,
    tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Proxies and passwords in the environment have no effect."""
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


def test_sends_concurrently(sender: WebhookSender) -> None:
    """One sender serves many threads and receivers at the same time."""
    handlers = [closing(b"HTTP/1.1 200 OK\r\n\r\n%d" % number) for number in range(12)]

    def roundtrip(handler: Handler) -> str:
        return post_to(sender, handler).answer

    with ThreadPoolExecutor(max_workers=12) as pool:
        assert list(pool.map(roundtrip, handlers)) == [str(number) for number in range(12)]


# The response


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_succeeds(status: int, sender: WebhookSender) -> None:
    """The outcome has the status and the duration of the attempt."""
    outcome = post_to(sender, closing(b"HTTP/1.1 %d Fine\r\n\r\n" % status))
    assert outcome.succeeded
    assert (outcome.status, outcome.error) == (status, None)
    assert 0 < outcome.duration < MAX_ATTEMPT_SECONDS


@pytest.mark.parametrize("status", [101, 304, 400, 404, 408, 410, 429, 500, 503, 999])
def test_any_other_status_fails_without_a_retry(status: int, sender: WebhookSender) -> None:
    """The sender does not retry and does not wait for Retry-After."""
    response = b"HTTP/1.1 %d No\r\nRetry-After: 3600\r\nLocation: /\r\n\r\n" % status
    with receiver(closing(response)) as running:
        outcome = post(sender, running.url)
        assert running.connections == 1
    assert not outcome.succeeded
    assert (outcome.status, outcome.error) == (status, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_does_not_follow_redirects(status: int, sender: WebhookSender) -> None:
    """The redirect itself is the outcome, with the place it points to."""
    with receiver(closing(NO_CONTENT)) as other:
        response = f"HTTP/1.1 {status} Moved\r\nLocation: http://127.0.0.1:{other.port}/\r\n\r\n"
        outcome = post_to(sender, closing(response.encode()))
        assert (outcome.status, outcome.location) == (status, f"http://127.0.0.1:{other.port}/")
        assert other.connections == 0


def test_location_may_be_utf_8(sender: WebhookSender) -> None:
    """A redirect's target is shown as most receivers send it."""
    response = "HTTP/1.1 302 Found\r\nLocation: /ü\r\nContent-Length: 0\r\n\r\n"
    assert post_to(sender, closing(response.encode())).location == "/ü"


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        (OK + b"\r\n", ""),
        (OK + b"\r\nthanks", "thanks"),
        (OK + b"Content-Length: 6\r\n\r\nthanks and more", "thanks"),
        (OK + b"Content-Length: 600\r\n\r\ncut off", "cut off"),
        (OK + b"Content-Length: 6, 6\r\n\r\nthanks", ""),
        (OK + b"Content-Length: -1\r\n\r\nthanks", ""),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nthanks", ""),
        (OK + b"\r\n" + b"a" * MAX_BODY_KEPT, "a" * MAX_BODY_KEPT),
        (OK + b"\r\n" + b"a" * (MAX_BODY_KEPT + 1), "a" * MAX_BODY_KEPT),
        (OK + b"\r\n" + "ü".encode() * MAX_BODY_KEPT, "ü" * (MAX_BODY_KEPT // 2)),
        (OK + b"\r\na" + "ü".encode() * 512, "a" + "ü" * 511 + "\ufffd"),
        (OK + b"\r\n\xff\xfe\x00", "\ufffd\ufffd\x00"),
        (CHUNKED + b"3\r\ntha\r\n3\r\nnks\r\n0\r\n\r\n", "thanks"),
        (CHUNKED + b"fff\r\n" + b"a" * 0xFFF + b"\r\n0\r\n\r\n", "a" * MAX_BODY_KEPT),
        (CHUNKED + b"3\r\ntha\r\ngarbage\r\n", "tha"),
        (CHUNKED + b"-5\r\n" + b"a" * 8000, ""),
        (CHUNKED + b"-" + b"f" * 40 + b"\r\nthanks", ""),
        (b"HTTP/1.0 200\r\n\r\nthanks", "thanks"),
        (b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" + OK + b"\r\nthanks", "thanks"),
    ],
)
def test_keeps_the_first_kib_of_the_body(response: bytes, kept: str, sender: WebhookSender) -> None:
    """The body is decoded as UTF-8, with U+FFFD for invalid bytes; a broken end changes nothing."""
    outcome = post_to(sender, closing(response))
    assert (outcome.status, outcome.answer) == (200, kept)


# Signatures


def test_signature_verifies_with_each_current_secret(httpserver: HTTPServer) -> None:
    """The standardwebhooks library accepts each current secret and rejects a retired one."""
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
