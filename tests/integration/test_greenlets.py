"""Tasks: many requests in one thread, of which none that waits keeps another one waiting."""

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
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
from tests.support.processes import Receiver

T = TypeVar("T")

WAIT = 60
"""Seconds after which a test gives up."""


class Turner:
    """Stands in for the server's thread: runs tasks, waits until it is woken, runs them again."""

    def __init__(self) -> None:
        self._woken = threading.Semaphore(0)
        self.wakes = 0
        self.tasks = Dispatcher(self._wake)

    def run(self, *calls: Callable[[], object]) -> list[Future[object]]:
        """Make the calls in tasks, and return once they are over."""
        done = [self.tasks.start(call) for call in calls]
        self.tasks.run()
        while not all(it.done() for it in done):
            assert self._woken.acquire(timeout=WAIT)
            self.tasks.run()
        return done

    def _wake(self) -> None:
        self.wakes += 1
        self._woken.release()


class Request:
    """What waitress gives to its dispatcher."""

    def __init__(self, service: Callable[[], object]) -> None:
        self.service = service
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_a_task_that_waits_lets_the_others_go_on() -> None:
    """A task waits for what a later one does; in one thread this ends only if they take turns."""
    later: Future[str] = Future()
    first, second = Turner().run(lambda: wait(later), lambda: later.set_result("done"))
    assert first.result() == "done"
    assert second.result() is None


def test_what_comes_from_another_thread_wakes_once() -> None:
    """Many outcomes at once, as those of one commit, wake the thread one time."""
    loop = Turner()
    futures: list[Future[int]] = [Future() for _ in range(100)]
    done = [loop.tasks.start(partial(wait, future)) for future in futures]
    loop.tasks.run()
    for number, future in enumerate(futures):
        future.set_result(number)
    assert loop.wakes == 1
    loop.tasks.run()
    assert [it.result() for it in done] == list(range(100))


def test_each_round_may_be_woken_again() -> None:
    """What is ready after the tasks were looked through wakes for the next round."""
    loop = Turner()
    for _ in range(3):
        future: Future[None] = Future()
        loop.tasks.start(partial(wait, future))
        loop.tasks.run()
        future.set_result(None)
        loop.tasks.run()
    assert loop.wakes == 3


def test_errors_reach_who_waits() -> None:
    """What fails in another thread fails in the task that waits for it, and in no other one."""

    def fail() -> None:
        raise ValueError("no")

    failed, fine = Turner().run(lambda: run_in_thread(fail), lambda: run_in_thread(lambda: 1))
    assert isinstance(failed.exception(), ValueError)
    assert fine.result() == 1


def test_aside_is_another_thread() -> None:
    """A call that is made aside keeps the thread of the tasks for the others."""
    release = threading.Event()
    waited, _ = Turner().run(lambda: run_in_thread(lambda: release.wait(WAIT)), release.set)
    assert waited.result() is True


def test_without_tasks_all_is_as_ever() -> None:
    """In a thread that has no tasks, what waits waits, and what is aside is done at once."""
    future: Future[int] = Future()
    future.set_result(1)
    assert wait(future) == 1
    assert run_in_thread(threading.current_thread) is threading.current_thread()
    assert gather(int, [1], elsewhere=one_by_one) == [1]


def test_side_by_side() -> None:
    """Calls of one task wait for each other, and the fault of one is told in its place."""
    met: Future[None] = Future()

    def fail() -> None:
        raise ValueError("no")

    results: list[object] = []
    calls: list[Callable[[], object]] = [lambda: wait(met), fail, lambda: met.set_result(None)]
    Turner().run(lambda: results.extend(gather(lambda call: call(), calls, elsewhere=one_by_one)))
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]


