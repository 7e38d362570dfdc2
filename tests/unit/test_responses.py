"""Requests and responses of the routes, on fakes, called as API Gateway calls them."""

import json
import logging
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urljoin

import pytest
from chalice.app import Request, Response
from chalice.local import LambdaContext
from chalice.test import HTTPResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import app
from chalicelib import runtime
from chalicelib.core import errors
from chalicelib.core.changes import MAX_WEBHOOK_BYTES
from chalicelib.core.errors import InvalidRequest, ScheduleRefused, TimersError, Unavailable
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    MAX_DELAY,
    RETENTION,
    Outcome,
    Status,
    Timer,
    TimerSpec,
    Webhook,
    new_timer,
)
from chalicelib.core.urls import MAX_URL_LENGTH
from chalicelib.http import requests, responses, static
from chalicelib.service.commands import Commands, Created
from standalone.authorizer import ApiKeyAuthorizer
from standalone.gateway import Gateway
from standalone.server import HttpRequest
from tests.support.fakes import START
from tests.support.routes import (
    BODIES,
    BULK_ROUTES,
    JSON,
    ROUTES,
    SERVICE_ROUTES,
    URL,
    Api,
    problem,
    refused,
    timer_json,
)

YEARS = int(MAX_DELAY.total_seconds())
TEXT = "text/plain; charset=utf-8"
CONTEXT = LambdaContext("timers", 512)


@pytest.mark.parametrize(
    ("when", "seconds"),
    [
        ('"hours": 1', 3600),
        ('"minutes": 2', 120),
        ('"seconds": 3', 3),
        ('"hours": 1, "minutes": 2, "seconds": 3', 3723),
        ('"hours": 0, "minutes": 0, "seconds": 0', 0),
        ('"seconds": 0', 0),
        ('"seconds": -0', 0),
        ('"minutes": 90', 5400),
        ('"seconds": 100000', 100000),
        (f'"seconds": {YEARS}', YEARS),
        (f'"hours": {YEARS // 3600}', YEARS),
        (f'"hours": {YEARS // 3600 - 1}, "minutes": 59, "seconds": 60', YEARS),
        ('"seconds": 1.0', 1),
        ('"seconds": 1e3', 1000),
        ('"seconds": -0.0', 0),
        ('"hours": 1.0, "minutes": 2e0, "seconds": 30E-1', 3723),
    ],
)
def test_delay_adds_up(api_on_fakes: Api, when: str, seconds: int) -> None:
    """Hours, minutes and seconds add up; a whole number may have a point or an exponent."""
    answer = api_on_fakes.post(timer_json(when))
    assert answer.status_code == 201
    timer = api_on_fakes.store.timers[answer.json_body["id"]]
    assert timer.deadline - timer.created_at == timedelta(seconds=seconds)


DIGITS = "9" * 5000

