"""What requests may ask for, in their bodies and query parameters; checked. Knows no HTTP."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict, replace

from chalicelib.core import durations
from chalicelib.core.errors import InvalidRequest
from chalicelib.core.headers import (
    HEADER_NAME_PATTERN,
    HEADER_VALUE_PATTERN,
    MAX_HEADERS,
    check_headers,
)
from chalicelib.core.pagination import Cursor, TimerFilter
from chalicelib.core.targets import MAX_URL_LENGTH, Targets
from chalicelib.core.timer import (
    MAX_DELAY,
    MAX_TIMEOUT,
    IdempotencyKey,
    RetryPolicy,
    Status,
    TimerSpec,
    Webhook,
)

MAX_WEBHOOK_BYTES = 64 * 1024
"""Bytes of a webhook: URLs, headers and body together."""

MAX_METADATA_BYTES = 4 * 1024
"""Bytes of the names and values of a timer's metadata together."""

IDEMPOTENCY_KEY_PATTERN = "^[ -~]{1,255}$"
"""An Idempotency-Key, as a regular expression of Python and of JSON Schema."""

URL_PATTERN = "^[Hh][Tt][Tt][Pp][Ss]?://"
"""How a webhook's URL begins; guard.py checks the rest."""

MAX_BATCH_SIZE = 100
"""Timers that one request may be about."""

DEFAULT_PAGE_SIZE = 50
"""Timers of a list's page, if nobody says otherwise."""

WAYS_TO_SAY_WHEN = (("hours", "minutes", "seconds"), ("delay",), ("fire_at",))
"""The ways to say when, of which a request uses one: the members of each."""

T = TypeVar("T")

# What `extra_json_schema` adds is checked further below, or in when.py and guard.py, which have
# better words for it.
_HOURS = MAX_DELAY // timedelta(hours=1)
Hours = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": _HOURS})]
Minutes = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": _HOURS * 60})]
Seconds = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": _HOURS * 3600})]
Duration = Annotated[str, Meta(extra_json_schema={"pattern": durations.DURATION_PATTERN})]
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
RetryDelay = Annotated[int, Meta(ge=1, le=86_400)]
Timeout = Annotated[int, Meta(ge=1, le=MAX_TIMEOUT)]
Text = Annotated[str, Meta(min_length=1)]
Label = Annotated[str, Meta(min_length=1, max_length=64)]
IdempotencyKeyText = Annotated[
    str,
    Meta(
        description="Makes that the same request, sent again, makes one timer only.",
        examples=["order-4711"],
        extra_json_schema={"pattern": IDEMPOTENCY_KEY_PATTERN},
    ),
]
Url = Annotated[
    str,
    Meta(
        description="http or https; `{id}` in it stands for the timer's id.",
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
        description="Further headers. `Host`, `Content-Length` and others that the service sets by"
        " itself are refused, as are names that differ in upper and lower case only.",
        examples=[{"Authorization": "Bearer sesame"}],
        extra_json_schema={"maxProperties": MAX_HEADERS},
    ),
]

_RETRY = RetryPolicy()


