"""HeapScheduler and FairQueue: memory bounds, waits, fairness between hosts, and failures."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import Timer, Wakeup
from standalone import fair_queue, scheduler
from standalone.fair_queue import FairQueue
from standalone.greenlets import Hub, run_in_thread
from standalone.scheduler import MAX_WAIT, HeapScheduler
from standalone.sqlite.timer_store import FiringPosition, SqliteTimerStore
from tests.contracts.store import SECOND, make
from tests.support.fakes import Clock
from tests.support.processes import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteTimerStore]:
    with closing(SqliteTimerStore(tmp_path / "timers.db")) as store:
        yield store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heap_scheduler(store: SqliteTimerStore, hub: Hub, clock: Clock) -> HeapScheduler:
    """A scheduler that has read its store and is not running: tests call its steps."""
    heap_scheduler = HeapScheduler(store, hub, clock)
    heap_scheduler.refill()
    return heap_scheduler


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set HEAP_LIMIT to 10."""
    monkeypatch.setattr(scheduler, "HEAP_LIMIT", 10)
    return 10


def add(store: SqliteTimerStore, numbers: range) -> list[Timer]:
    """Store timers whose numbers are their delays in seconds after START."""
    added = [make(number, number * SECOND) for number in numbers]
    for timer in added:
        store.add(timer)
    return added


def drain(heap_scheduler: HeapScheduler, clock: Clock) -> list[Wakeup]:
    """Return all wake-ups from now on; refill whenever the heap runs low."""
    clock.forward(10**6)
    wakeups: list[Wakeup] = []
    while True:
        due, _ = heap_scheduler.pop_due()
        wakeups += due
        if heap_scheduler._low.is_set():
            heap_scheduler._low.clear()
            heap_scheduler.refill()
        elif not due:
            return wakeups


@pytest.mark.parametrize(
    ("delay", "wait"),
    [(0.25, 0.25), (0.000001, 0.000001), (0.999999, 0.999999), (1.5, MAX_WAIT), (-3, 0.0)],
)
def test_waits_until_the_next_deadline(
    heap_scheduler: HeapScheduler, delay: float, wait: float
) -> None:
    """The wait is the time to the next deadline, at most MAX_WAIT; there is no polling."""
    heap_scheduler.schedule(make(1, timedelta(seconds=500)))
    heap_scheduler.schedule(make(2, timedelta(seconds=delay)))
    due, seconds = heap_scheduler.pop_due()
    assert seconds == pytest.approx(wait, abs=1e-9)
    assert len(due) == (delay <= 0)


def test_an_empty_heap_waits_for_max_wait(heap_scheduler: HeapScheduler) -> None:
    """With no timers, the heap is checked again after MAX_WAIT."""
    assert heap_scheduler.pop_due() == ([], MAX_WAIT)


def test_releases_a_wakeup_at_its_deadline(heap_scheduler: HeapScheduler, clock: Clock) -> None:
    """A wake-up leaves the heap once, when it is due."""
    timer = make(1, 10 * SECOND)
    heap_scheduler.schedule(timer)
    clock.forward(9.999999)
    assert heap_scheduler.pop_due()[0] == []
    clock.forward(0.000001)
    assert heap_scheduler.pop_due()[0] == [timer.wakeup()]
    assert heap_scheduler.pop_due()[0] == []


def test_a_clock_that_is_stepped_back_delays_timers(
    heap_scheduler: HeapScheduler, clock: Clock
) -> None:
    """After the clock is set back, timers wait for their deadline again."""
    heap_scheduler.schedule(make(1, 10 * SECOND))
    clock.forward(9)
    heap_scheduler.pop_due()
    clock.forward(-3600)
    assert heap_scheduler.pop_due() == ([], MAX_WAIT)
    clock.forward(3601)
    assert len(heap_scheduler.pop_due()[0]) == 1


def test_a_sooner_timer_wakes_the_waiting_thread(heap_scheduler: HeapScheduler) -> None:
    """A new timer that is due first wakes the thread that waits for a later one."""
    heap_scheduler.schedule(make(1, 100 * SECOND))
    woken = threading.Event()
    waiting = threading.Event()

    def wait() -> None:
        with heap_scheduler._changed:
            waiting.set()
            if heap_scheduler._changed.wait(10):
                woken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert waiting.wait(10)
    heap_scheduler.schedule(make(2, 50 * SECOND))
    waiter.join()
    assert woken.is_set()


