"""From a Chalice request to values; raises InvalidRequest with a JSON pointer to the fault."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from chalice.app import Request
from msgspec import UNSET, UnsetType

from chalicelib.core import durations
from chalicelib.core.api_keys import Role
from chalicelib.core.changes import Change
from chalicelib.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    Unauthenticated,
    UnsupportedMediaType,
)
from chalicelib.core.pagination import Cursor, ListQuery, TimerFilter
from chalicelib.core.timer import TimerSpec
from chalicelib.http import mistakes, raw_json
from chalicelib.http.bodies import (
    OBJECT_FIELDS,
    Batch,
    BatchEntry,
    Ids,
    NewTimer,
    Query,
    TimerChange,
    checked_idempotency_key,
)

MAX_BODY_BYTES = 256 * 1024
"""Bytes of one request's body."""

MAX_BATCH_BYTES = 1024 * 1024
"""Bytes of a batch's body. Its response, escaped once more by Lambda, must stay below 6 MB."""

DECLARE_JSON = "Declare the body as JSON, with the header `Content-Type: application/json`."

ONE_KEY = "Send one Idempotency-Key only."
"""The error for a repeated header. Two keys would be two timers."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Some editors put it before a text; RFC 8259 allows us to ignore it."""

T = TypeVar("T")

_ID = re.compile("[0-9A-Za-z-]{1,64}")


def tenant(request: Request, role: Role, anonymous: str | None) -> str:
    """Return the tenant of the request's API key, which the authorizer has checked.

    `role` is the role that the route needs; `anonymous` is the tenant of requests without a key,
    or None if they are rejected. Raises Unauthenticated or Forbidden.
    """
    identity = request.context.get("authorizer") or {}
    if "tenant" not in identity:
        # Never pass by default: an emulator, or an API set up by hand, may not authorize.
        if anonymous is None:
            raise Unauthenticated("Send an API key: `Authorization: Bearer tmr_…`.")
        return anonymous
    if role is Role.FULL and identity["role"] != Role.FULL:
        raise Forbidden("This API key is read-only.")
    return str(identity["tenant"])


def timer_spec(request: Request, now: datetime) -> TimerSpec:
    """Return the timer that POST /timers creates."""
    body = decode(_json(request), NewTimer)
    return body.spec(now, _idempotency_key(request))


def timer_specs(request: Request, now: datetime) -> list[TimerSpec | Exception]:
    """Return the timers that POST /timers/batch creates, or InvalidRequest for an invalid one."""
    if "idempotency-key" in request.headers:
        raise InvalidRequest("In a batch, each timer has its own `idempotency_key`.")
    entries = decode(_json(request, MAX_BATCH_BYTES), Batch).timers
    return [_entry(entry, now) for entry in entries]


def timer_change(request: Request, now: datetime) -> Change:
    """Return the change that PATCH /timers/{id} makes."""
    return decode(_json(request), TimerChange).change(now)


def ids(request: Request) -> list[str]:
    """Return the ids in the body of a bulk request."""
    return decode(_json(request), Ids).ids


def list_query(request: Request) -> ListQuery:
    """Return the page that GET /timers asks for."""
    query = request.query_params
    return parse_query({name: query.getlist(name) for name in query} if query else {})


def parse_query(parameters: Mapping[str, Sequence[str]]) -> ListQuery:
    """Return the page that query parameters ask for."""
    for name, values in parameters.items():
        if len(values) > 1:
            raise InvalidRequest(f"The parameter `{name}` is given more than once.")
    single = {name: values[0] for name, values in parameters.items()}
    try:
        query = msgspec.convert(single, Query, strict=False)
    except msgspec.ValidationError as error:
        mistake = mistakes.found_in(error)
        raise mistakes.explained(mistake, msgspec.json.encode(single), Query) from None
    filter = TimerFilter(
        status=None if query.status is UNSET else query.status,
        label=None if query.label is UNSET else query.label,
        since=_time("from", query.since),
        until=_time("to", query.until),
    )
    after = None if query.cursor is UNSET else _decode_cursor(query.cursor)
    return ListQuery(filter, after, query.limit)


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def encode_cursor(cursor: Cursor | None) -> str | None:
    """Return a cursor as the text that clients get; `parse_query` reads it."""
    if cursor is None:
        return None
    text = f"{cursor.created_at.astimezone(UTC).isoformat()} {cursor.id}"
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(content: bytes, body_type: type[T]) -> T:
    """Return JSON as a value of this type; raise InvalidRequest."""
    try:
        return _decode(content, body_type)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise mistakes.malformed(error, content, body_type) from None


def _decode(content: bytes, body_type: type[T]) -> T:
    try:
        value = msgspec.json.decode(content, type=body_type)
    except msgspec.ValidationError as error:
        return _decode_decimals(error, content, body_type)
    _check_repeats(content)
    return value


def _decode_decimals(error: msgspec.ValidationError, content: bytes, body_type: type[T]) -> T:
    """Return the value if the error is about 5.0, which msgspec does not take for 5."""
    mistake = mistakes.found_in(error)
    whole = raw_json.with_whole_number(content, mistake.path) if mistake.is_decimal else None
    if whole is None:
        raise mistakes.explained(mistake, content, body_type) from None
    _check_repeats(content)
    return _decode(whole, body_type)


def _check_repeats(content: bytes) -> None:
    # The webhook's own body is not searched: it is sent as written.
    path = raw_json.repeated_field(content, OBJECT_FIELDS)
    if path is not None:
        raise mistakes.repeated(path)


def _json(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise UnsupportedMediaType(DECLARE_JSON)
    body: Any = request.raw_body  # bytes, although Chalice's types say otherwise
    if len(body) > limit:
        raise BodyTooLarge(f"The body is larger than {limit:,} bytes.")
    return bytes(body).removeprefix(_BYTE_ORDER_MARK)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    # In `headers`, all but one are left out.
    every = request.to_original_event().get("multiValueHeaders") or {}
    keys = [values for name, values in every.items() if name.lower() == "idempotency-key"]
    if sum(map(len, keys)) > 1:
        raise InvalidRequest(ONE_KEY)
    return checked_idempotency_key(key)


def _entry(content: msgspec.Raw, now: datetime) -> TimerSpec | InvalidRequest:
    try:
        entry = decode(bytes(content), BatchEntry)
        key = entry.idempotency_key
        checked = None if key is UNSET else checked_idempotency_key(key, "/idempotency_key")
        return entry.spec(now, checked)
    except InvalidRequest as error:
        return error


def _time(name: str, text: str | UnsetType) -> datetime | None:
    if text is UNSET:
        return None
    try:
        return durations.parse_moment(text)
    except ValueError as error:
        hint = " In a URL, write + as %2B." if " " in text[11:] else ""
        advice = str(error).replace("+", "%2B")  # the example is for a URL, too
        raise InvalidRequest(f"In the parameter `{name}`: {advice}{hint}") from None


def _decode_cursor(text: str) -> Cursor:
    try:
        moment, _, id = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(" ")
        if _ID.fullmatch(id):
            return Cursor(durations.parse_moment(moment), id)
    except ValueError:
        pass
    raise InvalidRequest("The parameter `cursor` must be the `next_cursor` of a list.")
