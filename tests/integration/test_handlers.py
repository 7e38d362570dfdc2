"""The Lambda functions of app.py, on moto, and the time at which clients are created."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ReadTimeoutError
from chalice.test import Client

import app as app_module
from app import app
from chalicelib import runtime
from chalicelib.aws import handlers
from chalicelib.aws.queue import encode_wakeup
from chalicelib.core.errors import NotConfigured, Unavailable
from chalicelib.core.timer import DEFAULT_TENANT, Status, Wakeup
from chalicelib.runtime import Dependencies
from tests.contracts.store import make
from tests.support.aws import ACCOUNT, REGION, Account, account
from tests.support.cloud import Cloud, Context, Record, queue_of
from tests.support.fakes import START, Clock
from tests.support.processes import ROOT, environment


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with account() as aws:
        cloud = Cloud(aws)
        monkeypatch.setattr(runtime, "_installed", cloud.dependencies)
        yield cloud


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(app) as client:
        yield client


def sqs_event(client: Client, *bodies: str) -> Any:
    return client.events.generate_sqs_event(message_bodies=list(bodies), queue_name="timers-dev")


def test_fire_sends_the_timer_to_the_queue(cloud: Cloud, client: Client) -> None:
    """`fire` reads a schedule's Input and sends a message with the remaining delay."""
    timer = cloud.create(1200)
    (name,) = cloud.aws.schedules()
    schedule = cloud.aws.scheduler.get_schedule(GroupName=stage_name(cloud), Name=name)
    cloud.clock.now = timer.deadline - timedelta(seconds=420.5)
    cloud.aws.calls.clear()
    client.lambda_.invoke("fire", msgspec.json.decode(schedule["Target"]["Input"]))
    assert cloud.aws.names() == ["GetItem", "SendMessageBatch"]
    entry = cloud.aws.calls[1][1]["Entries"][0]
    assert entry["DelaySeconds"] == 419
    assert handlers.decode_wakeup(entry["MessageBody"]).id == timer.id


def stage_name(cloud: Cloud) -> str:
    return cloud.aws.addresses.group


def test_deliver_handles_a_batch(cloud: Cloud, client: Client) -> None:
    """Each timer of a batch is claimed, its webhook sent, and the outcome recorded."""
    created = [cloud.create(0) for _ in range(10)]
    event = sqs_event(client, *(encode_wakeup(timer.wakeup()) for timer in created))
    app_module.deliver(event, Context())
    assert len(cloud.sender.sent) == 10
    assert {cloud.read(timer.id).status for timer in created} == {Status.DELIVERED}


