"""Answers of receivers, byte by byte: the outcome, the number of POSTs, and the bytes read."""

import socket
import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.core.retry import is_transient
from chalicelib.core.targets import LOOPBACK_TARGETS
from chalicelib.core.timer import Outcome, RetryPolicy, Status, Webhook
from chalicelib.webhook import transport
from chalicelib.webhook.connection import MAX_RESPONSE_BYTES, Connection
from chalicelib.webhook.sender import WebhookSender
from tests.support.fakes import Clock, FakeScheduler, FakeStore, created
from tests.support.receivers import (
    MAX_ATTEMPT_SECONDS,
    OK,
    OK_EMPTY,
    post,
    read_head,
    receiver,
    reset_on_close,
    sender_to,
)
from tests.support.service import Service

MAX_ATTEMPTS = 2
"""Attempts of each timer: a transient failure makes this many POSTs."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\n"

Ending = Callable[[socket.socket], None]


def hang_up(conn: socket.socket) -> None:
    """Close the connection in an orderly way."""


def reset(conn: socket.socket) -> None:
    """Reset the connection."""
    # The reset would discard what the sender has not read yet.
    time.sleep(0.05)
    reset_on_close(conn)


def stay(conn: socket.socket) -> None:
    """Keep the connection open until the sender closes it."""
    conn.recv(1)


class Answer(NamedTuple):
    """The pieces that a receiver sends, each in a segment of its own, and what they mean."""

    pieces: tuple[bytes, ...]
    ending: Ending
    result: int | str
    """The status, or the error class."""
    kept: str = ""
    """The body that is kept."""
    retry_after: float | None = None

    @property
    def posts(self) -> int:
        outcome = Outcome(
            status=self.result if isinstance(self.result, int) else None,
            error=self.result if isinstance(self.result, str) else None,
        )
        return MAX_ATTEMPTS if is_transient(outcome) else 1


def answer(
    result: int | str,
    *pieces: bytes,
    ending: Ending = hang_up,
    kept: str = "",
    wait: float | None = None,
) -> Answer:
    return Answer(pieces, ending, result, kept, wait)


def each_byte(text: bytes) -> tuple[bytes, ...]:
    return tuple(text[at : at + 1] for at in range(len(text)))


ANSWERS = {
    # Interim responses
    "100": answer(200, CONTINUE + OK_EMPTY),
    "102": answer(200, PROCESSING + OK_EMPTY),
    "103": answer(200, HINTS + OK_EMPTY),
    "199": answer(200, b"HTTP/1.1 199 Odd\r\n\r\n" + OK_EMPTY),
    "several interim": answer(204, CONTINUE, HINTS, PROCESSING, b"HTTP/1.1 204 Done\r\n\r\n"),
    "interim in segments": answer(200, CONTINUE[:9], CONTINUE[9:], OK_EMPTY[:5], OK_EMPTY[5:]),
    "interim byte by byte": answer(200, *each_byte(HINTS + b"HTTP/1.1 200\r\n\r\n")),
    "interim and failure": answer(503, CONTINUE + BUSY + b"Retry-After: 7\r\n\r\n", wait=7),
    "headers of interim do not count": answer(
        503, b"HTTP/1.1 103 Hints\r\nRetry-After: 9\r\n\r\n" + BUSY + b"\r\n"
    ),
    "interim only": answer("connect", CONTINUE),
    "interim, then silence": answer("timeout", CONTINUE, ending=stay),
    "interim, then garbage": answer("connect", CONTINUE + b"garbage\r\n\r\n"),
    "101 is final": answer(101, b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\n\r\n\x00\x01"),
    "101 as told": answer(101, b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "interim that closes": answer(
        200, b"HTTP/1.1 103 Hints\r\nConnection: close\r\n\r\n" + OK_EMPTY
    ),
    "interim of HTTP/1.0": answer(200, b"HTTP/1.0 100 Continue\r\n\r\n" + OK_EMPTY),
    # The status line decides
    "status line, then hang up": answer(200, OK),
    "status line, then reset": answer(200, OK, ending=reset),
    "status line, then silence": answer(200, OK, ending=stay),
    "status line without a reason": answer(200, b"HTTP/1.1 200\r\n\r\n"),
    "status line without a reason, cut": answer(200, b"HTTP/1.1 200\r\n"),
    "no reason, then a fault": answer(200, b"HTTP/1.1 200\r\nBad Header\r\n\r\n"),
    "no reason, then a bad length": answer(200, b"HTTP/1.1 200\r\nContent-Length: x\r\n\r\n"),
    "no reason, cut in a header": answer(200, b"HTTP/1.1 200\r\nDate"),
    "no reason, cut in the last line": answer(200, b"HTTP/1.1 200\r\n\r"),
    "letters in the number": answer("connect", b"HTTP/1.1 200x\r\n\r\n"),
    "status line cut after its number": answer(200, b"HTTP/1.1 200"),
    "status line cut in its number": answer("connect", b"HTTP/1.1 20"),
    "status line cut before its number": answer("connect", b"HTTP/1.1 "),
    "failure, then reset": answer(503, BUSY, ending=reset),
    "final failure, then reset": answer(404, b"HTTP/1.1 404 No\r\n", ending=reset),
    "head cut in a header": answer(200, OK + b"Content-Le"),
    "head cut after a header": answer(503, BUSY + b"Retry-After: 7\r\n", wait=7),
    "LF only": answer(200, b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", kept="hi"),
    "HTTP/1.0": answer(200, b"HTTP/1.0 200 OK\r\n\r\nhi", kept="hi"),
    "HTTP/2.0 in text": answer(200, b"HTTP/2.0 200 OK\r\n\r\n"),
    "blank lines first": answer(200, b"\r\n\r\n" + OK_EMPTY),
    "reason with odd bytes": answer(200, b"HTTP/1.1 200 \xff\x01\r\n\r\n"),
    "999": answer(999, b"HTTP/1.1 999 Odd\r\n\r\n"),
    "four digits": answer("connect", b"HTTP/1.1 2000 OK\r\n\r\n"),
    "two digits": answer("connect", b"HTTP/1.1 99 No\r\n\r\n"),
    "no number": answer("connect", b"HTTP/1.1 OK\r\n\r\n"),
    "no HTTP": answer("connect", b"SSH-2.0-OpenSSH_9.6\r\n"),
    "HTTP/0.9": answer("connect", b"<html>thanks</html>"),
    "nothing": answer("connect"),
    "nothing, reset": answer("connect", ending=reset),
    "silence": answer("timeout", ending=stay),
    # Headers
    "101 headers": answer(200, OK + b"".join(b"a%d: b\r\n" % n for n in range(101)) + b"\r\n"),
    "1,000 headers": answer(200, OK + b"a: b\r\n" * 1000 + b"\r\n"),
    "64 KB of headers": answer(200, OK + b"a: %s\r\n" % (b"b" * 65_536)),
    "64 KB of headers in a failure": answer(503, BUSY + b"a: %s\r\n" % (b"b" * 65_536)),
    "conflicting lengths": answer(200, OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    "length and chunks": answer(
        200, OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "negative length": answer(200, OK + b"Content-Length: -1\r\n\r\nhi"),
    "length is no number": answer(200, OK + b"Content-Length: five\r\n\r\nhi"),
    "huge length": answer(200, OK + b"Content-Length: " + b"9" * 50 + b"\r\n\r\nhi"),
    "nameless header": answer(200, OK + b": b\r\n\r\n"),
    "space in a name": answer(200, OK + b"a b: c\r\n\r\n"),
    "no colon": answer(200, OK + b"abc\r\n\r\n"),
    "NUL in a header": answer(200, OK + b"a: \x00\r\n\r\n"),
    "bytes above ASCII": answer(200, OK + b"a: \xe4\xff\r\nContent-Length: 0\r\n\r\n"),
    "folded header": answer(503, BUSY + b"a: b\r\n c\r\nRetry-After: 7\r\n\r\n", wait=7),
    "control character, then Retry-After": answer(
        503, BUSY + b"a: \x01\r\nRetry-After: 7\r\n\r\n", wait=7
    ),
    "Retry-After, then a fault": answer(503, BUSY + b"Retry-After: 7\r\na b: c\r\n\r\n"),
    "Retry-After is cut": answer(503, BUSY + b"Retry-After: 7"),
    # Bodies
    "body": answer(200, OK + b"Content-Length: 2\r\n\r\nhi", kept="hi"),
    "body to the end": answer(200, OK + b"\r\nhi", kept="hi"),
    "body byte by byte": answer(200, *each_byte(OK + b"Content-Length: 2\r\n\r\nhi"), kept="hi"),
    "body is cut": answer(200, OK + b"Content-Length: 20\r\n\r\nhi", kept="hi"),
    "body, then reset": answer(200, OK + b"Content-Length: 20\r\n\r\nhi", ending=reset, kept="hi"),
    "body, then silence": answer(200, OK + b"Content-Length: 20\r\n\r\nhi", ending=stay, kept="hi"),
    "body after 204": answer(204, b"HTTP/1.1 204 Done\r\nContent-Length: 2\r\n\r\nhi"),
    "chunks": answer(200, CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", kept="hi"),
    "chunks with trailers": answer(200, CHUNKED + b"2\r\nhi\r\n0\r\na: b\r\n\r\n", kept="hi"),
    "chunks with extensions": answer(200, CHUNKED + b'2;a="b"\r\nhi\r\n0\r\n\r\n', kept="hi"),
    "chunks with padded sizes": answer(200, CHUNKED + b"2  \r\nhi\r\n0\r\n\r\n", kept="hi"),
    "chunk is cut": answer(200, CHUNKED + b"5\r\nhi", kept="hi"),
    "chunk size is no number": answer(200, CHUNKED + b"2\r\nhi\r\nxyz\r\n", kept="hi"),
    "chunk size is negative": answer(200, CHUNKED + b"-5\r\nhi"),
    "chunk without its end": answer(200, CHUNKED + b"2\r\nhi0\r\n\r\n", kept="hi"),
    "long body": answer(200, OK + b"\r\n" + b"a" * 100_000, kept="a" * 1024),
    "unknown coding": answer(200, OK + b"Transfer-Encoding: gzip\r\n\r\nhi", kept="hi"),
    "two responses": answer(200, OK_EMPTY + b"HTTP/1.1 500 Oops\r\n\r\n"),
    "two bodies": answer(200, (OK + b"Content-Length: 2\r\n\r\nhi") * 2, kept="hi"),
    "response, then garbage": answer(200, OK_EMPTY + b"garbage"),
    "failure with a body": answer(500, b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nhi", kept="hi"),
}  # fmt: skip


class Receiver:
    """Sends one answer to each request, and counts the requests."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.posts = answer, 0

    def __call__(self, conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read_head(conn)
        self.posts += 1
        for piece in self.answer.pieces:
            conn.sendall(piece)
            if len(self.answer.pieces) > 1:
                time.sleep(0.001)
        self.answer.ending(conn)


class Reader:
    """Counts the bytes that each attempt reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.received: list[int] = []
        begin, receive_now = Connection.begin, Connection.receive_now

        def begin_counting(connection: Connection, ends_at: float) -> None:
            self.received.append(0)
            begin(connection, ends_at)

        def counting(connection: Connection) -> bytes | None:
            data = receive_now(connection)
            self.received[-1] += len(data or b"")
            return data

        monkeypatch.setattr(Connection, "begin", begin_counting)
        monkeypatch.setattr(Connection, "receive_now", counting)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_has_its_outcome(
    name: str,
    reader: Reader,
    sender: WebhookSender,
    maybe_tls: ssl.SSLContext | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each answer has the right outcome, number of POSTs, and at most so many bytes are read."""
    expected = ANSWERS[name]
    if expected.ending is stay:
        monkeypatch.setattr(transport, "BODY_TIMEOUT", 0.5)
    scripted, clock = Receiver(expected), Clock()
    service = Service(
        FakeStore(), FakeScheduler(), sender, clock=clock, new_id=iter("ab").__next__,
        pause=lambda _: None, chance=lambda: 0.0,
    )  # fmt: skip
    with receiver(scripted, tls=maybe_tls) as running:
        retry = RetryPolicy(max_attempts=MAX_ATTEMPTS)
        timeout = 1 if expected.result == "timeout" else 10  # the machine may stall
        timer = created(service, Webhook(url=running.url, timeout=timeout, retry=retry))
        while timer.status in (Status.SCHEDULED, Status.RETRYING):
            clock.now = timer.due_at
            service.deliver(timer.wakeup(), clock.now + timedelta(minutes=1))
            timer = service.get("default", timer.id)
        assert scripted.posts == expected.posts
    outcome = timer.attempts[-1].outcome
    assert (outcome.status or outcome.error) == expected.result
    assert outcome.answer == expected.kept
    assert outcome.retry_after == expected.retry_after
    assert max(reader.received) <= min(MAX_RESPONSE_BYTES, len(b"".join(expected.pieces)))


FRAGMENTS = (
    OK, BUSY, CONTINUE, HINTS, b"HTTP/1.1 204 Done\r\n", b"HTTP/1.0 301 Moved\r\n", b"HTTP/1.1 ",
    b"\r\n", b"\n", b"\r", b" ", b":", b"a: b\r\n", b"Content-Length: 3\r\n",
    b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Upgrade: x\r\n", b"3\r\nabc\r\n",
    b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"Retry-After: 1\r\n", b"Location: /\r\n", b"\x00\xff",
)  # fmt: skip
PIECES = st.lists(
    st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=9), max_size=9).map(b"".join),
    max_size=3,
)