def test_a_refill_reads_at_most_heap_limit(
    store: SqliteTimerStore, hub: Hub, clock: Clock, small: int
) -> None:
    """A refill reads at most HEAP_LIMIT wake-ups."""
    add(store, range(1, 100))
    heap_scheduler = HeapScheduler(store, hub, clock)
    heap_scheduler.refill()
    assert len(heap_scheduler._heap) == small


def test_the_heap_holds_at_most_twice_its_limit(
    heap_scheduler: HeapScheduler, store: SqliteTimerStore, small: int
) -> None:
    """Creating timers never grows the heap beyond twice HEAP_LIMIT."""
    for timer in add(store, range(100, 0, -1)):
        heap_scheduler.schedule(timer)
        assert len(heap_scheduler._heap) <= 2 * small


@pytest.mark.parametrize("order", [range(1, 101), range(100, 0, -1)])
def test_all_timers_fire_in_order_through_a_small_heap(
    heap_scheduler: HeapScheduler, store: SqliteTimerStore, clock: Clock, small: int, order: range
) -> None:
    """Timers beyond the horizon are read in time: all fire in order, each at least once."""
    for timer in add(store, order):
        heap_scheduler.schedule(timer)
    wakeups = drain(heap_scheduler, clock)
    assert list(dict.fromkeys(wakeups)) == [
        timer.wakeup() for timer in sorted(store.overdue(clock.now, 1000), key=lambda t: t.due_at)
    ]


def test_timers_with_one_deadline_all_fire(
    store: SqliteTimerStore, hub: Hub, clock: Clock, small: int
) -> None:
    """More timers than the heap holds, due in the same microsecond, all fire."""
    for number in range(55):
        store.add(make(number, 5 * SECOND))
    heap_scheduler = HeapScheduler(store, hub, clock)
    heap_scheduler.refill()
    assert len(set(drain(heap_scheduler, clock))) == 55