class NewRetryPolicy(RetryPolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a webhook is to be tried, and how long it waits in between."""

    max_attempts: Annotated[
        int, Meta(ge=1, le=15, description="Attempts in all, the first one included.")
    ] = _RETRY.max_attempts
    initial_delay: Annotated[
        RetryDelay,
        Meta(
            description="Seconds that the second attempt waits at most; each further one up to"
            " four times as long."
        ),
    ] = _RETRY.initial_delay
    max_delay: Annotated[
        RetryDelay,
        Meta(description="Seconds that no wait exceeds; not less than `initial_delay`."),
    ] = _RETRY.max_delay


class When(Struct, kw_only=True, forbid_unknown_fields=True):
    """The ways to say when, of which a request uses one."""

    hours: Annotated[Hours | UnsetType, Meta(description="With minutes and seconds.")] = UNSET
    minutes: Annotated[Minutes | UnsetType, Meta(description="With hours and seconds.")] = UNSET
    seconds: Annotated[Seconds | UnsetType, Meta(description="With hours and minutes.")] = UNSET
    delay: Annotated[
        Seconds | Duration | UnsetType,
        Meta(
            description="Seconds, or a duration: `1d2h30m45s`, or as in ISO 8601 `PT1H30M`;"
            " 5 years at most.",
            examples=[90, "1h30m", "PT1H30M"],
        ),
    ] = UNSET
    fire_at: Annotated[
        Moment | UnsetType,
        Meta(
            description="A moment, as RFC 3339 writes it, with its zone, 5 years ahead at most;"
            " one in the past is now.",
            examples=["2027-01-31T09:00:00+01:00"],
        ),
    ] = UNSET

    def deadline(self, now: datetime) -> datetime | None:
        """Return the deadline, None if none is said; raise InvalidRequest."""
        ways = {"": self._parts(), "/delay": self.delay, "/fire_at": self.fire_at}
        said = [(pointer, way) for pointer, way in ways.items() if way is not UNSET]
        if len(said) > 1:
            raise InvalidRequest(f"Say when in one way only: {_WAYS}.", "")
        return _deadline(*said[0], now) if said else None

    def _parts(self) -> int | UnsetType:
        parts = (self.hours, self.minutes, self.seconds)
        if all(part is UNSET for part in parts):
            return UNSET
        hours, minutes, seconds = (0 if part is UNSET else part for part in parts)
        return hours * 3600 + minutes * 60 + seconds


class TimerChange(When, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /timers/{id}: what is to be different. What is not there stays as it is."""

    url: Url | UnsetType = UNSET
    method: Annotated[
        Literal["POST", "PUT", "PATCH", "DELETE", "GET"] | UnsetType,
        Meta(
            description="POST if left out; a GET has no body.",
            extra_json_schema={"type": "string"},
        ),
    ] = UNSET
    headers: Headers | UnsetType = UNSET
    body: Annotated[
        msgspec.Raw | UnsetType,
        Meta(
            description="A text, which is sent as text, or any other JSON value, which is sent as"
            " it is written; null for none. Together with URLs and headers 64 KB at most.",
            examples=[{"any": "JSON"}, "or a text"],
        ),
    ] = UNSET
    timeout: Annotated[
        Timeout | UnsetType, Meta(description="Seconds that one attempt may take.")
    ] = UNSET
    retry: NewRetryPolicy | UnsetType = UNSET
    on_failure: Annotated[
        Url | UnsetType | None,
        Meta(
            description="A URL that is told if the timer ends as failed; null for none.",
            examples=["https://example.com/failed"],
        ),
    ] = UNSET
    label: Annotated[
        Label | UnsetType | None,
        Meta(description="What timers can be found by; null for none.", examples=["invoice-17"]),
    ] = UNSET
    metadata: Annotated[
        dict[str, str] | UnsetType,
        Meta(
            description="What is to be kept with the timer, 4 KB at most; it is not sent.",
            examples=[{"customer": "4711"}],
        ),
    ] = UNSET

    def webhook(self, before: Webhook, targets: Targets) -> Webhook:
        """Return the webhook as this changes it, checked; raise InvalidRequest."""
        names = Webhook.__struct_fields__
        given = {name: it for name in names if (it := getattr(self, name)) is not UNSET}
        for name in ("url", "on_failure"):
            if given.get(name) is not None:
                targets.check_url(given[name].replace("{id}", _ANY_ID), f"/{name}")
        kind = _content_type(before.headers)
        if self.body is not UNSET:
            given["body"], kind = _body(self.body)
        if self.retry is not UNSET:
            given["retry"] = RetryPolicy(**asdict(self.retry))
        after = Webhook(**{name: getattr(before, name) for name in names} | given)
        if after.body and kind and _content_type(after.headers) is None:
            after = replace(after, headers={**after.headers, "Content-Type": kind})
        _check(after)
        return after


class NewTimer(TimerChange, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /timers: a webhook, and one way to say when it is to be sent."""

    url: Url

    def order(self, targets: Targets, now: datetime, key: str | None) -> TimerSpec:
        """Return what is asked for, under a checked Idempotency-Key or none.

        Raises InvalidRequest.
        """
        webhook = self.webhook(Webhook(url=self.url), targets)
        deadline = self.deadline(now)
        if deadline is None:
            raise InvalidRequest(f"Say when: give {_WAYS}.", "")
        idempotency_key = None if key is None else IdempotencyKey(key, self._fingerprint())
        return TimerSpec(webhook=webhook, deadline=deadline, idempotency_key=idempotency_key)

    def _fingerprint(self) -> str:
        members = {name: getattr(self, name) for name in NewTimer.__struct_fields__}
        said = {name: it for name, it in members.items() if it is not UNSET}
        return sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


class BatchEntry(NewTimer, kw_only=True, forbid_unknown_fields=True):
    """One of the timers of POST /timers/batch."""

    idempotency_key: IdempotencyKeyText | UnsetType = UNSET


RawEntry = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/BatchEntry"})
]
"""Is decoded by itself, so that what is wrong with one keeps none of the others."""


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

    status: Annotated[Status | UnsetType, Meta(description="Those in this state.")] = UNSET
    label: Annotated[Text | UnsetType, Meta(description="Those with exactly this label.")] = UNSET
    since: Annotated[
        Moment | UnsetType,
        Meta(
            description="Those created at this moment or later, as RFC 3339 writes it.",
            examples=["2026-01-31T00:00:00Z"],
        ),
    ] = UNSET
    until: Annotated[
        Moment | UnsetType,
        Meta(
            description="Those created before this moment.",
            examples=["2026-02-01T00:00:00+01:00"],
        ),
    ] = UNSET
    limit: Annotated[int, Meta(ge=1, le=MAX_BATCH_SIZE, description="Timers of a page.")] = (
        DEFAULT_PAGE_SIZE
    )
    cursor: Annotated[str | UnsetType, Meta(description="`next_cursor` of the page before.")] = (
        UNSET
    )


# Before there are threads: see timers.py.
for _kind in (NewTimer, TimerChange, BatchEntry, Batch, Ids, Query):
    msgspec.json.Decoder(_kind)


class ListQuery(NamedTuple):
    """A page of a list, as it was asked for."""

    listing: TimerFilter
    before: Cursor | None
    limit: int


def checked_key(text: str, pointer: str | None = None) -> str:
    """Return an Idempotency-Key, or raise InvalidRequest."""
    if not re.fullmatch(IDEMPOTENCY_KEY_PATTERN, text):
        detail = "An idempotency key is 1 to 255 letters, digits or signs of ASCII."
        raise InvalidRequest(detail, pointer)
    return text


def timer_specs(content: bytes, targets: Targets, now: datetime) -> list[TimerSpec | Exception]:
    """Return what the body of POST /timers/batch asks for; for an impossible entry its error."""
    entries = decode(content, Batch).timers
    return [_entry(entry, f"/timers/{index}", targets, now) for index, entry in enumerate(entries)]


def list_query(parameters: Mapping[str, Sequence[str]]) -> ListQuery:
    """Return the page that query parameters ask for; raise InvalidRequest."""
    for name, values in parameters.items():
        if len(values) > 1:
            raise InvalidRequest(f"The parameter `{name}` is given more than once.")
    try:
        given = {name: values[0] for name, values in parameters.items()}
        query = msgspec.convert(given, Query, strict=False)
    except msgspec.ValidationError as error:
        what, steps = _fault(str(error))
        if field := _FIELD.fullmatch(what):
            raise InvalidRequest(f"There is no parameter `{field[1]}`.") from None
        raise InvalidRequest(f"{what} as the parameter `{steps[0]}`.") from None
    listing = TimerFilter(
        status=None if query.status is UNSET else query.status,
        label=None if query.label is UNSET else query.label,
        since=_bound("from", query.since),
        until=_bound("to", query.until),
    )
    before = None if query.cursor is UNSET else _position(query.cursor)
    return ListQuery(listing, before, query.limit)


def encode_cursor(at: Cursor | None) -> str | None:
    """Return the position as it is handed out; `wanted` reads it."""
    if at is None:
        return None
    text = f"{at.created_at.astimezone(UTC).isoformat()} {at.id}"
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(content: bytes | msgspec.Raw, body_type: type[T]) -> T:
    """Return what the JSON says; raise InvalidRequest with the JSON pointer to what is wrong."""
    try:
        return msgspec.json.decode(content, type=body_type)
    except msgspec.ValidationError as error:
        what, steps = _fault(str(error))
        detail = f"{what} in {_pointer(steps) or 'the body'}."
        if field := _FIELD.fullmatch(what):
            steps.append(field[1])
        raise InvalidRequest(detail, _pointer(steps)) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.", "") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", "") from None


_WAYS = "hours, minutes and seconds, or delay, or fire_at"

_ANY_ID = "00000000-0000-7000-8000-000000000000"

_FIELD = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)
_ID = re.compile("[0-9A-Za-z-]{1,64}")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


def _deadline(pointer: str, said: int | str, now: datetime) -> datetime:
    try:
        if pointer == "/fire_at":
            found = max(durations.parse_moment(str(said)), now)
        elif isinstance(said, str):
            found = now + durations.parse_duration(said)
        else:
            found = now + timedelta(seconds=said)
    except ValueError as error:
        raise InvalidRequest(str(error), pointer) from None
    except OverflowError:
        found = datetime.max.replace(tzinfo=UTC)
    if found - now > MAX_DELAY:
        raise InvalidRequest("The deadline is more than 5 years ahead.", pointer)
    return found


def _body(raw: msgspec.Raw) -> tuple[str, str | None]:
    """Return the webhook's body, and its media type where the headers say none."""
    if bytes(raw) == b"null":
        return "", None
    try:
        text = bytes(raw).decode()
        if text.startswith('"'):
            return msgspec.json.decode(text, type=str), "text/plain; charset=utf-8"
    except (UnicodeDecodeError, msgspec.DecodeError):
        raise InvalidRequest("The webhook's body is not valid UTF-8.", "/body") from None
    return text, "application/json"  # as it was written: numbers and the order of members stay


def _content_type(headers: Mapping[str, str]) -> str | None:
    return next((it for name, it in headers.items() if name.lower() == "content-type"), None)


def _check(webhook: Webhook) -> None:
    check_headers(webhook.headers, "/headers")
    if webhook.body and webhook.method == "GET":
        raise InvalidRequest("A GET has no body.", "/body")
    texts = [webhook.url, webhook.on_failure or "", webhook.body]
    size = _size(*texts, *webhook.headers, *webhook.headers.values())
    if size > MAX_WEBHOOK_BYTES:
        detail = f"URLs, headers and body are {size:,} bytes; {MAX_WEBHOOK_BYTES:,} are possible."
        raise InvalidRequest(detail, "/body")
    size = _size(*webhook.metadata, *webhook.metadata.values())
    if size > MAX_METADATA_BYTES:
        detail = f"The metadata is {size:,} bytes; {MAX_METADATA_BYTES:,} are possible."
        raise InvalidRequest(detail, "/metadata")
    if webhook.retry.initial_delay > webhook.retry.max_delay:
        detail = f"It is shorter than the first delay, {webhook.retry.initial_delay} s."
        raise InvalidRequest(detail, "/retry/max_delay")


def _size(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)


def _entry(
    content: msgspec.Raw, at: str, targets: Targets, now: datetime
) -> TimerSpec | InvalidRequest:
    try:
        entry = decode(content, BatchEntry)
        key = entry.idempotency_key
        return entry.order(
            targets, now, None if key is UNSET else checked_key(key, "/idempotency_key")
        )
    except InvalidRequest as error:
        return InvalidRequest(str(error), at + (error.pointer or ""))


def _bound(name: str, text: str | UnsetType) -> datetime | None:
    if text is UNSET:
        return None
    try:
        return durations.parse_moment(text)
    except ValueError as error:
        hint = "; in a URL, + is written %2B" if " " in text[11:] else ""
        sentence = str(error).removesuffix(".")
        raise InvalidRequest(f"In `{name}`: {sentence}{hint}.") from None


def _position(text: str) -> Cursor:
    try:
        moment, _, id = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(" ")
        if _ID.fullmatch(id):
            return Cursor(durations.parse_moment(moment), id)
    except ValueError:
        pass
    raise InvalidRequest("The parameter `cursor` is not what a list has given.")


def _fault(message: str) -> tuple[str, list[str]]:
    """Return what is wrong, and the steps that lead there.

    msgspec: "Expected `int`, got `str` - at `$.retry.max_attempts`"; it names no key of a map.
    """
    what, _, path = message.partition(" - at `$")
    steps = ["".join(step) for step in _STEP.findall(path.removesuffix("`")) if step[1] != "..."]
    return what, steps


def _pointer(steps: Sequence[str]) -> str:
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
