"""A timer as JSON: in responses, and in the notification of its failure. Pure."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from chalicelib.core.headers import mask
from chalicelib.core.timer import WAITING, Attempt, RetryPolicy, Status, Timer

MAX_FAILURE_BYTES = 96 * 1024
"""Bytes of a failure notification: many receivers accept at most 100 KB, and a stored timer has at
most 400 KB."""

Moment = Annotated[datetime, Meta(tz=True)]


class AttemptResource(msgspec.Struct, kw_only=True):
    """One attempt to send a webhook. It has a status or an error."""

    number: Annotated[int, Meta(description="1 for the first attempt.")]
    at: Annotated[Moment, Meta(description="When the attempt began.")]
    lateness: Annotated[float, Meta(description="Seconds between the due time and the attempt.")]
    duration: Annotated[float, Meta(description="Seconds that the attempt took.")]
    status: Annotated[int | None, Meta(description="HTTP status of the receiver's response.")]
    error: Annotated[
        str | None,
        Meta(
            description="`dns`, `connect`, `tls`, `timeout`, `refused target`, `too large` or"
            " `worker lost`."
        ),
    ]
    detail: Annotated[str, Meta(description="More about the error.")]
    answer: Annotated[str, Meta(description="The beginning of the response body.")]
    location: Annotated[
        str | None,
        Meta(description="Where a redirect pointed; null for other responses. It isn't followed."),
    ]


class TimerResource(msgspec.Struct, kw_only=True):
    """A timer. `{id}` in its URLs stands for its id."""

    id: Annotated[str, Meta(examples=["019c13ec-9e00-7a31-8f3b-2b1d7d0c5b7e"])]
    status: Status
    time_left: Annotated[
        int,
        Meta(
            ge=0,
            description="Whole seconds until the deadline, rounded up; 0 unless the timer is"
            " scheduled.",
        ),
    ]
    url: Annotated[str, Meta(description="The URL that the webhook is sent to.")]
    method: str
    headers: Annotated[
        dict[str, str], Meta(description="Values that look like secrets are masked.")
    ]
    body: Annotated[str, Meta(description="The body as it is sent.")]
    timeout: Annotated[int, Meta(description="Seconds that one attempt may take.")]
    retry: RetryPolicy
    on_failure: Annotated[
        str | None, Meta(description="The URL that is notified if the timer fails.")
    ]
    label: str | None
    metadata: dict[str, str]
    fire_at: Annotated[Moment, Meta(description="The deadline.")]
    created_at: Moment
    next_attempt_at: Annotated[
        Moment | None, Meta(description="Null unless the timer is scheduled or retrying.")
    ]
    failure: Annotated[str | None, Meta(description="Why the timer failed; null unless it did.")]
    attempts: Annotated[
        list[AttemptResource], Meta(description="The latest 20 attempts, oldest first.")
    ]


class Failure(msgspec.Struct, kw_only=True):
    """The body of a notification to `on_failure`."""

    type: Annotated[Literal["timer.failed"], Meta(extra_json_schema={"type": "string"})]
    timestamp: Moment
    timer: TimerResource
    last_attempt: AttemptResource


def represent(timer: Timer, now: datetime) -> TimerResource:
    """Return the timer as it looks at this time."""
    return TimerResource(
        id=timer.id,
        status=timer.status,
        time_left=timer.time_left(now),
        url=timer.url,
        method=timer.method,
        headers={name: mask(name, value) for name, value in timer.headers.items()},
        body=timer.body,
        timeout=timer.timeout,
        retry=timer.retry,
        on_failure=timer.on_failure,
        label=timer.label,
        metadata=timer.metadata,
        fire_at=timer.deadline,
        created_at=timer.created_at,
        next_attempt_at=timer.due_at if timer.status in WAITING else None,
        failure=timer.failure,
        attempts=[_attempt(attempt) for attempt in timer.attempts],
    )


def represent_failure(timer: Timer, now: datetime) -> str:
    """Return the notification about a failed timer, as JSON of at most `MAX_FAILURE_BYTES`.

    If it would be larger, the timer's body is left out: JSON makes control characters six times as
    long.
    """
    resource = represent(timer, now)
    failure = Failure(
        type="timer.failed",
        timestamp=now,
        timer=resource,
        last_attempt=resource.attempts[-1],
    )
    text = msgspec.json.encode(failure)
    if len(text) > MAX_FAILURE_BYTES:
        resource.body = ""
        text = msgspec.json.encode(failure)
    return text.decode()


def _attempt(attempt: Attempt) -> AttemptResource:
    outcome = attempt.outcome
    return AttemptResource(
        number=attempt.number,
        at=attempt.at,
        lateness=attempt.lateness,
        duration=outcome.duration,
        status=outcome.status,
        error=outcome.error,
        detail=outcome.detail,
        answer=outcome.answer,
        location=outcome.location,
    )
