"""Fires the schedules of a stage, for LocalStack's EventBridge Scheduler only stores them.

`python -m infra.localstack.schedule_runner --stage localstack` polls the schedule group
`timers-<stage>` and invokes the function of each one-time schedule that is due. Only then is the
schedule deleted: a crash in between fires it again, at least once as on AWS.
"""

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zlib import crc32
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_scheduler import EventBridgeSchedulerClient
    from mypy_boto3_scheduler.type_defs import GetScheduleOutputTypeDef, TargetOutputTypeDef
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef

LONGEST_PAUSE = timedelta(minutes=1)
"""Between two tries of a schedule: somebody waits for it in front of a screen."""

GRACE = 0.5
"""Seconds that a call may still take when the runner is to stop."""


class NotUnderstood(Exception):
    """A schedule can't be fired here; `str(error)` says why, as the end of a sentence."""


@dataclass
class Schedule:
    """A one-time schedule of a Lambda function, and how far it has got."""

    name: str
    arn: str
    due_at: datetime
    target: "TargetOutputTypeDef"
    input: str
    deletes: bool
    """Whether it goes away once it is over."""
    next_at: datetime
    """When it is tried next."""
    began_at: datetime | None = None
    """When it was tried first."""
    tries: int = 0
    over: bool = False


def read(answer: "GetScheduleOutputTypeDef", precision: int) -> Schedule | None:
    """Return what GetSchedule answers, or None if it is disabled; raise NotUnderstood."""
    name, target = answer["Name"], answer["Target"]
    if not re.fullmatch(r"arn:aws[a-z-]*:lambda:[^:]+:[0-9]+:function:\S+", target["Arn"]):
        raise NotUnderstood(f"its target {target['Arn']!r} is no Lambda function")
    due = due_at(answer["ScheduleExpression"], answer.get("ScheduleExpressionTimezone", "UTC"))
    next_at = goes_off_at(name, due, precision)
    if answer.get("State") == "DISABLED":
        return None
    deletes = answer.get("ActionAfterCompletion") == "DELETE"
    return Schedule(name, answer["Arn"], due, target, target.get("Input", "{}"), deletes, next_at)


def due_at(expression: str, timezone: str = "UTC") -> datetime:
    """Return the moment of `at(yyyy-mm-ddThh:mm:ss)` in UTC; raise NotUnderstood."""
    match = re.fullmatch(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)", expression)
    if match is None:
        raise NotUnderstood(f"{expression!r} is no single moment")
    try:
        zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
        return datetime.fromisoformat(match[1]).replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError, ZoneInfoNotFoundError):
        raise NotUnderstood(f"there is no {match[1]} in {timezone!r}") from None


def goes_off_at(name: str, due: datetime, precision: int) -> datetime:
    """Return when a schedule goes off: at a second of its own among the first `precision` ones."""
    return due + timedelta(seconds=crc32(name.encode()) % precision)


def backoff(tries: int) -> timedelta:
    """Return the pause after so many failures: 1 s, 2 s, 4 s … LONGEST_PAUSE."""
    return min(timedelta(seconds=2 ** min(tries - 1, 10)), LONGEST_PAUSE)


def exhausted(target: "TargetOutputTypeDef", tries: int, age: timedelta) -> str:
    """Return the bound, in AWS's words, that forbids one more try at that age, or nothing."""
    policy = target.get("RetryPolicy", {})
    if tries > policy.get("MaximumRetryAttempts", 185):
        return "MaximumRetryAttempts"
    longest = timedelta(seconds=policy.get("MaximumEventAgeInSeconds", 86_400))
    return "MaximumEventAgeInSeconds" if age > longest else ""


def epitaph(schedule: Schedule, code: str, message: str, bound: str) -> dict[str, str]:
    """Return what AWS writes on a dead letter; see "Configuring a dead-letter queue" there."""
    return {
        "ERROR_CODE": code,
        "ERROR_MESSAGE": message,
        "EXHAUSTED_RETRY_CONDITION": bound,
        "IS_PAYLOAD_TRUNCATED": "false",
        "RETRY_ATTEMPTS": str(schedule.tries - 1),
        "SCHEDULED_TIME": f"{schedule.due_at:%Y-%m-%dT%H:%M:%SZ}",
        "SCHEDULE_ARN": schedule.arn,
        "TARGET_ARN": schedule.target["Arn"],
    }


