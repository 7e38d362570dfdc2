"""The types of request bodies and query parameters. msgspec validates requests with them, and
openapi.py documents them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from chalicelib.core import durations
from chalicelib.core.changes import Change, WebhookChange
from chalicelib.core.errors import InvalidRequest
from chalicelib.core.headers import HEADER_NAME_PATTERN, HEADER_VALUE_PATTERN, MAX_HEADERS
from chalicelib.core.timer import (
    MAX_DELAY,
    MAX_TIMEOUT,
    IdempotencyKey,
    RetryPolicy,
    Status,
    TimerSpec,
    Webhook,
)
from chalicelib.core.urls import MAX_URL_LENGTH
from chalicelib.http import fingerprints

IDEMPOTENCY_KEY_PATTERN = "^[ -~]{1,255}$"
"""Valid Idempotency-Keys: a regular expression for Python and JSON Schema."""

URL_PATTERN = "^[Hh][Tt][Tt][Pp][Ss]?://"
"""The beginning of a webhook's URL; core/urls.py checks the rest."""

MAX_BATCH_SIZE = 100
"""Timers in one request, and in one page of a list."""

DEFAULT_PAGE_SIZE = 50
"""Timers in one page of a list, unless the request says otherwise."""

DEADLINE_ALTERNATIVES = (("hours", "minutes", "seconds"), ("delay",), ("fire_at",))
"""The fields of each way to set the deadline; a request may use one way only."""

OBJECT_FIELDS = ("headers", "retry", "metadata")
"""The fields of a timer that are objects; the webhook's own body is not read."""

_WAYS = "`hours`, `minutes` and `seconds`, or `delay`, or `fire_at`"
_NO_DEADLINE = (
    'Set the deadline, for example with `"seconds": 60`, `"delay": "1h30m"` or'
    ' `"fire_at": "2027-01-31T09:00:00Z"`.'
)
_BEGINNING_OF_MOMENT = re.compile("[0-9]{4}-[0-9]{2}")

# Our own code checks what `extra_json_schema` adds, because its error messages are better.
_MAX_HOURS = MAX_DELAY // timedelta(hours=1)
Hours = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": _MAX_HOURS})]
Minutes = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": _MAX_HOURS * 60})]
Seconds = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": _MAX_HOURS * 3600})]
Duration = Annotated[str, Meta(extra_json_schema={"pattern": durations.DURATION_PATTERN})]
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
RetryDelay = Annotated[int, Meta(ge=1, le=86_400)]
Timeout = Annotated[int, Meta(ge=1, le=MAX_TIMEOUT)]
Text = Annotated[str, Meta(min_length=1)]
Label = Annotated[str, Meta(min_length=1, max_length=64)]
IdempotencyKeyText = Annotated[
    str,
    Meta(
        description="Makes the request safe to repeat: the same request creates one timer only.",
        examples=["order-4711"],
        extra_json_schema={"pattern": IDEMPOTENCY_KEY_PATTERN},
    ),
]
Url = Annotated[
    str,
    Meta(
        description="An http or https URL; `{id}` in it stands for the timer's id. Valid URLs are"
        " sent to the byte; characters that no URL may contain are percent-encoded.",
        examples=["https://example.com/hook/{id}"],
        extra_json_schema={"pattern": URL_PATTERN, "maxLength": MAX_URL_LENGTH},
    ),
]
Headers = Annotated[
    dict[
        Annotated[str, Meta(extra_json_schema={"pattern": HEADER_NAME_PATTERN})],
        Annotated[str, Meta(extra_json_schema={"pattern": HEADER_VALUE_PATTERN})],
    ],
    Meta(
        description="Additional headers. Timers sets `Host`, `Content-Length` and some others"
        " itself and rejects them here. Names that differ only in case are rejected too.",
        examples=[{"Authorization": "Bearer sesame"}],
        extra_json_schema={"maxProperties": MAX_HEADERS},
    ),
]

_DEFAULT_RETRY = RetryPolicy()