BAD_BODIES = {
    "empty": (b"", "", "is empty"),
    "blank": (b" \n", "", "is empty"),
    "null": (b"null", "", "The body"),
    "boolean": (b"true", "", "The body"),
    "number": (b"1", "", "The body"),
    "string": (b'"x"', "", "The body"),
    "array": (b"[]", "", "The body"),
    "array of one": (b"[" + timer_json('"seconds": 1') + b"]", "", "The body"),
    "cut off": (timer_json('"seconds": 1')[:-1], "", "too early"),
    "two documents": (timer_json('"seconds": 1') * 2, "", "trailing characters"),
    "trailing comma": (timer_json('"seconds": 1,'), "", "trailing comma"),
    "single quotes": (b"{'seconds': 1}", "", "not valid JSON"),
    "comment": (timer_json('"seconds": 1 /* soon */'), "", "not valid JSON"),
    "UTF-16": (timer_json('"seconds": 1').decode().encode("utf-16"), "", "UTF-8"),
    "invalid UTF-8": (b'{"seconds": 1, "url": "http://localhost/\xff"}', "", "UTF-8"),
    "invalid UTF-8 in a name": (b'{"\xff": 1}', "", "UTF-8"),
    "surrogate as bytes": (b'{"url": "\xed\xa0\x80"}', "", "UTF-8"),
    "lone high surrogate": (timer_json('"x": "\\ud800"'), "/x", "`x`"),
    "lone high surrogate in url": (
        b'{"seconds": 1, "url": "http://local\\ud800host"}',
        "",
        "surrogate",
    ),
    "lone low surrogate in url": (b'{"seconds": 1, "url": "http://\\udc00"}', "", "surrogate"),
    "lone surrogate in a name": (b'{"\\ud800": 1}', "", "surrogate"),
    "deep array": (b"[" * 100_000, "", "an array"),
    "deep array in a field": (b'{"url": ' + b"[" * 100_000, "/url", "an array"),
    "deep object in a field": (b'{"url": ' + b'{"a":' * 50_000, "/url", "an object"),
    "deep array in a number": (timer_json('"hours": ' + "[" * 100_000), "/hours", "an array"),
    "deep array in an unknown field": (b'{"x": ' + b"[" * 100_000, "/x", "`x`"),
    "boolean seconds": (timer_json('"seconds": true'), "/seconds", "true"),
    "string minutes": (timer_json('"minutes": "1"'), "/minutes", "Write 1."),
    "null hours": (timer_json('"hours": null'), "/hours", "null"),
    "object seconds": (timer_json('"seconds": {}'), "/seconds", "an object"),
    "float": (timer_json('"seconds": 1.5'), "/seconds", "1.5"),
    "float out of range": (timer_json('"seconds": 1e400'), "/seconds", "1e400"),
    "NaN": (timer_json('"seconds": NaN'), "", "not valid JSON"),
    "Infinity": (timer_json('"seconds": Infinity'), "", "not valid JSON"),
    "minus Infinity": (timer_json('"seconds": -Infinity'), "", "not valid JSON"),
    "negative": (timer_json('"seconds": -1'), "/seconds", "from 0 to"),
    "negative part": (timer_json('"hours": 1, "minutes": -1'), "/minutes", "from 0 to"),
    "negative of 30 digits": (timer_json(f'"seconds": -{DIGITS[:30]}'), "/seconds", "from 0 to"),
    "leading zero": (timer_json('"seconds": 01'), "", "not valid JSON"),
    "hexadecimal": (timer_json('"seconds": 0x1'), "", "not valid JSON"),
    "plus sign": (timer_json('"seconds": +1'), "", "not valid JSON"),
    "19 digits": (timer_json(f'"seconds": {DIGITS[:19]}'), "", "more than 5 years"),
    "20 digits": (timer_json(f'"hours": {DIGITS[:20]}'), "", "more than 5 years"),
    "4,000 digits": (timer_json(f'"hours": {DIGITS[:4000]}'), "", "more than 5 years"),
    "5,000 digits": (timer_json(f'"hours": {DIGITS}'), "/hours", "from 0 to"),
    "a second too far": (timer_json(f'"seconds": {YEARS + 1}'), "", "more than 5 years"),
    "together too far": (timer_json(f'"hours": {YEARS // 3600}, "seconds": 1'), "", "more than 5"),
    "no moment": (
        timer_json("").replace(b", }", b"}"),
        "",
        '`"seconds": 60`',
    ),
    "no url": (b'{"seconds": 1}', "/url", "`url` is missing"),
    "empty object": (b"{}", "/url", "`url` is missing"),
    "unknown field": (timer_json('"second": 1'), "/second", "`seconds`"),
    "upper case": (timer_json('"Seconds": 1'), "/Seconds", "`seconds`"),
    "empty name": (timer_json('"": 1'), "/", "``"),
    "name with ~ and /": (timer_json('"~a/b~1": 1'), "/~0a~1b~01", "`~a/b~1`"),
    "name with a line break": (timer_json('"a\\nb": 1'), "/a\nb", "`a\nb`"),
    "name with dots": (timer_json('"a.b[0]": 1'), "/a.b[0]", "`a.b[0]`"),
    "name beyond ASCII": (timer_json('"sécondes": 1'), "/sécondes", "`sécondes`"),
    "number as url": (b'{"seconds": 1, "url": 1}', "/url", "not 1"),
    "null as url": (b'{"seconds": 1, "url": null}', "/url", "not null"),
}


@pytest.mark.parametrize(("body", "pointer", "fragment"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_invalid_bodies_are_400(
    api_on_fakes: Api, body: bytes, pointer: str, fragment: str
) -> None:
    """An invalid body is a 400 with the reason and a pointer."""
    answer = refused(api_on_fakes.post(body), 400)
    assert answer["pointer"] == pointer
    assert fragment in answer["detail"]
    assert not api_on_fakes.store.timers


@pytest.mark.parametrize("field", ["url", "on_failure"])
@pytest.mark.parametrize(
    ("url", "fragment"),
    [
        ("", "must begin with http"),
        ("localhost:3000/x", "http://localhost:3000/x"),
        ("http://user:secret@localhost/", "user name"),
        ("http://localhost/\r\nX: y", "invisible character"),
        ("http://localhost/{timer_id}", "{id}"),
        ("http://{name}.localhost/", "{id}"),
        ("http://localhost/%zz", "%zz"),
        ("http://localhost/" + "a" * MAX_URL_LENGTH, "longer than 2,048 characters"),
        ("http://10.0.0.1/", "10.0.0.1:80"),
        ("http://169.254.169.254/latest/meta-data", "not allowed"),
    ],
)
def test_rejects_invalid_urls(api_on_fakes: Api, field: str, url: str, fragment: str) -> None:
    """A URL that no webhook may go to is rejected, with a pointer."""
    timer = {"seconds": 1, "url": "http://localhost/", field: url}
    answer = refused(api_on_fakes.post(json.dumps(timer).encode()), 400)
    assert answer["pointer"] == f"/{field}"
    assert fragment in answer["detail"]
    assert not api_on_fakes.store.timers
    id = api_on_fakes.create()["id"]
    answer = refused(api_on_fakes.send("PATCH", f"/timers/{id}", {field: url}), 400)
    assert answer["pointer"] == f"/{field}"
    assert fragment in answer["detail"]


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://localhost/" + "a" * 2031, "http://localhost/" + "a" * 2031),
        ("HTTP://LOCALHOST:80/a/../%7e?#part", "HTTP://LOCALHOST:80/a/../%7e?"),
        ("https://{id}.example.com/{id} {id}", "https://{id}.example.com/{id}%20{id}"),
        ("https://bücher.example/ü?😀", "https://xn--bcher-kva.example/%C3%BC?%F0%9F%98%80"),
    ],
)
def test_shows_the_url_that_will_be_sent(api_on_fakes: Api, url: str, sent: str) -> None:
    """It has `{id}` still in it; so has the URL that is notified of a failure."""
    wanted = {"seconds": 1, "url": url, "on_failure": url}
    created = api_on_fakes.post(json.dumps(wanted).encode()).json_body
    assert (created["url"], created["on_failure"]) == (sent, sent)
    api_on_fakes.send("PATCH", f"/timers/{created['id']}", {"url": "http://localhost/ü"})
    shown = api_on_fakes.read(created["id"])
    assert (shown["url"], shown["on_failure"]) == ("http://localhost/%C3%BC", sent)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/json ; x=y",
    ],
)
def test_accepts_json_media_types(api_on_fakes: Api, kind: str) -> None:
    """application/json is accepted in any case and with any parameter."""
    answer = api_on_fakes.post(timer_json('"seconds": 1'), {"content-type": kind})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *(
            {"Content-Type": kind}
            for kind in (
                "",
                "text/plain",
                "text/plain; charset=utf-8",
                "text/plain, application/json",
                "application/json, text/plain",
                "text/plain; application/json",
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=x",
                "application/problem+json",
                "application/jsonp",
                "application",
                "*/*",
                "application/octet-stream",
                "image/png",
                "é",
            )
        ),
    ],
    ids=str,
)
def test_rejects_other_media_types(api_on_fakes: Api, headers: dict[str, str]) -> None:
    """Another media type is a 415 that says how to declare the body."""
    answer = refused(api_on_fakes.post(timer_json('"seconds": 1'), headers), 415)
    assert "Content-Type: application/json" in answer["detail"]
    assert not api_on_fakes.store.timers


