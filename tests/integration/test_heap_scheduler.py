"""The heap scheduler: what is in memory, how long it waits, who sends, what it survives."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import Timer, Wakeup
from standalone import scheduler as engine_module
from standalone.greenlets import run_in_thread
from standalone.scheduler import MAX_WAIT, FairQueue, HeapScheduler
from standalone.sqlite.timer_store import FiringPosition, SqliteTimerStore
from tests.contracts.store import SECOND, make
from tests.support.fakes import START, Clock
from tests.support.processes import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteTimerStore]:
    with closing(SqliteTimerStore(tmp_path / "timers.db")) as store:
        yield store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(store: SqliteTimerStore, clock: Clock) -> HeapScheduler:
    """An engine that has read its store and is not running: tests call its steps."""
    engine = HeapScheduler(store, clock)
    engine.refill()
    return engine


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let at most 10 rings be read into memory at once."""
    monkeypatch.setattr(engine_module, "HEAP_LIMIT", 10)
    return 10


def add(store: SqliteTimerStore, numbers: range) -> list[Timer]:
    """Store timers that are due so many seconds after START."""
    added = [make(number, number * SECOND) for number in numbers]
    for timer in added:
        store.add(timer)
    return added


def drain(engine: HeapScheduler, clock: Clock) -> list[Wakeup]:
    """Return all that fires from now on, reading on whenever memory runs low."""
    clock.forward(10**6)
    wakeups: list[Wakeup] = []
    while True:
        due, _ = engine.pop_due()
        wakeups += due
        if engine._low.is_set():
            engine._low.clear()
            engine.refill()
        elif not due:
            return wakeups


@pytest.mark.parametrize(
    ("delay", "wait"),
    [(0.25, 0.25), (0.000001, 0.000001), (0.999999, 0.999999), (1.5, MAX_WAIT), (-3, 0.0)],
)
def test_waits_exactly_until_the_next_deadline(
    engine: HeapScheduler, delay: float, wait: float
) -> None:
    """No polling period: the wait is the time that is left, at most LONGEST_WAIT."""
    engine.schedule(make(1, timedelta(seconds=500)))
    engine.schedule(make(2, timedelta(seconds=delay)))
    due, seconds = engine.pop_due()
    assert seconds == pytest.approx(wait, abs=1e-9)
    assert len(due) == (delay <= 0)


def test_waits_long_when_there_is_nothing(engine: HeapScheduler) -> None:
    """With no timer it looks again after LONGEST_WAIT."""
    assert engine.pop_due() == ([], MAX_WAIT)


def test_reends_at_the_deadline_and_not_before(engine: HeapScheduler, clock: Clock) -> None:
    """A ring leaves the heap at its moment, once."""
    timer = make(1, 10 * SECOND)
    engine.schedule(timer)
    clock.forward(9.999999)
    assert engine.pop_due()[0] == []
    clock.forward(0.000001)
    assert engine.pop_due()[0] == [timer.wakeup()]
    assert engine.pop_due()[0] == []


def test_clock_that_is_stepped_back_delays(engine: HeapScheduler, clock: Clock) -> None:
    """When the clock falls back, what is no longer due waits again."""
    engine.schedule(make(1, 10 * SECOND))
    clock.forward(9)
    engine.pop_due()
    clock.forward(-3600)
    assert engine.pop_due() == ([], MAX_WAIT)
    clock.forward(3601)
    assert len(engine.pop_due()[0]) == 1


def test_a_sooner_timer_wakes_the_waiting_thread(engine: HeapScheduler) -> None:
    """A timer that is due before all others is not waited past."""
    engine.schedule(make(1, 100 * SECOND))
    woken = threading.Event()
    waiting = threading.Event()

    def wait() -> None:
        with engine._changed:
            waiting.set()
            if engine._changed.wait(10):
                woken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert waiting.wait(10)
    engine.schedule(make(2, 50 * SECOND))
    waiter.join()
    assert woken.is_set()


