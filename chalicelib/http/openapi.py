"""The API's contract: an OpenAPI 3.1 document, built from the types that validate requests."""

from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from itertools import chain
from typing import Any

import msgspec

from chalicelib import __version__
from chalicelib.core import errors
from chalicelib.core.representation import Failure
from chalicelib.core.timer import Status
from chalicelib.http import bodies, responses
from chalicelib.http.routes import OPERATIONS, Operation

Json = dict[str, Any]

_KEYED = (errors.Unauthenticated, errors.Forbidden, errors.Unavailable)
"""Errors of every route that needs an API key."""

_ANYWHERE = {
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,  # Chalice checks the header even without a body
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
"""Statuses that API Gateway may return by itself."""

_ERRORS = sorted({*responses.STATUS_OF_ERROR.values(), *_ANYWHERE})

_INFO = {
    "title": "Timers",
    "version": __version__,
    "summary": "A webhook timer for your own AWS account, or for one machine",
    "description": "`POST /timers` with a URL and a delay returns an id. At the deadline the"
    " service sends the webhook.\n\n"
    "Bodies are JSON, at most 256 KB; those of bulk requests at most 1 MB. Fields and query"
    " parameters that are not described here are rejected.\n\n"
    "Errors are `application/problem+json`. On AWS, API Gateway returns some by itself, as"
    " `application/json`: 403 for an unknown API key, path or method, 413 over 10 MB, 429 and"
    " 504.",
    "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
}

_API_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key; `make key` creates one. Not needed if `GET /health` says"
    ' `"auth": "none"`.',
}

_MEANINGS = {
    HTTPStatus.OK: "Success.",
    HTTPStatus.CREATED: "The timer was created.",
    HTTPStatus.ACCEPTED: "The webhook is about to be sent.",
    HTTPStatus.BAD_REQUEST: "The request is invalid: `detail` says why, `pointer` where.",
    HTTPStatus.UNAUTHORIZED: "The API key is missing or not valid.",
    HTTPStatus.FORBIDDEN: "The API key is read-only or, on AWS, not valid.",
    HTTPStatus.NOT_FOUND: "There is no such timer.",
    HTTPStatus.CONFLICT: "The timer's status does not allow the request; with `Retry-After`, only"
    " for the moment. Or the `Idempotency-Key` was used for a different request.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The `Content-Type` is not `application/json`. A request"
    " with a body must declare it; others may leave it out.",
    HTTPStatus.TOO_MANY_REQUESTS: "Rate limit exceeded.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "An internal error occurred.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The backend did not respond, so the operation may or may not"
    " have happened. Repeat it; repeat a create with the same `Idempotency-Key`.",
    HTTPStatus.GATEWAY_TIMEOUT: "On AWS: no response within 29 seconds.",
}

_TIMER_ID = {"type": "string", "description": "The timer's id."}

