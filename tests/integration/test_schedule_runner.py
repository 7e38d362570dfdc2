"""The schedule runner fires LocalStack's schedules as EventBridge Scheduler does on AWS."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from infra.localstack import schedule_runner
from infra.localstack.schedule_runner import (
    Runner,
    UnsupportedSchedule,
    backoff,
    due_at,
    exhausted,
    fires_at,
)
from tests.support.aws import ACCOUNT, NAME, REGION, Account, account
from tests.support.fakes import START, Clock
from tests.support.processes import ROOT, environment

DOWN = EndpointConnectionError(endpoint_url="http://localhost:4566")
INPUT = '{"id": "t", "secret": "xyzzy"}'


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": f"{code}, sadly"}}, "Invoke")


class FakeLambda:
    """Records invocations; the first ones fail with the `faults`, one each."""

    def __init__(self, clock: Clock) -> None:
        self.invocations: list[dict[str, Any]] = []
        self.attempts: list[float] = []
        self.faults: list[Exception] = []
        self._clock = clock

    def invoke(self, **request: Any) -> None:
        self.attempts.append((self._clock.now - START).total_seconds())
        if self.faults:
            raise self.faults.pop(0)
        self.invocations.append(request)


class Stage:
    """A stage's schedule group on moto, its function, and the runner's log."""

    def __init__(self, aws: Account) -> None:
        self.aws = aws
        self.clock = Clock()
        self.functions = FakeLambda(self.clock)
        self.log: list[str] = []
        self.runner = self.new_runner()

    def new_runner(self, precision: int = 1) -> Runner:
        """Return a runner without any state."""
        return Runner(
            self.aws.scheduler,
            self.functions,
            self.aws.sqs,
            group=NAME,
            clock=self.clock,
            log=self.log.append,
            precision=precision,
        )

    def put(
        self, name: str = "t.1", *, target: Any = None, change: bool = False, **parts: Any
    ) -> None:
        """Create or change a schedule; it is due after 5 s."""
        addresses = self.aws.addresses
        put: Any = (
            self.aws.scheduler.update_schedule if change else self.aws.scheduler.create_schedule
        )
        schedule: dict[str, Any] = {
            "Name": name,
            "GroupName": NAME,
            "ScheduleExpression": "at(2026-01-31T12:00:05)",
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "ActionAfterCompletion": "DELETE",
            "Target": {
                "Arn": addresses.fire_arn,
                "RoleArn": addresses.role_arn,
                "Input": INPUT,
                "DeadLetterConfig": {"Arn": addresses.dead_letter_arn},
                **(target or {}),
            },
        }
        with self.aws.unobserved():
            put(**schedule | parts)

    def poll(self, seconds: float = 0) -> None:
        """Advance the clock, then poll once."""
        self.clock.forward(seconds)
        self.runner.poll()

    def polls(self, seconds: int) -> None:
        """Poll once a second."""
        for _ in range(seconds):
            self.poll(1)

    def fail(self, operation: str, error: BaseException) -> None:
        """Make one operation fail from now on."""

        def before(called: str) -> None:
            if called == operation:
                raise error

        self.aws.before = before

    def mend(self) -> None:
        """Make all operations succeed again."""
        self.aws.before = lambda _: None

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the messages in the dead-letter queue."""
        answer = self.aws.sqs.receive_message(
            QueueUrl=self.aws.queue_url() + "-dead", MessageAttributeNames=["All"]
        )
        return [dict(message) for message in answer.get("Messages", [])]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with account() as aws:
        with aws.unobserved():
            aws.sqs.create_queue(QueueName=f"{NAME}-dead")
        yield Stage(aws)


