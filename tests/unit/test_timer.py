"""Transitions of a timer, as a table and as a state machine."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.core.errors import Conflict, DeliveryUnderWay
from chalicelib.core.retry import WORKER_LOST
from chalicelib.core.timer import (
    FINAL,
    RETENTION,
    Outcome,
    Status,
    Timer,
    Webhook,
    new_timer,
    timer_id,
)
from tests.support.fakes import NO_CONTENT, START

HOUR = timedelta(hours=1)


def scheduled(delay: timedelta = HOUR) -> Timer:
    return new_timer(
        "id-1", "default", Webhook(url="https://example.com/{id}"), START + delay, START
    )


def delivering() -> Timer:
    timer = scheduled()
    claimed = timer.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
    assert claimed is not None
    return claimed


def retrying() -> Timer:
    claimed = delivering()
    return claimed.record(WORKER_LOST, claimed.due_at, claimed.due_at + HOUR)


def delivered() -> Timer:
    return delivering().record(NO_CONTENT, START + HOUR, None)


def failed() -> Timer:
    return delivering().record(Outcome(status=404), START + HOUR, None)


def cancelled() -> Timer:
    return scheduled().cancel(START)


IN_STATUS = {
    Status.SCHEDULED: scheduled,
    Status.DELIVERING: delivering,
    Status.RETRYING: retrying,
    Status.DELIVERED: delivered,
    Status.FAILED: failed,
    Status.CANCELLED: cancelled,
}

ALLOWED = {
    "cancel": {Status.SCHEDULED, Status.RETRYING, Status.CANCELLED},
    "change": {Status.SCHEDULED, Status.RETRYING},
    "fire": {Status.SCHEDULED, Status.RETRYING},
    "retry": {Status.FAILED},
}


def change(kind: str, timer: Timer) -> Timer:
    match kind:
        case "cancel":
            return timer.cancel(START)
        case "change":
            return timer.change(timer, START + 2 * HOUR)
        case "fire":
            return timer.fire_now(START + 2 * HOUR)
    return timer.retry_now(START + 2 * HOUR)


@pytest.mark.parametrize("status", Status)
def test_reaches_every_status(status: Status) -> None:
    """Each status can be reached."""
    assert IN_STATUS[status]().status is status


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("status", Status)
def test_status_decides_which_changes_are_allowed(kind: str, status: Status) -> None:
    """Cancel, change, fire and retry raise Conflict in the statuses that do not allow them."""
    timer = IN_STATUS[status]()
    if status in ALLOWED[kind]:
        change(kind, timer)
    else:
        with pytest.raises(Conflict) as caught:
            change(kind, timer)
        assert isinstance(caught.value, DeliveryUnderWay) == (status is Status.DELIVERING)


def test_cancel_may_be_repeated() -> None:
    """A second cancel returns the timer unchanged."""
    timer = cancelled()
    assert timer.cancel(START + HOUR) is timer


@pytest.mark.parametrize("make", [scheduled, retrying])
def test_new_deadline_voids_older_wakeups(make: object) -> None:
    """After a new deadline, a wake-up for the old one claims nothing."""
    timer = scheduled() if make is scheduled else retrying()
    moved = timer.change(timer, START + 2 * HOUR)
    late = START + 10 * HOUR
    assert moved.claim(timer.wakeup(), late, late + HOUR) is None
    assert moved.claim(moved.wakeup(), late, late + HOUR) is not None


def test_retry_by_owner_restores_all_attempts() -> None:
    """An owner's retry restarts the retry policy; the attempts and their numbers are kept."""
    again = failed().retry_now(START + 2 * HOUR)
    assert (again.status, again.attempt, again.attempts_before) == (Status.SCHEDULED, 1, 1)
    assert (again.deadline, again.due_at, again.wake_at) == (START + 2 * HOUR,) * 3
    assert again.expires_at is None
    assert len(again.attempts) == 1


def test_retry_keeps_the_deadline() -> None:
    """An automatic retry moves the next attempt, not the deadline."""
    timer = retrying()
    assert timer.deadline == START + HOUR
    assert timer.due_at == timer.wake_at == START + 2 * HOUR


