"""API keys and rate limits of the standalone server."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import pytest

from app import app
from chalicelib import runtime
from chalicelib.core import api_keys
from chalicelib.core.api_keys import KEY_ENTROPY, ApiKey, Role
from chalicelib.core.errors import Unavailable
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import DEFAULT_TENANT, Timer, Webhook, new_timer
from standalone.application import Application
from standalone.rate_limit import RateLimiter
from standalone.receiver import Receiver
from standalone.server import MAX_HEADER_BYTES
from standalone.settings import Settings
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.clocks import Nanoseconds
from tests.support.fakes import START, Clock, FakeApiKeys
from tests.support.http import (
    HEALTH,
    HOST,
    JSON,
    METHODS,
    OTHER_HOSTS,
    TIMER,
    Connection,
    Meeting,
    Response,
    ask,
    message,
    running,
    serving,
)
from tests.support.routes import BODIES, KEY_ROUTES, ROUTES, SERVICE_ROUTES, Api


def minted(number: int, tenant: str = "acme", role: Role = Role.FULL) -> tuple[bytes, ApiKey]:
    """Return the header with a new key, and the key as it is stored."""
    text, key = api_keys.mint(tenant, role, START, bytes([number]) * KEY_ENTROPY)
    return f"Authorization: Bearer {text}\r\n".encode(), key


FULL, FULL_KEY = minted(1)
READ, READ_KEY = minted(2, role=Role.READ)
OTHER, OTHER_KEY = minted(3, "globex")
UNKNOWN, UNKNOWN_KEY = minted(4)


class Served(NamedTuple):
    """A running server and its store."""

    url: str
    store: SqliteTimerStore


@contextmanager
def with_keys(settings: Settings) -> Iterator[Served]:
    """Run the standalone server with three keys."""
    store = SqliteTimerStore(settings.database)
    for key in (FULL_KEY, READ_KEY, OTHER_KEY):
        store.keys.add(key)
    with running(settings, store) as url:
        yield Served(url, store)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One standalone server with AUTH=keys for this whole file."""
    path = tmp_path_factory.mktemp("server") / "timers.db"
    targets = Targets.parse(LOOPBACK_TARGETS)
    with with_keys(Settings("127.0.0.1", 0, path, targets, keys=True)) as server:
        yield server


def create(url: str, key: bytes) -> str:
    """Create a timer; return its path."""
    answer = ask(url, message("POST", "/timers", HOST, JSON, key, body=TIMER))
    assert answer.status == 201, answer
    return urljoin("/timers", answer.headers["location"])


def unauthenticated(answer: Response) -> bool:
    return bool(answer.detail(401)) and answer.headers["www-authenticate"] == "Bearer"


TOKEN = FULL.split()[2]

INVALID_KEYS = {
    "no header": b"",
    "empty": b"Authorization:\r\n",
    "no token": b"Authorization: Bearer\r\n",
    "no key": b"Authorization: Bearer secret\r\n",
    "unknown": UNKNOWN,
    "without its scheme": b"Authorization: %s\r\n" % TOKEN,
    "other scheme": b"Authorization: Basic %s\r\n" % TOKEN,
    "other secret": FULL.replace(TOKEN[-52:], b"a" * 52),
    "cut off": b"Authorization: Bearer %s\r\n" % TOKEN[:-1],
    "too long": b"Authorization: Bearer %sa\r\n" % TOKEN,
    "upper case": b"Authorization: Bearer %s\r\n" % TOKEN.upper(),
    "id alone": b"Authorization: Bearer %s\r\n" % TOKEN[:14],
    "beyond ASCII": b"Authorization: Bearer %s\xff\r\n" % TOKEN,
    "two headers": FULL + UNKNOWN,
    "two in one": FULL[:-2] + b", Bearer %s\r\n" % OTHER.split()[2],
    "other header": b"X-Api-Key: %s\r\n" % TOKEN,
    "header with an underscore": FULL.replace(b"Authorization", b"Authori_zation"),
    "SQL": b"Authorization: Bearer tmr_' OR 1=1 --\r\n",
}