def test_memory_is_bounded_on_reading(store: SqliteTimerStore, clock: Clock, small: int) -> None:
    """However many timers wait, at most HEAP are read."""
    add(store, range(1, 100))
    engine = HeapScheduler(store, clock)
    engine.refill()
    assert len(engine._heap) == small


def test_memory_is_bounded_on_creating(
    engine: HeapScheduler, store: SqliteTimerStore, small: int
) -> None:
    """However many timers are created, at most twice HEAP are kept in memory."""
    for timer in add(store, range(100, 0, -1)):
        engine.schedule(timer)
        assert len(engine._heap) <= 2 * small


@pytest.mark.parametrize("order", [range(1, 101), range(100, 0, -1)])
def test_everything_fires_in_order_through_a_small_memory(
    engine: HeapScheduler, store: SqliteTimerStore, clock: Clock, small: int, order: range
) -> None:
    """Whatever was left on disk is read in time: all fire, oldest first, each at least once."""
    for timer in add(store, order):
        engine.schedule(timer)
    wakeups = drain(engine, clock)
    assert list(dict.fromkeys(wakeups)) == [
        timer.wakeup() for timer in sorted(store.overdue(clock.now, 1000), key=lambda t: t.due_at)
    ]


def test_many_timers_of_one_moment_are_all_read(
    store: SqliteTimerStore, clock: Clock, small: int
) -> None:
    """More timers than fit in memory, due in the same microsecond, all fire."""
    for number in range(55):
        store.add(make(number, 5 * SECOND))
    engine = HeapScheduler(store, clock)
    engine.refill()
    assert len(set(drain(engine, clock))) == 55


