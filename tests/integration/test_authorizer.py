"""Who may come in, and how often: the standalone server with keys and with a rate."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app import app
from chalicelib.aws import bootstrap
from chalicelib.aws.bootstrap import Dependencies
from chalicelib.core import api_keys
from chalicelib.core.api_keys import KEY_ENTROPY, ApiKey, Role
from chalicelib.core.errors import Unavailable
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import DEFAULT_TENANT, Timer, Webhook, new_timer
from standalone.bootstrap import Settings
from standalone.rate_limit import RateLimiter
from standalone.receiver import Receiver
from standalone.server import MAX_HEADER_BYTES, Wsgi, application
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.integration.test_server import (
    HEALTH,
    HOST,
    JSON,
    METHODS,
    OTHER_HOSTS,
    TIMER,
    Answer,
    Connection,
    Meeting,
    ask,
    message,
    running,
    serving,
)
from tests.support.fakes import START, Clock, FakeApiKeys
from tests.support.routes import BODIES, ROUTES, SERVED, WANTING, Api
from tests.unit.test_rate_limit import Nanoseconds

"""The routes that want a key."""

WANTED = "Send an API key that counts: `Authorization: Bearer tmr_…`."


def minted(number: int, tenant: str = "acme", role: Role = Role.FULL) -> tuple[bytes, ApiKey]:
    """Return a key as the header that shows it, and as it is kept."""
    text, key = api_keys.mint(tenant, role, START, bytes([number]) * KEY_ENTROPY)
    return f"Authorization: Bearer {text}\r\n".encode(), key


FULL, FULL_KEY = minted(1)
READ, READ_KEY = minted(2, role=Role.READ)
OTHER, OTHER_KEY = minted(3, "globex")
UNKNOWN, UNKNOWN_KEY = minted(4)


class Served(NamedTuple):
    """A server and what is behind it."""

    url: str
    store: SqliteTimerStore


@contextmanager
def with_keys(settings: Settings) -> Iterator[Served]:
    """Serve as `python -m standalone` does, with three keys."""
    store = SqliteTimerStore(settings.database)
    for key in (FULL_KEY, READ_KEY, OTHER_KEY):
        store.keys.add(key)
    with running(settings, store) as url:
        yield Served(url, store)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The standalone server with AUTH=keys, once for the whole file."""
    path = tmp_path_factory.mktemp("door") / "timers.db"
    targets = Targets.parse(LOOPBACK_TARGETS)
    with with_keys(Settings("127.0.0.1", 0, path, targets, keys=True)) as server:
        yield server


def create(url: str, key: bytes) -> str:
    """Return the path of a new timer."""
    answer = ask(url, message("POST", "/timers", HOST, JSON, key, body=TIMER))
    assert answer.status == 201, answer
    return answer.headers["location"]


def unauthenticated(answer: Answer) -> bool:
    return answer.detail(401) == WANTED and answer.headers["www-authenticate"] == "Bearer"


TOKEN = FULL.split()[2]

NO_KEYS = {
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
    "two headers": FULL + OTHER,
    "two in one": FULL[:-2] + b", Bearer %s\r\n" % OTHER.split()[2],
    "other header": b"X-Api-Key: %s\r\n" % TOKEN,
    "header with an underscore": FULL.replace(b"Authorization", b"Authori_zation"),
    "SQL": b"Authorization: Bearer tmr_' OR 1=1 --\r\n",
}


@pytest.mark.parametrize("header", NO_KEYS.values(), ids=NO_KEYS)
def test_no_key_that_counts(served: Served, header: bytes) -> None:
    """Without a key that is known no route but health does anything, whatever it is sent."""
    for method, path in WANTING:
        body = BODIES.get((method, path), b"")
        for kind in (JSON, b"Content-Type: image/png\r\n"):
            data = message(method, path, HOST, header, kind, body=body)
            assert unauthenticated(ask(served.url, data)), (method, path)


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER  "])
def test_key_that_counts(served: Served, scheme: bytes) -> None:
    """A key opens every route, as far as its role goes; the scheme may be written in any case."""
    header = b"Authorization: %s %s\r\n" % (scheme, TOKEN)
    for method, path in SERVED:
        body = BODIES.get((method, path), b"")
        answer = ask(served.url, message(method, path, HOST, header, JSON, body=body))
        assert answer.status in (200, 201, 404), (method, path)