@pytest.mark.parametrize("header", INVALID_KEYS.values(), ids=INVALID_KEYS)
def test_invalid_keys_are_401(served: Served, header: bytes) -> None:
    """Without a valid key, every route except health is a 401."""
    for method, path in KEY_ROUTES:
        body = BODIES.get((method, path), b"")
        for kind in (JSON, b"Content-Type: image/png\r\n"):
            data = message(method, path, HOST, header, kind, body=body)
            assert unauthenticated(ask(served.url, data)), (method, path)


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER  "])
def test_valid_keys_open_every_route(served: Served, scheme: bytes) -> None:
    """A key with full access opens every route; the scheme may be in any case."""
    header = b"Authorization: %s %s\r\n" % (scheme, TOKEN)
    for method, path in SERVICE_ROUTES:
        body = BODIES.get((method, path), b"")
        answer = ask(served.url, message(method, path, HOST, header, JSON, body=body))
        assert answer.status in (200, 201, 404), (method, path)


def test_the_last_of_two_headers_counts(served: Served) -> None:
    """With two Authorization headers, the request is made with the key of the last one."""
    at = create(served.url, FULL)
    assert ask(served.url, message("GET", at, HOST, OTHER, FULL)).status == 200
    assert ask(served.url, message("GET", at, HOST, FULL, OTHER)).status == 404


def test_read_keys_change_nothing(served: Served) -> None:
    """A read-only key can read its tenant's timers, and change nothing."""
    at = create(served.url, FULL)
    assert ask(served.url, message("GET", at, HOST, READ)).status == 200
    assert ask(served.url, message("GET", "/timers", HOST, READ)).status == 200
    for method, path in KEY_ROUTES:
        if method != "GET":
            body = BODIES.get((method, path), b"")
            data = message(method, path.replace("/x", at[7:]), HOST, READ, JSON, body=body)
            assert ask(served.url, data).detail(403) == "This API key is read-only."
    shown = json.loads(ask(served.url, message("GET", at, HOST, READ)).body)
    assert shown["status"] == "scheduled"


@pytest.mark.parametrize("key", [FULL, READ, OTHER, UNKNOWN, b""])
@pytest.mark.parametrize("path", [path for method, path in KEY_ROUTES if method == "GET"])
def test_head_needs_the_key_of_get(served: Served, path: str, key: bytes) -> None:
    """HEAD is allowed to the keys that allow GET."""
    get, head = (
        ask(served.url, message(method, path, HOST, key), method) for method in ("GET", "HEAD")
    )
    assert head.status == get.status
    assert head.headers["content-length"] == get.headers["content-length"]


def test_timers_of_other_tenants_are_404(served: Served) -> None:
    """Another tenant can't read, list or change a timer."""
    at = create(served.url, FULL)
    for method, path in KEY_ROUTES:
        if path.startswith("/timers/x"):
            body = BODIES.get((method, path), b"")
            data = message(method, path.replace("/timers/x", at), HOST, OTHER, JSON, body=body)
            assert ask(served.url, data).detail(404) == "There is no timer with this id."
    listed = json.loads(ask(served.url, message("GET", "/timers", HOST, OTHER)).body)
    assert at.rpartition("/")[2] not in [timer["id"] for timer in listed["timers"]]
    shown = json.loads(ask(served.url, message("GET", at, HOST, FULL)).body)
    assert shown["status"] == "scheduled"


def test_a_wrong_key_is_told_from_no_key(served: Served) -> None:
    """The error says whether the request has a key at all."""
    without, wrong = (ask(served.url, message("GET", "/timers", HOST, it)) for it in (b"", UNKNOWN))
    assert "no valid API key" not in without.detail(401)
    assert "no valid API key" in wrong.detail(401)


def test_timers_without_a_key_belong_to_the_default_tenant(served: Served) -> None:
    """A timer made without a key is visible only to keys of the default tenant."""
    header, key = minted(5, DEFAULT_TENANT)
    served.store.keys.add(key)
    later = START + timedelta(days=365 * 50)
    served.store.add(new_timer("old", DEFAULT_TENANT, Webhook(url="http://x.test"), later, later))
    data = [message("GET", "/timers/old", HOST, shown) for shown in (header, FULL)]
    assert [ask(served.url, it).status for it in data] == [200, 404]


def test_views_require_a_key_themselves(served: Served) -> None:
    """Even without the authorizer, views reject requests when anonymous access is off."""
    with serving(Application(app)) as (_, url):
        for method, path in KEY_ROUTES:
            body = BODIES.get((method, path), b"")
            answer = ask(url, message(method, path, HOST, JSON, FULL, body=body))
            assert answer.detail(401) == "Send an API key: `Authorization: Bearer tmr_…`."


