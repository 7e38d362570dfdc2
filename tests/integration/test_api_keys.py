"""API keys: their format, their storage, and the access that they give."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chalice.test import Client

import app as app_module
from app import app
from chalicelib import runtime
from chalicelib.aws import bootstrap
from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core import api_keys, signing
from chalicelib.core.api_keys import KEY_ENTROPY, Role
from chalicelib.core.errors import Forbidden, Unavailable
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.http import requests
from chalicelib.service import credentials
from chalicelib.service.ports import ApiKeys
from standalone.sqlite.credentials import SqliteApiKeys, credentials_in
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.contracts.api_keys import KEY, TOKEN, ApiKeysContract, another
from tests.support.aws import TENANTS, account
from tests.support.cloud import Cloud
from tests.support.fakes import START, FakeApiKeys
from tests.support.routes import KEY_ROUTES

METHOD_ARN = "arn:aws:execute-api:eu-central-1:123456789012:abc/api/GET/timers"


class TestFakeApiKeys(ApiKeysContract):
    """The contract, on the fake."""

    @pytest.fixture
    def keys(self) -> ApiKeys:
        return FakeApiKeys()


class TestDynamoApiKeys(ApiKeysContract):
    """The contract, on a table in moto."""

    @pytest.fixture
    def keys(self) -> Iterator[ApiKeys]:
        with account() as aws:
            yield DynamoApiKeys(aws.dynamodb, TENANTS)


class TestApiKeysOfTheServer(ApiKeysContract):
    """The contract, on the connection of the server."""

    @pytest.fixture
    def keys(self, tmp_path: Path) -> Iterator[ApiKeys]:
        with closing(SqliteTimerStore(tmp_path / "timers.db")) as store:
            yield store.keys


class TestApiKeysOfTheCommand(ApiKeysContract):
    """The contract, on the connection of the command while the server runs."""

    @pytest.fixture
    def keys(self, tmp_path: Path) -> Iterator[ApiKeys]:
        path = tmp_path / "timers.db"
        with closing(SqliteTimerStore(path)), credentials_in(path) as (keys, _):
            yield keys


def test_a_retried_removal_counts_as_removed() -> None:
    """If the response to a removal is lost, the client retries, and the key counts as removed."""
    with account() as aws:
        kept = DynamoApiKeys(aws.dynamodb, TENANTS)
        kept.add(KEY)

        def twice(operation: str) -> None:
            if operation == "DeleteItem":
                with aws.unobserved():
                    assert kept.remove(KEY.id)

        aws.before = twice
        assert kept.remove(KEY.id)
        assert kept.all() == []


def test_removing_a_key_never_removes_secrets() -> None:
    """API keys and secrets share a table, but a tenant's name never matches a key."""
    with account() as aws:
        kept, signed = DynamoApiKeys(aws.dynamodb, TENANTS), DynamoSecrets(aws.dynamodb, TENANTS)
        credentials.ensure_secret(signed, "acme", bytes(signing.SECRET_ENTROPY))
        for name in ("acme", "secrets#acme"):
            assert not kept.remove(name)
        assert signed.of("acme") != []


def test_the_server_sees_key_changes_at_once(tmp_path: Path) -> None:
    """The server's next request sees a key that another process has created or revoked."""
    path = tmp_path / "timers.db"
    with closing(SqliteTimerStore(path)) as store, credentials_in(path) as (kept, _):
        assert credentials.authenticate(store.keys, f"Bearer {TOKEN}") is None
        kept.add(KEY)
        assert credentials.authenticate(store.keys, f"Bearer {TOKEN}") == KEY
        kept.remove(KEY.id)
        assert credentials.authenticate(store.keys, f"Bearer {TOKEN}") is None
        assert store.keys.all() == []


@pytest.mark.parametrize("where", ["server", "command"])
def test_a_key_outlives_a_power_cut(tmp_path: Path, where: str) -> None:
    """Created and revoked keys are synced to disk before the command or the server confirms it."""
    path = tmp_path / "timers.db"
    with closing(SqliteTimerStore(path)) as store, credentials_in(path) as (kept, _):
        store.check()  # which is not synced
        found: SqliteApiKeys = store.keys if where == "server" else kept

        def level(db: sqlite3.Connection) -> int:
            return int(db.execute("PRAGMA synchronous").fetchone()[0])

        assert found._write(level) == 2  # FULL


