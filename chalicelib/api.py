"""JSON ↔ values, and which HTTP status each error is. Knows HTTP, decides nothing."""

import logging
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from http import HTTPStatus
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import msgspec
from chalice.app import Request, Response

from chalicelib import errors, timers
from chalicelib.guard import Targets, check_headers
from chalicelib.keys import Role
from chalicelib.timers import RetryPolicy, Timer, Webhook
from chalicelib.views import view

log = logging.getLogger(__name__)

MAX_BODY = 256 * 1024
"""Bytes of one request's body."""

MAX_WEBHOOK = 64 * 1024
"""Bytes of a webhook: URL, headers and body together."""

STATUS = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.TimerNotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""A class that is not here has the status of the nearest one above it."""

P = ParamSpec("P")
T = TypeVar("T")
Headers = dict[str, str | list[str]]
Count = Annotated[int, msgspec.Meta(ge=0)]


_RETRY = RetryPolicy()


class NewRetryPolicy(RetryPolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A retry policy as it may be asked for."""

    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=15)] = _RETRY.max_attempts
    initial_delay: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = _RETRY.initial_delay
    max_delay: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = _RETRY.max_delay


class NewTimer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /timers: a webhook and when to send it, as hours, minutes and seconds."""

    url: str
    method: Literal["POST", "PUT", "PATCH", "DELETE", "GET"] = "POST"
    headers: dict[str, str] = {}
    body: msgspec.Raw = msgspec.Raw(b"null")
    """A text, or any other JSON value, which is sent as it stands there; null for none."""
    timeout: Annotated[int, msgspec.Meta(ge=1, le=timers.MAX_TIMEOUT)] = timers.MAX_TIMEOUT
    retry: NewRetryPolicy = NewRetryPolicy()
    on_failure: str | None = None
    """A URL that is told if the timer ends as failed."""
    hours: Count | msgspec.UnsetType = msgspec.UNSET
    minutes: Count | msgspec.UnsetType = msgspec.UNSET
    seconds: Count | msgspec.UnsetType = msgspec.UNSET

    def delay(self) -> timedelta:
        """Return how far ahead the deadline is; raise InvalidRequest if unsaid or too far."""
        parts = (self.hours, self.minutes, self.seconds)
        if all(part is msgspec.UNSET for part in parts):
            raise errors.InvalidRequest("Say when: give hours, minutes or seconds.", "")
        hours, minutes, seconds = (0 if part is msgspec.UNSET else part for part in parts)
        total = hours * 3600 + minutes * 60 + seconds
        if total > timers.MAX_DELAY.total_seconds():
            raise errors.InvalidRequest("The deadline is more than 5 years ahead.", "")
        return timedelta(seconds=total)

    def webhook(self, targets: Targets) -> Webhook:
        """Return what is to be sent, checked; raise InvalidRequest."""
        targets.check_url(self.url.replace("{id}", _ANY_ID), "/url")
        if self.on_failure is not None:
            targets.check_url(self.on_failure.replace("{id}", _ANY_ID), "/on_failure")
        body, kind = _body(self.body)
        check_headers(self.headers, "/headers")
        headers = dict(self.headers)
        if body and "content-type" not in {name.lower() for name in headers}:
            headers["Content-Type"] = kind
        if body and self.method == "GET":
            raise errors.InvalidRequest("A GET has no body.", "/body")
        _check_size(self.url, self.on_failure or "", body, *headers, *headers.values())
        if self.retry.initial_delay > self.retry.max_delay:
            detail = f"It is shorter than the first delay, {self.retry.initial_delay} s."
            raise errors.InvalidRequest(detail, "/retry/max_delay")
        return Webhook(
            url=self.url,
            method=self.method,
            headers=headers,
            body=body,
            timeout=self.timeout,
            retry=RetryPolicy(**msgspec.structs.asdict(self.retry)),
            on_failure=self.on_failure,
        )


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error as RFC 9457 has it; `pointer` is the JSON pointer to the offending member."""

    title: str
    status: int
    detail: str
    pointer: str | None = None


def tenant(request: Request | None, role: Role, anonymous: str | None) -> str:
    """Return whose timers the request is about: those of the key that the authorizer found.

    `role` is what it takes; `anonymous` the tenant of requests without a key, None if these are
    refused. Raises Unauthenticated or Forbidden.
    """
    found = {} if request is None else request.context.get("authorizer") or {}
    if "tenant" not in found:
        # Never to be passed by default: an emulator, or an API set up by hand, may not authorize.
        if anonymous is None:
            raise errors.Unauthenticated("Send an API key: `Authorization: Bearer tmr_…`.")
        return anonymous
    if role is Role.FULL and found["role"] != Role.FULL:
        raise errors.Forbidden("This key may only read.")
    return str(found["tenant"])


def read_new_timer(request: Request | None, targets: Targets) -> tuple[Webhook, timedelta]:
    """Return what POST /timers asks for, and in how long; raise InvalidRequest."""
    wanted = _read(request, NewTimer)
    return wanted.webhook(targets), wanted.delay()


