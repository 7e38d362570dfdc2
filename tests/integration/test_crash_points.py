"""A failure of any call to AWS, before or after its effect: no timer is lost or sent twice.

Each use case runs once to count its calls, then again with the n-th call failing: by an error, or
by the death of the process. Afterwards wake-ups arrive or are all lost, and the sweep runs.
"""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from botocore.exceptions import ReadTimeoutError

from chalicelib.aws import timer_store
from chalicelib.core.errors import TimersError
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    FINAL,
    IdempotencyKey,
    Outcome,
    Status,
    Timer,
    TimerSpec,
    Webhook,
)
from tests.support.aws import NAME, account
from tests.support.cloud import Cloud
from tests.support.fakes import START, created

DELAY = 600
HOUR = timedelta(hours=1)
CHANGE = ["GetItem", "PutItem", "CreateSchedule", "DeleteSchedule", "GetItem"]
CHANGE_TO_NOW = [*CHANGE[:2], "SendMessageBatch", *CHANGE[2:]]
SWEEP = ["Query", "Query", "BatchGetItem"]
READS = {"Query", "BatchGetItem", "GetItem", "GetQueueAttributes"}
"""Calls without an effect: they fail before it only."""

REQUEUE = ["PutItem", "SendMessageBatch"]
SCHEDULE = ["PutItem", "SendMessageBatch", "CreateSchedule", "PutItem"]


class Killed(BaseException):
    """The process dies."""


FAILURES: dict[str, Callable[[], BaseException]] = {
    "error": lambda: ReadTimeoutError(endpoint_url="https://aws"),
    "death": Killed,
}


def create(cloud: Cloud) -> Timer:
    return cloud.create(DELAY)


def cancel(cloud: Cloud) -> Timer:
    return cloud.service.cancel(DEFAULT_TENANT, _only(cloud).id)


def reschedule(cloud: Cloud) -> Timer:
    return cloud.service.change(DEFAULT_TENANT, _only(cloud).id, START + HOUR)


def fire_now(cloud: Cloud) -> Timer:
    return cloud.service.fire_now(DEFAULT_TENANT, _only(cloud).id)


def edit(cloud: Cloud) -> Timer:
    return cloud.service.change(DEFAULT_TENANT, _only(cloud).id, label="x")


def create_once(cloud: Cloud) -> Timer:
    deadline = cloud.clock.forward(1) + timedelta(seconds=DELAY)
    order = TimerSpec(
        webhook=Webhook(url="https://example.com/"),
        deadline=deadline,
        idempotency_key=IdempotencyKey("key", "a"),
    )
    return cloud.service.create(DEFAULT_TENANT, order).timer


def retry(cloud: Cloud) -> Timer:
    return cloud.service.retry(DEFAULT_TENANT, _only(cloud).id)


def deliver(cloud: Cloud) -> None:
    cloud.turn(DELAY)


def sweep(cloud: Cloud) -> None:
    cloud.sweep()


def _only(cloud: Cloud) -> Timer:
    with cloud.aws.unobserved():
        (found,) = cloud.service.store.overdue(START + timedelta(days=9999), 2) or [
            cloud.service.get(DEFAULT_TENANT, cloud.sender.sent[-1][0].id)
        ]
    return found


def nothing(cloud: Cloud) -> None:
    pass


def waiting(cloud: Cloud) -> None:
    create(cloud)


def waiting_once(cloud: Cloud) -> None:
    create_once(cloud)


def failed(cloud: Cloud) -> None:
    create(cloud)
    cloud.sender.outcome = Outcome(status=404)
    deliver(cloud)
    cloud.sender.outcome = Outcome(status=204)


def claimed_by_the_dead(cloud: Cloud) -> None:
    create(cloud)
    cloud.sender.during = _die
    with pytest.raises(Killed):
        deliver(cloud)
    cloud.sender.during = lambda: None
    cloud.clock.forward(600)


def overdue_timer(cloud: Cloud) -> None:
    create(cloud)
    _lose_wakeups(cloud)
    cloud.clock.forward(DELAY + 60)


def unscheduled(cloud: Cloud) -> None:
    cloud.aws.before = _throttle
    create(cloud)
    cloud.aws.before = lambda operation: None
    cloud.clock.forward(60)


def _throttle(operation: str) -> None:
    if operation in ("CreateSchedule", "SendMessageBatch"):
        raise ReadTimeoutError(endpoint_url="https://aws")


def _lose_wakeups(cloud: Cloud) -> None:
    cloud.lose_messages()
    for schedule in cloud.aws.schedules():
        cloud.aws.scheduler.delete_schedule(Name=schedule, GroupName=NAME)


def _die() -> None:
    raise Killed


UseCase = Callable[[Cloud], object]

USE_CASES: dict[str, tuple[UseCase, UseCase, list[str]]] = {
    "create": (nothing, create, ["PutItem", "SendMessageBatch", "CreateSchedule"]),
    "cancel": (waiting, cancel, ["GetItem", "PutItem", "DeleteSchedule"]),
    "reschedule": (waiting, reschedule, CHANGE),
    "edit": (waiting, edit, CHANGE[:2]),
    "fire": (waiting, fire_now, CHANGE_TO_NOW),
    "create once": (nothing, create_once, ["PutItem", "SendMessageBatch", "CreateSchedule"]),
    "create once more": (waiting_once, create_once, ["PutItem", "GetItem", "PutItem"]),
    "deliver": (waiting, deliver, ["UpdateItem", "PutItem"]),
    "retry": (failed, retry, CHANGE_TO_NOW),
    "sweep overdue": (overdue_timer, sweep, [*SWEEP, "GetQueueAttributes", *REQUEUE, *SWEEP[:-1]]),
    "sweep unscheduled": (unscheduled, sweep, [*SWEEP, *SCHEDULE, *SWEEP[:-1]]),
    "reclaim": (claimed_by_the_dead, sweep, [*SWEEP, *CHANGE_TO_NOW[1:], *SWEEP[:-1]]),
}
"""The preparation, the use case, and the AWS calls that it makes."""

