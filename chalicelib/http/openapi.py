"""The contract of the API, as an OpenAPI 3.1 document made of the types that check requests."""

from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from chalicelib.core import errors, representation
from chalicelib.core.timer import Status
from chalicelib.http import requests, responses

VERSION = "0.1.0"

Json = dict[str, Any]

_OK = HTTPStatus.OK
_CREATED = HTTPStatus.CREATED
_ACCEPTED = HTTPStatus.ACCEPTED
_BODY = (errors.InvalidRequest, errors.BodyTooLarge)
_ONE = (errors.TimerNotFound, errors.Conflict)


class Operation(NamedTuple):
    """What a route takes, what it answers, and which errors it can have beside those of all."""

    id: str
    """The name of its view."""
    summary: str
    description: str
    statuses: tuple[HTTPStatus, ...]
    answer: type
    errors: tuple[type[errors.TimersError], ...]
    body: type | None = None
    tag: str = "Timers"
    wants_key: bool = True


OPERATIONS = {
    "POST /timers": Operation(
        "create_timer",
        "Make a timer",
        "Takes a URL and exactly one way to say when: `hours`, `minutes` and `seconds`, of which"
        " any may be left out, or `delay`, or `fire_at`.",
        (_CREATED, _OK),
        representation.TimerResource,
        (*_BODY, errors.KeyReused),
        body=requests.NewTimer,
    ),
    "GET /timers": Operation(
        "list_timers",
        "List timers",
        "The newest first. A page may be short, even empty, while there is a `next_cursor`.",
        (_OK,),
        responses.TimerPage,
        (errors.InvalidRequest,),
    ),
    "GET /timers/{timer_id}": Operation(
        "read_timer",
        "Read a timer",
        "A finished timer can be read for 30 days.",
        (_OK,),
        representation.TimerResource,
        (errors.TimerNotFound,),
    ),
    "PATCH /timers/{timer_id}": Operation(
        "change_timer",
        "Change a timer",
        "Possible while it is scheduled or retrying. What is not there stays as it is. A new"
        " deadline counts from now and brings all attempts back.",
        (_OK,),
        representation.TimerResource,
        (*_BODY, *_ONE),
        body=requests.TimerChange,
    ),
    "DELETE /timers/{timer_id}": Operation(
        "cancel_timer",
        "Cancel a timer",
        "Possible while it is scheduled or retrying, and may be repeated. No webhook leaves after"
        " that. The timer can still be read.",
        (_OK,),
        representation.TimerResource,
        _ONE,
    ),
    "POST /timers/{timer_id}/fire": Operation(
        "fire_timer",
        "Fire a timer now",
        "Sends the webhook of a timer that is scheduled or retrying.",
        (_ACCEPTED,),
        representation.TimerResource,
        _ONE,
    ),
    "POST /timers/{timer_id}/retry": Operation(
        "retry_timer",
        "Retry a failed timer",
        "Sends its webhook again, now, with all attempts ahead.",
        (_ACCEPTED,),
        representation.TimerResource,
        _ONE,
    ),
    "POST /timers/batch": Operation(
        "create_timers",
        "Make many timers",
        "What is wrong with one keeps none of the others from being made: its result has the"
        " problem, and its status is 400.",
        (_OK,),
        responses.Results,
        _BODY,
        body=requests.Batch,
        tag="Bulk",
    ),
    "POST /timers/cancel": Operation(
        "cancel_timers",
        "Cancel many timers",
        "Each as if it were cancelled alone.",
        (_OK,),
        responses.Results,
        _BODY,
        body=requests.Ids,
        tag="Bulk",
    ),
    "POST /timers/retry": Operation(
        "retry_timers",
        "Retry many failed timers",
        "Each as if it were retried alone.",
        (_OK,),
        responses.Results,
        _BODY,
        body=requests.Ids,
        tag="Bulk",
    ),
    "GET /health": Operation(
        "health",
        "Is it well?",
        "503 when timers can't be stored or don't fire. Needs no key.",
        (_OK,),
        responses.Health,
        (errors.Unavailable,),
        tag="Service",
        wants_key=False,
    ),
}
"""All that is for programs, by method and path."""

_KEYED = (errors.Unauthenticated, errors.Forbidden, errors.Unavailable)
"""What every request with a key may meet."""

_ANYWHERE = {
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,  # Chalice looks at the header also where there is no body
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.GATEWAY_TIMEOUT,
}

_BY_THE_GATEWAY = {
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.GATEWAY_TIMEOUT,
}
"""What API Gateway may say by itself."""

_ERRORS = sorted({*responses.STATUS_OF_ERROR.values(), *_ANYWHERE})

_INFO = {
    "title": "Timers",
    "version": VERSION,
    "summary": "A webhook timer for your own AWS account, or for one machine",
    "description": "`POST /timers` with a URL and a delay, get an id; at the deadline the service"
    " sends the webhook.\n\n"
    "Bodies are JSON, 256 KB at most, those about many timers 1 MB. Members that are not described"
    " here are refused, as are parameters of a list.\n\n"
    "Errors are `application/problem+json`. On AWS some are said by API Gateway itself, as"
    " `application/json`: 403 for a key, path or method that it does not know, 413 over 10 MB, 429"
    " and 504.",
    "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
}

