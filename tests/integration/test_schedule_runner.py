"""The schedule runner: does for LocalStack's schedules what EventBridge Scheduler does on AWS."""

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
    NotUnderstood,
    Runner,
    backoff,
    due_at,
    exhausted,
    goes_off_at,
)
from tests.support.aws import ACCOUNT, NAME, REGION, Account, account
from tests.support.fakes import START, Clock
from tests.support.processes import ROOT, environment

DOWN = EndpointConnectionError(endpoint_url="http://localhost:4566")
INPUT = '{"id": "t", "secret": "xyzzy"}'


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": f"{code}, sadly"}}, "Invoke")


class FakeLambda:
    """Takes events, and remembers when; answers with the `faults` first, one each."""

    def __init__(self, clock: Clock) -> None:
        self.taken: list[dict[str, Any]] = []
        self.tried: list[float] = []
        self.faults: list[Exception] = []
        self._clock = clock

    def invoke(self, **request: Any) -> None:
        self.tried.append((self._clock.now - START).total_seconds())
        if self.faults:
            raise self.faults.pop(0)
        self.taken.append(request)


class Stage:
    """The schedule group of a stage on moto, the function, and what the runner said."""

    def __init__(self, aws: Account) -> None:
        self.aws = aws
        self.clock = Clock()
        self.functions = FakeLambda(self.clock)
        self.said: list[str] = []
        self.runner = self.new_runner()

    def new_runner(self, precision: int = 1) -> Runner:
        """Return a runner that knows nothing yet."""
        return Runner(
            self.aws.scheduler,
            self.functions,
            self.aws.sqs,
            group=NAME,
            clock=self.clock,
            say=self.said.append,
            precision=precision,
        )

    def put(
        self, name: str = "t.1", *, target: Any = None, change: bool = False, **parts: Any
    ) -> None:
        """Create a schedule that is due after 5 s, or change it."""
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

    def turn(self, seconds: float = 0) -> None:
        """Let time pass, then let the runner look once."""
        self.clock.forward(seconds)
        self.runner.turn()

    def turns(self, seconds: int) -> None:
        """Let the runner look once a second."""
        for _ in range(seconds):
            self.turn(1)

    def fail(self, operation: str, error: BaseException) -> None:
        """Let one operation fail from now on."""

        def before(called: str) -> None:
            if called == operation:
                raise error

        self.aws.before = before

    def mend(self) -> None:
        """Let all operations succeed again."""
        self.aws.before = lambda _: None

    def letters(self) -> list[dict[str, Any]]:
        """Return what is in the dead-letter queue."""
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
        ("at(2026-10-25T02:30:00)", "Europe/Berlin", "2026-10-25T00:30:00"),  # comes twice
        ("at(2026-03-29T02:30:00)", "Europe/Berlin", "2026-03-29T01:30:00"),  # comes never
    ],
)
def test_expression_is_a_moment_of_its_time_zone(expression: str, zone: str, moment: str) -> None:
    """`at(…)` counts in the schedule's zone; an hour that comes twice means the first."""
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
def test_what_is_no_moment_is_not_understood(expression: str, zone: str) -> None:
    """Recurring, malformed and impossible expressions and unknown zones are told apart."""
    with pytest.raises(NotUnderstood):
        due_at(expression, zone)


def test_precision_spreads_schedules_over_its_seconds() -> None:
    """A schedule goes off in a second of its own: never early, never later than the precision."""
    seconds = [(goes_off_at(f"t{n}.1", START, 60) - START).total_seconds() for n in range(6000)]
    counts = Counter(seconds)
    assert set(counts) == set(range(60))
    assert max(counts.values()) < 2 * min(counts.values())
    assert goes_off_at("t1.1", START, 60) == goes_off_at("t1.1", START, 60)
    assert {goes_off_at(f"t{n}.1", START, 1) for n in range(100)} == {START}


