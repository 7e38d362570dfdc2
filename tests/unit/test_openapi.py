"""The OpenAPI document: valid, whole, and true to the types and routes that it speaks of."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import app
from chalicelib.core import durations
from chalicelib.core.errors import InvalidRequest
from chalicelib.core.timer import DEFAULT_TENANT, Webhook
from chalicelib.http import bodies, openapi, requests, responses
from chalicelib.http.routes import OPERATIONS
from tests.support.fakes import START, OnFakes
from tests.support.processes import ROOT
from tests.support.routes import PAGES, Api

DOCUMENT: dict[str, Any] = json.loads(openapi.document())

FOR_PEOPLE = {" ".join(route) for route in PAGES}
"""The routes that the document says nothing of: itself, and pages."""


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def validator(name: str) -> Draft202012Validator:
    """Return what holds values to a schema of the document, as JavaScript reads its patterns."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return Draft202012Validator(schema, validate_formats=True)


def accepts(kind: type, value: object) -> bool:
    """Say whether the document allows this as a body."""
    return validator(kind.__name__).is_valid(value)


def understood(kind: type[bodies.TimerChange], value: object) -> bool:
    """Say whether the service takes this as a body."""
    try:
        read = requests.decode(json.dumps(value).encode(), kind)
        if isinstance(read, bodies.NewTimer):
            OnFakes().service.create(DEFAULT_TENANT, read.spec(START, None))
        else:
            read.change(START).webhook.apply(Webhook(url="http://localhost/"))
    except InvalidRequest:
        return False
    return True


def test_is_valid() -> None:
    """It is what the specification of OpenAPI 3.1 wants, and each schema one of JSON Schema."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    for made in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator(made | {"components": DOCUMENT["components"]})


def test_is_written() -> None:
    """docs/openapi.json is what `make openapi` writes."""
    written = (ROOT / "docs/openapi.json").read_text()
    assert written == openapi.document() + "\n", "Run `make openapi`."


def test_is_served(api_on_fakes: Api) -> None:
    """It is to be had without a key, and made once."""
    answers = [
        api_on_fakes.ask("GET", "/openapi.json", headers={"authorization": ""}) for _ in "ab"
    ]
    assert [answer.json_body for answer in answers] == [DOCUMENT, DOCUMENT]
    assert answers[0].headers["Content-Type"] == "application/json"
    assert openapi.document() is openapi.document()


def test_costs_no_cold_start() -> None:
    """The functions load neither it nor the pages until somebody asks."""
    program = "import sys, app; print('chalicelib.http.openapi' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"


def test_summary() -> None:
    """It has the summary of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert DOCUMENT["info"]["summary"] == project["description"]


def test_every_route_is_there() -> None:
    """It has each route of app.py, under the name of its view, and no other."""
    views = {
        f"{method} {path}": entry.view_name
        for path, methods in app.routes.items()
        for method, entry in methods.items()
    }
    described = {route: operation["operationId"] for route, operation in operations()}
    assert {route: views[route] for route in views.keys() - FOR_PEOPLE} == described


def test_security() -> None:
    """A key is wanted where the authorizer stands before the route."""
    wanted = {
        f"{method} {path}": entry.authorizer is not None
        for path, methods in app.routes.items()
        for method, entry in methods.items()
    }
    assert {route: "security" not in it for route, it in operations()} == {
        route: wanted[route] for route in OPERATIONS
    }
    assert DOCUMENT["security"] == [{"key": []}]


def test_every_status_is_there() -> None:
    """Each status that an error can have has an answer, and each of these is used."""
    statuses = {status for _, it in operations() for status in it["responses"]}
    assert {str(status.value) for status in responses.STATUS_OF_ERROR.values()} <= statuses
    used = set(re.findall(r"#/components/responses/(\w+)", openapi.document()))
    assert used == set(DOCUMENT["components"]["responses"])


@pytest.mark.parametrize("route", OPERATIONS)
def test_errors_are_problems(route: str) -> None:
    """What we say of an error is a problem; API Gateway has a form of its own."""
    responses = dict(operations())[route]["responses"]
    for status, response in responses.items():
        if int(status) < HTTPStatus.BAD_REQUEST:
            continue
        name = response["$ref"].rpartition("/")[2]
        kinds = set(DOCUMENT["components"]["responses"][name]["content"])
        assert ("application/problem+json" in kinds) == (status != "504")
        assert ("application/json" in kinds) == (status in {"403", "413", "429", "504"})


@pytest.mark.parametrize("route", OPERATIONS)
def test_unsupported_media_type(api_on_fakes: Api, route: str) -> None:
    """A Content-Type that is not JSON's is refused also where no body is wanted, and described."""
    method, path = route.split()
    answer = api_on_fakes.ask(method, path, headers={"Content-Type": "multipart/form-data"})
    assert answer.status_code == 415
    assert "415" in dict(operations())[route]["responses"]