def test_new_and_revoked_keys_count_at_once(served: Served) -> None:
    """A new key works at once and a revoked one stops at once, even on an open connection."""
    header, key = minted(6)
    data = message("GET", "/timers/x", HOST, header)
    with Connection(served.url) as client:
        client.send(data)
        assert unauthenticated(client.receive())
        served.store.keys.add(key)
        client.send(data)
        assert client.receive().detail(404)
        assert served.store.keys.remove(key.id)
        client.send(data)
        assert unauthenticated(client.receive())


@pytest.mark.parametrize("header", [b"", UNKNOWN, READ, b"Authorization: \xff\r\n"])
def test_health_needs_no_key(served: Served, header: bytes) -> None:
    """Health needs no key, and ignores an invalid one."""
    assert ask(served.url, message("GET", "/health", HOST, header)).status == 200


@pytest.mark.parametrize("host", [host for host in OTHER_HOSTS if len(host) < 100])
def test_with_keys_any_host_is_answered(served: Served, host: bytes) -> None:
    """A server with keys answers to any host name, and needs a key under each."""
    line = b"Host: %s\r\n" % host
    assert ask(served.url, message("GET", "/timers/x", line, FULL)).status == 404
    assert unauthenticated(ask(served.url, message("GET", "/timers/x", line)))
    assert ask(served.url, message("GET", "http://evil.example/health", line)).status == 200


@pytest.mark.parametrize("origin", [b"http://localhost:3000", b"https://evil.example", b"null"])
def test_with_keys_any_origin_is_accepted_without_cors(served: Served, origin: bytes) -> None:
    """Any Origin is accepted with a key, but no response has CORS headers."""
    asked = [b"Origin: %s\r\n" % origin, b"Access-Control-Request-Headers: authorization\r\n"]
    for method in METHODS:
        for path in sorted({path for _, path in ROUTES} | {"/nothing"}):
            for key in (FULL, b""):
                data = message(method, path, HOST, JSON, key, *asked)
                answer = ask(served.url, data, method)
                assert answer.status in (200, 400, 401, 404, 405)
                assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_receiver_answers_to_local_hosts_only(served: Served) -> None:
    """The receiver needs no key, so it always refuses other hosts and other origins."""
    path = "/_receiver/x"
    assert ask(served.url, message("POST", path, HOST)).status == 204
    assert ask(served.url, message("POST", path, b"Host: timers.example\r\n", FULL)).detail(421)
    page = b"Origin: https://evil.example\r\n"
    assert ask(served.url, message("POST", path, HOST, FULL, page)).detail(403)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Served]:
    """The standalone server on an address that does not count as local."""
    settings = Settings("127.0.0.2", 0, tmp_path / "timers.db", Targets(), keys=True)
    with with_keys(settings) as server:
        yield server


