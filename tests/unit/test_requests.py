"""Request bodies, query parameters, cursors and changes."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from chalicelib.core.changes import MAX_METADATA_BYTES
from chalicelib.core.errors import InvalidRequest
from chalicelib.core.pagination import Cursor, ListQuery, TimerFilter
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import MAX_DELAY, RetryPolicy, Status, TimerSpec, Webhook
from chalicelib.http import bodies, requests
from chalicelib.http.bodies import NewTimer, TimerChange
from tests.support.fakes import START

TARGETS = Targets.parse(LOOPBACK_TARGETS)
URL = "http://localhost/hook"
TOO_FAR = "The deadline is more than 5 years ahead."
NO_MOMENT = 'Write a date and time like "2027-01-31T09:00:00+01:00"'
TEXT = "text/plain; charset=utf-8"


def spec(key: str | None = None, **fields: Any) -> TimerSpec:
    """Return the spec of a body with a valid URL and these fields."""
    text = json.dumps({"url": URL, **fields}).encode()
    return requests.decode(text, NewTimer).spec(START, key)


def refusal(**fields: Any) -> tuple[str, str | None]:
    """Return message and pointer of the error for these fields."""
    with pytest.raises(InvalidRequest) as caught:
        spec(**fields)
    return str(caught.value), caught.value.pointer


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"delay": 90}, 90),
        ({"delay": 0}, 0),
        ({"delay": "1h30m"}, 5400),
        ({"delay": "1d2h30m45s"}, 95445),
        ({"delay": "PT1H30M"}, 5400),
        ({"delay": int(MAX_DELAY.total_seconds())}, MAX_DELAY.total_seconds()),
        ({"delay": "1826d"}, MAX_DELAY.total_seconds()),
        ({"fire_at": "2026-01-31T12:00:05Z"}, 5),
        ({"fire_at": "2026-01-31T13:00:00.5+01:00"}, 0.5),
        ({"fire_at": "2031-01-31T12:00:00Z"}, MAX_DELAY.total_seconds()),
        ({"fire_at": "2026-01-31T11:59:59Z"}, 0),
        ({"fire_at": "0001-01-01T00:00:00Z"}, 0),
    ],
)
def test_accepts_every_way_to_set_a_deadline(fields: dict[str, Any], seconds: float) -> None:
    """A deadline is a number, a duration or a time; a time in the past means now."""
    assert spec(**fields).deadline == START + timedelta(seconds=seconds)


WAYS: dict[str, dict[str, Any]] = {
    "hours": {"hours": 1},
    "minutes": {"minutes": 1},
    "seconds": {"seconds": 0},
    "delay": {"delay": 60},
    "duration": {"delay": "1m"},
    "fire_at": {"fire_at": "2026-01-31T12:01:00Z"},
}
PARTS = {"hours", "minutes", "seconds"}


@pytest.mark.parametrize("one", WAYS)
@pytest.mark.parametrize("other", WAYS)
def test_rejects_two_ways_to_set_a_deadline(one: str, other: str) -> None:
    """Two ways at once are rejected; hours, minutes and seconds are one way."""
    both = {**WAYS[one], **WAYS[other]}
    if one == other or {one, other} <= PARTS or len(both) == 1:
        spec(**both)
    else:
        assert refusal(**both)[1] == ""


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({}, ""),
        ({"delay": -1}, "/delay"),
        ({"delay": 1.5}, "/delay"),
        ({"delay": True}, "/delay"),
        ({"delay": None}, "/delay"),
        ({"delay": ""}, "/delay"),
        ({"delay": "90"}, "/delay"),
        ({"delay": "1826d1s"}, "/delay"),
        ({"delay": "9999999999d"}, "/delay"),
        ({"delay": 10**30}, "/delay"),
        ({"fire_at": 5}, "/fire_at"),
        (
            {"fire_at": "2027-01-01T00:00:00"},
            "/fire_at",
        ),
        ({"fire_at": "tomorrow"}, "/fire_at"),
        ({"fire_at": "2027-02-30T00:00:00Z"}, "/fire_at"),
        ({"fire_at": "2031-01-31T12:00:00.000001Z"}, "/fire_at"),
        ({"fire_at": "9999-12-31T23:59:59Z"}, "/fire_at"),
        ({"delay": 1, "label": ""}, "/label"),
        ({"delay": 1, "label": "x" * 65}, "/label"),
        ({"delay": 1, "label": 5}, "/label"),
        ({"delay": 1, "metadata": {"a": 1}}, "/metadata/a"),
        ({"delay": 1, "metadata": {"a": {}}}, "/metadata/a"),
        ({"delay": 1, "metadata": []}, "/metadata"),
        (
            {"delay": 1, "metadata": None},
            "/metadata",
        ),
        (
            {"delay": 1, "idempotency_key": "a"},
            "/idempotency_key",
        ),
    ],
)
def test_invalid_fields_have_a_pointer(fields: dict[str, Any], pointer: str) -> None:
    """Each mistake has a pointer to its field."""
    assert refusal(**fields)[1] == pointer


@given(st.integers(0, 4), st.integers(0, 30), st.integers(0, 70), st.integers(0, 10**10 - 1))
def test_all_ways_agree(days: int, hours: int, minutes: int, seconds: int) -> None:
    """Hours and minutes, seconds, a duration and a time lead to the same deadline."""
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    parts = {"hours": days * 24 + hours, "minutes": minutes, "seconds": seconds}
    ways: list[dict[str, Any]] = [
        parts,
        {"delay": total},
        {"delay": f"{days}d{hours}h{minutes}m{seconds}s"},
        {"delay": f"P{days}DT{hours}H{minutes}M{seconds}S"},
    ]
    if total > MAX_DELAY.total_seconds():
        assert {refusal(**way)[0] for way in ways} == {TOO_FAR}
        return
    deadline = START + timedelta(seconds=total)
    ways.append({"fire_at": deadline.isoformat()})
    assert {spec(**way).deadline for way in ways} == {deadline}


def test_metadata_is_bounded() -> None:
    """Names and values have at most 4 KB of UTF-8 together."""
    fits = {"ä": "x" * (MAX_METADATA_BYTES - 2)}
    assert spec(delay=1, metadata=fits).webhook.metadata == fits
    assert refusal(delay=1, metadata={"ä": "x" * (MAX_METADATA_BYTES - 1)})[1] == "/metadata"


def test_label_counts_characters() -> None:
    """A label has at most 64 characters, however many bytes; null means none."""
    assert spec(delay=1, label="😀" * 64).webhook.label == "😀" * 64
    assert spec(delay=1, label=None).webhook.label is None


BEFORE = Webhook(
    url=URL,
    headers={"X-A": "1", "content-type": "text/x"},
    body="old",
    retry=RetryPolicy(max_attempts=3),
    on_failure=URL,
    label="old",
    metadata={"a": "1"},
)


def changed(before: Webhook, text: str) -> dict[str, Any]:
    """Return the fields in which a PATCH with this body makes the webhook different."""
    after = requests.decode(text.encode(), TimerChange).webhook_change().apply(before)
    was = asdict(before)
    return {name: value for name, value in asdict(after).items() if value != was[name]}


@pytest.mark.parametrize(
    ("text", "different"),
    [
        ("{}", {}),
        ('{"seconds": 5}', {}),
        ('{"url": "http://localhost/{id}"}', {"url": "http://localhost/{id}"}),
        ('{"method": "PUT"}', {"method": "PUT"}),
        ('{"timeout": 3}', {"timeout": 3}),
        ('{"retry": {"max_attempts": 2}}', {"retry": RetryPolicy(max_attempts=2)}),
        ('{"retry": {}}', {"retry": RetryPolicy()}),
        ('{"on_failure": null}', {"on_failure": None}),
        ('{"label": null}', {"label": None}),
        ('{"label": "new"}', {"label": "new"}),
        ('{"metadata": {}}', {"metadata": {}}),
        ('{"metadata": {"b": "2"}}', {"metadata": {"b": "2"}}),
        ('{"body": null}', {"body": ""}),
        # A new body keeps the Content-Type, unless the request has headers too.
        ('{"body": "new"}', {"body": "new"}),
        ('{"body": [1.0]}', {"body": "[1.0]"}),
        ('{"headers": {}}', {"headers": {"Content-Type": "text/x"}}),
        ('{"headers": {"X-B": "2"}}', {"headers": {"X-B": "2", "Content-Type": "text/x"}}),
        (
            '{"headers": {"CONTENT-TYPE": "text/y"}, "body": "new"}',
            {"headers": {"CONTENT-TYPE": "text/y"}, "body": "new"},
        ),
        (
            '{"headers": {}, "body": {"a": 1}}',
            {"headers": {"Content-Type": "application/json"}, "body": '{"a": 1}'},
        ),
        ('{"body": {"a": 1}}', {"body": '{"a": 1}'}),
        ('{"headers": {}, "body": null}', {"headers": {}, "body": ""}),
    ],
)
def test_patch_replaces_given_fields(text: str, different: dict[str, Any]) -> None:
    """Given fields replace the old ones; null removes optional ones."""
    assert changed(BEFORE, text) == different


@pytest.mark.parametrize(
    ("text", "kind"), [('{"body": "x"}', TEXT), ('{"body": {}}', "application/json")]
)
def test_a_first_body_sets_the_content_type(text: str, kind: str) -> None:
    """A body added by PATCH sets the Content-Type, as at creation."""
    different = changed(Webhook(url=URL), text)
    assert different["headers"] == {"Content-Type": kind}


def test_no_content_type_without_a_body() -> None:
    """Replacing the headers of a webhook without a body adds no Content-Type."""
    before = Webhook(url=URL, headers={"Content-Type": "text/x"})
    assert changed(before, '{"headers": {}}') == {"headers": {}}


def test_a_change_edits_nothing_in_place() -> None:
    """The stored value is not edited."""
    before = Webhook(url=URL, headers={"X-A": "1"})
    changed(before, '{"body": "x"}')
    assert before == Webhook(url=URL, headers={"X-A": "1"})
    assert Webhook(url=URL).headers == {}


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ('{"url": null}', "/url"),
        ('{"method": "GET"}', "/body"),
        ('{"headers": {"Host": "x"}}', "/headers"),
        ('{"retry": {"max_delay": 5}}', "/retry/max_delay"),
        ('{"body": "' + "x" * 65_536 + '"}', "/body"),
        ('{"id": "x"}', "/id"),
        ('{"status": "cancelled"}', "/status"),
    ],
)
def test_invalid_changes_have_a_pointer(text: str, pointer: str) -> None:
    """A PATCH can't lead to anything that a create would reject."""
    with pytest.raises(InvalidRequest) as caught:
        changed(BEFORE, text)
    assert (caught.value.pointer or "").startswith(pointer)


