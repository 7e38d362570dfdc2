"""AwsScheduler: its requests, its limits and its races, on moto."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from msgspec.structs import replace

from chalicelib.aws import scheduler as scheduler_module
from chalicelib.aws.handlers import decode_wakeup
from chalicelib.aws.queue import MAX_WAKEUP_LENGTH, SQS_MAX_DELAY
from chalicelib.aws.scheduler import (
    MAX_HOPS,
    MIN_SCHEDULE_AHEAD,
    SCHEDULE_LEAD,
    Addresses,
    AwsScheduler,
)
from chalicelib.core.errors import ScheduleRefused, Unavailable
from chalicelib.core.timer import DEFAULT_TENANT, Status
from chalicelib.service.concurrency import in_threads
from tests.contracts.store import make
from tests.support.aws import NAME, Account, account
from tests.support.cloud import Cloud, moment, scheduler_of
from tests.support.fakes import START, Clock

YEARS = 2 * 365 * 86_400


@pytest.fixture
def aws() -> Iterator[Account]:
    with account() as made:
        yield made


@pytest.fixture
def cloud(aws: Account) -> Cloud:
    return Cloud(aws)


@pytest.fixture
def scheduler(aws: Account) -> AwsScheduler:
    return scheduler_of(aws, Clock())


def requests(aws: Account, operation: str) -> list[dict[str, Any]]:
    return [request for name, request in aws.calls if name == operation]


def fires_after(request: dict[str, Any]) -> float:
    """Return how many seconds after START a schedule fires."""
    return (moment(request["ScheduleExpression"]) - START).total_seconds()


@pytest.mark.parametrize(
    ("seconds", "delay", "fires"),
    [
        (5, 4, 90),
        (0, 0, 90),
        (29.5, 28, 90),
        (600, 599, 660),
        (SQS_MAX_DELAY.total_seconds(), 899, 960),
        (1200, None, 1200),
        (YEARS, None, YEARS),
    ],
)
def test_near_and_far_timers_get_different_schedules(
    cloud: Cloud, seconds: float, delay: int | None, fires: float
) -> None:
    """A near timer gets a delayed message and a backstop; a far one gets an early schedule."""
    timer = cloud.create(seconds)
    created = requests(cloud.aws, "CreateSchedule")
    assert len(created) == 1
    lead = scheduler_module._lead(timer.id, SQS_MAX_DELAY).total_seconds() if delay is None else 0
    assert created[0] == {
        "Name": f"{timer.id}.1",
        "GroupName": NAME,
        "ClientToken": f"{timer.id}-1",
        "Description": f"Timer {timer.id}: POST to example.com, due "
        f"{timer.deadline:%Y-%m-%d %H:%M:%S} UTC",
        "ScheduleExpression": created[0]["ScheduleExpression"],
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": cloud.aws.addresses.fire_arn,
            "RoleArn": cloud.aws.addresses.role_arn,
            "Input": created[0]["Target"]["Input"],
            "RetryPolicy": {"MaximumEventAgeInSeconds": 86_400, "MaximumRetryAttempts": 185},
            "DeadLetterConfig": {"Arn": cloud.aws.addresses.dead_letter_arn},
        },
    }
    assert fires_after(created[0]) == fires - lead
    event = created[0]["Target"]["Input"]
    assert set(json.loads(event)) == {"id", "tenant", "generation", "due_at", "host"}
    assert decode_wakeup(event) == timer.wakeup()
    sent = requests(cloud.aws, "SendMessageBatch")
    assert [entry["DelaySeconds"] for request in sent for entry in request["Entries"]] == (
        [] if delay is None else [delay]
    )
    for request in sent:
        assert request["QueueUrl"] == cloud.aws.queue_url()
        assert decode_wakeup(request["Entries"][0]["MessageBody"]) == timer.wakeup()


def test_schedules_round_up_to_seconds(cloud: Cloud) -> None:
    """A schedule's time is rounded up, so the backstop never fires early."""
    cloud.clock.forward(0.25)
    cloud.create(100)
    assert fires_after(requests(cloud.aws, "CreateSchedule")[0]) == 161


