"""Commands and worker, on fakes and a clock that only the tests move."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from chalicelib.core import retry
from chalicelib.core.errors import (
    Conflict,
    DeliveryUnderWay,
    InvalidRequest,
    ScheduleRefused,
    TimerNotFound,
    Unavailable,
)
from chalicelib.core.pagination import Cursor, Page, TimerFilter, cursor_of
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    RETENTION,
    WAITING,
    Outcome,
    RetryPolicy,
    Status,
    Timer,
    TimerSpec,
    Wakeup,
    Webhook,
)
from chalicelib.service.commands import Created
from chalicelib.service.worker import (
    LEASE_MARGIN,
    MAX_EARLY_WAIT,
    SWEEP_BATCH_SIZE,
    SWEEP_COOLDOWN,
    SWEEP_GRACE,
)
from tests.support.fakes import NO_CONTENT, OnFakes, created

URL = "https://example.com/hook"
MINUTE = timedelta(minutes=1)
LEASE = timedelta(minutes=5)


class World(OnFakes):
    """A service on fakes, and the steps of a test."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = 0

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        self.clock.forward(seconds)

    def create(self, seconds: float = 60) -> Timer:
        return created(self.service, Webhook(url=URL), seconds)

    def read(self, timer: Timer) -> Timer:
        return self.service.get(DEFAULT_TENANT, timer.id)

    def cancel(self, timer: Timer) -> Timer:
        return self.service.cancel(DEFAULT_TENANT, timer.id)

    def wakeup(self, wakeup: Wakeup) -> None:
        self.service.deliver(wakeup, self.clock.now + LEASE)

    def sweep(self) -> int:
        return self.service.sweep(self.clock.now + MINUTE)

    def sent(self) -> list[str]:
        return [timer.id for timer, _ in self.sender.sent]


@pytest.fixture
def world() -> World:
    return World()


def test_create_stores_and_schedules(world: World) -> None:
    """A new timer is stored with its deadline, and scheduled."""
    timer = world.create(90)
    assert world.read(timer) == timer
    assert timer.deadline - timer.created_at == timedelta(seconds=90)
    assert world.scheduler.wakeups == [timer.wakeup()]


def test_create_fails_if_the_store_is_down(world: World) -> None:
    """Without a store, create raises and schedules nothing."""
    world.store.down = True
    with pytest.raises(Unavailable):
        world.create()
    assert world.scheduler.wakeups == []


def test_create_succeeds_if_the_scheduler_is_down(world: World) -> None:
    """A stored timer is created; the sweep schedules it once that works."""
    world.scheduler.failure = Unavailable("throttled")
    timer = world.create(3600)
    assert not world.read(timer).armed
    world.scheduler.failure = None
    world.clock.forward(SWEEP_GRACE.total_seconds() + 1)
    assert world.sweep() == 1
    assert world.read(timer).armed
    assert world.scheduler.wakeups == [timer.wakeup()]
    assert world.sweep() == 0


def test_create_is_rolled_back_if_the_schedule_is_refused(world: World) -> None:
    """A definite refusal removes the timer, so that the error is true."""
    world.scheduler.failure = ScheduleRefused("no access")
    with pytest.raises(ScheduleRefused):
        world.create()
    assert world.store.timers == {}


def test_other_tenants_timers_are_not_found(world: World) -> None:
    """Another tenant's timer is not found, as if it did not exist."""
    timer = world.create()
    for call in (world.service.get, world.service.cancel, world.service.retry):
        with pytest.raises(TimerNotFound):
            call("stranger", timer.id)


def test_expired_timers_are_not_found(world: World) -> None:
    """After its retention a finished timer is not found, even if it is still stored."""
    timer = world.cancel(world.create())
    world.clock.forward(RETENTION.total_seconds())
    with pytest.raises(TimerNotFound):
        world.read(timer)


