"""Alarm on AWS: an EventBridge schedule for each timer, and an SQS queue for the last stretch.

The Scheduler keeps an alarm for years, but is precise to a minute only. An SQS message can be held
back to the second, but for 15 minutes at most. Together:

    more than 15 min ahead    schedule early ──► fire ──► message, held back ──► deliver
    within 15 min             message, held back ──► deliver
                              schedule late  ──► fire: finds it done (or the message lost)

Every timer that waits has one schedule, named `<id>.<generation>`, which goes away when it is over.
Emulators accept anything, so names, times and sizes are checked here.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zlib import crc32

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.core.errors import ScheduleRefused, Unavailable
from chalicelib.core.timer import MAX_DELAY, Timer, Wakeup
from chalicelib.service.concurrency import MapConcurrently, in_threads

if TYPE_CHECKING:
    from mypy_boto3_scheduler import EventBridgeSchedulerClient
    from mypy_boto3_scheduler.type_defs import RetryPolicyTypeDef
    from mypy_boto3_sqs import SQSClient

log = logging.getLogger(__name__)

SQS_MAX_DELAY = timedelta(minutes=15)
"""How long SQS holds a message back at most."""

SCHEDULE_LEAD = (timedelta(minutes=5), timedelta(minutes=13))
"""How long before the deadline the schedule of a far timer goes off: spread over this range, for
a million timers of one moment not to go off in one minute, and for retries of `fire` to fit."""

SCHEDULE_HEADROOM = SQS_MAX_DELAY - SCHEDULE_LEAD[1]
"""How far ahead of its schedule even the nearest of the far timers is set."""

BACKSTOP_DELAY = timedelta(seconds=60)
"""How long after the deadline the schedule of a near timer goes off."""

MIN_SCHEDULE_AHEAD = timedelta(seconds=90)
"""No schedule is set for a moment sooner than this: it may be refused, or go off at once."""

REFUSE_BELOW = timedelta(seconds=60)
"""What no schedule may come near; less than SOONEST, for the clock goes on while it is set."""

MAX_HOPS = 20
"""How often a ring is forwarded; the sweep finds its timer then."""

BACKLOG_LIMIT = 10_000
"""Messages in the queue from which on the sweep adds nothing."""

SCHEDULE_RETRY_POLICY: "RetryPolicyTypeDef" = {
    "MaximumEventAgeInSeconds": 86_400,
    "MaximumRetryAttempts": 185,
}
"""Of the invocation of `fire`, as long as the Scheduler goes on trying."""

MAX_WAKEUP_LENGTH = 8192
"""Characters of a ring as text: far more than any has, far less than the Scheduler takes."""

_NAME = re.compile(r"[0-9a-zA-Z_.-]{1,64}")
_THROTTLED = re.compile(r"Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|OverLimit")


@dataclass(frozen=True)
class Addresses:
    """Where the parts of a stage are."""

    group: str
    """Name of the schedule group."""
    fire_arn: str
    role_arn: str
    """The role in which the Scheduler invokes `fire`."""
    dead_letter_arn: str
    queue_path: str
    """Account and name of the queue, as they stand in its URL."""

    def __post_init__(self) -> None:
        for arn in (self.fire_arn, self.role_arn, self.dead_letter_arn):
            if not re.fullmatch(r"arn:aws[a-z-]*:\w+:[a-z0-9-]*:\d{12}:\S{1,1500}", arn):
                raise ValueError(f"{arn!r} is no ARN.")
        if not _NAME.fullmatch(self.group):
            raise ValueError(f"{self.group!r} is no name of a schedule group.")


class AwsScheduler:
    """Rings by invoking `fire` and by messages to `deliver`.

    `scheduler` and `sqs` return the client, which they make when it is first needed. What is due
    within `near` goes to the queue at once.
    """

    def __init__(
        self,
        scheduler: Callable[[], "EventBridgeSchedulerClient"],
        sqs: Callable[[], "SQSClient"],
        addresses: Addresses,
        clock: Callable[[], datetime],
        concurrently: MapConcurrently = in_threads,
        near: timedelta = SQS_MAX_DELAY,
    ) -> None:
        if not SCHEDULE_HEADROOM + REFUSE_BELOW <= near <= SQS_MAX_DELAY:
            raise ValueError(f"Timers can't go to the queue {near} ahead.")
        self._near = near
        self._scheduler = scheduler
        self._sqs = sqs
        self._at = addresses
        self._clock = clock
        self._concurrently = concurrently

    def schedule(self, timer: Timer) -> None:
        now = self._clock()
        if timer.due_at - now > self._near:
            self._schedule(timer, timer.due_at - _lead(timer.id, self._near))
            return
        late = max(timer.due_at + BACKSTOP_DELAY, now + MIN_SCHEDULE_AHEAD)
        faults = self._concurrently(
            _call, [lambda: self._send([timer.wakeup()]), lambda: self._schedule(timer, late)]
        )
        _raise_worst(faults)

    def unschedule(self, timer: Timer) -> None:
        """Delete the schedule. A message on its way finds nothing to do."""
        with _translated(but="ResourceNotFoundException"):
            self._scheduler().delete_schedule(Name=_name(timer.wakeup()), GroupName=self._at.group)

    def requeue(self, wakeups: Sequence[Wakeup]) -> None:
        further = [msgspec.structs.replace(wakeup, hops=wakeup.hops + 1) for wakeup in wakeups]
        for wakeup in further:
            if wakeup.hops > MAX_HOPS:
                log.error("wake-up dropped", extra=_about(wakeup))
        kept = [wakeup for wakeup in further if wakeup.hops <= MAX_HOPS]
        batches = [kept[start : start + 10] for start in range(0, len(kept), 10)]
        _raise_worst(self._concurrently(self._send, batches))

    def is_behind(self) -> bool:
        """Say whether the queue is deep. The figure that SQS gives may be a minute old."""
        return self._waiting_messages() > BACKLOG_LIMIT

    def check(self) -> None:
        self._waiting_messages()

    def answer(
        self, messages: Sequence[tuple[str, str]], deliver: Callable[[Wakeup], object]
    ) -> None:
        """Call `deliver` for a batch of (body, receipt handle), side by side.

        Returns if all went well. Else deletes the messages that did and raises, so that only the
        others come again.
        """
        calls = [partial(lambda text: deliver(decode_wakeup(text)), body) for body, _ in messages]
        faults = self._concurrently(_call, calls)
        if not any(faults):
            return
        for (body, _), fault in zip(messages, faults, strict=True):
            if fault:
                log.error("message failed", exc_info=fault, extra=_about(body))
        done = [handle for (_, handle), fault in zip(messages, faults, strict=True) if not fault]
        if done:
            entries: list[Any] = [
                {"Id": str(n), "ReceiptHandle": handle} for n, handle in enumerate(done)
            ]
            # What stays comes again, and finds nothing to do.
            with suppress(Unavailable), _translated():
                self._sqs().delete_message_batch(QueueUrl=self._queue_url(), Entries=entries)
        _raise_worst(faults)

    def _schedule(self, timer: Timer, wake: datetime) -> None:
        wakeup = timer.wakeup()
        name = _name(wakeup)
        # Whole seconds, and none is lost by rounding down.
        wake = wake.replace(microsecond=0) + timedelta(seconds=bool(wake.microsecond))
        if not REFUSE_BELOW <= wake - self._clock() < MAX_DELAY + timedelta(days=1):
            raise ScheduleRefused(f"No schedule can be set for {wake:%Y-%m-%d %H:%M:%S} UTC.")
        # That it exists already means that it was set: its name says for which moment.
        with _translated(but="ConflictException"):
            self._scheduler().create_schedule(
                Name=name,
                GroupName=self._at.group,
                ClientToken=name.replace(".", "-"),
                Description=_description(timer),
                ScheduleExpression=f"at({wake:%Y-%m-%dT%H:%M:%S})",
                ScheduleExpressionTimezone="UTC",
                FlexibleTimeWindow={"Mode": "OFF"},
                ActionAfterCompletion="DELETE",
                Target={
                    "Arn": self._at.fire_arn,
                    "RoleArn": self._at.role_arn,
                    "Input": _text(wakeup),
                    "RetryPolicy": SCHEDULE_RETRY_POLICY,
                    "DeadLetterConfig": {"Arn": self._at.dead_letter_arn},
                },
            )

    def _send(self, wakeups: Sequence[Wakeup]) -> None:
        now = self._clock()
        entries: list[Any] = [
            {
                "Id": str(n),
                "MessageBody": _text(wakeup),
                "DelaySeconds": _delay(wakeup, now),
                # Fair queues: while one group's messages keep many workers, others' go first.
                "MessageGroupId": sha256(wakeup.host.encode()).hexdigest()[:16],
            }
            for n, wakeup in enumerate(wakeups)
        ]
        with _translated():
            answer = self._sqs().send_message_batch(QueueUrl=self._queue_url(), Entries=entries)
        for failed in answer.get("Failed", []):
            raise Unavailable(f"SQS did not take a message: {failed['Code']}.")

    def _queue_url(self) -> str:
        return f"{self._sqs().meta.endpoint_url}/{self._at.queue_path}"

    def _waiting_messages(self) -> int:
        with _translated():
            answer = self._sqs().get_queue_attributes(
                QueueUrl=self._queue_url(), AttributeNames=["ApproximateNumberOfMessages"]
            )
        return int(answer["Attributes"]["ApproximateNumberOfMessages"])


def decode_wakeup(text: str) -> Wakeup:
    """Return the ring that a message's body holds."""
    return msgspec.json.decode(text, type=Wakeup)


