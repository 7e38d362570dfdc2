"""Stands in for API Gateway: routes, the authorizer, and the event that Chalice's views get."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs

from chalice.app import Chalice, Request, Response, RouteEntry

from chalicelib.core import errors
from chalicelib.http import mistakes, requests, responses
from standalone.authorizer import ApiKeyAuthorizer
from standalone.entropy import random_uuid
from standalone.server import HttpRequest, HttpResponse, http_response, problem

_PARAMETER = re.compile(r"\\?\{(\w+)\\?\}")


class Match(NamedTuple):
    """The route of a path, and the values of its parameters as they are written in the path."""

    route: str
    parameters: dict[str, str]


class Context(NamedTuple):
    """The part of a Lambda invocation's context that views use."""

    aws_request_id: str
    invoked_function_arn: str = ""


class Gateway:
    """Calls the views of a Chalice application."""

    def __init__(self, app: Chalice, authorizer: ApiKeyAuthorizer) -> None:
        self._app = app
        self._authorizer = authorizer
        self._middleware: list[Callable[..., Response]] = [
            middleware
            for middleware, kind in reversed(app.middleware_handlers)
            if kind in ("all", "http")
        ]
        self._plain = {it for it in app.routes if "{" not in it}
        self._patterns = [(re.compile(_pattern(it)), it) for it in app.routes if "{" in it]

    def answer(self, request: HttpRequest) -> HttpResponse:
        """Return a view's response, or the one to a request that no view gets."""
        path, _, query = path_of(request.target).partition("?")
        match = self.match(path)
        if match is None:
            error = mistakes.unknown_path(request.target)
            return http_response(responses.error_response(error))
        entries = self._app.routes[match.route]
        if request.method not in entries:
            return _wrong_method(request.method, list(entries))
        entry = entries[request.method]
        try:
            identity = self._identity(entry, request)
        except errors.TimersError as error:
            return http_response(responses.error_response(error))
        if not _takes(entry, request):
            return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, requests.DECLARE_JSON)
        event = event_of(request, match, path, query, identity)
        return http_response(self._call(entry, event, match.parameters))

    def match(self, path: str) -> Match | None:
        """Return the route of a path; one final slash makes no difference."""
        path = path.removesuffix("/") or path
        if path in self._plain:
            return Match(path, {})
        found = ((pattern.fullmatch(path), route) for pattern, route in self._patterns)
        return next((Match(route, match.groupdict()) for match, route in found if match), None)

    def _call(
        self, entry: RouteEntry, event: dict[str, Any], parameters: dict[str, str]
    ) -> Response:
        """Call a view as Chalice's event handler does, which takes 40 us longer."""
        context = Context(random_uuid())
        self._app.lambda_context = cast("Any", context)
        self._app.current_request = request = Request(event, context)
        arguments = {name: parameters[name] for name in entry.view_args}
        get_response: Callable[..., Response]
        get_response = partial(_view_response, entry.view_function, arguments)
        for middleware in self._middleware:
            get_response = partial(middleware, get_response=get_response)
        return get_response(request)

    def _identity(self, entry: RouteEntry, request: HttpRequest) -> Mapping[str, str] | None:
        if not entry.authorizer:
            return None
        key = self._authorizer.admit(request.headers)
        if key is None:
            return None
        return {"tenant": key.tenant, "role": key.role.value, "principalId": key.id}


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
    parameters = parse_qs(query, keep_blank_values=True) if query else {}
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


def _wrong_method(method: str, allowed: list[str]) -> HttpResponse:
    others = mistakes.listed([it for it in allowed if it != "HEAD"], "or")
    detail = f"{method} is not allowed here: use {others}."
    headers: responses.Headers = {"Allow": ", ".join(allowed)}
    response = responses.problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, None, headers)
    return http_response(response)


def _takes(entry: RouteEntry, request: HttpRequest) -> bool:
    """Return whether a route takes the media type of a request; without a header it is JSON."""
    (*_, given) = request.headers.get("content-type", ["application/json"])
    return requests.media_type(given) in entry.content_types


def _view_response(
    view: Callable[..., Response], arguments: dict[str, str], _: Request
) -> Response:
    return view(**arguments)


def _pattern(route: str) -> str:
    """Return a route as a pattern: each parameter is one segment of the path."""
    return _PARAMETER.sub(r"(?P<\1>[^/]*)", re.escape(route))
