"""A timer, its states and its transitions. Pure: no clock, no I/O.

    scheduled ──► delivering ──► delivered
        │  ▲          │  │  ▲
        │  │          │  ▼  │
        │  └─ failed ◄┘ retrying          failed ──► scheduled is a retry by the owner
        ▼                  │
    cancelled ◄────────────┘

Two numbers decide every race:

* `generation` grows with every new moment: a deadline, a retry, a reclaimed lease. A `Wakeup` of
  an older generation does nothing.
* `version` grows with every write (optimistic locking). A store replaces a timer only if it holds
  the version before, so a worker that stalled past its lease changes nothing.
"""

import re
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from math import ceil
from typing import Any, Self

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from chalicelib.core import urls
from chalicelib.core.errors import Conflict, DeliveryUnderWay

MAX_TIMEOUT = 30
"""The longest `timeout` of one attempt, in seconds."""

MAX_DELAY = timedelta(days=5 * 365 + 1)
"""How far ahead a deadline may be: 5 years."""

RETENTION = timedelta(days=30)
"""How long a finished timer can be read."""

DEFAULT_TENANT = "default"
"""The tenant of requests without an API key."""

MAX_ATTEMPTS_KEPT = 20
"""Attempts in a timer's log; the oldest are dropped first."""

MAX_OLDER_ANSWER_KEPT = 200
"""Bytes of `answer` kept for each attempt except the last."""


