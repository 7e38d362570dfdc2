"""What requests may ask for: bodies, query parameters, cursors, and what a PATCH changes."""

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
NO_MOMENT = 'It is no moment like "2027-01-31T09:00:00+01:00"'
TEXT = "text/plain; charset=utf-8"


def spec(key: str | None = None, **members: Any) -> TimerSpec:
    """Return what a body with a good URL and these members asks for."""
    text = json.dumps({"url": URL, **members}).encode()
    return requests.decode(text, NewTimer).spec(START, key)


def refusal(**members: Any) -> tuple[str, str | None]:
    """Return the words and the pointer with which these members are refused."""
    with pytest.raises(InvalidRequest) as caught:
        spec(**members)
    return str(caught.value), caught.value.pointer


@pytest.mark.parametrize(
    ("members", "seconds"),
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
def test_ways_to_say_when(members: dict[str, Any], seconds: float) -> None:
    """A delay as a number or a duration, or a moment; one in the past is now."""
    assert spec(**members).deadline == START + timedelta(seconds=seconds)


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
def test_one_way_only(one: str, other: str) -> None:
    """Two ways at once are refused, although hours, minutes and seconds go together."""
    both = {**WAYS[one], **WAYS[other]}
    if one == other or {one, other} <= PARTS or len(both) == 1:
        spec(**both)
    else:
        assert refusal(**both)[1] == ""


@pytest.mark.parametrize(
    ("members", "pointer"),
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
        (
            {"delay": 1, "metadata": {"a": 1}},
            "/metadata",
        ),
        (
            {"delay": 1, "metadata": {"a": {}}},
            "/metadata",
        ),
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
def test_refused(members: dict[str, Any], pointer: str) -> None:
    """Each mistake has a sentence and the pointer to it."""
    assert refusal(**members)[1] == pointer


@given(st.integers(0, 4), st.integers(0, 30), st.integers(0, 70), st.integers(0, 10**10 - 1))
def test_all_ways_say_the_same(days: int, hours: int, minutes: int, seconds: int) -> None:
    """A delay in parts, in seconds, as a duration, and the moment that it leads to are one."""
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


def test_metadata_is_small() -> None:
    """Names and values have 4 KB together, in UTF-8."""
    fits = {"ä": "x" * (MAX_METADATA_BYTES - 2)}
    assert spec(delay=1, metadata=fits).webhook.metadata == fits
    assert refusal(delay=1, metadata={"ä": "x" * (MAX_METADATA_BYTES - 1)})[1] == "/metadata"


def test_label_counts_characters() -> None:
    """64 characters, however many bytes they are; null is none."""
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
        # Who gives a body keeps its type, unless the headers are given too.
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
def test_change(text: str, different: dict[str, Any]) -> None:
    """What is there replaces what was; all else stays. null takes away what need not be there."""
    assert changed(BEFORE, text) == different


@pytest.mark.parametrize(
    ("text", "kind"), [('{"body": "x"}', TEXT), ('{"body": {}}', "application/json")]
)
def test_a_first_body_brings_its_type(text: str, kind: str) -> None:
    """As at creation."""
    different = changed(Webhook(url=URL), text)
    assert different["headers"] == {"Content-Type": kind}


def test_no_body_needs_no_type() -> None:
    """Who replaces the headers of a webhook without a body has those headers and no others."""
    before = Webhook(url=URL, headers={"Content-Type": "text/x"})
    assert changed(before, '{"headers": {}}') == {"headers": {}}


def test_a_change_leaves_the_timer_it_came_from_alone() -> None:
    """Nothing of the stored value is edited in place."""
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
def test_refused_change(text: str, pointer: str) -> None:
    """What could not be created can't be changed to either, also where only the whole is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        changed(BEFORE, text)
    assert (caught.value.pointer or "").startswith(pointer)


def test_a_url_from_before_the_rules_may_stay() -> None:
    """Who changes a label is not told of a URL that is forbidden since."""
    before = Webhook(url="http://10.0.0.1/")
    assert changed(before, '{"label": "x"}') == {"label": "x"}


def fingerprint(text: str) -> str:
    key = requests.decode(text.encode(), NewTimer).spec(START, "k").idempotency_key
    assert key is not None
    return key.fingerprint


FIRST = f'{{"url": "{URL}", "seconds": 5, "headers": {{"a": "1", "b": "2"}}, "body": {{"x": 1}}}}'


OTHER_ORDER = (
    f'{{"seconds": 5, "headers": {{"b": "2", "a": "1"}}, "body": {{"x": 1}}, "url": "{URL}"}}'
)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (FIRST.replace(", ", " ,\n"), True),
        (OTHER_ORDER, True),
        (FIRST.replace("5", "6"), False),
        (FIRST.replace('"seconds"', '"minutes"'), False),
        (FIRST.replace('"1"', '"3"'), False),
        (FIRST.replace('{"x": 1}', '{"x": 2}'), False),
        (FIRST.replace('"seconds": 5', '"seconds": 5, "label": "x"'), False),
        (FIRST.replace('"seconds": 5', '"seconds": 5, "metadata": {"x": "1"}'), False),
        (FIRST.replace('"seconds": 5', '"seconds": 5, "timeout": 7'), False),
    ],
)
def test_fingerprint(text: str, same: bool) -> None:
    """It stands for what is asked for, not for spaces or the order of members."""
    assert (fingerprint(text) == fingerprint(FIRST)) is same


def test_fingerprint_of_an_entry_is_that_of_the_timer() -> None:
    """One key used in a batch and alone is for one and the same."""
    content = f'{{"timers": [{FIRST[:-1]}, "idempotency_key": "k"}}]}}'.encode()
    (entry,) = requests.timer_specs(batch_request(content), START)
    assert entry == requests.decode(FIRST.encode(), NewTimer).spec(START, "k")


@pytest.mark.parametrize(
    "key", ["a", "8e03978e-40d5-43e8-bc93-6894a57f9324", '"quoted"', "~" * 255]
)
def test_key(key: str) -> None:
    """An idempotency key is what people take for one."""
    assert bodies.checked_idempotency_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\n", "\t", "a\x00", "\x7f", "１"])
def test_no_key(key: str) -> None:
    """Empty, too long, beyond ASCII, or with control characters: refused."""
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
    bad = ["5", "{}", FIRST.replace('"seconds": 5', '"seconds": -1'), FIRST[:-1] + ', "x": 1}']
    found = batch(FIRST, *bad, FIRST)
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
def test_no_batch(text: str, pointer: str) -> None:
    """What is no list of at most 100 is refused as a whole."""
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
def test_query(parameters: dict[str, list[str]], wanted: ListQuery) -> None:
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
def test_no_query(parameters: dict[str, list[str]]) -> None:
    """A parameter that is wrong, unknown or repeated is refused, not passed over."""
    with pytest.raises(InvalidRequest) as caught:
        requests.parse_query(parameters)
    assert f"`{next(iter(parameters))}`" in str(caught.value)
    assert caught.value.pointer is None


@given(
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001
    st.from_regex(r"\A[0-9A-Za-z-]{1,64}\Z"),
)
def test_cursors_come_back(moment: datetime, id: str) -> None:
    """What is handed out is read again, as it was, and needs no escaping in a URL."""
    text = requests.encode_cursor(Cursor(moment, id))
    assert text is not None
    assert text.replace("-", "a").replace("_", "a").isalnum()
    assert requests.parse_query({"cursor": [text]}).after == Cursor(moment, id)


@given(st.text(max_size=30) | st.binary(max_size=30).map(lambda it: it.decode("latin-1")))
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    """There is no text that breaks it."""
    try:
        requests.parse_query({"cursor": [text]})
    except InvalidRequest as error:
        assert "cursor" in str(error)  # noqa: PT017  # that it is no other error is the point


def test_no_cursor() -> None:
    """At the end of a list there is none."""
    assert requests.encode_cursor(None) is None
