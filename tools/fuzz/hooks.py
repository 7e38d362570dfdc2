"""Schemathesis hooks: the rules of this API that its schema does not express."""

import json
import os
import re
from atexit import register
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

from chalicelib.http import bodies

TARGET = "webhook-target"
"""The name of the string format that generates webhook URLs. Only these hooks use it."""

BEYOND_SCHEMA = (
    r"The deadline is more than 5 years ahead\.",
    r"`max_delay` must not be less than `initial_delay`, \d+\.",
    r"A GET has no body\.",
    r"URLs, headers and body have [\d,]+ bytes; the limit is 65,536\.",
    r"The metadata has [\d,]+ bytes; the limit is 4,096\.",
    r"The header \S+ is reserved: Timers sets it itself\.",
    r"Two header names differ only in case\.",
    r"The parameter `cursor` must be the `next_cursor` of a list\.",
)
"""Errors for rules that a JSON Schema cannot express."""

NO_MOMENT = r"(?:In the parameter `(from|to)`: )?There is no such date and time\."
"""The error for a date-time that RFC 3339 allows but Python cannot hold."""

EDGE_OF_TIME = re.compile("000[01]-|9999-|.*:60")
"""Such a date-time: its year is 0 or 10000, perhaps only in UTC, or it is a leap second."""

responses: Counter[tuple[str, int]] = Counter()
"""Counts of responses by operation and status."""

excused: Counter[str] = Counter()
"""Counts of expected failures by reason."""

_numbers = count()


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Generate only loopback URLs, and offer the failed timers as examples for retry."""
    schemathesis.openapi.format(TARGET, _targets(os.environ["FUZZ_SERVER"]))
    for schema in _schemas(raw_schema):
        if schema.get("pattern") == bodies.URL_PATTERN:
            schema["format"] = TARGET
    (timer_id,) = raw_schema["paths"]["/timers/{timer_id}/retry"]["post"]["parameters"]
    timer_id["examples"] = {id: {"value": id} for id in os.environ["FUZZ_FAILED"].split()}


def _targets(server: str) -> st.SearchStrategy[str]:
    """Return URLs that succeed, that get an error, or that refuse the connection."""
    bases = [f"{server}/_receiver/", f"{server}/nothing/{{id}}/", "HTTP://localhost:9/"]
    pieces = [*"abcXYZ019-._~!$&'()*+,;=:@/?#äß€", "{id}", "%7e", "%C3%BC"]
    path = st.lists(st.sampled_from(pieces), max_size=20).map("".join)
    return st.builds("{}{}".format, st.sampled_from(bases), path)


def _schemas(document: object) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield document
        document = list(document.values())
    if isinstance(document, list):
        for it in document:
            yield from _schemas(it)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Give a new idempotency key to requests that repeat one, by the example key or in a chain.

    Hypothesis abandons a chain if the same request gets a different response.
    """
    key = (case.headers or {}).get("Idempotency-Key")
    if key == "order-4711" or (key is not None and case.meta.phase.name == "stateful"):
        case.headers["Idempotency-Key"] = f"order-{next(_numbers)}"


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count the response."""
    responses[case.operation.label, response.status_code] += 1


@schemathesis.check
def each_of_many(context: Any, response: Any, case: Any) -> None:
    """In a valid bulk request each timer succeeds, is missing, conflicts, or reuses a key."""
    if response.status_code != 200 or not case.meta or not case.meta.generation.mode.is_positive:
        return
    for result in response.json().get("results", ()):
        assert result["status"] in (200, 201, 404, 409, 422) or _excuse(result["problem"], case), (
            result
        )


@schemathesis.hook
def filter_failure(context: Any, failure: Failure, case: Any, response: Any) -> bool:
    """Return whether this is a failure, and count the expected ones."""
    reason = _excuse_for(failure, case, response)
    if reason is not None:
        excused[reason] += 1
    return reason is None


def _excuse_for(failure: Failure, case: Any, response: Any) -> str | None:
    if isinstance(failure, RejectedPositiveData) and response.status_code == 400:
        return _excuse(response.json(), case)
    if isinstance(failure, AcceptedNegativeData) and case.operation.label == "POST /timers/batch":
        # An invalid entry does not stop the others from being created.
        refused = any(it["status"] >= 400 for it in response.json()["results"])
        return "A batch reports errors for each timer." if refused else None
    if isinstance(failure, UseAfterFree) and response.json().get("status") == "cancelled":
        return "A timer can be read after it was cancelled."
    return None


def _excuse(problem: dict[str, Any], case: Any) -> str | None:
    detail = problem["detail"]
    if any(re.fullmatch(pattern, detail) for pattern in BEYOND_SCHEMA):
        return re.sub(r"\d[\d,]*", "…", detail)
    if found := re.fullmatch(NO_MOMENT, detail):
        text = case.query[found[1]] if found[1] else _at(problem["pointer"], case.body)
        return "No leap second, and the years 1 to 9999 only." if EDGE_OF_TIME.match(text) else None
    return None


def _at(pointer: str, body: Any) -> Any:
    for step in pointer.split("/")[1:]:
        body = body[int(step) if isinstance(body, list) else step]
    return body


@register
def _write_figures() -> None:
    figures = {
        "responses": [[label, status, number] for (label, status), number in responses.items()],
        "excused": dict(excused),
    }
    Path(os.environ["FUZZ_FIGURES"]).write_text(json.dumps(figures))
