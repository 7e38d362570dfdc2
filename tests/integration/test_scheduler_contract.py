"""The scheduler contract, on AWS's scheduler, the standalone server's, and the fake."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ReadTimeoutError

from chalicelib.aws import scheduler as aws_module
from chalicelib.aws.handlers import decode_wakeup
from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import Wakeup
from standalone.greenlets import Hub
from standalone.scheduler import HEARTBEAT_TIMEOUT, HeapScheduler
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.contracts.scheduler import SchedulerContract, Timeline
from tests.contracts.store import make
from tests.support.aws import account
from tests.support.cloud import Cloud, scheduler_of
from tests.support.fakes import Clock, FakeScheduler

OVERDUE = timedelta(minutes=-1)


class AwsTimeline(Timeline):
    """Schedules and messages that fire at their time; `fire` requeues each wake-up."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.scheduler = scheduler_of(cloud.aws, cloud.clock)

    def wakeups_by(self, time: datetime) -> list[Wakeup]:
        delivered: list[Wakeup] = []
        while (event := self._cloud.next_event()) is not None and event <= time:
            self._cloud.clock.now = max(self._cloud.clock.now, event)
            self.scheduler.requeue([decode_wakeup(it) for it in self._cloud.schedules_due()])
            delivered += [decode_wakeup(it) for it in self._cloud.messages_due()]
        self._cloud.clock.now = time
        return delivered

    def add_backlog(self) -> None:
        limit = aws_module.BACKLOG_LIMIT
        self.scheduler.requeue([make(number, OVERDUE).wakeup() for number in range(limit + 1)])

    def break_down(self) -> None:
        def fail(operation: str) -> None:
            raise ReadTimeoutError(endpoint_url="https://aws")

        self._cloud.aws.before = fail


class TestAwsScheduler(SchedulerContract):
    """The contract, on moto."""

    @pytest.fixture
    def timeline(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timeline]:
        monkeypatch.setattr(aws_module, "BACKLOG_LIMIT", 10)
        with account() as aws:
            yield AwsTimeline(Cloud(aws))


class HeapTimeline(Timeline):
    """A heap whose due wake-ups are popped by hand."""

    def __init__(self, store: SqliteTimerStore, hub: Hub) -> None:
        self._clock = Clock()
        self.scheduler: HeapScheduler = HeapScheduler(store, hub, self._clock)
        self.scheduler.refill()

    def wakeups_by(self, time: datetime) -> list[Wakeup]:
        self._clock.now = time
        delivered: list[Wakeup] = []
        while due := self.scheduler.pop_due()[0]:
            delivered += due
        return delivered

    def add_backlog(self) -> None:
        self.scheduler.schedule(make(2, OVERDUE))

    def break_down(self) -> None:
        self.scheduler._alive_at -= HEARTBEAT_TIMEOUT + 1


class TestHeapScheduler(SchedulerContract):
    """The contract, over an empty SQLite store."""

    @pytest.fixture
    def timeline(self, tmp_path: Path, hub: Hub) -> Iterator[Timeline]:
        with closing(SqliteTimerStore(tmp_path / "timers.db")) as store:
            yield HeapTimeline(store, hub)


class FakeTimeline(Timeline):
    """A fake that only remembers wake-ups; the due ones are taken by hand."""

    def __init__(self) -> None:
        self.scheduler: FakeScheduler = FakeScheduler()

    def wakeups_by(self, time: datetime) -> list[Wakeup]:
        wakeups = self.scheduler.wakeups
        self.scheduler.wakeups = [wakeup for wakeup in wakeups if wakeup.due_at > time]
        return [wakeup for wakeup in wakeups if wakeup.due_at <= time]

    def add_backlog(self) -> None:
        self.scheduler.behind = True

    def break_down(self) -> None:
        self.scheduler.failure = Unavailable("The fake scheduler is down.")


class TestFakeScheduler(SchedulerContract):
    """The contract, on a list."""

    @pytest.fixture
    def timeline(self) -> Timeline:
        return FakeTimeline()
