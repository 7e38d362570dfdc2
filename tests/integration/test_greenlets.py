"""Greenlets: in a Hub, one that waits lets the others run."""

import concurrent.futures
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from selectors import EVENT_READ
from typing import Any

import pytest
import trustme
from pytest_httpserver import HTTPServer

from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import Outcome, Webhook, new_timer
from chalicelib.service.concurrency import one_by_one
from chalicelib.webhook.sender import WebhookSender
from standalone.greenlets import Hub, Promise, gather, run_in_thread, tell_all
from tests.support.fakes import START
from tests.support.hub import begin, running_hub
from tests.support.processes import Receiver, wait_until

WAIT = 60
"""Seconds after which a test gives up."""


def run(hub: Hub, *calls: Callable[[], Any]) -> "list[Future[Any]]":
    """Make each call in its own greenlet; return when all have ended."""
    begun = [begin(hub, call) for call in calls]
    concurrent.futures.wait(begun, WAIT)
    return begun


class Waiting:
    """Greenlets and threads that wait for a promise each."""

    def __init__(self) -> None:
        self.promises: list[Promise[Any]] = []

    def wait(self) -> Any:
        promise: Promise[Any] = Promise()
        self.promises.append(promise)
        return promise.wait()

    def release(self, *results: object) -> None:
        for promise, result in zip(self.promises, results, strict=True):
            promise.keep(result)
        tell_all(self.promises)


def test_wait_lets_other_greenlets_run(hub: Hub) -> None:
    """A greenlet waits for a later one of the same thread."""
    waiting = Waiting()
    first, second = run(hub, waiting.wait, lambda: waiting.release("done"))
    assert first.result() == "done"
    assert second.result() is None


def test_threads_and_greenlets_wait_for_promises(hub: Hub) -> None:
    """One call lets threads and greenlets go on."""
    waiting = Waiting()
    with ThreadPoolExecutor(1) as pool:
        in_thread = pool.submit(waiting.wait)
        wait_until(lambda: waiting.promises)
        in_greenlet = begin(hub, waiting.wait)
        wait_until(lambda: len(waiting.promises) == 2)
        waiting.release("thread", "greenlet")
        assert [in_thread.result(WAIT), in_greenlet.result(WAIT)] == ["thread", "greenlet"]


def test_an_error_reaches_the_greenlet_that_waits(hub: Hub) -> None:
    """An error in another thread is raised in the greenlet that waits for it only."""

    def fail() -> None:
        raise ValueError("no")

    failed, fine = run(hub, lambda: run_in_thread(fail), lambda: run_in_thread(lambda: 1))
    assert isinstance(failed.exception(), ValueError)
    assert fine.result() == 1


def test_run_in_thread_lets_other_greenlets_run(hub: Hub) -> None:
    """A blocking call in a thread does not block the other greenlets."""
    release = threading.Event()
    waited, _ = run(hub, lambda: run_in_thread(lambda: release.wait(WAIT)), release.set)
    assert waited.result() is True


def test_outside_a_greenlet_calls_block() -> None:
    """In a plain thread, `run_in_thread` and `gather` make the calls there."""
    assert run_in_thread(threading.current_thread) is threading.current_thread()
    assert gather(int, [1], elsewhere=one_by_one) == [1]


def test_gather_runs_calls_concurrently(hub: Hub) -> None:
    """Gathered calls can wait for each other; each error is returned in the place of its call."""
    met = Waiting()

    def fail() -> None:
        raise ValueError("no")

    results: list[object] = []
    calls: list[Callable[[], object]] = [met.wait, fail, lambda: met.release(None)]
    run(hub, lambda: results.extend(gather(lambda call: call(), calls, elsewhere=one_by_one)))
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]


