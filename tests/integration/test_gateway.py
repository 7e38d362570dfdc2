"""The standalone server's gateway: routes, and the event that a view gets."""

from typing import Any, NamedTuple

import pytest
from chalice.app import Request

from app import app
from standalone.application import Application
from standalone.authorizer import ApiKeyAuthorizer
from standalone.gateway import Context, Gateway, Match, event_of, path_of
from standalone.server import HttpRequest, HttpResponse

GATEWAY = Gateway(app, ApiKeyAuthorizer())


@pytest.mark.parametrize("route", app.routes)
def test_every_route_is_found(route: str) -> None:
    """Each route of the application is found, with and without a final slash."""
    path = route.replace("{timer_id}", "x-1").replace("{name}", "x-1")
    values = ["x-1"] * route.count("{")
    for variant in {path, f"{path.rstrip('/')}/"}:
        found = GATEWAY.match(variant)
        assert found is not None
        assert (found.route, list(found.parameters.values())) == (route, values)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/timers?a=b", "/timers?a=b"),
        ("/timers#a?b", "/timers"),
        ("http://localhost/timers?u=http://x/", "/timers?u=http://x/"),
        ("http://localhost", "http://localhost"),
        ("//host/timers", "//host/timers"),
        ("*", "*"),
    ],
)
def test_the_path_of_a_target(target: str, path: str) -> None:
    """Scheme, authority and fragment are cut off."""
    assert path_of(target) == path


class Sent(NamedTuple):
    """A request, and what API Gateway makes of it, as its Developer Guide documents it."""

    request: HttpRequest
    event: dict[str, Any]


def sent(
    method: str,
    target: str,
    route: str,
    *,
    headers: dict[str, list[str]] | None = None,
    body: str | None = None,
    query: dict[str, list[str]] | None = None,
    parameters: dict[str, str] | None = None,
) -> Sent:
    headers = headers or {"host": ["localhost"]}
    path = target.partition("?")[0]
    last = {name: values[-1] for name, values in (query or {}).items()}
    event = {
        "resource": route,
        "path": path,
        "httpMethod": method,
        "headers": {name: values[-1] for name, values in headers.items()},
        "multiValueHeaders": headers,
        "queryStringParameters": last or None,
        "multiValueQueryStringParameters": query,
        "pathParameters": parameters,
        "stageVariables": None,
        "requestContext": {
            "resourceId": "abc123",
            "resourcePath": route,
            "httpMethod": method,
            "path": path,
            "identity": {"sourceIp": "192.0.2.1"},
            "requestId": "00000000-0000-0000-0000-000000000000",
        },
        "body": body,
        "isBase64Encoded": False,
    }
    return Sent(HttpRequest(method, target, headers, (body or "").encode()), event)


JSON_BODY = {"host": ["localhost"], "content-type": ["application/json"]}
SENT = {
    "create": sent("POST", "/timers", "/timers", headers=JSON_BODY, body='{"seconds": 5}'),
    "create, beyond ASCII": sent("POST", "/timers", "/timers", headers=JSON_BODY, body='"größe"'),
    "repeated header": sent(
        "POST", "/timers", "/timers", headers={"idempotency-key": ["a", "b"]}, body="{}"
    ),
    "list": sent("GET", "/timers", "/timers"),
    "list, with a query": sent(
        "GET",
        "/timers?label=a%2Cb+c&label=&limit",
        "/timers",
        query={"label": ["a,b c", ""], "limit": [""]},
    ),
    "read": sent("GET", "/timers/x%2Fy", "/timers/{timer_id}", parameters={"timer_id": "x%2Fy"}),
    "root": sent("HEAD", "/", "/"),
}


@pytest.mark.parametrize("case", SENT.values(), ids=SENT)
def test_views_get_the_event_of_api_gateway(case: Sent) -> None:
    """A view reads the same from the server's event as from that of API Gateway."""
    path, _, query = case.request.target.partition("?")
    match = GATEWAY.match(path)
    assert match is not None
    event = event_of(case.request, match, path, query, None)
    assert event.keys() == case.event.keys()
    assert seen(event) == seen(case.event)


def seen(event: dict[str, Any]) -> dict[str, Any]:
    """Return what a view can read of a request."""
    request: Any = Request(event, None)
    shared = event["requestContext"].keys() & {"resourcePath", "httpMethod", "path", "authorizer"}
    query = request.query_params
    return {
        **request.to_dict(),
        "headers": dict(request.headers),
        "query": None if query is None else {name: query.getlist(name) for name in query},
        "context": {name: event["requestContext"][name] for name in shared},
        "body": request.raw_body,
        "every_header": request.to_original_event()["multiValueHeaders"],
    }


ASKED = {
    **{name: it.request for name, it in SENT.items()},
    "invalid": HttpRequest("POST", "/timers", JSON_BODY, b'{"seconds": true}'),
    "no JSON": HttpRequest("POST", "/timers", JSON_BODY, b"{"),
    "no media type": HttpRequest("POST", "/timers", {"host": ["localhost"]}, b"{}"),
    "other media type": HttpRequest("POST", "/timers", {"content-type": ["text/plain"]}, b"{}"),
    "media type with a charset": HttpRequest(
        "POST", "/timers", {"content-type": ["APPLICATION/JSON; charset=utf-8"]}, b"{}"
    ),
    "other media type of a GET": HttpRequest("GET", "/timers", {"content-type": ["x/y"]}, b""),
    "unknown timer": HttpRequest("GET", "/timers/none", {}, b""),
    "unknown file": HttpRequest("GET", "/console/none", {}, b""),
    "file": HttpRequest("GET", "/console/console.js", {"accept": ["image/png"]}, b""),
    "document": HttpRequest("GET", "/openapi.json", {}, b""),
    "health": HttpRequest("GET", "/health", {}, b""),
    "wrong method": HttpRequest("PUT", "/timers", {}, b""),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.usefixtures("api_on_fakes")
def test_answers_as_chalice_does_on_lambda(asked: HttpRequest) -> None:
    """A view's response passes the gateway as it passes Chalice's own handler of events."""
    path, _, query = asked.target.partition("?")
    match = GATEWAY.match(path)
    assert match is not None
    event = event_of(asked, match, path, query, None)
    ours, theirs = map(without_id, (GATEWAY.answer(asked), through_chalice(event)))
    assert ours.status == theirs.status
    if asked.method != "PUT":  # our own advice, which no request on AWS gets
        assert ours == theirs


def without_id(response: HttpResponse) -> HttpResponse:
    headers = {name: it for name, it in response.headers.items() if name != "X-Request-Id"}
    return response._replace(headers=headers)


def through_chalice(event: dict[str, Any]) -> HttpResponse:
    response = app(event, Context("id"))
    assert not response.get("isBase64Encoded")
    return HttpResponse(response["statusCode"], response["headers"], response["body"].encode())


def test_the_event_has_the_identity() -> None:
    """A view finds the tenant and role where API Gateway's authorizer puts them."""
    identity = {"tenant": "acme", "role": "read", "principalId": "key-1"}
    request = HttpRequest("GET", "/timers", {}, b"")
    event = event_of(request, Match("/timers", {}), "/timers", "", identity)
    assert event["requestContext"]["authorizer"] == identity


def test_the_receiver_is_no_route() -> None:
    """Without a built-in receiver its paths are unknown."""
    request = HttpRequest("POST", "/_receiver/x", {"host": ["localhost"]}, b"")
    assert Application(app)(request).status == 404