class Generated(Receiver):
    """Sends the latest answer."""

    def __init__(self) -> None:
        super().__init__(answer(0))


def test_any_bytes_have_an_outcome(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt ends in time, without an exception, for any bytes that a receiver sends.

    If a 2xx line stands before any other text, the attempt is delivered.
    """
    monkeypatch.setattr(transport, "BODY_TIMEOUT", 0.2)
    sender, generated = sender_to(LOOPBACK_TARGETS), Generated()

    @settings(max_examples=1000, deadline=None, database=None, derandomize=True)
    @given(pieces=PIECES, ending=st.sampled_from((hang_up, stay)), delivers=st.booleans())
    def check(pieces: list[bytes], ending: Ending, delivers: bool) -> None:
        if delivers:
            pieces = [CONTINUE, OK, *pieces]
        generated.answer, generated.posts = answer(0, *pieces, ending=ending), 0
        outcome = post(sender, running.url, timeout=5 if delivers else 0.3)
        assert generated.posts == 1
        assert outcome.error in (None, "connect", "timeout")
        assert "Error" not in outcome.detail
        assert outcome.duration < MAX_ATTEMPT_SECONDS
        assert outcome.succeeded or not delivers
        assert reader.received[-1] <= MAX_RESPONSE_BYTES

    with receiver(generated) as running:
        check()


class Refusing:
    """Answers 413 once it has read the head, and hangs up without reading the body."""

    def __init__(self, ending: Ending) -> None:
        self.ending, self.posts = ending, 0

    def __call__(self, conn: socket.socket) -> None:
        read_head(conn)
        self.posts += 1
        conn.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        self.ending(conn)


@pytest.mark.parametrize("ending", [hang_up, reset, stay])
def test_answer_before_the_end_of_the_body_counts(
    ending: Ending, sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A receiver may answer, and hang up, while the body is still being sent."""
    refusing = Refusing(ending)
    with receiver(refusing, tls=maybe_tls) as running:
        outcome = post(sender, running.url, body="a" * 8_000_000)
    assert (outcome.status, outcome.error) == (413, None)
    assert refusing.posts == 1


class Hasty:
    """Answers 200 once it has read the head, and then reads the body slowly."""

    def __init__(self, size: int) -> None:
        self.size, self.received = size, 0

    def __call__(self, conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(OK_EMPTY)
        while self.received < self.size and (data := conn.recv(65536)):
            self.received += len(data)
            time.sleep(0.001)


def test_an_early_2xx_does_not_cut_off_the_body(
    sender: WebhookSender, maybe_tls: ssl.SSLContext | None
) -> None:
    """A receiver may answer first and read the body then: it gets the whole body."""
    hasty = Hasty(8_000_000)
    with receiver(hasty, tls=maybe_tls) as running:
        assert post(sender, running.url, body="a" * hasty.size).status == 200
    assert hasty.received == hasty.size
