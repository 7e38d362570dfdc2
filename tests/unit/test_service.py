"""The use cases, on fakes and a clock that stands until it is moved."""

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
    Wakeup,
    Webhook,
)
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
    """A service on fakes, and what a test does with it."""

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


def test_create_stores_and_arms(world: World) -> None:
    """A new timer is stored with its deadline, and its alarm set."""
    timer = world.create(90)
    assert world.read(timer) == timer
    assert timer.deadline - timer.created_at == timedelta(seconds=90)
    assert world.scheduler.wakeups == [timer.wakeup()]


def test_create_says_no_when_it_is_not_stored(world: World) -> None:
    """Without a store there is no timer, no alarm, and the caller is told."""
    world.store.down = True
    with pytest.raises(Unavailable):
        world.create()
    assert world.scheduler.wakeups == []


def test_create_holds_although_the_alarm_can_not_be_set(world: World) -> None:
    """Once stored the answer is yes; the sweep sets the alarm as soon as that works."""
    world.scheduler.failure = Unavailable("throttled")
    timer = world.create(3600)
    assert not world.read(timer).armed
    world.scheduler.failure = None
    world.clock.forward(SWEEP_GRACE.total_seconds() + 1)
    assert world.sweep() == 1
    assert world.read(timer).armed
    assert world.scheduler.wakeups == [timer.wakeup()]
    assert world.sweep() == 0


def test_create_is_taken_back_when_the_alarm_is_refused(world: World) -> None:
    """A definite refusal takes the timer back, so that the error is true."""
    world.scheduler.failure = ScheduleRefused("no access")
    with pytest.raises(ScheduleRefused):
        world.create()
    assert world.store.timers == {}


def test_get_knows_no_other_tenants_timers(world: World) -> None:
    """Another tenant's timer is not found, as if it did not exist."""
    timer = world.create()
    for call in (world.service.get, world.service.cancel, world.service.retry):
        with pytest.raises(TimerNotFound):
            call("stranger", timer.id)


def test_get_forgets_the_expired(world: World) -> None:
    """After the retention a finished timer is not found, even if it is still stored."""
    timer = world.cancel(world.create())
    world.clock.forward(RETENTION.total_seconds())
    with pytest.raises(TimerNotFound):
        world.read(timer)


def test_deliver_sends_and_records(world: World) -> None:
    """A due timer is sent once and delivered, with its lateness and outcome on it."""
    timer = world.create(60)
    world.clock.forward(60.25)
    world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert after.status is Status.DELIVERED
    assert [(a.number, a.lateness, a.outcome) for a in after.attempts] == [(1, 0.25, NO_CONTENT)]


def test_deliver_sends_once_for_repeated_rings(world: World) -> None:
    """A second ring of the same generation does nothing."""
    timer = world.create(0)
    for _ in range(3):
        world.wakeup(timer.wakeup())
    assert world.sent() == [timer.id]


def test_deliver_is_never_early(world: World) -> None:
    """A ring well before its time is forwarded, not sent and not dropped."""
    timer = world.create(60)
    world.clock.forward(60 - MAX_EARLY_WAIT.total_seconds() - 0.001)
    world.wakeup(timer.wakeup())
    assert world.sent() == []
    assert world.scheduler.wakeups == [timer.wakeup()] * 2


def test_deliver_waits_out_a_ring_that_is_nearly_due(world: World) -> None:
    """A ring a few seconds early is sent at its moment by the worker that has it."""
    timer = world.create(60)
    world.clock.forward(60 - MAX_EARLY_WAIT.total_seconds())
    world.wakeup(timer.wakeup())
    assert [at for _, at in world.sender.sent] == [timer.deadline]


@pytest.mark.parametrize("wake", [-300, 60])
def test_fire_forwards_what_still_waits(world: World, wake: int) -> None:
    """A schedule that goes off, early or as the backstop, rings for a timer that waits."""
    timer = world.create(600)
    world.clock.forward(600 + wake)
    world.service.fire(timer.wakeup())
    assert world.scheduler.wakeups == [timer.wakeup()] * 2


def test_fire_ignores_what_is_over(world: World) -> None:
    """A schedule for a timer that is done, moved or unknown does nothing."""
    done, moved = world.create(0), world.create(60)
    world.wakeup(done.wakeup())
    world.service.change(DEFAULT_TENANT, moved.id, moved.deadline + MINUTE)
    world.scheduler.wakeups.clear()
    for wakeup in (done.wakeup(), moved.wakeup(), Wakeup("x", "default", 1, moved.deadline)):
        world.service.fire(wakeup)
    assert world.scheduler.wakeups == []


