"""AwsScheduler: one EventBridge schedule per timer, and SQS for the last minutes.

EventBridge Scheduler keeps a schedule for years, but fires it only to the minute. SQS delays a
message to the second, but for 15 minutes at most. Together:

    due in more than 15 min   early schedule ──► fire ──► delayed message ──► deliver
    due within 15 min         delayed message ──► deliver
                              backstop       ──► fire: requeues the timer if its message was lost

Each waiting timer has one schedule, named `<id>.<generation>`, which EventBridge deletes after it
fires. Emulators accept anything, so this module checks names, times and sizes itself.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from chalicelib.aws.errors import translated_errors
from chalicelib.aws.queue import MAX_BATCH_SIZE, SQS_MAX_DELAY, MessageQueue, encode_wakeup
from chalicelib.core.errors import ScheduleRefused
from chalicelib.core.timer import MAX_DELAY, Timer, Wakeup, host_of
from chalicelib.service.concurrency import MapConcurrently, in_threads

if TYPE_CHECKING:
    from mypy_boto3_scheduler import EventBridgeSchedulerClient
    from mypy_boto3_scheduler.type_defs import RetryPolicyTypeDef

log = logging.getLogger(__name__)

SCHEDULE_LEAD = (timedelta(minutes=5), timedelta(minutes=13))
"""The range over which early schedules are spread before the deadline.

So a million timers with one deadline do not fire in one minute, and `fire` can be retried."""

SCHEDULE_HEADROOM = SQS_MAX_DELAY - SCHEDULE_LEAD[1]
"""The shortest time from the creation of an early schedule until it fires."""

BACKSTOP_DELAY = timedelta(seconds=60)
"""The time from the deadline until the backstop fires."""

MIN_SCHEDULE_AHEAD = timedelta(seconds=90)
"""The shortest time until a backstop fires: AWS may refuse a sooner one or fire it at once."""

REFUSE_BELOW = timedelta(seconds=60)
"""The shortest time accepted for any schedule. It is below MIN_SCHEDULE_AHEAD because the clock
moves on between the two checks."""

MAX_HOPS = 20
"""The limit of requeues for one wake-up; after that the sweep finds its timer."""

BACKLOG_LIMIT = 10_000
"""Messages in the queue above which the sweep adds none."""

SCHEDULE_RETRY_POLICY: "RetryPolicyTypeDef" = {
    "MaximumEventAgeInSeconds": 86_400,
    "MaximumRetryAttempts": 185,
}
"""Retries of the invocation of `fire`: EventBridge Scheduler's maximum."""

_NAME = re.compile(r"[0-9a-zA-Z_.-]{1,64}")


@dataclass(frozen=True)
class Addresses:
    """The AWS resources of a stage that its schedules name. Wrong ones raise ValueError."""

    group: str
    """The name of the schedule group."""
    fire_arn: str
    role_arn: str
    """The IAM role with which EventBridge Scheduler invokes `fire`."""
    dead_letter_arn: str

    def __post_init__(self) -> None:
        for arn in (self.fire_arn, self.role_arn, self.dead_letter_arn):
            if not re.fullmatch(r"arn:aws[a-z-]*:\w+:[a-z0-9-]*:\d{12}:\S{1,1500}", arn):
                raise ValueError(f"{arn!r} is not a valid ARN.")
        if not _NAME.fullmatch(self.group):
            raise ValueError(f"{self.group!r} is not a valid name of a schedule group.")


