"""Claims of the standalone server: they last as long as their process, and no clock ends them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from chalicelib.core.errors import Unavailable
from chalicelib.core.retry import WORKER_LOST
from chalicelib.core.targets import Targets
from chalicelib.core.timer import Status, Timer, Webhook
from standalone.greenlets import Hub, run_in_thread
from standalone.scheduler import LEASE_END, HeapScheduler
from standalone.settings import Settings
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.contracts.store import SECOND, make
from tests.support.fakes import START, Clock, FakeSender, created
from tests.support.http import running
from tests.support.processes import wait_until
from tests.support.service import Service

HOUR = 3600.0
DAY = 24 * HOUR
STEPS = [1.0, HOUR, 25 * HOUR, 400 * DAY, -1.0, -HOUR, -400 * DAY]
"""Seconds by which a clock is stepped, or for which a machine is suspended."""

URL = "http://127.0.0.1:9/"


class Delivering:
    """A store, a heap scheduler and a worker on one clock; `during` runs while a webhook is sent.

    The test calls the sweep.
    """

    def __init__(self, store: SqliteTimerStore, hub: Hub) -> None:
        self.clock = Clock()
        self.store = store
        self.sender = FakeSender()
        self.sender.during = lambda: run_in_thread(self._during)
        self.scheduler = HeapScheduler(store, hub, self.clock)
        self.service = Service(
            store,
            self.scheduler,
            self.sender,
            clock=self.clock,
            new_id=lambda: make(1).id,
            pause=lambda seconds: None,
        )
        self.during: Callable[[], object] = lambda: None

    def _during(self) -> None:
        self.during()

    def sweep(self) -> None:
        self.service.sweep(self.clock.now + timedelta(minutes=1))

    def deliver(self, until: Callable[[Timer], bool]) -> Timer:
        """Create a timer that is due; wait until it is as wanted; return it."""
        timer = created(self.service, Webhook(url=URL))

        wait_until(lambda: until(stored(self.store, timer)))
        return stored(self.store, timer)


def stored(store: SqliteTimerStore, timer: Timer) -> Timer:
    """Return the timer as last written."""
    found = store.get(timer.tenant, timer.id)
    assert found is not None
    return found


@pytest.fixture
def delivering(tmp_path: Path, hub: Hub) -> Iterator[Delivering]:
    with closing(SqliteTimerStore(tmp_path / "timers.db")) as store:
        made = Delivering(store, hub)
        made.scheduler.start(made.service.deliver, lambda: False)
        yield made
        made.scheduler.stop()


@pytest.mark.parametrize("seconds", STEPS)
def test_a_stepped_clock_repeats_no_webhook(delivering: Delivering, seconds: float) -> None:
    """A clock step while a webhook is sent causes no second one, although sweeps run."""

    def step() -> None:
        delivering.clock.forward(seconds)
        delivering.sweep()

    delivering.during = step
    timer = delivering.deliver(lambda timer: timer.status is Status.DELIVERED)
    delivering.sweep()
    assert len(delivering.sender.sent) == len(timer.attempts) == 1


@pytest.mark.parametrize("seconds", STEPS)
def test_a_stepped_clock_loses_no_outcome(
    delivering: Delivering, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome that can't be stored at once is stored later, even if the clock is stepped."""
    faults = [Unavailable("disk"), Unavailable("disk")]
    write = delivering.store.replace

    def failing(timer: Timer, adding: Timer | None = None) -> bool:
        if faults:
            delivering.clock.forward(seconds)
            raise faults.pop()
        return write(timer, adding)

    monkeypatch.setattr(delivering.store, "replace", failing)
    delivering.deliver(lambda timer: timer.status is Status.DELIVERED)
    assert faults == []
    assert len(delivering.sender.sent) == 1


def test_a_crash_of_the_sender_gives_up_the_claim(delivering: Delivering) -> None:
    """An unexpected exception is a failed attempt: the next one follows after a backoff."""

    def crash() -> None:
        raise RuntimeError("bug")

    delivering.during = crash
    timer = delivering.deliver(lambda timer: timer.status is Status.RETRYING)
    assert [attempt.outcome.error for attempt in timer.attempts] == ["worker lost"]
    assert timer.due_at > delivering.clock.now
    delivering.during = lambda: None
    delivering.clock.forward(HOUR)
    delivering.scheduler.requeue([timer.wakeup()])
    wait_until(lambda: len(delivering.sender.sent) == 2)


def test_a_claim_is_not_read_as_a_waiting_timer(delivering: Delivering) -> None:
    """A refill reads no claimed timers, which would stay in the heap."""
    seen: list[object] = []
    delivering.during = lambda: seen.extend(delivering.store.waiting((0, ""), 10))
    delivering.deliver(lambda timer: timer.status is Status.DELIVERED)
    assert seen == []


@pytest.mark.parametrize("lease_end", [LEASE_END, START + timedelta(days=1)])
def test_a_start_reclaims_the_claims_of_a_dead_process(tmp_path: Path, lease_end: datetime) -> None:
    """A start reclaims every claim at once, also those of versions with a shorter lease."""
    store = SqliteTimerStore(tmp_path / "timers.db")
    timer = replace(make(1, -SECOND), url="http://10.0.0.1/")  # refused without a connection
    store.add(timer)
    assert store.claim(timer.wakeup(), START, lease_end)
    with running(Settings("127.0.0.1", 0, tmp_path / "timers.db", Targets()), store):
        wait_until(lambda: len(stored(store, timer).attempts) == 2)
        first, _ = stored(store, timer).attempts
    assert first.outcome == WORKER_LOST
