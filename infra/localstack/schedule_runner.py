"""Fires the schedules of a stage on LocalStack, whose EventBridge Scheduler only stores them.

`python -m infra.localstack.schedule_runner --stage localstack` polls the schedule group
`timers-<stage>`. It invokes the Lambda function of each one-time schedule that is due, then deletes
the schedule. A crash in between fires the schedule again: at least once, as on AWS.
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

from chalicelib.core.errors import OperatorError

if TYPE_CHECKING:
    from mypy_boto3_scheduler import EventBridgeSchedulerClient
    from mypy_boto3_scheduler.type_defs import GetScheduleOutputTypeDef, TargetOutputTypeDef
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef

MAX_BACKOFF = timedelta(minutes=1)
"""The longest wait between two attempts of a schedule: shorter than on AWS."""

SHUTDOWN_GRACE = 0.5
"""Seconds that a running call gets after a stop signal."""


class UnsupportedSchedule(Exception):
    """The runner can't fire this schedule; `str(error)` is the reason, as a clause."""


@dataclass
class Schedule:
    """A one-time schedule of a Lambda function, and its progress."""

    name: str
    arn: str
    due_at: datetime
    target: "TargetOutputTypeDef"
    input: str
    deletes: bool
    """Whether the schedule is deleted after completion."""
    next_at: datetime
    """Time of the next attempt."""
    first_at: datetime | None = None
    """Time of the first attempt."""
    attempts: int = 0
    completed: bool = False
    """Whether it fired, or all attempts failed."""


def parse(response: "GetScheduleOutputTypeDef", precision: int) -> Schedule | None:
    """Parse the response of GetSchedule; return None for a disabled schedule.

    Raises UnsupportedSchedule.
    """
    name, target = response["Name"], response["Target"]
    if not re.fullmatch(r"arn:aws[a-z-]*:lambda:[^:]+:[0-9]+:function:\S+", target["Arn"]):
        raise UnsupportedSchedule(f"its target {target['Arn']!r} is not a Lambda function")
    due = due_at(response["ScheduleExpression"], response.get("ScheduleExpressionTimezone", "UTC"))
    next_at = fires_at(name, due, precision)
    if response.get("State") == "DISABLED":
        return None
    deletes = response.get("ActionAfterCompletion") == "DELETE"
    return Schedule(name, response["Arn"], due, target, target.get("Input", "{}"), deletes, next_at)


def due_at(expression: str, timezone: str = "UTC") -> datetime:
    """Return the time of `at(yyyy-mm-ddThh:mm:ss)` in UTC; raise UnsupportedSchedule."""
    match = re.fullmatch(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)", expression)
    if match is None:
        raise UnsupportedSchedule(f"{expression!r} is not a one-time expression")
    try:
        zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
        return datetime.fromisoformat(match[1]).replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError, ZoneInfoNotFoundError):
        raise UnsupportedSchedule(f"{match[1]} does not exist in {timezone!r}") from None


def fires_at(name: str, due: datetime, precision: int) -> datetime:
    """Return when a schedule fires: 0 to `precision` - 1 seconds late, fixed by its name."""
    return due + timedelta(seconds=crc32(name.encode()) % precision)


def backoff(attempts: int) -> timedelta:
    """Return the pause after this many failures: 1 s, 2 s, 4 s … MAX_BACKOFF."""
    return min(timedelta(seconds=2 ** min(attempts - 1, 10)), MAX_BACKOFF)


def exhausted(target: "TargetOutputTypeDef", attempts: int, age: timedelta) -> str:
    """Return AWS's name of the retry limit that forbids another attempt, or an empty text."""
    policy = target.get("RetryPolicy", {})
    if attempts > policy.get("MaximumRetryAttempts", 185):
        return "MaximumRetryAttempts"
    longest = timedelta(seconds=policy.get("MaximumEventAgeInSeconds", 86_400))
    return "MaximumEventAgeInSeconds" if age > longest else ""


def dead_letter_attributes(
    schedule: Schedule, code: str, message: str, limit: str
) -> dict[str, str]:
    """Return the message attributes in "Configuring a dead-letter queue" of AWS's user guide."""
    return {
        "ERROR_CODE": code,
        "ERROR_MESSAGE": message,
        "EXHAUSTED_RETRY_CONDITION": limit,
        "IS_PAYLOAD_TRUNCATED": "false",
        "RETRY_ATTEMPTS": str(schedule.attempts - 1),
        "SCHEDULED_TIME": f"{schedule.due_at:%Y-%m-%dT%H:%M:%SZ}",
        "SCHEDULE_ARN": schedule.arn,
        "TARGET_ARN": schedule.target["Arn"],
    }