def _about(message: Wakeup | str) -> dict[str, object]:
    try:
        wakeup = decode_wakeup(message) if isinstance(message, str) else message
    except msgspec.DecodeError:
        return {}
    return {"timer": wakeup.id, "tenant": wakeup.tenant, "hops": wakeup.hops}


def _text(wakeup: Wakeup) -> str:
    text = msgspec.json.encode(wakeup).decode()
    if len(text) > MAX_WAKEUP_LENGTH:
        raise ScheduleRefused("The alarm would have to carry too much.")
    return text


def _name(wakeup: Wakeup) -> str:
    name = f"{wakeup.id}.{wakeup.generation}"
    if not _NAME.fullmatch(name):
        raise ScheduleRefused(f"A schedule can't be named {name!r}.")
    return name


def _lead(timer_id: str, near: timedelta) -> timedelta:
    longest = near - SCHEDULE_HEADROOM
    shortest = min(SCHEDULE_LEAD[0], longest)
    spread = (longest - shortest).seconds + 1
    return shortest + timedelta(seconds=crc32(timer_id.encode()) % spread)


def _delay(wakeup: Wakeup, now: datetime) -> int:
    # A second short: the worker waits out the rest, which hides a cold start.
    left = min(wakeup.due_at - now, SQS_MAX_DELAY)
    return max(0, int(left.total_seconds()) - 1)


def _description(timer: Timer) -> str:
    host = urlsplit(timer.target).hostname
    return f"Timer {timer.id}: POST to {host}, due {timer.due_at:%Y-%m-%d %H:%M:%S} UTC"[:512]


def _call(step: Callable[[], object]) -> Exception | None:
    step()
    return None


def _raise_worst(faults: Sequence[Exception | None]) -> None:
    # A refusal says more than a fault that may pass.
    for fault in sorted(filter(None, faults), key=lambda f: not isinstance(f, ScheduleRefused)):
        raise fault


@contextmanager
def _translated(but: str = "") -> Iterator[None]:
    """Turn what AWS answers into our errors; the code `but` is as good as success."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == but:
            return
        if status >= 500 or status == 429 or _THROTTLED.search(code):
            raise Unavailable(f"The alarm can't be set now: {code}.") from error
        raise ScheduleRefused(f"The alarm was refused: {code}.") from error
    except BotoCoreError as error:
        raise Unavailable("The alarm can't be set now: no answer.") from error
