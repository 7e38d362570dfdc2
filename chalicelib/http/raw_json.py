"""JSON as the client wrote it: details that msgspec's types hide.

A path is the names of the fields, and the positions in arrays, that lead to a value.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec import Raw

_SPACE = b" \t\r\n"

_SURROGATE = re.compile(
    rb"\\(?:u[Dd][89ABab]..\\u[Dd][C-Fc-f]..|u(?P<half>[Dd][89A-Fa-f]..)|.)", re.DOTALL
)
"""An escape; `half` is set if it stands for one half of a surrogate pair, without the other."""

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode
_text = msgspec.json.Encoder().encode

# Reads an object as a list of its fields. Numbers stay texts: they may have any length.
_pairs = json.JSONDecoder(object_pairs_hook=list, parse_int=str, parse_float=str).decode


def repeated_field(content: bytes, objects: Sequence[str]) -> Sequence[str] | None:
    """Return the path of a field that an object has twice, or None.

    `content` is a JSON object. `objects` names the fields that are objects too and are searched.
    Each request pays for this search: about 2 µs for an object of usual size.
    """
    fields = _fields(content)
    # A field keeps the last value only, so the text is shorter if there was another.
    if _is_longer(content, _text(fields)) and (name := _repeated_name(content)) is not None:
        return [name]
    for name in objects:
        if name in fields and (path := repeated_field(bytes(fields[name]), ())) is not None:
            return [name, *path]
    return None


def with_whole_number(content: bytes, path: Sequence[str]) -> bytes | None:
    """Return an object with 5.0 at this path written as 5; None if it is no whole number."""
    fields = _fields(content)
    name, *rest = path
    if rest:
        value = with_whole_number(bytes(fields[name]), rest)
    else:
        number = float(bytes(fields[name]))
        value = b"%d" % int(number) if number.is_integer() else None
    return None if value is None else _text({**fields, name: Raw(value)})


def value_at(content: bytes, path: Sequence[str]) -> bytes | None:
    """Return the text of a value; None if it is not there, or can't be read."""
    try:
        for step in path:
            is_array = content.startswith(b"[")
            content = bytes(_items(content)[int(step)] if is_array else _fields(content)[step])
    except (LookupError, ValueError, RecursionError):
        return None
    return content


def first_non_string_field(content: bytes) -> str | None:
    """Return the name of an object's first field whose value is not a string.

    None if there is none, or if `content` is not an object.
    """
    fields = _fields(content) if content.startswith(b"{") else {}
    return next((name for name, value in fields.items() if bytes(value)[:1] != b'"'), None)


def length(array: bytes) -> int:
    """Return the number of values in an array."""
    return len(_items(array))


def half_character(content: bytes) -> str | None:
    """Return the first escape of half a surrogate pair: `\\ud83d`; None if there is none."""
    halves = (match["half"] for match in _SURROGATE.finditer(content))
    half = next(filter(None, halves), None)
    return None if half is None else f"\\u{half.decode(errors='replace')}"


def pointer_to(path: Sequence[str]) -> str:
    """Return a path as a JSON pointer."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


def _is_longer(content: bytes, text: bytes) -> bool:
    """Say whether `content` is longer than `text`, apart from spaces."""
    return len(content) > len(text) and (
        len(content.translate(None, _SPACE)) > len(text.translate(None, _SPACE))
    )


def _repeated_name(content: bytes) -> str | None:
    # A name with an escape is longer too, and may be no repetition.
    counts = Counter(name for name, _ in _pairs(content.decode()))
    return next((name for name, count in counts.items() if count > 1), None)