def test_lateness_is_measured_from_when_the_attempt_was_due() -> None:
    """The lateness of a retry is measured from its own due time, not from the deadline."""
    timer = retrying()
    claimed = timer.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
    assert claimed is not None
    at = timer.due_at + timedelta(seconds=0.5)
    assert claimed.record(NO_CONTENT, at, None).attempts[-1].lateness == 0.5


def test_success_is_final_despite_retries_left() -> None:
    """A 2xx response means delivered, even if the policy allows retries."""
    after = delivering().record(NO_CONTENT, START + HOUR, START + 2 * HOUR)
    assert after.status is Status.DELIVERED


@pytest.mark.parametrize(("status", "good"), [(199, 0), (200, 1), (204, 1), (299, 1), (300, 0)])
def test_success_is_2xx(status: int, good: int) -> None:
    """Only a 2xx status is a success."""
    assert Outcome(status=status).succeeded == bool(good)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(status=404), "HTTP 404"),
        (Outcome(error="timeout"), "timeout"),
        (Outcome(error="connect", detail="Connection refused"), "connect: Connection refused"),
    ],
)
def test_failed_timer_has_a_reason(outcome: Outcome, reason: str) -> None:
    """A failed timer has a reason in words; other timers have none."""
    assert delivering().record(outcome, START + HOUR, None).failure == reason
    assert delivered().failure is None


@pytest.mark.parametrize(
    ("seconds_before", "left"), [(10, 10), (9.000001, 10), (0.000001, 1), (0, 0), (-5, 0)]
)
def test_time_left_is_rounded_up(seconds_before: float, left: int) -> None:
    """The time left is in whole seconds, rounded up: 0 means due."""
    timer = scheduled()
    assert timer.time_left(timer.deadline - timedelta(seconds=seconds_before)) == left


@pytest.mark.parametrize("status", [it for it in Status if it is not Status.SCHEDULED])
def test_time_left_is_zero_when_not_scheduled(status: Status) -> None:
    """A timer that is no longer scheduled has no time left."""
    assert IN_STATUS[status]().time_left(START) == 0


@pytest.mark.parametrize("status", Status)
def test_only_final_timers_expire(status: Status) -> None:
    """Final timers expire and have no wake-up; other timers have a wake-up and never expire."""
    timer = IN_STATUS[status]()
    assert (timer.wake_at is None) == (status in FINAL)
    assert (timer.expires_at is not None) == (status in FINAL)


def test_expires_after_the_retention() -> None:
    """A final timer expires exactly RETENTION after its end."""
    timer = cancelled()
    end = START + RETENTION
    assert not timer.is_expired(end - timedelta(microseconds=1))
    assert timer.is_expired(end)


def test_target_replaces_every_id_placeholder() -> None:
    """Each `{id}` in the URL is replaced by the timer's id."""
    timer = new_timer(
        "42", "default", Webhook(url="https://{id}.example.com/{id}?x={id}"), START, START
    )
    assert timer.target == "https://42.example.com/42?x=42"


@pytest.mark.parametrize("status", Status)
def test_round_trip_through_json(status: Status) -> None:
    """Encoding and decoding preserves a timer of any status."""
    timer = IN_STATUS[status]()
    assert msgspec.json.decode(msgspec.json.encode(timer), type=Timer) == timer


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.binary(min_size=10, max_size=10),
)
def test_ids_are_uuids_of_version_7(at: datetime, entropy: bytes) -> None:
    """An id is a UUIDv7 of its creation time."""
    uuid = UUID(timer_id(at, entropy))
    assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
    assert uuid.int >> 80 == int(at.timestamp() * 1000)


@given(st.lists(st.binary(min_size=10, max_size=10), unique=True))
def test_ids_sort_by_age(entropies: list[bytes]) -> None:
    """A later id sorts after an earlier one, with any random part."""
    ids = [
        timer_id(START + timedelta(milliseconds=n), entropy) for n, entropy in enumerate(entropies)
    ]
    assert ids == sorted(ids)
