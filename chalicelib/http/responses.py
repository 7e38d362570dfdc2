"""JSON ↔ values, and which HTTP status each error is. Knows HTTP, decides nothing."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import wraps
from http import HTTPStatus
from typing import Annotated, Any, Literal, ParamSpec

import msgspec
from chalice.app import Request, Response
from msgspec import UNSET, Meta, UnsetType

from chalicelib.core import errors
from chalicelib.core.api_keys import Role
from chalicelib.core.pagination import Cursor, Page, cursor_of
from chalicelib.core.representation import TimerResource, represent
from chalicelib.core.targets import Targets
from chalicelib.core.timer import Timer, TimerSpec, Webhook
from chalicelib.http import requests
from chalicelib.service.service import Created

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024
"""Bytes of one request's body."""

REQUEST_ID_HEADER = "X-Request-Id"

MAX_BATCH_BYTES = 1024 * 1024
"""Bytes of the body of a request for many timers; their views, escaped once more by Lambda, have to
stay below its 6 MB."""

MAX_PAGE_BYTES = 2 * 1024 * 1024
"""Bytes of timers in an answer, besides the last one; for the same reason."""

STATUS_OF_ERROR = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""A class that is not here has the status of the nearest one above it: `status_of` knows."""

P = ParamSpec("P")
Headers = dict[str, str | list[str]]


class Problem(msgspec.Struct, kw_only=True):
    """An error, as RFC 9457 has it."""

    title: Annotated[str, Meta(description="The name of the status.", examples=["Bad Request"])]
    status: Annotated[int, Meta(description="The HTTP status.", examples=[400])]
    detail: Annotated[
        str,
        Meta(
            description="What is wrong, in a sentence.",
            examples=['Its unit is missing: write 90 or "90s".'],
        ),
    ]
    pointer: Annotated[
        str | UnsetType,
        Meta(
            description="JSON pointer (RFC 6901) to where in the body it is.", examples=["/delay"]
        ),
    ] = UNSET


class Result(msgspec.Struct, kw_only=True):
    """What became of one of many: its timer, or a problem."""

    status: Annotated[int, Meta(description="The HTTP status that it would have had alone.")]
    id: Annotated[str | UnsetType, Meta(description="The timer's id.")] = UNSET
    timer: Annotated[
        TimerResource | UnsetType,
        Meta(description="Left out where the answer would become larger than 2 MB."),
    ] = UNSET
    problem: Problem | UnsetType = UNSET


EncodedTimer = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/TimerResource"})
]
EncodedResult = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/Result"})
]


class TimerPage(msgspec.Struct, kw_only=True):
    """A page of a list."""

    timers: Annotated[list[EncodedTimer], Meta(description="The newest first; maybe none.")]
    next_cursor: Annotated[
        str | None,
        Meta(description="The parameter `cursor` of the next page; null where the list ends."),
    ]


class Results(msgspec.Struct, kw_only=True):
    """What became of many."""

    results: Annotated[
        list[EncodedResult], Meta(description="One for each that was asked for, in their order.")
    ]


class Health(msgspec.Struct, kw_only=True):
    """All is well."""

    status: Annotated[Literal["ok"], Meta(extra_json_schema={"type": "string"})] = "ok"
    auth: Annotated[
        Literal["none", "keys"],
        Meta(
            description="`keys` if requests about timers need one, else `none`.",
            extra_json_schema={"type": "string"},
        ),
    ]
    receiver: Annotated[
        str | None,
        Meta(
            description="Path of the built-in receiver for trying things out; null where there is"
            " none, as on AWS."
        ),
    ]


def status_of(kind: type[errors.TimersError]) -> HTTPStatus:
    """Return the HTTP status of a class of errors."""
    return next(STATUS_OF_ERROR[it] for it in kind.__mro__ if it in STATUS_OF_ERROR)


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


def read_order(request: Request | None, targets: Targets, now: datetime) -> TimerSpec:
    """Return what POST /timers asks for; raise InvalidRequest."""
    wanted = requests.decode(_content(request), requests.NewTimer)
    key = None if request is None else request.headers.get("idempotency-key")
    return wanted.order(targets, now, None if key is None else requests.checked_key(key))


def read_orders(
    request: Request | None, targets: Targets, now: datetime
) -> list[TimerSpec | Exception]:
    """Return what POST /timers/batch asks for; for an impossible entry its error."""
    if request is not None and "idempotency-key" in request.headers:
        raise errors.InvalidRequest("In a batch each timer has an `idempotency_key` of its own.")
    return requests.timer_specs(_content(request, MAX_BATCH_BYTES), targets, now)


def read_change(
    request: Request | None, targets: Targets, now: datetime
) -> tuple[datetime | None, Callable[[Webhook], Webhook]]:
    """Return the new deadline that PATCH /timers/{id} asks for, if any, and what edits the rest."""
    wanted = requests.decode(_content(request), requests.TimerChange)
    return wanted.deadline(now), lambda webhook: wanted.webhook(webhook, targets)


def read_ids(request: Request | None) -> list[str]:
    """Return the ids that a request for many timers names."""
    return requests.decode(_content(request), requests.Ids).ids


def read_query(request: Request | None) -> requests.ListQuery:
    """Return the page of the list that GET /timers asks for."""
    found = None if request is None else request.query_params
    return requests.list_query({name: found.getlist(name) for name in found} if found else {})


def accepted(timer: Timer, now: datetime) -> Response:
    """Return a timer whose webhook is about to be sent."""
    return _json(represent(timer, now), HTTPStatus.ACCEPTED, {})


def show(timer: Timer, now: datetime) -> Response:
    """Return the timer."""
    return _json(represent(timer, now), HTTPStatus.OK, {})


def created(made: Created, now: datetime, request: Request | None) -> Response:
    """Return a timer that was asked for, and where it is to be found; 200 if it was there."""
    # The path as the client wrote it, which begins with the stage on API Gateway.
    path = "/timers" if request is None else request.context["path"].rstrip("/")
    location: Headers = {"Location": f"{path}/{made.timer.id}"}
    return _json(represent(made.timer, now), _status(made), location)


def listed(page: Page, now: datetime) -> Response:
    """Return a page of the list, cut off where it would become too large."""
    shown: list[msgspec.Raw] = []
    size = 0
    for timer in page.timers:
        text = msgspec.json.encode(represent(timer, now))
        size += len(text)
        if shown and size > MAX_PAGE_BYTES:
            last = page.timers[len(shown) - 1]
            return _page(shown, cursor_of(last))
        shown.append(msgspec.Raw(text))
    return _page(shown, page.next)


def results(found: Sequence[Created | Timer | Exception], now: datetime) -> Response:
    """Return what became of each of many, in their order."""
    shown: list[msgspec.Raw] = []
    size = 0
    for it in found:
        told = _result(it, now)
        if size > MAX_PAGE_BYTES:
            told.timer = UNSET
        shown.append(msgspec.Raw(msgspec.json.encode(told)))
        size += len(shown[-1])
    return _json(Results(results=shown), HTTPStatus.OK, {})


def healthy(anonymous: str | None, receiver: str | None) -> Response:
    """Return that all is well, and what a page has to know before it asks for more."""
    auth: Literal["none", "keys"] = "keys" if anonymous is None else "none"
    return _json(Health(auth=auth, receiver=receiver), HTTPStatus.OK, {})


def problem(
    status: HTTPStatus,
    detail: str,
    pointer: str | None = None,
    headers: Headers | None = None,
) -> Response:
    """Return an error as application/problem+json."""
    return _answer(_told(status, detail, pointer), headers or {})


def problems(view: Callable[P, Response]) -> Callable[P, Response]:
    """Decorate a view: errors become answers, and what is a fault of ours a 500."""

    @wraps(view)
    def answer(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return view(*args, **kwargs)
        except Exception as error:
            return _error(error)

    return answer


def finished(response: Response, context: Any) -> Response:
    """Return the response with the id of its Lambda invocation, which is in the logs too.

    One that Chalice itself made of an error comes in the form of our errors.
    """
    response = _own_errors_as_problems(response)
    response.headers[REQUEST_ID_HEADER] = context.aws_request_id
    return response


def _own_errors_as_problems(response: Response) -> Response:
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


def _content(request: Request | None, limit: int = MAX_BODY_BYTES) -> bytes:
    kind = "" if request is None else request.headers.get("content-type", "")
    if request is None or kind.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType(_WANTS_JSON)
    body: Any = request.raw_body
    if len(body) > limit:
        raise errors.BodyTooLarge(f"The body is larger than {limit:,} bytes.")
    return body  # type: ignore[no-any-return]  # bytes, though Chalice says otherwise


def _page(shown: list[msgspec.Raw], next: Cursor | None) -> Response:
    page = TimerPage(timers=shown, next_cursor=requests.encode_cursor(next))
    return _json(page, HTTPStatus.OK, {})


def _result(it: Created | Timer | Exception, now: datetime) -> Result:
    if isinstance(it, Exception):
        found = _problem(it)
        return Result(status=found.status, problem=found)
    timer = it.timer if isinstance(it, Created) else it
    return Result(status=_status(it), id=timer.id, timer=represent(timer, now))


def _status(of: Created | Timer) -> HTTPStatus:
    return HTTPStatus.CREATED if isinstance(of, Created) and of.is_new else HTTPStatus.OK


def _problem(error: Exception) -> Problem:
    """Return what is told of an error; what is a fault of ours or of what we need is logged."""
    if not isinstance(error, errors.TimersError):
        log.error("view crashed", exc_info=error)
        return _told(HTTPStatus.INTERNAL_SERVER_ERROR, "This is a fault of the service.")
    if isinstance(error, errors.Unavailable):
        log.error("request not served", extra={"error": str(error), "cause": str(error.__cause__)})
    pointer = error.pointer if isinstance(error, errors.InvalidRequest) else None
    return _told(status_of(type(error)), str(error), pointer)


def _told(status: HTTPStatus, detail: str, pointer: str | None = None) -> Problem:
    where = UNSET if pointer is None else pointer
    return Problem(title=status.phrase, status=status, detail=detail, pointer=where)


def _error(error: Exception) -> Response:
    headers: Headers = {}
    if isinstance(error, errors.TimersError) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return _answer(_problem(error), headers)


def _answer(told: Problem, headers: Headers) -> Response:
    headers = {**headers, "Content-Type": "application/problem+json"}
    return _json(told, HTTPStatus(told.status), headers)


def _json(body: Any, status: HTTPStatus, headers: Headers) -> Response:
    text = msgspec.json.encode(body).decode()
    headers = {"Content-Type": "application/json", **headers}
    return Response(body=text, status_code=status, headers=headers)