def test_deliver_deletes_delivered_messages_and_raises(
    cloud: Cloud, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a message fails, the delivered messages are deleted, and the failure is raised."""
    good, bad = cloud.create(0), cloud.create(0)
    real = cloud.service.store

    def before(operation: str) -> None:
        if operation == "UpdateItem" and cloud.aws.calls[-1][1]["Key"]["id"]["S"] == bad.id:
            raise Unavailable("DynamoDB")

    cloud.aws.before = before
    event = sqs_event(client, encode_wakeup(good.wakeup()), encode_wakeup(bad.wakeup()))
    with pytest.raises(Unavailable):
        app_module.deliver(event, Context())
    assert real.get(DEFAULT_TENANT, good.id).status is Status.DELIVERED  # type: ignore[union-attr]
    assert cloud.aws.names()[-2] == "DeleteMessageBatch"


def received(aws: Account, count: int) -> list[Record]:
    """Send wake-ups to the queue and return them as received."""
    for number in range(count):
        body = encode_wakeup(make(number).wakeup())
        aws.sqs.send_message(QueueUrl=aws.queue_url(), MessageBody=body)
    return [Record(it["Body"], it["ReceiptHandle"]) for it in messages(aws)]


def messages(aws: Account) -> Any:
    """Return the messages in the queue, and leave them visible."""
    answer = aws.sqs.receive_message(
        QueueUrl=aws.queue_url(), MaxNumberOfMessages=10, VisibilityTimeout=0
    )
    return answer["Messages"]


class FakeService:
    """A service that records the delivered timers; `failing` ones raise Unavailable."""

    def __init__(self, *failing: str) -> None:
        self.delivered: set[str] = set()
        self._failing = failing

    def now(self) -> datetime:
        return START

    def deliver(self, wakeup: Wakeup, ends_at: datetime) -> None:
        if wakeup.id in self._failing:
            raise Unavailable("DynamoDB")
        self.delivered.add(wakeup.id)


def dependencies(aws: Account, service: Any) -> Dependencies:
    return Dependencies(
        commands=service, worker=service, clock=service.now, queue=queue_of(aws, Clock())
    )


def test_lambda_deletes_a_batch_without_failures(cloud: Cloud) -> None:
    """If all messages succeed, the handler makes no call: Lambda deletes them."""
    records = received(cloud.aws, 10)
    cloud.aws.calls.clear()
    service = FakeService()
    handlers.deliver(dependencies(cloud.aws, service), records, Context())
    assert service.delivered == {make(number).id for number in range(10)}
    assert cloud.aws.calls == []


def test_only_failed_messages_return(cloud: Cloud) -> None:
    """If some messages fail, the others are deleted and the failure is raised."""
    service = FakeService(make(1).id, make(3).id)
    records = received(cloud.aws, 5)
    with pytest.raises(Unavailable):
        handlers.deliver(dependencies(cloud.aws, service), records, Context())
    left = {handlers.decode_wakeup(message["Body"]).id for message in messages(cloud.aws)}
    assert left == {make(1).id, make(3).id}


def test_a_malformed_message_fails_alone(cloud: Cloud) -> None:
    """A malformed message raises an error, and the rest of its batch is delivered."""
    service = FakeService()
    records = [*received(cloud.aws, 2), Record("garbage")]
    with pytest.raises(msgspec.DecodeError, match="malformed"):
        handlers.deliver(dependencies(cloud.aws, service), records, Context())
    assert len(service.delivered) == 2


def test_a_batch_fails_with_its_own_error_if_the_queue_is_down(cloud: Cloud) -> None:
    """If the delivered messages can't be deleted either, the batch's own failure is raised."""
    records = received(cloud.aws, 2)

    def fail(operation: str) -> None:
        raise ReadTimeoutError(endpoint_url="https://sqs")

    cloud.aws.before = fail
    with pytest.raises(Unavailable, match="DynamoDB"):
        handlers.deliver(dependencies(cloud.aws, FakeService(make(1).id)), records, Context())


def test_deliver_starts_no_attempt_it_can_not_finish(cloud: Cloud) -> None:
    """Near the end of an invocation the claim is released, and the wake-up requeued."""
    timer = cloud.create(0)
    handlers.deliver(runtime.current(None), [Record(encode_wakeup(timer.wakeup()))], Context(30))
    assert cloud.sender.sent == []
    assert cloud.read(timer.id).status is Status.SCHEDULED
    cloud.turn()
    assert cloud.read(timer.id).status is Status.DELIVERED


def test_sweep_requeues_overdue_timers(cloud: Cloud, client: Client) -> None:
    """The sweep function requeues overdue timers."""
    cloud.create(60)
    cloud.clock.forward(100)
    cloud.aws.calls.clear()
    event = client.events.generate_cw_event("aws.events", "x", {}, [])
    app_module.sweep(event, Context())
    assert "SendMessageBatch" in cloud.aws.names()


@pytest.mark.parametrize("event", [{}, {"id": 1}, [], "x", None])
def test_fire_rejects_other_events(cloud: Cloud, client: Client, event: Any) -> None:
    """An event that is not a wake-up raises an error, which Lambda shows."""
    with pytest.raises(msgspec.ValidationError):
        client.lambda_.invoke("fire", event)


def test_deliver_needs_a_queue(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    """Without a queue `deliver` raises NotConfigured."""
    monkeypatch.setattr(runtime, "_installed", cloud.service.dependencies())
    with pytest.raises(NotConfigured):
        handlers.deliver(runtime.current(None), [], None)


def test_dependencies_are_named_after_the_stage() -> None:
    """All names come from the stage and the function's ARN; clients are created when first used."""
    program = f"""
import botocore.session, json
made = []
original = botocore.session.Session.create_client
def create_client(self, name, *args, **kwargs):
    made.append(name)
    return original(self, name, *args, **kwargs)
botocore.session.Session.create_client = create_client
from chalicelib import runtime
assert made == []
class Context:
    invoked_function_arn = "arn:aws:lambda:{REGION}:{ACCOUNT}:function:timers-dev"
    aws_request_id = "x"
parts = runtime.current(Context())
assert runtime.current(Context()) is parts
at = parts.worker._scheduler._addresses
assert made == ["dynamodb"]
url = parts.queue.url()
seconds = parts.queue._client().meta.config
made += [seconds.connect_timeout, seconds.read_timeout]
assert parts.anonymous is None
assert parts.keys._table == "timers-dev-tenants"
assert parts.log_lines.log_format["function_request_id"] == "x"
print(json.dumps([made, at.group, at.fire_arn, at.role_arn, at.dead_letter_arn, url]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(STAGE="dev", AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x"),  # noqa: S106
        capture_output=True,
        text=True,
        check=True,
    )
    assert msgspec.json.decode(ended.stdout) == [
        ["dynamodb", "sqs", 1, 2],
        "timers-dev",
        f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:timers-dev-fire",
        f"arn:aws:iam::{ACCOUNT}:role/timers-dev-scheduler",
        f"arn:aws:sqs:{REGION}:{ACCOUNT}:timers-dev-dead",
        f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/timers-dev",
    ]