POINTS = [
    (name, number, side, failure)
    for name, (_, _, calls) in USE_CASES.items()
    for number, call in enumerate(calls)
    for side in ("before", "after")
    if side == "before" or call not in READS
    for failure in FAILURES
]


def label(point: tuple[str, int, str, str]) -> str:
    name, number, side, failure = point
    return f"{name}: {failure} {side} {USE_CASES[name][2][number]} {number}"


@pytest.mark.parametrize("name", USE_CASES)
def test_use_cases_make_the_expected_calls(name: str) -> None:
    """Each use case makes exactly the calls that are made to fail."""
    before, use_case, calls = USE_CASES[name]
    with account() as aws:
        cloud = Cloud(aws)
        before(cloud)
        aws.calls.clear()
        use_case(cloud)
        assert aws.names() == calls


@pytest.fixture(autouse=True)
def few_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use two shards for overdue timers: with 32, these tests would take too long."""
    monkeypatch.setattr(timer_store, "DUE_SHARDS", 2)


@pytest.mark.parametrize("wakeups", ["arrive", "are lost"])
@pytest.mark.parametrize("point", POINTS, ids=label)
def test_a_failed_call_loses_no_timer(point: tuple[str, int, str, str], wakeups: str) -> None:
    """The webhook is sent at least once, and never after a cancel succeeded.

    It is sent twice, with one id, only if the failure came between the POST and its record.
    """
    name, number, side, failure = point
    before, use_case, _ = USE_CASES[name]
    with account() as aws:
        cloud = Cloud(aws)
        before(cloud)
        sent_before = len(cloud.sender.sent)
        answered, failed_at = _fail(cloud, use_case, number, side, failure)
        if wakeups == "are lost":
            _lose_wakeups(cloud)
        stored = _settle(cloud)
        sent = Counter(timer.id for timer, _ in cloud.sender.sent[sent_before:])
        assert all(timer.status in FINAL for timer in stored)
        assert all(at >= timer.due_at for timer, at in cloud.sender.sent)
        assert not answered or stored
        for timer in stored:
            if timer.status is Status.CANCELLED:
                assert sent[timer.id] == 0
            elif (name, timer.generation) == ("retry", 1):
                assert not answered
            else:
                assert sent[timer.id] >= 1
        between_post_and_record = failed_at > sent_before
        assert max(sent.values(), default=0) <= 1 + between_post_and_record
        if name == "cancel" and answered:
            assert not sent
        assert aws.schedules() == []


REPORT = ["UpdateItem", "TransactWriteItems", "SendMessageBatch", "CreateSchedule"]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("number", range(len(REPORT)), ids=REPORT)
def test_a_failed_call_loses_no_failure_notice(number: int, side: str, failure: str) -> None:
    """A failed timer and its failure notice are stored together, and the notice is sent once."""
    with account() as aws:
        cloud = Cloud(aws)
        webhook = Webhook(url="https://example.com/", on_failure="https://example.com/failed")

        def answer() -> None:
            gone = cloud.sender.sent[-1][0].on_failure is not None
            cloud.sender.outcome = Outcome(status=410 if gone else 204)

        cloud.sender.during = answer
        created(cloud.service, webhook, DELAY)
        aws.calls.clear()
        _fail(cloud, deliver, number, side, failure)
        assert aws.names()[: number + 1] == REPORT[: number + 1]
        stored = {timer.on_failure is None: timer for timer in _settle(cloud)}
        assert {is_notice: timer.status for is_notice, timer in stored.items()} == {
            False: Status.FAILED,
            True: Status.DELIVERED,
        }
        sent = Counter(timer.id for timer, _ in cloud.sender.sent)
        assert sent[stored[True].id] == 1


def _settle(cloud: Cloud) -> list[Timer]:
    """Move the clock until all timers are finished; return them."""
    for _ in range(20):
        cloud.turn(400)
        cloud.sweep()
        with cloud.aws.unobserved():
            items = cloud.aws.dynamodb.scan(TableName=NAME)["Items"]
        stored = [cloud.read(item["id"]["S"]) for item in items]
        if all(timer.status in FINAL for timer in stored) and not cloud.aws.schedules():
            break
    return stored


def _fail(
    cloud: Cloud, use_case: UseCase, number: int, side: str, failure: str
) -> tuple[bool, int]:
    """Run the use case with its n-th call failing.

    Return whether it succeeded, and how many webhooks had been sent before the failure.
    """
    made = 0
    sent_by_then = -1

    def strike(operation: str) -> None:
        nonlocal made, sent_by_then
        made += 1
        if made == number + 1:
            sent_by_then = len(cloud.sender.sent)
            raise FAILURES[failure]()  # noqa: RSE102  # it makes one

    setattr(cloud.aws, side, strike)
    answered = True
    try:
        use_case(cloud)
    except (Killed, TimersError):
        answered = False
    cloud.aws.before = cloud.aws.after = lambda operation: None
    assert sent_by_then >= 0
    return answered, sent_by_then
