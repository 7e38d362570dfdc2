"""Tenants: every route × its owner, another tenant, a read key, a revoked key, and no key.

On the standalone server with SQLite, and on AWS: API Gateway's authorizer with DynamoDB.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app import app
from chalicelib import runtime
from chalicelib.aws.credential_store import DynamoApiKeys
from chalicelib.aws.timer_store import DynamoTimerStore
from chalicelib.core import api_keys
from chalicelib.core.api_keys import KEY_ENTROPY, Role
from chalicelib.core.pagination import TimerFilter
from chalicelib.core.timer import IdempotencyKey, Outcome, Status, Timer, TimerSpec, Webhook
from chalicelib.service import credentials
from chalicelib.service.ports import ApiKeys, Store
from standalone.application import Application
from standalone.server import HttpRequest
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.aws import NAME, TENANTS, account
from tests.support.cloud import scheduler_of
from tests.support.fakes import START, Clock, FakeScheduler, FakeSender
from tests.support.routes import CLIENT, JSON, KEY_ROUTES, ROUTES, URL
from tests.support.service import Service

KEY = "the same key"


class Answer(NamedTuple):
    status: int
    json: Any
    """The decoded JSON, or the bytes of a page."""


def answered(status: int, content: bytes) -> Answer:
    return Answer(status, json.loads(content) if content.startswith(b"{") else content)


Ask = Callable[[str, str, bytes, dict[str, str]], Answer]


class World:
    """Two tenants, their keys, and a function that makes requests."""

    def __init__(self, store: Store, scheduler: Any, kept: ApiKeys, ask: Ask, unknown: int) -> None:
        self.ask = ask
        self.unknown = unknown
        """The status for an unknown key: 403 from API Gateway."""
        ids = iter(f"timer-{number}" for number in range(1000))
        self.service = Service(
            store,
            scheduler,
            FakeSender(),
            clock=Clock(),
            new_id=lambda: next(ids),
            pause=lambda _: None,
        )
        self.callers = {
            "own": self._key(kept, 1, "acme", Role.FULL),
            "read": self._key(kept, 2, "acme", Role.READ),
            "other": self._key(kept, 3, "zeta", Role.FULL),
            "revoked": self._key(kept, 4, "acme", Role.FULL),
            "no": None,
        }
        gone = credentials.authenticate(kept, f"Bearer {self.callers['revoked']}")
        assert gone is not None
        kept.remove(gone.id)
        self.store = store

    def timer(self, status: Status) -> Timer:
        """Return a timer of tenant acme with this status, created with KEY."""
        webhook = Webhook(url=URL, label="x")
        order = TimerSpec(webhook=webhook, deadline=START, idempotency_key=IdempotencyKey(KEY, "a"))
        timer = self.service.create("acme", order).timer
        if status is Status.FAILED:
            claimed = self.store.claim(timer.wakeup(), START, START)
            assert claimed is not None
            timer = claimed.record(Outcome(status=410), START, None)
            self.store.replace(timer)
        return timer

    def call(self, caller: str, method: str, path: str, body: object, **headers: str) -> Answer:
        key = self.callers[caller]
        bearer = {} if key is None else {"authorization": f"Bearer {key}"}
        content = b"" if body is None else json.dumps(body).encode()
        return self.ask(method, path, content, {**JSON, **bearer, **headers})

    @staticmethod
    def _key(kept: ApiKeys, number: int, tenant: str, role: Role) -> str | None:
        text, key = api_keys.mint(tenant, role, START, bytes([number]) * KEY_ENTROPY)
        kept.add(key)
        return text


def standalone(folder: Path) -> Iterator[World]:
    with closing(SqliteTimerStore(folder / "timers.db")) as store:
        application = Application(app, keys=store.keys)

        def ask(method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
            values = {name.lower(): [value] for name, value in headers.items()}
            response = application(HttpRequest(method, path, values, body))
            return answered(response.status, response.body)

        world = World(store, FakeScheduler(), store.keys, ask, unknown=401)
        install(world, store.keys)
        yield world


def on_aws(_: Path) -> Iterator[World]:
    def ask(method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        answer = CLIENT.http.request(method, path, headers, body)
        return answered(answer.status_code, answer.body)

    with account() as aws:
        kept = DynamoApiKeys(aws.dynamodb, TENANTS)
        scheduler = scheduler_of(aws, Clock())
        world = World(DynamoTimerStore(aws.dynamodb, NAME), scheduler, kept, ask, unknown=403)
        install(world, kept)
        yield world


def install(world: World, kept: ApiKeys) -> None:
    parts = world.service.dependencies(keys=kept)
    runtime.install(parts)


@pytest.fixture(params=[standalone, on_aws], ids=lambda it: it.__name__)
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(runtime, "_installed", None)
    yield from request.param(tmp_path)


class Route(NamedTuple):
    """The request of a route, and the status for its owner."""

    status: int
    body: Callable[[str], object] = lambda _: None
    timer: Status = Status.SCHEDULED


MINE = {"seconds": 9, "url": URL}

WANTED = {
    "POST /timers": Route(201, lambda _: MINE),
    "GET /timers": Route(200),
    "GET /timers/x": Route(200),
    "PATCH /timers/x": Route(200, lambda _: {"label": "y"}),
    "DELETE /timers/x": Route(200),
    "POST /timers/x/fire": Route(202),
    "POST /timers/x/retry": Route(202, timer=Status.FAILED),
    "POST /timers/batch": Route(200, lambda _: {"timers": [MINE]}),
    "POST /timers/cancel": Route(200, lambda timer: {"ids": [timer]}),
    "POST /timers/retry": Route(200, lambda timer: {"ids": [timer]}, Status.FAILED),
}

PUBLIC = {
    "GET /": "/",
    "GET /health": "/health",
    "GET /openapi.json": "/openapi.json",
    "GET /api-docs": "/api-docs",
    "GET /api-docs/{name}": "/api-docs/api-docs.js",
    "GET /console": "/console",
    "GET /console/{name}": "/console/console.js",
}
"""The routes that need no key, with a path of each."""


def call(world: World, caller: str, name: str) -> tuple[Timer, Answer]:
    """Make a request about a timer of acme; return the timer as it was, and the response."""
    method, path = name.split()
    route = WANTED[name]
    timer = world.timer(route.timer)
    body = route.body(timer.id)
    return timer, world.call(caller, method, path.replace("x", timer.id), body)


LIST = (TimerFilter(), None, 10)
"""The newest timers."""

PRIVATE = [" ".join(route) for route in KEY_ROUTES]


@pytest.mark.parametrize("name", PRIVATE)
def test_a_full_key_may_do_everything(world: World, name: str) -> None:
    """A full key of the tenant may use every route."""
    timer, answer = call(world, "own", name)
    assert answer.status == WANTED[name].status
    if "/x" in name:
        assert answer.json["id"] == timer.id
    if name in ("POST /timers/cancel", "POST /timers/retry"):
        assert [it["status"] for it in answer.json["results"]] == [200]
    if name == "GET /timers":
        assert [it["id"] for it in answer.json["timers"]] == [timer.id]


@pytest.mark.parametrize("name", PRIVATE)
def test_a_read_key_may_only_read(world: World, name: str) -> None:
    """A read key reads timers and changes none."""
    timer, answer = call(world, "read", name)
    if name.startswith("GET"):
        assert answer.status == 200
    else:
        assert (answer.status, answer.json["title"]) == (403, "Forbidden")
    assert unchanged(world, timer)


@pytest.mark.parametrize("name", PRIVATE)
def test_other_tenants_see_no_timer(world: World, name: str) -> None:
    """To another tenant the timer does not exist: by its id, in a list, or in a batch."""
    timer, answer = call(world, "other", name)
    if "/x" in name:
        nobody = world.call("other", "GET", "/timers/nobody", None)
        assert (answer.status, answer.json) == (404, nobody.json)
    elif name in ("POST /timers/cancel", "POST /timers/retry"):
        assert [it["status"] for it in answer.json["results"]] == [404]
    elif name == "GET /timers":
        assert answer.json == {"timers": [], "next_cursor": None}
    else:
        assert answer.status == WANTED[name].status
    assert unchanged(world, timer)


@pytest.mark.parametrize("caller", ["no", "revoked"])
@pytest.mark.parametrize("name", PRIVATE)
def test_rejects_requests_without_a_valid_key(world: World, name: str, caller: str) -> None:
    """A missing or revoked key is refused, and nothing changes."""
    timer, answer = call(world, caller, name)
    assert answer.status == (401 if caller == "no" else world.unknown)
    assert unchanged(world, timer)
    everyone = world.service.page("acme", *LIST).timers
    assert [it.id for it in everyone] == [timer.id]


@pytest.mark.parametrize("path", PUBLIC.values())
def test_public_routes_need_no_key(world: World, path: str) -> None:
    """Public routes return the same response for every caller."""
    assert PUBLIC.keys() | set(PRIVATE) == set(map(" ".join, ROUTES))
    answers = [world.call(caller, "GET", path, None) for caller in world.callers]
    assert answers == [answers[0]] * len(world.callers)
    assert answers[0].status == 200


def test_idempotency_keys_belong_to_a_tenant(world: World) -> None:
    """Two tenants with the same key and request create two timers."""
    mine, theirs = (
        world.call(caller, "POST", "/timers", MINE, **{"Idempotency-Key": KEY})
        for caller in ("own", "other")
    )
    assert (mine.status, theirs.status) == (201, 201)
    assert mine.json["id"] != theirs.json["id"]
    entry = {**MINE, "seconds": 10, "idempotency_key": KEY}
    answer = world.call("other", "POST", "/timers/batch", {"timers": [entry]})
    assert [it["status"] for it in answer.json["results"]] == [422]
    assert world.call("other", "GET", f"/timers/{mine.json['id']}", None).status == 404


def test_a_cursor_shows_no_timers_of_others(world: World) -> None:
    """Another tenant's cursor lists only the caller's timers."""
    for _ in range(3):
        world.call("own", "POST", "/timers", MINE)
    cursor = world.call("own", "GET", "/timers?limit=1", None).json["next_cursor"]
    answer = world.call("other", "GET", f"/timers?cursor={cursor}", None)
    assert answer == (200, {"timers": [], "next_cursor": None})


def unchanged(world: World, timer: Timer) -> bool:
    return world.service.get("acme", timer.id) == timer
