"""A timer, its states and what may become of it. Pure: no clock, no I/O.

    scheduled ──► delivering ──► delivered
        │  ▲          │  │  ▲
        │  │          │  ▼  │
        │  └─ failed ◄┘ retrying          failed ──► scheduled is the redrive
        ▼                  │
    cancelled ◄────────────┘

Two numbers decide every race:

* `generation` grows with every new moment (deadline, retry, redrive, a lease taken back).
  A `Ring` of an older generation does nothing.
* `version` grows with every write. A store replaces a timer only if the stored version is the one
  before it, so whoever decided on an older state (a worker that stalled past its lease) changes
  nothing.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from math import ceil
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from chalicelib.errors import Conflict, DeliveryUnderWay

MAX_TIMEOUT = 30
"""The longest that one attempt may take, in seconds."""

MAX_DELAY = timedelta(days=5 * 365 + 1)
"""How far ahead a deadline may lie: 5 years."""

RETENTION = timedelta(days=30)
"""How long a finished timer can still be read."""

DEFAULT_TENANT = "default"
"""Whose timers they are where there are no keys to tell."""

ATTEMPTS_KEPT = 20
"""How many attempts a timer remembers; older ones are forgotten first."""

OLDER_ANSWER_KEPT = 200
"""Bytes of the answer that is kept of all attempts but the last."""


class Status(StrEnum):
    """Where a timer is in its life."""

    SCHEDULED = "scheduled"
    """Waits for its deadline."""
    DELIVERING = "delivering"
    """One worker holds the claim and is sending the webhook."""
    RETRYING = "retrying"
    """An attempt failed; waits for the next one."""
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = frozenset({Status.SCHEDULED, Status.RETRYING})
FINAL = frozenset({Status.DELIVERED, Status.FAILED, Status.CANCELLED})


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one POST came to: a status, or the class of error that kept one from coming."""

    status: int | None = None
    """HTTP status of the answer."""
    error: str | None = None
    """dns, connect, tls, timeout, refused target, too large, or worker lost."""
    detail: str = ""
    """The error in the words of whoever raised it."""
    answer: str = ""
    """The beginning of the answer's body."""
    duration: float = 0.0
    """Seconds from the start of the exchange to its end."""
    retry_after: float | None = None
    """Seconds that the receiver asked to be left alone for."""

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """Why it did not succeed, for people: `HTTP 404`, `connect: Connection refused`."""
        if self.error is None:
            return f"HTTP {self.status}"
        return f"{self.error}: {self.detail}" if self.detail else self.error


class Attempt(Struct, frozen=True, kw_only=True):
    """One entry of a timer's attempt log."""

    number: int
    at: datetime
    """When the exchange began."""
    lateness: float
    """Seconds from the moment it was due to `at`."""
    outcome: Outcome


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How often a webhook is tried, and how long it waits in between: seconds."""

    max_attempts: int = 8
    initial_delay: int = 10
    """The longest that the second attempt waits; each further one up to four times as long."""
    max_delay: int = 12 * 3600
    """What no wait exceeds."""


class Webhook(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be sent, how, and what its owner calls it: all of a timer but when."""

    url: str
    """As given; `{id}` in it stands for the timer's id."""
    method: str = "POST"
    headers: dict[str, str] = {}
    """Further headers, beside those that every webhook has."""
    body: str = ""
    timeout: int = MAX_TIMEOUT
    """Seconds that one attempt may take, from name resolution to the last byte."""
    retry: RetryPolicy = RetryPolicy()
    on_failure: str | None = None
    """A URL that is told, by a timer of its own, if this one ends as failed; `{id}` as in `url`."""
    label: str | None = None
    """What timers can be found by."""
    metadata: dict[str, str] = {}
    """What the owner wants to remember with it; it is not sent."""


class Once(Struct, frozen=True):
    """An Idempotency-Key, and the SHA-256 of what was asked for with it."""

    key: str
    fingerprint: str


class Order(Struct, frozen=True, kw_only=True):
    """A timer that somebody wants."""

    webhook: Webhook
    deadline: datetime
    once: Once | None = None


