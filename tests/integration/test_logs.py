"""Log lines and metrics for CloudWatch, without secrets."""

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
from chalicelib.service.concurrency import one_by_one
from chalicelib.webhook.sender import WebhookSender
from tests.support.aws import TEMPLATE, account
from tests.support.cloud import Cloud, Context, Record, scheduler_of
from tests.support.fakes import START, OnFakes, created

SECRET = "s3cr3t"
REFUSAL = Outcome(status=404, answer=f"no {SECRET}", detail=f"by {SECRET}", duration=0.25)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Attach the logs to this text as on AWS; restore pytest's handlers afterwards."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    root, core = logging.getLogger(), logging.getLogger("chalicelib")
    kept = root.handlers, root.level, core.level
    lines = logs.attach("timers-test")
    lines.set_invocation(SimpleNamespace(aws_request_id="request-1"))
    yield text
    root.handlers = kept[0]
    root.setLevel(kept[1])
    core.setLevel(kept[2])


class LoggedService(OnFakes):
    """A service on fakes, and its events as read from standard output."""

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
        """Return the event lines and the metrics lines."""
        text = self._output.getvalue()
        assert SECRET not in text
        lines = [json.loads(line) for line in text.splitlines()]
        metrics = [line for line in lines if "_aws" in line]
        return [line for line in lines if "_aws" not in line], metrics


@pytest.fixture
def logged(output: io.StringIO) -> LoggedService:
    return LoggedService(output)