@pytest.mark.parametrize("moment", ["before the read", "after the read"])
@pytest.mark.parametrize("delay", [5, 25, 1000])
def test_no_timer_falls_between_reading_and_creating(
    store: SqliteTimerStore,
    clock: Clock,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    delay: int,
) -> None:
    """A timer created while the refill reads, before or after its rows are fetched, fires."""
    add(store, range(10, 40))
    engine = HeapScheduler(store, clock)
    late = make(9999, delay * SECOND)
    read = store.waiting

    def create() -> None:
        store.add(late)
        engine.schedule(late)

    def waiting(after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        if moment == "before the read":
            create()
        rows = read(after, limit)
        if moment == "after the read":
            create()
        monkeypatch.undo()
        monkeypatch.setattr(engine_module, "HEAP_LIMIT", small)
        return rows

    monkeypatch.setattr(store, "waiting", waiting)
    engine.refill()
    assert late.wakeup() in drain(engine, clock)


def test_a_refill_that_fails_is_done_again(
    store: SqliteTimerStore, clock: Clock, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store can't be read for a moment, nothing is skipped."""
    added = add(store, range(1, 40))
    engine = HeapScheduler(store, clock)

    def waiting(after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        raise Unavailable("The database is locked.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "waiting", waiting)
        with pytest.raises(Unavailable):
            engine.refill()
    engine.refill()
    assert set(drain(engine, clock)) == {timer.wakeup() for timer in added}


def test_two_generations_of_one_moment_fit_side_by_side(
    engine: HeapScheduler, clock: Clock
) -> None:
    """A timer rescheduled to the moment it had is in the heap twice; the store decides."""
    timer = make(1, 10 * SECOND)
    moved = timer.change(timer, timer.deadline)
    for it in (make(2, 5 * SECOND), timer, moved, moved):
        engine.schedule(it)
    clock.forward(20)
    assert engine.pop_due()[0][1:] == [timer.wakeup(), moved.wakeup(), moved.wakeup()]


def test_is_behind_while_rings_wait_for_a_sender(engine: HeapScheduler) -> None:
    """What is released and not taken yet is a backlog: the sweep must not ring for it."""
    assert not engine.is_behind()
    engine._due.put([make(1).wakeup()])
    assert engine.is_behind()


def test_check_notices_a_loop_that_stands(engine: HeapScheduler) -> None:
    """Without a sign of life from the loop that fires, timers do not fire, however many wait."""
    engine._due.put([make(1).wakeup()])
    engine.check()
    engine._alive_at -= engine_module.HEARTBEAT_TIMEOUT + 1
    with pytest.raises(Unavailable):
        engine.check()


def ring_to(host: str, number: int = 1) -> Wakeup:
    return replace(make(number).wakeup(), host=host)


def test_hosts_take_turns() -> None:
    """One ring of each host after the other, each host's in their order."""
    turns = FairQueue(100)
    turns.put([ring_to("a", 1), ring_to("a", 2), ring_to("a", 3), ring_to("b", 4), ring_to("c", 5)])
    taken = [turns.take() for _ in range(5)]
    assert taken == [
        ring_to("a", 1), ring_to("b", 4), ring_to("c", 5), ring_to("a", 2), ring_to("a", 3)
    ]  # fmt: skip
    assert turns.size == 0


def under_way(turns: FairQueue, *hosts: str) -> dict[str, int]:
    """Return how many senders the hosts get that have any number of rings, one after the other."""
    for host in hosts:
        turns.put([ring_to(host, number) for number in range(100)])
        while turns.take() is not None:
            pass
    return dict(turns._under_way)


def test_a_host_that_hangs_leaves_half_to_the_others() -> None:
    """… and the next one half of that: however many hang, there is one more sender for a while."""
    assert under_way(FairQueue(64), "a") == {"a": 32}
    assert under_way(FairQueue(64), "a", "b") == {"a": 32, "b": 16}
    many = under_way(FairQueue(64), *"abcdefg")
    assert many == {"a": 32, "b": 16, "c": 8, "d": 4, "e": 2, "f": 1, "g": 1}


def test_a_sender_that_is_done_serves_who_may_be_served() -> None:
    """A host that may have no further sender has one again once one was given back."""
    turns = FairQueue(2)
    turns.put([ring_to("a", number) for number in range(3)])
    first = turns.take()
    assert first is not None
    assert turns.take() is None  # one of two is free, and one is under way
    turns.done(first)
    assert turns.take() == ring_to("a", 1)


def test_turns_are_over_when_all_that_was_taken_is_done() -> None:
    """Closed turns hand out nothing more, and are over with the last ring under way."""
    turns = FairQueue(4)
    turns.put([ring_to(host) for host in "abc"])
    taken = [wakeup for wakeup in (turns.take(), turns.take()) if wakeup is not None]
    assert not turns.is_over()
    turns.close()
    assert turns.take() is None
    for wakeup in taken:
        assert not turns.is_over()
        turns.done(wakeup)
    assert turns.is_over()


def test_a_crowd_for_one_host_is_no_wall(
    store: SqliteTimerStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many timers are due for a host that hangs, those for others get by, also those that
    are due later; and once it answers, none of its own was forgotten."""
    for name, value in (("HEAP_LIMIT", 8), ("MAX_QUEUED_PER_HOST", 4), ("MAX_SENDERS", 4)):
        monkeypatch.setattr(engine_module, name, value)
    for name in ("BACKLOG_WAIT", "MAX_WAIT"):  # as short as the crowd is small
        monkeypatch.setattr(engine_module, name, 0.01)
    hanging = [
        replace(make(number, number * SECOND), url="https://hangs.example/")
        for number in range(1, 60)
    ]
    healthy = [make(number, number * SECOND) for number in range(60, 65)]
    for timer in [*hanging, *healthy]:
        store.add(timer)
    clock.forward(1000)
    engine, answers = HeapScheduler(store, clock), threading.Event()
    sent: set[str] = set()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        claimed = store.claim(wakeup, clock.now, ends_at)
        if claimed is not None and wakeup.host == "hangs.example":
            run_in_thread(lambda: answers.wait(30))
        if claimed is not None:
            sent.add(wakeup.id)

    engine.start(deliver, lambda: False)
    try:
        wait_until(lambda: {timer.id for timer in healthy} <= sent)
        assert len(engine._due._waiting["hangs.example"]) <= 4
        answers.set()
        wait_until(lambda: {timer.id for timer in hanging} <= sent)
    finally:
        answers.set()
        engine.stop()


def test_what_is_far_keeps_nothing_from_being_read_again(
    store: SqliteTimerStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading begins anew with an empty heap: timers of another day do not stand for those that are
    due, and were turned away."""
    monkeypatch.setattr(engine_module, "HEAP_LIMIT", 8)
    engine = HeapScheduler(store, clock)
    for number in range(6):
        store.add(make(number, timedelta(days=1)))
    engine.refill()
    for number in range(6, 26):
        store.add(make(number, SECOND))
    clock.forward(10)
    found = 0
    engine._begin_anew()
    while engine._low.is_set():
        engine._low.clear()
        engine.refill()
        found += len(engine.pop_due()[0])
    assert found == 20


def test_what_could_not_be_answered_comes_again(
    engine: HeapScheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that does not answer for a moment costs a second, whatever else is going on."""
    faults = [Unavailable("disk"), Unavailable("disk")]
    rung_for: list[Wakeup] = []

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        rung_for.append(wakeup)
        if faults:
            raise faults.pop()

    engine.start(deliver, lambda: False)
    try:
        engine.schedule(make(1, -SECOND))
        for count in (1, 2, 3):
            wait_until(lambda count=count: len(rung_for) == count)  # type: ignore[misc]
            clock.forward(1.1)
    finally:
        engine.stop()
    assert len(rung_for) == 3


def test_rings_of_the_store_know_their_host(store: SqliteTimerStore, clock: Clock) -> None:
    """What was read from disk takes its turn like what was just set."""
    (added,) = add(store, range(1, 2))
    engine = HeapScheduler(store, clock)
    engine.refill()
    assert engine._heap[0][1] == added.wakeup()
    assert added.wakeup().host == "example.com"


def test_fill_goes_on_when_it_fails(
    store: SqliteTimerStore, clock: Clock, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refill that fails is tried again, and all that waits on disk fires."""
    monkeypatch.setattr(engine_module, "MAX_WAIT", 0.01)
    added = add(store, range(1, 40))
    engine = HeapScheduler(store, clock)
    clock.forward(1000)
    faults = [Unavailable("disk"), Unavailable("disk")]
    read, fired = store.waiting, set()

    def waiting(after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        if after != engine_module._BEGINNING and faults:
            raise faults.pop()
        return read(after, limit)

    monkeypatch.setattr(store, "waiting", waiting)
    engine.start(lambda wakeup, ends_at: fired.add(wakeup.id), lambda: False)
    wait_until(lambda: len(fired) == len(added))
    engine.stop()
    assert faults == []


def test_is_behind_only_with_a_real_backlog(engine: HeapScheduler, clock: Clock) -> None:
    """What is just due is no backlog; what has been due for a while is."""
    assert not engine.is_behind()
    engine.schedule(make(1, 10 * SECOND))
    clock.forward(10.5)
    assert not engine.is_behind()
    clock.forward(1)
    assert engine.is_behind()


Deliver = Callable[[Wakeup, datetime], None]


@pytest.fixture
def running(engine: HeapScheduler) -> Iterator[Callable[..., HeapScheduler]]:
    """Start the engine's threads with a given `deliver`; stop them in the end."""

    def start(deliver: Deliver, upkeep: Callable[[], bool] = lambda: False) -> HeapScheduler:
        engine.start(deliver, upkeep)
        return engine

    yield start
    engine.stop()


def test_senders_work_side_by_side(running: Callable[..., HeapScheduler]) -> None:
    """A receiver that hangs does not keep another timer waiting."""
    hang, other = threading.Event(), threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        if wakeup.id == make(1).id:
            run_in_thread(lambda: hang.wait(10))
        else:
            other.set()

    engine = running(deliver)
    engine.schedule(make(1, -SECOND))
    engine.schedule(make(2, timedelta(0)))
    assert other.wait(10)
    hang.set()


@pytest.mark.parametrize("fault", [Unavailable("disk"), RuntimeError("bug")])
def test_a_sender_survives_what_goes_wrong(
    running: Callable[..., HeapScheduler],
    engine: HeapScheduler,
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A delivery that breaks gives back its sender, and the next one is made."""
    monkeypatch.setattr(engine, "_due", FairQueue(1))
    done = threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        if wakeup.id == make(1).id:
            raise fault
        done.set()

    running(deliver)
    engine.schedule(make(1, -SECOND))
    engine.schedule(make(2, timedelta(0)))
    assert done.wait(10)


def test_stop_waits_for_what_is_being_sent(
    engine: HeapScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping lets a POST under way finish and starts none that waits for a sender."""
    monkeypatch.setattr(engine, "_due", FairQueue(1))
    started, finish = threading.Event(), threading.Event()
    count: list[Wakeup] = []

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        started.set()
        run_in_thread(lambda: finish.wait(10))
        count.append(wakeup)

    engine.start(deliver, lambda: False)
    engine.schedule(make(1, -SECOND))
    assert started.wait(10)
    engine.schedule(make(2, -SECOND))
    wait_until(lambda: engine._due.size == 1)
    stopper = threading.Thread(target=engine.stop)
    stopper.start()
    assert engine._stopping.wait(10)
    finish.set()
    stopper.join()
    assert count == [make(1, -SECOND).wakeup()]


def test_upkeep_goes_on_when_it_fails(
    running: Callable[..., HeapScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that can't be done is done at the next turn."""
    monkeypatch.setattr(engine_module, "SWEEP_INTERVAL", 0.01)
    monkeypatch.setattr(engine_module, "MAX_WAIT", 0.01)
    done = threading.Event()
    faults: list[Exception] = [Unavailable("disk"), RuntimeError("bug")]

    def upkeep() -> bool:
        if faults:
            raise faults.pop()
        done.set()
        return True

    running(lambda wakeup, ends_at: None, upkeep)
    assert done.wait(10)


def test_check_tells_a_loop_that_is_stuck(engine: HeapScheduler) -> None:
    """An engine whose firing thread shows no sign of life fails its check."""
    engine.check()
    engine._alive_at -= engine_module.HEARTBEAT_TIMEOUT + 1
    with pytest.raises(Unavailable):
        engine.check()


def test_check_tells_senders_that_are_stuck(running: Callable[..., HeapScheduler]) -> None:
    """An engine that finds what is due, but whose webhooks do not go on, fails its check."""
    started, go_on = threading.Event(), threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        started.set()
        go_on.wait(30)

    engine = running(deliver)
    engine.schedule(make(1, -SECOND))
    assert started.wait(10)
    engine._alive_at = long_ago = engine._alive_at - engine_module.HEARTBEAT_TIMEOUT - 1
    for waiting in (1, 2):
        engine.schedule(make(1 + waiting, -SECOND))
        wait_until(lambda: engine._due.size == waiting)  # noqa: B023  # it is called here
    with pytest.raises(Unavailable):
        engine.check()
    go_on.set()
    wait_until(lambda: engine._alive_at > long_ago)
    engine.check()


def test_a_sender_has_time_for_every_attempt(
    running: Callable[..., HeapScheduler], clock: Clock
) -> None:
    """The engine says of each sender that it lives far longer than a POST may take."""
    ends: list[datetime] = []
    done = threading.Event()

    def deliver(wakeup: Wakeup, ends_at: datetime) -> None:
        ends.append(ends_at)
        done.set()

    running(deliver).schedule(make(1, -SECOND))
    assert done.wait(10)
    assert ends == [START + engine_module.LEASE]


def test_ring_position_is_that_of_the_store(store: SqliteTimerStore) -> None:
    """Memory and disk order timers alike, or the horizon would mean two things."""
    timer = make(7, timedelta(seconds=3, microseconds=141))
    store.add(timer)
    assert store.waiting((0, ""), 1) == [(engine_module._position(timer.wakeup()), timer.wakeup())]
    assert timer.wakeup().due_at == timer.wake_at