def test_read_key(served: Served) -> None:
    """A key to read reads what its tenant has, and changes nothing."""
    at = create(served.url, FULL)
    assert ask(served.url, message("GET", at, HOST, READ)).status == 200
    assert ask(served.url, message("GET", "/timers", HOST, READ)).status == 200
    for method, path in WANTING:
        if method != "GET":
            body = BODIES.get((method, path), b"")
            data = message(method, path.replace("/x", at[7:]), HOST, READ, JSON, body=body)
            assert ask(served.url, data).detail(403) == "This key may only read."
    shown = json.loads(ask(served.url, message("GET", at, HOST, READ)).body)
    assert shown["status"] == "scheduled"


def test_other_tenants_timer(served: Served) -> None:
    """Of another tenant's timer nothing is to be found, nor to be changed."""
    at = create(served.url, FULL)
    for method, path in WANTING:
        if path.startswith("/timers/x"):
            body = BODIES.get((method, path), b"")
            data = message(method, path.replace("/timers/x", at), HOST, OTHER, JSON, body=body)
            assert ask(served.url, data).detail(404) == "There is no timer with this id."
    listed = json.loads(ask(served.url, message("GET", "/timers", HOST, OTHER)).body)
    assert at.rpartition("/")[2] not in [timer["id"] for timer in listed["timers"]]
    shown = json.loads(ask(served.url, message("GET", at, HOST, FULL)).body)
    assert shown["status"] == "scheduled"


def test_timers_from_before_there_were_keys(served: Served) -> None:
    """What was set without a key belongs to the default tenant, whose key alone finds it."""
    header, key = minted(5, DEFAULT_TENANT)
    served.store.keys.add(key)
    later = START + timedelta(days=365 * 50)
    served.store.add(new_timer("old", DEFAULT_TENANT, Webhook(url="http://x.test"), later, later))
    data = [message("GET", "/timers/old", HOST, shown) for shown in (header, FULL)]
    assert [ask(served.url, it).status for it in data] == [200, 404]


def test_views_are_told_to_want_keys(served: Served) -> None:
    """Should the door ever stand open, no view takes a request without a key for anybody's."""
    with serving(application(app)) as (_, url):
        for method, path in WANTING:
            body = BODIES.get((method, path), b"")
            answer = ask(url, message(method, path, HOST, JSON, FULL, body=body))
            assert answer.detail(401) == "Send an API key: `Authorization: Bearer tmr_…`."


def test_revoked_while_with_keys(served: Served) -> None:
    """A key that is taken back opens nothing from the next request on, on the same connection
    even; one that is made meanwhile opens at once."""
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
def test_health_is_public(served: Served, header: bytes) -> None:
    """Who asks for the health needs no key, and a wrong one does not matter."""
    assert ask(served.url, message("GET", "/health", HOST, header)).status == 200


@pytest.mark.parametrize("host", [host for host in OTHER_HOSTS if len(host) < 100])
def test_any_host(served: Served, host: bytes) -> None:
    """A server with keys may have any name, and still wants a key under it."""
    line = b"Host: %s\r\n" % host
    assert ask(served.url, message("GET", "/timers/x", line, FULL)).status == 404
    assert unauthenticated(ask(served.url, message("GET", "/timers/x", line)))
    assert ask(served.url, message("GET", "http://evil.example/health", line)).status == 200


@pytest.mark.parametrize("origin", [b"http://localhost:3000", b"https://evil.example", b"null"])
def test_any_origin_and_no_cors(served: Served, origin: bytes) -> None:
    """An Origin keeps nobody with a key out, and no answer lets a web page read it."""
    asked = [b"Origin: %s\r\n" % origin, b"Access-Control-Request-Headers: authorization\r\n"]
    for method in METHODS:
        for path in sorted({path for _, path in ROUTES} | {"/nothing"}):
            for key in (FULL, b""):
                data = message(method, path, HOST, JSON, key, *asked)
                answer = ask(served.url, data, method)
                assert answer.status in (200, 400, 401, 404, 405)
                assert not [name for name in answer.headers if name.startswith("access-control")]


def test_receiver_is_for_this_machine(served: Served) -> None:
    """The receiver takes no key, so with keys, too, it answers this machine's own names alone: not
    web pages, and nobody through a proxy."""
    path = "/_receiver/x"
    assert ask(served.url, message("POST", path, HOST)).status == 204
    assert ask(served.url, message("POST", path, b"Host: timers.example\r\n", FULL)).detail(421)
    page = b"Origin: https://evil.example\r\n"
    assert ask(served.url, message("POST", path, HOST, FULL, page)).detail(403)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Served]:
    """The standalone server on an address that does not count as this machine alone."""
    settings = Settings("127.0.0.2", 0, tmp_path / "timers.db", Targets(), keys=True)
    with with_keys(settings) as server:
        yield server