@pytest.mark.parametrize("moment", ["before the read", "after the read"])
@pytest.mark.parametrize("delay", [5, 25, 1000])
def test_a_timer_created_during_a_refill_fires(
    store: SqliteTimerStore,
    hub: Hub,
    clock: Clock,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    delay: int,
) -> None:
    """A timer fires that is created just before or just after the refill reads its rows."""
    add(store, range(10, 40))
    heap_scheduler = HeapScheduler(store, hub, clock)
    late = make(9999, delay * SECOND)
    read = store.waiting

    def create() -> None:
        store.add(late)
        heap_scheduler.schedule(late)

    def waiting(after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        if moment == "before the read":
            create()
        rows = read(after, limit)
        if moment == "after the read":
            create()
        monkeypatch.undo()
        monkeypatch.setattr(scheduler, "HEAP_LIMIT", small)
        return rows

    monkeypatch.setattr(store, "waiting", waiting)
    heap_scheduler.refill()
    assert late.wakeup() in drain(heap_scheduler, clock)


def test_a_failed_refill_skips_no_timer(
    store: SqliteTimerStore, hub: Hub, clock: Clock, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refill that failed, the next one reads the same timers."""
    added = add(store, range(1, 40))
    heap_scheduler = HeapScheduler(store, hub, clock)

    def waiting(after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        raise Unavailable("The database is locked.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "waiting", waiting)
        with pytest.raises(Unavailable):
            heap_scheduler.refill()
    heap_scheduler.refill()
    assert set(drain(heap_scheduler, clock)) == {timer.wakeup() for timer in added}


def test_two_generations_with_one_deadline_are_both_released(
    heap_scheduler: HeapScheduler, clock: Clock
) -> None:
    """A timer rescheduled to the same deadline is in the heap twice; the store refuses one."""
    timer = make(1, 10 * SECOND)
    moved = timer.change(timer, timer.deadline)
    for it in (make(2, 5 * SECOND), timer, moved, moved):
        heap_scheduler.schedule(it)
    clock.forward(20)
    assert heap_scheduler.pop_due()[0][1:] == [timer.wakeup(), moved.wakeup(), moved.wakeup()]


def test_is_behind_while_wakeups_wait_for_a_sender(heap_scheduler: HeapScheduler) -> None:
    """Queued wake-ups are a backlog, which a sweep must not requeue."""
    assert not heap_scheduler.is_behind()
    heap_scheduler._due.put([make(1).wakeup()])
    assert heap_scheduler.is_behind()


def test_check_fails_without_a_heartbeat(heap_scheduler: HeapScheduler) -> None:
    """Without a heartbeat of the loop, the check fails, also with wake-ups in the queue."""
    heap_scheduler._due.put([make(1).wakeup()])
    heap_scheduler.check()
    heap_scheduler._alive_at -= scheduler.HEARTBEAT_TIMEOUT + 1
    with pytest.raises(Unavailable):
        heap_scheduler.check()


def wakeup_for(host: str, number: int = 1) -> Wakeup:
    return replace(make(number).wakeup(), host=host)


def test_hosts_take_turns() -> None:
    """The queue serves hosts round robin, and each host's wake-ups in order."""
    queue = FairQueue(100)
    queue.put(
        [
            wakeup_for("a", 1),
            wakeup_for("a", 2),
            wakeup_for("a", 3),
            wakeup_for("b", 4),
            wakeup_for("c", 5),
        ]
    )
    taken = [queue.take() for _ in range(5)]
    assert taken == [
        wakeup_for("a", 1),
        wakeup_for("b", 4),
        wakeup_for("c", 5),
        wakeup_for("a", 2),
        wakeup_for("a", 3),
    ]
    assert queue.size == 0


def under_way(queue: FairQueue, *hosts: str) -> dict[str, int]:
    """Return the senders of each host, when hosts with many wake-ups come one after the other."""
    for host in hosts:
        queue.put([wakeup_for(host, number) for number in range(100)])
        while queue.take() is not None:
            pass
    return dict(queue._under_way)


def test_a_hanging_host_leaves_half_of_the_senders() -> None:
    """One hanging host takes half of the senders, the next one half of the rest, and so on."""
    assert under_way(FairQueue(64), "a") == {"a": 32}
    assert under_way(FairQueue(64), "a", "b") == {"a": 32, "b": 16}
    many = under_way(FairQueue(64), *"abcdefg")
    assert many == {"a": 32, "b": 16, "c": 8, "d": 4, "e": 2, "f": 1, "g": 1}


def test_a_host_at_its_limit_continues_when_a_sender_is_free() -> None:
    """A host at its limit gets a sender again after one was given back."""
    queue = FairQueue(2)
    queue.put([wakeup_for("a", number) for number in range(3)])
    first = queue.take()
    assert first is not None
    assert queue.take() is None  # one of two is free, and one is under way
    queue.done(first)
    assert queue.take() == wakeup_for("a", 1)


def test_closing_a_queue_waits_for_all_senders() -> None:
    """A closed queue gives out no wake-ups; `close` returns when all senders were given back."""
    queue = FairQueue(4)
    queue.put([wakeup_for(host) for host in "abc"])
    taken = [wakeup for wakeup in (queue.take(), queue.take()) if wakeup is not None]
    closing = threading.Thread(target=queue.close, daemon=True)
    closing.start()
    wait_until(lambda: queue._closed)
    assert queue.take() is None
    for wakeup in taken:
        assert closing.is_alive()
        queue.done(wakeup)
    closing.join(10)
    assert not closing.is_alive()


def test_a_hanging_host_does_not_block_other_hosts(
    store: SqliteTimerStore, hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers of other hosts fire while one host hangs, even those that are due later.

    When the host answers again, all of its own timers fire.
    """
    for name, value in (("HEAP_LIMIT", 8), ("MAX_SENDERS", 4)):
        monkeypatch.setattr(scheduler, name, value)
    monkeypatch.setattr(fair_queue, "MAX_QUEUED_PER_HOST", 4)
    for name in ("BACKLOG_WAIT", "MAX_WAIT"):  # shorter, because there are few timers
        monkeypatch.setattr(scheduler, name, 0.01)
    hanging = [
        replace(make(number, number * SECOND), url="https://hangs.example/")
        for number in range(1, 60)
    ]
    healthy = [make(number, number * SECOND) for number in range(60, 65)]
    for timer in [*hanging, *healthy]:
        store.add(timer)
    clock.forward(1000)
    heap_scheduler, answers = HeapScheduler(store, hub, clock), threading.Event()
    sent: set[str] = set()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        claimed = store.claim(wakeup, clock.now, ends_at)
        if claimed is not None and wakeup.host == "hangs.example":
            run_in_thread(lambda: answers.wait(30))
        if claimed is not None:
            sent.add(wakeup.id)

    heap_scheduler.start(deliver, lambda: False)
    try:
        wait_until(lambda: {timer.id for timer in healthy} <= sent)
        assert len(heap_scheduler._due._waiting["hangs.example"]) <= 4
        answers.set()
        wait_until(lambda: {timer.id for timer in hanging} <= sent)
    finally:
        answers.set()
        heap_scheduler.stop()


def test_rereading_starts_with_an_empty_heap(
    store: SqliteTimerStore, hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers far in the future do not stop the refill from reading due timers again."""
    monkeypatch.setattr(scheduler, "HEAP_LIMIT", 8)
    heap_scheduler = HeapScheduler(store, hub, clock)
    for number in range(6):
        store.add(make(number, timedelta(days=1)))
    heap_scheduler.refill()
    for number in range(6, 26):
        store.add(make(number, SECOND))
    clock.forward(10)
    found = 0
    heap_scheduler._reread_all()
    while heap_scheduler._low.is_set():
        heap_scheduler._low.clear()
        heap_scheduler.refill()
        found += len(heap_scheduler.pop_due()[0])
    assert found == 20


def test_a_wakeup_is_tried_again_while_the_store_is_unavailable(
    heap_scheduler: HeapScheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wake-up comes again a second after the store was unavailable."""
    faults = [Unavailable("disk"), Unavailable("disk")]
    delivered: list[Wakeup] = []

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        delivered.append(wakeup)
        if faults:
            raise faults.pop()

    heap_scheduler.start(deliver, lambda: False)
    try:
        heap_scheduler.schedule(make(1, -SECOND))
        for count in (1, 2, 3):
            wait_until(lambda count=count: len(delivered) == count)  # type: ignore[misc]
            clock.forward(1.1)
    finally:
        heap_scheduler.stop()
    assert len(delivered) == 3


def test_wakeups_from_the_store_have_their_host(
    store: SqliteTimerStore, hub: Hub, clock: Clock
) -> None:
    """A wake-up that was read from the store has the host of its URL."""
    (added,) = add(store, range(1, 2))
    heap_scheduler = HeapScheduler(store, hub, clock)
    heap_scheduler.refill()
    assert heap_scheduler._heap[0][1] == added.wakeup()
    assert added.wakeup().host == "example.com"


def test_refills_go_on_after_a_failure(
    store: SqliteTimerStore, hub: Hub, clock: Clock, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed refill is tried again, and all stored timers fire."""
    monkeypatch.setattr(scheduler, "MAX_WAIT", 0.01)
    added = add(store, range(1, 40))
    heap_scheduler = HeapScheduler(store, hub, clock)
    clock.forward(1000)
    faults = [Unavailable("disk"), Unavailable("disk")]
    read, fired = store.waiting, set()

    def waiting(after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        if after != scheduler._BEGINNING and faults:
            raise faults.pop()
        return read(after, limit)

    monkeypatch.setattr(store, "waiting", waiting)
    heap_scheduler.start(lambda wakeup, ends_at: fired.add(wakeup.id), lambda: False)
    wait_until(lambda: len(fired) == len(added))
    heap_scheduler.stop()
    assert faults == []


def test_is_behind_when_a_timer_is_late(heap_scheduler: HeapScheduler, clock: Clock) -> None:
    """A timer that is just due is no backlog; a timer late by BEHIND_AFTER is."""
    assert not heap_scheduler.is_behind()
    heap_scheduler.schedule(make(1, 10 * SECOND))
    clock.forward(10.5)
    assert not heap_scheduler.is_behind()
    clock.forward(1)
    assert heap_scheduler.is_behind()


Deliver = Callable[[Wakeup, datetime], None]


@pytest.fixture
def running(heap_scheduler: HeapScheduler) -> Iterator[Callable[..., HeapScheduler]]:
    """Start the scheduler's threads with a given `deliver`; stop them after the test."""

    def start(deliver: Deliver, upkeep: Callable[[], bool] = lambda: False) -> HeapScheduler:
        heap_scheduler.start(deliver, upkeep)
        return heap_scheduler

    yield start
    heap_scheduler.stop()


def test_webhooks_are_sent_concurrently(running: Callable[..., HeapScheduler]) -> None:
    """A receiver that hangs does not delay another timer."""
    hang, other = threading.Event(), threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        if wakeup.id == make(1).id:
            run_in_thread(lambda: hang.wait(10))
        else:
            other.set()

    heap_scheduler = running(deliver)
    heap_scheduler.schedule(make(1, -SECOND))
    heap_scheduler.schedule(make(2, timedelta(0)))
    assert other.wait(10)
    hang.set()


@pytest.mark.parametrize("fault", [Unavailable("disk"), RuntimeError("bug")])
def test_a_failed_delivery_gives_back_its_sender(
    running: Callable[..., HeapScheduler],
    heap_scheduler: HeapScheduler,
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a delivery that raises, its sender makes the next one."""
    monkeypatch.setattr(heap_scheduler, "_due", FairQueue(1))
    done = threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        if wakeup.id == make(1).id:
            raise fault
        done.set()

    running(deliver)
    heap_scheduler.schedule(make(1, -SECOND))
    heap_scheduler.schedule(make(2, timedelta(0)))
    assert done.wait(10)


def test_stop_waits_for_webhooks_under_way(
    heap_scheduler: HeapScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping finishes the POST under way and starts no queued one."""
    monkeypatch.setattr(heap_scheduler, "_due", FairQueue(1))
    started, finish = threading.Event(), threading.Event()
    count: list[Wakeup] = []

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        started.set()
        run_in_thread(lambda: finish.wait(10))
        count.append(wakeup)

    heap_scheduler.start(deliver, lambda: False)
    heap_scheduler.schedule(make(1, -SECOND))
    assert started.wait(10)
    heap_scheduler.schedule(make(2, -SECOND))
    wait_until(lambda: heap_scheduler._due.size == 1)
    stopper = threading.Thread(target=heap_scheduler.stop)
    stopper.start()
    assert heap_scheduler._stopping.wait(10)
    finish.set()
    stopper.join()
    assert count == [make(1, -SECOND).wakeup()]


def test_sweeps_go_on_after_a_failure(
    running: Callable[..., HeapScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed sweep is tried again at the next interval."""
    monkeypatch.setattr(scheduler, "UPKEEP_INTERVAL", 0.01)
    monkeypatch.setattr(scheduler, "MAX_WAIT", 0.01)
    done = threading.Event()
    faults: list[Exception] = [Unavailable("disk"), RuntimeError("bug")]

    def upkeep() -> bool:
        if faults:
            raise faults.pop()
        done.set()
        return True

    running(lambda wakeup, ends_at: None, upkeep)
    assert done.wait(10)


def test_check_fails_when_the_loop_is_stuck(heap_scheduler: HeapScheduler) -> None:
    """A scheduler without a recent heartbeat fails its check."""
    heap_scheduler.check()
    heap_scheduler._alive_at -= scheduler.HEARTBEAT_TIMEOUT + 1
    with pytest.raises(Unavailable):
        heap_scheduler.check()


def test_check_fails_when_the_senders_are_stuck(running: Callable[..., HeapScheduler]) -> None:
    """A scheduler that releases timers but sends no webhooks fails its check."""
    started, go_on = threading.Event(), threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        started.set()
        go_on.wait(30)

    heap_scheduler = running(deliver)
    heap_scheduler.schedule(make(1, -SECOND))
    assert started.wait(10)
    heap_scheduler._alive_at = long_ago = heap_scheduler._alive_at - scheduler.HEARTBEAT_TIMEOUT - 1
    for waiting in (1, 2):
        heap_scheduler.schedule(make(1 + waiting, -SECOND))
        wait_until(lambda: heap_scheduler._due.size == waiting)  # noqa: B023  # it is called here
    with pytest.raises(Unavailable):
        heap_scheduler.check()
    go_on.set()
    wait_until(lambda: heap_scheduler._alive_at > long_ago)
    heap_scheduler.check()


def test_no_clock_ends_a_delivery(running: Callable[..., HeapScheduler], clock: Clock) -> None:
    """Each delivery may last as long as the process: its end is always LEASE_END."""
    ends: list[datetime] = []
    done = threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        ends.append(ends_at)
        done.set()

    running(deliver).schedule(make(1, -SECOND))
    assert done.wait(10)
    assert ends == [scheduler.LEASE_END]


def test_heap_and_store_order_timers_alike(store: SqliteTimerStore) -> None:
    """A position means the same in the heap and in the store; the horizon depends on it."""
    timer = make(7, timedelta(seconds=3, microseconds=141))
    store.add(timer)
    assert store.waiting((0, ""), 1) == [(scheduler._position(timer.wakeup()), timer.wakeup())]
    assert timer.wakeup().due_at == timer.wake_at
