"""Greenlets: Dispatcher and Hub, where a greenlet that waits lets the others run."""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from selectors import EVENT_READ
from typing import Any, TypeVar

import pytest
import trustme
from pytest_httpserver import HTTPServer

from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import Outcome, Webhook, new_timer
from chalicelib.service.concurrency import one_by_one
from chalicelib.webhook.sender import WebhookSender
from standalone import greenlets
from standalone.greenlets import Dispatcher, Hub, gather, run_in_thread, wait
from tests.support.fakes import START
from tests.support.hub import begin, running_hub
from tests.support.processes import Receiver

T = TypeVar("T")

WAIT = 60
"""Seconds after which a test gives up."""


class FakeServer:
    """Stands in for the server's thread: runs greenlets, waits for a wake, runs them again."""

    def __init__(self) -> None:
        self._woken = threading.Semaphore(0)
        self.wakes = 0
        self.dispatcher = Dispatcher(self._wake)

    def run(self, *calls: Callable[[], object]) -> list[Future[object]]:
        """Make each call in a greenlet; return when all have ended."""
        done = [self.dispatcher.start(call) for call in calls]
        self.dispatcher.run()
        while not all(it.done() for it in done):
            assert self._woken.acquire(timeout=WAIT)
            self.dispatcher.run()
        return done

    def _wake(self) -> None:
        self.wakes += 1
        self._woken.release()


class Request:
    """A request as waitress passes it to its dispatcher."""

    def __init__(self, service: Callable[[], object]) -> None:
        self.service = service
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_wait_lets_other_greenlets_run() -> None:
    """A greenlet waits for a later one of the same thread."""
    later: Future[str] = Future()
    first, second = FakeServer().run(lambda: wait(later), lambda: later.set_result("done"))
    assert first.result() == "done"
    assert second.result() is None


def test_many_results_wake_the_thread_once() -> None:
    """Many results at once, as from one commit, wake the thread once."""
    loop = FakeServer()
    futures: list[Future[int]] = [Future() for _ in range(100)]
    done = [loop.dispatcher.start(partial(wait, future)) for future in futures]
    loop.dispatcher.run()
    for number, future in enumerate(futures):
        future.set_result(number)
    assert loop.wakes == 1
    loop.dispatcher.run()
    assert [it.result() for it in done] == list(range(100))


def test_each_run_can_be_woken_again() -> None:
    """A result that comes after a run wakes the thread for the next run."""
    loop = FakeServer()
    for _ in range(3):
        future: Future[None] = Future()
        loop.dispatcher.start(partial(wait, future))
        loop.dispatcher.run()
        future.set_result(None)
        loop.dispatcher.run()
    assert loop.wakes == 3


def test_an_error_reaches_the_greenlet_that_waits() -> None:
    """An error in another thread is raised in the greenlet that waits for it only."""

    def fail() -> None:
        raise ValueError("no")

    failed, fine = FakeServer().run(lambda: run_in_thread(fail), lambda: run_in_thread(lambda: 1))
    assert isinstance(failed.exception(), ValueError)
    assert fine.result() == 1


def test_run_in_thread_lets_other_greenlets_run() -> None:
    """A blocking call in a thread does not block the other greenlets."""
    release = threading.Event()
    waited, _ = FakeServer().run(lambda: run_in_thread(lambda: release.wait(WAIT)), release.set)
    assert waited.result() is True


def test_outside_a_greenlet_calls_block() -> None:
    """In a plain thread, `wait` blocks and `run_in_thread` makes the call directly."""
    future: Future[int] = Future()
    future.set_result(1)
    assert wait(future) == 1
    assert run_in_thread(threading.current_thread) is threading.current_thread()
    assert gather(int, [1], elsewhere=one_by_one) == [1]


def test_gather_runs_calls_concurrently() -> None:
    """Gathered calls can wait for each other; each error is returned in the place of its call."""
    met: Future[None] = Future()

    def fail() -> None:
        raise ValueError("no")

    results: list[object] = []
    calls: list[Callable[[], object]] = [lambda: wait(met), fail, lambda: met.set_result(None)]
    FakeServer().run(
        lambda: results.extend(gather(lambda call: call(), calls, elsewhere=one_by_one))
    )
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]


