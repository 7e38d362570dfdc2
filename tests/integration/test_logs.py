"""What CloudWatch gets: lines and metrics, and no secret in them."""

import io
import json
import logging
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from chalice.app import Response
from msgspec import DecodeError
from msgspec.structs import replace

from chalicelib.aws import handlers, logs
from chalicelib.aws.queue import encode_wakeup
from chalicelib.core.errors import Unavailable
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import DEFAULT_TENANT, Outcome, Timer, Webhook, new_timer
from chalicelib.http import responses
from chalicelib.service.service import one_by_one
from chalicelib.webhook.sender import WebhookSender
from tests.support.aws import TEMPLATE, account
from tests.support.cloud import Cloud, Context, Record, scheduler_of
from tests.support.fakes import START, OnFakes, created

SECRET = "s3cr3t"
REFUSAL = Outcome(status=404, answer=f"no {SECRET}", detail=f"by {SECRET}", duration=0.25)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Attach as on AWS, to this text, and put back what pytest had attached."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    root, core = logging.getLogger(), logging.getLogger("chalicelib")
    kept = root.handlers, root.level, core.level
    lines = logs.attach("timers-test")
    lines.invocation(SimpleNamespace(aws_request_id="request-1"))
    yield text
    root.handlers = kept[0]
    root.setLevel(kept[1])
    core.setLevel(kept[2])


class Told(OnFakes):
    """A service on fakes whose events are read back from standard output."""

    def __init__(self, output: io.StringIO) -> None:
        super().__init__()
        self._output = output

    def create(self, seconds: float = 5) -> Timer:
        url = f"https://example.com/{SECRET}?token={SECRET}"
        return created(self.service, Webhook(url=url), seconds, "acme")

    def deliver(self, late: float = 0) -> None:
        wakeup = self.scheduler.wakeups[-1]
        self.clock.now = wakeup.due_at + timedelta(seconds=late)
        self.service.deliver(wakeup, self.clock.now + timedelta(minutes=1))

    def read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the lines for people and the metrics."""
        text = self._output.getvalue()
        assert SECRET not in text
        lines = [json.loads(line) for line in text.splitlines()]
        metrics = [line for line in lines if "_aws" in line]
        return [line for line in lines if "_aws" not in line], metrics


@pytest.fixture
def told(output: io.StringIO) -> Told:
    return Told(output)


def values(metrics: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
    """Return what each metrics line says, without its frame."""
    return [{k: v for k, v in it.items() if k not in ("_aws", "service")} for it in metrics]


def test_a_life_in_lines(told: Told) -> None:
    """Each event is one JSON line with the timer, its tenant and the invocation."""
    timer = told.create()
    told.deliver(late=0.25)
    lines, _ = told.read()
    assert [line["message"] for line in lines] == ["timer created", "webhook delivered"]
    for line in lines:
        assert line["timer"] == timer.id
        assert line["tenant"] == "acme"
        assert line["service"] == "timers-test"
        assert line["function_request_id"] == "request-1"
        assert line["level"] == "INFO"
    told_last = {name: lines[1][name] for name in ("status", "attempt", "lateness", "outcome")}
    assert told_last == {"status": "delivered", "attempt": 1, "lateness": 0.25, "outcome": 204}


def test_delivered(told: Told) -> None:
    """A delivery is counted, with its lateness in seconds."""
    told.create()
    told.deliver(late=0.25)
    _, metrics = told.read()
    assert values(metrics) == [{"Lateness": [0.25], "Delivered": [1.0]}]
    (frame,) = metrics[0]["_aws"]["CloudWatchMetrics"]
    assert frame["Namespace"] == "Timers"
    assert frame["Dimensions"] == [["service"]]
    assert metrics[0]["service"] == "timers-test"
    units = {metric["Name"]: metric["Unit"] for metric in frame["Metrics"]}
    assert units == {"Lateness": "Seconds", "Delivered": "Count"}


def test_failed(told: Told) -> None:
    """A timer that ends as failed is counted, and the answer's body is not told."""
    told.create()
    told.sender.outcome = REFUSAL
    told.deliver(late=2)
    lines, metrics = told.read()
    assert values(metrics) == [{"Lateness": [2.0], "Failed": [1.0]}]
    assert lines[-1]["outcome"] == 404


def test_an_error_is_told_by_its_class(told: Told) -> None:
    """What somebody else wrote into the detail stays out of the log."""
    told.create()
    told.sender.outcome = Outcome(error="tls", detail=f"certificate of {SECRET}", duration=0.5)
    told.deliver()
    lines, _ = told.read()
    shown = {name: lines[-1][name] for name in ("outcome", "duration", "generation", "attempt")}
    assert shown == {"outcome": "tls", "duration": 0.5, "generation": 2, "attempt": 1}


def test_what_is_not_recorded_is_not_counted(told: Told) -> None:
    """A worker that came too late has delivered, but whoever took its claim counts it."""
    timer = told.create()
    told.sender.during = lambda: told.service.reclaim(told.store.timers[timer.id])
    told.deliver()
    lines, metrics = told.read()
    assert lines[-1]["message"] == "outcome dropped"
    assert values(metrics) == []


