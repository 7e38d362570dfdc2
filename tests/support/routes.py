"""The routes over a service on fakes, called as API Gateway calls them."""

import json
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from chalice.test import Client, HTTPResponse

from app import app
from chalicelib.core import api_keys
from chalicelib.core.api_keys import Role
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.http import responses
from tests.support.fakes import START, FakeApiKeys, OnFakes

URL = "http://localhost/hook"
JSON = {"Content-Type": "application/json"}
LEASE = timedelta(minutes=5)

CLIENT = Client(app)

TOKEN, KEY = api_keys.mint(DEFAULT_TENANT, Role.FULL, START, bytes(api_keys.KEY_ENTROPY))
BEARER = f"Bearer {TOKEN}"


class Api(OnFakes):
    """The routes over a service on fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = FakeApiKeys()
        self.keys.add(KEY)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> HTTPResponse:
        return CLIENT.http.request(method, path, {"authorization": BEARER} | (headers or {}), body)

    def post(self, body: bytes, headers: dict[str, str] = JSON) -> HTTPResponse:
        return self.ask("POST", "/timers", body, headers)

    def send(
        self, method: str, path: str, body: object, headers: dict[str, str] | None = None
    ) -> HTTPResponse:
        """Make a request with `body` as JSON."""
        return self.ask(method, path, json.dumps(body).encode(), JSON | (headers or {}))

    def create(self, seconds: int = 60, url: str = URL) -> dict[str, Any]:
        response = self.post(json.dumps({"seconds": seconds, "url": url}).encode())
        assert response.status_code == 201, response.body
        return dict(response.json_body)

    def read(self, id: str) -> dict[str, Any]:
        response = self.ask("GET", f"/timers/{id}")
        assert response.status_code == 200, response.body
        return dict(response.json_body)

    def wakeup(self) -> None:
        self.service.deliver(self.scheduler.wakeups[-1], self.clock.now + LEASE)

    def delivering(self) -> str:
        """Return the id of a timer whose webhook is being sent."""
        id = str(self.create(0)["id"])
        assert self.store.claim(self.scheduler.wakeups[-1], self.clock.now, self.clock.now + LEASE)
        return id

    def retrying(self) -> str:
        """Return the id of a timer whose worker was lost a second after its deadline."""
        id = self.delivering()
        self.clock.forward(1)
        self.service.reclaim(self.store.timers[id])
        return id


def problem(status: int, kind: object, content: bytes) -> dict[str, Any]:
    """Return a problem's fields; fail unless it follows RFC 9457 and the rules of this API."""
    assert kind == "application/problem+json"
    body: dict[str, Any] = json.loads(content)
    assert set(body) - {"pointer"} == {"title", "status", "detail"}
    assert body["status"] == status
    assert body["title"] == responses.title_of(HTTPStatus(status))
    sentence = body["detail"]
    assert sentence.endswith(".")
    assert not sentence.endswith("..")
    return body


def refused(response: HTTPResponse, status: int) -> dict[str, Any]:
    """Return a response's problem; fail unless it is one with this status."""
    assert response.status_code == status, response.body
    return problem(response.status_code, response.headers.get("Content-Type"), response.body)


def timer_json(fields: str) -> bytes:
    """Return the body of a create request with a valid URL and these fields."""
    return f'{{"url": "{URL}", {fields}}}'.encode()


ROUTES = [
    (method, path.replace("{timer_id}", "x"))
    for path, methods in app.routes.items()
    for method in methods
]
"""All methods and paths, with the id `x` in place of a variable."""

FILE_ROUTES = {
    ("GET", path)
    for path in (
        "/openapi.json",
        "/api-docs",
        "/api-docs/{name}",
        "/console",
        "/console/{name}",
    )
}
"""Routes of files, which do not use the service."""

SERVICE_ROUTES = [route for route in ROUTES if route not in FILE_ROUTES]

KEY_ROUTES = [route for route in SERVICE_ROUTES if route != ("GET", "/health")]
"""Routes that require an API key."""

BULK_ROUTES = {("POST", "/timers/batch"), ("POST", "/timers/cancel"), ("POST", "/timers/retry")}
"""Routes that return 200 with a result for each timer."""

BODIES = {
    ("POST", "/timers"): timer_json('"seconds": 1'),
    ("PATCH", "/timers/x"): b'{"label": "x"}',
    ("POST", "/timers/batch"): b'{"timers": [' + timer_json('"seconds": 1') + b"]}",
    ("POST", "/timers/cancel"): b'{"ids": ["x"]}',
    ("POST", "/timers/retry"): b'{"ids": ["x"]}',
}
"""A valid body for each route that requires one."""