def test_a_request_that_crashes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A crashed request is logged, and the next one is served."""
    loop = FakeServer()

    def fail() -> None:
        raise ValueError("secret")

    served: list[int] = []
    for service in (fail, lambda: served.append(1)):
        loop.dispatcher.add_task(Request(service))
    loop.dispatcher.run()
    assert served == [1]
    (record,) = [it for it in caplog.records if it.levelno == logging.ERROR]
    assert record.msg == "request crashed"
    assert loop.dispatcher.shutdown()


def test_shutdown_finishes_requests_and_cancels_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """At shutdown, requests under way may finish, and new ones are cancelled."""
    monkeypatch.setattr(greenlets, "SHUTDOWN_TIMEOUT", 0)
    loop = FakeServer()
    future: Future[None] = Future()
    served: list[Any] = []
    loop.dispatcher.add_task(Request(lambda: served.append(wait(future))))
    loop.dispatcher.run()
    assert not loop.dispatcher.shutdown()
    late = Request(lambda: served.append("late"))
    loop.dispatcher.add_task(late)
    future.set_result(None)
    loop.dispatcher.run()
    assert (served, late.cancelled) == ([None], True)
    assert loop.dispatcher.shutdown()


@pytest.fixture
def loop() -> Iterator[Hub]:
    with running_hub() as loop:
        yield loop


def test_wait_io_lets_other_greenlets_run(loop: Hub) -> None:
    """Two greenlets of one thread talk to each other over a socket pair."""
    one, other = socket.socketpair()

    def echo() -> None:
        loop.wait_io({one: EVENT_READ}, WAIT)
        one.send(one.recv(9))

    def ask() -> bytes:
        other.send(b"hello")
        loop.wait_io({other: EVENT_READ}, WAIT)
        return other.recv(9)

    with one, other:
        echoed, asked = begin(loop, echo), begin(loop, ask)
        assert asked.result(WAIT) == b"hello"
        assert echoed.result(WAIT) is None


def test_wait_io_ends_in_time(loop: Hub) -> None:
    """Each greenlet waits for its own time, independently of the others."""
    one, other = socket.socketpair()
    with one, other:
        long = begin(loop, lambda: loop.wait_io({one: EVENT_READ}, WAIT))
        short = begin(loop, lambda: loop.wait_io({other: EVENT_READ}, 0.01))
        assert short.result(WAIT / 2) is None
        assert not long.done()
        other.send(b"x")
        assert long.result(WAIT) is None


def test_wait_io_leaves_nothing_registered(loop: Hub) -> None:
    """If one of the sockets can't be waited for, the others aren't either."""
    one, other = socket.socketpair()
    closed = socket.socket()
    closed.close()
    with one, other:
        failing = begin(loop, lambda: loop.wait_io({one: EVENT_READ, closed: EVENT_READ}, WAIT))
        with pytest.raises(ValueError, match="Invalid file descriptor"):
            failing.result(WAIT)
        other.send(b"x")
        assert begin(loop, lambda: loop.wait_io({one: EVENT_READ}, WAIT)).result(WAIT) is None


def test_wait_io_ends_once_for_several_sockets(loop: Hub) -> None:
    """A greenlet goes on once, although two of its sockets are ready at the same time."""
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        other.send(b"x")
        both = {one: EVENT_READ, other: EVENT_READ}

        def wait_twice() -> float:
            loop.wait_io(both, WAIT)
            one.recv(1), other.recv(1)
            began = time.monotonic()
            loop.wait_io(both, 0.05)
            return time.monotonic() - began

        assert begin(loop, wait_twice).result(WAIT) >= 0.05


def test_call_later_keeps_the_order_of_times(loop: Hub) -> None:
    """Calls are made in the order of their times, also in an idle loop."""
    made: list[str] = []
    last: Future[list[str]] = Future()

    def order() -> None:
        loop.call_later(0.05, lambda: last.set_result([*made, "last"]))
        loop.call_later(0.0, lambda: made.append("first"))
        loop.call_later(0.01, lambda: made.append("second"))

    begin(loop, order).result(WAIT)
    assert last.result(WAIT) == ["first", "second", "last"]


def test_hub_closes_its_waker_only_after_a_wake_under_way() -> None:
    """A loop that ends while another thread wakes it waits for that thread."""
    hub, over = Hub(), threading.Event()
    sending, go_on = threading.Event(), threading.Event()

    class SlowWaker:
        def __init__(self, waker: Any) -> None:
            self._waker = waker

        def send(self, data: bytes) -> None:
            sending.set()
            assert go_on.wait(WAIT)
            self._waker.send(data)

    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(hub.run, over.is_set)
        begin(hub, lambda: hub.call_later(0.1, over.set)).result(WAIT)
        hub._waker = SlowWaker(hub._waker)  # type: ignore[assignment]
        woken = threads.submit(hub.dispatcher.call_soon, int)
        assert sending.wait(WAIT)
        assert over.wait(WAIT)
        with pytest.raises(TimeoutError):
            running.result(0.1)
        go_on.set()
        assert woken.result(WAIT) is None
        assert running.result(WAIT) is None


def test_webhooks_are_sent_concurrently(loop: Hub) -> None:
    """A receiver that holds the first webhook until the second arrives gets both."""
    both, sender = (
        threading.Barrier(2),
        WebhookSender(Targets.parse(LOOPBACK_TARGETS), waiting=loop),
    )
    with Receiver(hold=lambda: both.wait(WAIT)) as receiver:
        timer = new_timer("id-1", "default", Webhook(url=receiver.url), START, START)
        sent = [begin(loop, lambda: sender.send(timer, START)) for _ in range(2)]
        outcomes = [it.result(WAIT) for it in sent]
    assert [wait.status for wait in outcomes] == [200, 200]


def test_webhooks_over_tls_are_sent_concurrently(loop: Hub) -> None:
    """A TLS handshake that hangs does not delay other webhooks, and ends in time."""
    authority = trustme.CA()
    context, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusted)
    sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), trusted, waiting=loop)

    def post(port: int) -> "Future[Outcome]":
        webhook = Webhook(url=f"https://127.0.0.1:{port}/", timeout=2)
        timer = new_timer("id-1", "default", webhook, START, START)
        return begin(loop, lambda: sender.send(timer, START))

    with socket.create_server(("127.0.0.1", 0)) as silent, HTTPServer(ssl_context=context) as fine:
        fine.expect_request("/").respond_with_data("fine" * 10_000)
        hanging = post(silent.getsockname()[1])
        assert post(fine.port).result(WAIT).answer.startswith("finefine")
        assert not hanging.done()
        assert hanging.result(WAIT).error == "timeout"
