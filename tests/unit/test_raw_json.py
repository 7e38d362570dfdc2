"""JSON as the client wrote it: repetitions, numbers, and the text at a path."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.http import raw_json

fields = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
        st.none() | st.integers() | st.text(' "\\:,{ä', max_size=4),
    ),
    max_size=4,
)


@given(fields, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]))
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
    ("content", "path", "whole"),
    [
        (b'{"a": 5.0}', ["a"], b'{"a":5}'),
        (b'{"a": -3e2, "b": 1.0}', ["a"], b'{"a":-300,"b":1.0}'),
        (b'{"a": {"b": 1.0, "c":  [2.0]}}', ["a", "b"], b'{"a":{"b":1,"c":[2.0]}}'),
        (b'{"a": 5.5}', ["a"], None),
        (b'{"a": 1e400}', ["a"], None),
    ],
)
def test_a_whole_number_is_rewritten(content: bytes, path: list[str], whole: bytes | None) -> None:
    """Only the number at the path changes, and only if it is whole."""
    changed = raw_json.with_whole_number(content, path)
    if changed is not None and whole is not None:
        assert json.loads(changed) == json.loads(whole)
    assert (changed is None) == (whole is None)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([], b'{"a": [1, {"b~/": 1.10}]}'),
        (["a"], b'[1, {"b~/": 1.10}]'),
        (["a", "1", "b~/"], b"1.10"),
        (["a", "2"], None),
        (["a", "x"], None),
        (["a", "0", "b"], None),
        (["x"], None),
    ],
)
def test_a_value_keeps_its_spelling(path: list[str], text: bytes | None) -> None:
    """A value is found by its path, exactly as written; None if there is none."""
    assert raw_json.value_at(b'{"a": [1, {"b~/": 1.10}]}', path) == text


def test_a_deeply_nested_value_is_found_or_not() -> None:
    """msgspec can't skip such a value on some versions of Python."""
    deep = b"[" * 5000 + b"]" * 5000
    assert raw_json.value_at(b'{"a": ' + deep + b"}", ["a"]) in (None, deep)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"a": "", "b": 1, "c": null}', "b"),
        (b'{"a": {}}', "a"),
        (b'{"a": ""}', None),
        (b"{}", None),
        (b"[1]", None),
    ],
)
def test_finds_the_first_field_that_is_not_a_string(content: bytes, name: str | None) -> None:
    """Headers and metadata have strings only."""
    assert raw_json.first_non_string_field(content) == name


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (r'"\ud83d\ude00"', None),
        (r'"\uD83D\uDE00 \n \u00e4 \\ud83d"', None),
        (r'"\ud83d"', r"\ud83d"),
        (r'"\ud83d\ud83d\ude00"', r"\ud83d"),
        (r'"\ud83d\u0041"', r"\ud83d"),
        (r'"\\\uDE00"', r"\uDE00"),
    ],
)
def test_finds_half_a_surrogate_pair(text: str, half: str | None) -> None:
    """A character outside the Basic Multilingual Plane needs two escapes."""
    assert raw_json.half_character(text.encode()) == half


@pytest.mark.parametrize(
    ("path", "pointer"), [([], ""), (["a", "0"], "/a/0"), (["~", "/", ""], "/~0/~1/")]
)
def test_a_pointer_escapes_its_steps(path: list[str], pointer: str) -> None:
    """Pointers follow RFC 6901."""
    assert raw_json.pointer_to(path) == pointer