def test_pause_doubles_up_to_a_minute() -> None:
    """The first retry comes after a second; nobody waits longer than a minute for one."""
    pauses = [backoff(tries).total_seconds() for tries in (1, 2, 3, 4, 5, 6, 7, 8, 186)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(
    ("policy", "tries", "age", "bound"),
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
def test_retry_policy_bounds_tries_and_age(policy: Any, tries: int, age: int, bound: str) -> None:
    """185 retries within a day unless the schedule says otherwise; tries are one more."""
    target: Any = {"RetryPolicy": policy}
    assert exhausted(target, tries, timedelta(seconds=age)) == bound


def test_schedule_fires_in_its_second(stage: Stage) -> None:
    """Not a microsecond early, and then at once, as an event with the Input as it is."""
    stage.put()
    stage.turn(4.999_999)
    assert not stage.functions.taken
    stage.turn(0.000_001)
    assert stage.functions.taken == [
        {
            "FunctionName": stage.aws.addresses.fire_arn,
            "InvocationType": "Event",
            "Payload": INPUT.encode(),
        }
    ]


def test_lateness_is_said_but_never_the_input(stage: Stage) -> None:
    """One line names the schedule and how late it fired; what it carries is nobody's business."""
    stage.functions.faults = [refusal("TooManyRequestsException")]
    stage.put()
    stage.turn(5.5)
    stage.turn(1)
    assert stage.said == [
        "t.1 not fired, try 1: TooManyRequestsException; again in 1 s.",
        "t.1 fired, 1.5 s after its time.",
    ]


def test_schedule_fires_by_the_clock_of_its_zone(stage: Stage) -> None:
    """13:00:05 in Berlin is 12:00:05 in UTC."""
    stage.put(
        ScheduleExpression="at(2026-01-31T13:00:05)", ScheduleExpressionTimezone="Europe/Berlin"
    )
    stage.turn(4)
    assert not stage.functions.taken
    stage.turn(1)
    assert stage.functions.taken


def test_what_came_due_while_nobody_looked_fires_at_once(stage: Stage) -> None:
    """A runner started late fires what is overdue, the oldest first."""
    stage.put("b", ScheduleExpression="at(2026-01-29T12:00:00)")
    stage.put("c", ScheduleExpression="at(2026-01-30T12:00:00)")
    stage.put("a", ScheduleExpression="at(2026-01-31T12:00:00)")
    stage.turn()
    assert [words.split()[0] for words in stage.said] == ["b", "c", "a"]


def test_precision_delays_the_invocation(stage: Stage) -> None:
    """With the precision of AWS a schedule waits for its second of the minute."""
    stage.runner = stage.new_runner(precision=60)
    stage.put()
    wait = (goes_off_at("t.1", START, 60) - START).total_seconds()
    assert wait
    stage.turn(5 + wait - 0.001)
    assert not stage.functions.taken
    stage.turn(0.001)
    assert stage.functions.taken


def test_no_page_is_overlooked(stage: Stage) -> None:
    """A list holds 100 schedules at most; those on the pages after it fire as well."""
    for n in range(101):
        stage.put(f"t{n}.1")
    stage.turn(5)
    assert len(stage.functions.taken) == 101
    assert stage.aws.names().count("ListSchedules") == 2
    assert stage.aws.schedules() == []


def test_deletion_between_two_pages_is_no_trouble(stage: Stage) -> None:
    """LocalStack knows a page by its first schedule; if that goes, the next turn starts anew."""
    for n in range(101):
        stage.put(f"t{n}.1")

    def before(operation: str) -> None:
        if stage.aws.names().count("ListSchedules") == 2:
            with stage.aws.unobserved():
                stage.aws.scheduler.delete_schedule(GroupName=NAME, Name="t0.1")

    stage.aws.before = before
    stage.turn(5)
    stage.mend()
    assert stage.said == []
    stage.turn()
    assert len(stage.functions.taken) == 100


def test_pending_schedule_costs_nothing_but_the_list(stage: Stage) -> None:
    """A schedule is got once; from then on a turn makes the calls of the list alone."""
    stage.put("a.1")
    stage.put("b.1")
    stage.turn()
    assert stage.aws.names() == ["ListSchedules", "GetSchedule", "GetSchedule"]
    stage.turns(3)
    assert stage.aws.names()[3:] == ["ListSchedules"] * 3


def test_modified_schedule_is_got_again(stage: Stage) -> None:
    """A new expression counts from the next turn on, and the old one no longer."""
    stage.put()
    stage.turn()
    stage.put(change=True, ScheduleExpression="at(2026-01-31T12:00:08)")
    stage.turn(7)
    assert stage.aws.names().count("GetSchedule") == 2
    assert not stage.functions.taken
    stage.turn(1)
    assert stage.functions.taken


def test_deleted_schedule_is_forgotten(stage: Stage) -> None:
    """What is no longer listed does not fire, and fires again if it is made again."""
    stage.put(ActionAfterCompletion="NONE")
    stage.turn()
    stage.aws.scheduler.delete_schedule(GroupName=NAME, Name="t.1")
    stage.turn(5)
    assert not stage.functions.taken
    for _ in range(2):
        stage.put(ActionAfterCompletion="NONE")
        stage.turn()
        stage.aws.scheduler.delete_schedule(GroupName=NAME, Name="t.1")
        stage.turn()
    assert len(stage.functions.taken) == 2


def test_schedule_deleted_since_it_was_listed_is_no_trouble(stage: Stage) -> None:
    """Between the list and the look at it a schedule may go away."""
    stage.put()
    stage.fail("GetSchedule", refusal("ResourceNotFoundException"))
    stage.turn(5)
    assert stage.said == []


def test_schedule_that_cannot_be_read_holds_up_no_other(stage: Stage) -> None:
    """A refused GetSchedule is said once and made again; what is known fires meanwhile."""
    stage.put("a.1")
    stage.turn()
    stage.put("b.1")
    stage.fail("GetSchedule", refusal("ThrottlingException"))
    stage.turn(5)
    stage.turn()
    stage.mend()
    stage.turn()
    assert stage.said == [
        "b.1 can't be read yet: ThrottlingException.",
        "a.1 fired, 0.0 s after its time.",
        "b.1 fired, 0.0 s after its time.",
    ]


def test_completed_schedule_is_deleted_if_it_says_so(stage: Stage) -> None:
    """ActionAfterCompletion=DELETE: it goes away after it fired, and not before."""
    stage.put()
    stage.turn()
    assert stage.aws.schedules() == ["t.1"]
    stage.turn(5)
    assert stage.aws.schedules() == []


def test_completed_schedule_that_stays_fires_once(stage: Stage) -> None:
    """ActionAfterCompletion=NONE: it is kept, as on AWS, and does not fire again."""
    stage.put(ActionAfterCompletion="NONE")
    stage.turn(5)
    stage.turns(3)
    assert len(stage.functions.taken) == 1
    assert stage.aws.schedules() == ["t.1"]


def test_crash_before_the_deletion_fires_again(stage: Stage) -> None:
    """At least once: a runner that died after the invocation left the schedule to the next one."""

    class Killed(BaseException):
        pass

    stage.put()
    stage.fail("DeleteSchedule", Killed())
    with pytest.raises(Killed):
        stage.turn(5)
    stage.mend()
    stage.runner = stage.new_runner()
    stage.turn()
    assert len(stage.functions.taken) == 2
    assert stage.aws.schedules() == []


@pytest.mark.parametrize("error", [refusal("ThrottlingException"), DOWN])
def test_refused_deletion_does_not_fire_again(stage: Stage, error: Exception) -> None:
    """As long as the runner lives, it knows that the schedule has fired and only deletes it."""
    stage.put()
    stage.fail("DeleteSchedule", error)
    stage.turn(5)
    stage.mend()
    stage.turn()
    assert len(stage.functions.taken) == 1
    assert stage.aws.schedules() == []


def test_refused_deletion_is_said_once(stage: Stage) -> None:
    """What fails at every turn is said at the first."""
    stage.put()
    stage.fail("DeleteSchedule", refusal("ThrottlingException"))
    stage.turn(5)
    stage.turns(3)
    assert stage.said[1:] == ["t.1 can't be deleted yet: ThrottlingException."]


def test_disabled_schedule_does_not_fire(stage: Stage) -> None:
    """State DISABLED: it waits, unsaid, until somebody enables it."""
    stage.put(State="DISABLED")
    stage.turn(5)
    stage.turn()
    assert not stage.functions.taken
    assert stage.said == []
    stage.put(change=True, State="ENABLED")
    stage.turn()
    assert stage.functions.taken


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
def test_what_is_not_understood_is_said_once_and_left_alone(stage: Stage, parts: Any) -> None:
    """It is neither fired nor deleted nor got again, and keeps no other from firing."""
    stage.runner = stage.new_runner(precision=3600)
    stage.put("odd", **parts)
    stage.turn(5)
    stage.put()
    stage.turns(2)
    stage.turn(3600)
    odd = [words for words in stage.said if words.startswith("odd is left alone: ")]
    assert len(odd) == 1
    assert stage.aws.names().count("GetSchedule") == 2
    assert stage.aws.schedules() == ["odd"]
    assert len(stage.functions.taken) == 1


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
def test_failed_invocation_is_tried_again_after_a_pause(stage: Stage, error: Exception) -> None:
    """Whatever the reason: the schedule stays, and its second try comes a second later."""
    stage.put()
    stage.functions.faults = [error]
    stage.turn(5)
    stage.turn(0.9)
    assert stage.functions.tried == [5]
    assert stage.aws.schedules() == ["t.1"]
    stage.turn(0.1)
    assert stage.functions.tried == [5, 6]
    assert stage.aws.schedules() == []
    assert not stage.letters()


def test_exhausted_retries_end_in_the_dead_letter_queue(stage: Stage) -> None:
    """After MaximumRetryAttempts the Input goes there, with what AWS says of it; it is over."""
    stage.put(target={"RetryPolicy": {"MaximumRetryAttempts": 2}})
    stage.functions.faults = [refusal("TooManyRequestsException")] * 3
    stage.turn(5)
    stage.turns(30)
    assert stage.functions.tried == [5, 6, 8]
    [letter] = stage.letters()
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
    assert stage.said[-1].endswith("; given up at MaximumRetryAttempts.")


def test_event_grows_too_old(stage: Stage) -> None:
    """No try comes later than MaximumEventAgeInSeconds after the first one."""
    stage.put(target={"RetryPolicy": {"MaximumEventAgeInSeconds": 60}})
    stage.functions.faults = [refusal("ServiceException")] * 10
    stage.turn(1000)
    stage.turns(62)
    assert stage.functions.tried == [1000, 1001, 1003, 1007, 1015, 1031]
    [letter] = stage.letters()
    condition = letter["MessageAttributes"]["EXHAUSTED_RETRY_CONDITION"]["StringValue"]
    assert condition == "MaximumEventAgeInSeconds"
    assert letter["MessageAttributes"]["RETRY_ATTEMPTS"]["StringValue"] == "5"


def test_without_a_dead_letter_queue_the_event_is_dropped(stage: Stage) -> None:
    """As on AWS: given up, and over."""
    stage.put(target={"RetryPolicy": {"MaximumRetryAttempts": 0}, "DeadLetterConfig": {}})
    stage.functions.faults = [refusal("ServiceException")]
    stage.turn(5)
    assert "SendMessage" not in stage.aws.names()
    assert stage.aws.schedules() == []


def test_given_up_schedule_that_stays_is_over(stage: Stage) -> None:
    """With ActionAfterCompletion=NONE it is neither tried nor buried again."""
    stage.put(ActionAfterCompletion="NONE", target={"RetryPolicy": {"MaximumRetryAttempts": 0}})
    stage.functions.faults = [refusal("ServiceException")]
    stage.turn(5)
    stage.turns(62)
    assert stage.functions.tried == [5]
    assert len(stage.letters()) == 1


@pytest.mark.parametrize("error", [refusal("AWS.SimpleQueueService.NonExistentQueue"), DOWN])
def test_event_without_a_grave_is_kept(stage: Stage, error: Exception) -> None:
    """If the dead-letter queue can't be reached, the schedule stays, to be tried again."""
    stage.put(target={"RetryPolicy": {"MaximumRetryAttempts": 0}})
    stage.functions.faults = [refusal("ServiceException")] * 2
    stage.fail("SendMessage", error)
    stage.turn(5)
    assert stage.aws.schedules() == ["t.1"]
    stage.mend()
    stage.turn(0.5)
    assert not stage.letters()
    stage.turn(0.5)
    assert len(stage.letters()) == 1
    assert stage.aws.schedules() == []


def test_absent_localstack_is_said_once_and_waited_for(stage: Stage) -> None:
    """While nothing answers nothing is tried; once it does, that is said, and what is due fires."""
    stage.put()
    stage.turn()
    stage.fail("ListSchedules", DOWN)
    stage.turns(6)
    assert not stage.functions.tried
    stage.mend()
    stage.turns(2)
    url = stage.aws.scheduler.meta.endpoint_url
    assert stage.said == [
        f"{url} does not answer; still trying.",
        f"{NAME} can be read; schedules in it: 1.",
        "t.1 fired, 2.0 s after its time.",
    ]


def test_localstack_that_still_starts_is_waited_for(stage: Stage) -> None:
    """What changes about the trouble is said; what stays the same is not."""
    stage.fail("ListSchedules", DOWN)
    stage.turns(2)
    stage.fail("ListSchedules", refusal("503"))
    stage.turns(2)
    stage.mend()
    stage.turns(2)
    assert [words.partition(";")[0] for words in stage.said[1:]] == [
        f"{NAME} can't be read: 503",
        f"{NAME} can be read",
    ]


def test_missing_group_is_said_once_and_waited_for(stage: Stage) -> None:
    """Not deployed yet, or LocalStack came back empty: what was known is gone, what comes fires."""
    stage.put("old.1")
    stage.turn()
    stage.aws.scheduler.delete_schedule_group(Name=NAME)
    stage.turns(6)
    assert not stage.functions.tried
    stage.aws.scheduler.create_schedule_group(Name=NAME)
    stage.put("new.1")
    stage.turn()
    assert stage.said == [
        f"There is no schedule group {NAME}; waiting for it.",
        f"{NAME} can be read; schedules in it: 1.",
        "new.1 fired, 1.0 s after its time.",
    ]


def test_group_that_the_list_misses_is_a_missing_group(stage: Stage) -> None:
    """AWS refuses the list itself; that says the same."""
    stage.fail("ListSchedules", refusal("ResourceNotFoundException"))
    stage.turns(2)
    assert stage.said == [f"There is no schedule group {NAME}; waiting for it."]


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
        ("876807425", False),  # the same, as one number
        (".", False),
        ("", False),
    ],
)
def test_only_local_addresses_are_taken(host: str, *, local: bool) -> None:
    """Nothing that could be AWS is ever called."""
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
    """What makes no sense is refused before anything starts."""
    with pytest.raises(SystemExit, match="2"):
        schedule_runner._options(arguments.split())
    assert "usage: " in capsys.readouterr().err