_UUID = re.compile("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class Status(StrEnum):
    """The state of a timer."""

    SCHEDULED = "scheduled"
    """Waits for its deadline."""
    DELIVERING = "delivering"
    """A worker holds the claim and is sending the webhook."""
    RETRYING = "retrying"
    """An attempt failed; the next one is scheduled."""
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = frozenset({Status.SCHEDULED, Status.RETRYING})
FINAL = frozenset({Status.DELIVERED, Status.FAILED, Status.CANCELLED})


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of one attempt: an HTTP status, or an error class if there was no response."""

    status: int | None = None
    """HTTP status of the response."""
    error: str | None = None
    """dns, connect, tls, timeout, refused target, too large, or worker lost."""
    detail: str = ""
    """The underlying error message."""
    answer: str = ""
    """The beginning of the response body."""
    duration: float = 0.0
    """Seconds from the start of the exchange to its end."""
    retry_after: float | None = None
    """Seconds that the receiver asked us to wait."""
    location: str | None = None
    """Where a redirect pointed. It is not followed."""

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """Why the attempt failed, for people: `HTTP 404`, `connect: Connection refused`."""
        if self.error is None:
            return f"HTTP {self.status}"
        return f"{self.error}: {self.detail}" if self.detail else self.error


class Attempt(Struct, frozen=True, kw_only=True):
    """One entry of a timer's attempt log."""

    number: int
    at: datetime
    """When the exchange began."""
    lateness: float
    """Seconds from the moment the attempt was due to `at`."""
    outcome: Outcome


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How many attempts a timer gets, and the bounds of the waits between them, in seconds."""

    max_attempts: int = 8
    initial_delay: int = 10
    """The longest wait before the second attempt; each later one may be four times as long."""
    max_delay: int = 12 * 3600
    """The longest wait of all."""


class Webhook(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A timer's request, retry policy and notes: everything except its deadline."""

    url: str
    """As it is sent, except that `{id}` stands for the timer's id."""
    method: str = "POST"
    headers: dict[str, str] = {}
    """The owner's headers, in addition to those of every webhook."""
    body: str = ""
    timeout: int = MAX_TIMEOUT
    """Seconds that one attempt may take, from name resolution to the last byte."""
    retry: RetryPolicy = RetryPolicy()
    on_failure: str | None = None
    """A URL to notify, by a timer of its own, if this timer fails; `{id}` as in `url`."""
    label: str | None = None
    """Finds the timer in lists."""
    metadata: dict[str, str] = {}
    """The owner's notes; not sent."""


class IdempotencyKey(Struct, frozen=True):
    """An Idempotency-Key, and the fingerprint of the request it came with."""

    key: str
    fingerprint: str
    former: str = ""
    """The fingerprint of the same request as earlier versions stored it."""

    def is_of(self, timer: "Timer") -> bool:
        """Return whether the same request created this timer."""
        return timer.fingerprint in (self.fingerprint, self.former)


class TimerSpec(Struct, frozen=True, kw_only=True):
    """A timer to create."""

    webhook: Webhook
    deadline: datetime
    idempotency_key: IdempotencyKey | None = None


class Wakeup(Struct, frozen=True, omit_defaults=True, order=True):
    """Tells a worker that an attempt is due: which timer, which generation, when."""

    id: str
    tenant: str
    generation: int
    due_at: datetime
    hops: int = 0
    """How often it has been requeued."""
    host: str = ""
    """The receiver's host, so that queues can be fair between hosts."""

    @property
    def log_fields(self) -> dict[str, object]:
        """The fields of a log line about a wake-up that was dropped or failed."""
        return {"timer": self.id, "tenant": self.tenant, "hops": self.hops}


class Timer(Webhook, frozen=True, kw_only=True, omit_defaults=True):
    """A webhook to send once, at a deadline. All times are aware UTC datetimes.

    Each transition returns a new timer. An owner's transition raises Conflict if the status does
    not allow it.
    """

    id: str
    tenant: str
    created_at: datetime
    deadline: datetime
    """When the owner wants the webhook to be sent."""
    due_at: datetime
    """When the next attempt is due: the deadline, or the time of a retry."""
    wake_at: datetime | None
    """When the sweep must check it: the next attempt, or the end of the lease while delivering;
    None once final."""
    status: Status = Status.SCHEDULED
    generation: int = 1
    version: int = 1
    attempt: int = 0
    """How often the timer has been claimed."""
    attempts_before: int = 0
    """`attempt` when the owner last set a deadline; the retry policy counts from there."""
    attempts: tuple[Attempt, ...] = ()
    """The newest `MAX_ATTEMPTS_KEPT` entries of the attempt log, oldest first."""
    armed: bool = True
    """False if the timer could not be scheduled; the sweep then schedules it."""
    expires_at: datetime | None = None
    """When a finished timer is deleted, in whole seconds."""
    fingerprint: str | None = None
    """The fingerprint of the Idempotency-Key it was created with."""

    @property
    def target(self) -> str:
        """The URL to send to, with `{id}` filled in."""
        return urls.with_id(self.url, self.id)

    @property
    def failure(self) -> str | None:
        """Why the timer failed; None unless it did."""
        return self.attempts[-1].outcome.reason if self.status is Status.FAILED else None

    def time_left(self, now: datetime) -> int:
        """Return whole seconds until the deadline, rounded up; 0 unless it is scheduled."""
        if self.status is not Status.SCHEDULED:
            return 0
        return max(0, ceil((self.deadline - now).total_seconds()))

    def wakeup(self) -> Wakeup:
        """Return the wake-up for the next attempt."""
        return Wakeup(self.id, self.tenant, self.generation, self.due_at, host=host_of(self.url))

    def awaits(self, wakeup: Wakeup) -> bool:
        """Return whether the timer still waits for this wake-up."""
        # The generation decides; other fields of a wake-up may differ between versions.
        return self.status in WAITING and self.generation == wakeup.generation

    def is_expired(self, now: datetime) -> bool:
        """Return whether the retention is over: the timer no longer exists for its owner."""
        return self.expires_at is not None and self.expires_at <= now

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Self | None:
        """Return the timer as claimed by one worker, or None if the wake-up does not allow it."""
        if not self.awaits(wakeup) or now < self.due_at:
            return None
        return self._next(status=Status.DELIVERING, attempt=self.attempt + 1, wake_at=lease_until)

    def release(self) -> Self:
        """Return the claimed timer as it was before the claim: nothing was sent."""
        tried = self.attempt - 1 > self.attempts_before
        return self._next(
            status=Status.RETRYING if tried else Status.SCHEDULED,
            attempt=self.attempt - 1,
            wake_at=self.due_at,
        )

    def record(self, outcome: Outcome, at: datetime, retry_at: datetime | None) -> Self:
        """Return the claimed timer after an attempt that began at `at`.

        It is delivered, or retrying from `retry_at`, or failed if there is no `retry_at`.
        """
        lateness = (at - self.due_at).total_seconds()
        entry = Attempt(number=self.attempt, at=at, lateness=lateness, outcome=outcome)
        attempts = (*map(_shortened, self.attempts), entry)[-MAX_ATTEMPTS_KEPT:]
        if not outcome.succeeded and retry_at is not None:
            return self._next_generation(retry_at, status=Status.RETRYING, attempts=attempts)
        status = Status.DELIVERED if outcome.succeeded else Status.FAILED
        return self._finish(status, at, attempts=attempts)

    def cancel(self, now: datetime) -> Self:
        """Return the timer cancelled; a cancelled timer stays as it is."""
        if self.status is Status.CANCELLED:
            return self
        self._require(WAITING, "cancelled")
        return self._finish(Status.CANCELLED, now)

    def change(self, webhook: Webhook, deadline: datetime | None = None) -> Self:
        """Return the waiting timer with another webhook.

        A new deadline restarts it, with all attempts ahead.
        """
        self._require(WAITING, "changed")
        fields = webhook_fields(webhook)
        return self._next(**fields) if deadline is None else self._restart(deadline, **fields)

    def fire_now(self, now: datetime) -> Self:
        """Return the waiting timer due now, with all attempts ahead."""
        self._require(WAITING, "fired")
        return self._restart(now)

    def retry_now(self, now: datetime) -> Self:
        """Return the failed timer due now, with all attempts ahead."""
        if self.status in WAITING:
            raise Conflict(
                f"Only a failed timer can be retried. This one is {self.status}: fire it instead."
            )
        self._require({Status.FAILED}, "retried")
        return self._restart(now)

    def mark_unarmed(self, now: datetime) -> Self:
        """Return the timer as one that could not be scheduled: the sweep must check it soon."""
        return self._next(armed=False, wake_at=min(now, self.due_at))

    def mark_armed(self) -> Self:
        """Return the timer as scheduled; the sweep's next check stays where it was."""
        return self._next(armed=True, wake_at=max(self.due_at, self.wake_at or self.due_at))

    def confirm(self) -> Self:
        """Return the timer with a new version, so the request that created it can't roll it back.

        A second request with the same Idempotency-Key does this before it returns the timer.
        """
        return self._next()

    def with_next_check(self, at: datetime) -> Self:
        """Return the timer as one that the sweep need not check before `at`."""
        return self._next(wake_at=at)

    def failure_notice(self, body: str, now: datetime) -> "Timer":
        """Return the timer that sends this JSON to `on_failure` of a failed timer.

        Its id depends on the failure alone, so a repeated call creates no second notice.
        """
        entropy = sha256(f"{self.id}.{self.generation}".encode()).digest()[:10]
        url = urls.with_id(self.on_failure or "", self.id)
        webhook = Webhook(url=url, headers={"Content-Type": "application/json"}, body=body)
        return new_timer(timer_id(self.created_at, entropy), self.tenant, webhook, now, now)

    def _next(self, **changes: Any) -> Self:
        return replace(self, version=self.version + 1, **changes)

    def _next_generation(self, due_at: datetime, **changes: Any) -> Self:
        generation = self.generation + 1
        return self._next(
            generation=generation, due_at=due_at, wake_at=due_at, armed=True, **changes
        )

    def _restart(self, deadline: datetime, **changes: Any) -> Self:
        return self._next_generation(
            deadline,
            status=Status.SCHEDULED,
            deadline=deadline,
            attempts_before=self.attempt,
            expires_at=None,
            **changes,
        )

    def _finish(self, status: Status, now: datetime, **changes: Any) -> Self:
        expires_at = (now + RETENTION).replace(microsecond=0)
        return self._next(status=status, wake_at=None, expires_at=expires_at, **changes)

    def _require(self, allowed: frozenset[Status] | set[Status], participle: str) -> None:
        if self.status is Status.DELIVERING:
            raise DeliveryUnderWay(
                f"The webhook is being sent, so the timer can't be {participle} now."
            )
        if self.status not in allowed:
            raise Conflict(f"A timer that is {self.status} can't be {participle}.")


# msgspec inspects a type when it first decodes one, and crashes the process if two threads do so at
# once. Decoders are therefore made at import, before there are threads.
for _type in (Timer, Wakeup):
    msgspec.json.Decoder(_type)


def timer_id(at: datetime, entropy: bytes) -> str:
    """Return a UUIDv7 (RFC 9562) of a time and 10 random bytes: unguessable, sorted by age."""
    milliseconds = int(at.timestamp() * 1000)
    return _uuid(7, milliseconds.to_bytes(6, "big") + entropy)


def keyed_id(tenant: str, key: str) -> str:
    """Return the id of the one timer that a tenant can create with an Idempotency-Key: a UUIDv8."""
    return _uuid(8, sha256(f"{tenant} {key}".encode()).digest()[:16])


def canonical_id(text: str) -> str:
    """Return a UUID in lower case, as ids are stored: its case means nothing (RFC 9562).

    No timer has another id, so another text stays as it is.
    """
    return text.lower() if _UUID.fullmatch(text) else text


@lru_cache(1024)  # called at each write of a timer
def host_of(url: str) -> str:
    """Return the host of a URL in one spelling, with its port unless that is 80 or 443."""
    try:
        parts = urls.parse(urls.with_any_id(url))
    except ValueError:  # no timer can have such a URL, but a wake-up must not fail
        return ""
    return parts.host if parts.port in urls.DEFAULT_PORTS.values() else f"{parts.host}:{parts.port}"


def new_timer(
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


def webhook_fields(webhook: Webhook) -> dict[str, Any]:
    """Return a webhook's fields by name; of a timer, only the fields that Webhook defines."""
    return {name: getattr(webhook, name) for name in Webhook.__struct_fields__}


def _uuid(version: int, content: bytes) -> str:
    number = int.from_bytes(content, "big") & ~(0xF << 76) | version << 76
    digits = f"{number & ~(0x3 << 62) | 0x2 << 62:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _shortened(attempt: Attempt) -> Attempt:
    answer = attempt.outcome.answer.encode()
    if len(answer) <= MAX_OLDER_ANSWER_KEPT:
        return attempt
    kept = answer[:MAX_OLDER_ANSWER_KEPT].decode(errors="ignore")
    return replace(attempt, outcome=replace(attempt.outcome, answer=kept))
