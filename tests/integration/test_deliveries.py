"""Service and sender together, with well-behaved and hostile receivers."""

import socket
import time
import zlib
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from chalicelib.core.errors import InvalidRequest
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets, is_public
from chalicelib.core.timer import Status, Timer, Webhook, new_timer
from chalicelib.webhook import transport
from chalicelib.webhook.connection import MAX_RESPONSE_BYTES, Connection
from chalicelib.webhook.sender import WebhookSender
from tests.support.fakes import Clock, FakeScheduler, FakeStore, created
from tests.support.receivers import (
    Flooding,
    Handler,
    answering,
    dripping,
    receiver,
    resetting,
    silent,
)
from tests.support.service import Service

TIMEOUT = 1
"""Timeout of each webhook, in seconds."""


def bomb() -> bytes:
    """Return 600 KB of gzip that inflate to 600 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [packer.compress(bytes(1024 * 1024)) for _ in range(600)]
    return b"".join([*pieces, packer.flush()])


BOMB = bomb()
ZIPPED = ("Content-Encoding: gzip", f"Content-Length: {len(BOMB)}")


class Deliveries:
    """A service with a real sender; `received` counts the bytes read of plain-HTTP responses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.store = FakeStore()
        self.scheduler = FakeScheduler()
        self.received = 0
        self.service = Service(
            self.store,
            self.scheduler,
            WebhookSender(Targets.parse(LOOPBACK_TARGETS)),
            clock=self.clock,
            new_id=iter("abc").__next__,
            pause=lambda _: None,
            chance=lambda: 0.5,
        )
        real = Connection.receive_now

        def receive_now(connection: Connection) -> bytes | None:
            data = real(connection)
            self.received += len(data or b"")
            return data

        monkeypatch.setattr(Connection, "receive_now", receive_now)

    def deliver(self, url: str) -> Timer:
        """Make a timer for this URL and return it as it is after its first attempt."""
        hook = Webhook(url=url, timeout=TIMEOUT)
        timer = created(self.service, hook)
        self.service.deliver(timer.wakeup(), self.clock.now + timedelta(minutes=1))
        return self.store.timers[timer.id]


@pytest.fixture
def deliveries(monkeypatch: pytest.MonkeyPatch) -> Deliveries:
    return Deliveries(monkeypatch)


def head(status: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode()


FIRST_RETRY = 5
"""Seconds until the second attempt: half of the longest wait, because `chance` is 0.5."""

LENGTH = "Content-Length: 0"


@pytest.mark.parametrize(
    ("handler", "result", "retry_in"),
    [
        (answering(head("200 OK", LENGTH)), 200, None),
        (answering(head("500 X", LENGTH)), 500, FIRST_RETRY),
        (answering(head("503 X", LENGTH, "Retry-After: 120")), 503, 125),
        (answering(head("503 X", LENGTH, "Retry-After: Sat, 31 Jan 2026 12:01:00 GMT")), 503, 65),
        (answering(head("410 Gone", LENGTH)), 410, None),
        (answering(head("302 Found", LENGTH, "Location: http://169.254.169.254/")), 302, None),
        (answering(head("307 X", LENGTH, "Location: /again")), 307, None),
        (answering(head("103 Early Hints", "Link: </x>")), "timeout", FIRST_RETRY),
        (dripping(head("100 Continue") * 3, head("100 Continue")), "timeout", FIRST_RETRY),
        (silent, "timeout", FIRST_RETRY),
        (resetting, "connect", FIRST_RETRY),
        (dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), 200, None),
        (dripping(head("200 OK"), b"x"), 200, None),
        (Flooding(head("200 OK"), b"x" * 65536), 200, None),
        (Flooding(head("302 Found", "Location: /"), b"x" * 65536), 302, None),
        (Flooding(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536), 200, None),
        (Flooding(b"", head("100 Continue") * 1000), "too large", None),
        (
            answering(head("200 OK", *ZIPPED) + BOMB),
            200,
            None,
        ),
    ],
    ids=[
        "200", "500", "503 seconds", "503 date", "410", "redirect", "redirect to itself", "103",
        "endless 100", "hangs", "resets", "drips its head", "drips its body", "endless body",
        "endless redirect", "endless header", "flood of 100", "gzip bomb",
    ],
)  # fmt: skip
def test_records_the_outcome_of_any_receiver(
    deliveries: Deliveries, handler: Handler, result: int | str, retry_in: float | None
) -> None:
    """The outcome is recorded, the retry is scheduled, and the limits on time and bytes hold."""
    with receiver(handler) as running:
        began = time.monotonic()
        timer = deliveries.deliver(f"http://127.0.0.1:{running.port}/")
        took = time.monotonic() - began
    (attempt,) = timer.attempts
    assert (attempt.outcome.status or attempt.outcome.error) == result
    assert attempt.outcome.duration <= took < TIMEOUT + transport.BODY_TIMEOUT + 3
    assert deliveries.received <= MAX_RESPONSE_BYTES
    if retry_in is None:
        wanted = Status.DELIVERED if result == 200 else Status.FAILED
        assert timer.status is wanted
    else:
        assert timer.status is Status.RETRYING
        assert timer.due_at == deliveries.clock.now + timedelta(seconds=retry_in)
        assert deliveries.scheduler.wakeups[-1] == timer.wakeup()


