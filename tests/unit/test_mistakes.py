"""Mistakes of beginners: the error says what to write, and points to the fault."""

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.core.errors import InvalidRequest
from chalicelib.core.timer import RetryPolicy
from chalicelib.http import bodies, mistakes, requests
from tests.support.fakes import START
from tests.support.routes import BODIES, JSON, URL, Api, refused

ALL_FIELDS = "`hours`, `minutes`, `seconds`, `delay`"

UNKNOWN_FIELDS = {
    "delay": "delay_seconds delaySeconds in after wait duration dealy Delay",
    "fire_at": "at when fireAt fire-at notBefore scheduledFor datetime send_at",
    "once": "cron schedule every",
    "url": "callback callback_url webhook_url target endpoint URL Url destination ulr",
    "method": "verb http_method Method",
    "`delay`, in seconds": "delay_ms delayMs delay_in_ms delayMilliseconds",
    "`timeout`, in seconds": "timeout_ms timeoutMillis",
    '"delay": "3d"': "days day",
    '"delay": "1w"': "weeks Weeks",
    '"headers": {"Content-Type":': "content_type contentType Content-Type mime_type",
    '"headers": {"Authorization":': "authorization bearer",
    '"retry": {"max_attempts":': "max_attempts",
    '"retry": {"max_delay":': "max_delay",
    '"retry": {"initial_delay":': "initial_delay retry_delay",
    "headers": "header Headers haeders",
    "body": "payload data json",
    "label": "tag tags name title lable",
    "metadata": "meta metaData metdata",
    "max_attempts": "retries max_retries attempts maxAttempts",
    "on_failure": "onFailure on_error fallback_url on_failur",
    "hours": "hour Hours",
    "seconds": "second Seconds secnods milliseconds",
    "Idempotency-Key": "idempotency_key idempotencyKey",
    "DELETE": "status cancelled",
    ALL_FIELDS: "x ä - ... hook_id ref rate params forms uri_id",
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
    assert ("`metadata`." in problem["detail"]) is (word in ("metadata", ALL_FIELDS))


DEEP = "[" * 2000 + "]" * 2000
"""Too deeply nested for some versions of Python: 3.13 and newer read it."""

TIMER_MISTAKES = [
    ('"seconds": "60"', "/seconds", "Write 60."),
    ('"seconds": 5.5', "/seconds", "Write 6."),
    ('"seconds": -5.5', "/seconds", "not -5.5.\n"),
    ('"delay": 5.5', "/delay", "Write 6."),
    ('"timeout": 0.5', "/timeout", "Write 1."),
    ('"timeout": 30.5', "/timeout", "not 30.5.\n"),
    ('"retry": {"max_attempts": 2.5}', "/retry/max_attempts", "not 2.5.\n"),
    ('"seconds": null', "/seconds", "whole number"),
    ('"seconds": true', "/seconds", "whole number"),
    ('"seconds": 1e400', "/seconds", "whole number"),
    ('"seconds": -5.0', "/seconds", "from 0"),
    ('"hours": 1.5', "/hours", '"delay": "1.5h"'),
    ('"minutes": 0.5', "/minutes", '"delay": "0.5m"'),
    ('"hours": 1.5, "minutes": 5', "/hours", "instead of `hours`, `minutes` and `seconds`"),
    ('"hours": 99999.5', "/hours", "not 99999.5.\n"),
    ('"hours": "2h"', "/hours", "Write 2."),
    ('"hours": 1.3333', "/hours", "whole number"),
    ('"delay": 5.5', "/delay", '"1h30m"'),
    ('"delay": "90"', "/delay", '"90s"'),
    ('"delay": "1M"', "/delay", '"1m"'),
    ('"delay": "2027-01-31T09:00:00Z"', "/delay", "`fire_at`"),
    ('"delay": "2027-01-31"', "/delay", "`fire_at`"),
    ('"delay": "500ms"', "/delay", "w, d, h, m and s"),
    ('"delay": "in 5 minutes"', "/delay", "w, d, h, m and s"),
    ('"delay": "01:30:00"', "/delay", "w, d, h, m and s"),
    ('"fire_at": 1806566400', "/fire_at", '"2027-04-01T08:00:00Z"'),
    ('"fire_at": 1806566400.5', "/fire_at", '"2027-04-01T08:00:00.500000Z"'),
    ('"fire_at": 1806566400000', "/fire_at", '"2027-04-01T08:00:00Z"'),
    ('"fire_at": "1806566400000"', "/fire_at", '"2027-04-01T08:00:00Z"'),
    ('"fire_at": 60', "/fire_at", '"delay": 60 instead of `fire_at`'),
    ('"fire_at": 60.0', "/fire_at", '"delay": 60 instead of `fire_at`'),
    ('"fire_at": 60.5', "/fire_at", "not 60.5.\n"),
    ('"fire_at": -1', "/fire_at", "not -1.\n"),
    ('"fire_at": 1e300', "/fire_at", "not 1e300.\n"),
    (f'"fire_at": {"9" * 30}', "/fire_at", f"not {'9' * 30}.\n"),
    ('"fire_at": "5m"', "/fire_at", "`delay`"),
    ('"fire_at": "60"', "/fire_at", "`delay`"),
    ('"fire_at": "2027-01-31"', "/fire_at", "time is missing"),
    ('"fire_at": "2027-01-31T09:00"', "/fire_at", "zone is missing"),
    ('"method": "post"', "/method", 'Write "POST".'),
    ('"method": "HEAD"', "/method", '"PATCH", "POST" or "PUT"'),
    ('"retry": 3', "/retry", '{"max_attempts":3}'),
    ('"retry": {"retries": 3}', "/retry/retries", "`max_attempts`"),
    ('"retry": {"maxDelay": 3}', "/retry/maxDelay", "`max_delay`"),
    ('"retry": {"backoff": "exponential"}', "/retry/backoff", "leave it out"),
    ('"retry": {"x": 3}', "/retry/x", "`max_attempts`, `initial_delay` and `max_delay`"),
    ('"retry": {"max_attempts": "3"}', "/retry/max_attempts", "Write 3."),
    ('"retry": {"initial_delay": "1m"}', "/retry/initial_delay", "Write 60."),
    ('"timeout": "10s"', "/timeout", "Write 10."),
    ('"timeout": "1m"', "/timeout", "seconds from 1 to 30"),
    ('"retry": {"max_delay": 0}', "/retry/max_delay", "seconds from 1"),
    ('"retry": {"initial_delay": null}', "/retry/initial_delay", "seconds from 1"),
    ('"retry": {"max_attempts": "3s"}', "/retry/max_attempts", 'not "3s".\n'),
    ('"timeout": 31', "/timeout", "from 1 to 30"),
    ('"headers": {"X-A": "1", "X-N": 5}', "/headers/X-N", 'Write "5".'),
    ('"headers": {"X~/": {}}', "/headers/X~0~1", "a string, not an object"),
    ('"headers": ["X-N: 5"]', "/headers", '{"Authorization":'),
    ('"metadata": {"a": 1}', "/metadata/a", 'Write "1".'),
    ('"metadata": {"a": true}', "/metadata/a", "a string, not true"),
    ('"metadata": {"a": 1.10}', "/metadata/a", 'Write "1.10".'),
    ('"metadata": {"a": 1', "/metadata", "a string"),
    ('"label": 5', "/label", 'such as "invoice-17", or null'),
    ('"label": ""', "/label", "not empty"),
    ('"on_failure": 5', "/on_failure", ", or null"),
    ('"label": "x"', "", '`"seconds": 60`'),
    ('"seconds": 1, "label": "\\ud800"', "", "\\ud800 is half"),
    ('"seconds": 1, "label": "\\\\ud800 \\uDE00"', "", "\\uDE00 is half"),
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
"""Fields of a timer, the pointer of the error, and a text in it; a line feed stands for its end."""


@pytest.mark.parametrize(("fields", "pointer", "text"), TIMER_MISTAKES, ids=lambda it: it[:40])
def test_a_mistake_in_a_timer(api_on_fakes: Api, fields: str, pointer: str, text: str) -> None:
    """The error says what to write, alone and in a batch, and nothing is stored."""
    timer = f'{{"url": "{URL}", {fields}}}'
    problem = refused(api_on_fakes.ask("POST", "/timers", timer.encode(), JSON), 400)
    assert problem["pointer"] == pointer
    assert text in problem["detail"] + "\n"
    batch = f'{{"timers": [{timer}]}}'.encode()
    answer = api_on_fakes.ask("POST", "/timers/batch", batch, JSON)
    if answer.status_code == 200:  # the JSON is valid
        (result,) = answer.json_body["results"]
        assert result["problem"] == problem | {"pointer": f"/timers/0{pointer}"}
    assert not api_on_fakes.store.timers


@pytest.mark.parametrize(("field", "name"), [("metadata", "c"), ("headers", "X-N")])
def test_a_deeply_nested_value_is_no_string(api_on_fakes: Api, field: str, name: str) -> None:
    """The pointer ends at the field, or at the name if this Python can read the value."""
    timer = f'{{"url": "{URL}", "seconds": 1, "{field}": {{"{name}": {DEEP}}}}}'
    problem = refused(api_on_fakes.ask("POST", "/timers", timer.encode(), JSON), 400)
    assert problem["pointer"] in (f"/{field}", f"/{field}/{name}")
    assert "must be a string" in problem["detail"]


@pytest.mark.parametrize("seconds", ["1", "1.0"])
def test_a_deeply_nested_body_is_sent_or_refused(api_on_fakes: Api, seconds: str) -> None:
    """If this Python can't read it, the error says so."""
    timer = f'{{"url": "{URL}", "seconds": {seconds}, "body": {DEEP}}}'
    answer = api_on_fakes.ask("POST", "/timers", timer.encode(), JSON)
    if answer.status_code == 201:
        assert answer.json_body["body"] == DEEP
    else:
        assert "nested too deeply" in refused(answer, 400)["detail"]


TOO_MANY = f'{{"timers": [{",".join(["{}"] * 101)}]}}'

BODY_MISTAKES = [
    ("POST", "/timers", "", "", '"url"'),
    ("POST", "/timers", " \n", "", "is empty"),
    ("POST", "/timers", "[]", "", "not an array"),
    ("POST", "/timers", "{'seconds': 60}", "", "JSON: object keys must be strings"),
    ("POST", "/timers", '{"seconds": 60', "", "it ends too early"),
    ("POST", "/timers", '{"seconds": 60}', "/url", "`url` is missing"),
    ("PATCH", "/timers/x", "", "", '"delay"'),
    ("PATCH", "/timers/x", '{"status": "cancelled"}', "/status", "DELETE"),
    ("POST", "/timers/batch", "", "", '{"timers": ['),
    ("POST", "/timers/batch", "[]", "", '{"timers": ['),
    ("POST", "/timers/batch", TOO_MANY, "/timers", "100 timers, not 101."),
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
    assert text in problem["detail"] + "\n"


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
        ("status=pending", "Write status=scheduled."),
        ("status=FAILED", "Write status=failed."),
        ("status=canceled", "Write status=cancelled."),
        ("status=x", " retrying or scheduled,"),
        ("status=", "not empty"),
        ("from=2026-01-31T12:00:00 01:00", "00%2B01:00"),
        ("to=2026-01-31T12:00:00", '"%2B01:00"'),
        ("limit=500", "from 1 to 100"),
        ("limit=many", "from 1 to 100"),
        ("limit=10s", 'not "10s".\n'),
    ],
)
def test_a_mistake_in_a_query(api_on_fakes: Api, query: str, text: str) -> None:
    """The error names the right parameter, or its values; it has no pointer."""
    problem = refused(api_on_fakes.ask("GET", f"/timers?{query}"), 400)
    assert "pointer" not in problem
    assert f"`{query.partition('=')[0]}`" in problem["detail"]
    assert text in problem["detail"] + "\n"


@pytest.mark.parametrize("path", ["/timers", "/timers/batch"])
def test_a_byte_order_mark_is_ignored(api_on_fakes: Api, path: str) -> None:
    """Some editors put a byte order mark before the JSON."""
    content = b"\xef\xbb\xbf" + BODIES["POST", path]
    assert api_on_fakes.ask("POST", path, content, JSON).status_code < 300
    refused(api_on_fakes.ask("POST", path, b"\xef\xbb\xbf" + content, JSON), 400)


NUMBERS = st.integers() | st.floats() | st.integers(0, 10**11) | st.floats(0, 10**5).map(round)
SPELLINGS = st.builds(
    "{}{}".format, st.integers(0, 10**6), st.sampled_from(["", "s", "m", "M", "h", "ms"])
)
SCALARS = st.one_of(NUMBERS, st.floats(0, 100), SPELLINGS, st.sampled_from(["put", "Patch", "POS"]))


@given(
    st.sampled_from(["hours", "minutes", "seconds", "delay", "fire_at", "method", "timeout"]),
    SCALARS,
    st.booleans(),
)
def test_every_hint_can_be_followed(name: str, value: object, is_alone: bool) -> None:
    """A request that follows a hint has no other mistake in that field."""
    timer = {"url": URL, name: value} if is_alone else {"url": URL, "minutes": 5, name: value}
    error = mistake_in(timer)
    hint = re.search(r"[Ww]rite (.*?)(?: instead of (.*))?\.$", str(error))
    if error is None or hint is None or hint[1].startswith("a "):
        return
    assert error.pointer == f"/{name}"
    for other in re.findall("`([a-z_]+)`", hint[2] or ""):
        timer.pop(other, None)
    text = re.sub('^.* or (?=")|^the date and time as ', "", hint[1])
    timer |= json.loads(f"{{{text}}}" if '": ' in text else f'{{"{name}": {text}}}')
    again = mistake_in(timer)
    assert again is None or again.pointer not in (f"/{name}", "/delay") or "5 years" in str(again)


def mistake_in(timer: dict[str, Any]) -> InvalidRequest | None:
    """Return the error of a create request, None if it is valid."""
    try:
        requests.decode(json.dumps(timer).encode(), bodies.NewTimer).spec(START, None)
    except InvalidRequest as error:
        return error
    return None


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
@settings(deadline=None)  # the first mistake makes the schemas
@given(body=st.dictionaries(NAMES, VALUES, max_size=4), end=st.sampled_from(["", "}", "]", '"']))
def test_every_mistake_is_explained(kind: type, body: dict[str, object], end: str) -> None:
    """The error is a sentence with a pointer, for any wrong text."""
    content = json.dumps(body).removesuffix("}") + end
    try:
        requests.decode(content.encode(), kind)
    except InvalidRequest as error:
        assert (str(error)[-1], error.pointer is None) == (".", False)  # noqa: PT017  # if any