def code_and_message(error: BotoCoreError | ClientError) -> tuple[str, str]:
    """Return an error's code (its class without one) and message."""
    if isinstance(error, ClientError):
        code = error.response["Error"]["Code"]
        return code, error.response["Error"].get("Message") or code
    return type(error).__name__, str(error)


@dataclass
class Runner:
    """Fires the schedules of one group; `functions` is a client of Lambda."""

    scheduler: "EventBridgeSchedulerClient"
    functions: Any
    sqs: "SQSClient"
    group: str
    clock: Callable[[], datetime]
    log: Callable[[str], object]
    precision: int = 1
    _known: dict[tuple[str, datetime], Schedule | None] = field(default_factory=dict)
    """By name and modification date; None for a schedule that is disabled or unsupported."""
    _logged: dict[str, str] = field(default_factory=dict)
    """The last problem logged for each schedule, and under "" for the group."""

    def poll(self) -> None:
        """List the group once, and fire the schedules that are due."""
        try:
            self._refresh()
            if self._logged.pop("", None):
                self.log(f"Reading {self.group} again; it has {len(self._known)} schedules.")
            for schedule in sorted(filter(None, self._known.values()), key=lambda s: s.next_at):
                self._advance(schedule)
        except ClientError as error:
            self._log_unreadable(code_and_message(error)[0])
        except BotoCoreError:
            url = self.scheduler.meta.endpoint_url
            self._log_once("", f"{url} does not respond. Retrying.")

    def _log_unreadable(self, code: str) -> None:
        if code == "ResourceNotFoundException":
            self._log_once("", f"Waiting for the schedule group {self.group} to exist.")
        elif code != "InvalidToken":  # the next page's first schedule was deleted just now
            self._log_once("", f"Can't read {self.group}: {code}. Retrying.")

    def _refresh(self) -> None:
        pager = self.scheduler.get_paginator("list_schedules")
        pages = pager.paginate(GroupName=self.group, PaginationConfig={"PageSize": 100})
        summaries = [summary for page in pages for summary in page["Schedules"]]
        if not summaries:  # LocalStack also lists a group that does not exist as empty
            self.scheduler.get_schedule_group(Name=self.group)
        keys = [(summary["Name"], summary["LastModificationDate"]) for summary in summaries]
        self._known = {key: self._known[key] for key in keys if key in self._known}
        for key in keys:
            if key not in self._known:
                self._get(key)

    def _get(self, key: tuple[str, datetime]) -> None:
        name, _ = key
        with self._retried_later("read", name):
            response = self.scheduler.get_schedule(GroupName=self.group, Name=name)
            self._known[key] = None
            try:
                self._known[key] = parse(response, self.precision)
            except (UnsupportedSchedule, OverflowError) as error:
                self.log(f"Ignoring {name}: {error}.")

    def _advance(self, schedule: Schedule) -> None:
        if not schedule.completed and schedule.next_at <= self.clock():
            self._fire(schedule)
        if schedule.completed and schedule.deletes:
            with self._retried_later("delete", schedule.name):
                self.scheduler.delete_schedule(GroupName=self.group, Name=schedule.name)

    def _fire(self, schedule: Schedule) -> None:
        now = self.clock()
        schedule.first_at = schedule.first_at or now
        schedule.attempts += 1
        arn, payload = schedule.target["Arn"], schedule.input.encode()
        try:
            self.functions.invoke(FunctionName=arn, InvocationType="Event", Payload=payload)
        except (BotoCoreError, ClientError) as error:
            self._retry(schedule, now - schedule.first_at, *code_and_message(error))
            return
        schedule.completed = True
        late = (now - schedule.due_at).total_seconds()
        self.log(f"Fired {schedule.name}, {late:.1f} s late.")

    def _retry(self, schedule: Schedule, age: timedelta, code: str, message: str) -> None:
        pause = backoff(schedule.attempts)
        schedule.next_at = self.clock() + pause
        limit = exhausted(schedule.target, schedule.attempts, age + pause)
        then = f"Giving up at {limit}" if limit else f"Retrying in {pause.total_seconds():.0f} s"
        self.log(f"Attempt {schedule.attempts} to fire {schedule.name} failed: {code}. {then}.")
        if limit:
            with self._retried_later("send to the dead-letter queue", schedule.name):
                attributes = dead_letter_attributes(schedule, code, message, limit)
                self._send_to_dlq(schedule, attributes)
                schedule.completed = True

    def _send_to_dlq(self, schedule: Schedule, texts: dict[str, str]) -> None:
        if arn := schedule.target.get("DeadLetterConfig", {}).get("Arn"):
            attributes: dict[str, MessageAttributeValueTypeDef] = {
                name: {"DataType": "String", "StringValue": text} for name, text in texts.items()
            }
            url = "/".join([self.sqs.meta.endpoint_url.rstrip("/"), *arn.split(":")[4:]])
            self.sqs.send_message(
                QueueUrl=url, MessageBody=schedule.input, MessageAttributes=attributes
            )

    @contextmanager
    def _retried_later(self, action: str, name: str) -> Iterator[None]:
        """Log a failed call for one schedule, and go on: the next poll repeats the call."""
        try:
            yield
        except ClientError as error:
            code, _ = code_and_message(error)
            if code != "ResourceNotFoundException":  # the schedule was deleted meanwhile
                self._log_once(name, f"Can't {action} {name} yet: {code}.")

    def _log_once(self, subject: str, text: str) -> None:
        if self._logged.get(subject) != text:
            self._logged[subject] = text
            self.log(text)


