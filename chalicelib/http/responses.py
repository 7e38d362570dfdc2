"""From values to responses, and from errors to HTTP statuses."""

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
from chalicelib.core.pagination import Cursor, Page, cursor_of
from chalicelib.core.representation import TimerResource, represent
from chalicelib.core.timer import Timer
from chalicelib.http.requests import DECLARE_JSON, encode_cursor
from chalicelib.service.commands import Created

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"

MAX_PAGE_BYTES = 2 * 1024 * 1024
"""Bytes of timers in one response, not counting the last. The response, escaped once more by
Lambda, must stay below 6 MB."""

STATUS_OF_ERROR = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""A class that is not here has the status of its nearest base class; see `status_of`."""

_RENAMED = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Content Too Large",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Unprocessable Content",
}
"""Statuses that have an older name before Python 3.13."""

P = ParamSpec("P")
Headers = dict[str, str | list[str]]


class Problem(msgspec.Struct, kw_only=True):
    """An error, as RFC 9457 defines it."""

    title: Annotated[str, Meta(description="The name of the status.", examples=["Bad Request"])]
    status: Annotated[int, Meta(description="The HTTP status.", examples=[400])]
    detail: Annotated[
        str,
        Meta(
            description="What is wrong, and what to do about it.",
            examples=['The unit is missing: write 90 or "90s".'],
        ),
    ]
    pointer: Annotated[
        str | UnsetType,
        Meta(description="JSON pointer (RFC 6901) to the fault in the body.", examples=["/delay"]),
    ] = UNSET


class Result(msgspec.Struct, kw_only=True):
    """The result for one timer of a batch: the timer, or a problem."""

    status: Annotated[int, Meta(description="The HTTP status of the same request on its own.")]
    id: Annotated[str | UnsetType, Meta(description="The timer's id.")] = UNSET
    timer: Annotated[
        TimerResource | UnsetType,
        Meta(description="Left out once the response has reached 2 MB."),
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

    timers: Annotated[list[EncodedTimer], Meta(description="Newest first; may be empty.")]
    next_cursor: Annotated[
        str | None,
        Meta(description="The `cursor` of the next page; null at the end of the list."),
    ]


class Results(msgspec.Struct, kw_only=True):
    """The results of a batch."""

    results: Annotated[
        list[EncodedResult], Meta(description="One for each timer of the request, in order.")
    ]


class Health(msgspec.Struct, kw_only=True):
    """The service works."""

    status: Annotated[Literal["ok"], Meta(extra_json_schema={"type": "string"})] = "ok"
    auth: Annotated[
        Literal["none", "keys"],
        Meta(
            description="`keys` if requests about timers need an API key, else `none`.",
            extra_json_schema={"type": "string"},
        ),
    ]
    receiver: Annotated[
        str | None,
        Meta(description="Path of the built-in receiver for trials; null if there is none."),
    ]


def status_of(kind: type[errors.TimersError]) -> HTTPStatus:
    """Return the HTTP status of a class of errors."""
    return next(STATUS_OF_ERROR[it] for it in kind.__mro__ if it in STATUS_OF_ERROR)


def name_of(status: HTTPStatus) -> str:
    """Return the name of a status in RFC 9110. Python's own names depend on its version."""
    return _RENAMED.get(status, status.phrase)


def ok(timer: Timer, now: datetime) -> Response:
    """Return the timer: 200."""
    return _json(represent(timer, now), HTTPStatus.OK, {})


def accepted(timer: Timer, now: datetime) -> Response:
    """Return a timer whose webhook is about to be sent: 202."""
    return _json(represent(timer, now), HTTPStatus.ACCEPTED, {})


def created(created: Created, now: datetime, request: Request) -> Response:
    """Return a timer and its Location: 201, or 200 if an earlier request created it."""
    location: Headers = {"Location": reference_below(request, created.timer.id)}
    return _json(represent(created.timer, now), _status(created), location)


def reference_below(request: Request, path: str) -> str:
    """Return a reference to a path below the request's, relative to its URL (RFC 3986).

    Only the client knows the whole URL: a stage, a base path or a proxy may put a prefix before
    our paths. So the reference begins at the last segment, which is empty after a trailing slash.
    """
    last = request.context["path"].partition(";")[0].rpartition("/")[2]
    return f"{last}/{path}" if last else path


def listed(page: Page, now: datetime) -> Response:
    """Return a page of the list; it ends early at `MAX_PAGE_BYTES`."""
    encoded: list[msgspec.Raw] = []
    size = 0
    for timer in page.timers:
        text = msgspec.json.encode(represent(timer, now))
        size += len(text)
        if encoded and size > MAX_PAGE_BYTES:
            last = page.timers[len(encoded) - 1]
            return _page(encoded, cursor_of(last))
        encoded.append(msgspec.Raw(text))
    return _page(encoded, page.next)