@pytest.mark.parametrize(
    ("expression", "zone", "moment"),
    [
        ("at(2026-01-31T12:00:05)", "UTC", "2026-01-31T12:00:05"),
        ("at(2026-01-31T12:00:05)", "Europe/Berlin", "2026-01-31T11:00:05"),
        ("at(2026-07-31T12:00:05)", "Europe/Berlin", "2026-07-31T10:00:05"),
        ("at(2026-01-31T00:00:00)", "Asia/Kathmandu", "2026-01-30T18:15:00"),
        ("at(2026-10-25T02:30:00)", "Europe/Berlin", "2026-10-25T00:30:00"),  # ambiguous
        ("at(2026-03-29T02:30:00)", "Europe/Berlin", "2026-03-29T01:30:00"),  # skipped
    ],
)
def test_due_at_converts_the_time_zone(expression: str, zone: str, moment: str) -> None:
    """`at(…)` is in the schedule's time zone. An ambiguous hour means the first one."""
    assert due_at(expression, zone) == datetime.fromisoformat(moment).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        ("rate(5 minutes)", "UTC"),
        ("cron(0 9 * * ? *)", "UTC"),
        ("at(2026-01-31T12:00:05Z)", "UTC"),
        ("at(2026-01-31T12:00:05.5)", "UTC"),
        ("at(2026-01-31T12:00)", "UTC"),
        ("at(2026-02-30T12:00:00)", "UTC"),
        ("at(٢٠٢٦-01-31T12:00:05)", "UTC"),
        ("at(0001-01-01T00:00:00)", "Asia/Tokyo"),
        ("at(2026-01-31T12:00:05)", "Mars/Olympus"),
        ("at(2026-01-31T12:00:05)", "../../etc/passwd"),
        ("at(2026-01-31T12:00:05)", "Europe"),
    ],
)
def test_due_at_rejects_other_expressions(expression: str, zone: str) -> None:
    """Recurring, malformed and impossible expressions and unknown zones are unsupported."""
    with pytest.raises(UnsupportedSchedule):
        due_at(expression, zone)


def test_precision_spreads_schedules() -> None:
    """A schedule fires in a second fixed by its name: never early, at most `precision` late."""
    seconds = [(fires_at(f"t{n}.1", START, 60) - START).total_seconds() for n in range(6000)]
    counts = Counter(seconds)
    assert set(counts) == set(range(60))
    assert max(counts.values()) < 2 * min(counts.values())
    assert fires_at("t1.1", START, 60) == fires_at("t1.1", START, 60)
    assert {fires_at(f"t{n}.1", START, 1) for n in range(100)} == {START}