class Timer(Webhook, frozen=True, kw_only=True, omit_defaults=True):
    """One webhook to be sent once. All moments are aware UTC datetimes."""

    id: str
    tenant: str
    created_at: datetime
    deadline: datetime
    """When the owner wants the webhook to be sent."""
    due_at: datetime
    """When the next attempt is due: the deadline, or a retry's moment."""
    wake_at: datetime | None
    """When the sweep must look after it: the next attempt; while delivering the end of the lease;
    None once final."""
    status: Status = Status.SCHEDULED
    generation: int = 1
    version: int = 1
    attempt: int = 0
    """How many times it has been claimed."""
    attempts_before: int = 0
    """How many of those came before the owner last set a moment; the retry policy starts there."""
    attempts: tuple[Attempt, ...] = ()
    """The newest `ATTEMPTS_KEPT` of the attempt log, oldest first."""
    armed: bool = True
    """False if its alarm could not be set; the sweep then sets it."""
    expires_at: datetime | None = None
    """When a finished timer is forgotten, in whole seconds."""
    fingerprint: str | None = None
    """What the Idempotency-Key that it was created with stood for."""

    @property
    def target(self) -> str:
        """The URL to post to."""
        return self.url.replace("{id}", self.id)

    @property
    def failure(self) -> str | None:
        """Why it ended as failed."""
        return self.attempts[-1].outcome.reason if self.status is Status.FAILED else None

    def time_left(self, now: datetime) -> int:
        """Whole seconds until the deadline, rounded up; 0 once due or no longer scheduled."""
        if self.status is not Status.SCHEDULED:
            return 0
        return max(0, ceil((self.deadline - now).total_seconds()))


class Ring(Struct, frozen=True, omit_defaults=True, order=True):
    """What an alarm says when it goes off: which timer, of which generation, due when."""

    id: str
    tenant: str
    generation: int
    due_at: datetime
    hops: int = 0
    """How often it has been forwarded."""
    host: str = ""
    """Whom the webhook is for, so that a receiver that hangs holds up nobody else's."""


# msgspec looks at a type when it first reads one. If two threads do so at once, it crashes the
# process; so this is done before there are any.
for _kind in (Timer, Ring):
    msgspec.json.Decoder(_kind)


def timer_id(at: datetime, entropy: bytes) -> str:
    """Return a UUIDv7 (RFC 9562) of a moment and 10 random bytes: unguessable, sorted by age."""
    milliseconds = int(at.timestamp() * 1000)
    return _uuid(7, milliseconds.to_bytes(6, "big") + entropy)


def keyed_id(tenant: str, key: str) -> str:
    """Return the id of the one timer that a tenant can have of an Idempotency-Key: a UUIDv8."""
    return _uuid(8, sha256(f"{tenant} {key}".encode()).digest()[:16])


def ring(timer: Timer) -> Ring:
    """Return what the alarm for the timer's next attempt has to say."""
    return Ring(timer.id, timer.tenant, timer.generation, timer.due_at, host=host(timer.url))


