"""app.py's functions as Lambda invokes them, on moto; and what is made when."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from chalice.test import Client

import app as app_module
from app import app
from chalicelib import runtime
from chalicelib.aws import handlers, scheduler
from chalicelib.aws.scheduler import AwsScheduler
from chalicelib.core.errors import NotConfigured, Unavailable
from chalicelib.core.timer import DEFAULT_TENANT, Status, Wakeup
from chalicelib.service.concurrency import one_by_one
from tests.support.aws import ACCOUNT, REGION, account
from tests.support.cloud import Cloud
from tests.support.processes import ROOT, environment


class Context:
    """An invocation's context."""

    def __init__(self, milliseconds: int = 60_000) -> None:
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self._milliseconds


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with account() as aws:
        cloud = Cloud(aws)
        scheduler = AwsScheduler(
            lambda: aws.scheduler, lambda: aws.sqs, aws.addresses, cloud.clock, one_by_one
        )
        monkeypatch.setattr(
            runtime,
            "_installed",
            cloud.service.dependencies(scheduler=scheduler),
        )
        yield cloud


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(app) as client:
        yield client


def sqs_event(client: Client, *bodies: str) -> Any:
    return client.events.generate_sqs_event(message_bodies=list(bodies), queue_name="timers-dev")


def body(wakeup: Wakeup) -> str:
    return msgspec.json.encode(wakeup).decode()


def test_fire_sends_the_timer_to_the_queue(cloud: Cloud, client: Client) -> None:
    """A schedule's Input is understood as it was written, and becomes a message."""
    timer = cloud.create(1200)
    (name,) = cloud.aws.schedules()
    schedule = cloud.aws.scheduler.get_schedule(GroupName=stage_name(cloud), Name=name)
    cloud.clock.now = timer.deadline - timedelta(seconds=420.5)
    cloud.aws.calls.clear()
    client.lambda_.invoke("fire", msgspec.json.decode(schedule["Target"]["Input"]))
    assert cloud.aws.names() == ["GetItem", "SendMessageBatch"]
    entry = cloud.aws.calls[1][1]["Entries"][0]
    assert entry["DelaySeconds"] == 419
    assert scheduler.decode_wakeup(entry["MessageBody"]).id == timer.id


def stage_name(cloud: Cloud) -> str:
    return cloud.aws.addresses.group


def test_deliver_answers_a_batch(cloud: Cloud, client: Client) -> None:
    """Each message of a batch is claimed, posted and recorded."""
    created = [cloud.create(0) for _ in range(10)]
    event = sqs_event(client, *(body(timer.wakeup()) for timer in created))
    app_module.deliver(event, Context())
    assert len(cloud.sender.sent) == 10
    assert {cloud.read(timer.id).status for timer in created} == {Status.DELIVERED}


def test_deliver_raises_so_that_the_rest_comes_again(
    cloud: Cloud, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the infrastructure escapes; what went well is deleted first."""
    good, bad = cloud.create(0), cloud.create(0)
    real = cloud.service.store

    def before(operation: str) -> None:
        if operation == "UpdateItem" and cloud.aws.calls[-1][1]["Key"]["id"]["S"] == bad.id:
            raise Unavailable("DynamoDB")

    cloud.aws.before = before
    event = sqs_event(client, body(good.wakeup()), body(bad.wakeup()))
    with pytest.raises(Unavailable):
        app_module.deliver(event, Context())
    assert real.get(DEFAULT_TENANT, good.id).status is Status.DELIVERED  # type: ignore[union-attr]
    assert cloud.aws.names()[-2] == "DeleteMessageBatch"


def test_deliver_starts_nothing_that_it_can_not_finish(cloud: Cloud) -> None:
    """With too little of the invocation left the webhook is not posted; the claim is released and
    the timer rung for again."""

    class Record:
        receipt_handle = "handle"

        def __init__(self, text: str) -> None:
            self.body = text

    timer = cloud.create(0)
    handlers.deliver(runtime.current(None), [Record(body(timer.wakeup()))], Context(30_000))
    assert cloud.sender.sent == []
    assert cloud.read(timer.id).status is Status.SCHEDULED
    cloud.turn()
    assert cloud.read(timer.id).status is Status.DELIVERED


def test_sweep_finds_the_forgotten(cloud: Cloud, client: Client) -> None:
    """The scheduled function runs the sweep within the time it has."""
    cloud.create(60)
    cloud.clock.forward(100)
    cloud.aws.calls.clear()
    event = client.events.generate_cw_event("aws.events", "x", {}, [])
    app_module.sweep(event, Context())
    assert "SendMessageBatch" in cloud.aws.names()


@pytest.mark.parametrize("event", [{}, {"id": 1}, [], "x", None])
def test_fire_refuses_what_is_no_ring(cloud: Cloud, client: Client, event: Any) -> None:
    """An event of another shape is an error that Lambda shows, not a timer."""
    with pytest.raises(msgspec.ValidationError):
        client.lambda_.invoke("fire", event)


def test_deliver_runs_on_aws_only(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    """Without an alarm on AWS there are no messages to answer."""
    monkeypatch.setattr(runtime, "_installed", cloud.service.dependencies())
    with pytest.raises(NotConfigured):
        handlers.deliver(runtime.current(None), [], None)


def test_parts_are_named_by_rule() -> None:
    """On AWS everything is found from the stage and the function's own ARN, and the Scheduler's
    client is not made before an alarm is set."""
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
at = parts.scheduler._at
assert made == ["dynamodb"]
seconds = parts.scheduler._sqs().meta.config
made += [seconds.connect_timeout, seconds.read_timeout]
url = parts.scheduler._queue_url()
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