def test_an_old_url_may_stay() -> None:
    """Changing a label does not check a URL that has been forbidden since."""
    before = Webhook(url="http://10.0.0.1/")
    assert changed(before, '{"label": "x"}') == {"label": "x"}


@pytest.mark.parametrize(
    "key", ["a", "8e03978e-40d5-43e8-bc93-6894a57f9324", '"quoted"', "~" * 255]
)
def test_accepts_usual_idempotency_keys(key: str) -> None:
    """Printable ASCII is accepted."""
    assert bodies.checked_idempotency_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\n", "\t", "a\x00", "\x7f", "１"])
def test_rejects_other_idempotency_keys(key: str) -> None:
    """Empty, long, non-ASCII keys and control characters are rejected."""
    with pytest.raises(InvalidRequest, match="1 to 255"):
        bodies.checked_idempotency_key(key)


def batch_request(content: bytes) -> Any:
    """Return a request for POST /timers/batch, as far as it is read."""
    headers = {"content-type": "application/json"}
    return SimpleNamespace(headers=headers, raw_body=content)


def batch(*entries: str) -> list[TimerSpec | Exception]:
    content = f'{{"timers": [{",".join(entries)}]}}'.encode()
    return requests.timer_specs(batch_request(content), START)


def test_batch_keeps_its_order() -> None:
    """An invalid entry is an error in its place and affects no other."""
    good = f'{{"url": "{URL}", "seconds": 5}}'
    bad = ["5", "{}", good.replace("5", "-1"), good[:-1] + ', "x": 1}']
    found = batch(good, *bad, good)
    assert [type(it) for it in found] == [TimerSpec, *[InvalidRequest] * 4, TimerSpec]
    pointers = [it.pointer for it in found if isinstance(it, InvalidRequest)]
    assert pointers == ["", "/url", "/seconds", "/x"]


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ("[]", ""),
        ("{}", "/timers"),
        ('{"timers": {}}', "/timers"),
        ('{"timers": [], "x": 1}', "/x"),
        ('{"timers": [' + ",".join(["0"] * 101) + "]}", "/timers"),
        ('{"timers": [1', ""),
    ],
)
def test_rejects_invalid_batches(text: str, pointer: str) -> None:
    """Anything but a list of at most 100 timers is rejected as a whole."""
    with pytest.raises(InvalidRequest) as caught:
        requests.timer_specs(batch_request(text.encode()), START)
    assert caught.value.pointer == pointer


