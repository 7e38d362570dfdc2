"""Transport over real loopback sockets: limits, targets, TLS, kept connections, resources."""

import errno
import gc
import gzip
import os
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import trustme

from chalicelib.core.targets import LOOPBACK_TARGETS
from chalicelib.webhook import connection, transport
from chalicelib.webhook.connection import MAX_RESPONSE_BYTES, NEXT_ADDRESS_DELAY
from chalicelib.webhook.response import ResponseParser
from chalicelib.webhook.sender import WebhookSender
from chalicelib.webhook.transport import MAX_BODY_KEPT
from tests.integration.conftest import GreenletSender
from tests.support.processes import wait_until
from tests.support.receivers import (
    CHUNKED,
    FLOOD_BYTES,
    MAX_ATTEMPT_SECONDS,
    NO_CONTENT,
    OK,
    OK_EMPTY,
    RECEIVER_TIMEOUT,
    FakeResolver,
    Flooding,
    Handler,
    Recording,
    Scripted,
    SocketReceiver,
    answering,
    closing,
    drip,
    dripping,
    post,
    post_to,
    read_head,
    receiver,
    reset_on_close,
    resetting,
    sender_to,
    server_context,
    silent,
    swallowing,
)

# Time


def test_silent_receiver_times_out(sender: WebhookSender, maybe_tls: ssl.SSLContext | None) -> None:
    """An attempt without a response ends by its timeout."""
    outcome = post_to(sender, silent, timeout=0.3, tls=maybe_tls)
    assert (outcome.error, outcome.detail) == ("timeout", "no response in time")
    assert 0.25 < outcome.duration < MAX_ATTEMPT_SECONDS


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"", b"\r\n"),
        (b"HTTP", b""),
        (b"HTTP/1.1 2", b""),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n", b"a"),
    ],
)
def test_slow_head_times_out(
    beginning: bytes, drop: bytes, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """The timeout bounds the whole exchange, even if bytes keep coming."""
    outcome = post_to(sender, dripping(beginning, drop), timeout=0.3, tls=maybe_tls)
    assert outcome.error == "timeout"
    assert outcome.duration < MAX_ATTEMPT_SECONDS


@pytest.mark.parametrize("drop", [b"", b"a"])
def test_slow_tls_handshake_times_out(drop: bytes, sender: WebhookSender) -> None:
    """The timeout includes the TLS handshake."""

    def handle(conn: socket.socket) -> None:
        # The beginning of a handshake record of 16 KiB.
        drip(conn, b"\x16\x03\x03\x40\x00" if drop else b"", drop)

    with receiver(handle) as running:
        outcome = post(sender, f"https://127.0.0.1:{running.port}/", timeout=0.3)
    assert outcome.error == "timeout"
    assert outcome.duration < MAX_ATTEMPT_SECONDS


def test_slow_name_resolution_times_out(sender: WebhookSender, resolver: FakeResolver) -> None:
    """The timeout includes name resolution, so no webhook leaves after it."""
    resolver.delay = 0.3
    with receiver(silent) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/", timeout=0.2)
        assert outcome.error == "timeout"
        assert running.connections == 0


def test_slow_connect_times_out(sender: WebhookSender) -> None:
    """The timeout includes connecting to an address that does not respond."""
    with swallowing("127.0.0.2") as port:
        outcome = post(sender, f"http://127.0.0.2:{port}/", timeout=0.3)
    assert outcome.error == "timeout"
    assert outcome.duration < MAX_ATTEMPT_SECONDS


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (OK, b""),
        (OK, b"a"),
        (OK, b"a: b\r\n"),
        (b"HTTP/1.1 200", b""),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200", b" "),
    ],
)
def test_slow_headers_are_given_up(
    beginning: bytes,
    drop: bytes,
    sender: WebhookSender,
    maybe_tls: ssl.SSLContext | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The status counts, even if the headers do not end in time."""
    monkeypatch.setattr(transport, "BODY_TIMEOUT", 0.2)
    outcome = post_to(sender, dripping(beginning, drop), timeout=2, tls=maybe_tls)
    assert (outcome.status, outcome.error) == (200, None)
    assert outcome.duration < MAX_ATTEMPT_SECONDS


@pytest.mark.parametrize("drop", [b"", b"a"])
def test_slow_body_is_given_up(
    drop: bytes,
    sender: WebhookSender,
    maybe_tls: ssl.SSLContext | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The status counts, even if the body does not end within BODY_TIMEOUT."""
    monkeypatch.setattr(transport, "BODY_TIMEOUT", 0.2)
    outcome = post_to(sender, dripping(OK + b"\r\nthan", drop), timeout=60, tls=maybe_tls)
    assert outcome.status == 200
    assert outcome.answer.startswith("than")
    assert outcome.duration < MAX_ATTEMPT_SECONDS


def test_stops_reading_once_enough_of_the_body_has_come(
    sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender does not wait for more than it keeps."""
    monkeypatch.setattr(transport, "BODY_TIMEOUT", 60.0)
    outcome = post_to(sender, answering(OK + b"\r\n" + b"a" * MAX_BODY_KEPT), timeout=60)
    assert outcome.answer == "a" * MAX_BODY_KEPT
    assert outcome.duration < MAX_ATTEMPT_SECONDS


def test_timeout_also_ends_the_body(sender: WebhookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout ends the body, even if BODY_TIMEOUT is longer."""
    monkeypatch.setattr(transport, "BODY_TIMEOUT", 60.0)
    outcome = post_to(sender, dripping(OK + b"\r\n", b""), timeout=0.9)
    assert outcome.status == 200
    assert outcome.duration < MAX_ATTEMPT_SECONDS


# Bytes


@pytest.mark.parametrize("status", [200, 302, 500])
def test_does_not_decompress_the_body(
    status: int, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A gzip bomb stays compressed."""
    bomb = gzip.compress(bytes(10_000_000))
    response = b"HTTP/1.1 %d So\r\nContent-Encoding: gzip\r\n\r\n" % status + bomb
    outcome = post_to(sender, closing(response), tls=maybe_tls)
    assert outcome.status == status
    assert outcome.answer == bomb[:MAX_BODY_KEPT].decode(errors="replace")


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"a" * 65536),
        (OK, b"a" * 65536),
        (OK, b"".join(b"a%d: %s\r\n" % (number, b"b" * 1000) for number in range(90))),
        (OK + b'Content-Type: multipart/x;"', (b";" * 60_000 + b"\r\n ") * 4),
        (CHUNKED, b"1\r\na\r\n" * 8192),
        (CHUNKED + b"1;", b"a" * 65536),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"trailer: a\r\n" * 8192),
    ],
)
def test_endless_body_is_read_up_to_a_limit(
    head: bytes, piece: bytes, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """The status counts, and the sender stops reading at its limit."""
    flooding = Flooding(head, piece)
    outcome = post_to(sender, flooding, tls=maybe_tls)
    assert outcome.status == int(head.split()[1])
    assert len(outcome.answer) <= MAX_BODY_KEPT
    assert flooding.written < FLOOD_BYTES


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
def test_malformed_headers_do_no_harm(header: bytes, sender: WebhookSender) -> None:
    """Malformed headers don't fail the attempt, and don't take long to parse."""
    outcome = post_to(sender, closing(OK + header + b"\r\n\r\nthanks"))
    assert outcome.status == 200
    assert outcome.duration < MAX_ATTEMPT_SECONDS


@pytest.mark.parametrize(
    "piece",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"\r\n" * 65536,
        b"HTTP/1.1 103 Early Hints\r\n" + b"a: b\r\n" * 65536,
    ],
)
def test_endless_head_is_too_large(
    piece: bytes, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """The sender stops reading at its limit, even if no final status has come."""
    flooding = Flooding(b"", piece)
    outcome = post_to(sender, flooding, tls=maybe_tls)
    assert (outcome.error, outcome.detail) == ("too large", "more than 16,384 bytes")
    assert flooding.written < FLOOD_BYTES


@pytest.mark.parametrize(("excess", "retry_after"), [(0, 7), (5, None)])
def test_headers_may_fill_the_limit_exactly(
    excess: int,
    retry_after: float | None,
    sender: WebhookSender,
    maybe_tls: ssl.SSLContext | None,
) -> None:
    """Headers count up to MAX_RESPONSE_BYTES; a header beyond the limit is lost."""
    last = b"\r\nRetry-After: 7\r\n\r\n"
    head = OK + b"a: ".ljust(MAX_RESPONSE_BYTES + excess - len(OK + last), b"b") + last
    assert len(head) == MAX_RESPONSE_BYTES + excess
    outcome = post_to(sender, answering(head), timeout=5, tls=maybe_tls)
    assert (outcome.status, outcome.retry_after) == (200, retry_after)


# Errors


@pytest.mark.parametrize(
    ("handler", "detail"),
    [
        (resetting, "Connection reset by peer"),
        (closing(b""), "the receiver closed the connection without a response"),
        (closing(b"\x1b[2Jhello\r\n\r\n"), "not valid HTTP: \x1b[2Jhello"),
        (closing(b"SSH-2.0-OpenSSH_9.6\r\n"), "not valid HTTP: SSH-2.0-OpenSSH_9.6"),
        (closing(b"HTTP/1.1 abc\r\n\r\n"), "not valid HTTP: HTTP/1.1 abc"),
        (closing(b"HTTP/1.1 99 Red\r\n\r\n"), "not valid HTTP: HTTP/1.1 99 Red"),
        (closing(b"HTTP/1.1 2000 OK\r\n\r\n"), "not valid HTTP: HTTP/1.1 2000 OK"),
        (closing(b"HTTP/1.1 20"), "not valid HTTP: HTTP/1.1 20"),
        (closing(b"a" * 65536), "not valid HTTP: " + "a" * 100),
        (
            closing(b"HTTP/1.1 100 Continue\r\n\r\n"),
            "the receiver closed the connection within the response",
        ),
    ],
)
def test_invalid_response_is_a_connect_error(
    handler: Handler, detail: str, sender: WebhookSender
) -> None:
    """The detail quotes the invalid part."""
    outcome = post_to(sender, handler)
    assert (outcome.status, outcome.error, outcome.detail) == (None, "connect", detail)


def test_any_exception_is_an_outcome(
    sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception becomes a connect error."""

    def failing(*_: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(ResponseParser, "feed", failing)
    outcome = post_to(sender, closing(OK_EMPTY))
    assert (outcome.error, outcome.detail) == ("connect", "too deep")


def test_closed_port_is_a_connect_error(sender: WebhookSender) -> None:
    """Nothing listens on the port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        outcome = post(sender, f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert (outcome.error, outcome.detail) == ("connect", "Connection refused")


def test_tries_the_second_address(sender: WebhookSender, resolver: FakeResolver) -> None:
    """The second address is tried if the first one refuses the connection."""
    resolver.addresses["receiver.example"] = ["127.0.0.2", "127.0.0.1"]
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/")
    assert outcome.status == 204


def test_tries_the_next_address_while_one_is_silent(
    sender: WebhookSender, resolver: FakeResolver
) -> None:
    """An address that swallows packets costs a moment, not the attempt."""
    resolver.addresses["receiver.example"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    with receiver(closing(NO_CONTENT)) as running:
        with swallowing("127.0.0.2", running.port), swallowing("127.0.0.3", running.port):
            outcome = post(sender, f"http://receiver.example:{running.port}/")
        assert running.connections == 1
    assert outcome.status == 204
    assert outcome.duration >= NEXT_ADDRESS_DELAY


def test_a_slow_address_still_wins(
    sender: WebhookSender, resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address stays in the race while others fail."""
    monkeypatch.setattr(connection, "NEXT_ADDRESS_DELAY", 0.0)
    resolver.addresses["receiver.example"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    with receiver(closing(NO_CONTENT)) as running:
        assert post(sender, f"http://receiver.example:{running.port}/").status == 204
        assert running.connections == 1


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every IPv6 address unreachable."""
    real = socket.socket.connect

    def connect(sock: socket.socket, address: Any) -> None:
        if sock.family == socket.AF_INET6:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        real(sock, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.usefixtures("no_ipv6")
@pytest.mark.parametrize("addresses", [["2001:db8::1", "127.0.0.1"], ["127.0.0.1", "2001:db8::1"]])
def test_a_broken_ipv6_address_costs_nothing(addresses: list[str], resolver: FakeResolver) -> None:
    """The IPv4 address is used if the IPv6 network can't be reached."""
    resolver.addresses["receiver.example"] = addresses
    sender = sender_to("127.0.0.1,2001:db8::/32")
    with receiver(closing(NO_CONTENT)) as running:
        assert post(sender, f"http://receiver.example:{running.port}/").status == 204


def test_address_families_take_turns() -> None:
    """The next address is of the other family, as RFC 8305 says."""
    four, six = socket.AF_INET, socket.AF_INET6
    given = [(six, "a"), (six, "b"), (six, "c"), (four, "d"), (four, "e")]
    assert connection._alternating(given) == [
        (six, "a"), (four, "d"), (six, "b"), (four, "e"), (six, "c")
    ]  # fmt: skip


@pytest.mark.usefixtures("no_ipv6")
def test_many_broken_addresses_leave_the_other_family_its_turn(resolver: FakeResolver) -> None:
    """Not more than MAX_ADDRESSES are tried, of both families."""
    broken = [f"fd00::{number:x}" for number in range(1, connection.MAX_ADDRESSES + 1)]
    resolver.addresses["receiver.example"] = [*broken, "127.0.0.1"]
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender_to("127.0.0.1,fd00::/8"), f"http://receiver.example:{running.port}/")
    assert outcome.status == 204


def test_race_closes_the_losers(
    sender: WebhookSender, resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No socket is left of the addresses that did not connect first."""
    monkeypatch.setattr(connection, "NEXT_ADDRESS_DELAY", 0.01)
    resolver.addresses["receiver.example"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    files = open_files()
    with (
        receiver(closing(NO_CONTENT)) as running,
        swallowing("127.0.0.2", running.port),
        swallowing("127.0.0.3", running.port),
    ):
        assert post(sender, f"http://receiver.example:{running.port}/").status == 204
    wait_until(lambda: open_files() <= files)


def test_all_addresses_refused_is_a_connect_error(
    sender: WebhookSender, resolver: FakeResolver
) -> None:
    """No address accepts the connection."""
    resolver.addresses["receiver.example"] = ["127.0.0.2", "127.0.0.3"]
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/")
        assert running.connections == 0
    assert (outcome.error, outcome.detail) == ("connect", "Connection refused")


def test_connects_to_an_ipv6_literal(sender: WebhookSender) -> None:
    """The Host header has an IPv6 literal in brackets."""
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


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1", "127.0.0.1"],
        ["127.0.0.1", "169.254.169.254"],
        ["::ffff:10.0.0.1", "fe80::1", "127.0.0.1"],
        ["64:ff9b::7f00:1", "127.0.0.1", "::1"],
    ],
)
def test_leaves_out_forbidden_addresses(
    addresses: list[str], resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with allowed and forbidden addresses is connected to at the allowed ones only."""
    tried: list[Any] = []
    real = socket.socket.connect

    def connect(sock: socket.socket, address: Any) -> None:
        tried.append(address[0])
        real(sock, address)

    resolver.addresses["receiver.example"] = addresses
    with receiver(closing(NO_CONTENT)) as running:
        monkeypatch.setattr(socket.socket, "connect", connect)
        outcome = post(sender_to("127.0.0.1"), f"http://receiver.example:{running.port}/")
        monkeypatch.undo()
    assert outcome.status == 204
    assert tried == ["127.0.0.1"]


def test_unknown_name_is_a_dns_error(sender: WebhookSender, resolver: FakeResolver) -> None:
    """The name has no address."""
    outcome = post(sender, "http://unknown.example/")
    assert outcome.error == "dns"
    assert outcome.detail.strip()


def test_refuses_a_url_without_a_valid_host(sender: WebhookSender) -> None:
    """No timer can have such a URL, so a retry would not help either."""
    outcome = post(sender, f"http://{'a' * 64}.example/")
    assert outcome.error == "refused target"
    assert "host" in outcome.detail


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["10.0.0.2", "10.0.0.1"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%lo"],
    ],
)
def test_refuses_a_name_with_forbidden_addresses_only(
    addresses: list[str], sender: WebhookSender, resolver: FakeResolver
) -> None:
    """Nothing is connected to."""
    resolver.addresses["receiver.example"] = addresses
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender, f"http://receiver.example:{running.port}/")
        assert running.connections == 0
    assert outcome.error == "refused target"
    assert "receiver.example" in outcome.detail


@pytest.mark.parametrize("targets", ["", "10.0.0.0/8", "127.0.0.1:1", "::1", "other.example"])
def test_refuses_loopback_by_default(targets: str, resolver: FakeResolver) -> None:
    """Loopback is refused unless an entry allows this address and port."""
    with receiver(closing(NO_CONTENT)) as running:
        for host in ("127.0.0.1", "2130706433", "receiver.example"):
            outcome = post(sender_to(targets), f"http://{host}:{running.port}/")
            assert outcome.error == "refused target"
        assert running.connections == 0


def test_resolves_a_name_once(resolver: FakeResolver) -> None:
    """DNS rebinding: the name can't change between the check and the connection."""
    rebound = iter([["127.0.0.1"], *repeat(["127.0.0.2"], 10)])

    class Rebinding(dict[str, list[str]]):
        def __getitem__(self, name: str) -> list[str]:
            return next(rebound)

    resolver.addresses = Rebinding(resolver.addresses)
    trap = receiver(closing(NO_CONTENT), host="127.0.0.2")
    with trap as inner, receiver(closing(NO_CONTENT), port=inner.port):
        outcome = post(sender_to("127.0.0.1"), f"http://receiver.example:{inner.port}/")
        assert outcome.status == 204
        assert inner.connections == 0
    assert resolver.lookups == ["receiver.example"]


@pytest.mark.parametrize(
    ("targets", "host", "resolved"),
    [
        ("receiver.example", "RECEIVER.Example", "receiver.example"),
        ("Receiver.Example.", "receiver.example.", "receiver.example"),
        ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_host_entries_match_the_resolved_name(
    targets: str, host: str, resolved: str, resolver: FakeResolver
) -> None:
    """Case, the final dot and IDNA make no difference."""
    resolver.addresses[resolved] = ["127.0.0.1"]
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(sender_to(targets), f"http://{host}:{running.port}/")
    assert outcome.status == 204
    assert resolver.lookups == [resolved]


# TLS


def test_accepts_a_trusted_certificate(
    authority: trustme.CA, sender: WebhookSender, resolver: FakeResolver
) -> None:
    """The certificate is for the URL's host, which is also the server name (SNI)."""
    context = server_context(authority, "receiver.example")
    server_names: list[str | None] = []
    context.sni_callback = lambda _, name, __: server_names.append(name)
    with receiver(closing(NO_CONTENT), tls=context) as running:
        outcome = post(sender, f"https://receiver.example:{running.port}/")
    assert outcome.status == 204
    assert server_names == ["receiver.example"]


def test_untrusted_certificate_is_a_tls_error(tls: ssl.SSLContext) -> None:
    """No request is sent to an unknown authority's certificate."""
    recording = Recording()
    outcome = post_to(sender_to(LOOPBACK_TARGETS), recording, tls=tls)
    assert outcome.error == "tls"
    assert "certificate verify failed: unable to get local issuer" in outcome.detail
    assert recording.heads == []


@pytest.mark.parametrize("host", ["receiver.example", "127.0.0.1"])
def test_certificate_of_another_host_is_a_tls_error(
    host: str, authority: trustme.CA, sender: WebhookSender, resolver: FakeResolver
) -> None:
    """No request is sent if the certificate is for another host."""
    recording = Recording()
    context = server_context(authority, "other.example", "127.0.0.2")
    with receiver(recording, tls=context) as running:
        outcome = post(sender, f"https://{host}:{running.port}/")
    assert outcome.error == "tls"
    assert "is not valid for" in outcome.detail
    assert recording.heads == []


def test_plain_http_on_an_https_url_is_a_tls_error(sender: WebhookSender) -> None:
    """The receiver does not speak TLS."""

    def handle(conn: socket.socket) -> None:
        conn.recv(1)
        conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with receiver(handle) as running:
        outcome = post(sender, f"https://127.0.0.1:{running.port}/")
    assert outcome.error == "tls"


# Keeping connections open


def test_blocking_sender_keeps_no_connection(
    authority: trustme.CA, maybe_tls: ssl.SSLContext | None
) -> None:
    """On Lambda each attempt has a fresh connection, and nothing is sent twice."""
    sender, scripted = sender_to(LOOPBACK_TARGETS, authority), Scripted([OK_EMPTY, OK_EMPTY, None])
    with receiver(scripted, tls=maybe_tls) as running:
        assert post_in_turn(sender, running, 3) == [200, 200, None]
        assert running.connections == 3


def post_in_turn(sender: WebhookSender, running: SocketReceiver, number: int) -> list[int | None]:
    """Send so many webhooks one after the other, then close idle connections; return statuses."""
    statuses = [post(sender, running.url).status for _ in range(number)]
    if isinstance(sender, GreenletSender):
        sender.close_idle()
    return statuses


def final_status(response: bytes) -> int:
    return int(re.findall(rb"HTTP/1.. ([1-9]\d\d)", response)[-1])


@pytest.mark.parametrize(
    "response",
    [
        OK_EMPTY,
        NO_CONTENT,
        OK + b"Content-Length: 3\r\n\r\nand",
        OK + b"Content-Length: %d\r\n\r\n" % MAX_BODY_KEPT + b"a" * MAX_BODY_KEPT,
        CHUNKED + b"3\r\nand\r\n0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: " + b"a" * (MAX_RESPONSE_BYTES // 2) + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + OK_EMPTY,
    ],
)
def test_reuses_a_connection(
    response: bytes, keepalive_sender: GreenletSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """The next webhook to a receiver reuses the connection, with the full limits of an exchange."""
    with receiver(Scripted([response] * 4), tls=maybe_tls) as running:
        assert post_in_turn(keepalive_sender, running, 4) == [final_status(response)] * 4
        assert running.connections == 1


@pytest.mark.parametrize(
    "response",
    [
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length: 9999\r\n\r\n" + b"a" * 9999,
        OK_EMPTY + OK_EMPTY,
        NO_CONTENT + b"a" * (8192 - len(NO_CONTENT)) + b"HTTP/1.1 418 Stray\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
        OK + b"a b: c\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_does_not_reuse_a_connection_in_doubt(
    response: bytes, keepalive_sender: GreenletSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A connection is used once if the receiver closes it or more bytes may follow."""
    with receiver(Scripted([response] * 3), tls=maybe_tls) as running:
        statuses = post_in_turn(keepalive_sender, running, 3)
        assert statuses == [int(response[9:12])] * 3
        assert running.connections == 3


def test_broken_tls_on_an_idle_connection_fails_nobody(
    keepalive_sender: GreenletSender, tls: ssl.SSLContext
) -> None:
    """The connection is replaced, and its socket closed."""

    def breaking(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(OK_EMPTY)
        with socket.socket(fileno=os.dup(conn.fileno())) as wire:
            wire.sendall(b"\x17\x03\x03\x00\x05wrong")
        time.sleep(0.05)

    with receiver(breaking, tls=tls) as running:
        assert post_in_turn(keepalive_sender, running, 3) == [200] * 3
        assert running.connections == 3


def test_bytes_on_an_idle_connection_are_no_response(keepalive_sender: GreenletSender) -> None:
    """A response that came before its request is never taken."""
    more, came = threading.Event(), threading.Event()

    def talkative(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(OK_EMPTY)
        assert more.wait(RECEIVER_TIMEOUT)
        conn.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
        came.set()

    with receiver(talkative) as running:
        assert post(keepalive_sender, running.url).status == 200
        more.set()
        assert came.wait(RECEIVER_TIMEOUT)
        assert post(keepalive_sender, running.url).status == 200
        keepalive_sender.close_idle()


def test_closes_an_idle_connection(
    keepalive_sender: GreenletSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is closed after KEEPALIVE_SECONDS without a request."""
    monkeypatch.setattr(transport, "KEEPALIVE_SECONDS", 0.05)
    scripted = Scripted([OK_EMPTY])
    with receiver(scripted) as running:
        assert post(keepalive_sender, running.url).status == 200
        assert scripted.left.wait(RECEIVER_TIMEOUT)


def test_does_not_reuse_an_old_connection(
    keepalive_sender: GreenletSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After MAX_CONNECTION_AGE the name is resolved again."""
    monkeypatch.setattr(transport, "MAX_CONNECTION_AGE", 0.0)
    with receiver(Scripted([OK_EMPTY] * 2)) as running:
        assert post_in_turn(keepalive_sender, running, 2) == [200, 200]
        assert running.connections == 2


def test_replaces_a_connection_the_receiver_closed(
    keepalive_sender: GreenletSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """No webhook fails, whether the close is noticed before or after sending."""
    with receiver(closing(OK_EMPTY), tls=maybe_tls) as running:
        assert post_in_turn(keepalive_sender, running, 20) == [200] * 20
        assert running.connections == 20


def test_resends_once_after_a_dropped_reuse(
    keepalive_sender: GreenletSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A reused connection that ends without a response is replaced by a fresh one, once."""
    scripted = Scripted([OK_EMPTY, None, OK_EMPTY])
    with receiver(scripted, tls=maybe_tls) as running:
        assert post_in_turn(keepalive_sender, running, 2) == [200, 200]
        assert running.connections == 2
    assert len(set(scripted.requests)) == 1


def test_does_not_resend_on_a_fresh_connection(
    keepalive_sender: GreenletSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A fresh connection without a response is a failure, also if it replaced a dropped one."""
    scripted = Scripted([None, OK_EMPTY, None, None, None])
    with receiver(scripted, tls=maybe_tls) as running:
        assert post_in_turn(keepalive_sender, running, 3) == [None, 200, None]
        assert len(scripted.requests) == 4
        assert post_in_turn(keepalive_sender, running, 1) == [None]
        assert len(scripted.requests) == 5


def test_connection_after_a_closed_one_is_fresh(
    keepalive_sender: GreenletSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A connection that replaces a closed one counts as fresh: nothing is sent again."""
    requests: list[bytes] = []

    def once(conn: socket.socket) -> None:
        requests.append(read_head(conn))
        if len(requests) == 1:
            conn.sendall(OK_EMPTY)

    with receiver(once, tls=maybe_tls) as running:
        assert post_in_turn(keepalive_sender, running, 2) == [200, None]
    assert len(requests) == 2


def test_does_not_reuse_a_connection_after_a_body(keepalive_sender: GreenletSender) -> None:
    """Some receivers do not read the body and would take it for the next request."""
    scripted = Scripted([OK_EMPTY] * 4)  # takes the body for a request
    with receiver(scripted) as running:
        for _ in range(2):
            assert post(keepalive_sender, running.url, body="POST / HTTP/1.1\r\n\r\n").status == 200
        assert running.connections == 2
    assert b"Connection: close" in scripted.requests[0]


def test_response_before_the_body_counts(keepalive_sender: GreenletSender) -> None:
    """A response on a reused connection counts, even if the receiver ignores the body."""
    requests: list[bytes] = []

    def hasty(conn: socket.socket) -> None:
        for _ in range(2):
            requests.append(read_head(conn))
            conn.sendall(OK_EMPTY)

    with receiver(hasty) as running:
        assert post(keepalive_sender, running.url).status == 200
        assert post(keepalive_sender, running.url, body="a" * 8_000_000).status == 200
    assert len(requests) == 2


def test_replacement_is_never_another_idle_connection(keepalive_sender: GreenletSender) -> None:
    """If all idle connections have ended, a dropped one is still replaced by a fresh one."""
    both = threading.Barrier(2)

    def ending(conn: socket.socket) -> None:
        read_head(conn)
        if running.connections <= both.parties:
            both.wait(RECEIVER_TIMEOUT)
        conn.sendall(OK_EMPTY)
        read_head(conn)

    with receiver(ending) as running:
        second = threading.Thread(target=running.run)
        second.start()
        try:
            with ThreadPoolExecutor(both.parties) as pool:
                sent = [
                    pool.submit(post, keepalive_sender, running.url) for _ in range(both.parties)
                ]
            assert [future.result().status for future in sent] == [200, 200]
            assert post_in_turn(keepalive_sender, running, 1) == [200]
            assert running.connections == 3
        finally:
            running.stopping = True
            while second.is_alive():  # either thread may accept the connection
                socket.create_connection(("127.0.0.1", running.port)).close()
                second.join(0.1)


def test_does_not_resend_after_a_partial_response(keepalive_sender: GreenletSender) -> None:
    """A receiver that began to respond has the webhook, so it is not sent again."""
    requests: list[bytes] = []

    def breaking(conn: socket.socket) -> None:
        for response in (OK_EMPTY, b"HTTP/1.1 "):
            requests.append(read_head(conn))
            conn.sendall(response)
        time.sleep(0.2)  # otherwise the reset would overtake the response
        reset_on_close(conn)

    with receiver(breaking) as running:
        assert post_in_turn(keepalive_sender, running, 2) == [200, None]
    assert len(requests) == 2


def test_idle_timer_does_not_close_a_connection_in_use(
    keepalive_sender: GreenletSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer of an earlier idle period has no effect."""
    monkeypatch.setattr(transport, "KEEPALIVE_SECONDS", 0.2)
    pauses = iter([0.0, 0.4, 0.0])

    def slow(conn: socket.socket) -> None:
        for pause in pauses:
            read_head(conn)
            time.sleep(pause)
            conn.sendall(OK_EMPTY)

    with receiver(slow) as running:
        assert post_in_turn(keepalive_sender, running, 3) == [200] * 3
        assert running.connections == 1


def test_resending_shares_the_timeout(keepalive_sender: GreenletSender) -> None:
    """Both tries together end within one timeout."""
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
        assert post(keepalive_sender, running.url).status == 200
        outcome = post(keepalive_sender, running.url, timeout)
        assert running.connections == 2
    assert outcome.error == "timeout"
    assert outcome.duration < hold + timeout


# Resources


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
def test_leaves_no_socket_and_no_thread(
    handler: Handler, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """Every attempt frees all its resources."""
    files, threads = open_files(), threading.active_count()
    post_to(sender, handler, timeout=0.3, tls=maybe_tls)
    # Idle connections close after 0 s, and a thread of an earlier test may end only now.
    wait_until(lambda: open_files() <= files and threading.active_count() <= threads)


def test_leaves_no_socket_after_a_failed_handshake(tls: ssl.SSLContext) -> None:
    """A refused certificate closes the socket."""
    sender = sender_to(LOOPBACK_TARGETS)
    before = open_files()
    assert post_to(sender, closing(NO_CONTENT), tls=tls).error == "tls"
    assert open_files() == before