def values(metrics: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
    """Return the metrics of each line, without the frame of the format."""
    return [{k: v for k, v in it.items() if k not in ("_aws", "service")} for it in metrics]


def test_each_event_is_a_json_line(logged: LoggedService) -> None:
    """Each event is a JSON line with the timer, its tenant and the invocation."""
    timer = logged.create()
    logged.deliver(late=0.25)
    lines, _ = logged.read()
    assert [line["message"] for line in lines] == ["timer created", "webhook delivered"]
    for line in lines:
        assert line["timer"] == timer.id
        assert line["tenant"] == "acme"
        assert line["service"] == "timers-test"
        assert line["function_request_id"] == "request-1"
        assert line["level"] == "INFO"
    last = {name: lines[1][name] for name in ("status", "attempt", "lateness", "outcome")}
    assert last == {"status": "delivered", "attempt": 1, "lateness": 0.25, "outcome": 204}


def test_a_delivery_is_counted(logged: LoggedService) -> None:
    """A delivery is counted, with its lateness in seconds."""
    logged.create()
    logged.deliver(late=0.25)
    _, metrics = logged.read()
    assert values(metrics) == [{"Lateness": [0.25], "Delivered": [1.0]}]
    (frame,) = metrics[0]["_aws"]["CloudWatchMetrics"]
    assert frame["Namespace"] == "Timers"
    assert frame["Dimensions"] == [["service"]]
    assert metrics[0]["service"] == "timers-test"
    units = {metric["Name"]: metric["Unit"] for metric in frame["Metrics"]}
    assert units == {"Lateness": "Seconds", "Delivered": "Count"}


def test_a_failure_is_counted(logged: LoggedService) -> None:
    """A failed timer is counted, and the response's body is not logged."""
    logged.create()
    logged.sender.outcome = REFUSAL
    logged.deliver(late=2)
    lines, metrics = logged.read()
    assert values(metrics) == [{"Lateness": [2.0], "Failed": [1.0]}]
    assert lines[-1]["outcome"] == 404


def test_an_error_is_logged_without_its_detail(logged: LoggedService) -> None:
    """An error's class is logged; its detail, which others wrote, is not."""
    logged.create()
    logged.sender.outcome = Outcome(error="tls", detail=f"certificate of {SECRET}", duration=0.5)
    logged.deliver()
    lines, _ = logged.read()
    shown = {name: lines[-1][name] for name in ("outcome", "duration", "generation", "attempt")}
    assert shown == {"outcome": "tls", "duration": 0.5, "generation": 2, "attempt": 1}


def test_a_dropped_outcome_is_not_counted(logged: LoggedService) -> None:
    """The outcome of a worker that lost its claim is dropped and not counted."""
    timer = logged.create()
    logged.sender.during = lambda: logged.service.reclaim(logged.store.timers[timer.id])
    logged.deliver()
    lines, metrics = logged.read()
    assert lines[-1]["message"] == "outcome dropped"
    assert values(metrics) == []


def test_unserved_requests_are_counted(logged: LoggedService) -> None:
    """A 503 is logged with its cause and counted, because its Lambda invocation does not fail."""

    @responses.errors_as_problems
    def view() -> Response:
        raise Unavailable("DynamoDB can't do this now: X.") from ValueError("the role may not")

    assert view().status_code == 503
    ((line,), (metric,)) = logged.read()
    assert (line["error"], line["cause"]) == ("DynamoDB can't do this now: X.", "the role may not")
    assert values([metric]) == [{"Unserved": [1.0]}]


def test_libraries_log_no_secret(logged: LoggedService) -> None:
    """A response with a malformed header is not logged: it may hold a secret, as the URL may."""
    answer = f"HTTP/1.1 200 OK\r\nno colon {SECRET}\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_answer, args=(server, answer.encode()), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}"
        timer = new_timer("id-1", "acme", Webhook(url=url), START, START)
        outcome = WebhookSender(Targets.parse(LOOPBACK_TARGETS)).send(timer, START)
    assert outcome.status == 200
    assert logged.read() == ([], [])


def _answer(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_requeued_timers_are_counted(logged: LoggedService) -> None:
    """Timers that the sweep requeues are counted as Overdue, for a CloudWatch alarm."""
    logged.create()
    logged.clock.forward(60)
    logged.service.sweep(logged.clock.now + timedelta(minutes=1))
    lines, metrics = logged.read()
    assert values(metrics) == [{"Overdue": [1.0]}]
    assert [line["message"] for line in lines] == ["timer created", "timer requeued"]


def test_a_reclaimed_timer_fails_once(logged: LoggedService) -> None:
    """A reclaimed timer is retried, and counted as failed only after its last attempt."""
    logged.create(0)
    for _ in range(8):
        wakeup = logged.scheduler.wakeups[-1]
        claimed = logged.store.claim(wakeup, logged.clock.now, logged.clock.now)
        assert claimed is not None
        logged.service.reclaim(claimed)
    lines, metrics = logged.read()
    assert values(metrics) == [{"Failed": [1.0]}]
    assert lines[-1]["status"] == "failed"


def test_ignored_and_postponed_events_name_their_timer(logged: LoggedService) -> None:
    """Events that change nothing are logged with the timer's id, too."""
    timer = logged.create(0)
    logged.service.cancel("acme", timer.id)
    logged.deliver()
    other = logged.create(0)
    logged.scheduler.failure = Unavailable("SQS")
    logged.store.replace(other.mark_unarmed(logged.clock.now))
    logged.clock.forward(60)
    with pytest.raises(Unavailable):
        logged.service.sweep(logged.clock.now + timedelta(minutes=1))
    lines, _ = logged.read()
    by_event = {line["message"]: line for line in lines}
    for event, id in (("wake-up ignored", timer.id), ("timer postponed", other.id)):
        assert (by_event[event]["timer"], by_event[event]["tenant"]) == (id, "acme")
    assert by_event["timer postponed"]["error"] == "SQS"


def test_failed_and_dropped_messages_name_their_timer(logged: LoggedService) -> None:
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
    lines, _ = logged.read()
    about = {line["message"]: line for line in lines if "timer" in line}
    assert about["wake-up dropped"]["timer"] == wakeup.id
    assert about["message failed"]["timer"] == wakeup.id
    assert about["message failed"]["tenant"] == DEFAULT_TENANT
    assert [line["message"] for line in lines if "timer" not in line] == ["message failed"]


def test_warnings_of_libraries_are_json(logged: LoggedService) -> None:
    """A library's warning is a JSON line; its info messages are not logged."""
    logging.getLogger("botocore").info("chatter")
    logging.getLogger("botocore").warning("beware")
    lines, metrics = logged.read()
    assert [line["message"] for line in lines] == ["beware"]
    assert metrics == []


def test_cloudwatch_alarms_use_emitted_metrics(logged: LoggedService) -> None:
    """The template's alarms use only names of metrics that are emitted."""
    watched = {
        it["Properties"]["MetricName"]
        for it in TEMPLATE["Resources"].values()
        if it["Type"] == "AWS::CloudWatch::Alarm"
        and it["Properties"].get("Namespace") == logs.NAMESPACE
    }
    logged.create()
    logged.deliver()
    logged.create()
    logged.sender.outcome = REFUSAL
    logged.deliver()
    logged.create()
    logged.clock.forward(60)
    logged.service.sweep(logged.clock.now + timedelta(minutes=1))
    logging.getLogger("chalicelib.http.responses").error("request not served")
    emitted = {name for it in values(logged.read()[1]) for name in it}
    assert watched <= emitted
    assert emitted == {"Lateness", "Delivered", "Failed", "Overdue", "Unserved"}