_HEADERS: Json = {
    responses.REQUEST_ID_HEADER: {
        "description": "The request's id, which is also in the log lines.",
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
    bodies.NewTimer: {
        "in 90 seconds": {"seconds": 90, "url": "https://example.com/hook"},
        "a duration and everything else": {
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
        "at a fixed time": {
            "fire_at": "2027-01-31T09:00:00+01:00",
            "url": "https://example.com/hook",
        },
    },
    bodies.TimerChange: {
        "two hours from now": {"delay": "2h"},
        "another label": {"label": "invoice-18"},
    },
    bodies.Batch: {
        "two timers": {
            "timers": [
                {"seconds": 60, "url": "https://example.com/hook"},
                {"delay": "2h", "url": "https://example.com/hook", "idempotency_key": "order-4712"},
            ]
        }
    },
    bodies.Ids: {"one timer": {"ids": ["019c13ec-9e00-7a31-8f3b-2b1d7d0c5b7e"]}},
}

_GATEWAY_MESSAGE = {
    "title": "GatewayMessage",
    "description": "An error that API Gateway returns by itself.",
    "type": "object",
    "properties": {"message": {"type": "string", "examples": ["Forbidden"]}},
}

_WEBHOOKS = {
    "timer": {
        "post": {
            "summary": "The webhook of a timer",
            "description": "Method, body and additional headers are the timer's. Any 2xx is"
            " success. 408, 425, 429 and 5xx are retried, honouring `Retry-After`. Everything else"
            " fails the timer at once.",
            "parameters": [
                {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
                for name, text in {
                    "webhook-id": "The timer's id, the same in every attempt.",
                    "webhook-timestamp": "Time of this attempt, in seconds since 1970.",
                    "webhook-signature": "Signatures as Standard Webhooks defines them.",
                    "timer-attempt": "1 for the first attempt.",
                    "timer-scheduled-at": "The timer's deadline.",
                }.items()
            ],
            "responses": {"2XX": {"description": "Delivered."}},
            "security": [],
        }
    },
    "timer.failed": {
        "post": {
            "summary": "The notification to on_failure",
            "description": "It has the headers of every webhook.",
            "requestBody": {
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}
                }
            },
            "responses": {"2XX": {"description": "Delivered."}},
            "security": [],
        }
    },
}


def _without(*names: str) -> Json:
    """Return the schema of objects that have none of these fields.

    Client generators that do not know the schema `false` know `{"not": {}}`, which means the same.
    """
    return {"properties": {name: {"not": {}} for name in names}}


_ONE_WAY = {
    name: _without(*chain(*(other for other in bodies.DEADLINE_ALTERNATIVES if other is not way)))
    for way in bodies.DEADLINE_ALTERNATIVES
    for name in way
}

_GET_HAS_NO_BODY: Json = {
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
    document = {
        "openapi": "3.1.0",
        "info": _INFO,
        # Relative to the document, whose path begins with the stage on API Gateway.
        "servers": [{"url": ".", "description": "This service"}],
        "security": [{"key": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(it.tag for it in OPERATIONS.values())],
        "paths": paths,
        "webhooks": _WEBHOOKS,
        "components": {
            "schemas": schemas,
            "responses": {_name(status): _problem(status) for status in _ERRORS},
            "headers": _HEADERS,
            "securitySchemes": {"key": _API_KEY},
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1).decode()


def _operation(path: str, operation: Operation, query: Json) -> Json:
    described: Json = {
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
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    if not operation.needs_key:
        described["security"] = []
    return described


def _parameters(path: str, operation: Operation, query: Json) -> Iterator[Json]:
    if "{timer_id}" in path:
        yield _parameter("timer_id", "path", _TIMER_ID) | {"required": True}
    if operation.body is bodies.NewTimer:
        schema = msgspec.json.schema(bodies.IdempotencyKeyText)
        yield _parameter("Idempotency-Key", "header", schema)
    if operation.response is responses.TimerPage:
        for name, schema in query.items():
            yield _parameter(name, "query", schema)


def _parameter(name: str, place: str, schema: Json) -> Json:
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {"name": name, "in": place, "description": schema["description"], "schema": rest}


def _responses(operation: Operation) -> Iterator[tuple[HTTPStatus, Json]]:
    headers = [responses.REQUEST_ID_HEADER]
    if operation.id == "create_timer":
        headers.append("Location")
    for status in operation.statuses:
        yield (
            status,
            {
                "description": _MEANINGS[status],
                "headers": {name: _ref("headers", name) for name in headers},
                "content": {"application/json": {"schema": _schema(operation.response)}},
            },
        )
    kinds = operation.errors + (_KEYED if operation.needs_key else ())
    for status in sorted({responses.status_of(kind) for kind in kinds} | _ANYWHERE):
        yield status, _ref("responses", _name(status))


def _problem(status: HTTPStatus) -> Json:
    """Return an error response in our form, in API Gateway's form, or in both."""
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
    """Return the schemas of all types, with the rules that types can't express."""
    types = {kind for it in OPERATIONS.values() for kind in (it.body, it.response)} - {None}
    types |= {bodies.Query, bodies.BatchEntry, responses.Result, responses.Problem, Failure}
    _, schemas = msgspec.json.schema_components(
        sorted(types, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    schemas["GatewayMessage"] = _GATEWAY_MESSAGE
    schemas["Status"] |= {"type": "string", "enum": list(Status)}
    for name in ("RetryPolicy", "Health"):  # responses always hold their defaults
        schemas[name]["required"] = list(schemas[name]["properties"])
    for kind in (bodies.NewTimer, bodies.BatchEntry, bodies.TimerChange):
        schemas[kind.__name__] |= {"dependentSchemas": _ONE_WAY, **_GET_HAS_NO_BODY}
    for kind in (bodies.NewTimer, bodies.BatchEntry):
        schemas[kind.__name__]["not"] = _without(*chain(*bodies.DEADLINE_ALTERNATIVES))
    return schemas


def _schema(kind: type) -> Json:
    return _ref("schemas", kind.__name__)


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _name(status: HTTPStatus) -> str:
    return responses.title_of(status).replace(" ", "")