def texts(node: Any) -> Iterator[str]:
    """Yield all descriptions and summaries below a node."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("description", "summary") and isinstance(value, str):
                yield value
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)


def test_is_described() -> None:
    """Each parameter and each member of a body has a description, none of them broken by lines."""
    assert not [text for text in texts(DOCUMENT) if "\n " in text or not text]
    for route, operation in operations():
        for parameter in operation["parameters"]:
            assert parameter["description"], f"{route}: {parameter['name']}"
    for kind in (bodies.NewTimer, bodies.BatchEntry, bodies.Query, bodies.NewRetryPolicy):
        members = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
        for name, made in members.items():
            assert "description" in made or "$ref" in made, f"{kind.__name__}: {name}"


@pytest.mark.parametrize("kind", openapi._EXAMPLES)
def test_examples_are_possible(kind: type) -> None:
    """What it shows as a body is one, to the schema and to the service."""
    for value in openapi._EXAMPLES[kind].values():
        assert accepts(kind, value)
        requests.decode(json.dumps(value).encode(), kind)


WAYS = [
    {},
    {"hours": 1},
    {"minutes": 1, "seconds": 0},
    {"delay": 90},
    {"delay": "1h30m"},
    {"fire_at": "2027-01-31T09:00:00+01:00"},
    {"hours": 1, "delay": 90},
    {"seconds": 1, "fire_at": "2027-01-31T09:00:00Z"},
    {"delay": 90, "fire_at": "2027-01-31T09:00:00Z"},
    {"delay": "90"},
    {"delay": -1},
    {"seconds": 1.5},
    {"delay": 6 * 365 * 86400},
    {"hours": 44_000},
    {"fire_at": "tomorrow"},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("kind", [bodies.NewTimer, bodies.TimerChange])
def test_ways_to_say_when(kind: type[bodies.TimerChange], way: dict[str, object]) -> None:
    """The document and the service agree on what says when, and on when that is too much."""
    body = {"url": "http://localhost/", **way}
    assert accepts(kind, body) == understood(kind, body)


MEMBERS = [
    {"url": "ftp://localhost/"},
    {"url": "HTTPS://localhost/"},
    {"url": "http://localhost/" + "x" * 2048},
    {"url": None},
    {"method": "HEAD"},
    {"method": "GET"},
    {"method": "GET", "body": None},
    {"method": "GET", "body": ""},
    {"method": "GET", "body": "text"},
    {"method": "GET", "body": {}},
    {"headers": {"X-A": "b"}},
    {"headers": {"X A": "b"}},
    {"headers": {"X-A": "b\n"}},
    {"headers": {"X-A": " b"}},
    {"headers": {"X-A": "ü"}},
    {"headers": {"X-A": "€"}},
    {"headers": {"X-A": 1}},
    {"headers": {f"X-{number}": "" for number in range(51)}},
    {"body": None},
    {"body": {"any": ["JSON", 1.5]}},
    {"timeout": 0},
    {"timeout": 31},
    {"retry": {}},
    {"retry": {"max_attempts": 16}},
    {"retry": {"tries": 1}},
    {"retry": None},
    {"on_failure": None},
    {"on_failure": "localhost"},
    {"label": ""},
    {"label": None},
    {"label": "x" * 65},
    {"metadata": {"a": 1}},
    {"metadata": {"a": ""}},
    {"unknown": 1},
]


@pytest.mark.parametrize("members", MEMBERS, ids=lambda it: str(it)[:50])
def test_members(members: dict[str, object]) -> None:
    """The document and the service agree on what a timer may have."""
    body = {"seconds": 1, "url": "http://localhost/", **members}
    assert accepts(bodies.NewTimer, body) == understood(bodies.NewTimer, body)


@given(
    st.from_regex(durations.DURATION_PATTERN.removesuffix("$") + r"\Z")
    | st.text("PT0123dhmsDHMS ", max_size=8)
)
def test_durations(text: str) -> None:
    """Its regular expression says of each text what `duration` says."""
    try:
        durations.parse_duration(text)
    except ValueError:
        known = False
    except OverflowError:
        known = True
    else:
        known = True
    pattern = (
        durations.DURATION_PATTERN.removesuffix("$") + r"\Z"
    )  # $ of Python is also before a last \n
    assert (re.search(pattern, text) is not None) == known


def test_answers_are_as_described(api_on_fakes: Api) -> None:
    """What the routes answer is what the schemas of these answers say."""
    made = api_on_fakes.send("POST", "/timers", {"seconds": 1, "url": "http://localhost/"})
    id = made.json_body["id"]
    found = {
        "TimerResource": made,
        "TimerPage": api_on_fakes.ask("GET", "/timers"),
        "Results": api_on_fakes.send("POST", "/timers/cancel", {"ids": [id, "nobody"]}),
        "Problem": api_on_fakes.send("POST", "/timers", {"delay": "90"}),
        "Health": api_on_fakes.ask("GET", "/health"),
    }
    for name, answer in found.items():
        validator(name).validate(answer.json_body)
