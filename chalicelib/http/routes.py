"""The routes of the API, as its OpenAPI document describes them; app.py has their views."""

from http import HTTPStatus
from typing import NamedTuple

from chalicelib.core import errors
from chalicelib.core.representation import TimerResource
from chalicelib.http import bodies, responses

_OK = HTTPStatus.OK
_CREATED = HTTPStatus.CREATED
_ACCEPTED = HTTPStatus.ACCEPTED
_BODY_ERRORS = (errors.InvalidRequest, errors.BodyTooLarge)
_TIMER_ERRORS = (errors.TimerNotFound, errors.Conflict)


class Operation(NamedTuple):
    """A route's request and responses; `errors` are those that not every route has."""

    id: str
    """The name of its view."""
    summary: str
    description: str
    statuses: tuple[HTTPStatus, ...]
    response: type
    errors: tuple[type[errors.TimersError], ...]
    body: type | None = None
    tag: str = "Timers"
    needs_key: bool = True


OPERATIONS = {
    "POST /timers": Operation(
        "create_timer",
        "Create a timer",
        "Takes a URL and exactly one way to set the deadline: `hours`, `minutes` and `seconds`"
        " (at least one of them), or `delay`, or `fire_at`.",
        (_CREATED, _OK),
        TimerResource,
        (*_BODY_ERRORS, errors.Conflict, errors.IdempotencyKeyReused),
        body=bodies.NewTimer,
    ),
    "GET /timers": Operation(
        "list_timers",
        "List timers",
        "Newest first. A page may be short, or empty, even if there is a `next_cursor`.",
        (_OK,),
        responses.TimerPage,
        (errors.InvalidRequest,),
    ),
    "GET /timers/{timer_id}": Operation(
        "read_timer",
        "Read a timer",
        "A finished timer can be read for 30 days.",
        (_OK,),
        TimerResource,
        (errors.TimerNotFound,),
    ),
    "PATCH /timers/{timer_id}": Operation(
        "change_timer",
        "Change a timer",
        "Possible while the timer is scheduled or retrying. Absent fields stay as they are. A new"
        " deadline counts from now and restarts the timer, with all attempts ahead.",
        (_OK,),
        TimerResource,
        (*_BODY_ERRORS, *_TIMER_ERRORS),
        body=bodies.TimerChange,
    ),
    "DELETE /timers/{timer_id}": Operation(
        "cancel_timer",
        "Cancel a timer",
        "Possible while the timer is scheduled or retrying. No webhook is sent afterwards. The"
        " timer can still be read. Cancelling twice is fine.",
        (_OK,),
        TimerResource,
        _TIMER_ERRORS,
    ),
    "POST /timers/{timer_id}/fire": Operation(
        "fire_timer",
        "Fire a timer now",
        "Sends the webhook of a timer that is scheduled or retrying.",
        (_ACCEPTED,),
        TimerResource,
        _TIMER_ERRORS,
    ),
    "POST /timers/{timer_id}/retry": Operation(
        "retry_timer",
        "Retry a failed timer",
        "Sends its webhook now, with all attempts ahead.",
        (_ACCEPTED,),
        TimerResource,
        _TIMER_ERRORS,
    ),
    "POST /timers/batch": Operation(
        "create_timers",
        "Create many timers",
        "Each timer is created on its own. The result of an invalid one has a problem and the"
        " status 400; the others are created.",
        (_OK,),
        responses.Results,
        _BODY_ERRORS,
        body=bodies.Batch,
        tag="Bulk",
    ),
    "POST /timers/cancel": Operation(
        "cancel_timers",
        "Cancel many timers",
        "Each timer is cancelled on its own.",
        (_OK,),
        responses.Results,
        _BODY_ERRORS,
        body=bodies.Ids,
        tag="Bulk",
    ),
    "POST /timers/retry": Operation(
        "retry_timers",
        "Retry many failed timers",
        "Each timer is retried on its own.",
        (_OK,),
        responses.Results,
        _BODY_ERRORS,
        body=bodies.Ids,
        tag="Bulk",
    ),
    "GET /health": Operation(
        "health",
        "Check the service",
        "503 if timers can't be stored or do not fire. Needs no API key.",
        (_OK,),
        responses.Health,
        (errors.Unavailable,),
        tag="Service",
        needs_key=False,
    ),
}
"""The API's routes, by method and path. The pages for browsers are not part of the API."""