def test_deliver_sends_and_records(world: World) -> None:
    """A due timer is sent once and delivered, with its lateness and outcome recorded."""
    timer = world.create(60)
    world.clock.forward(60.25)
    world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert after.status is Status.DELIVERED
    assert [(a.number, a.lateness, a.outcome) for a in after.attempts] == [(1, 0.25, NO_CONTENT)]


def test_repeated_wakeups_send_once(world: World) -> None:
    """A second wake-up of the same generation does nothing."""
    timer = world.create(0)
    for _ in range(3):
        world.wakeup(timer.wakeup())
    assert world.sent() == [timer.id]


def test_early_wakeups_are_requeued(world: World) -> None:
    """A wake-up long before its time is requeued, not sent and not dropped."""
    timer = world.create(60)
    world.clock.forward(60 - MAX_EARLY_WAIT.total_seconds() - 0.001)
    world.wakeup(timer.wakeup())
    assert world.sent() == []
    assert world.scheduler.wakeups == [timer.wakeup()] * 2


def test_worker_waits_for_a_wakeup_that_is_nearly_due(world: World) -> None:
    """The worker waits for a wake-up that is a few seconds early, and sends at its time."""
    timer = world.create(60)
    world.clock.forward(60 - MAX_EARLY_WAIT.total_seconds())
    world.wakeup(timer.wakeup())
    assert [at for _, at in world.sender.sent] == [timer.deadline]


@pytest.mark.parametrize("wake", [-300, 60])
def test_fire_requeues_waiting_timers(world: World, wake: int) -> None:
    """A schedule, early or backstop, puts the wake-up of a waiting timer on the queue."""
    timer = world.create(600)
    world.clock.forward(600 + wake)
    world.service.fire(timer.wakeup())
    assert world.scheduler.wakeups == [timer.wakeup()] * 2


def test_fire_ignores_timers_that_no_longer_wait(world: World) -> None:
    """A schedule of a finished, moved or unknown timer does nothing."""
    done, moved = world.create(0), world.create(60)
    world.wakeup(done.wakeup())
    world.service.change(DEFAULT_TENANT, moved.id, moved.deadline + MINUTE)
    world.scheduler.wakeups.clear()
    for wakeup in (done.wakeup(), moved.wakeup(), Wakeup("x", "default", 1, moved.deadline)):
        world.service.fire(wakeup)
    assert world.scheduler.wakeups == []


def test_deliver_checks_the_stored_due_time(world: World) -> None:
    """A wake-up that claims to be due before its timer is sends nothing."""
    timer = world.create(60)
    world.wakeup(Wakeup(timer.id, timer.tenant, timer.generation, world.clock.now))
    assert world.sent() == []
    assert world.read(timer) == timer