def test_leads_are_spread_over_their_range() -> None:
    """Early schedules for one deadline are spread over the whole of SCHEDULE_LEAD."""
    leads = [scheduler_module._lead(make(number).id, SQS_MAX_DELAY) for number in range(2000)]
    assert SCHEDULE_LEAD[0] <= min(leads) < SCHEDULE_LEAD[0] + timedelta(seconds=5)
    assert SCHEDULE_LEAD[1] - timedelta(seconds=5) < max(leads) <= SCHEDULE_LEAD[1]
    minutes = [lead.seconds // 60 for lead in leads]
    assert max(minutes.count(minute) for minute in set(minutes)) < 2000 / 8 * 1.5


def test_leads_fit_the_limits_of_aws() -> None:
    """A lead leaves room for a schedule's minute and for retries, within SQS's longest delay."""
    assert SCHEDULE_LEAD[1] < SQS_MAX_DELAY
    assert SCHEDULE_LEAD[0] > timedelta(minutes=1) + timedelta(minutes=3)
    assert SQS_MAX_DELAY - SCHEDULE_LEAD[1] >= MIN_SCHEDULE_AHEAD


def test_each_use_case_makes_a_fixed_number_of_calls(cloud: Cloud) -> None:
    """create 2 calls (3 within 15 min), get 1, deliver 2 and the POST, fire 2, cancel 3."""
    cloud.create(1200)
    assert cloud.aws.names() == ["PutItem", "CreateSchedule"]
    cloud.aws.calls.clear()
    near = cloud.create(5)
    assert sorted(cloud.aws.names()) == ["CreateSchedule", "PutItem", "SendMessageBatch"]
    cloud.aws.calls.clear()
    cloud.service.get(DEFAULT_TENANT, near.id)
    assert cloud.aws.names() == ["GetItem"]
    cloud.aws.calls.clear()
    cloud.service.deliver(near.wakeup(), cloud.clock.now + timedelta(seconds=60))
    assert cloud.aws.names() == ["UpdateItem", "PutItem"]
    assert len(cloud.sender.sent) == 1
    cloud.aws.calls.clear()
    far = cloud.create(1200)
    cloud.aws.calls.clear()
    cloud.service.fire(far.wakeup())
    assert cloud.aws.names() == ["GetItem", "SendMessageBatch"]
    cloud.aws.calls.clear()
    cloud.service.cancel(DEFAULT_TENANT, far.id)
    assert cloud.aws.names() == ["GetItem", "PutItem", "DeleteSchedule"]


@pytest.mark.parametrize("seconds", [5, 600, 1200, YEARS])
def test_cancel_deletes_the_schedule(cloud: Cloud, seconds: int) -> None:
    """A cancelled timer has no schedule."""
    timer = cloud.create(seconds)
    assert cloud.aws.schedules() == [f"{timer.id}.1"]
    cloud.service.cancel(DEFAULT_TENANT, timer.id)
    assert cloud.aws.schedules() == []
    deleted = requests(cloud.aws, "DeleteSchedule")
    assert [(it["Name"], it["GroupName"]) for it in deleted] == [(f"{timer.id}.1", NAME)]


def test_every_waiting_timer_has_one_schedule(cloud: Cloud) -> None:
    """After changes and a lost worker, a timer has one schedule, of its generation."""
    timer = cloud.create(3600)
    for hours in (2, 3):
        deadline = START + timedelta(hours=hours)
        timer = cloud.service.change(DEFAULT_TENANT, timer.id, deadline)
        assert cloud.aws.schedules() == [f"{timer.id}.{timer.generation}"]
    cloud.clock.now = timer.deadline
    store = cloud.service.store
    assert store.claim(timer.wakeup(), cloud.clock.now, cloud.clock.now)
    cloud.clock.forward(60)
    assert cloud.sweep() == 1
    after = cloud.read(timer.id)
    assert after.status is Status.RETRYING
    assert cloud.aws.schedules() == [f"{timer.id}.{after.generation}"]


@pytest.mark.parametrize("operation", ["CreateSchedule", "DeleteSchedule", "GetItem"])
@pytest.mark.parametrize("other", ["reschedule", "cancel"])
def test_a_race_leaves_the_schedule_of_the_last_change(
    cloud: Cloud, operation: str, other: str
) -> None:
    """A change between the calls of another leaves only the schedule of the last generation."""
    timer = cloud.create(3600)
    winner: list[int] = []

    def overtake(name: str) -> None:
        if name == operation and cloud.read(timer.id).generation == 2 and not winner:
            winner.append(1)
            if other == "cancel":
                cloud.service.cancel(DEFAULT_TENANT, timer.id)
            else:
                deadline = START + timedelta(hours=9)
                cloud.service.change(DEFAULT_TENANT, timer.id, deadline)

    cloud.aws.before = overtake
    cloud.service.change(DEFAULT_TENANT, timer.id, START + timedelta(hours=5))
    assert winner
    expected = [] if other == "cancel" else [f"{timer.id}.3"]
    assert cloud.aws.schedules() == expected


def test_requeue_sends_batches_of_ten(aws: Account, scheduler: AwsScheduler) -> None:
    """Requeued wake-ups are sent ten to a call, each with its own delay."""
    wakeups = [make(number, timedelta(seconds=number)).wakeup() for number in range(25)]
    scheduler.requeue(wakeups)
    batches = [request["Entries"] for request in requests(aws, "SendMessageBatch")]
    batches.sort(key=lambda batch: batch[0]["MessageBody"])  # they are sent side by side
    assert [len(batch) for batch in batches] == [10, 10, 5]
    sent = [entry for batch in batches for entry in batch]
    assert [entry["DelaySeconds"] for entry in sent] == [0, *range(24)]
    assert [decode_wakeup(entry["MessageBody"]) for entry in sent] == [
        replace(wakeup, hops=1) for wakeup in wakeups
    ]


def test_messages_are_grouped_by_host(aws: Account, scheduler: AwsScheduler) -> None:
    """Messages for one host share a message group, for SQS's fair queues; any host is accepted."""
    hosts = ["a.example", "a.example", "b.example:8443", "[::1]:1", "bücher.example", "", "x" * 999]
    scheduler.requeue([replace(make(n).wakeup(), host=host) for n, host in enumerate(hosts)])
    (request,) = requests(aws, "SendMessageBatch")
    groups = [entry["MessageGroupId"] for entry in request["Entries"]]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 6
    assert all(re.fullmatch("[0-9a-f]{16}", group) for group in groups)


def test_requeue_delays_by_fifteen_minutes_at_most(aws: Account, scheduler: AwsScheduler) -> None:
    """A wake-up due later than SQS can delay it gets the longest delay."""
    scheduler.requeue([make(1, timedelta(days=1)).wakeup()])
    assert requests(aws, "SendMessageBatch")[0]["Entries"][0]["DelaySeconds"] == 899


def test_hops_are_bounded(
    aws: Account, scheduler: AwsScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """A wake-up that was requeued too often is dropped and logged."""
    wakeup = replace(make().wakeup(), hops=MAX_HOPS)
    scheduler.requeue([replace(wakeup, hops=MAX_HOPS - 1), wakeup])
    entries = requests(aws, "SendMessageBatch")[0]["Entries"]
    assert [decode_wakeup(entry["MessageBody"]).hops for entry in entries] == [MAX_HOPS]
    assert caplog.messages == ["wake-up dropped"]


def client_error(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "CreateSchedule")


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        (client_error("AccessDeniedException", 403), True),
        (client_error("ValidationException", 400), True),
        (client_error("ResourceNotFoundException", 404), True),
        (client_error("ServiceQuotaExceededException", 402), True),
        (client_error("ThrottlingException", 429), False),
        (client_error("ThrottlingException", 400), False),
        (client_error("RequestThrottled", 400), False),
        (client_error("InternalServerException", 500), False),
        (ReadTimeoutError(endpoint_url="https://scheduler"), False),
    ],
)
@pytest.mark.parametrize("operation", ["CreateSchedule", "SendMessageBatch"])
def test_permanent_faults_refuse_the_timer(
    cloud: Cloud, operation: str, fault: Exception, refused: bool
) -> None:
    """A permanent fault removes the new timer; a temporary one leaves it to the sweep."""

    def fail(name: str) -> None:
        if name == operation:
            raise fault

    cloud.aws.before = fail
    if refused:
        with pytest.raises(ScheduleRefused):
            cloud.create(5)
        assert cloud.aws.dynamodb.scan(TableName=NAME)["Items"] == []
        assert cloud.aws.schedules() == []
    else:
        timer = cloud.create(5)
        assert not cloud.read(timer.id).armed