def test_deliver_does_not_believe_an_alarm_that_lies(world: World) -> None:
    """A ring that claims to be due before its timer is sends nothing."""
    timer = world.create(60)
    world.wakeup(Wakeup(timer.id, timer.tenant, timer.generation, world.clock.now))
    assert world.sent() == []
    assert world.read(timer) == timer


def test_deliver_ignores_what_is_gone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A ring repeated, stale, or of a cancelled or unknown timer does nothing and says so."""
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


def test_an_attempt_that_can_not_succeed_ends_the_timer(world: World) -> None:
    """What fails for good leaves the timer failed, with the reason on it."""
    timer = world.create(0)
    world.sender.outcome = Outcome(error="refused target", detail="it is at 10.0.0.1")
    world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert (after.status, after.failure) == (Status.FAILED, "refused target: it is at 10.0.0.1")


def test_an_attempt_that_may_pass_is_made_again(world: World) -> None:
    """It waits for its share of the longest wait, with an alarm of its own; the old one is taken
    back, and what comes then ends it."""
    timer = world.create(0)
    world.sender.outcome = Outcome(error="connect", detail="Connection refused")
    world.wakeup(timer.wakeup())
    after = world.read(timer)
    assert (after.status, after.failure) == (Status.RETRYING, None)
    assert after.due_at == world.clock.now + timedelta(seconds=5)  # a chance of 0.5 of 10 s
    assert world.scheduler.wakeups[-1] == after.wakeup()
    assert world.scheduler.cleared == [timer.wakeup()]
    world.sender.outcome = NO_CONTENT
    world.clock.forward(5)
    world.wakeup(after.wakeup())
    assert world.read(timer).status is Status.DELIVERED


def test_attempts_come_to_an_end(world: World) -> None:
    """A receiver that never answers well is given up after as many attempts as the policy has."""
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


def test_cancel_wins_over_an_alarm_on_its_way(world: World) -> None:
    """After a cancel was answered, no ring sends anything, and the alarm is taken back."""
    timer = world.create(60)
    assert world.cancel(timer).status is Status.CANCELLED
    assert world.scheduler.cleared == [timer.wakeup()]
    world.clock.forward(61)
    world.wakeup(timer.wakeup())
    assert world.sent() == []


def test_cancel_may_be_repeated(world: World) -> None:
    """The second cancel answers as the first did, and clears an alarm that the first could not."""
    timer = world.create(60)
    world.scheduler.failure = Unavailable("throttled")
    first = world.cancel(timer)
    world.scheduler.failure = None
    assert world.cancel(timer) == first
    assert world.scheduler.cleared == [timer.wakeup()]


def test_cancel_holds_although_the_alarm_can_not_be_cleared(world: World) -> None:
    """The store decides: an alarm left over rings for nothing."""
    timer = world.create(60)
    world.scheduler.failure = Unavailable("throttled")
    assert world.cancel(timer).status is Status.CANCELLED


def test_cancel_is_refused_while_the_webhook_is_sent(world: World) -> None:
    """During the POST a cancel is a conflict to be asked again: it can't be promised."""
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


def test_a_new_deadline_moves_the_moment(world: World) -> None:
    """The old alarm sends nothing, the new one sends; the old one is taken back."""
    timer = world.create(60)
    moved = world.service.change(DEFAULT_TENANT, timer.id, timer.deadline + MINUTE)
    assert world.scheduler.wakeups[-1] == moved.wakeup()
    assert world.scheduler.cleared == [timer.wakeup()]
    world.clock.forward(120)
    world.wakeup(timer.wakeup())
    assert world.sent() == []
    world.wakeup(moved.wakeup())
    assert world.sent() == [timer.id]


def test_a_new_deadline_holds_although_the_alarm_can_not_be_set(world: World) -> None:
    """The stored moment counts; the sweep sets its alarm later."""
    timer = world.create(60)
    world.scheduler.failure = Unavailable("throttled")
    moved = world.service.change(DEFAULT_TENANT, timer.id, timer.deadline + MINUTE)
    assert world.read(timer).deadline == moved.deadline
    world.scheduler.failure = None
    world.clock.forward(SWEEP_GRACE.total_seconds() + 1)
    assert world.sweep() == 1
    assert world.scheduler.wakeups[-1] == moved.wakeup()