def test_accepts_the_largest_body(api_on_fakes: Api) -> None:
    """A body of 256 KB is accepted."""
    answer = api_on_fakes.post(timer_json('"seconds": 1').ljust(256 * 1024))
    assert answer.status_code == 201


def test_rejects_larger_bodies(api_on_fakes: Api) -> None:
    """A body of one byte more than 256 KB is a 413."""
    answer = refused(api_on_fakes.post(timer_json('"seconds": 1').ljust(256 * 1024 + 1)), 413)
    assert "larger than 262,144 bytes" in answer["detail"]


def request(body: str | None) -> Request:
    """Return a request as API Gateway delivers it, with its body as text or null."""
    return Request(
        {
            "multiValueQueryStringParameters": None,
            "headers": JSON,
            "pathParameters": {},
            "requestContext": {"httpMethod": "POST", "resourcePath": "/timers"},
            "body": body,
            "stageVariables": None,
        }
    )


def test_accepts_text_bodies() -> None:
    """API Gateway delivers the body as text; it is read like bytes."""
    body = '{"seconds": 1, "url": "https://example.com/", "label": "bücher"}'
    order = requests.timer_spec(request(body), START)
    webhook = Webhook(url="https://example.com/", label="bücher")
    assert order == TimerSpec(webhook=webhook, deadline=START + timedelta(seconds=1))