AT = Cursor(START + timedelta(microseconds=1), "00000000-0000-7000-8000-000000000000")


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, ListQuery(TimerFilter(), None, 50)),
        ({"limit": ["1"]}, ListQuery(TimerFilter(), None, 1)),
        ({"limit": ["100"]}, ListQuery(TimerFilter(), None, 100)),
        ({"status": ["failed"]}, ListQuery(TimerFilter(status=Status.FAILED), None, 50)),
        ({"label": ["null"]}, ListQuery(TimerFilter(label="null"), None, 50)),
        ({"label": ["5"]}, ListQuery(TimerFilter(label="5"), None, 50)),
        (
            {"from": ["2026-01-31T13:00:00+01:00"], "to": ["2026-01-31T12:00:01Z"]},
            ListQuery(TimerFilter(since=START, until=START + timedelta(seconds=1)), None, 50),
        ),
        ({"cursor": [requests.encode_cursor(AT)]}, ListQuery(TimerFilter(), AT, 50)),
    ],
)
def test_list_parameters_are_optional(parameters: dict[str, list[str]], wanted: ListQuery) -> None:
    """All parameters may be left out."""
    assert requests.parse_query(parameters) == wanted


@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": ["0"]},
        {"limit": ["101"]},
        {"limit": ["x"]},
        {"limit": ["１０"]},
        {"limit": [""]},
        {"limit": ["5", "6"]},
        {"status": ["done"]},
        {"status": ["null"]},
        {"status": [""]},
        {"label": [""]},
        {"state": ["failed"]},
        {"since": ["2026-01-31T12:00:00Z"]},
        {"from": ["yesterday"]},
        {"to": ["2026-01-31T12:00:00"]},
        {"to": ["2026-01-31T12:00:00 01:00"]},
        {"cursor": [""]},
        {"cursor": ["x"]},
        {"cursor": ["ä"]},
        {"cursor": ["/////"]},
    ],
)
def test_rejects_invalid_list_parameters(parameters: dict[str, list[str]]) -> None:
    """An invalid, unknown or repeated parameter is rejected by name."""
    with pytest.raises(InvalidRequest) as caught:
        requests.parse_query(parameters)
    assert f"`{next(iter(parameters))}`" in str(caught.value)
    assert caught.value.pointer is None