_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, as `make key` makes them. Not needed where the service asks for"
    " none.",
}

_MEANINGS = {
    HTTPStatus.OK: "As asked.",
    HTTPStatus.CREATED: "The timer is made.",
    HTTPStatus.ACCEPTED: "The webhook is about to be sent.",
    HTTPStatus.BAD_REQUEST: "The request can't be meant; `detail` says why, and `pointer` where.",
    HTTPStatus.UNAUTHORIZED: "There is no API key that counts.",
    HTTPStatus.FORBIDDEN: "The key may only read; or, on AWS, is not known.",
    HTTPStatus.NOT_FOUND: "There is no such timer.",
    HTTPStatus.CONFLICT: "The timer's status does not allow it, for a moment only if there is"
    " `Retry-After`; or the `Idempotency-Key` was used for something else.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The `Content-Type` is not `application/json`, which"
    " a body has to have and all else may leave out.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too fast.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A fault of the service.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The store or the alarms do not answer, and what was asked may"
    " have been done or not: repeat it, a create with the `Idempotency-Key` that it had.",
    HTTPStatus.GATEWAY_TIMEOUT: "On AWS, when no answer came within 29 seconds.",
}

_TIMER_ID = {"type": "string", "description": "The timer's id."}

_HEADERS: Json = {
    responses.REQUEST_ID_HEADER: {
        "description": "The id of the request, which the log lines have.",
        "schema": {"type": "string"},
    },
    "Location": {
        "description": "Path of the timer.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"schema": {"const": "Bearer"}},
}

_HEADERS_OF = {
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate",),
    HTTPStatus.CONFLICT: ("Retry-After",),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After",),
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After",),
}

_EXAMPLES: dict[type, Json] = {
    requests.NewTimer: {
        "in a while": {"seconds": 90, "url": "https://example.com/hook"},
        "as a duration, with all else": {
            "delay": "1h30m",
            "url": "https://example.com/hook/{id}",
            "method": "PUT",
            "headers": {"Authorization": "Bearer sesame"},
            "body": {"any": "JSON"},
            "timeout": 10,
            "retry": {"max_attempts": 3, "initial_delay": 60, "max_delay": 3600},
            "on_failure": "https://example.com/failed",
            "label": "invoice-17",
            "metadata": {"customer": "4711"},
        },
        "at a moment": {"fire_at": "2027-01-31T09:00:00+01:00", "url": "https://example.com/hook"},
    },
    requests.TimerChange: {
        "two hours from now": {"delay": "2h"},
        "another label": {"label": "invoice-18"},
    },
    requests.Batch: {
        "two": {
            "timers": [
                {"seconds": 60, "url": "https://example.com/hook"},
                {"delay": "2h", "url": "https://example.com/hook", "idempotency_key": "order-4712"},
            ]
        }
    },
    requests.Ids: {"one": {"ids": ["019c13ec-9e00-7a31-8f3b-2b1d7d0c5b7e"]}},
}


_SAID_BY_THE_GATEWAY = {
    "title": "GatewayMessage",
    "description": "An error, as API Gateway says it by itself.",
    "type": "object",
    "properties": {"message": {"type": "string", "examples": ["Forbidden"]}},
}

_WEBHOOKS = {
    "timer": {
        "post": {
            "summary": "A timer's webhook",
            "description": "Method, body and further headers are the timer's. 2xx is success; 408,"
            " 425, 429 and 5xx are tried again, with regard to `Retry-After`; all else fails.",
            "parameters": [
                {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
                for name, text in {
                    "webhook-id": "The timer's id, the same in every attempt.",
                    "webhook-timestamp": "When this attempt was made, in seconds since 1970.",
                    "webhook-signature": "Signatures as Standard Webhooks has them.",
                    "timer-attempt": "1 for the first attempt.",
                    "timer-scheduled-at": "The timer's deadline.",
                }.items()
            ],
            "responses": {"2XX": {"description": "It has arrived."}},
            "security": [],
        }
    },
    "timer.failed": {
        "post": {
            "summary": "What on_failure is told",
            "description": "With the headers of every webhook.",
            "requestBody": {
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}
                }
            },
            "responses": {"2XX": {"description": "It has arrived."}},
            "security": [],
        }
    },
}


def _without(*names: str) -> Json:
    """Return the schema of what has none of these members.

    Generators of clients that know no `false` as a schema know `{"not": {}}`, which says the same.
    """
    return {"properties": {name: {"not": {}} for name in names}}


_ONE_WAY = {
    name: _without(*chain(*(other for other in requests.WAYS_TO_SAY_WHEN if other is not way)))
    for way in requests.WAYS_TO_SAY_WHEN
    for name in way
}