def test_backoff_doubles_up_to_a_minute() -> None:
    """The first retry comes after a second, later ones at most a minute apart."""
    pauses = [backoff(attempts).total_seconds() for attempts in (1, 2, 3, 4, 5, 6, 7, 8, 186)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(
    ("policy", "attempts", "age", "limit"),
    [
        ({}, 185, 86_400, ""),
        ({}, 186, 0, "MaximumRetryAttempts"),
        ({}, 1, 86_401, "MaximumEventAgeInSeconds"),
        ({"MaximumRetryAttempts": 0}, 1, 0, "MaximumRetryAttempts"),
        ({"MaximumRetryAttempts": 2}, 2, 0, ""),
        ({"MaximumEventAgeInSeconds": 60}, 1, 60, ""),
        ({"MaximumEventAgeInSeconds": 60}, 1, 61, "MaximumEventAgeInSeconds"),
    ],
)
def test_retry_policy_limits_attempts_and_age(
    policy: Any, attempts: int, age: int, limit: str
) -> None:
    """The default is 185 retries within a day; the first attempt is not a retry."""
    target: Any = {"RetryPolicy": policy}
    assert exhausted(target, attempts, timedelta(seconds=age)) == limit


def test_fires_on_time(stage: Stage) -> None:
    """The function is invoked asynchronously with the unchanged Input, and never early."""
    stage.put()
    stage.poll(4.999_999)
    assert not stage.functions.invocations
    stage.poll(0.000_001)
    assert stage.functions.invocations == [
        {
            "FunctionName": stage.aws.addresses.fire_arn,
            "InvocationType": "Event",
            "Payload": INPUT.encode(),
        }
    ]


def test_logs_the_lateness_but_not_the_input(stage: Stage) -> None:
    """A log line has the schedule's name and lateness. The Input may be confidential."""
    stage.functions.faults = [refusal("TooManyRequestsException")]
    stage.put()
    stage.poll(5.5)
    stage.poll(1)
    failed, fired = stage.log
    assert "t.1" in failed
    assert "TooManyRequestsException" in failed
    assert "t.1, 1.5 s late" in fired
    assert "xyzzy" not in failed + fired


def test_fires_in_the_time_zone_of_the_schedule(stage: Stage) -> None:
    """13:00:05 in Berlin is 12:00:05 in UTC."""
    stage.put(
        ScheduleExpression="at(2026-01-31T13:00:05)", ScheduleExpressionTimezone="Europe/Berlin"
    )
    stage.poll(4)
    assert not stage.functions.invocations
    stage.poll(1)
    assert stage.functions.invocations


def test_fires_overdue_schedules_oldest_first(stage: Stage) -> None:
    """A runner that starts late fires all overdue schedules at once."""
    stage.put("b", ScheduleExpression="at(2026-01-29T12:00:00)")
    stage.put("c", ScheduleExpression="at(2026-01-30T12:00:00)")
    stage.put("a", ScheduleExpression="at(2026-01-31T12:00:00)")
    stage.poll()
    assert [re.findall("Fired (.),", line) for line in stage.log] == [["b"], ["c"], ["a"]]


def test_precision_delays_the_invocation(stage: Stage) -> None:
    """With AWS's precision a schedule fires within the minute after its time."""
    stage.runner = stage.new_runner(precision=60)
    stage.put()
    wait = (fires_at("t.1", START, 60) - START).total_seconds()
    assert wait
    stage.poll(5 + wait - 0.001)
    assert not stage.functions.invocations
    stage.poll(0.001)
    assert stage.functions.invocations


def test_reads_all_pages(stage: Stage) -> None:
    """A page holds 100 schedules; those on later pages fire as well."""
    for n in range(101):
        stage.put(f"t{n}.1")
    stage.poll(5)
    assert len(stage.functions.invocations) == 101
    assert stage.aws.names().count("ListSchedules") == 2
    assert stage.aws.schedules() == []


def test_survives_a_deletion_between_two_pages(stage: Stage) -> None:
    """LocalStack's page token names the next schedule. If that is deleted, the next poll works."""
    for n in range(101):
        stage.put(f"t{n}.1")

    def before(operation: str) -> None:
        if stage.aws.names().count("ListSchedules") == 2:
            with stage.aws.unobserved():
                stage.aws.scheduler.delete_schedule(GroupName=NAME, Name="t0.1")

    stage.aws.before = before
    stage.poll(5)
    stage.mend()
    assert stage.log == []
    stage.poll()
    assert len(stage.functions.invocations) == 100


def test_reads_each_schedule_once(stage: Stage) -> None:
    """After the first poll, a poll only lists the group."""
    stage.put("a.1")
    stage.put("b.1")
    stage.poll()
    assert stage.aws.names() == ["ListSchedules", "GetSchedule", "GetSchedule"]
    stage.polls(3)
    assert stage.aws.names()[3:] == ["ListSchedules"] * 3


def test_reads_a_modified_schedule_again(stage: Stage) -> None:
    """The next poll uses the new expression."""
    stage.put()
    stage.poll()
    stage.put(change=True, ScheduleExpression="at(2026-01-31T12:00:08)")
    stage.poll(7)
    assert stage.aws.names().count("GetSchedule") == 2
    assert not stage.functions.invocations
    stage.poll(1)
    assert stage.functions.invocations


def test_forgets_a_deleted_schedule(stage: Stage) -> None:
    """A deleted schedule does not fire; if it is created again, it fires again."""
    stage.put(ActionAfterCompletion="NONE")
    stage.poll()
    stage.aws.scheduler.delete_schedule(GroupName=NAME, Name="t.1")
    stage.poll(5)
    assert not stage.functions.invocations
    for _ in range(2):
        stage.put(ActionAfterCompletion="NONE")
        stage.poll()
        stage.aws.scheduler.delete_schedule(GroupName=NAME, Name="t.1")
        stage.poll()
    assert len(stage.functions.invocations) == 2


def test_survives_a_deletion_after_the_list(stage: Stage) -> None:
    """A schedule may be deleted between ListSchedules and GetSchedule."""
    stage.put()
    stage.fail("GetSchedule", refusal("ResourceNotFoundException"))
    stage.poll(5)
    assert stage.log == []


def test_an_unreadable_schedule_delays_no_other(stage: Stage) -> None:
    """A failed GetSchedule is logged once and repeated. Other schedules fire meanwhile."""
    stage.put("a.1")
    stage.poll()
    stage.put("b.1")
    stage.fail("GetSchedule", refusal("ThrottlingException"))
    stage.poll(5)
    stage.poll()
    stage.mend()
    stage.poll()
    unreadable, *fired = stage.log
    assert "b.1" in unreadable
    assert fired == ["Fired a.1, 0.0 s late.", "Fired b.1, 0.0 s late."]


def test_deletes_a_completed_schedule(stage: Stage) -> None:
    """With ActionAfterCompletion=DELETE, a schedule is deleted after it fired."""
    stage.put()
    stage.poll()
    assert stage.aws.schedules() == ["t.1"]
    stage.poll(5)
    assert stage.aws.schedules() == []


def test_a_kept_schedule_fires_once(stage: Stage) -> None:
    """With ActionAfterCompletion=NONE, a schedule is kept and does not fire again."""
    stage.put(ActionAfterCompletion="NONE")
    stage.poll(5)
    stage.polls(3)
    assert len(stage.functions.invocations) == 1
    assert stage.aws.schedules() == ["t.1"]


def test_a_crash_before_the_deletion_fires_again(stage: Stage) -> None:
    """At least once: if a runner dies before the deletion, the next one fires the schedule."""

    class Killed(BaseException):
        pass

    stage.put()
    stage.fail("DeleteSchedule", Killed())
    with pytest.raises(Killed):
        stage.poll(5)
    stage.mend()
    stage.runner = stage.new_runner()
    stage.poll()
    assert len(stage.functions.invocations) == 2
    assert stage.aws.schedules() == []


@pytest.mark.parametrize("error", [refusal("ThrottlingException"), DOWN])
def test_a_failed_deletion_does_not_fire_again(stage: Stage, error: Exception) -> None:
    """A running runner remembers the firing, and repeats the deletion alone."""
    stage.put()
    stage.fail("DeleteSchedule", error)
    stage.poll(5)
    stage.mend()
    stage.poll()
    assert len(stage.functions.invocations) == 1
    assert stage.aws.schedules() == []


def test_logs_a_failed_deletion_once(stage: Stage) -> None:
    """A deletion that fails at every poll is logged at the first."""
    stage.put()
    stage.fail("DeleteSchedule", refusal("ThrottlingException"))
    stage.poll(5)
    stage.polls(3)
    (failed,) = stage.log[1:]
    assert "t.1" in failed
    assert "ThrottlingException" in failed


def test_a_disabled_schedule_does_not_fire(stage: Stage) -> None:
    """A disabled schedule waits silently until it is enabled."""
    stage.put(State="DISABLED")
    stage.poll(5)
    stage.poll()
    assert not stage.functions.invocations
    assert stage.log == []
    stage.put(change=True, State="ENABLED")
    stage.poll()
    assert stage.functions.invocations


@pytest.mark.parametrize(
    "parts",
    [
        {"ScheduleExpression": "rate(5 minutes)"},
        {"ScheduleExpression": "at(soon)"},
        {"ScheduleExpression": "at(9999-12-31T23:59:59)"},
        {"target": {"Arn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:queue"}},
        {"target": {"Arn": "arn:aws:scheduler:::aws-sdk:lambda:invoke"}},
    ],
    ids=str,
)
def test_ignores_unsupported_schedules(stage: Stage, parts: Any) -> None:
    """They are logged once, never fired or deleted, and do not delay others."""
    stage.runner = stage.new_runner(precision=3600)
    stage.put("odd", **parts)
    stage.poll(5)
    stage.put()
    stage.polls(2)
    stage.poll(3600)
    assert len([line for line in stage.log if "odd" in line]) == 1
    assert stage.aws.names().count("GetSchedule") == 2
    assert stage.aws.schedules() == ["odd"]
    assert len(stage.functions.invocations) == 1


@pytest.mark.parametrize(
    "error",
    [
        refusal("TooManyRequestsException"),
        refusal("ServiceException"),
        refusal("ResourceNotFoundException"),
        DOWN,
    ],
    ids=lambda error: type(error).__name__,
)
def test_retries_a_failed_invocation(stage: Stage, error: Exception) -> None:
    """After any failure the schedule stays, and the second attempt follows a second later."""
    stage.put()
    stage.functions.faults = [error]
    stage.poll(5)
    stage.poll(0.9)
    assert stage.functions.attempts == [5]
    assert stage.aws.schedules() == ["t.1"]
    stage.poll(0.1)
    assert stage.functions.attempts == [5, 6]
    assert stage.aws.schedules() == []
    assert not stage.dead_letters()


def test_sends_an_exhausted_event_to_the_dead_letter_queue(stage: Stage) -> None:
    """After MaximumRetryAttempts the Input goes there, with AWS's message attributes."""
    stage.put(target={"RetryPolicy": {"MaximumRetryAttempts": 2}})
    stage.functions.faults = [refusal("TooManyRequestsException")] * 3
    stage.poll(5)
    stage.polls(30)
    assert stage.functions.attempts == [5, 6, 8]
    [letter] = stage.dead_letters()
    assert letter["Body"] == INPUT
    texts = {name: value["StringValue"] for name, value in letter["MessageAttributes"].items()}
    assert texts == {
        "ERROR_CODE": "TooManyRequestsException",
        "ERROR_MESSAGE": "TooManyRequestsException, sadly",
        "EXHAUSTED_RETRY_CONDITION": "MaximumRetryAttempts",
        "IS_PAYLOAD_TRUNCATED": "false",
        "RETRY_ATTEMPTS": "2",
        "SCHEDULED_TIME": "2026-01-31T12:00:05Z",
        "SCHEDULE_ARN": f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/{NAME}/t.1",
        "TARGET_ARN": stage.aws.addresses.fire_arn,
    }
    assert stage.aws.schedules() == []


def test_gives_up_an_event_that_is_too_old(stage: Stage) -> None:
    """No attempt comes later than MaximumEventAgeInSeconds after the first one."""
    stage.put(target={"RetryPolicy": {"MaximumEventAgeInSeconds": 60}})
    stage.functions.faults = [refusal("ServiceException")] * 10
    stage.poll(1000)
    stage.polls(62)
    assert stage.functions.attempts == [1000, 1001, 1003, 1007, 1015, 1031]
    [letter] = stage.dead_letters()
    condition = letter["MessageAttributes"]["EXHAUSTED_RETRY_CONDITION"]["StringValue"]
    assert condition == "MaximumEventAgeInSeconds"
    assert letter["MessageAttributes"]["RETRY_ATTEMPTS"]["StringValue"] == "5"


def test_drops_the_event_without_a_dead_letter_queue(stage: Stage) -> None:
    """As on AWS, the schedule completes and its event is lost."""
    stage.put(target={"RetryPolicy": {"MaximumRetryAttempts": 0}, "DeadLetterConfig": {}})
    stage.functions.faults = [refusal("ServiceException")]
    stage.poll(5)
    assert "SendMessage" not in stage.aws.names()
    assert stage.aws.schedules() == []


def test_a_kept_schedule_is_given_up_once(stage: Stage) -> None:
    """With ActionAfterCompletion=NONE, a failed schedule is not attempted again."""
    stage.put(ActionAfterCompletion="NONE", target={"RetryPolicy": {"MaximumRetryAttempts": 0}})
    stage.functions.faults = [refusal("ServiceException")]
    stage.poll(5)
    stage.polls(62)
    assert stage.functions.attempts == [5]
    assert len(stage.dead_letters()) == 1


@pytest.mark.parametrize("error", [refusal("AWS.SimpleQueueService.NonExistentQueue"), DOWN])
def test_keeps_the_event_while_the_dead_letter_queue_fails(stage: Stage, error: Exception) -> None:
    """While the dead-letter queue is unavailable, the schedule stays and is attempted again."""
    stage.put(target={"RetryPolicy": {"MaximumRetryAttempts": 0}})
    stage.functions.faults = [refusal("ServiceException")] * 2
    stage.fail("SendMessage", error)
    stage.poll(5)
    assert stage.aws.schedules() == ["t.1"]
    stage.mend()
    stage.poll(0.5)
    assert not stage.dead_letters()
    stage.poll(0.5)
    assert len(stage.dead_letters()) == 1
    assert stage.aws.schedules() == []


def test_waits_for_localstack(stage: Stage) -> None:
    """An outage and its end are logged once each. Then due schedules fire."""
    stage.put()
    stage.poll()
    stage.fail("ListSchedules", DOWN)
    stage.polls(6)
    assert not stage.functions.attempts
    stage.mend()
    stage.polls(2)
    down, up, fired = stage.log
    assert stage.aws.scheduler.meta.endpoint_url in down
    assert NAME in up
    assert fired == "Fired t.1, 2.0 s late."


def test_waits_while_localstack_starts(stage: Stage) -> None:
    """Each change of the problem is logged once."""
    stage.fail("ListSchedules", DOWN)
    stage.polls(2)
    stage.fail("ListSchedules", refusal("503"))
    stage.polls(2)
    stage.mend()
    stage.polls(2)
    _, starting, up = stage.log
    assert "503" in starting
    assert NAME in up


def test_waits_for_a_missing_group(stage: Stage) -> None:
    """Without its group the runner forgets old schedules; it fires those of a new group."""
    stage.put("old.1")
    stage.poll()
    stage.aws.scheduler.delete_schedule_group(Name=NAME)
    stage.polls(6)
    assert not stage.functions.attempts
    stage.aws.scheduler.create_schedule_group(Name=NAME)
    stage.put("new.1")
    stage.poll()
    missing, found, fired = stage.log
    assert NAME in missing
    assert NAME in found
    assert fired == "Fired new.1, 1.0 s late."


def test_waits_for_a_group_that_the_list_rejects(stage: Stage) -> None:
    """AWS fails ListSchedules for a missing group; LocalStack returns an empty list."""
    stage.fail("ListSchedules", refusal("ResourceNotFoundException"))
    stage.polls(2)
    (missing,) = stage.log
    assert NAME in missing


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("192.168.1.5", True),
        ("localstack", True),
        ("localhost.localstack.cloud", True),
        ("host.docker.internal", True),
        ("scheduler.eu-central-1.amazonaws.com", False),
        ("sqs.us-east-1.api.aws", False),
        ("localstack.cloud.amazonaws.com", False),
        ("evil-localstack.cloud", False),
        ("52.94.5.1", False),
        ("876807425", False),  # the same address as a number
        (".", False),
        ("", False),
    ],
)
def test_only_local_addresses_are_allowed(host: str, *, local: bool) -> None:
    """The runner never calls an address that could be AWS."""
    assert schedule_runner.is_local(host) is local


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--stage a/b",
        "--stage x --precision 0",
        "--stage x --precision 1.5",
        "--stage x --poll 0",
        "--stage x --poll nan",
    ],
)
def test_arguments_are_checked(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments are usage errors."""
    with pytest.raises(SystemExit, match="2"):
        schedule_runner._options(arguments.split())
    assert "usage: " in capsys.readouterr().err


def test_escapes_control_characters_in_names(capsys: pytest.CaptureFixture[str]) -> None:
    """A log line starts with the time, and shows control characters in names as text."""
    schedule_runner._log("a\x1b[2J\nb fired")
    assert re.fullmatch(r"\d\d:\d\d:\d\d a\\x1b\[2J\\nb fired\n", capsys.readouterr().out)


@contextmanager
def running(url: str) -> Iterator[subprocess.Popen[str]]:
    """Start the runner as a process; kill it at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.localstack.schedule_runner", "--stage", "test"],
        cwd=ROOT,
        env=environment(PYTHONWARNINGS="default", PYTHONUNBUFFERED="", AWS_ENDPOINT_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    guard = threading.Timer(30, process.kill)  # ends a test that waits for a missing line
    guard.start()
    with process:
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Stop the runner within 2 s and with status 0; return its remaining output."""
    assert process.stdout is not None
    asked = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == 0
    assert time.monotonic() - asked < 2
    return process.stdout.read()


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_runs_without_localstack_and_stops_on_a_signal(number: signal.Signals) -> None:
    """A closed port is one line in the log. SIGTERM and Ctrl-C end the runner with status 0."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with running(url) as process:
        assert process.stdout is not None
        started, down = process.stdout.readline(), process.stdout.readline()
        assert f"timers-test at {url}" in started
        assert url in down
        assert stop(process, number) == ""


@pytest.mark.e2e
def test_stops_during_a_call_that_hangs() -> None:
    """A stop signal ends the runner even if a call would time out only after 30 s."""
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        running(f"http://127.0.0.1:{server.getsockname()[1]}") as process,
    ):
        connection, _ = server.accept()
        with connection:
            connection.recv(1)
            assert stop(process, signal.SIGTERM).count("\n") == 1


@pytest.mark.e2e
def test_refuses_to_call_aws() -> None:
    """With an endpoint of AWS the runner exits before its first call."""
    with running("https://scheduler.nowhere-1.amazonaws.com") as process:
        assert process.stdout is not None
        assert process.wait(30) == 1
        assert "https://scheduler.nowhere-1.amazonaws.com" in process.stdout.read()