INNER = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "0.0.0.0", "168.63.129.16",  # noqa: S104
    "192.0.0.8", "224.0.0.1", "255.255.255.255", "198.18.0.1",
]  # fmt: skip
INNER_IPV6 = [
    "::1", "::", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1",
    "64:ff9b:1::1", "2002:7f00:1::", "fec0::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
    "2001::1", "2001:db8::1", "2606:4700::5efe:7f00:1", "3fff::1",
]  # fmt: skip


def spellings(address: str) -> list[str]:
    """Return the ways to write an IPv4 address that resolvers understand."""
    a, b, c, d = (int(part) for part in address.split("."))
    whole = int(ip_address(address))
    return [
        address,
        str(whole),
        hex(whole),
        f"0{whole:o}",
        f"{a}.{whole & 0xFFFFFF}",
        f"{a}.{b}.{c * 256 + d}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"{address}.",
    ]


NAMES = {
    "public.example": ["93.184.216.34"],
    "public6.example": ["2606:2800:220:1::1"],
    "inner.example": ["10.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "mixed.example": ["93.184.216.34", "127.0.0.1"],
    "mapped.example": ["::ffff:169.254.169.254"],
    "zone.example": ["fe80::1%eth0"],
    "nobody.example": [],
}
"""Addresses of the fake resolver; `rebinding.example` changes after the first lookup."""

FORBIDDEN = [
    *(f"http://{form}/" for address in INNER for form in spellings(address)),
    *(f"http://[{address}]/" for address in INNER_IPV6),
    *(f"http://{name}/" for name in NAMES if not name.startswith(("public", "nobody"))),
    *(f"http://{name}/" for name in ("localhost", "a.localhost", "LOCALHOST", "localhost.")),
    "http://127。0。0。1/", "http://①②⑦.0.0.1/", "http://１２７.0.0.1/",
    "http://public.example@127.0.0.1/", "http://127.0.0.1@public.example/",
    "http://public.example\\@127.0.0.1/", "http://127.0.0.1\\.public.example/",
    "http://[::1]public.example/", "http://public.example[::1]/",
    "http://[::1%25eth0]/", "http://public.example:22/", "http://public.example:6379/",
    "https://public.example:8443/", "http://public.example:0/", "http://public.example:99999/",
    "file:///etc/passwd", "gopher://public.example/", "ftp://public.example/", "data:,x",
    "http:///127.0.0.1/", "http:/127.0.0.1/", "//127.0.0.1/", "http://", "http://.",
    "http://public.example\r\nHost:127.0.0.1/", "http://127.0.0.1\t/", "http://\x00127.0.0.1/",
    "http://public.example:80@127.0.0.1:80/", "http://rebinding.example/",
]  # fmt: skip

PUBLIC = ["http://public.example/", "https://public.example/", "http://public6.example/",
            "http://public.example#@127.0.0.1/", "http://93.184.216.34/",
            "http://[2606:2800:220:1::1]/", "http://[64:ff9b::8.8.8.8]/"]  # fmt: skip


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse every connection, and return the addresses that were tried."""
    tried: list[str] = []
    real = socket.getaddrinfo
    rebinding = iter([["93.184.216.34"], *[["127.0.0.1"]] * 9])

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError("recorded")

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> Any:
        known = next(rebinding) if host == "rebinding.example" else NAMES.get(host)
        if known is None:
            return real(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        if not known:
            raise socket.gaierror("Name not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (it, port)) for it in known]

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return tried


def attempted(url: str) -> str | None:
    """Send a webhook to a URL that the API did not check; return the class of the error."""
    sender = WebhookSender(Targets())
    webhook = Webhook(url=url, timeout=TIMEOUT)
    timer = new_timer("id-1", "default", webhook, Clock().now, Clock().now)
    return sender.send(timer, Clock().now).error


@pytest.mark.parametrize("url", FORBIDDEN)
def test_never_connects_to_an_inner_address(url: str, connects: list[str]) -> None:
    """The sender itself refuses inner addresses, also if the name resolves differently later."""
    for _ in range(2):
        attempted(url)
    assert all(is_public(ip_address(address)) for address in connects)
    # A URL that parsers read differently may point to the public host.
    if not any(name in url for name in ("rebinding", "public.example", "mixed")):
        assert connects == []


@pytest.mark.parametrize("inner", [*INNER, *INNER_IPV6])
def test_uses_only_the_allowed_addresses_of_a_name(
    inner: str, connects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with inner addresses among public ones is connected to at the public ones."""
    public = "93.184.216.34"
    for addresses in ([inner, public], [public, inner], [inner, public, inner]):
        monkeypatch.setitem(NAMES, "mixed.example", addresses)
        assert attempted("http://mixed.example/") == "connect"
    assert connects == [public] * 3


@pytest.mark.parametrize("url", [url for url in FORBIDDEN if ".example/" not in url])
def test_rejects_urls_that_can_never_be_allowed(url: str) -> None:
    """The owner gets an error at once if no resolution of the name could make the URL allowed."""
    with pytest.raises(InvalidRequest):
        Targets().check_url(url, "/url")


@pytest.mark.parametrize("url", PUBLIC)
def test_connects_to_public_targets(url: str, connects: list[str]) -> None:
    """Public hosts are connected to, by name or by address."""
    Targets().check_url(url, "/url")
    assert attempted(url) == "connect"
    assert connects


def test_a_forbidden_address_fails_the_timer(deliveries: Deliveries, connects: list[str]) -> None:
    """The attempt has the error `refused target` and is not retried."""
    timer = deliveries.deliver("http://metadata.example/")
    assert timer.status is Status.FAILED
    assert timer.attempts[0].outcome.error == "refused target"
    assert connects == []