_A_GET_HAS_NO_BODY: Json = {
    "if": {"properties": {"method": {"const": "GET"}}, "required": ["method"]},
    "then": {"properties": {"body": {"enum": [None, ""]}}},
}


@cache
def document() -> str:
    """Return the document as JSON."""
    schemas = _schemas()
    query = schemas.pop("Query")["properties"]
    paths: Json = {}
    for route, operation in OPERATIONS.items():
        method, path = route.split()
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, query)
    made = {
        "openapi": "3.1.0",
        "info": _INFO,
        # Relative to where the document is, which on API Gateway begins with the stage.
        "servers": [{"url": ".", "description": "This service"}],
        "security": [{"key": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(it.tag for it in OPERATIONS.values())],
        "paths": paths,
        "webhooks": _WEBHOOKS,
        "components": {
            "schemas": schemas,
            "responses": {_name(status): _problem(status) for status in _ERRORS},
            "headers": _HEADERS,
            "securitySchemes": {"key": _KEY},
        },
    }
    return msgspec.json.format(msgspec.json.encode(made), indent=1).decode()


def _operation(path: str, operation: Operation, query: Json) -> Json:
    made: Json = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": list(_parameters(path, operation, query)),
        "responses": {str(status.value): it for status, it in _responses(operation)},
    }
    if operation.body is not None:
        examples = {name: {"value": value} for name, value in _EXAMPLES[operation.body].items()}
        content = {"schema": _schema(operation.body), "examples": examples}
        made["requestBody"] = {"required": True, "content": {"application/json": content}}
    if not operation.wants_key:
        made["security"] = []
    return made


def _parameters(path: str, operation: Operation, query: Json) -> Iterator[Json]:
    if "{timer_id}" in path:
        yield _parameter("timer_id", "path", _TIMER_ID) | {"required": True}
    if operation.body is requests.NewTimer:
        yield _parameter(
            "Idempotency-Key", "header", msgspec.json.schema(requests.IdempotencyKeyText)
        )
    if operation.answer is responses.TimerPage:
        for name, schema in query.items():
            yield _parameter(name, "query", schema)


def _parameter(name: str, place: str, schema: Json) -> Json:
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {"name": name, "in": place, "description": schema["description"], "schema": rest}


def _responses(operation: Operation) -> Iterator[tuple[HTTPStatus, Json]]:
    for status in operation.statuses:
        names = (
            [responses.REQUEST_ID_HEADER, "Location"]
            if operation.id == "create_timer"
            else [responses.REQUEST_ID_HEADER]
        )
        yield (
            status,
            {
                "description": _MEANINGS[status],
                "headers": {name: _ref("headers", name) for name in names},
                "content": {"application/json": {"schema": _schema(operation.answer)}},
            },
        )
    kinds = operation.errors + (_KEYED if operation.wants_key else ())
    found = {responses.status_of(kind) for kind in kinds} | _ANYWHERE
    for status in sorted(found):
        yield status, _ref("responses", _name(status))


def _problem(status: HTTPStatus) -> Json:
    """Return what an error looks like: as we say it, as API Gateway says it, or either."""
    content = {}
    headers = []
    if status is not HTTPStatus.GATEWAY_TIMEOUT:
        content["application/problem+json"] = {"schema": _schema(responses.Problem)}
        headers = [responses.REQUEST_ID_HEADER, *_HEADERS_OF.get(status, ())]
    if status in _BY_THE_GATEWAY:
        content["application/json"] = {"schema": _ref("schemas", "GatewayMessage")}
    return {
        "description": _MEANINGS[status],
        "headers": {name: _ref("headers", name) for name in headers},
        "content": content,
    }


def _schemas() -> Json:
    """Return the schemas of all types, with what types can't say of timers."""
    types = {kind for it in OPERATIONS.values() for kind in (it.body, it.answer)} - {None}
    types |= {
        requests.Query,
        requests.BatchEntry,
        responses.Result,
        responses.Problem,
        representation.Failure,
    }
    template = "#/components/schemas/{name}"
    _, schemas = msgspec.json.schema_components(
        sorted(types, key=lambda kind: kind.__name__), ref_template=template
    )
    schemas["GatewayMessage"] = _SAID_BY_THE_GATEWAY
    schemas["Status"] |= {"type": "string", "enum": list(Status)}
    for name in ("RetryPolicy", "Health"):  # are shown whole, defaults included
        schemas[name]["required"] = list(schemas[name]["properties"])
    for kind in (requests.NewTimer, requests.BatchEntry, requests.TimerChange):
        schemas[kind.__name__] |= {"dependentSchemas": _ONE_WAY, **_A_GET_HAS_NO_BODY}
    for kind in (requests.NewTimer, requests.BatchEntry):
        schemas[kind.__name__]["not"] = _without(*chain(*requests.WAYS_TO_SAY_WHEN))
    return schemas


def _schema(kind: type) -> Json:
    return _ref("schemas", kind.__name__)


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _name(status: HTTPStatus) -> str:
    return status.phrase.replace(" ", "")
