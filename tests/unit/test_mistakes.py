"""Mistakes of beginners: the error says what to write, and points to the fault."""

import json
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.core.errors import InvalidRequest
from chalicelib.core.timer import RetryPolicy
from chalicelib.http import bodies, mistakes, raw_json, requests
from tests.support.fakes import START
from tests.support.routes import JSON, URL, Api, refused

UNKNOWN_FIELDS = {
    "delay": "delay_seconds delaySeconds delay_ms in after wait duration dealy Delay",
    "fire_at": "at when fireAt fire-at notBefore scheduledFor datetime send_at",
    "once": "cron schedule every",
    "url": "callback callback_url webhook_url target endpoint URL Url destination ulr",
    "method": "verb http_method Method",
    "headers": "header Headers haeders",
    "body": "payload data json",
    "label": "tag tags name title lable",
    "metadata": "meta metaData metdata",
    "max_attempts": "retries max_retries attempts maxAttempts",
    "on_failure": "onFailure on_error",
    "hours": "hour Hours",
    "seconds": "second Seconds secnods",
    "Idempotency-Key": "idempotency_key idempotencyKey",
    "DELETE": "status cancelled",
    "`hours`, `minutes`, `seconds`, `delay`": "x ä -",
}
"""Names that people invent, by a word that the error must contain."""


@pytest.mark.parametrize(
    ("name", "word"),
    [(name, word) for word, names in UNKNOWN_FIELDS.items() for name in names.split()],
)
def test_an_unknown_field_suggests_the_known_one(api_on_fakes: Api, name: str, word: str) -> None:
    """The error names the field that was meant, or all fields."""
    problem = refused(api_on_fakes.send("POST", "/timers", {"url": URL, name: 1}), 400)
    assert problem["pointer"] == f"/{name}"
    assert f"`{name}`" in problem["detail"]
    assert word in problem["detail"].replace(f"`{name}`", "")


TIMER_MISTAKES = [
    ('"seconds": "60"', "/seconds", "Write 60."),
    ('"seconds": 5.5', "/seconds", "whole number"),
    ('"seconds": null', "/seconds", "whole number"),
    ('"seconds": true', "/seconds", "whole number"),
    ('"seconds": 1e400', "/seconds", "whole number"),
    ('"seconds": -5.0', "/seconds", "from 0"),
    ('"hours": 1.5', "/hours", '"delay": "1.5h"'),
    ('"minutes": 0.5', "/minutes", '"delay": "0.5m"'),
    ('"hours": "2h"', "/hours", "Write 2."),
    ('"hours": 1.3333', "/hours", "whole number"),
    ('"delay": 5.5', "/delay", '"1h30m"'),
    ('"delay": "90"', "/delay", '"90s"'),
    ('"delay": "500ms"', "/delay", "w, d, h, m and s"),
    ('"delay": "in 5 minutes"', "/delay", "w, d, h, m and s"),
    ('"delay": "01:30:00"', "/delay", "w, d, h, m and s"),
    ('"fire_at": 1806566400', "/fire_at", '"2027-04-01T08:00:00Z"'),
    ('"fire_at": 1806566400.5', "/fire_at", '"2027-04-01T08:00:00.500000Z"'),
    ('"fire_at": 1806566400000', "/fire_at", '"2027-04-01T08:00:00Z"'),
    ('"fire_at": "1806566400000"', "/fire_at", '"2027-04-01T08:00:00Z"'),
    ('"fire_at": 60', "/fire_at", '"delay": 60'),
    ('"fire_at": "2027-01-31"', "/fire_at", "time is missing"),
    ('"fire_at": "2027-01-31T09:00"', "/fire_at", "zone is missing"),
    ('"method": "post"', "/method", 'Write "POST".'),
    ('"method": "HEAD"', "/method", '"PATCH", "POST" or "PUT"'),
    ('"retry": 3', "/retry", '{"max_attempts":3}'),
    ('"retry": {"retries": 3}', "/retry/retries", "`max_attempts`"),
    ('"retry": {"maxDelay": 3}', "/retry/maxDelay", "`max_delay`"),
    ('"retry": {"x": 3}', "/retry/x", "`max_attempts`, `initial_delay` and `max_delay`"),
    ('"retry": {"max_attempts": "3"}', "/retry/max_attempts", "Write 3."),
    ('"retry": {"initial_delay": "1m"}', "/retry/initial_delay", "Write 60."),
    ('"timeout": "10s"', "/timeout", "Write 10."),
    ('"timeout": "1m"', "/timeout", "from 1 to 30"),
    ('"timeout": 31', "/timeout", "from 1 to 30"),
    ('"headers": {"X-A": "1", "X-N": 5}', "/headers/X-N", 'Write "5".'),
    ('"headers": {"X~/": {}}', "/headers/X~0~1", "a string, not an object"),
    ('"headers": ["X-N: 5"]', "/headers", '{"Authorization":'),
    ('"metadata": {"a": 1}', "/metadata/a", 'Write "1".'),
    ('"metadata": {"a": true}', "/metadata/a", "a string, not true"),
    ('"metadata": {"a": 1', "/metadata", "an object"),
    ('"label": 5', "/label", "1 to 64 characters or null"),
    ('"seconds": 60, "seconds": 30', "/seconds", "repeated"),
    ('"seconds": 60, "s\\u0065conds": 60', "/seconds", "repeated"),
    ('"seconds": 5.0, "seconds": 6.0', "/seconds", "repeated"),
    ('"body": 1, "seconds": 1, "body": 1', "/body", "repeated"),
    ('"seconds": 1, "url": "https://example.com/"', "/url", "repeated"),
    ('"seconds": 1, "retry": {"max_delay": 9, "max_delay": 9}', "/retry/max_delay", "repeated"),
    ('"seconds": 1, "headers": {"X-A": "1", "X-A": "1"}', "/headers/X-A", "repeated"),
    ('"seconds": 1, "metadata": {"\\/": "", "/": ""}', "/metadata/~1", "repeated"),
    ('"seconds": 1, "metadata": {"a": "", "": "", "": ""}', "/metadata/", "repeated"),
]
"""Fields of a timer, the pointer of the error, and a text that it must contain."""