def described(error: BotoCoreError | ClientError) -> tuple[str, str]:
    """Return an error's code and message."""
    if isinstance(error, ClientError):
        code = error.response["Error"]["Code"]
        return code, error.response["Error"].get("Message") or code
    return type(error).__name__, str(error)


@dataclass
class Runner:
    """Fires the schedules of one group; `functions` is Lambda's client."""

    scheduler: "EventBridgeSchedulerClient"
    functions: Any
    sqs: "SQSClient"
    group: str
    clock: Callable[[], datetime]
    say: Callable[[str], object]
    precision: int = 1
    _known: dict[tuple[str, datetime], Schedule | None] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)

    def turn(self) -> None:
        """Look once at what there is, and fire what is due."""
        try:
            self._look()
            if self._said.pop("", None):
                self.say(f"{self.group} can be read; schedules in it: {len(self._known)}.")
            for schedule in sorted(filter(None, self._known.values()), key=lambda s: s.next_at):
                self._advance(schedule)
        except ClientError as error:
            self._refused(described(error)[0])
        except BotoCoreError:
            self._say_once("", f"{self.scheduler.meta.endpoint_url} does not answer; still trying.")

    def _refused(self, code: str) -> None:
        if code == "ResourceNotFoundException":
            self._say_once("", f"There is no schedule group {self.group}; waiting for it.")
        elif code != "InvalidToken":  # what was to begin the next page was deleted just now
            self._say_once("", f"{self.group} can't be read: {code}; still trying.")

    def _look(self) -> None:
        pager = self.scheduler.get_paginator("list_schedules")
        pages = pager.paginate(GroupName=self.group, PaginationConfig={"PageSize": 100})
        summaries = [summary for page in pages for summary in page["Schedules"]]
        if not summaries:  # which emulators also say of a group that does not exist
            self.scheduler.get_schedule_group(Name=self.group)
        keys = [(summary["Name"], summary["LastModificationDate"]) for summary in summaries]
        self._known = {key: self._known[key] for key in keys if key in self._known}
        for key in keys:
            if key not in self._known:
                self._learn(key)

    def _learn(self, key: tuple[str, datetime]) -> None:
        name, _ = key
        with self._left_for_later(name, "read"):
            answer = self.scheduler.get_schedule(GroupName=self.group, Name=name)
            self._known[key] = None
            try:
                self._known[key] = read(answer, self.precision)
            except (NotUnderstood, OverflowError) as error:
                self.say(f"{name} is left alone: {error}.")

    def _advance(self, schedule: Schedule) -> None:
        if not schedule.over and schedule.next_at <= self.clock():
            self._fire(schedule)
        if schedule.over and schedule.deletes:
            with self._left_for_later(schedule.name, "deleted"):
                self.scheduler.delete_schedule(GroupName=self.group, Name=schedule.name)

    def _fire(self, schedule: Schedule) -> None:
        now = self.clock()
        schedule.began_at = schedule.began_at or now
        schedule.tries += 1
        arn, payload = schedule.target["Arn"], schedule.input.encode()
        try:
            self.functions.invoke(FunctionName=arn, InvocationType="Event", Payload=payload)
        except (BotoCoreError, ClientError) as error:
            self._failed(schedule, now - schedule.began_at, *described(error))
            return
        schedule.over = True
        late = (now - schedule.due_at).total_seconds()
        self.say(f"{schedule.name} fired, {late:.1f} s after its time.")

    def _failed(self, schedule: Schedule, age: timedelta, code: str, message: str) -> None:
        pause = backoff(schedule.tries)
        schedule.next_at = self.clock() + pause
        bound = exhausted(schedule.target, schedule.tries, age + pause)
        then = f"given up at {bound}" if bound else f"again in {pause.total_seconds():.0f} s"
        self.say(f"{schedule.name} not fired, try {schedule.tries}: {code}; {then}.")
        if bound:
            with self._left_for_later(schedule.name, "sent to its dead-letter queue"):
                self._bury(schedule, epitaph(schedule, code, message, bound))
                schedule.over = True

    def _bury(self, schedule: Schedule, texts: dict[str, str]) -> None:
        if arn := schedule.target.get("DeadLetterConfig", {}).get("Arn"):
            attributes: dict[str, MessageAttributeValueTypeDef] = {
                name: {"DataType": "String", "StringValue": text} for name, text in texts.items()
            }
            url = "/".join([self.sqs.meta.endpoint_url.rstrip("/"), *arn.split(":")[4:]])
            self.sqs.send_message(
                QueueUrl=url, MessageBody=schedule.input, MessageAttributes=attributes
            )

    @contextmanager
    def _left_for_later(self, name: str, done: str) -> Iterator[None]:
        """Say once what was refused for this schedule alone: a later turn comes back to it."""
        try:
            yield
        except ClientError as error:
            code, _ = described(error)
            if code != "ResourceNotFoundException":  # somebody deleted it
                self._say_once(name, f"{name} can't be {done} yet: {code}.")

    def _say_once(self, subject: str, words: str) -> None:
        if self._said.get(subject) != words:
            self._said[subject] = words
            self.say(words)