def test_no_receiver_elsewhere(elsewhere: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Where others can reach the server, nobody can write into its terminal."""
    caplog.set_level(logging.INFO, "standalone.receiver")
    for key in (b"", FULL):
        for path in ("/_receiver/", "/_receiver/x"):
            data = message("POST", path, b"Host: 127.0.0.1\r\n", key)
            assert ask(elsewhere.url, data).detail(404) == "There is nothing at this path."
    assert not [record for record in caplog.records if record.name == "standalone.receiver"]


def test_keys_elsewhere(elsewhere: Served) -> None:
    """Where others can reach the server, it serves those who have a key, and what listens on this
    machine is no target."""
    assert unauthenticated(ask(elsewhere.url, message("GET", "/timers/x", HOST)))
    data = message("POST", "/timers", HOST, JSON, FULL, body=TIMER)
    assert "localhost" in ask(elsewhere.url, data).detail(400)


class OnFakes(NamedTuple):
    """The application on fakes."""

    api: Api
    keys: FakeApiKeys
    clock: Nanoseconds


@pytest.fixture
def fakes(api_on_fakes: Api) -> OnFakes:
    kept = FakeApiKeys()
    for key in (FULL_KEY, READ_KEY, OTHER_KEY):
        kept.add(key)
    return OnFakes(api_on_fakes, kept, Nanoseconds())


def limited(fakes: OnFakes, rate: int, *, keyed: bool = True) -> Wsgi:
    """Return the application with a rate; without keys it is as AUTH=none has it."""
    if not keyed:
        service, targets = fakes.api.service, Targets.parse(LOOPBACK_TARGETS)
        bootstrap.install(Dependencies(service=service, targets=targets, anonymous=DEFAULT_TENANT))
    limit = RateLimiter(rate, fakes.clock)
    receiver = Receiver(Clock(), lambda _: [])
    return application(app, keys=fakes.keys if keyed else None, limit=limit, receiver=receiver)


def statuses(url: str, count: int, *headers: bytes) -> list[int]:
    """Return what so many requests of a kind are answered with."""
    data = message("GET", "/timers/x", HOST, *headers)
    return [ask(url, data).status for _ in range(count)]


def test_too_many_requests(fakes: OnFakes) -> None:
    """Over its rate a key is told when to come again, nothing is done, and then it is served."""
    with serving(limited(fakes, 2)) as (_, url):
        assert statuses(url, 5, FULL) == [404] * 4 + [429]
        answer = ask(url, message("POST", "/timers", HOST, JSON, FULL, body=TIMER))
        assert answer.detail(429) == "There are too many requests a second."
        assert answer.headers["retry-after"] == "1"
        assert not fakes.api.store.timers
        fakes.clock.forward(int(answer.headers["retry-after"]))
        create(url, FULL)
        assert statuses(url, 2, FULL) == [404, 429]


def test_keys_share_no_bucket(fakes: OnFakes) -> None:
    """What one key has used up, another one still has, of the same tenant or not."""
    with serving(limited(fakes, 1)) as (_, url):
        for key in (FULL, READ, OTHER):
            assert statuses(url, 3, key) == [404, 404, 429]


def test_what_is_not_limited(fakes: OnFakes) -> None:
    """Health, and what reaches no view, cost nothing; nor do requests without a known key, which
    get no bucket that somebody would have to remember."""
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
def test_the_receivers_list_is_limited(fakes: OnFakes, keyed: bool) -> None:
    """To look at what arrived costs a token of the same bucket as all else."""
    with serving(limited(fakes, 1, keyed=keyed)) as (_, url):
        assert [ask(url, LIST).status for _ in range(2)] == [200, 200]
        assert ask(url, LIST).headers["retry-after"] == "1"
        assert statuses(url, 1, FULL) == [429]
        fakes.clock.forward(1)
        assert statuses(url, 1, FULL) == [404]
        assert ask(url, LIST).detail(429) == "There are too many requests a second."


def test_without_keys_all_share_one_bucket(fakes: OnFakes) -> None:
    """Without keys all requests are of one nobody, whatever they show."""
    with serving(limited(fakes, 1, keyed=False)) as (_, url):
        assert statuses(url, 1, FULL) + statuses(url, 2) == [404, 404, 429]
        assert statuses(url, 1, OTHER) == [429]
        fakes.clock.forward(1)
        assert statuses(url, 2) == [404, 429]


def test_no_rate(tmp_path: Path) -> None:
    """Without a rate nobody is turned away."""
    settings = Settings("127.0.0.1", 0, tmp_path / "timers.db", Targets(), rate=0)
    with with_keys(settings) as served, Connection(served.url) as client:
        for _ in range(1500):
            client.send(message("GET", "/timers/x", HOST))
            assert client.receive().status == 404


def test_rate_of_the_settings(tmp_path: Path) -> None:
    """The rate that is set is the one that counts: twice as many pass at once, and no more."""
    settings = Settings("127.0.0.1", 0, tmp_path / "timers.db", Targets(), keys=True, rate=1)
    with with_keys(settings) as served:
        found = statuses(served.url, 6, FULL)
    assert found[:2] == [404, 404]
    assert 429 in found


class NoKeys(FakeApiKeys):
    """Keys that do not answer."""

    def get(self, key_id: str) -> ApiKey | None:
        raise Unavailable("The database can't do this now: disk I/O error.")


def test_keys_that_do_not_answer(fakes: OnFakes, caplog: pytest.LogCaptureFixture) -> None:
    """While keys can't be looked up, nobody comes in, and everybody is told to try again."""
    with serving(application(app, keys=NoKeys())) as (_, url):
        answer = ask(url, message("GET", "/timers/x", HOST, FULL))
        assert "disk I/O error" in answer.detail(503)
        assert answer.headers["retry-after"] == "1"
        assert unauthenticated(ask(url, message("GET", "/timers/x", HOST)))
        assert ask(url, HEALTH).status == 200
    assert [record.getMessage() for record in caplog.records] == ["request not served"]


def test_key_is_read_once(fakes: OnFakes) -> None:
    """A request with a key costs one look at it, one without costs none."""
    looks: list[str] = []

    class Counting(FakeApiKeys):
        def get(self, key_id: str) -> ApiKey | None:
            looks.append(key_id)
            return fakes.keys.get(key_id)

    with serving(application(app, keys=Counting())) as (_, url):
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
    400: b"garbage\r\n\r\n",
    401: message("GET", "/timers", HOST),
    403: message("POST", "/timers", HOST, JSON, READ, body=TIMER),
    404: message("GET", "/nothing", HOST),
    405: message("HEAD", "/timers", HOST),
    413: b"POST /timers HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999\r\n\r\n",
    415: message("POST", "/timers", HOST, FULL, b"Content-Type: image/png\r\n", body=TIMER),
    421: message("POST", "/_receiver/x", b"Host: evil.example\r\n"),
    429: message("POST", "/timers", HOST, JSON, OTHER, body=TIMER),
    431: message("GET", "/" + "x" * MAX_HEADER_BYTES, HOST),
    500: message("DELETE", "/timers/broken", HOST, FULL),
    501: b"POST /timers HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    503: message("GET", "/timers/down", HOST, FULL),
}


