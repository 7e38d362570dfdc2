"""Cloud: the deployed service on a moto account, with a manual clock that fires its schedules."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from chalicelib.aws.handlers import decode_wakeup
from chalicelib.aws.queue import MessageQueue
from chalicelib.aws.scheduler import AwsScheduler
from chalicelib.aws.timer_store import DynamoTimerStore
from chalicelib.core.timer import DEFAULT_TENANT, Timer, Webhook, timer_id
from chalicelib.runtime import Dependencies
from chalicelib.service.concurrency import MapConcurrently, in_threads, one_by_one
from tests.support.aws import NAME, Account
from tests.support.fakes import Clock, FakeSender, created
from tests.support.service import Service

FUNCTION_TIMEOUT = timedelta(seconds=60)


def moment(expression: str) -> datetime:
    """Return the time of an `at(…)` expression, the only kind that Timers uses."""
    match = re.fullmatch(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)", expression)
    assert match, expression
    return datetime.fromisoformat(match[1]).replace(tzinfo=UTC)


@dataclass
class Record:
    """A message as Lambda passes it to `deliver`."""

    body: str
    receipt_handle: str = "handle"


class Context:
    """The context of an invocation that has this many seconds left."""

    def __init__(self, seconds: float = FUNCTION_TIMEOUT.total_seconds()) -> None:
        self._seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self._seconds * 1000)


def queue_of(aws: Account, clock: Callable[[], datetime]) -> MessageQueue:
    """Return the account's queue."""
    return MessageQueue(lambda: aws.sqs, aws.queue_path, clock)


def scheduler_of(
    aws: Account, clock: Callable[[], datetime], concurrently: MapConcurrently = in_threads
) -> AwsScheduler:
    """Return a scheduler on the account."""
    queue = queue_of(aws, clock)
    return AwsScheduler(lambda: aws.scheduler, queue, aws.addresses, clock, concurrently)


class Cloud:
    """The deployed service; each call of `service` is a new process."""

    def __init__(self, aws: Account) -> None:
        self.aws = aws
        self.clock = aws.clock = Clock()
        self.sender = FakeSender()
        self.chance: Callable[[], float] = lambda: 0.5
        self._ids = 0
        self._seen = 0
        self._messages: list[tuple[datetime, str]] = []

    @property
    def service(self) -> Service:
        clock = self.clock
        scheduler = scheduler_of(self.aws, clock, one_by_one)
        store = DynamoTimerStore(self.aws.dynamodb, NAME)
        return Service(
            store,
            scheduler,
            self.sender,
            clock=clock,
            new_id=self._new_id,
            pause=self._pause,
            chance=self.chance,
        )

    @property
    def dependencies(self) -> Dependencies:
        """The dependencies of the Lambda handlers."""
        queue = queue_of(self.aws, self.clock)
        return self.service.dependencies(queue=queue)

    def create(self, seconds: float) -> Timer:
        return created(self.service, Webhook(url="https://example.com/hook"), seconds)

    def read(self, timer_id: str) -> Timer:
        with self.aws.unobserved():
            return self.service.get(DEFAULT_TENANT, timer_id)

    def sweep(self) -> int:
        return self.service.sweep(self.clock.now + timedelta(seconds=50))

    def messages(self) -> list[tuple[datetime, str]]:
        """Return the messages in the queue, with the time at which each becomes visible."""
        for operation, request, sent_at in self.aws.done[self._seen :]:
            if operation == "SendMessageBatch":
                for entry in request["Entries"]:
                    at = sent_at + timedelta(seconds=entry["DelaySeconds"])
                    self._messages.append((at, entry["MessageBody"]))
        self._seen = len(self.aws.done)
        return self._messages

    def lose_messages(self) -> None:
        """Remove all messages from the queue."""
        self.messages().clear()

    def turn(self, seconds: float = 0) -> None:
        """Move the clock; then fire all due schedules, and deliver messages until none is due."""
        self.clock.forward(seconds)
        for text in self.schedules_due():
            self.fire(text)
        while due := self.messages_due():
            for text in due:
                self.deliver(text)

    def fire(self, text: str) -> None:
        """Invoke `fire` with a schedule's Input."""
        self.service.fire(decode_wakeup(text))

    def deliver(self, text: str) -> None:
        """Invoke `deliver` with a message's body."""
        self.service.deliver(decode_wakeup(text), self.clock.now + FUNCTION_TIMEOUT)

    def schedules_due(self) -> list[str]:
        """Remove the due schedules; return their Inputs."""
        due: list[str] = []
        for name in self.aws.schedules():
            with self.aws.unobserved():
                schedule = self.aws.scheduler.get_schedule(GroupName=NAME, Name=name)
                if moment(schedule["ScheduleExpression"]) <= self.clock.now:
                    self.aws.scheduler.delete_schedule(GroupName=NAME, Name=name)
                    due.append(schedule["Target"]["Input"])
        return due

    def next_event(self) -> datetime | None:
        """Return the time at which the next schedule or message is due, or None."""
        times = [at for at, _ in self.messages()]
        with self.aws.unobserved():
            for name in self.aws.schedules():
                schedule = self.aws.scheduler.get_schedule(GroupName=NAME, Name=name)
                times.append(moment(schedule["ScheduleExpression"]))
        return min(times, default=None)

    def messages_due(self) -> list[str]:
        """Remove the due messages; return their bodies."""
        due = [entry for entry in self.messages() if entry[0] <= self.clock.now]
        for entry in due:
            self._messages.remove(entry)
        return [text for _, text in due]

    def _pause(self, seconds: float) -> None:
        self.clock.forward(seconds)

    def _new_id(self) -> str:
        self._ids += 1
        return timer_id(self.clock.now, self._ids.to_bytes(10, "big"))
