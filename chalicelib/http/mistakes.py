"""Explains mistakes in requests: from msgspec's errors to sentences that say what to write.

Slow, because it reads the JSON schemas of the types: valid requests never come here.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import msgspec

from chalicelib.core import durations
from chalicelib.core.errors import InvalidRequest
from chalicelib.http import bodies, raw_json

Schema = Mapping[str, Any]

MAX_QUOTED = 40
"""Characters that a message quotes of a name, or of a value."""

MIN_LIKENESS = 0.75
"""How much of a name must be spelled like a field, for the field to be suggested."""

_TIMER = '{"seconds": 60, "url": "https://example.com/hook"}'

EXAMPLES: Mapping[type, str] = {
    bodies.NewTimer: _TIMER,
    bodies.BatchEntry: _TIMER,
    bodies.TimerChange: '{"delay": "2h"}',
    bodies.Batch: f'{{"timers": [{_TIMER}]}}',
    bodies.Ids: '{"ids": ["019c13ec-9e00-7a31-8f3b-2b1d7d0c5b7e"]}',
}
"""A short example of each type."""

_OTHER_NAMES = {
    # Fields of a timer
    "delay": "in after wait delayseconds delaysec delayms delayminutes duration interval countdown"
    " ttl expiresin firein runin sendin",
    "fire_at": "at when time date datetime timestamp firetime fireson runat sendat scheduledat"
    " scheduledfor scheduletime deliverat executeat triggerat notbefore due dueat deadline eta"
    " startat expiresat",
    "cancel": "status state cancel cancelled canceled",
    "cron": "cron crontab schedule every repeat recurring recurrence rrule",
    "url": "callback callbackurl webhook webhookurl target targeturl endpoint uri destination hook"
    " hookurl href link address to",
    "method": "verb httpmethod",
    "headers": "header httpheaders",
    "body": "payload data json content message text",
    "timeout": "timeoutseconds timelimit",
    "retry.max_attempts": "retries maxretries retrycount attempts maxattempts tries maxtries",
    "retry": "retrypolicy retryconfig backoff",
    "on_failure": "failurecallback failureurl onerror errorurl deadletter fallback",
    "label": "tag tags name title labels group",
    "metadata": "meta notes custom extra attributes properties context",
    "idempotency_key": "deduplicationid dedupid dedupkey",
    "Idempotency-Key": "idempotencykey deduplicationid dedupid dedupkey",
    # Fields of a retry policy
    "max_attempts": "retries maxretries attempts count limit tries times",
    "initial_delay": "delay mindelay firstdelay backoff interval wait",
    "max_delay": "maxbackoff maxinterval maxwait",
    # Parameters of a list
    "status": "state",
    "limit": "pagesize perpage size count max first top",
    "from": "since createdafter createdfrom start startdate",
    "to": "until before createdbefore createdto end enddate",
    "cursor": "page offset after pagetoken startingafter skip",
    # Statuses
    "scheduled": "pending waiting queued",
    "delivering": "running sending",
    "delivered": "done success succeeded completed sent fired",
    "failed": "error",
}
"""What people call a field, a parameter or a status: without case and punctuation."""

_FIELD_OF = {
    "cancel": "delay",
    "cron": "delay",
    "retry.max_attempts": "retry",
    "Idempotency-Key": "url",
}
"""The field that a type must have, if that is not the key of `_OTHER_NAMES` itself."""

_DEADLINE = "use `delay`, `fire_at`, or `hours`, `minutes` and `seconds`"

_ADVICE = {
    "delay": _DEADLINE,
    "fire_at": _DEADLINE,
    "cancel": "Timers sets the status itself. To cancel a timer, send DELETE /timers/{id}",
    "cron": f"a timer fires once. To set the deadline, {_DEADLINE}",
    "retry.max_attempts": 'use `max_attempts` of `retry`, as in "retry": {"max_attempts": 3}',
    "Idempotency-Key": "`POST /timers` takes it as the header `Idempotency-Key`",
}
"""What to do, if that is not to use the field."""

_KINDS = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "str": "a string",
    "integer": "a whole number",
    "int": "a number",
    "float": "a number",
    "null": "null",
    "bool": "true or false",
}
"""The kinds of values, as JSON Schema and msgspec call them."""

_UNIT_OF = {"hours": "h", "minutes": "m"}
"""The unit of a field with whole numbers; those of others, if any, are seconds."""

_UNKNOWN = re.compile("Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile("Object missing required field `(.*)`")
_GOT = re.compile(", got `(.*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


class Mistake(NamedTuple):
    """An error of msgspec: "Expected `int`, got `str` - at `$.retry.max_attempts`"."""

    fault: str
    path: list[str]
    """Without the names of headers and metadata, which msgspec does not tell."""

    @property
    def is_decimal(self) -> bool:
        """Whether a whole number has a decimal point or an exponent."""
        return self.fault.startswith("Expected `int") and self.fault.endswith("got `float`")


def found_in(error: msgspec.ValidationError) -> Mistake:
    """Return the mistake that msgspec found."""
    fault, _, path = str(error).partition(" - at `$")
    steps = ["".join(step) for step in _STEP.findall(path.removesuffix("`")) if step[1] != "..."]
    return Mistake(fault, steps)


def explained(mistake: Mistake, content: bytes, body_type: type) -> InvalidRequest:
    """Return the error for a mistake in a body, or in query parameters written as an object."""
    fault, path = mistake
    if unknown := _UNKNOWN.fullmatch(fault):
        detail = _unknown(unknown[1], path, body_type)
        path = [*path, unknown[1]]
    elif missing := _MISSING.fullmatch(fault):
        path = [*path, missing[1]]
        detail = f"`{missing[1]}` is missing: it must be {_expected(path, body_type)}."
    else:
        path = _with_name(path, content, body_type)
        detail = _wrong(fault, path, raw_json.value_at(content, path), body_type)
    return InvalidRequest(detail, None if body_type is bodies.Query else raw_json.pointer_to(path))


def repeated(path: Sequence[str]) -> InvalidRequest:
    """Return the error for a field that an object has twice."""
    detail = f"`{_cut('.'.join(path))}` is repeated: send it once."
    return InvalidRequest(detail, raw_json.pointer_to(path))


def malformed(error: Exception, content: bytes, body_type: type) -> InvalidRequest:
    """Return the error for a body that is not JSON."""
    if not content.strip():
        return InvalidRequest(f"The body is empty: send JSON such as {EXAMPLES[body_type]}.", "")
    return InvalidRequest(f"The body is not valid JSON: {error}.", "")


def _unknown(name: str, path: Sequence[str], body_type: type) -> str:
    noun = "parameter" if body_type is bodies.Query else "field"
    names = tuple(_schema_at(path, body_type).get("properties", ()))
    likely = _likely(_cut(name), names)
    if len(names) == 1:
        advice = f"send {EXAMPLES[body_type]}"
    elif likely is not None:
        advice = _ADVICE.get(likely, f"use `{likely}`")
    else:
        advice = f"the {noun}s are {_listed([f'`{it}`' for it in names], 'and')}"
    return f"There is no {noun} `{_cut(name)}`: {advice}."


def _wrong(fault: str, path: Sequence[str], value: bytes | None, body_type: type) -> str:
    root = "A timer" if body_type is bodies.BatchEntry else "The body"
    subject = f"`{_cut('.'.join(path))}`" if path else root
    quoted = value if value is not None and _is_quotable(value) else None
    expected, got = _expected(path, body_type), _got(fault, quoted)
    return f"{subject} must be {expected}{got}.{_hint(quoted, path, body_type)}"


def _expected(path: Sequence[str], body_type: type) -> str:
    """Return what a value must be: "a whole number from 1 to 30, such as 10"."""
    if not path:
        return f"an object such as {EXAMPLES[body_type]}"
    schema = _schema_at(path, body_type)
    kinds = " or ".join(_kind(it) for it in schema.get("anyOf", [schema]))
    examples = [_json(it) for it in schema.get("examples", ())]
    return f"{kinds}, such as {_listed(examples, 'or')}" if examples else kinds


def _kind(schema: Schema) -> str:
    match schema:
        case {"enum": values}:
            return _listed([_json(it) for it in values], "or")
        case {"type": "integer", "minimum": low, "maximum": high}:
            return f"a whole number from {low} to {high:,}"
        case {"type": "string", "minLength": low, "maxLength": high}:
            return f"a string of {low} to {high} characters"
        case {"type": "string", "minLength": low}:
            return f"a string of at least {low} character"
        case {"type": "array", "maxItems": most}:
            return f"an array of at most {most}"
    return _KINDS[schema.get("type", "object")]


def _got(fault: str, quoted: bytes | None) -> str:
    if quoted is not None:
        return f", not {quoted.decode(errors='replace')}"
    got = _GOT.search(fault)
    return f", not {_KINDS[got[1]]}" if got else ""


def _hint(quoted: bytes | None, path: Sequence[str], body_type: type) -> str:
    """Return a sentence with what was probably meant, or an empty text."""
    if quoted is None or not path:
        return ""
    try:
        meant = _meant(msgspec.json.decode(quoted), path, _schema_at(path, body_type))
    except (ValueError, OverflowError):  # nothing that can be corrected
        return ""
    return f" Write {meant}." if meant else ""


def _meant(value: Any, path: Sequence[str], schema: Schema) -> str | None:
    """Return the JSON that was probably meant, or None; raise ValueError or OverflowError."""
    name, kind = path[-1], schema.get("type")
    meant = None
    match value:
        case bool():
            meant = None
        case str() if "enum" in schema:
            meant = _json(_likely(value, tuple(schema["enum"])))
        case str() if kind == "integer":
            meant = _whole_number(value, _UNIT_OF.get(name, "s"), schema)
        case float() if name in _UNIT_OF:
            meant = _delay(f"{value}{_UNIT_OF[name]}")
        case int() | float() if name == "fire_at":
            meant = _json(durations.moment_since_1970(value)) or f'"delay": {value}'
        case int() | float() if kind == "string" and len(path) > 1:
            meant = _json(str(value))
    return meant


def _whole_number(text: str, unit: str, schema: Schema) -> str | None:
    """Return the number in "60" or "10s", None if it is out of range."""
    duration = durations.parse_duration(f"{text}{unit}" if text[-1:].isdecimal() else text)
    number = duration / durations.parse_duration(f"1{unit}")
    in_range = schema["minimum"] <= number <= schema["maximum"]
    return f"{number:.0f}" if number.is_integer() and in_range else None


def _delay(duration: str) -> str:
    durations.parse_duration(duration)
    return f'"delay": "{duration}"'


@lru_cache(1024)  # programs repeat their mistakes
def _likely(name: str, names: tuple[str, ...]) -> str | None:
    """Return the one of `names`, or the key of `_OTHER_NAMES`, that `name` probably means."""
    from difflib import get_close_matches  # noqa: PLC0415  # would slow every cold start

    words = {_plain(it): it for it in names}
    for meant, others in _OTHER_NAMES.items():
        if _FIELD_OF.get(meant, meant) in names:
            words = dict.fromkeys(others.split(), meant) | words
    close = get_close_matches(_plain(name), words, n=1, cutoff=MIN_LIKENESS)
    return words[close[0]] if close else None


def _with_name(path: list[str], content: bytes, body_type: type) -> list[str]:
    """Return the path with the name that msgspec leaves out: that of a header, for example."""
    value = raw_json.value_at(content, path)
    if value is None or not _schema_at(path, body_type).get("additionalProperties"):
        return path
    name = raw_json.name_of_no_string(value)
    return path if name is None else [*path, name]


def _schema_at(path: Sequence[str], body_type: type) -> Schema:
    """Return the JSON schema of a value; empty if there can be none."""
    definitions = _definitions(body_type)
    schema = definitions[body_type.__name__]
    for step in path:
        items = schema.get("additionalProperties") or schema.get("items") or {}
        schema = schema.get("properties", {}).get(step, items)
        reference = schema.get("$ref", "").rpartition("/")[2]
        schema = {**definitions.get(reference, {}), **schema}
    return schema


@cache
def _definitions(body_type: type) -> Mapping[str, Schema]:
    definitions: Mapping[str, Schema] = msgspec.json.schema(body_type)["$defs"]
    return definitions


def _json(value: object) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()


def _listed(words: Sequence[str], conjunction: str) -> str:
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def _is_quotable(value: bytes) -> bool:
    return len(value) <= MAX_QUOTED and value[:1] not in (b"{", b"[")