def test_requests_that_are_not_served_are_counted(told: Told) -> None:
    """A 503 is an event with its cause, for a Lambda that answers one has not failed."""

    @responses.problems
    def view() -> Response:
        raise Unavailable("DynamoDB can't do this now: X.") from ValueError("the role may not")

    assert view().status_code == 503
    ((line,), (metric,)) = told.read()
    assert (line["error"], line["cause"]) == ("DynamoDB can't do this now: X.", "the role may not")
    assert values([metric]) == [{"Unserved": [1.0]}]


def test_libraries_tell_no_secret(told: Told) -> None:
    """urllib3 would log URL and headers of a receiver that answers with a malformed header."""
    answer = f"HTTP/1.1 200 OK\r\nno colon {SECRET}\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_answer, args=(server, answer.encode()), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}"
        timer = new_timer("id-1", "acme", Webhook(url=url), START, START)
        outcome = WebhookSender(Targets.parse(LOOPBACK_TARGETS)).send(timer, START)
    assert outcome.status == 200
    assert told.read() == ([], [])


def _answer(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_overdue(told: Told) -> None:
    """What the sweep has to ring for is counted; the alarms are to find it."""
    told.create()
    told.clock.forward(60)
    told.service.sweep(told.clock.now + timedelta(minutes=1))
    lines, metrics = told.read()
    assert values(metrics) == [{"Overdue": [1.0]}]
    assert [line["message"] for line in lines] == ["timer created", "timer requeued"]


def test_a_lost_worker_is_failure_only_at_the_end(told: Told) -> None:
    """A timer reclaimed is tried again; the timer that kills its workers is counted once."""
    told.create(0)
    for _ in range(8):
        wakeup = told.scheduler.wakeups[-1]
        claimed = told.store.claim(wakeup, told.clock.now, told.clock.now)
        assert claimed is not None
        told.service.reclaim(claimed)
    lines, metrics = told.read()
    assert values(metrics) == [{"Failed": [1.0]}]
    assert lines[-1]["status"] == "failed"


def test_what_is_ignored_or_put_off_names_its_timer(told: Told) -> None:
    """Also where nothing becomes of an event, one can find it by the timer's id."""
    timer = told.create(0)
    told.service.cancel("acme", timer.id)
    told.deliver()
    other = told.create(0)
    told.scheduler.failure = Unavailable("SQS")
    told.store.replace(other.mark_unarmed(told.clock.now))
    told.clock.forward(60)
    with pytest.raises(Unavailable):
        told.service.sweep(told.clock.now + timedelta(minutes=1))
    lines, _ = told.read()
    by_event = {line["message"]: line for line in lines}
    for event, id in (("wake-up ignored", timer.id), ("timer postponed", other.id)):
        assert (by_event[event]["timer"], by_event[event]["tenant"]) == (id, "acme")
    assert by_event["timer postponed"]["error"] == "SQS"


def test_failed_and_dropped_messages_name_their_timer(told: Told) -> None:
    """A message that can't be delivered names its timer, and so does a dropped wake-up."""
    with account() as aws:
        cloud = Cloud(aws)
        wakeup = cloud.create(0).wakeup()
        scheduler_of(aws, cloud.clock, one_by_one).requeue([replace(wakeup, hops=99)])

        def fail(operation: str) -> None:
            raise Unavailable("DynamoDB")

        aws.before = fail
        for body, error in ((encode_wakeup(wakeup), Unavailable), ("garbage", DecodeError)):
            with pytest.raises(error):
                handlers.deliver(cloud.dependencies, [Record(body)], Context())
    lines, _ = told.read()
    about = {line["message"]: line for line in lines if "timer" in line}
    assert about["wake-up dropped"]["timer"] == wakeup.id
    assert about["message failed"]["timer"] == wakeup.id
    assert about["message failed"]["tenant"] == DEFAULT_TENANT
    assert [line["message"] for line in lines if "timer" not in line] == ["message failed"]


def test_other_libraries_speak_json_too(told: Told) -> None:
    """A warning of a library is a line like the others; its chatter is none."""
    logging.getLogger("botocore").info("chatter")
    logging.getLogger("botocore").warning("beware")
    lines, metrics = told.read()
    assert [line["message"] for line in lines] == ["beware"]
    assert metrics == []


def test_alarms_and_dashboard_look_at_these_metrics(told: Told) -> None:
    """The names in the template are those of the metrics."""
    watched = {
        it["Properties"]["MetricName"]
        for it in TEMPLATE["Resources"].values()
        if it["Type"] == "AWS::CloudWatch::Alarm"
        and it["Properties"].get("Namespace") == logs.NAMESPACE
    }
    told.create()
    told.deliver()
    told.create()
    told.sender.outcome = REFUSAL
    told.deliver()
    told.create()
    told.clock.forward(60)
    told.service.sweep(told.clock.now + timedelta(minutes=1))
    logging.getLogger("chalicelib.http.responses").error("request not served")
    emitted = {name for it in values(told.read()[1]) for name in it}
    assert watched <= emitted
    assert emitted == {"Lateness", "Delivered", "Failed", "Overdue", "Unserved"}