def accepted(timer: Timer, now: datetime) -> Response:
    """Return a timer whose webhook is about to be sent."""
    return _json(view(timer, now), HTTPStatus.ACCEPTED, {})


def show(timer: Timer, now: datetime) -> Response:
    """Return the timer."""
    return _json(view(timer, now), HTTPStatus.OK, {})


def created(timer: Timer, now: datetime, request: Request | None) -> Response:
    """Return a new timer, and where it is to be found."""
    # The path as the client wrote it, which begins with the stage on API Gateway.
    path = "/timers" if request is None else request.context["path"].rstrip("/")
    return _json(view(timer, now), HTTPStatus.CREATED, {"Location": f"{path}/{timer.id}"})


def healthy() -> Response:
    """Return that all is well."""
    return _json({"status": "ok"}, HTTPStatus.OK, {})


def problem(
    status: HTTPStatus,
    detail: str,
    pointer: str | None = None,
    headers: Headers | None = None,
) -> Response:
    """Return an error as application/problem+json."""
    body = Problem(title=status.phrase, status=status, detail=detail, pointer=pointer)
    return _json(body, status, {**(headers or {}), "Content-Type": "application/problem+json"})


def problems(view: Callable[P, Response]) -> Callable[P, Response]:
    """Decorate a view: errors become answers, and what is a fault of ours a 500."""

    @wraps(view)
    def answer(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return view(*args, **kwargs)
        except errors.TimersError as error:
            return _error(error)
        except Exception:
            log.exception("view broke")
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "This is a fault of the service.")

    return answer


def own_errors_as_problems(response: Response) -> Response:
    """Return the response; one that Chalice itself made of an error in the form of our errors."""
    kind = response.headers.get("Content-Type", "application/json")
    if response.status_code < HTTPStatus.BAD_REQUEST or kind == "application/problem+json":
        return response
    status = HTTPStatus(response.status_code)
    detail = response.body.get("Message") if isinstance(response.body, dict) else None
    if status is HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        detail = _WANTS_JSON  # Chalice looks at the Content-Type first, and says less
    sentence = (detail or status.phrase).removesuffix(".") + "."
    return problem(status, sentence, None, response.headers)


_WANTS_JSON = "Declare the body as JSON, with the header `Content-Type: application/json`."

_ANY_ID = "00000000-0000-7000-8000-000000000000"

_FIELD = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


def _body(raw: msgspec.Raw) -> tuple[str, str]:
    """Return the webhook's body, and its media type where the headers say none."""
    if bytes(raw) == b"null":
        return "", ""
    try:
        text = bytes(raw).decode()
        if text.startswith('"'):
            return msgspec.json.decode(text, type=str), "text/plain; charset=utf-8"
    except (UnicodeDecodeError, msgspec.DecodeError):
        raise errors.InvalidRequest("The webhook's body is not valid UTF-8.", "/body") from None
    return text, "application/json"  # as it was written: numbers and the order of members stay


def _check_size(*texts: str) -> None:
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_WEBHOOK:
        detail = f"URLs, headers and body are {size:,} bytes; {MAX_WEBHOOK:,} are possible."
        raise errors.InvalidRequest(detail, "/body")


def _read(request: Request | None, body_type: type[T]) -> T:
    kind = "" if request is None else request.headers.get("content-type", "")
    if request is None or kind.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType(_WANTS_JSON)
    body = request.raw_body
    if len(body) > MAX_BODY:
        raise errors.BodyTooLarge(f"The body is larger than {MAX_BODY:,} bytes.")
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except UnicodeDecodeError:
        raise errors.InvalidRequest("The body is not valid UTF-8.", "") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise errors.InvalidRequest(f"The body is not valid JSON: {error}.", "") from None


def _invalid(message: str) -> errors.InvalidRequest:
    # msgspec: "Expected `int`, got `str` - at `$.retry.max_attempts`"; it names no key of a map.
    what, _, path = message.partition(" - at `$")
    steps = ["".join(step) for step in _STEP.findall(path.removesuffix("`")) if step[1] != "..."]
    detail = f"{what} in {_pointer(steps) or 'the body'}."
    if field := _FIELD.fullmatch(what):
        steps.append(field[1])
    return errors.InvalidRequest(detail, _pointer(steps))


def _pointer(steps: list[str]) -> str:
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def _error(error: errors.TimersError) -> Response:
    if isinstance(error, errors.Unavailable):
        log.error("request not served", extra={"error": str(error), "cause": str(error.__cause__)})
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    pointer = error.pointer if isinstance(error, errors.InvalidRequest) else None
    headers: Headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(status, str(error), pointer, headers)


def _json(body: Any, status: HTTPStatus, headers: Headers) -> Response:
    text = msgspec.json.encode(body).decode()
    headers = {"Content-Type": "application/json", **headers}
    return Response(body=text, status_code=status, headers=headers)