def test_what_breaks_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A request that nobody saw fail is logged, and the next one is served."""
    loop = Turner()

    def fail() -> None:
        raise ValueError("secret")

    served: list[int] = []
    for service in (fail, lambda: served.append(1)):
        loop.tasks.add_task(Request(service))
    loop.tasks.run()
    assert served == [1]
    (record,) = [it for it in caplog.records if it.levelno == logging.ERROR]
    assert record.msg == "request crashed"
    assert loop.tasks.shutdown()


def test_shutdown_lets_finish_and_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end what is under way has its time, and what comes then is cancelled."""
    monkeypatch.setattr(greenlets, "SHUTDOWN_TIMEOUT", 0)
    loop = Turner()
    future: Future[None] = Future()
    served: list[Any] = []
    loop.tasks.add_task(Request(lambda: served.append(wait(future))))
    loop.tasks.run()
    assert not loop.tasks.shutdown()
    late = Request(lambda: served.append("late"))
    loop.tasks.add_task(late)
    future.set_result(None)
    loop.tasks.run()
    assert (served, late.cancelled) == ([None], True)
    assert loop.tasks.shutdown()


@contextmanager
def running_loop() -> Iterator[Hub]:
    """Give a loop that runs in a thread of its own."""
    loop, over = Hub(), threading.Event()
    thread = threading.Thread(target=loop.run, args=(over.is_set,))
    thread.start()
    try:
        yield loop
    finally:
        over.set()
        loop.tasks.soon(lambda: None)
        thread.join(WAIT)
    assert not thread.is_alive()


@pytest.fixture
def loop() -> Iterator[Hub]:
    with running_loop() as loop:
        yield loop


def begin(loop: Hub, call: Callable[[], T]) -> "Future[T]":
    """Make a call in a task of a loop that runs in another thread."""
    done: Future[T] = Future()

    def told(task: "Future[T]") -> None:
        if (error := task.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(task.result())

    loop.tasks.soon(lambda: loop.tasks.start(call).add_done_callback(told))
    return done


def test_a_task_that_waits_for_a_socket_lets_the_others_go_on(loop: Hub) -> None:
    """Of two tasks in one thread each sends what the other one waits for."""
    one, other = socket.socketpair()

    def echo() -> None:
        loop.wait_io(one, False, WAIT)
        one.send(one.recv(9))

    def ask() -> bytes:
        other.send(b"hello")
        loop.wait_io(other, False, WAIT)
        return other.recv(9)

    with one, other:
        echoed, asked = begin(loop, echo), begin(loop, ask)
        assert asked.result(WAIT) == b"hello"
        assert echoed.result(WAIT) is None


def test_waiting_for_a_socket_ends_in_time(loop: Hub) -> None:
    """Each task waits as long as it said, however long the others do."""
    one, other = socket.socketpair()
    with one, other:
        long = begin(loop, lambda: loop.wait_io(one, False, WAIT))
        short = begin(loop, lambda: loop.wait_io(other, False, 0.01))
        assert short.result(WAIT / 2) is None
        assert not long.done()
        other.send(b"x")
        assert long.result(WAIT) is None


def test_calls_are_made_later(loop: Hub) -> None:
    """Each after its time, whatever came before it, and while nothing else happens."""
    made: list[str] = []
    last: Future[list[str]] = Future()

    def order() -> None:
        loop.call_later(0.05, lambda: last.set_result([*made, "last"]))
        loop.call_later(0.0, lambda: made.append("first"))
        loop.call_later(0.01, lambda: made.append("second"))

    begin(loop, order).result(WAIT)
    assert last.result(WAIT) == ["first", "second", "last"]


def test_webhooks_are_sent_side_by_side(loop: Hub) -> None:
    """A receiver that waits for the second webhook before it answers the first gets both."""
    both, sender = (
        threading.Barrier(2),
        WebhookSender(Targets.parse(LOOPBACK_TARGETS), waiting=loop),
    )
    with Receiver(hold=lambda: both.wait(WAIT)) as receiver:
        timer = new_timer("id-1", "default", Webhook(url=receiver.url), START, START)
        sent = [begin(loop, lambda: sender.send(timer, START)) for _ in range(2)]
        outcomes = [it.result(WAIT) for it in sent]
    assert [wait.status for wait in outcomes] == [200, 200]


def test_webhooks_over_tls_are_sent_side_by_side(loop: Hub) -> None:
    """A handshake that hangs keeps no other webhook waiting, and ends in time."""
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