@pytest.mark.parametrize(("fields", "pointer", "text"), TIMER_MISTAKES, ids=lambda it: it[:40])
def test_a_mistake_in_a_timer(api_on_fakes: Api, fields: str, pointer: str, text: str) -> None:
    """The error says what to write, alone and in a batch, and nothing is stored."""
    timer = f'{{"url": "{URL}", {fields}}}'
    problem = refused(api_on_fakes.ask("POST", "/timers", timer.encode(), JSON), 400)
    assert problem["pointer"] == pointer
    assert text in problem["detail"]
    batch = f'{{"timers": [{timer}]}}'.encode()
    answer = api_on_fakes.ask("POST", "/timers/batch", batch, JSON)
    if answer.status_code == 200:  # the JSON is valid
        (result,) = answer.json_body["results"]
        assert result["problem"] == problem | {"pointer": f"/timers/0{pointer}"}
    assert not api_on_fakes.store.timers


BODY_MISTAKES = [
    ("POST", "/timers", "", "", '"url"'),
    ("POST", "/timers", " \n", "", "is empty"),
    ("POST", "/timers", "[]", "", "not an array"),
    ("POST", "/timers", "{'seconds': 60}", "", "object keys must be strings"),
    ("POST", "/timers", '{"seconds": 60}', "/url", "`url` is missing"),
    ("PATCH", "/timers/x", "", "", '"delay"'),
    ("PATCH", "/timers/x", '{"status": "cancelled"}', "/status", "DELETE"),
    ("POST", "/timers/batch", "", "", '{"timers": ['),
    ("POST", "/timers/batch", "[]", "", '{"timers": ['),
    ("POST", "/timers/batch", f'{{"url": "{URL}"}}', "/url", '{"timers": ['),
    ("POST", "/timers/batch", '{"timers": [], "timers": []}', "/timers", "repeated"),
    ("POST", "/timers/cancel", '{"id": "x"}', "/id", '{"ids": ['),
    ("POST", "/timers/cancel", '["x"]', "", '{"ids": ['),
    ("POST", "/timers/retry", '{"ids": "x"}', "/ids", "an array"),
    ("POST", "/timers/retry", '{"ids": [5]}', "/ids/0", 'Write "5".'),
]


@pytest.mark.parametrize(("method", "path", "body", "pointer", "text"), BODY_MISTAKES)
def test_a_mistake_in_a_body(
    api_on_fakes: Api, method: str, path: str, body: str, pointer: str, text: str
) -> None:
    """The error shows a body of this route, or what is wrong with it."""
    problem = refused(api_on_fakes.ask(method, path, body.encode(), JSON), 400)
    assert problem["pointer"] == pointer
    assert text in problem["detail"]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("state=failed", "`status`"),
        ("page_size=5", "`limit`"),
        ("per_page=5", "`limit`"),
        ("page=2", "`cursor`"),
        ("offset=20", "`cursor`"),
        ("since=2026-01-31T00:00:00Z", "`from`"),
        ("tag=x", "`label`"),
        ("x=1", "`status`, `label`, `from`, `to`, `limit` and `cursor`"),
        ("status=pending", 'Write "scheduled".'),
        ("status=FAILED", 'Write "failed".'),
        ("status=canceled", 'Write "cancelled".'),
        ("status=x", '"retrying" or "scheduled"'),
        ("limit=500", "from 1 to 100"),
        ("limit=many", "from 1 to 100"),
    ],
)
def test_a_mistake_in_a_query(api_on_fakes: Api, query: str, text: str) -> None:
    """The error names the right parameter, or its values; it has no pointer."""
    problem = refused(api_on_fakes.ask("GET", f"/timers?{query}"), 400)
    assert "pointer" not in problem
    assert f"`{query.partition('=')[0]}`" in problem["detail"]
    assert text in problem["detail"]