@pytest.mark.parametrize(
    ("text", "id"),
    [
        (KEY.id, KEY.id),
        (f"tmr_{KEY.id}", KEY.id),
        (TOKEN, KEY.id),
        (f" {TOKEN}\n", KEY.id),
        (TOKEN[:20], KEY.id),
        ("", None),
        ("tmr_", None),
        (KEY.id[:-1], None),
        (f"{KEY.id}a", None),
        (KEY.id.upper(), None),
        (KEY.hash, None),
        (f"key#{KEY.id}", None),
    ],
)
def test_finds_the_id_in_a_key(text: str, id: str | None) -> None:
    """A key's id is found in the id alone, in the whole key, or in a truncated key."""
    assert api_keys.key_id_in(text) == id


def test_stored_keys_hold_no_secret() -> None:
    """A stored key has a hash, not the secret; the id in the token finds it."""
    assert TOKEN.startswith(f"tmr_{KEY.id}_")
    secret = TOKEN.rpartition("_")[2]
    assert len(secret) == 52
    assert secret not in repr(KEY)
    assert len(KEY.hash) == 64


def test_keys_differ_in_every_byte() -> None:
    """Every random byte changes the key."""
    texts = set()
    for place in range(KEY_ENTROPY):
        entropy = bytearray(KEY_ENTROPY)
        entropy[place] = 1
        texts.add(api_keys.mint(DEFAULT_TENANT, Role.FULL, START, bytes(entropy))[0])
    assert len(texts | {TOKEN}) == KEY_ENTROPY + 1


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN}", f" BEARER {TOKEN} "])
def test_a_known_key_is_found(header: str) -> None:
    """The scheme is case-insensitive, and spaces around the key are ignored (RFC 9110)."""
    kept = FakeApiKeys()
    kept.add(KEY)
    assert credentials.authenticate(kept, header) == KEY


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}a",
        f"Bearer {TOKEN[:-1]}b",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer tmr_{KEY.id}_",
        f"Bearer tmr_{KEY.id}_{KEY.hash[:52]}",
        f"Bearer {KEY.hash}",
        f"Bearer tmr_{another(1).id}_{TOKEN.rpartition('_')[2]}",
        f"Bearer tmr_{another(9).id}_{TOKEN.rpartition('_')[2]}",
    ],
)
def test_rejects_headers_without_a_known_key(header: str) -> None:
    """Only a complete known key is accepted."""
    kept = FakeApiKeys()
    kept.add(KEY)
    kept.add(another(1))
    assert credentials.authenticate(kept, header) is None


class Opened:
    """The deployed API behind its authorizer, on moto."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.kept = DynamoApiKeys(cloud.aws.dynamodb, TENANTS)
        self.parts = cloud.service.dependencies(keys=self.kept)
        self.client = Client(app)

    def key(self, number: int, tenant: str, role: Role) -> str:
        entropy = number.to_bytes(6, "big") + bytes([number]) * (KEY_ENTROPY - 6)
        text, key = api_keys.mint(tenant, role, START, entropy)
        self.kept.add(key)
        return text

    def ask(self, method: str, path: str, key: str | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        body = json.dumps({"seconds": 60, "url": "https://example.com/hook"}).encode()
        return self.client.http.request(method, path, headers, body)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    with account() as aws:
        made = Opened(Cloud(aws))
        monkeypatch.setattr(runtime, "_installed", made.parts)
        yield made


@pytest.mark.parametrize(("method", "path"), KEY_ROUTES)
def test_rejects_missing_and_unknown_keys(opened: Opened, method: str, path: str) -> None:
    """A missing key is a 401, an unknown one a 403; neither reaches the view."""
    assert opened.ask(method, path, None).status_code == 401
    assert opened.ask(method, path, TOKEN).status_code == 403


@pytest.mark.parametrize(("method", "path"), KEY_ROUTES)
@pytest.mark.parametrize("context", [None, {}, {"principalId": "user"}])
def test_views_reject_unauthorized_requests(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, method: str, path: str, context: Any
) -> None:
    """If the gateway lets a request pass without authorization, the view still refuses it."""
    gateway = opened.client.http._local_gateway

    def through(path: str, event: Any, context_: Any) -> Any:
        event["requestContext"]["authorizer"] = context
        return event, context_

    monkeypatch.setattr(gateway._authorizer, "authorize", through)
    answer = opened.ask(method, path, "tmr_whatever")
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer" in answer.json_body["detail"]


def test_an_unknown_role_may_only_read(opened: Opened) -> None:
    """A role other than `full` may not change timers."""
    request: Any = SimpleNamespace(context={"authorizer": {"tenant": "acme", "role": "odd"}})
    assert requests.tenant(request, Role.READ, None) == "acme"
    with pytest.raises(Forbidden):
        requests.tenant(request, Role.FULL, None)


def test_health_needs_no_key(opened: Opened) -> None:
    """GET /health is open, for monitoring without a key."""
    assert opened.ask("GET", "/health", None).status_code == 200


def test_a_timer_belongs_to_the_tenant_of_its_key(opened: Opened) -> None:
    """Another tenant's key gets a 404; the same tenant's other key finds the timer."""
    ours, other, theirs = (
        opened.key(1, "acme", Role.FULL),
        opened.key(2, "acme", Role.FULL),
        opened.key(3, "umbrella", Role.FULL),
    )
    created = opened.ask("POST", "/timers", ours)
    assert created.status_code == 201
    path = f"/{created.headers['Location']}"
    assert opened.ask("GET", path, other).json_body["id"] == created.json_body["id"]
    assert opened.ask("GET", path, theirs).status_code == 404
    assert opened.ask("DELETE", path, theirs).status_code == 404
    assert opened.ask("DELETE", path, other).json_body["status"] == "cancelled"


def test_a_read_key_changes_nothing(opened: Opened) -> None:
    """A read key reads its tenant's timers; a change is a 403 with a reason."""
    created = opened.ask("POST", "/timers", opened.key(1, "acme", Role.FULL))
    path = f"/{created.headers['Location']}"
    reading = opened.key(2, "acme", Role.READ)
    assert opened.ask("GET", path, reading).status_code == 200
    for method, route in (("POST", "/timers"), ("DELETE", path)):
        answer = opened.ask(method, route, reading)
        assert answer.status_code == 403
        assert answer.json_body["detail"] == "This API key is read-only."
    assert opened.ask("GET", path, reading).json_body["status"] == "scheduled"