def test_the_limit_counts_bytes() -> None:
    """The limit counts bytes, not characters, of a text body."""
    with pytest.raises(errors.BodyTooLarge):
        requests.timer_spec(request("é" * (requests.MAX_BODY_BYTES // 2 + 1)), START)


def test_rejects_a_null_body() -> None:
    """API Gateway delivers null for an empty body."""
    with pytest.raises(InvalidRequest) as caught:
        requests.timer_spec(request(None), START)
    assert caught.value.pointer == ""


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
names = st.sampled_from(["url", "hours", "minutes", "seconds"]) | st.text(max_size=5)
on_one_api = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@on_one_api
@given(st.binary() | st.dictionaries(names, anything).map(lambda value: json.dumps(value).encode()))
def test_any_body_has_a_response(api_on_fakes: Api, body: bytes) -> None:
    """Any body leads to a timer or to a 4xx problem."""
    answer = api_on_fakes.post(body)
    if answer.status_code != 201:
        assert json.loads(answer.body)["detail"]
        assert answer.status_code in (400, 413)


@on_one_api
@given(anything | st.integers(-2, 2) | st.integers(YEARS - 2, YEARS + 2))
def test_seconds_is_a_bounded_integer(api_on_fakes: Api, value: Any) -> None:
    """`seconds` is a whole number from 0 to 5 years."""
    answer = api_on_fakes.post(timer_json(f'"seconds": {json.dumps(value)}'))
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    possible = whole and 0 <= value <= YEARS
    assert answer.status_code == (201 if possible else 400)


@on_one_api
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_unknown_fields_have_a_pointer(api_on_fakes: Api, name: str) -> None:
    """The pointer leads to the unknown field, with any name."""
    name += "?"
    answer = refused_anyhow(api_on_fakes.post(json.dumps({"url": URL, name: 1}).encode()))
    assert answer["pointer"].startswith("/")
    assert answer["pointer"][1:].replace("~1", "/").replace("~0", "~") == name


def refused_anyhow(answer: HTTPResponse) -> dict[str, Any]:
    """Return a 400 problem whose detail may quote any text."""
    assert answer.status_code == 400
    return dict(answer.json_body)


@on_one_api
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_unknown_id_is_not_found(api_on_fakes: Api, id: str) -> None:
    """An id that was not issued is a 404, also a malformed one."""
    path = f"/timers/{quote(id, safe='')}"
    if id not in ("", "batch", "cancel", "retry"):  # these are other routes
        assert (
            refused(api_on_fakes.ask("GET", path), 404)["detail"]
            == "There is no timer with this id."
        )
        refused(api_on_fakes.ask("DELETE", path), 404)


@pytest.mark.parametrize("path", ["/timers", "/timers/", "/timers?", "/timers/;x"])
def test_created_timer_can_be_read(api_on_fakes: Api, path: str) -> None:
    """The Location of a 201 leads to the timer, also from a path with a trailing slash."""
    answer = api_on_fakes.ask("POST", path, timer_json('"seconds": 1'), JSON)
    assert answer.status_code == 201
    read = api_on_fakes.ask("GET", urljoin(path, answer.headers["Location"]))
    assert read.status_code == 200
    assert read.json_body == answer.json_body


BASES = {
    "no prefix": ("https://timers.example.com", ""),
    "stage of API Gateway": ("https://abc.execute-api.eu-central-1.amazonaws.com/api", "/api"),
    "base path of a custom domain": ("https://example.com/timers", "/timers"),
    "prefix that a proxy removes": ("https://example.com/jobs/timers", ""),
    "absolute target": ("http://localhost:8000", "http://localhost:8000"),
}
"""The URL of the service as a client sees it, and its part in the path that we see."""


@pytest.mark.parametrize(("base", "prefix"), BASES.values(), ids=BASES)
@pytest.mark.parametrize("path", ["/timers", "/timers/"])
def test_location_is_right_behind_every_prefix(base: str, prefix: str, path: str) -> None:
    """The client resolves the Location against its own URL, so no prefix can break it."""
    timer = new_timer("id-1", DEFAULT_TENANT, Webhook(url="https://example.com"), START, START)
    request = requested("POST", prefix + path)
    answer = responses.created(Created(timer, is_new=True), START, request)
    assert urljoin(base + path, str(answer.headers["Location"])) == f"{base}/timers/id-1"


@pytest.mark.parametrize(("base", "prefix"), BASES.values(), ids=BASES)
def test_root_leads_a_browser_to_the_console(base: str, prefix: str) -> None:
    """A browser is redirected to the console, behind every prefix."""
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    answer = static.root(requested("GET", f"{prefix}/", accept=browser))
    assert answer.status_code == 302
    assert urljoin(f"{base}/", str(answer.headers["Location"])) == f"{base}/console"


@pytest.mark.parametrize("path", ["/api", "/api/"])
def test_root_of_a_stage_needs_no_trailing_slash(path: str) -> None:
    """The root of a stage leads to the console, and to all paths, with and without the slash."""
    answer = static.root(requested("GET", path, accept="text/html"))
    assert urljoin(path, str(answer.headers["Location"])) == "/api/console"
    paths = json.loads(static.root(requested("GET", path)).body)
    assert urljoin(path, paths["timers"]) == "/api/timers"


@pytest.mark.parametrize("accept", ["", "*/*", "application/json"])
def test_root_tells_other_clients_the_paths(api_on_fakes: Api, accept: str) -> None:
    """Without an API key, the root names paths that exist."""
    headers = {"authorization": "", "accept": accept}
    answer = api_on_fakes.ask("GET", "/", headers=headers)
    assert (answer.status_code, answer.headers["Vary"]) == (200, "Accept")
    assert set(answer.json_body) == {"timers", "health", "openapi", "api_docs", "console"}
    for path in answer.json_body.values():
        assert api_on_fakes.ask("GET", urljoin("/", path)).status_code == 200


def requested(method: str, path: str, **headers: str) -> Request:
    """Return a request as API Gateway passes it on."""
    return Request(
        {
            "multiValueQueryStringParameters": None,
            "headers": headers,
            "pathParameters": {},
            "requestContext": {"httpMethod": method, "resourcePath": "/", "path": path},
            "body": None,
            "stageVariables": None,
        }
    )


@pytest.mark.parametrize("path", [path for method, path in ROUTES if method == "GET"])
def test_head_is_get(api_on_fakes: Api, path: str) -> None:
    """HEAD goes through the same view as GET. The gateway sends its headers and its length."""
    get, head = (api_on_fakes.ask(method, path) for method in ("GET", "HEAD"))
    assert (head.status_code, head.body) == (get.status_code, get.body)
    own = responses.REQUEST_ID_HEADER
    assert {**head.headers, own: ""} == {**get.headers, own: ""}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_only_creation_has_a_location(api_on_fakes: Api, method: str) -> None:
    """A 200 has no Location."""
    id = api_on_fakes.create()["id"]
    assert "Location" not in api_on_fakes.ask(method, f"/timers/{id}").headers


def test_a_new_timer_has_these_fields(api_on_fakes: Api) -> None:
    """A new timer has these fields and values, all times in UTC."""
    assert api_on_fakes.create(90) == {
        "id": "timer-0",
        "status": "scheduled",
        "time_left": 90,
        "url": URL,
        "method": "POST",
        "headers": {},
        "body": "",
        "timeout": 30,
        "retry": {"max_attempts": 8, "initial_delay": 10, "max_delay": 43200},
        "on_failure": None,
        "label": None,
        "metadata": {},
        "fire_at": "2026-01-31T12:01:30Z",
        "created_at": "2026-01-31T12:00:00Z",
        "next_attempt_at": "2026-01-31T12:01:30Z",
        "failure": None,
        "attempts": [],
    }


@pytest.mark.parametrize("seconds", [0, 1, 86_400, YEARS])
def test_fire_at_is_created_at_and_the_delay(api_on_fakes: Api, seconds: int) -> None:
    """`fire_at` is `created_at` plus the delay, to the microsecond."""
    api_on_fakes.clock.forward(0.123456)
    timer = api_on_fakes.create(seconds)
    moments = [datetime.fromisoformat(timer[name]) for name in ("created_at", "fire_at")]
    assert moments == [api_on_fakes.clock.now, api_on_fakes.clock.now + timedelta(seconds=seconds)]


@pytest.mark.parametrize(
    ("passed", "left"),
    [
        (0, 60),
        (0.000001, 60),
        (0.999999, 60),
        (1, 59),
        (59, 1),
        (59.999999, 1),
        (60, 0),
        (61, 0),
        (1e9, 0),
        (-1, 61),
    ],
)
def test_time_left_is_rounded_up(api_on_fakes: Api, passed: float, left: int) -> None:
    """`time_left` is rounded up to whole seconds, and 0 once due."""
    id = api_on_fakes.create(60)["id"]
    api_on_fakes.clock.forward(passed)
    assert api_on_fakes.read(id)["time_left"] == left


def test_a_cancelled_timer_has_no_time_left(api_on_fakes: Api) -> None:
    """A cancelled timer has `time_left` 0 and no next attempt."""
    id = api_on_fakes.create(60)["id"]
    api_on_fakes.ask("DELETE", f"/timers/{id}")
    timer = api_on_fakes.read(id)
    assert (timer["time_left"], timer["next_attempt_at"]) == (0, None)


def test_a_delivered_timer_shows_its_attempt(api_on_fakes: Api) -> None:
    """A delivered timer shows its attempt."""
    id = api_on_fakes.create(60)["id"]
    api_on_fakes.clock.forward(60.25)
    api_on_fakes.sender.outcome = Outcome(
        status=200, duration=0.5, answer="thanks", location="/there"
    )
    api_on_fakes.wakeup()
    timer = api_on_fakes.read(id)
    assert (timer["status"], timer["failure"], timer["next_attempt_at"]) == (
        "delivered",
        None,
        None,
    )
    assert timer["attempts"] == [
        {
            "number": 1,
            "at": "2026-01-31T12:01:00.250000Z",
            "lateness": 0.25,
            "duration": 0.5,
            "status": 200,
            "error": None,
            "detail": "",
            "answer": "thanks",
            "location": "/there",
        }
    ]


def test_a_retrying_timer_shows_its_next_attempt(api_on_fakes: Api) -> None:
    """A retrying timer shows its error, and a next attempt after the deadline."""
    timer = api_on_fakes.read(api_on_fakes.retrying())
    assert (timer["status"], timer["failure"], timer["time_left"]) == ("retrying", None, 0)
    assert timer["next_attempt_at"] > timer["fire_at"]
    assert (timer["attempts"][0]["status"], timer["attempts"][0]["error"]) == (None, "worker lost")


def test_a_failed_timer_shows_the_reason(api_on_fakes: Api) -> None:
    """A failed timer shows the reason."""
    id = api_on_fakes.create(0)["id"]
    api_on_fakes.sender.outcome = Outcome(status=404)
    api_on_fakes.wakeup()
    timer = api_on_fakes.read(id)
    assert (timer["status"], timer["failure"]) == ("failed", "HTTP 404")


def test_delete_may_be_repeated(api_on_fakes: Api) -> None:
    """Each DELETE returns the cancelled timer."""
    id = api_on_fakes.create()["id"]
    for _ in range(2):
        answer = api_on_fakes.ask("DELETE", f"/timers/{id}")
        assert (answer.status_code, answer.json_body["status"]) == (200, "cancelled")


def test_delete_cancels_a_retrying_timer(api_on_fakes: Api) -> None:
    """A retrying timer can be cancelled."""
    answer = api_on_fakes.ask("DELETE", f"/timers/{api_on_fakes.retrying()}")
    assert (answer.status_code, answer.json_body["status"]) == (200, "cancelled")


@pytest.mark.parametrize(("status", "word"), [(204, "delivered"), (404, "failed")])
def test_delete_of_a_finished_timer_is_409(api_on_fakes: Api, status: int, word: str) -> None:
    """DELETE of a finished timer is a 409 without Retry-After."""
    id = api_on_fakes.create(0)["id"]
    api_on_fakes.sender.outcome = Outcome(status=status)
    api_on_fakes.wakeup()
    answer = api_on_fakes.ask("DELETE", f"/timers/{id}")
    assert word in refused(answer, 409)["detail"]
    assert "Retry-After" not in answer.headers
    assert api_on_fakes.read(id)["status"] == word


def test_delete_while_delivering_is_409(api_on_fakes: Api) -> None:
    """DELETE of a timer that is being sent is a 409 with Retry-After."""
    id = api_on_fakes.delivering()
    answer = api_on_fakes.ask("DELETE", f"/timers/{id}")
    assert "is being sent" in refused(answer, 409)["detail"]
    assert answer.headers["Retry-After"] == "1"


def test_other_tenants_timer_is_not_found(api_on_fakes: Api) -> None:
    """A timer of another tenant is a 404."""
    api_on_fakes.store.add(new_timer("theirs", "stranger", Webhook(url=URL), START, START))
    for method in ("GET", "DELETE"):
        refused(api_on_fakes.ask(method, "/timers/theirs"), 404)


def test_expired_timer_is_not_found(api_on_fakes: Api) -> None:
    """After its retention a finished timer is a 404."""
    id = api_on_fakes.create()["id"]
    api_on_fakes.ask("DELETE", f"/timers/{id}")
    api_on_fakes.clock.forward(RETENTION.total_seconds())
    refused(api_on_fakes.ask("GET", f"/timers/{id}"), 404)


def test_health_is_200_if_everything_works(api_on_fakes: Api) -> None:
    """GET /health is 200 if store and scheduler work."""
    answer = api_on_fakes.ask("GET", "/health")
    assert (answer.status_code, answer.json_body) == (
        200,
        {"status": "ok", "auth": "keys", "receiver": None},
    )


def test_health_is_503_without_a_store(api_on_fakes: Api) -> None:
    """GET /health is 503 if the store does not work."""
    api_on_fakes.store.down = True
    answer = api_on_fakes.ask("GET", "/health")
    assert refused(answer, 503)["detail"] == "The fake store is down."


def test_health_is_503_when_nothing_fires(api_on_fakes: Api) -> None:
    """GET /health is 503 if wake-ups are not delivered."""
    api_on_fakes.scheduler.failure = Unavailable("The firing loop does not respond.")
    answer = api_on_fakes.ask("GET", "/health")
    assert refused(answer, 503)["detail"] == "The firing loop does not respond."


@pytest.mark.parametrize(("method", "path"), SERVICE_ROUTES)
def test_every_route_is_503_without_a_store(api_on_fakes: Api, method: str, path: str) -> None:
    """Every route, or each result of a batch, is a 503 with Retry-After."""
    api_on_fakes.store.down = True
    answer = api_on_fakes.ask(method, path, BODIES.get((method, path), b""), JSON)
    if (method, path) in BULK_ROUTES:
        assert [it["problem"]["status"] for it in answer.json_body["results"]] == [503]
    else:
        refused(answer, 503)
        assert answer.headers["Retry-After"] == "1"


def test_a_refused_schedule_is_503(api_on_fakes: Api) -> None:
    """If the schedule is refused, POST is a 503 and no timer is left."""
    api_on_fakes.scheduler.failure = ScheduleRefused("The schedule may not be made.")
    answer = refused(api_on_fakes.post(timer_json('"seconds": 1')), 503)
    assert answer["detail"] == "The schedule may not be made."
    assert not api_on_fakes.store.timers


@pytest.mark.parametrize(("method", "path"), SERVICE_ROUTES)
def test_every_route_is_503_without_dependencies(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """Without dependencies every route is a 503 that says what to do."""
    monkeypatch.setattr(runtime, "_installed", None)
    request = HttpRequest(method, path, {"content-type": ["application/json"]}, b"")
    answer = Gateway(app, ApiKeyAuthorizer()).answer(request)
    assert answer.status == 503
    assert "make run" in problem(503, answer.headers["Content-Type"], answer.body)["detail"]


@pytest.mark.parametrize(("method", "path"), SERVICE_ROUTES)
def test_unexpected_errors_are_500(
    api_on_fakes: Api,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
) -> None:
    """An unexpected error is a 500 that reveals nothing; the log has the traceback."""

    def broken(*_: object) -> Timer:
        raise KeyError("secret")

    for name in vars(Commands):
        if not name.startswith("_"):
            monkeypatch.setattr(Commands, name, broken)
    answer = api_on_fakes.ask(method, path, BODIES.get((method, path), b""), JSON)
    assert refused(answer, 500)["detail"] == "An internal error occurred."
    assert b"secret" not in answer.body
    assert [record.getMessage() for record in caplog.records] == ["view crashed"]
    assert "secret" in caplog.text


def below(kind: type[TimersError]) -> list[type[TimersError]]:
    """Return all subclasses of an error."""
    return [found for child in kind.__subclasses__() for found in (child, *below(child))]


@pytest.mark.parametrize("kind", below(TimersError), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status(kind: type[TimersError]) -> None:
    """Every domain error becomes a 4xx or 503 problem with its message."""

    @responses.errors_as_problems
    def view() -> Response:
        raise kind("This is the reason.")

    answer = view()
    body = problem(answer.status_code, answer.headers["Content-Type"], answer.body.encode())
    assert body["detail"] == "This is the reason."
    assert answer.status_code == 503 or 400 <= answer.status_code < 500


def test_every_status_belongs_to_an_error() -> None:
    """The table holds only existing errors; the nearest base class decides."""
    assert set(responses.STATUS_OF_ERROR) <= set(below(TimersError))

    @responses.errors_as_problems
    def view() -> Response:
        raise errors.BodyTooLarge("It is a special InvalidRequest.")

    assert view().status_code == 413


@pytest.mark.parametrize(("method", "path"), [("PUT", "/timers"), ("POST", "/health")])
def test_unknown_methods_are_405(api_on_fakes: Api, method: str, path: str) -> None:
    """A 405 of Chalice becomes a problem and keeps its headers."""
    answer = api_on_fakes.ask(method, path)
    assert method in refused(answer, 405)["detail"]
    assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "response",
    [
        Response({"Code": "X", "Message": "It broke."}, {}, 500),
        Response({"Code": "X", "Message": "It broke"}, {}, 500),
        Response({"message": None}, {}, 500),
        Response("Traceback: secret", {"Content-Type": "text/plain"}, 500),
        Response(None, {"content": "nothing"}, 404),
    ],
)
def test_chalice_errors_become_problems(response: Response) -> None:
    """Any error response of Chalice becomes problem+json."""
    answer = responses.finished(response, CONTEXT)
    assert answer.status_code == response.status_code
    body = problem(answer.status_code, answer.headers["Content-Type"], answer.body.encode())
    assert "secret" not in body["detail"]


@pytest.mark.parametrize("status", [200, 201, 204, 302])
def test_success_passes_unchanged(status: int) -> None:
    """A successful response passes unchanged."""
    response = Response("x", {"Content-Type": "text/html"}, status)
    assert responses.finished(response, CONTEXT) is response
    assert response.headers[responses.REQUEST_ID_HEADER] == CONTEXT.aws_request_id


def test_status_values_are_stable() -> None:
    """The values of `status` are those of the documents: clients compare with them."""
    words = {"scheduled", "delivering", "delivered", "retrying", "failed", "cancelled"}
    assert {status.value for status in Status} == words


def test_client_errors_are_not_logged(api_on_fakes: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A 4xx is no event in the log."""
    caplog.set_level(logging.INFO)
    refused(api_on_fakes.post(b"{"), 400)
    refused(api_on_fakes.ask("GET", f"/timers/{DEFAULT_TENANT}"), 404)
    assert not caplog.records


def asked(api: Api, fields: dict[str, Any]) -> HTTPResponse:
    return api.post(json.dumps({"seconds": 60, "url": URL, **fields}).encode())


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"body": "hello"}, {"body": "hello", "headers": {"Content-Type": TEXT}}),
        ({"body": ""}, {"body": "", "headers": {}}),
        ({"body": None}, {"body": "", "headers": {}}),
        ({"body": {"b": 1, "a": [1.0]}}, {"body": '{"b": 1, "a": [1.0]}'}),
        ({"body": [1]}, {"body": "[1]", "headers": {"Content-Type": "application/json"}}),
        ({"body": False}, {"body": "false"}),
        ({"body": 12345678901234567890}, {"body": "12345678901234567890"}),
        (
            {"body": {}, "headers": {"content-type": "application/x-y"}},
            {"body": "{}", "headers": {"content-type": "application/x-y"}},
        ),
        (
            {"headers": {"X-A": "1", "User-Agent": "mine"}},
            {"headers": {"X-A": "1", "User-Agent": "mine"}},
        ),
        ({"headers": {"X-A": ""}}, {"headers": {"X-A": ""}}),
        *(
            ({"method": name}, {"method": name})
            for name in ("POST", "PUT", "PATCH", "DELETE", "GET")
        ),
        ({"on_failure": URL}, {"on_failure": URL}),
        ({"on_failure": None}, {"on_failure": None}),
        ({"timeout": 1}, {"timeout": 1}),
        ({"timeout": 30}, {"timeout": 30}),
        (
            {"retry": {"max_attempts": 15}},
            {"retry": {"max_attempts": 15, "initial_delay": 10, "max_delay": 43200}},
        ),
        (
            {"retry": {"max_attempts": 1, "initial_delay": 5, "max_delay": 5}},
            {"retry": {"max_attempts": 1, "initial_delay": 5, "max_delay": 5}},
        ),
    ],
)
def test_webhook_is_stored_as_requested(
    api_on_fakes: Api, given: Any, shown: dict[str, Any]
) -> None:
    """Method, headers, body, timeout and retry policy are the owner's; JSON is kept as written."""
    created = asked(api_on_fakes, given)
    assert created.status_code == 201, created.body
    timer = api_on_fakes.read(created.json_body["id"])
    assert {name: timer[name] for name in shown} == shown
    stored = api_on_fakes.store.timers[timer["id"]]
    assert (stored.body, stored.headers) == (timer["body"], timer["headers"])


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"method": "HEAD"}, "/method"),
        ({"method": "post"}, "/method"),
        ({"method": "POST\r\nX: y"}, "/method"),
        ({"method": "GET", "body": "x"}, "/body"),
        ({"headers": {"X A": "1"}}, "/headers/X A"),
        ({"headers": {"": "1"}}, "/headers/"),
        ({"headers": {"X/A~": "1\n"}}, "/headers/X~1A~0"),
        ({"headers": {"X": "a\r\nHost: evil"}}, "/headers/X"),
        ({"headers": {"X\r\nHost": "evil"}}, "/headers/X\r\nHost"),
        ({"headers": {"X": " a"}}, "/headers/X"),
        ({"headers": {"X": "a "}}, "/headers/X"),
        ({"headers": {"X": "\x00"}}, "/headers/X"),
        ({"headers": {"X": "\x7f"}}, "/headers/X"),
        ({"headers": {"X": "€"}}, "/headers/X"),
        *(({"headers": {"X": f"{blank}a"}}, "/headers/X") for blank in "\x85\xa0\u2028\u3000"),
        *(({"headers": {"X": f"a{blank}b"}}, "/headers/X") for blank in "\x85\xa0"),
        ({"headers": {"X": 1}}, "/headers/X"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "/headers"),
        ({"headers": {f"X-{n}": "1" for n in range(51)}}, "/headers"),
        *(
            ({"headers": {name: "1"}}, f"/headers/{name}")
            for name in (
                "Host",
                "content-length",
                "Transfer-Encoding",
                "connection",
                "TE",
                "Trailer",
                "Upgrade",
                "Expect",
                "Keep-Alive",
                "Proxy-Authorization",
                "Accept-Encoding",
                "webhook-id",
                "Webhook-Signature",
                "timer-attempt",
                "Webhook_Id",
                "Timer_Attempt",
                "Content_Length",
                "Proxy",
                "HTTP2-Settings",
            )
        ),
        ({"on_failure": "http://10.0.0.1/"}, "/on_failure"),
        ({"on_failure": "mailto:me"}, "/on_failure"),
        ({"timeout": 0}, "/timeout"),
        ({"timeout": 31}, "/timeout"),
        ({"timeout": 1.5}, "/timeout"),
        ({"retry": {"max_attempts": 0}}, "/retry/max_attempts"),
        ({"retry": {"max_attempts": 16}}, "/retry/max_attempts"),
        ({"retry": {"initial_delay": 0}}, "/retry/initial_delay"),
        ({"retry": {"initial_delay": 60, "max_delay": 59}}, "/retry/max_delay"),
        ({"retry": {"max_delay": 9}}, "/retry/max_delay"),
        ({"retry": {"max_delay": 86_401}}, "/retry/max_delay"),
        ({"retry": {"jitter": 1}}, "/retry/jitter"),
        ({"body": "x" * MAX_WEBHOOK_BYTES}, "/body"),
        ({"body": ["x" * MAX_WEBHOOK_BYTES]}, "/body"),
        ({"headers": {"X": "x" * MAX_WEBHOOK_BYTES}}, "/body"),
    ],
)
def test_rejects_webhooks_that_can_not_be_sent(api_on_fakes: Api, given: Any, pointer: str) -> None:
    """A webhook that can't be sent is rejected, and nothing is stored."""
    assert refused(asked(api_on_fakes, given), 400)["pointer"] == pointer
    assert not api_on_fakes.store.timers


def test_rejects_bodies_that_are_not_utf8(api_on_fakes: Api) -> None:
    """A body that is not UTF-8 could be neither signed nor shown."""
    whole = b'{"seconds": 1, "url": "http://localhost/", "body": ["\xff"]}'
    assert refused(api_on_fakes.post(whole), 400)["pointer"] in ("", "/body")


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("Authorization", "Bearer abc", True),
        ("X-Api-Key", "abc", True),
        ("x-auth", "abc", True),
        ("Cookie", "a=b", True),
        ("X-Hub-Signature-256", "abc", True),
        ("X-JWT", "abc", True),
        ("X-Webhook-Pass", "abc", True),
        ("X-Whatever", "Basic YTpi", True),
        ("X-Whatever", "bearer abc", True),
        ("X-Request", "abc", False),
        ("Content-Type", "application/json", False),
    ],
)
def test_secret_headers_are_masked(api_on_fakes: Api, name: str, value: str, hidden: bool) -> None:
    """A header that looks like a secret is masked in responses and stored as it is."""
    created = asked(api_on_fakes, {"headers": {name: value}}).json_body
    for timer in (created, api_on_fakes.read(created["id"])):
        assert timer["headers"] == {name: "•••" if hidden else value}
    assert api_on_fakes.store.timers[created["id"]].headers == {name: value}


