"""Fingerprints: a repeated create is recognized by the meaning of its JSON."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.core.timer import IdempotencyKey, Webhook, new_timer
from chalicelib.http import fingerprints, requests
from chalicelib.http.bodies import NewTimer
from tests.support.fakes import START

URL = "http://localhost/hook"


def keyed(text: str) -> IdempotencyKey:
    key = requests.decode(text.encode(), NewTimer).spec(START, "k").idempotency_key
    assert key is not None
    return key


def fingerprint(text: str) -> str:
    return keyed(text).fingerprint


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
def test_fingerprint_covers_values_only(text: str, same: bool) -> None:
    """The fingerprint covers the values, not spaces or the order of fields."""
    assert (fingerprint(text) == fingerprint(FIRST)) is same


def with_body(text: str) -> str:
    return f'{{"url": "{URL}", "seconds": 5, "body": {text}}}'


MEANINGS = [
    ('{"a": [1, null, true], "b": {"c": "", "d": 2}}', '{"b":{"d":2,"c":""},"a":[1,null,true]}'),
    ('{"a": "ä/\\n€"}', r'{"a": "\u00e4\/\u000a\u20AC"}'),
    (r'{"\u0061": 1}', '{"a": 1}'),
    ('"ä"', r'"\u00E4"'),
    ("[1]", "[1.0]"),
    ("[100]", "[1e2]"),
    ("[-0.5]", "[-5E-1]"),
    ("[0]", "[-0.0]"),
    ("[0.1]", "[0.10]"),
    ("[12345678901234567890]", "[1234567890123456789e1]"),
    ("[1e400]", "[10.0e399]"),
]
"""Pairs of bodies that mean the same."""

DIFFERENCES = [
    ('{"a": 1}', '{"a": "1"}'),
    ('{"a": 1}', '{"A": 1}'),
    ('{"a": 1}', '[["a", 1]]'),
    ('{"a": null}', "{}"),
    ("[1, 2]", "[2, 1]"),
    ("[0]", "[false]"),
    ("[0.1]", "[0.10000000000000000001]"),
    ("[9007199254740993]", "[9007199254740992]"),
    ("[12345678901234567890123]", "[12345678901234567890124]"),
    ("[1e400]", "[1e401]"),
    ("[1e99999999999999999999]", "[2e99999999999999999999]"),
    ("[" + "1" * 5000 + "]", "[" + "1" * 4999 + "2]"),
    ('"a"', '"a "'),
]
"""Pairs of bodies that mean different things, also to a program with small numbers."""


@pytest.mark.parametrize(("one", "other"), MEANINGS)
def test_fingerprint_compares_bodies_by_meaning(one: str, other: str) -> None:
    """Order of fields, spaces, escapes and the spelling of numbers make no difference."""
    assert fingerprint(with_body(one)) == fingerprint(with_body(other))


@pytest.mark.parametrize(("one", "other"), DIFFERENCES)
def test_fingerprint_tells_bodies_apart(one: str, other: str) -> None:
    """Different values have different fingerprints, however large they are."""
    assert fingerprint(with_body(one)) == fingerprint(with_body(one))
    assert fingerprint(with_body(one)) != fingerprint(with_body(other))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=12,
)


@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_fingerprint_survives_another_json_library(
    value: object, ascii: bool, indent: int | None
) -> None:
    """A client may encode the same value in another way when it repeats a request."""
    one = json.dumps(value)
    other = json.dumps(value, ensure_ascii=ascii, indent=indent, sort_keys=True)
    assert fingerprint(with_body(one)) == fingerprint(with_body(other))


def test_text_decides_where_the_meaning_is_out_of_reach() -> None:
    """JSON that is nested too deeply for Python has a fingerprint too: that of its text."""
    one, other = (b"[" * 5000 + digit + b"]" * 5000 for digit in (b"1", b"2"))
    assert fingerprints.of_meaning(one) == fingerprints.of_meaning(one)
    assert fingerprints.of_meaning(one) != fingerprints.of_meaning(other)


def test_a_short_number_stays_short() -> None:
    """A number such as 1e4000 is not written out, so a small body can't occupy the server."""
    number = fingerprints._DECODER.decode(b"1e4000")
    assert fingerprints._ENCODER.encode(number) == b"1E+4000"


STORED = {
    f'{{"url": "{URL}", "seconds": 5, "headers": {{"b": "2", "a": "1"}},'
    r' "body": {"x" : 1, "a": "\u00e4"}}': (
        "v2:495213dc8547e88b0af892396151821c57efb195188815f7554f2ab1dac1d470",
        "fe370424269d06f1d2b20646ef9c343615ed011fcb16c4d277d47e82e8a48a81",
    ),
    '{"retry": {"max_attempts": 3}, "delay": "1h30m", "label": "x",'
    f' "metadata": {{"b": "ä", "a": ""}}, "url": "{URL}"}}': (
        "v2:950de57513d5015645331becb68d0d5f73975439b5023ce3e7df09e100191103",
        "1ffa15c10c732c74f2678ef70c5425b5e80b18871d23aba038ad4a2b7eaa4f49",
    ),
}
"""Requests, with the fingerprints that this version and version 0.2 stored. They never change."""


@pytest.mark.parametrize("text", STORED)
def test_stored_fingerprints_still_match(text: str) -> None:
    """A request that is repeated after an upgrade finds the timer that it created."""
    key = keyed(text)
    assert (key.fingerprint, key.former) == STORED[text]
    for fingerprint in STORED[text]:
        timer = new_timer("id-1", "acme", Webhook(url=URL), START, START, fingerprint)
        assert key.is_of(timer)
        assert not keyed(FIRST).is_of(timer)


def test_fingerprint_of_an_entry_is_that_of_the_timer() -> None:
    """An Idempotency-Key means the same in a batch and alone."""
    content = f'{{"timers": [{FIRST[:-1]}, "idempotency_key": "k"}}]}}'.encode()
    request: Any = SimpleNamespace(headers={"content-type": "application/json"}, raw_body=content)
    (entry,) = requests.timer_specs(request, START)
    assert entry == requests.decode(FIRST.encode(), NewTimer).spec(START, "k")