class NewRetryPolicy(RetryPolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many attempts a webhook gets, and how long the waits between them may be."""

    max_attempts: Annotated[
        int, Meta(ge=1, le=15, description="Attempts in total, including the first.")
    ] = _DEFAULT_RETRY.max_attempts
    initial_delay: Annotated[
        RetryDelay,
        Meta(
            description="The longest wait before the second attempt, in seconds; each later wait"
            " may be four times as long."
        ),
    ] = _DEFAULT_RETRY.initial_delay
    max_delay: Annotated[
        RetryDelay,
        Meta(description="The longest wait of all, in seconds; at least `initial_delay`."),
    ] = _DEFAULT_RETRY.max_delay


class DeadlineFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """The ways to set a deadline; a request uses one."""

    hours: Annotated[Hours | UnsetType, Meta(description="Added to minutes and seconds.")] = UNSET
    minutes: Annotated[Minutes | UnsetType, Meta(description="Added to hours and seconds.")] = UNSET
    seconds: Annotated[Seconds | UnsetType, Meta(description="Added to hours and minutes.")] = UNSET
    delay: Annotated[
        Seconds | Duration | UnsetType,
        Meta(
            description="Seconds, or a duration such as `1d2h30m45s`, `90 minutes` or ISO 8601's"
            " `PT1H30M`; at most 5 years.",
            examples=[90, "1h30m", "90 minutes", "PT1H30M"],
        ),
    ] = UNSET
    fire_at: Annotated[
        Moment | UnsetType,
        Meta(
            description="An RFC 3339 time with a zone, at most 5 years ahead; a time in the past"
            " fires now.",
            examples=["2027-01-31T09:00:00+01:00"],
        ),
    ] = UNSET

    def deadline(self, now: datetime) -> datetime | None:
        """Return the deadline, None if the request sets none; raise InvalidRequest."""
        ways = {"": self._total_seconds(), "/delay": self.delay, "/fire_at": self.fire_at}
        used = [(pointer, value) for pointer, value in ways.items() if value is not UNSET]
        if len(used) > 1:
            raise InvalidRequest(f"Set the deadline in one way only: {_WAYS}.", "")
        return _deadline(*used[0], now) if used else None

    def _total_seconds(self) -> int | UnsetType:
        fields = (self.hours, self.minutes, self.seconds)
        if all(field is UNSET for field in fields):
            return UNSET
        hours, minutes, seconds = (0 if field is UNSET else field for field in fields)
        return hours * 3600 + minutes * 60 + seconds


class TimerChange(DeadlineFields, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /timers/{id}: the fields to change. Absent fields stay as they are."""

    url: Url | UnsetType = UNSET
    method: Annotated[
        Literal["POST", "PUT", "PATCH", "DELETE", "GET"] | UnsetType,
        Meta(
            description="POST by default. A GET has no body.",
            extra_json_schema={"type": "string"},
        ),
    ] = UNSET
    headers: Headers | UnsetType = UNSET
    body: Annotated[
        msgspec.Raw | UnsetType,
        Meta(
            description="A string, sent as text; or any other JSON value, sent exactly as written;"
            " null for none. URLs, headers and body together have at most 64 KB.",
            examples=[{"any": "JSON"}, "or a text"],
        ),
    ] = UNSET
    timeout: Annotated[
        Timeout | UnsetType, Meta(description="Seconds that one attempt may take.", examples=[10])
    ] = UNSET
    retry: Annotated[NewRetryPolicy | UnsetType, Meta(examples=[{"max_attempts": 3}])] = UNSET
    on_failure: Annotated[
        Url | UnsetType | None,
        Meta(
            description="A URL to notify if the timer fails; null for none.",
            examples=["https://example.com/failed"],
        ),
    ] = UNSET
    label: Annotated[
        Label | UnsetType | None,
        Meta(description="Finds the timer in lists; null for none.", examples=["invoice-17"]),
    ] = UNSET
    metadata: Annotated[
        dict[str, str] | UnsetType,
        Meta(
            description="Your own notes, kept with the timer and not sent; at most 4 KB.",
            examples=[{"customer": "4711"}],
        ),
    ] = UNSET

    def change(self, now: datetime) -> Change:
        """Return the requested change; raise InvalidRequest."""
        return Change(webhook=self.webhook_change(), deadline=self.deadline(now))

    def webhook_change(self) -> WebhookChange:
        """Return the fields of the webhook that the request sets; raise InvalidRequest."""
        names = Webhook.__struct_fields__
        fields = {name: it for name in names if (it := getattr(self, name)) is not UNSET}
        content_type = None
        if self.body is not UNSET:
            fields["body"], content_type = _body(self.body)
        if self.retry is not UNSET:
            fields["retry"] = RetryPolicy(**asdict(self.retry))
        return WebhookChange(fields=fields, content_type=content_type)


class NewTimer(TimerChange, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /timers: a webhook, and one way to set its deadline."""

    url: Url

    def spec(self, now: datetime, key: str | None) -> TimerSpec:
        """Return the timer to create, with a checked Idempotency-Key or none.

        Raises InvalidRequest.
        """
        webhook = self.webhook_change().apply(Webhook(url=self.url))
        deadline = self.deadline(now)
        if deadline is None:
            raise InvalidRequest(_NO_DEADLINE, "")
        idempotency_key = None if key is None else self._idempotency_key(key)
        return TimerSpec(webhook=webhook, deadline=deadline, idempotency_key=idempotency_key)

    def _idempotency_key(self, key: str) -> IdempotencyKey:
        # Stored with timers: if this encoding changed, repeated requests would be rejected.
        fields = {name: getattr(self, name) for name in NewTimer.__struct_fields__}
        present = {name: it for name, it in fields.items() if it is not UNSET}
        document = msgspec.json.encode(present, order="deterministic")
        former = fingerprints.of_text(document)
        return IdempotencyKey(key, fingerprints.of_meaning(document), former)


class BatchEntry(NewTimer, kw_only=True, forbid_unknown_fields=True):
    """One timer of POST /timers/batch."""

    idempotency_key: IdempotencyKeyText | UnsetType = UNSET


RawEntry = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/BatchEntry"})
]
"""Decoded one by one, so that an invalid entry affects no other."""


class Batch(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /timers/batch."""

    timers: Annotated[list[RawEntry], Meta(max_length=MAX_BATCH_SIZE)]


class Ids(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /timers/cancel and /timers/retry."""

    ids: Annotated[
        list[str],
        Meta(max_length=MAX_BATCH_SIZE, examples=[["019c13ec-9e00-7a31-8f3b-2b1d7d0c5b7e"]]),
    ]


class Query(
    Struct,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"since": "from", "until": "to"},
):
    """Parameters of GET /timers."""

    status: Annotated[Status | UnsetType, Meta(description="Only timers with this status.")] = UNSET
    label: Annotated[Text | UnsetType, Meta(description="Only timers with exactly this label.")] = (
        UNSET
    )
    since: Annotated[
        Moment | UnsetType,
        Meta(
            description="Only timers created at this RFC 3339 time or later.",
            examples=["2026-01-31T00:00:00Z"],
        ),
    ] = UNSET
    until: Annotated[
        Moment | UnsetType,
        Meta(
            description="Only timers created before this RFC 3339 time.",
            examples=["2026-02-01T00:00:00+01:00"],
        ),
    ] = UNSET
    limit: Annotated[int, Meta(ge=1, le=MAX_BATCH_SIZE, description="Timers in one page.")] = (
        DEFAULT_PAGE_SIZE
    )
    cursor: Annotated[str | UnsetType, Meta(description="`next_cursor` of the previous page.")] = (
        UNSET
    )


# Before there are threads: see core/timer.py.
for _type in (NewTimer, TimerChange, BatchEntry, Batch, Ids, Query):
    msgspec.json.Decoder(_type)


def checked_idempotency_key(text: str, pointer: str | None = None) -> str:
    """Return an Idempotency-Key, or raise InvalidRequest."""
    if not re.fullmatch(IDEMPOTENCY_KEY_PATTERN, text):
        detail = "An Idempotency-Key has 1 to 255 printable ASCII characters."
        raise InvalidRequest(detail, pointer)
    return text


def _deadline(pointer: str, value: int | str, now: datetime) -> datetime:
    try:
        if pointer == "/fire_at":
            deadline = max(durations.parse_moment(str(value)), now)
        elif isinstance(value, str):
            deadline = now + durations.parse_duration(value)
        else:
            deadline = now + timedelta(seconds=value)
    except ValueError as error:
        raise InvalidRequest(_other_way(pointer, str(value)) or str(error), pointer) from None
    except OverflowError:
        deadline = datetime.max.replace(tzinfo=UTC)
    if deadline - now > MAX_DELAY:
        raise InvalidRequest("The deadline is more than 5 years ahead.", pointer)
    return deadline


def _other_way(pointer: str, text: str) -> str | None:
    """Return what to do with a time in `delay`, or a duration in `fire_at`; None if it is none."""
    if pointer == "/delay" and _BEGINNING_OF_MOMENT.match(text):
        return "`delay` must be a duration. For a date and time, use `fire_at`."
    if pointer == "/fire_at" and durations.is_duration(text):
        return "`fire_at` must be a date and time. For a duration, use `delay`."
    return None


def _body(raw: msgspec.Raw) -> tuple[str, str | None]:
    """Return the webhook's body, and the media type to send unless the headers have one."""
    if bytes(raw) == b"null":
        return "", None
    try:
        text = bytes(raw).decode()
        if text.startswith('"'):
            return msgspec.json.decode(text, type=str), "text/plain; charset=utf-8"
    except (UnicodeDecodeError, msgspec.DecodeError):
        raise InvalidRequest("The webhook's body is not valid UTF-8.", "/body") from None
    return text, "application/json"  # as written: this keeps numbers and the order of fields