def test_an_existing_schedule_counts_as_created(cloud: Cloud) -> None:
    """A timer scheduled twice has one schedule."""
    timer = cloud.create(3600)
    cloud.service.scheduler.schedule(timer)
    assert cloud.aws.schedules() == [f"{timer.id}.1"]


def test_a_message_rejected_by_sqs_is_unavailable(
    aws: Account, scheduler: AwsScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If SQS accepts only a part of a batch, Unavailable is raised."""
    answer = {"Failed": [{"Id": "0", "Code": "InternalError", "SenderFault": False}]}
    monkeypatch.setattr(aws.sqs, "send_message_batch", lambda **_: answer)
    with pytest.raises(Unavailable, match="InternalError"):
        scheduler.requeue([make().wakeup()])


@pytest.mark.parametrize("id", ["a b", "x" * 63, "ü", "a/b"])
def test_rejects_invalid_schedule_names(scheduler: AwsScheduler, id: str) -> None:
    """A schedule's name has at most 64 of AWS's allowed characters; emulators accept any."""
    with pytest.raises(ScheduleRefused):
        scheduler.schedule(replace(make(), id=id))


def test_a_running_clock_does_not_refuse_a_late_schedule(aws: Account) -> None:
    """The backstop of a near timer is accepted although the clock moves on between two checks."""
    clock = Clock(START.replace(microsecond=940_000))

    def ticking() -> datetime:
        return clock.forward(0.05)

    scheduler_of(aws, ticking).schedule(make(1, timedelta(seconds=5)))
    assert len(aws.schedules()) == 1


def test_rejects_times_beyond_the_longest_delay(aws: Account, scheduler: AwsScheduler) -> None:
    """A schedule later than any deadline is refused; emulators accept any time."""
    with pytest.raises(ScheduleRefused):
        scheduler.schedule(make(1, timedelta(days=3650)))
    assert aws.schedules() == []


def test_rejects_wakeups_that_are_too_long(aws: Account, scheduler: AwsScheduler) -> None:
    """A wake-up longer than MAX_WAKEUP_LENGTH is refused before any call."""
    for delay in (timedelta(hours=1), timedelta(seconds=5)):
        with pytest.raises(ScheduleRefused):
            scheduler.schedule(replace(make(1, delay), tenant="x" * MAX_WAKEUP_LENGTH))
    assert aws.names() == []


@pytest.mark.parametrize("part", ["fire_arn", "role_arn", "dead_letter_arn", "group"])
def test_rejects_invalid_addresses(aws: Account, part: str) -> None:
    """A wrong ARN or name fails at the start, not with the first timer."""
    good = {name: getattr(aws.addresses, name) for name in Addresses.__dataclass_fields__}
    with pytest.raises(ValueError, match="nonsense here"):
        Addresses(**{**good, part: "nonsense here"})


def test_is_behind_when_the_queue_is_deep(
    scheduler: AwsScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler is behind while the queue has more than BACKLOG_LIMIT messages."""
    assert not scheduler.is_behind()
    monkeypatch.setattr(scheduler_module, "BACKLOG_LIMIT", -1)
    assert scheduler.is_behind()


def test_in_threads_runs_calls_concurrently() -> None:
    """Calls that wait for each other all finish."""
    gate = threading.Barrier(10, timeout=10)
    assert set(in_threads(gate.wait, [None] * 10)) == set(range(10))