def test_the_authorizer_allows_all_routes(opened: Opened) -> None:
    """The authorizer's response, cached for a minute, covers all routes and has no secret."""
    text = opened.key(1, "acme", Role.FULL)
    event = {
        "type": "TOKEN",
        "authorizationToken": f"Bearer {text}",
        "methodArn": METHOD_ARN,
    }
    answer = app_module.authorizer(event, {})
    (statement,) = answer["policyDocument"]["Statement"]
    assert statement["Resource"] == [METHOD_ARN.replace("GET/timers", "*/*")]
    assert answer["context"] == {"tenant": "acme", "role": "full"}
    assert answer["principalId"] == text.split("_")[1]
    refused = app_module.authorizer(event | {"authorizationToken": "Bearer x"}, {})
    assert refused["policyDocument"]["Statement"][0]["Resource"] == []
    assert refused["context"] == {}
    (config,) = app.builtin_auth_handlers
    assert config.ttl_seconds == 60


def test_an_unavailable_store_rejects_requests(opened: Opened) -> None:
    """If DynamoDB is down, the authorizer raises Unavailable."""

    def down(operation: str) -> None:
        raise Unavailable("DynamoDB")

    opened.cloud.aws.before = down
    with pytest.raises(Unavailable):
        opened.ask("GET", "/timers/x", TOKEN)


@pytest.mark.parametrize(
    ("stage", "account", "auth", "anonymous"),
    [
        ("localstack", "000000000000", "none", DEFAULT_TENANT),
        ("localstack", "000000000000", "keys", None),
        ("localstack", "000000000000", None, None),
        ("dev", "123456789012", None, None),
        ("prod", "123456789012", "keys", None),
        ("dev", "123456789012", "none", None),
        ("dev", "000000000000", "none", None),
        ("localstack", "123456789012", "none", None),
        ("localstack", "000000000000", "off", None),
        ("localstack", "000000000000", "", None),
    ],
)
def test_only_localstack_runs_without_keys(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    account: str,
    auth: str | None,
    anonymous: str | None,
) -> None:
    """AUTH=none works only on stage localstack in LocalStack's account.

    Any other stage or account requires keys, and logs an error.
    """
    monkeypatch.setattr(bootstrap, "STAGE_NAME", f"timers-{stage}")
    monkeypatch.delenv("AUTH", raising=False)
    if auth is not None:
        monkeypatch.setenv("AUTH", auth)
    assert bootstrap._anonymous_tenant(account) == anonymous
    mistaken = auth not in ("keys", None) and anonymous is None
    assert bool(caplog.messages) is mistaken