def test_a_call_that_crashes_is_logged(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """A crashed call is logged, and its greenlet makes the next one."""

    def fail() -> None:
        raise ValueError("no")

    hub.call_soon(lambda: hub.start(fail))
    assert begin(hub, lambda: 1).result(WAIT) == 1
    assert [record.getMessage() for record in caplog.records] == ["greenlet crashed"]


def test_calls_share_no_context(hub: Hub) -> None:
    """A call sees none of the context variables that an earlier one has set."""
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    begin(hub, lambda: variable.set("set")).result(WAIT)
    assert begin(hub, variable.get).result(WAIT) == "unset"


def test_wait_io_lets_other_greenlets_run(hub: Hub) -> None:
    """Two greenlets of one thread talk to each other over a socket pair."""
    one, other = socket.socketpair()

    def echo() -> None:
        hub.wait_io({one: EVENT_READ}, WAIT)
        one.send(one.recv(9))

    def ask() -> bytes:
        other.send(b"hello")
        hub.wait_io({other: EVENT_READ}, WAIT)
        return other.recv(9)

    with one, other:
        echoed, asked = begin(hub, echo), begin(hub, ask)
        assert asked.result(WAIT) == b"hello"
        assert echoed.result(WAIT) is None


def test_wait_io_ends_in_time(hub: Hub) -> None:
    """Each greenlet waits for its own time, independently of the others."""
    one, other = socket.socketpair()
    with one, other:
        long = begin(hub, lambda: hub.wait_io({one: EVENT_READ}, WAIT))
        short = begin(hub, lambda: hub.wait_io({other: EVENT_READ}, 0.01))
        assert short.result(WAIT / 2) is None
        assert not long.done()
        other.send(b"x")
        assert long.result(WAIT) is None


def test_wait_io_leaves_nothing_registered(hub: Hub) -> None:
    """If one of the sockets can't be waited for, the others aren't either."""
    one, other = socket.socketpair()
    closed = socket.socket()
    closed.close()
    with one, other:
        failing = begin(hub, lambda: hub.wait_io({one: EVENT_READ, closed: EVENT_READ}, WAIT))
        with pytest.raises(ValueError, match="Invalid file descriptor"):
            failing.result(WAIT)
        other.send(b"x")
        assert begin(hub, lambda: hub.wait_io({one: EVENT_READ}, WAIT)).result(WAIT) is None


def test_wait_io_ends_once_for_several_sockets(hub: Hub) -> None:
    """A greenlet goes on once, although two of its sockets are ready at the same time."""
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        other.send(b"x")
        both = {one: EVENT_READ, other: EVENT_READ}

        def wait_twice() -> float:
            hub.wait_io(both, WAIT)
            one.recv(1), other.recv(1)
            began = time.monotonic()
            hub.wait_io(both, 0.05)
            return time.monotonic() - began

        assert begin(hub, wait_twice).result(WAIT) >= 0.05


def test_call_later_keeps_the_order_of_times(hub: Hub) -> None:
    """Calls are made in the order of their times, also in an idle hub."""
    made: list[str] = []
    last: Future[list[str]] = Future()

    def order() -> None:
        hub.call_later(0.05, lambda: last.set_result([*made, "last"]))
        hub.call_later(0.0, lambda: made.append("first"))
        hub.call_later(0.01, lambda: made.append("second"))

    begin(hub, order).result(WAIT)
    assert last.result(WAIT) == ["first", "second", "last"]


def test_many_results_come_back_together(hub: Hub) -> None:
    """Greenlets that wait for results of another thread all get theirs."""
    waiting = Waiting()
    begun = [begin(hub, waiting.wait) for _ in range(100)]
    begin(hub, int).result(WAIT)  # all the others wait now
    waiting.release(*range(100))
    assert [it.result(WAIT) for it in begun] == list(range(100))


def test_a_hub_that_has_ended_makes_no_call() -> None:
    """A result that arrives after the end is no error."""
    with running_hub() as hub:
        late = Waiting()
        begin(hub, late.wait)
        begin(hub, int).result(WAIT)
    late.release(None)
    hub.call_soon(pytest.fail)


def test_webhooks_are_sent_concurrently(hub: Hub) -> None:
    """A receiver that holds the first webhook until the second arrives gets both."""
    both, sender = (
        threading.Barrier(2),
        WebhookSender(Targets.parse(LOOPBACK_TARGETS), waiting=hub),
    )
    with Receiver(hold=lambda: both.wait(WAIT)) as receiver:
        timer = new_timer("id-1", "default", Webhook(url=receiver.url), START, START)
        sent = [begin(hub, lambda: sender.send(timer, START)) for _ in range(2)]
        outcomes = [it.result(WAIT) for it in sent]
    assert [wait.status for wait in outcomes] == [200, 200]


def test_webhooks_over_tls_are_sent_concurrently(hub: Hub) -> None:
    """A TLS handshake that hangs does not delay other webhooks, and ends in time."""
    authority = trustme.CA()
    context, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusted)
    sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), trusted, waiting=hub)

    def post(port: int) -> "Future[Outcome]":
        webhook = Webhook(url=f"https://127.0.0.1:{port}/", timeout=2)
        timer = new_timer("id-1", "default", webhook, START, START)
        return begin(hub, lambda: sender.send(timer, START))

    with socket.create_server(("127.0.0.1", 0)) as silent, HTTPServer(ssl_context=context) as fine:
        fine.expect_request("/").respond_with_data("fine" * 10_000)
        hanging = post(silent.getsockname()[1])
        assert post(fine.port).result(WAIT).answer.startswith("finefine")
        assert not hanging.done()
        assert hanging.result(WAIT).error == "timeout"