def test_no_receiver_on_other_addresses(
    elsewhere: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """If other machines can reach the server, it has no receiver."""
    caplog.set_level(logging.INFO, "standalone.receiver")
    for key in (b"", FULL):
        for path in ("/_receiver/", "/_receiver/x"):
            data = message("POST", path, b"Host: 127.0.0.1\r\n", key)
            assert ask(elsewhere.url, data).detail(404)
    assert not [record for record in caplog.records if record.name == "standalone.receiver"]


def test_needs_keys_on_other_addresses(elsewhere: Served) -> None:
    """If other machines can reach the server, it needs keys, and loopback is no target."""
    assert unauthenticated(ask(elsewhere.url, message("GET", "/timers/x", HOST)))
    data = message("POST", "/timers", HOST, JSON, FULL, body=TIMER)
    assert "localhost" in ask(elsewhere.url, data).detail(400)


class OnFakes(NamedTuple):
    """The application's parts on fakes."""

    api: Api
    keys: FakeApiKeys
    clock: Nanoseconds


@pytest.fixture
def fakes(api_on_fakes: Api) -> OnFakes:
    kept = FakeApiKeys()
    for key in (FULL_KEY, READ_KEY, OTHER_KEY):
        kept.add(key)
    return OnFakes(api_on_fakes, kept, Nanoseconds())


def limited(fakes: OnFakes, rate: int, *, keyed: bool = True) -> Application:
    """Return the application with this rate, with AUTH=keys or AUTH=none."""
    if not keyed:
        runtime.install(fakes.api.service.dependencies(anonymous=DEFAULT_TENANT))
    limit = RateLimiter(rate, fakes.clock)
    receiver = Receiver(Clock(), lambda _: [])
    return Application(app, keys=fakes.keys if keyed else None, limit=limit, receiver=receiver)


def statuses(url: str, count: int, *headers: bytes) -> list[int]:
    """Return the statuses of `count` equal requests."""
    data = message("GET", "/timers/x", HOST, *headers)
    return [ask(url, data).status for _ in range(count)]


def test_requests_over_the_rate_are_429(fakes: OnFakes) -> None:
    """A key over its rate gets a 429 with Retry-After; the request has no effect."""
    with serving(limited(fakes, 2)) as (_, url):
        assert statuses(url, 5, FULL) == [404] * 4 + [429]
        answer = ask(url, message("POST", "/timers", HOST, JSON, FULL, body=TIMER))
        assert answer.detail(429)
        assert answer.headers["retry-after"] == "1"
        assert not fakes.api.store.timers
        fakes.clock.forward(int(answer.headers["retry-after"]))
        create(url, FULL)
        assert statuses(url, 2, FULL) == [404, 429]


def test_each_key_has_its_own_bucket(fakes: OnFakes) -> None:
    """Keys do not share a bucket, even within one tenant."""
    with serving(limited(fakes, 1)) as (_, url):
        for key in (FULL, READ, OTHER):
            assert statuses(url, 3, key) == [404, 404, 429]


def test_some_requests_take_no_token(fakes: OnFakes) -> None:
    """Health, the receiver, 404, 405 and 401 take no token."""
    with serving(limited(fakes, 1)) as (_, url):
        for _ in range(3):
            assert ask(url, HEALTH).status == 200
            assert ask(url, message("GET", "/nothing", HOST, FULL)).status == 404
            assert ask(url, message("PUT", "/timers", HOST, FULL)).status == 405
            assert ask(url, message("POST", "/_receiver/x", HOST, FULL)).status == 204
        assert statuses(url, 5) == statuses(url, 5, UNKNOWN) == [401] * 5
        assert statuses(url, 3, FULL) == [404, 404, 429]
        assert ask(url, message("GET", "/health", HOST, FULL)).status == 200


LIST = message("GET", "/_receiver", HOST, FULL)


@pytest.mark.parametrize("keyed", [True, False])
def test_the_list_of_the_receiver_takes_a_token(fakes: OnFakes, keyed: bool) -> None:
    """Reading the receiver's list takes a token from the same bucket as other requests."""
    with serving(limited(fakes, 1, keyed=keyed)) as (_, url):
        assert [ask(url, LIST).status for _ in range(2)] == [200, 200]
        assert ask(url, LIST).headers["retry-after"] == "1"
        assert statuses(url, 1, FULL) == [429]
        fakes.clock.forward(1)
        assert statuses(url, 1, FULL) == [404]
        assert ask(url, LIST).detail(429)


def test_without_keys_all_requests_share_a_bucket(fakes: OnFakes) -> None:
    """Without keys all requests share one bucket, with any key or none."""
    with serving(limited(fakes, 1, keyed=False)) as (_, url):
        assert statuses(url, 1, FULL) + statuses(url, 2) == [404, 404, 429]
        assert statuses(url, 1, OTHER) == [429]
        fakes.clock.forward(1)
        assert statuses(url, 2) == [404, 429]


def test_rate_0_is_unlimited(tmp_path: Path) -> None:
    """With RATE=0 no request is refused."""
    settings = Settings("127.0.0.1", 0, tmp_path / "timers.db", Targets(), rate=0)
    with with_keys(settings) as served, Connection(served.url) as client:
        for _ in range(1500):
            client.send(message("GET", "/timers/x", HOST))
            assert client.receive().status == 404


def test_uses_the_configured_rate(tmp_path: Path) -> None:
    """RATE decides how many requests pass at once: two seconds' worth."""
    settings = Settings("127.0.0.1", 0, tmp_path / "timers.db", Targets(), keys=True, rate=1)
    with with_keys(settings) as served:
        found = statuses(served.url, 6, FULL)
    assert found[:2] == [404, 404]
    assert 429 in found


class UnavailableKeys(FakeApiKeys):
    """Keys in a store that is down."""

    def get(self, key_id: str) -> ApiKey | None:
        raise Unavailable("The database can't do this now: disk I/O error.")


def test_unavailable_keys_are_503(fakes: OnFakes, caplog: pytest.LogCaptureFixture) -> None:
    """While keys can't be read, requests get a 503 with Retry-After."""
    with serving(Application(app, keys=UnavailableKeys())) as (_, url):
        answer = ask(url, message("GET", "/timers/x", HOST, FULL))
        assert "disk I/O error" in answer.detail(503)
        assert answer.headers["retry-after"] == "1"
        assert unauthenticated(ask(url, message("GET", "/timers/x", HOST)))
        assert ask(url, HEALTH).status == 200
    assert [record.getMessage() for record in caplog.records] == ["request not served"]


def test_key_is_read_once(fakes: OnFakes) -> None:
    """A request with a key reads the key once; a request without one reads none."""
    looks: list[str] = []

    class Counting(FakeApiKeys):
        def get(self, key_id: str) -> ApiKey | None:
            looks.append(key_id)
            return fakes.keys.get(key_id)

    with serving(Application(app, keys=Counting())) as (_, url):
        create(url, FULL)
        assert looks == [FULL_KEY.id]
        ask(url, HEALTH)
        ask(url, message("GET", "/timers/x", HOST))
        ask(url, message("GET", "/nothing", HOST, FULL))
        assert looks == [FULL_KEY.id]


ANSWERS = {
    200: HEALTH,
    201: message("POST", "/timers", HOST, JSON, FULL, body=TIMER),
    204: message("POST", "/_receiver/x", HOST),
    400: message("GET", "/health", HOST, b"no colon\r\n"),
    401: message("GET", "/timers", HOST),
    403: message("POST", "/timers", HOST, JSON, READ, body=TIMER),
    404: message("GET", "/nothing", HOST),
    405: message("PUT", "/timers", HOST),
    413: b"POST /timers HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999\r\n\r\n",
    415: message("POST", "/timers", HOST, FULL, b"Content-Type: image/png\r\n", body=TIMER),
    421: message("POST", "/_receiver/x", b"Host: evil.example\r\n"),
    429: message("POST", "/timers", HOST, JSON, OTHER, body=TIMER),
    431: message("GET", "/" + "x" * MAX_HEADER_BYTES, HOST),
    500: message("DELETE", "/timers/broken", HOST, FULL),
    501: b"POST /timers HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    503: message("GET", "/timers/down", HOST, FULL),
}


def test_every_response_has_its_own_id(fakes: OnFakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every response has a unique id: from a view, the authorizer, the router or the parser."""

    def get(tenant: str, timer_id: str) -> Timer | None:
        raise Unavailable("Down.") if timer_id == "down" else KeyError("broken")

    monkeypatch.setattr(fakes.api.store, "get", get)
    ids = []
    with serving(limited(fakes, 10)) as (_, url):
        statuses(url, 20, OTHER)  # empties its bucket
        for status, data in ANSWERS.items():
            for _ in range(3):
                answer = ask(url, data, data.split()[0].decode())
                assert answer.status == status
                ids.append(answer.headers["x-request-id"])
    assert len(set(ids)) == 3 * len(ANSWERS)


def test_concurrent_requests_have_their_own_ids(
    fakes: OnFakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests in progress at the same time get different ids."""
    together = Meeting(8)
    get = fakes.api.store.get

    def meet(*asked: Any) -> Timer | None:
        together.wait()
        return get(*asked)

    monkeypatch.setattr(fakes.api.store, "get", meet)
    data = message("GET", "/timers/x", HOST, FULL)
    with (
        serving(Application(app, keys=fakes.keys)) as (_, url),
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda _: ask(url, data), range(8)))
    assert len({answer.headers["x-request-id"] for answer in answers}) == 8


def test_concurrent_tenants_see_their_own_timers(fakes: OnFakes) -> None:
    """Concurrent requests of different tenants each see only their own timers."""
    with serving(Application(app, keys=fakes.keys)) as (_, url), ExitStack() as stack:
        paths = [create(url, key) for key in (FULL, OTHER)]
        pool = stack.enter_context(ThreadPoolExecutor(8))
        cases = [(key, path) for key in (FULL, OTHER) for path in paths] * 50
        found = list(
            pool.map(lambda it: ask(url, message("GET", it[1], HOST, it[0])).status, cases)
        )
    assert found == [200, 404, 404, 200] * 50