def test_every_answer_has_an_id_of_its_own(fakes: OnFakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever answers, view, door, router or waitress, the answer has one id that no other has."""

    def get(tenant: str, timer_id: str) -> Timer | None:
        raise Unavailable("Down.") if timer_id == "down" else KeyError("broken")

    monkeypatch.setattr(fakes.api.store, "get", get)
    ids = []
    with serving(limited(fakes, 10)) as (_, url):
        statuses(url, 20, OTHER)  # its bucket is empty now
        for status, data in ANSWERS.items():
            for _ in range(3):
                answer = ask(url, data, data.split()[0].decode())
                assert answer.status == status
                ids.append(answer.headers["x-request-id"])
    assert len(set(ids)) == 3 * len(ANSWERS)


def test_requests_side_by_side_have_ids_of_their_own(
    fakes: OnFakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are worked on at the same moment each get their own id."""
    together = Meeting(8)
    get = fakes.api.store.get

    def meet(*asked: Any) -> Timer | None:
        together.wait()
        return get(*asked)

    monkeypatch.setattr(fakes.api.store, "get", meet)
    data = message("GET", "/timers/x", HOST, FULL)
    with (
        serving(application(app, keys=fakes.keys)) as (_, url),
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda _: ask(url, data), range(8)))
    assert len({answer.headers["x-request-id"] for answer in answers}) == 8


def test_tenants_side_by_side(fakes: OnFakes) -> None:
    """Requests of several tenants at the same moment each see their own timers only."""
    with serving(application(app, keys=fakes.keys)) as (_, url), ExitStack() as stack:
        paths = [create(url, key) for key in (FULL, OTHER)]
        pool = stack.enter_context(ThreadPoolExecutor(8))
        cases = [(key, path) for key in (FULL, OTHER) for path in paths] * 50
        found = list(
            pool.map(lambda it: ask(url, message("GET", it[1], HOST, it[0])).status, cases)
        )
    assert found == [200, 404, 404, 200] * 50
