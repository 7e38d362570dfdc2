"""Stands in for API Gateway: routes, the authorizer, and the event that Chalice's views get."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from chalice.app import Chalice

from chalicelib.core import errors
from chalicelib.http import mistakes, responses
from standalone.authorizer import ApiKeyAuthorizer
from standalone.entropy import random_uuid
from standalone.server import HttpRequest, HttpResponse, from_lambda, problem

_PARAMETER = re.compile(r"\\?\{(\w+)\\?\}")


class Match(NamedTuple):
    """The route of a path, and the values of its parameters as they are written in the path."""

    route: str
    parameters: dict[str, str]


class Context(NamedTuple):
    """What the views use of the context of a Lambda invocation."""

    aws_request_id: str
    invoked_function_arn: str = ""


class Gateway:
    """Calls the views of a Chalice application."""

    def __init__(self, app: Chalice, authorizer: ApiKeyAuthorizer) -> None:
        self._app = app
        self._authorizer = authorizer
        self._methods = {route: list(entries) for route, entries in app.routes.items()}
        self._needs_key = {
            (route, method)
            for route, entries in app.routes.items()
            for method, entry in entries.items()
            if entry.authorizer
        }
        self._plain = {it for it in app.routes if "{" not in it}
        self._patterns = [(re.compile(_pattern(it)), it) for it in app.routes if "{" in it]

    def answer(self, request: HttpRequest) -> HttpResponse:
        """Return a view's response, or the one to a request that no view gets."""
        path, _, query = path_of(request.target).partition("?")
        match = self.match(path)
        if match is None:
            return from_lambda(
                responses.error_response(mistakes.unknown_path(request.target)).to_dict()
            )
        if request.method not in self._methods[match.route]:
            return self._wrong_method(request.method, self._methods[match.route])
        try:
            identity = self._identity(request, match)
        except errors.TimersError as error:
            return from_lambda(responses.error_response(error).to_dict())
        event = event_of(request, match, path, query, identity)
        return from_lambda(self._app(event, Context(random_uuid())))

    def match(self, path: str) -> Match | None:
        """Return the route of a path; one final slash makes no difference."""
        path = path.removesuffix("/") or path
        if path in self._plain:
            return Match(path, {})
        found = ((pattern.fullmatch(path), route) for pattern, route in self._patterns)
        return next((Match(route, match.groupdict()) for match, route in found if match), None)

    def _identity(self, request: HttpRequest, match: Match) -> Mapping[str, str] | None:
        if (match.route, request.method) not in self._needs_key:
            return None
        key = self._authorizer.admit(request.headers)
        if key is None:
            return None
        return {"tenant": key.tenant, "role": key.role.value, "principalId": key.id}

    def _wrong_method(self, method: str, allowed: list[str]) -> HttpResponse:
        others = mistakes.listed([it for it in allowed if it != "HEAD"], "or")
        detail = f"{method} is not allowed here: use {others}."
        response = problem(HTTPStatus.METHOD_NOT_ALLOWED, detail)
        return response._replace(headers={**response.headers, "Allow": ", ".join(allowed)})


def path_of(target: str) -> str:
    """Return the path and query of a request target, without scheme, authority and fragment."""
    target = target.partition("#")[0]
    if target.startswith("/"):
        return target
    _, scheme, rest = target.partition("://")
    return rest[rest.find("/") :] if scheme and "/" in rest else target


def event_of(
    request: HttpRequest,
    match: Match,
    path: str,
    query: str,
    identity: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the event that API Gateway sends to Lambda for a request."""
    parameters = parse_qs(query, keep_blank_values=True)
    return {
        "resource": match.route,
        "path": path,
        "httpMethod": request.method,
        "headers": {name: values[-1] for name, values in request.headers.items()},
        "multiValueHeaders": request.headers,
        "queryStringParameters": {name: values[-1] for name, values in parameters.items()} or None,
        "multiValueQueryStringParameters": parameters or None,
        "pathParameters": match.parameters or None,
        "stageVariables": None,
        "requestContext": {
            "resourcePath": match.route,
            "httpMethod": request.method,
            "path": path,
            "identity": {},
            **({} if identity is None else {"authorizer": identity}),
        },
        "body": request.body,  # as bytes: Chalice takes them, too
        "isBase64Encoded": False,
    }


def _pattern(route: str) -> str:
    """Return a route as a pattern: each parameter is one segment of the path."""
    return _PARAMETER.sub(r"(?P<\1>[^/]*)", re.escape(route))
