"""The OpenAPI document is valid, complete, and agrees with the types and the routes."""

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
from tests.support.routes import FILE_ROUTES, Api

DOCUMENT: dict[str, Any] = json.loads(openapi.document())

FOR_PEOPLE = {" ".join(route) for route in FILE_ROUTES}
"""The routes that the document omits: its own, the root, and those of pages."""


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def validator(name: str) -> Draft202012Validator:
    """Return a validator of a schema of the document, with JavaScript's regular expressions."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return Draft202012Validator(schema, validate_formats=True)


def accepts(kind: type, value: object) -> bool:
    """Say whether the document accepts this body."""
    return validator(kind.__name__).is_valid(value)


def understood(kind: type[bodies.TimerChange], value: object) -> bool:
    """Say whether the service accepts this body."""
    try:
        read = requests.decode(json.dumps(value).encode(), kind)
        if isinstance(read, bodies.NewTimer):
            OnFakes().service.create(DEFAULT_TENANT, read.spec(START, None))
        else:
            read.change(START).webhook.apply(Webhook(url="http://localhost/"))
    except InvalidRequest:
        return False
    return True


def test_document_is_valid() -> None:
    """The document is valid OpenAPI 3.1, and each schema is valid JSON Schema."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    for made in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator(made | {"components": DOCUMENT["components"]})


def test_docs_openapi_json_is_current() -> None:
    """docs/openapi.json is what `make openapi` writes."""
    written = (ROOT / "docs/openapi.json").read_text()
    assert written == openapi.document() + "\n", "Run `make openapi`."


def test_document_is_served_without_a_key(api_on_fakes: Api) -> None:
    """The document is served without a key, and built once."""
    answers = [
        api_on_fakes.ask("GET", "/openapi.json", headers={"authorization": ""}) for _ in "ab"
    ]
    assert [answer.json_body for answer in answers] == [DOCUMENT, DOCUMENT]
    assert answers[0].headers["Content-Type"] == "application/json"
    assert openapi.document() is openapi.document()


def test_functions_load_the_document_on_demand() -> None:
    """Functions load the document and the pages only when they are requested."""
    program = "import sys, app; print('chalicelib.http.openapi' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"


def test_summary_is_that_of_the_project() -> None:
    """The summary is that of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert DOCUMENT["info"]["summary"] == project["description"]


def test_every_route_is_documented() -> None:
    """The document has each route of app.py under its view's name, and no other.

    It has no HEAD: a client generator would make a function of each.
    """
    views = {
        f"{method} {path}": entry.view_name
        for path, methods in app.routes.items()
        for method, entry in methods.items()
        if method != "HEAD"
    }
    described = {route: operation["operationId"] for route, operation in operations()}
    assert {route: views[route] for route in views.keys() - FOR_PEOPLE} == described


def test_routes_with_an_authorizer_need_a_key() -> None:
    """A route needs a key if the authorizer guards it."""
    wanted = {
        f"{method} {path}": entry.authorizer is not None
        for path, methods in app.routes.items()
        for method, entry in methods.items()
    }
    assert {route: "security" not in it for route, it in operations()} == {
        route: wanted[route] for route in OPERATIONS
    }
    assert DOCUMENT["security"] == [{"key": []}]


def test_every_error_status_is_documented() -> None:
    """Each status of an error has a response, and each response is used."""
    statuses = {status for _, it in operations() for status in it["responses"]}
    assert {str(status.value) for status in responses.STATUS_OF_ERROR.values()} <= statuses
    used = set(re.findall(r"#/components/responses/(\w+)", openapi.document()))
    assert used == set(DOCUMENT["components"]["responses"])


@pytest.mark.parametrize("route", OPERATIONS)
def test_errors_are_problems(route: str) -> None:
    """Our errors are problems; those of API Gateway have another schema."""
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
    """A wrong Content-Type is rejected and documented even for routes without a body."""
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


def test_every_parameter_and_field_is_described() -> None:
    """Each parameter and field has a description without line breaks."""
    assert not [text for text in texts(DOCUMENT) if "\n " in text or not text]
    for route, operation in operations():
        for parameter in operation["parameters"]:
            assert parameter["description"], f"{route}: {parameter['name']}"
    for kind in (bodies.NewTimer, bodies.BatchEntry, bodies.Query, bodies.NewRetryPolicy):
        fields = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
        for name, made in fields.items():
            assert "description" in made or "$ref" in made, f"{kind.__name__}: {name}"


@pytest.mark.parametrize("kind", openapi._EXAMPLES)
def test_examples_are_valid(kind: type) -> None:
    """Schema and service accept each example."""
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
def test_accepts_every_way_to_set_a_deadline(
    kind: type[bodies.TimerChange], way: dict[str, object]
) -> None:
    """A deadline is a number, a duration or a time; a time in the past means now."""
    body = {"url": "http://localhost/", **way}
    assert accepts(kind, body) == understood(kind, body)


FIELDS = [
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


@pytest.mark.parametrize("fields", FIELDS, ids=lambda it: str(it)[:50])
def test_document_and_service_agree_on_fields(fields: dict[str, object]) -> None:
    """Document and service agree on the fields of a timer."""
    body = {"seconds": 1, "url": "http://localhost/", **fields}
    assert accepts(bodies.NewTimer, body) == understood(bodies.NewTimer, body)


@given(
    st.from_regex(durations.DURATION_PATTERN.removesuffix("$") + r"\Z")
    | st.text("PT0123dhmsDHMS ", max_size=8)
)
def test_duration_pattern_agrees_with_the_parser(text: str) -> None:
    """The regular expression of durations agrees with the parser."""
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


def test_responses_are_as_described(api_on_fakes: Api) -> None:
    """Responses match their schemas."""
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