def clients(*names: str) -> list[Any]:
    """Return boto3 clients of LocalStack, without AWS credentials.

    Raises ValueError, RuntimeError or BotoCoreError if LocalStack's address is misconfigured.
    """
    from localstack_client.session import Session  # noqa: PLC0415  # only developers install it

    # LocalStack's session always takes us-east-1; `chalice deploy` takes the configured region.
    session = Session(region_name=boto3.Session().region_name or "us-east-1")
    # boto3 makes one attempt: the schedule's own policy decides on retries.
    config = Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 1})
    created = [session.client(name, config=config) for name in names]
    for url in [client.meta.endpoint_url for client in created]:
        if not is_local(urlsplit(url).hostname or "."):
            raise ValueError(f"{url} is not on this machine")
    return created


def is_local(host: str) -> bool:
    """Return whether a host is this machine, a container on it, or a private address."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return bool(
            re.fullmatch(r"[a-z][\w-]*|[\w.-]+\.(localstack\.cloud|docker\.internal)", host)
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or Ctrl-C. A failed start prints its reason and exits with status 1."""
    options = _options(argv)
    stop = threading.Event()
    _stop_on_signals(stop)
    try:
        runner = _runner(f"timers-{options.stage}", options.precision)
    except OperatorError as error:
        sys.exit(str(error))
    _log(f"Firing the schedules of {runner.group} at {runner.scheduler.meta.endpoint_url}.")
    while not stop.is_set():
        runner.poll()
        stop.wait(options.poll)


def _runner(group: str, precision: int) -> Runner:
    try:
        scheduler, functions, sqs = clients("scheduler", "lambda", "sqs")
    except ModuleNotFoundError as missing:
        raise OperatorError(
            f"{missing.name} is missing: run `pip install -r requirements-deploy.txt`."
        ) from None
    except (ValueError, RuntimeError, BotoCoreError) as error:
        raise OperatorError(f"Can't use LocalStack: {str(error).rstrip('.')}.") from None
    return Runner(scheduler, functions, sqs, group, _now, _log, precision)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "schedule_runner", description="Fire the schedules that LocalStack stores."
    )
    parser.add_argument("--stage", required=True, help="fire the group timers-STAGE")
    parser.add_argument("--precision", type=int, default=1, metavar="SECONDS", help="AWS: 60")
    parser.add_argument("--poll", type=float, default=0.5, metavar="SECONDS", help="between polls")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"[0-9A-Za-z_.-]{1,57}", options.stage):
        parser.error("--stage must be 1 to 57 letters, digits, _, . or -")
    if not (1 <= options.precision <= 3600 and 0.01 <= options.poll <= 60):
        parser.error("--precision must be 1 to 3600, --poll 0.01 to 60")
    return options


def _stop_on_signals(stop: threading.Event) -> None:
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # a thread waits for them

    def wait() -> None:
        signal.sigwait(signals)
        stop.set()
        time.sleep(SHUTDOWN_GRACE)
        os._exit(0)  # a call still hangs; the next runner repeats it

    threading.Thread(target=wait, daemon=True).start()


def _now() -> datetime:
    return datetime.now(UTC)


def _log(text: str) -> None:
    line = f"{_now().astimezone():%H:%M:%S} {text}"
    # Names of schedules are untrusted: escape codes in them must not reach the terminal.
    line = line if line.isprintable() else ascii(line)[1:-1]
    with suppress(OSError, UnicodeError):  # the terminal may be closed
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