def test_names_do_not_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """What comes from outside is shown as what it is, on one line with the time."""
    schedule_runner._say("a\x1b[2J\nb fired")
    assert re.fullmatch(r"\d\d:\d\d:\d\d a\\x1b\[2J\\nb fired\n", capsys.readouterr().out)


@contextmanager
def running(url: str) -> Iterator[subprocess.Popen[str]]:
    """Start the runner as people do; it is killed at the end if still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.localstack.schedule_runner", "--stage", "test"],
        cwd=ROOT,
        env=environment(PYTHONWARNINGS="default", PYTHONUNBUFFERED="", AWS_ENDPOINT_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    guard = threading.Timer(30, process.kill)  # for who waits for a line that never comes
    guard.start()
    with process:
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Ask the runner to stop, which it must do soon and with status 0; return what it said."""
    assert process.stdout is not None
    asked = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == 0
    assert time.monotonic() - asked < 2
    return process.stdout.read()


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_runner_lives_without_localstack_and_stops_when_told(number: signal.Signals) -> None:
    """A dead port is one sentence, not a traceback; SIGTERM and Ctrl-C end it with status 0."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with running(url) as process:
        assert process.stdout is not None
        said = process.stdout.readline() + process.stdout.readline()
        assert f" Firing the schedules of timers-test at {url}.\n" in said
        assert said.endswith(f" {url} does not answer; still trying.\n")
        assert stop(process, number) == ""


@pytest.mark.e2e
def test_call_that_hangs_does_not_keep_the_runner() -> None:
    """It stops in the middle of a call that would take half a minute to give up."""
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        running(f"http://127.0.0.1:{server.getsockname()[1]}") as process,
    ):
        connection, _ = server.accept()
        with connection:
            connection.recv(1)
            assert stop(process, signal.SIGTERM).count("\n") == 1


@pytest.mark.e2e
def test_runner_refuses_aws() -> None:
    """An endpoint of AWS ends the runner before it makes a call."""
    with running("https://scheduler.nowhere-1.amazonaws.com") as process:
        assert process.stdout is not None
        assert process.wait(30) == 1
        said = process.stdout.read()
        assert re.fullmatch(
            r"LocalStack can't be used: https://\S+ is not on this machine.\n", said
        )
