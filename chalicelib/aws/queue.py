"""MessageQueue: the SQS queue of wake-ups."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from chalicelib.aws.errors import translated_errors
from chalicelib.core.errors import ScheduleRefused, Unavailable
from chalicelib.core.timer import Wakeup

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

SQS_MAX_DELAY = timedelta(minutes=15)
"""SQS's limit for the delay of a message."""

MAX_BATCH_SIZE = 10
"""SQS's limit of messages in one call."""

MAX_WAKEUP_LENGTH = 8192
"""Characters of an encoded wake-up: far more than usual, far below EventBridge's limit."""


class MessageQueue:
    """A stage's queue.

    `client` creates the client at its first call, and returns it. `path` is the path of the
    queue's URL, `<account>/<name>`.
    """

    def __init__(
        self, client: Callable[[], "SQSClient"], path: str, clock: Callable[[], datetime]
    ) -> None:
        self._client = client
        self._path = path
        self._clock = clock

    def send(self, wakeups: Sequence[Wakeup]) -> None:
        """Send at most ten wake-ups, each with the delay until it is due, or the longest delay."""
        now = self._clock()
        entries: list[Any] = [
            {
                "Id": str(n),
                "MessageBody": encode_wakeup(wakeup),
                "DelaySeconds": _delay(wakeup, now),
                # A fair queue: if one host keeps many workers busy, other hosts' messages go first.
                "MessageGroupId": sha256(wakeup.host.encode()).hexdigest()[:16],
            }
            for n, wakeup in enumerate(wakeups)
        ]
        with translated_errors():
            response = self._client().send_message_batch(QueueUrl=self.url(), Entries=entries)
        for failed in response.get("Failed", []):
            raise Unavailable(f"SQS did not accept a message: {failed['Code']}.")

    def delete(self, receipt_handles: Sequence[str]) -> None:
        """Delete at most ten received messages."""
        entries: list[Any] = [
            {"Id": str(n), "ReceiptHandle": handle} for n, handle in enumerate(receipt_handles)
        ]
        with translated_errors():
            self._client().delete_message_batch(QueueUrl=self.url(), Entries=entries)

    def depth(self) -> int:
        """Return the number of visible messages; SQS's figure may be a minute old."""
        with translated_errors():
            response = self._client().get_queue_attributes(
                QueueUrl=self.url(), AttributeNames=["ApproximateNumberOfMessages"]
            )
        return int(response["Attributes"]["ApproximateNumberOfMessages"])

    def url(self) -> str:
        """Return the queue's URL at the client's endpoint, which differs on LocalStack."""
        return f"{self._client().meta.endpoint_url}/{self._path}"


def encode_wakeup(wakeup: Wakeup) -> str:
    """Return a wake-up as a message's body or a schedule's Input.

    Raise ScheduleRefused if it is too long.
    """
    text = msgspec.json.encode(wakeup).decode()
    if len(text) > MAX_WAKEUP_LENGTH:
        raise ScheduleRefused("The timer's wake-up is too long to schedule.")
    return text


def _delay(wakeup: Wakeup, now: datetime) -> int:
    # One second short: the worker waits out the rest, which hides a cold start.
    left = min(wakeup.due_at - now, SQS_MAX_DELAY)
    return max(0, int(left.total_seconds()) - 1)