@pytest.mark.parametrize("status", ["scheduled", "retrying"])
def test_a_waiting_timer_is_fired_instead(api_on_fakes: Api, status: str) -> None:
    """Only a failed timer can be retried; the error says what else sends the webhook."""
    id = api_on_fakes.create()["id"] if status == "scheduled" else api_on_fakes.retrying()
    detail = refused(api_on_fakes.ask("POST", f"/timers/{id}/retry"), 409)["detail"]
    assert status in detail
    assert "fire" in detail


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ('"seconds": 5.0', 5),
        ('"delay": 1e2', 100),
        ('"hours": 1.0, "minutes": 2.0, "seconds": 300E-2', 3723),
    ],
)
def test_whole_numbers_may_have_a_decimal_point(fields: str, seconds: int) -> None:
    """5.0 is 5, as in JSON Schema; the rest of the body stays as written."""
    content = f'{{"url": "{URL}", {fields}, "body": [5.0,  5], "retry": {{"max_delay": 99.0}}}}'
    timer = requests.decode(content.encode(), bodies.NewTimer).spec(START, None)
    assert timer.deadline == START + timedelta(seconds=seconds)
    assert timer.webhook.body == "[5.0,  5]"
    assert timer.webhook.retry == RetryPolicy(max_delay=99)


@pytest.mark.parametrize(
    "fields",
    [
        '"body": {"a": 1, "a": 2}',
        '"metadata": {"url": "", "seconds": ""}, "headers": {"url": "", "seconds": ""}',
        '"metadata": {"\\u0061": "", "\\u0062": ""}',
        '"label": "\\u00e4", "metadata": {"a\\\\": ", \\"a\\": "}',
    ],
)
def test_other_fields_are_no_repetition(api_on_fakes: Api, fields: str) -> None:
    """The webhook's own body is sent as written; a name may recur in another object."""
    content = f'{{"url": "{URL}", "seconds": 1, {fields}}}'.encode()
    assert api_on_fakes.post(content).status_code == 201


members = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
        st.none() | st.integers() | st.text(' "\\:,{ä', max_size=4),
    ),
    max_size=4,
)


@given(members, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]))
def test_every_repetition_is_found(
    written: list[tuple[str, object]], escaped: bool, separators: tuple[str, str]
) -> None:
    """A repeated name is found in every spelling of the JSON, and nothing else is."""
    comma, colon = separators
    texts = [json.dumps(it, ensure_ascii=escaped) for pair in written for it in pair]
    pairs = [f"{name}{colon}{value}" for name, value in zip(texts[::2], texts[1::2], strict=True)]
    content = f"{{{comma.join(pairs)}}}".encode()
    names = [name for name, _ in written]
    found = raw_json.repeated_field(content, ())
    assert (found is not None) == (len(set(names)) < len(names))
    assert found is None or names.count(found[0]) > 1


@pytest.mark.parametrize(
    "kind", [bodies.NewTimer, bodies.TimerChange, bodies.BatchEntry, bodies.Batch, bodies.Ids]
)
def test_examples_in_messages_are_valid(kind: type) -> None:
    """A body as the error for an empty body shows it is accepted."""
    requests.decode(mistakes.EXAMPLES[kind].encode(), kind)


VALUES: st.SearchStrategy[object] = (
    st.sampled_from([None, True, [], [1], {}, {"a": 1}, {"a": {"b": []}}, {"max_delay": "x"}])
    | st.integers()
    | st.floats()
    | st.text(max_size=50)
)
NAMES = st.sampled_from(bodies.BatchEntry.__struct_fields__) | st.text(
    "x` -at$.[0]retry", max_size=12
)


@pytest.mark.parametrize("kind", [bodies.NewTimer, bodies.Batch, bodies.Ids])
@settings(deadline=None)  # the first mistake loads difflib
@given(body=st.dictionaries(NAMES, VALUES, max_size=4), end=st.sampled_from(["", "}", "]", '"']))
def test_every_mistake_is_explained(kind: type, body: dict[str, object], end: str) -> None:
    """Whatever is wrong, the error is a sentence with a pointer."""
    content = json.dumps(body).removesuffix("}") + end
    try:
        requests.decode(content.encode(), kind)
    except InvalidRequest as error:
        assert (str(error)[-1], error.pointer is None) == (".", False)  # noqa: PT017  # if any