def results(
    items: Sequence[Created | Timer | Exception], now: datetime, ids: Sequence[str] = ()
) -> Response:
    """Return the results of a batch, in order; `ids` are those of the request, if it has them."""
    encoded: list[msgspec.Raw] = []
    size = 0
    for index, it in enumerate(items):
        result = _result(index, it, now)
        if ids and result.id is UNSET:
            result.id = ids[index]
        if size > MAX_PAGE_BYTES:
            result.timer = UNSET
        encoded.append(msgspec.Raw(msgspec.json.encode(result)))
        size += len(encoded[-1])
    return _json(Results(results=encoded), HTTPStatus.OK, {})


def healthy(anonymous: str | None, receiver: str | None) -> Response:
    """Return the service's health, and what a client must know to use it: 200."""
    auth: Literal["none", "keys"] = "keys" if anonymous is None else "none"
    return _json(Health(auth=auth, receiver=receiver), HTTPStatus.OK, {})


def problem(
    status: HTTPStatus,
    detail: str,
    pointer: str | None = None,
    headers: Headers | None = None,
) -> Response:
    """Return an error as application/problem+json."""
    return _problem_response(_problem(status, detail, pointer), headers or {})


def errors_as_problems(view: Callable[P, Response]) -> Callable[P, Response]:
    """Decorate a view: its errors become responses, unexpected ones a 500."""

    @wraps(view)
    def respond(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return view(*args, **kwargs)
        except Exception as error:
            return error_response(error)

    return respond


def error_response(error: Exception) -> Response:
    """Return the response to a request that ended with this error."""
    headers: Headers = {}
    if isinstance(error, errors.TimersError) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return _problem_response(_problem_of(error), headers)


def finished(response: Response, context: Any) -> Response:
    """Return the response with its request id, which is also in the log lines.

    An error response of Chalice's own becomes a problem, as all others are.
    """
    response = _chalice_errors_as_problems(response)
    response.headers[REQUEST_ID_HEADER] = context.aws_request_id
    return response


def _chalice_errors_as_problems(response: Response) -> Response:
    media_type = response.headers.get("Content-Type", "application/json")
    if response.status_code < HTTPStatus.BAD_REQUEST or media_type == "application/problem+json":
        return response
    status = HTTPStatus(response.status_code)
    detail = response.body.get("Message") if isinstance(response.body, dict) else None
    if status is HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        detail = DECLARE_JSON  # Chalice's own message says less
    sentence = (detail or name_of(status)).removesuffix(".") + "."
    return problem(status, sentence, None, response.headers)


def _page(encoded: list[msgspec.Raw], next: Cursor | None) -> Response:
    page = TimerPage(timers=encoded, next_cursor=encode_cursor(next))
    return _json(page, HTTPStatus.OK, {})


def _result(index: int, it: Created | Timer | Exception, now: datetime) -> Result:
    if isinstance(it, Exception):
        problem = _problem_of(it)
        if problem.pointer is not UNSET:
            problem.pointer = f"/timers/{index}{problem.pointer}"
        return Result(status=problem.status, problem=problem)
    timer = it.timer if isinstance(it, Created) else it
    return Result(status=_status(it), id=timer.id, timer=represent(timer, now))


def _status(of: Created | Timer) -> HTTPStatus:
    return HTTPStatus.CREATED if isinstance(of, Created) and of.is_new else HTTPStatus.OK


def _problem_of(error: Exception) -> Problem:
    """Return an error as a problem; log it if the service or its backend failed."""
    if not isinstance(error, errors.TimersError):
        log.error("view crashed", exc_info=error)
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "An internal error occurred.")
    if isinstance(error, errors.Unavailable):
        log.error("request not served", extra={"error": str(error), "cause": str(error.__cause__)})
    pointer = error.pointer if isinstance(error, errors.InvalidRequest) else None
    return _problem(status_of(type(error)), str(error), pointer)


def _problem(status: HTTPStatus, detail: str, pointer: str | None = None) -> Problem:
    where = UNSET if pointer is None else pointer
    return Problem(title=name_of(status), status=status, detail=detail, pointer=where)


def _problem_response(problem: Problem, headers: Headers) -> Response:
    headers = {**headers, "Content-Type": "application/problem+json"}
    return _json(problem, HTTPStatus(problem.status), headers)


def _json(body: Any, status: HTTPStatus, headers: Headers) -> Response:
    text = msgspec.json.encode(body).decode()
    headers = {"Content-Type": "application/json", **headers}
    return Response(body=text, status_code=status, headers=headers)