@lru_cache(1024)  # each write of a timer asks
def host(url: str) -> str:
    """Return the host of a timer's URL, in one spelling, with its port if it is a special one."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port in (None, 80, 443) else f":{parts.port}"
        return (parts.hostname or "").removesuffix(".") + port
    except ValueError:  # none that a timer can have; but a ring must not fail
        return ""


def new(
    id: str,
    tenant: str,
    webhook: Webhook,
    deadline: datetime,
    now: datetime,
    fingerprint: str | None = None,
) -> Timer:
    """Return a timer that waits for its deadline; one in the past is due at once."""
    return Timer(
        **asdict(webhook),
        id=id,
        tenant=tenant,
        created_at=now,
        deadline=deadline,
        due_at=deadline,
        wake_at=deadline,
        fingerprint=fingerprint,
    )


def notice(timer: Timer, body: str, now: datetime) -> Timer:
    """Return the timer that tells `timer.on_failure` of a failed timer, with this JSON.

    Its id is the same whenever this is said of the same failure.
    """
    entropy = sha256(f"{timer.id}.{timer.generation}".encode()).digest()[:10]
    url = (timer.on_failure or "").replace("{id}", timer.id)
    webhook = Webhook(url=url, headers={"Content-Type": "application/json"}, body=body)
    return new(timer_id(timer.created_at, entropy), timer.tenant, webhook, now, now)


def claim(timer: Timer, rung: Ring, now: datetime, lease_until: datetime) -> Timer | None:
    """Return the timer as its one worker holds it, or None if the ring gives no right to it."""
    if timer.status not in WAITING or timer.generation != rung.generation or now < timer.due_at:
        return None
    return _next(timer, status=Status.DELIVERING, attempt=timer.attempt + 1, wake_at=lease_until)


def released(timer: Timer) -> Timer:
    """Return the claimed timer as it was before the claim: nothing was sent."""
    tried = timer.attempt - 1 > timer.attempts_before
    return _next(
        timer,
        status=Status.RETRYING if tried else Status.SCHEDULED,
        attempt=timer.attempt - 1,
        wake_at=timer.due_at,
    )


def record(timer: Timer, outcome: Outcome, at: datetime, retry_at: datetime | None) -> Timer:
    """Return the claimed timer after an attempt begun at `at`.

    It is delivered, or retrying from `retry_at`, or failed where there is no `retry_at`.
    """
    lateness = (at - timer.due_at).total_seconds()
    entry = Attempt(number=timer.attempt, at=at, lateness=lateness, outcome=outcome)
    attempts = (*map(_shortened, timer.attempts), entry)[-ATTEMPTS_KEPT:]
    if not outcome.succeeded and retry_at is not None:
        return _moved(timer, retry_at, status=Status.RETRYING, attempts=attempts)
    end = Status.DELIVERED if outcome.succeeded else Status.FAILED
    return _ended(timer, end, at, attempts=attempts)


def cancel(timer: Timer, now: datetime) -> Timer:
    """Return the timer cancelled; a cancelled one as it is. Raise Conflict if it is too late."""
    if timer.status is Status.CANCELLED:
        return timer
    _require(timer, WAITING, "cancelled")
    return _ended(timer, Status.CANCELLED, now)


def change(timer: Timer, webhook: Webhook, deadline: datetime | None = None) -> Timer:
    """Return the timer with another webhook, or raise Conflict.

    A new deadline starts it over, with all its attempts ahead of it.
    """
    _require(timer, WAITING, "changed")
    wanted = {name: getattr(webhook, name) for name in Webhook.__struct_fields__}
    if deadline is None:
        return _next(timer, **wanted)
    return _restarted(timer, deadline, **wanted)


def fire(timer: Timer, now: datetime) -> Timer:
    """Return a waiting timer due now, with all its attempts ahead of it, or raise Conflict."""
    _require(timer, WAITING, "fired")
    return _restarted(timer, now)


def redrive(timer: Timer, now: datetime) -> Timer:
    """Return a failed timer due now, with all its attempts ahead of it, or raise Conflict."""
    _require(timer, {Status.FAILED}, "retried")
    return _restarted(timer, now)


def unarmed(timer: Timer, now: datetime) -> Timer:
    """Return the timer as one whose alarm could not be set: the sweep is to look at it soon."""
    return _next(timer, armed=False, wake_at=min(now, timer.due_at))


def armed(timer: Timer) -> Timer:
    """Return the timer as one whose alarm is set; the sweep leaves it alone as long as before."""
    return _next(timer, armed=True, wake_at=max(timer.due_at, timer.wake_at or timer.due_at))


def promised(timer: Timer) -> Timer:
    """Return the timer as one that a second request was told of: it can't be taken back any more.

    Whoever created it and fails to set its alarm removes it only as it was created.
    """
    return _next(timer)


def postponed(timer: Timer, until: datetime) -> Timer:
    """Return the timer as one that the sweep need not look at before `until`."""
    return _next(timer, wake_at=until)


def expired(timer: Timer, now: datetime) -> bool:
    """Say whether the timer is to be treated as forgotten."""
    return timer.expires_at is not None and timer.expires_at <= now


def _uuid(version: int, content: bytes) -> str:
    number = int.from_bytes(content, "big") & ~(0xF << 76) | version << 76
    return str(UUID(int=number & ~(0x3 << 62) | 0x2 << 62))


def _next(timer: Timer, **changes: Any) -> Timer:
    return replace(timer, version=timer.version + 1, **changes)


def _shortened(attempt: Attempt) -> Attempt:
    answer = attempt.outcome.answer.encode()
    if len(answer) <= OLDER_ANSWER_KEPT:
        return attempt
    kept = answer[:OLDER_ANSWER_KEPT].decode(errors="ignore")
    return replace(attempt, outcome=replace(attempt.outcome, answer=kept))


def _moved(timer: Timer, due_at: datetime, **changes: Any) -> Timer:
    generation = timer.generation + 1
    return _next(timer, generation=generation, due_at=due_at, wake_at=due_at, armed=True, **changes)


def _restarted(timer: Timer, deadline: datetime, **changes: Any) -> Timer:
    return _moved(
        timer,
        deadline,
        status=Status.SCHEDULED,
        deadline=deadline,
        attempts_before=timer.attempt,
        expires_at=None,
        **changes,
    )


def _ended(timer: Timer, status: Status, now: datetime, **changes: Any) -> Timer:
    expires_at = (now + RETENTION).replace(microsecond=0)
    return _next(timer, status=status, wake_at=None, expires_at=expires_at, **changes)


def _require(timer: Timer, allowed: frozenset[Status] | set[Status], what: str) -> None:
    if timer.status is Status.DELIVERING:
        raise DeliveryUnderWay(f"The webhook is being sent, so the timer can't be {what} now.")
    if timer.status not in allowed:
        raise Conflict(f"A timer that is {timer.status} can't be {what}.")