def test_retry_restarts_a_failed_timer(api_on_fakes: Api) -> None:
    """Retry is a 202 with all attempts ahead, and a 409 unless the timer failed."""
    id = str(api_on_fakes.create(0)["id"])
    assert refused(api_on_fakes.ask("POST", f"/timers/{id}/retry"), 409)
    api_on_fakes.sender.outcome = Outcome(status=410)
    api_on_fakes.wakeup()
    assert api_on_fakes.read(id)["failure"] == "HTTP 410"
    api_on_fakes.clock.forward(3600)
    answer = api_on_fakes.ask("POST", f"/timers/{id}/retry")
    assert (answer.status_code, answer.json_body["status"]) == (202, "scheduled")
    assert datetime.fromisoformat(answer.json_body["fire_at"]) == api_on_fakes.clock.now
    api_on_fakes.sender.outcome = Outcome(status=200)
    api_on_fakes.wakeup()
    timer = api_on_fakes.read(id)
    assert (timer["status"], len(timer["attempts"])) == ("delivered", 2)
    assert refused(api_on_fakes.ask("POST", f"/timers/{id}/retry"), 409)
    assert refused(api_on_fakes.ask("POST", "/timers/nobody/retry"), 404)


def test_attempts_are_shown(api_on_fakes: Api) -> None:
    """Each attempt shows time, lateness, outcome and duration, and the time of the next one."""
    id = str(api_on_fakes.create(0)["id"])
    api_on_fakes.sender.outcome = Outcome(status=503, answer="a" * 1024, duration=0.5)
    for _ in range(2):
        api_on_fakes.clock.now = api_on_fakes.scheduler.wakeups[-1].due_at + timedelta(seconds=0.25)
        api_on_fakes.wakeup()
    timer = api_on_fakes.read(id)
    assert timer["status"] == "retrying"
    assert timer["next_attempt_at"] > timer["attempts"][-1]["at"]
    assert [len(attempt["answer"]) for attempt in timer["attempts"]] == [200, 1024]
    last = timer["attempts"][-1]
    shown = {name: last[name] for name in ("number", "lateness", "status", "error", "duration")}
    assert shown == {"number": 2, "lateness": 0.25, "status": 503, "error": None, "duration": 0.5}


@pytest.mark.parametrize(
    ("status", "title"),
    [(404, "Not Found"), (413, "Content Too Large"), (422, "Unprocessable Content")],
)
def test_titles_are_those_of_rfc_9110(status: int, title: str) -> None:
    """A status has the same name on every version of Python."""
    assert responses.name_of(HTTPStatus(status)) == title