class AwsScheduler:
    """Scheduler on EventBridge schedules and a message queue.

    `scheduler` creates the client at its first call, and returns it. Timers due within `near` go
    to the queue at once.
    """

    def __init__(
        self,
        scheduler: Callable[[], "EventBridgeSchedulerClient"],
        queue: MessageQueue,
        addresses: Addresses,
        clock: Callable[[], datetime],
        concurrently: MapConcurrently = in_threads,
        near: timedelta = SQS_MAX_DELAY,
    ) -> None:
        if not SCHEDULE_HEADROOM + REFUSE_BELOW <= near <= SQS_MAX_DELAY:
            raise ValueError(f"Timers can't go to the queue {near} before their deadline.")
        self._near = near
        self._scheduler = scheduler
        self._queue = queue
        self._addresses = addresses
        self._clock = clock
        self._concurrently = concurrently

    def schedule(self, timer: Timer) -> None:
        now = self._clock()
        if timer.due_at - now > self._near:
            self._create_schedule(timer, timer.due_at - _lead(timer.id, self._near))
            return
        backstop_at = max(timer.due_at + BACKSTOP_DELAY, now + MIN_SCHEDULE_AHEAD)
        send = partial(self._queue.send, [timer.wakeup()])
        create = partial(self._create_schedule, timer, backstop_at)
        _raise_worst(self._concurrently(_call, [send, create]))

    def unschedule(self, timer: Timer) -> None:
        """Delete the schedule. A message stays in the queue, and its wake-up is ignored."""
        with translated_errors(ignore="ResourceNotFoundException"):
            self._scheduler().delete_schedule(
                Name=_name(timer.wakeup()), GroupName=self._addresses.group
            )

    def requeue(self, wakeups: Sequence[Wakeup]) -> None:
        requeued = [msgspec.structs.replace(wakeup, hops=wakeup.hops + 1) for wakeup in wakeups]
        for wakeup in requeued:
            if wakeup.hops > MAX_HOPS:
                log.error("wake-up dropped", extra=wakeup.log_fields)
        kept = [wakeup for wakeup in requeued if wakeup.hops <= MAX_HOPS]
        batches = [kept[i : i + MAX_BATCH_SIZE] for i in range(0, len(kept), MAX_BATCH_SIZE)]
        _raise_worst(self._concurrently(self._queue.send, batches))

    def is_behind(self) -> bool:
        """Return whether the queue has more than BACKLOG_LIMIT messages."""
        return self._queue.depth() > BACKLOG_LIMIT

    def check(self) -> None:
        self._queue.depth()

    def _create_schedule(self, timer: Timer, at: datetime) -> None:
        wakeup = timer.wakeup()
        name = _name(wakeup)
        # EventBridge takes whole seconds; rounding down would fire too early.
        at = at.replace(microsecond=0) + timedelta(seconds=bool(at.microsecond))
        if not REFUSE_BELOW <= at - self._clock() < MAX_DELAY + timedelta(days=1):
            raise ScheduleRefused(f"A schedule can't fire at {at:%Y-%m-%d %H:%M:%S} UTC.")
        # A conflict means success: a schedule of this name is for the same time.
        with translated_errors(ignore="ConflictException"):
            self._scheduler().create_schedule(
                Name=name,
                GroupName=self._addresses.group,
                ClientToken=name.replace(".", "-"),
                Description=_description(timer),
                ScheduleExpression=f"at({at:%Y-%m-%dT%H:%M:%S})",
                ScheduleExpressionTimezone="UTC",
                FlexibleTimeWindow={"Mode": "OFF"},
                ActionAfterCompletion="DELETE",
                Target={
                    "Arn": self._addresses.fire_arn,
                    "RoleArn": self._addresses.role_arn,
                    "Input": encode_wakeup(wakeup),
                    "RetryPolicy": SCHEDULE_RETRY_POLICY,
                    "DeadLetterConfig": {"Arn": self._addresses.dead_letter_arn},
                },
            )


def _name(wakeup: Wakeup) -> str:
    name = f"{wakeup.id}.{wakeup.generation}"
    if not _NAME.fullmatch(name):
        raise ScheduleRefused(f"{name!r} is not a valid name of a schedule.")
    return name


def _lead(timer_id: str, near: timedelta) -> timedelta:
    longest = near - SCHEDULE_HEADROOM
    shortest = min(SCHEDULE_LEAD[0], longest)
    spread = (longest - shortest).seconds + 1
    return shortest + timedelta(seconds=crc32(timer_id.encode()) % spread)


def _description(timer: Timer) -> str:
    host = host_of(timer.target)
    return f"Timer {timer.id}: POST to {host}, due {timer.due_at:%Y-%m-%d %H:%M:%S} UTC"[:512]


def _call(step: Callable[[], None]) -> None:
    step()


def _raise_worst(faults: Sequence[Exception | None]) -> None:
    # A refusal is permanent, so it comes before a temporary fault.
    for fault in sorted(filter(None, faults), key=lambda f: not isinstance(f, ScheduleRefused)):
        raise fault