def clients(*names: str) -> list[Any]:
    """Return clients of LocalStack; they have no credentials of AWS.

    Raises ValueError, RuntimeError or BotoCoreError if a setting of its address is wrong.
    """
    from localstack_client.session import Session  # noqa: PLC0415  # a tool of development only

    # Its own region would be us-east-1 whatever `chalice deploy` took.
    session = Session(region_name=boto3.Session().region_name or "us-east-1")
    # One attempt: how often to try is for the schedule to say.
    config = Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 1})
    made = [session.client(name, config=config) for name in names]
    for url in [client.meta.endpoint_url for client in made]:
        if not is_local(urlsplit(url).hostname or "."):
            raise ValueError(f"{url} is not on this machine")
    return made


def is_local(host: str) -> bool:
    """Say whether a host is this machine, a container on it, or a private address."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return bool(
            re.fullmatch(r"[a-z][\w-]*|[\w.-]+\.(localstack\.cloud|docker\.internal)", host)
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or Ctrl-C; what can't be started ends with one sentence and status 1."""
    options = _options(argv)
    stop = threading.Event()
    _stop_on_signals(stop)
    try:
        scheduler, functions, sqs = clients("scheduler", "lambda", "sqs")
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing.name} is missing: pip install -r requirements-deploy.txt.")
    except (ValueError, RuntimeError, BotoCoreError) as error:
        sys.exit(f"LocalStack can't be used: {str(error).rstrip('.')}.")
    group = f"timers-{options.stage}"
    runner = Runner(scheduler, functions, sqs, group, _now, _say, options.precision)
    _say(f"Firing the schedules of {group} at {scheduler.meta.endpoint_url}.")
    while not stop.is_set():
        runner.turn()
        stop.wait(options.poll)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("schedule_runner", description="Fire LocalStack's schedules.")
    parser.add_argument("--stage", required=True, help="the group is timers-STAGE")
    parser.add_argument("--precision", type=int, default=1, metavar="SECONDS", help="AWS's: 60")
    parser.add_argument("--poll", type=float, default=0.5, metavar="SECONDS", help="between looks")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"[0-9A-Za-z_.-]{1,57}", options.stage):
        parser.error("--stage must be letters and digits")
    if not (1 <= options.precision <= 3600 and 0.01 <= options.poll <= 60):
        parser.error("--precision must be 1 to 3600, --poll 0.01 to 60")
    return options


def _stop_on_signals(stop: threading.Event) -> None:
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # a thread waits for them instead

    def wait() -> None:
        signal.sigwait(signals)
        stop.set()
        time.sleep(GRACE)
        os._exit(0)  # a call hangs; what it was about is done again next time

    threading.Thread(target=wait, daemon=True).start()


def _now() -> datetime:
    return datetime.now(UTC)


def _say(words: str) -> None:
    line = f"{_now().astimezone():%H:%M:%S} {words}"
    # What is shown comes from outside: it must not move the cursor.
    line = line if line.isprintable() else ascii(line)[1:-1]
    with suppress(OSError, UnicodeError):  # a terminal that is gone
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