def test_redrive_sends_a_failed_timer_again(world: World) -> None:
    """A failed timer is due again at once, under the same id."""
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


def test_changes_start_over_when_they_race(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that lost its race is decided again on what is stored now."""
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
    """A worker that is held up until too little of its time is left does not start the POST: it
    releases its claim, and the timer is rung for again."""
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


def test_stalled_worker_without_its_lease_does_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that comes back when its claim was taken from it sends and changes nothing."""
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


def test_stalled_worker_records_nothing(world: World) -> None:
    """A worker whose lease ran out during the POST changes nothing: another one has taken over."""
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
    """If the clock falls back behind the deadline between claim and POST, nothing is sent."""
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
    """A store that is down for a while after the POST still gets the outcome: no second send."""
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
    """When the lease ends before the store is back, the fault escapes and the claim is left."""
    timer = world.create(0)

    def outage() -> None:
        world.store.down = True

    world.sender.during = outage
    with pytest.raises(Unavailable):
        world.wakeup(timer.wakeup())
    world.store.down = False
    assert world.read(timer).status is Status.DELIVERING


def test_sweep_leaves_the_punctual_alone(world: World) -> None:
    """What is not overdue by more than the grace is not touched."""
    timer = world.create(60)
    world.clock.forward(60 + SWEEP_GRACE.total_seconds())
    assert world.sweep() == 0
    assert world.read(timer) == timer


def test_sweep_rings_for_the_forgotten_once(world: World) -> None:
    """A timer whose alarm never rang is rung for, and then left alone for a while."""
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
    """However many are overdue, one sweep rings for all of them, oldest first."""
    created = [world.create(second) for second in range(SWEEP_BATCH_SIZE * 2 + 10)]
    world.scheduler.wakeups.clear()
    world.clock.forward(3600)
    assert world.sweep() == len(created)
    assert world.scheduler.wakeups == [timer.wakeup() for timer in created]


def test_sweep_adds_nothing_when_the_alarm_is_behind(world: World) -> None:
    """With a backlog on the way, more rings would only multiply it; lost claims are still freed."""
    waiting, claimed = world.create(60), world.create(60)
    world.clock.forward(60)
    world.store.claim(claimed.wakeup(), world.clock.now, world.clock.now + MINUTE)
    world.scheduler.wakeups.clear()
    world.scheduler.behind = True
    world.clock.forward(3600)
    assert world.sweep() == 1
    assert [wakeup.id for wakeup in world.scheduler.wakeups] == [claimed.id]
    assert world.read(waiting).wake_at == waiting.wake_at


def test_sweep_helps_the_others(world: World) -> None:
    """While no alarm can be set, lost claims are freed all the same, and nothing is forgotten."""
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


def test_sweep_rings_once_for_the_unarmed(world: World) -> None:
    """An overdue timer whose alarm was never set is rung for once, not again at once."""
    timer = world.create(60)
    world.store.replace(timer.mark_unarmed(world.clock.now))
    world.scheduler.wakeups.clear()
    world.clock.forward(120)
    assert world.sweep() == 1
    assert world.scheduler.wakeups == [timer.wakeup()]


def test_overlapping_sweeps_ring_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep moves a timer out of the way before it rings, so that another one beside it does
    not ring as well."""
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
def test_sweep_leaves_no_alarm_to_who_was_faster(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A change between the sweep's write and its alarm does not leave that alarm behind."""
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
    assert world.scheduler.cleared[-1] == timer.wakeup()


def test_timer_that_kills_its_worker_ends_as_failed(world: World) -> None:
    """Each lost worker counts as an attempt, so it does not go on for ever."""
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


@pytest.mark.parametrize("part", ["store", "alarm"])
def test_check_fails_with_either_part(world: World, part: str) -> None:
    """The service works only if both its store and its alarm do."""
    world.service.check()
    if part == "store":
        world.store.down = True
    else:
        world.scheduler.failure = Unavailable("stuck")
    with pytest.raises(Unavailable):
        world.service.check()


def failing(world: World, **fields: Any) -> Timer:
    """Return a timer that has failed, as it is then."""
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


def test_a_failure_is_told_by_a_timer(world: World) -> None:
    """It is due at once, of the same tenant, with the timer and its last attempt as JSON, retried
    like any other, and tells nobody of its own failure."""
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


def test_a_notice_that_fails_tells_nobody(world: World) -> None:
    """No chain of notices of notices."""
    failed = failing(world)
    (notice,) = notices(world, failed)
    world.sender.outcome = Outcome(status=404)
    world.wakeup(notice.wakeup())
    assert world.read(notice).status is Status.FAILED
    assert notices(world, failed) == [world.read(notice)]


def test_a_failure_is_told_once(world: World) -> None:
    """The same failure makes the same notice; one after a redrive is another failure."""
    failed = failing(world)
    (first,) = notices(world, failed)
    assert failed.failure_notice(first.body, world.clock.now).id == first.id
    world.sender.outcome = Outcome(status=410)
    again = world.service.retry(DEFAULT_TENANT, failed.id)
    world.wakeup(again.wakeup())
    assert len({it.id for it in notices(world, failed)}) == 2


def test_success_and_cancel_tell_nobody(world: World) -> None:
    """Only a timer that ends as failed makes a notice; nor does one that is tried again."""
    webhook = Webhook(url=URL, on_failure="https://example.com/failed")
    delivered, cancelled, retried = (created(world.service, webhook) for _ in range(3))
    world.wakeup(delivered.wakeup())
    world.service.cancel(DEFAULT_TENANT, cancelled.id)
    world.sender.outcome = Outcome(status=500)
    world.wakeup(retried.wakeup())
    assert len(world.store.timers) == 3


def test_a_lost_worker_at_the_end_is_told_too(world: World) -> None:
    """Also who finds a dead worker's claim stores the notice with the failure."""
    policy = RetryPolicy(max_attempts=1)
    webhook = Webhook(url=URL, on_failure="https://example.com/failed", retry=policy)
    timer = created(world.service, webhook)
    claimed = world.store.claim(timer.wakeup(), world.clock.now, world.clock.now)
    assert claimed is not None
    assert world.service.reclaim(claimed)
    (notice,) = notices(world, timer)
    assert json.loads(notice.body)["last_attempt"]["error"] == "worker lost"


def test_a_notice_whose_alarm_can_not_be_set_is_left_to_the_sweep(world: World) -> None:
    """It is stored with the failure, so it fires in any case."""
    webhook = Webhook(url=URL, on_failure="https://example.com/failed")
    timer = created(world.service, webhook)
    world.sender.outcome = Outcome(status=410)
    world.scheduler.failure = Unavailable("throttled")
    world.wakeup(timer.wakeup())
    (notice,) = notices(world, timer)
    assert not notice.armed


@pytest.mark.parametrize("host", ["", "elsewhere.example"])
def test_rings_of_other_versions_are_good(world: World, host: str) -> None:
    """A schedule that an earlier version has set says less, and rings all the same."""
    timer = world.create(3600)
    world.scheduler.wakeups.clear()
    world.service.fire(replace(timer.wakeup(), host=host))
    assert [wakeup.id for wakeup in world.scheduler.wakeups] == [timer.id]


def test_what_could_not_be_sent_is_no_attempt(world: World) -> None:
    """Where the sender can't even begin, the claim is given back, and the sweep rings again."""

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
def test_a_failure_can_be_told_whatever_the_body(world: World, body: str, kept: bool) -> None:
    """What is told fits where it is stored, or the failure itself could not be recorded."""
    failed = failing(world, body=body, headers={"X": "ÿ" * 5_000})
    (notice,) = notices(world, failed)
    assert len(notice.body.encode()) < 100 * 1024
    assert json.loads(notice.body)["timer"]["body"] == (body if kept else "")


def test_an_alarm_that_fails_leaves_a_finished_timer_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cancelled while its alarm could not be set is not put back before the sweep."""
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
    """Where the store gives few at a time, more are asked for: as many as wanted, and no more."""
    made = [world.create(60).id for _ in range(20)]
    real, asked = world.store.page, []

    def page(tenant: str, listing: TimerFilter, before: Cursor | None, limit: int) -> Page:
        asked.append(limit)
        return real(tenant, listing, before, min(limit, 3))

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
    """A timer whose URL has been forbidden since can still get another label."""
    timer = world.create()
    world.store.timers[timer.id] = replace(timer, url="http://10.0.0.1/")
    assert world.service.change(DEFAULT_TENANT, timer.id, label="x").label == "x"