def test_deliver_ignores_stale_wakeups(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A repeated or stale wake-up, or one of a cancelled or unknown timer, is logged and
    ignored."""
    done, moved, gone = world.create(0), world.create(0), world.create(0)
    world.wakeup(done.wakeup())
    world.service.change(DEFAULT_TENANT, moved.id, moved.deadline)
    world.cancel(gone)
    caplog.set_level("INFO")
    caplog.clear()
    unknown = Wakeup("unknown", DEFAULT_TENANT, 1, world.clock.now)
    for wakeup in (done.wakeup(), moved.wakeup(), gone.wakeup(), unknown):
        world.wakeup(wakeup)
        world.service.fire(wakeup)
    assert world.sent() == [done.id]
    assert caplog.messages == ["wake-up ignored"] * 8


def test_a_permanent_failure_fails_the_timer(world: World) -> None:
    """A permanent failure leaves the timer failed, with the reason."""
    timer = world.create(0)
    world.sender.outcome = Outcome(error="refused target", detail="it is at 10.0.0.1")
    world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert (after.status, after.failure) == (Status.FAILED, "refused target: it is at 10.0.0.1")


def test_a_transient_failure_is_retried(world: World) -> None:
    """The retry waits for its share of the longest wait and has a schedule of its own; the old
    schedule is deleted."""
    timer = world.create(0)
    world.sender.outcome = Outcome(error="connect", detail="Connection refused")
    world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert (after.status, after.failure) == (Status.RETRYING, None)
    assert after.due_at == world.clock.now + timedelta(seconds=5)  # a chance of 0.5 of 10 s
    assert world.scheduler.wakeups[-1] == after.wakeup()
    assert world.scheduler.unscheduled == [timer.wakeup()]
    world.sender.outcome = NO_CONTENT
    world.clock.forward(5)
    world.wakeup(after.wakeup())
    assert world.read(timer).status is Status.DELIVERED


def test_attempts_are_bounded(world: World) -> None:
    """A receiver that never succeeds is given up after the policy's attempts."""
    timer = world.create(0)
    world.sender.outcome = Outcome(status=500)
    waits = []
    while (current := world.read(timer)).status in WAITING:
        world.clock.now = max(world.clock.now, current.due_at)
        world.wakeup(current.wakeup())
        waits.append((world.read(timer).due_at - world.clock.now).total_seconds())
    assert (current.status, current.failure) == (Status.FAILED, "HTTP 500")
    assert [attempt.number for attempt in current.attempts] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert waits[:-1] == [5, 20, 80, 320, 1280, 5120, 20480]


def test_cancel_wins_over_wakeups(world: World) -> None:
    """After a cancel returned, no wake-up sends anything, and the schedule is deleted."""
    timer = world.create(60)
    assert world.cancel(timer).status is Status.CANCELLED
    assert world.scheduler.unscheduled == [timer.wakeup()]
    world.clock.forward(61)
    world.wakeup(timer.wakeup())
    assert world.sent() == []


def test_cancel_may_be_repeated(world: World) -> None:
    """A second cancel returns the same, and deletes a schedule that the first could not."""
    timer = world.create(60)
    world.scheduler.failure = Unavailable("throttled")
    first = world.cancel(timer)
    world.scheduler.failure = None
    assert world.cancel(timer) == first
    assert world.scheduler.unscheduled == [timer.wakeup()]


def test_cancel_succeeds_if_the_schedule_stays(world: World) -> None:
    """The store decides: a schedule that is left over wakes nothing."""
    timer = world.create(60)
    world.scheduler.failure = Unavailable("throttled")
    assert world.cancel(timer).status is Status.CANCELLED


def test_cancel_conflicts_while_delivering(world: World) -> None:
    """During the POST a cancel is a conflict that may be repeated."""
    timer = world.create(0)
    refused: list[Exception] = []

    def cancel() -> None:
        with pytest.raises(DeliveryUnderWay) as caught:
            world.cancel(timer)
        refused.append(caught.value)

    world.sender.during = cancel
    world.wakeup(timer.wakeup())
    assert len(refused) == 1
    with pytest.raises(Conflict, match="delivered"):
        world.cancel(timer)


def test_a_new_deadline_replaces_the_old_one(world: World) -> None:
    """The old wake-up sends nothing, the new one sends, and the old schedule is deleted."""
    timer = world.create(60)
    moved = world.service.change(DEFAULT_TENANT, timer.id, timer.deadline + MINUTE)
    assert world.scheduler.wakeups[-1] == moved.wakeup()
    assert world.scheduler.unscheduled == [timer.wakeup()]
    world.clock.forward(120)
    world.wakeup(timer.wakeup())
    assert world.sent() == []
    world.wakeup(moved.wakeup())
    assert world.sent() == [timer.id]


def test_a_new_deadline_is_kept_if_the_scheduler_is_down(world: World) -> None:
    """The stored deadline counts; the sweep schedules it later."""
    timer = world.create(60)
    world.scheduler.failure = Unavailable("throttled")
    moved = world.service.change(DEFAULT_TENANT, timer.id, timer.deadline + MINUTE)
    assert world.read(timer).deadline == moved.deadline
    world.scheduler.failure = None
    world.clock.forward(SWEEP_GRACE.total_seconds() + 1)
    assert world.sweep() == 1
    assert world.scheduler.wakeups[-1] == moved.wakeup()


def test_retry_sends_a_failed_timer_again(world: World) -> None:
    """A retried timer is due at once, under the same id."""
    timer = world.create(0)
    world.sender.outcome = Outcome(status=404)
    world.wakeup(timer.wakeup())
    world.sender.outcome = NO_CONTENT
    again = world.service.retry(DEFAULT_TENANT, timer.id)
    world.wakeup(again.wakeup())
    after = world.read(timer)
    assert after.status is Status.DELIVERED
    assert [attempt.number for attempt in after.attempts] == [1, 2]
    with pytest.raises(Conflict):
        world.service.retry(DEFAULT_TENANT, timer.id)


def test_racing_changes_start_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that lost a race is decided again on the stored timer."""
    timer = world.create(60)
    real_replace = world.store.replace

    def replace(changed: Timer) -> bool:
        monkeypatch.undo()
        world.service.change(DEFAULT_TENANT, timer.id, timer.deadline + MINUTE)
        return real_replace(changed)

    monkeypatch.setattr(world.store, "replace", replace)
    assert world.cancel(timer).generation == 2
    assert world.read(timer).status is Status.CANCELLED


def test_stalled_worker_sends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with too little time left releases its claim and requeues the timer, without a
    POST."""
    timer = world.create(0)
    ends_at = world.clock.now + LEASE
    real_claim = world.store.claim

    def slow_claim(*args: object) -> Timer | None:
        claimed = real_claim(*args)  # type: ignore[arg-type]
        world.clock.now = (
            ends_at - timedelta(seconds=timer.timeout) - LEASE_MARGIN + timedelta(microseconds=1)
        )
        return claimed

    monkeypatch.setattr(world.store, "claim", slow_claim)
    world.service.deliver(timer.wakeup(), ends_at)
    assert world.sent() == []
    after = world.read(timer)
    assert (after.status, after.attempt, after.wake_at) == (Status.SCHEDULED, 0, timer.due_at)
    world.wakeup(world.scheduler.wakeups[-1])
    assert world.sent() == [timer.id]


def test_worker_without_its_lease_does_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose claim was reclaimed sends and changes nothing."""
    timer = world.create(0)
    real_claim = world.store.claim

    def slow_claim(*args: object) -> Timer | None:
        claimed = real_claim(*args)  # type: ignore[arg-type]
        monkeypatch.undo()
        world.clock.forward((LEASE + LEASE_MARGIN + SWEEP_GRACE).total_seconds() + 1)
        assert world.sweep() == 1
        return claimed

    monkeypatch.setattr(world.store, "claim", slow_claim)
    world.wakeup(timer.wakeup())
    assert world.sent() == []
    assert world.read(timer).generation == 2


def test_worker_past_its_lease_records_nothing(world: World) -> None:
    """A worker whose lease expired during the POST changes nothing: another one has taken over."""
    timer = world.create(0)

    def stall() -> None:
        world.sender.during = lambda: None
        world.clock.forward((LEASE + SWEEP_GRACE).total_seconds() + 6)
        assert world.sweep() == 1
        world.wakeup(world.scheduler.wakeups[-1])

    world.sender.during = stall
    world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert after.status is Status.DELIVERED
    assert [a.outcome for a in after.attempts] == [retry.WORKER_LOST, NO_CONTENT]


def test_clock_stepped_back_sends_nothing_early(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the clock steps back before the deadline between claim and POST, nothing is sent."""
    timer = world.create(60)
    world.clock.forward(60)
    real_claim = world.store.claim

    def claim(*args: object) -> Timer | None:
        claimed = real_claim(*args)  # type: ignore[arg-type]
        world.clock.forward(-1)
        return claimed

    monkeypatch.setattr(world.store, "claim", claim)
    world.wakeup(timer.wakeup())
    assert world.sent() == []
    monkeypatch.undo()
    world.clock.forward(1)
    world.wakeup(world.scheduler.wakeups[-1])
    assert world.sent() == [timer.id]


def test_outcome_is_recorded_after_an_outage(world: World) -> None:
    """If the store is down after the POST, the outcome is recorded once it is back: no second
    POST."""
    timer = world.create(0)

    def outage() -> None:
        world.store.down = True

    def pause(seconds: float) -> None:
        world.pause(seconds)
        world.store.down = world.pauses < 3

    world.sender.during = outage
    world.service.worker._pause = pause
    world.wakeup(timer.wakeup())
    assert world.pauses == 3
    assert world.read(timer).status is Status.DELIVERED
    assert world.sent() == [timer.id]


def test_outcome_is_given_up_with_the_lease(world: World) -> None:
    """When the lease ends before the store is back, the error escapes and the claim stays."""
    timer = world.create(0)

    def outage() -> None:
        world.store.down = True

    world.sender.during = outage
    with pytest.raises(Unavailable):
        world.wakeup(timer.wakeup())
    world.store.down = False
    assert world.read(timer).status is Status.DELIVERING


def test_sweep_leaves_punctual_timers_alone(world: World) -> None:
    """Timers that are overdue by less than the grace are not touched."""
    timer = world.create(60)
    world.clock.forward(60 + SWEEP_GRACE.total_seconds())
    assert world.sweep() == 0
    assert world.read(timer) == timer


def test_sweep_requeues_a_forgotten_timer_once(world: World) -> None:
    """A timer whose wake-up was lost is requeued, and then left alone for a while."""
    timer = world.create(60)
    world.scheduler.wakeups.clear()
    world.clock.forward(60 + SWEEP_GRACE.total_seconds() + 1)
    assert (world.sweep(), world.sweep()) == (1, 0)
    assert world.scheduler.wakeups == [timer.wakeup()]
    world.clock.forward((SWEEP_COOLDOWN + SWEEP_GRACE).total_seconds() + 6)
    assert world.sweep() == 1
    world.wakeup(world.scheduler.wakeups[-1])
    assert world.sent() == [timer.id]


def test_sweep_finds_more_than_one_batch(world: World) -> None:
    """One sweep requeues all overdue timers, oldest first."""
    created = [world.create(second) for second in range(SWEEP_BATCH_SIZE * 2 + 10)]
    world.scheduler.wakeups.clear()
    world.clock.forward(3600)
    assert world.sweep() == len(created)
    assert world.scheduler.wakeups == [timer.wakeup() for timer in created]


def test_sweep_adds_nothing_to_a_backlog(world: World) -> None:
    """While the scheduler is behind, only expired leases are reclaimed."""
    waiting, claimed = world.create(60), world.create(60)
    world.clock.forward(60)
    world.store.claim(claimed.wakeup(), world.clock.now, world.clock.now + MINUTE)
    world.scheduler.wakeups.clear()
    world.scheduler.behind = True
    world.clock.forward(3600)
    assert world.sweep() == 1
    assert [wakeup.id for wakeup in world.scheduler.wakeups] == [claimed.id]
    assert world.read(waiting).wake_at == waiting.wake_at


def test_sweep_reclaims_while_the_scheduler_is_down(world: World) -> None:
    """Expired leases are reclaimed although nothing can be scheduled, and no timer is forgotten."""
    claimed, unarmed = world.create(0), world.create(600)
    world.store.claim(claimed.wakeup(), world.clock.now, world.clock.now)
    world.store.replace(unarmed.mark_unarmed(world.clock.now))
    world.scheduler.failure = Unavailable("throttled")
    world.clock.forward(SWEEP_GRACE.total_seconds() + 1)
    with pytest.raises(Unavailable):
        world.sweep()
    assert world.read(claimed).status is Status.RETRYING
    world.scheduler.failure = None
    world.clock.forward((SWEEP_COOLDOWN + SWEEP_GRACE).total_seconds() + 1)
    world.sweep()
    assert world.read(unarmed).armed
    assert {wakeup.id for wakeup in world.scheduler.wakeups[-2:]} == {claimed.id, unarmed.id}


def test_sweep_schedules_an_unarmed_timer_once(world: World) -> None:
    """An overdue timer that was never scheduled is scheduled once."""
    timer = world.create(60)
    world.store.replace(timer.mark_unarmed(world.clock.now))
    world.scheduler.wakeups.clear()
    world.clock.forward(120)
    assert world.sweep() == 1
    assert world.scheduler.wakeups == [timer.wakeup()]


def test_overlapping_sweeps_requeue_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep moves `wake_at` before it requeues, so a sweep beside it finds nothing."""
    created = [world.create(60) for _ in range(3)]
    world.scheduler.wakeups.clear()
    world.clock.forward(120)
    real_requeue = world.scheduler.requeue

    def requeue(wakeups: Sequence[Wakeup]) -> None:
        monkeypatch.undo()
        assert world.sweep() == 0
        real_requeue(wakeups)

    monkeypatch.setattr(world.scheduler, "requeue", requeue)
    assert world.sweep() == 3
    assert world.scheduler.wakeups == [timer.wakeup() for timer in created]


@pytest.mark.parametrize("change", ["cancel", "deadline"])
def test_sweep_deletes_the_schedule_of_an_overtaken_timer(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A change between the sweep's write and its schedule leaves no stale schedule."""
    timer = world.create(3600)
    world.store.replace(timer.mark_unarmed(world.clock.now))
    world.clock.forward(60)
    real_schedule = world.scheduler.schedule

    def schedule(armed: Timer) -> None:
        monkeypatch.undo()
        if change == "cancel":
            world.cancel(timer)
        else:
            world.service.change(DEFAULT_TENANT, timer.id, timer.deadline + MINUTE)
        real_schedule(armed)

    monkeypatch.setattr(world.scheduler, "schedule", schedule)
    world.sweep()
    assert world.scheduler.unscheduled[-1] == timer.wakeup()


def test_a_timer_that_kills_its_workers_fails(world: World) -> None:
    """Each lost worker counts as an attempt, so attempts are bounded."""
    timer = world.create(0)
    rounds = 0
    while world.read(timer).status is not Status.FAILED:
        rounds += 1
        wakeup = world.scheduler.wakeups[-1]
        assert world.store.claim(wakeup, world.clock.now, world.clock.now + MINUTE)
        world.clock.forward((MINUTE + SWEEP_GRACE).total_seconds() + 6)
        world.sweep()
    assert rounds == timer.retry.max_attempts
    after = world.read(timer)
    assert after.failure is not None
    assert after.failure.startswith("worker lost")


@pytest.mark.parametrize("part", ["store", "scheduler"])
def test_check_covers_store_and_scheduler(world: World, part: str) -> None:
    """The check fails if the store or the scheduler does."""
    world.service.check()
    if part == "store":
        world.store.down = True
    else:
        world.scheduler.failure = Unavailable("stuck")
    with pytest.raises(Unavailable):
        world.service.check()


def failing(world: World, **fields: Any) -> Timer:
    """Return a timer that has failed."""
    webhook = Webhook(url=URL, on_failure="https://example.com/failed/{id}", **fields)
    timer = created(world.service, webhook)
    world.sender.outcome = Outcome(status=410, answer="gone")
    world.wakeup(timer.wakeup())
    world.sender.outcome = NO_CONTENT
    failed = world.read(timer)
    assert failed.status is Status.FAILED
    return failed


def notices(world: World, failed: Timer) -> list[Timer]:
    return [it for it in world.store.timers.values() if it.id != failed.id]


def test_on_failure_is_notified_by_a_timer(world: World) -> None:
    """The notice is due at once, holds the timer and its last attempt as JSON, is retried, and has
    no on_failure."""
    failed = failing(world, headers={"Authorization": "Bearer s3cr3t"})
    (notice,) = notices(world, failed)
    assert (notice.tenant, notice.status) == (failed.tenant, Status.SCHEDULED)
    assert notice.deadline == world.clock.now
    assert notice.target == f"https://example.com/failed/{failed.id}"
    assert (notice.method, notice.on_failure) == ("POST", None)
    assert notice.headers == {"Content-Type": "application/json"}
    told = json.loads(notice.body)
    assert told["type"] == "timer.failed"
    assert told["timer"]["id"] == failed.id
    assert told["timer"]["failure"] == "HTTP 410"
    assert told["last_attempt"]["answer"] == "gone"
    assert "s3cr3t" not in notice.body
    assert world.scheduler.wakeups[-1] == notice.wakeup()
    world.wakeup(notice.wakeup())
    assert world.read(notice).status is Status.DELIVERED


def test_a_failed_notice_notifies_nobody(world: World) -> None:
    """There is no chain of notices."""
    failed = failing(world)
    (notice,) = notices(world, failed)
    world.sender.outcome = Outcome(status=404)
    world.wakeup(notice.wakeup())
    assert world.read(notice).status is Status.FAILED
    assert notices(world, failed) == [world.read(notice)]


def test_a_failure_is_notified_once(world: World) -> None:
    """The same failure makes the same notice; a failure after a retry makes another."""
    failed = failing(world)
    (first,) = notices(world, failed)
    assert failed.failure_notice(first.body, world.clock.now).id == first.id
    world.sender.outcome = Outcome(status=410)
    again = world.service.retry(DEFAULT_TENANT, failed.id)
    world.wakeup(again.wakeup())
    assert len({it.id for it in notices(world, failed)}) == 2


def test_only_failures_notify(world: World) -> None:
    """Delivered, cancelled and retrying timers make no notice."""
    webhook = Webhook(url=URL, on_failure="https://example.com/failed")
    delivered, cancelled, retried = (created(world.service, webhook) for _ in range(3))
    world.wakeup(delivered.wakeup())
    world.service.cancel(DEFAULT_TENANT, cancelled.id)
    world.sender.outcome = Outcome(status=500)
    world.wakeup(retried.wakeup())
    assert len(world.store.timers) == 3


def test_a_lost_worker_at_the_last_attempt_notifies(world: World) -> None:
    """Reclaiming the last attempt stores the notice with the failure."""
    policy = RetryPolicy(max_attempts=1)
    webhook = Webhook(url=URL, on_failure="https://example.com/failed", retry=policy)
    timer = created(world.service, webhook)
    claimed = world.store.claim(timer.wakeup(), world.clock.now, world.clock.now)
    assert claimed is not None
    assert world.service.reclaim(claimed)
    (notice,) = notices(world, timer)
    assert json.loads(notice.body)["last_attempt"]["error"] == "worker lost"


def test_a_notice_that_can_not_be_scheduled_is_left_to_the_sweep(world: World) -> None:
    """The notice is stored with the failure, so it fires in any case."""
    webhook = Webhook(url=URL, on_failure="https://example.com/failed")
    timer = created(world.service, webhook)
    world.sender.outcome = Outcome(status=410)
    world.scheduler.failure = Unavailable("throttled")
    world.wakeup(timer.wakeup())
    (notice,) = notices(world, timer)
    assert not notice.armed


@pytest.mark.parametrize("host", ["", "elsewhere.example"])
def test_accepts_wakeups_of_earlier_versions(world: World, host: str) -> None:
    """A schedule of an earlier version has fewer fields and still wakes its timer."""
    timer = world.create(3600)
    world.scheduler.wakeups.clear()
    world.service.fire(replace(timer.wakeup(), host=host))
    assert [wakeup.id for wakeup in world.scheduler.wakeups] == [timer.id]


def test_a_webhook_that_was_not_sent_is_no_attempt(world: World) -> None:
    """If the sender can't begin, the claim is released, and the sweep requeues the timer."""

    def unable() -> None:
        raise Unavailable("the secrets")

    timer = world.create(0)
    world.sender.during = unable
    with pytest.raises(Unavailable):
        world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert (after.status, after.attempt, after.attempts) == (Status.SCHEDULED, 0, ())
    world.sender.during = lambda: None
    world.clock.forward(60)
    assert world.service.sweep(world.clock.now + timedelta(minutes=1)) == 1
    world.wakeup(world.scheduler.wakeups[-1])
    assert [attempt.number for attempt in world.read(timer).attempts] == [1]


@pytest.mark.parametrize(
    ("body", "kept"),
    [("x" * 60_000, True), ('"' * 30_000, True), ('"' * 60_000, False), ("\x01" * 60_000, False)],
)
def test_a_notice_fits_with_any_body(world: World, body: str, kept: bool) -> None:
    """A notice is small enough to store; otherwise the failure could not be recorded."""
    failed = failing(world, body=body, headers={"X": "ÿ" * 5_000})
    (notice,) = notices(world, failed)
    assert len(notice.body.encode()) < 100 * 1024
    assert json.loads(notice.body)["timer"]["body"] == (body if kept else "")


def test_a_failed_schedule_leaves_a_finished_timer_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer cancelled while it was being scheduled is not marked for the sweep."""
    timer = world.create(3600)

    def fail(moved: Timer) -> None:
        monkeypatch.undo()
        world.cancel(moved)
        raise Unavailable("throttled")

    monkeypatch.setattr(world.scheduler, "schedule", fail)
    world.service.change(DEFAULT_TENANT, timer.id, timer.deadline + MINUTE)
    after = world.read(timer)
    assert (after.status, after.wake_at) == (Status.CANCELLED, None)


def test_short_pages_are_filled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pages of the store are combined into one page of the requested size."""
    made = [world.create(60).id for _ in range(20)]
    real, asked = world.store.page, []

    def page(tenant: str, filter: TimerFilter, after: Cursor | None, limit: int) -> Page:
        asked.append(limit)
        return real(tenant, filter, after, min(limit, 3))

    monkeypatch.setattr(world.store, "page", page)
    found = world.service.page(DEFAULT_TENANT, TimerFilter(), None, 7)
    assert [timer.id for timer in found.timers] == sorted(made, reverse=True)[:7]
    assert asked == [7, 4, 1]
    assert found.next == cursor_of(found.timers[-1])


@pytest.mark.parametrize("url", ["ftp://example.com/", "http://10.0.0.1/"])
@pytest.mark.parametrize("field", ["url", "on_failure"])
def test_rejects_urls_that_no_webhook_may_go_to(world: World, field: str, url: str) -> None:
    """A create or a change with a target that is not allowed is an error that names the field."""
    fields: dict[str, Any] = {field: url}
    with pytest.raises(InvalidRequest) as caught:
        created(world.service, replace(Webhook(url=URL), **fields))
    assert caught.value.pointer == f"/{field}"
    timer = world.create()
    with pytest.raises(InvalidRequest) as caught:
        world.service.change(DEFAULT_TENANT, timer.id, **fields)
    assert caught.value.pointer == f"/{field}"


def test_a_change_accepts_urls_that_it_leaves_alone(world: World) -> None:
    """A timer whose URL is no longer allowed can still get another label."""
    timer = world.create()
    world.store.timers[timer.id] = replace(timer, url="http://10.0.0.1/")
    assert world.service.change(DEFAULT_TENANT, timer.id, label="x").label == "x"


def test_lists_keep_the_order_of_a_batch(world: World) -> None:
    """The timers of a batch have different creation times, in the order of the request."""
    spec = TimerSpec(webhook=Webhook(url=URL), deadline=world.clock.now + MINUTE)
    results = world.service.create_all(DEFAULT_TENANT, [spec] * 20)
    ids = [it.timer.id for it in results if isinstance(it, Created)]
    page = world.service.page(DEFAULT_TENANT, TimerFilter(), None, 50)
    assert [timer.id for timer in page.timers] == ids[::-1]


def test_a_change_of_an_unknown_timer_is_not_found(world: World) -> None:
    """The timer is looked up before the target of the change is checked."""
    with pytest.raises(TimerNotFound):
        world.service.change(DEFAULT_TENANT, "nobody", url="http://10.0.0.1/")