@given(
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001
    st.from_regex(r"\A[0-9A-Za-z-]{1,64}\Z"),
)
def test_cursors_round_trip(moment: datetime, id: str) -> None:
    """A cursor survives encoding and needs no escaping in a URL."""
    text = requests.encode_cursor(Cursor(moment, id))
    assert text is not None
    assert text.replace("-", "a").replace("_", "a").isalnum()
    assert requests.parse_query({"cursor": [text]}).after == Cursor(moment, id)


@given(st.text(max_size=30) | st.binary(max_size=30).map(lambda it: it.decode("latin-1")))
def test_any_text_is_a_cursor_or_rejected(text: str) -> None:
    """Any text is a cursor, or raises InvalidRequest."""
    try:
        requests.parse_query({"cursor": [text]})
    except InvalidRequest as error:
        assert "cursor" in str(error)  # noqa: PT017  # that it is no other error is the point


def test_end_of_a_list_has_no_cursor() -> None:
    """The end of a list has no cursor."""
    assert requests.encode_cursor(None) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"delay": 1, "fire_at": "2027-01-31T09:00:00Z"},
        {"delay": 1, "headers": {"Host": "x"}},
        {"delay": 1, "method": "GET", "body": "text"},
    ],
)
@pytest.mark.parametrize("url", ["ftp://x", "http://localhost/" + "x" * 70_000])
def test_an_invalid_url_is_the_first_fault(url: str, fields: dict[str, Any]) -> None:
    """An invalid URL is named before any other fault of the request."""
    assert refusal(**{**fields, "url": url})[1] == "/url"
