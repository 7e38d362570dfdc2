"""A timer as it is shown: in answers, and to whoever is told that it failed."""

from datetime import datetime

import msgspec

from chalicelib import timers
from chalicelib.guard import masked
from chalicelib.timers import Attempt, RetryPolicy, Status, Timer

MAX_FAILURE = 96 * 1024
"""Bytes of what is told of a failure: many receivers take no more than 100 KB, and a stored timer
has room for 400 KB in all."""


class AttemptView(msgspec.Struct, kw_only=True):
    """One entry of a timer's attempt log: seconds, and a status or an error."""

    number: int
    at: datetime
    lateness: float
    duration: float
    status: int | None
    error: str | None
    detail: str
    answer: str


class TimerView(msgspec.Struct, kw_only=True):
    """A timer."""

    id: str
    status: Status
    time_left: int
    url: str
    method: str
    headers: dict[str, str]
    """Values that look like secrets are masked."""
    body: str
    timeout: int
    retry: RetryPolicy
    on_failure: str | None
    label: str | None
    metadata: dict[str, str]
    fire_at: datetime
    created_at: datetime
    next_attempt_at: datetime | None
    failure: str | None
    attempts: list[AttemptView]


class Failure(msgspec.Struct, kw_only=True):
    """What `on_failure` is told."""

    type: str
    timestamp: datetime
    timer: TimerView
    last_attempt: AttemptView


def view(timer: Timer, now: datetime) -> TimerView:
    """Return the timer as it is shown at a moment."""
    return TimerView(
        id=timer.id,
        status=timer.status,
        time_left=timer.time_left(now),
        url=timer.url,
        method=timer.method,
        headers={name: masked(name, value) for name, value in timer.headers.items()},
        body=timer.body,
        timeout=timer.timeout,
        retry=timer.retry,
        on_failure=timer.on_failure,
        label=timer.label,
        metadata=timer.metadata,
        fire_at=timer.deadline,
        created_at=timer.created_at,
        next_attempt_at=timer.due_at if timer.status in timers.WAITING else None,
        failure=timer.failure,
        attempts=[_attempt(attempt) for attempt in timer.attempts],
    )


def failure(timer: Timer, now: datetime) -> str:
    """Return, as JSON, what is told of a timer that failed; without its body if that is too much.

    64 KB of control characters are six times as much in JSON.
    """
    shown = view(timer, now)
    told = Failure(type="timer.failed", timestamp=now, timer=shown, last_attempt=shown.attempts[-1])
    text = msgspec.json.encode(told)
    if len(text) > MAX_FAILURE:
        shown.body = ""
        text = msgspec.json.encode(told)
    return text.decode()


def _attempt(attempt: Attempt) -> AttemptView:
    outcome = attempt.outcome
    return AttemptView(
        number=attempt.number,
        at=attempt.at,
        lateness=attempt.lateness,
        duration=outcome.duration,
        status=outcome.status,
        error=outcome.error,
        detail=outcome.detail,
        answer=outcome.answer,
    )
