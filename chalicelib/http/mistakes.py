"""Explains mistakes in requests: from msgspec's errors to sentences that say what to write.

Slow, because it reads the JSON schemas of the types: valid requests never reach this module.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from math import ceil
from typing import Any, NamedTuple

import msgspec

from chalicelib.core import durations
from chalicelib.core.errors import InvalidRequest, NotFound
from chalicelib.core.timer import MAX_DELAY
from chalicelib.http import bodies, raw_json

Schema = Mapping[str, Any]

MAX_QUOTED = 40
"""Characters that a message quotes of a name, or of a value."""

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
    "delay": "in after wait delayseconds delaysec delayminutes duration interval countdown"
    " ttl expiresin firein runin sendin",
    "seconds": "ms millis milliseconds",
    "fire_at": "at when time date datetime timestamp firetime fireson runat sendat scheduledat"
    " scheduledfor scheduletime deliverat executeat triggerat notbefore due dueat deadline eta"
    " startat expiresat",
    "days": "day days",
    "weeks": "week weeks",
    "cancel": "status state cancel cancelled canceled",
    "cron": "cron crontab schedule every repeat recurring recurrence rrule",
    "url": "callback callbackurl webhook webhookurl target targeturl endpoint uri destination hook"
    " hookurl href link address to",
    "method": "verb httpmethod",
    "headers": "header httpheaders",
    "Content-Type": "contenttype mediatype mimetype",
    "Authorization": "authorization auth bearer token",
    "body": "payload data json content message text",
    "timeout": "timeoutseconds timelimit",
    "retry.max_attempts": "retries maxretries retrycount attempts maxattempts tries maxtries",
    "retry.initial_delay": "initialdelay retrydelay retryinterval retryafter backoffdelay",
    "retry.max_delay": "maxdelay maxretrydelay maxbackoff",
    "retry": "retrypolicy retryconfig backoff",
    "on_failure": "failurecallback failureurl onerror errorurl deadletter fallback fallbackurl",
    "label": "tag tags name title labels group",
    "metadata": "meta notes custom extra attributes properties context",
    "idempotency_key": "deduplicationid dedupid dedupkey",
    "Idempotency-Key": "idempotencykey deduplicationid dedupid dedupkey",
    # Fields of a retry policy
    "max_attempts": "retries maxretries attempts count limit tries times",
    "initial_delay": "delay mindelay firstdelay interval wait",
    "max_delay": "maxbackoff maxinterval maxwait",
    "backoff": "backoff backofftype backoffrate strategy policy type multiplier factor jitter",
    # Parameters of a list
    "status": "state",
    "limit": "pagesize perpage size count max first top",
    "from": "since createdafter createdfrom start startdate",
    "to": "until before createdbefore createdto end enddate",
    "cursor": "page offset after pagetoken startingafter skip",
    # Statuses
    "scheduled": "pending waiting queued",
    "delivering": "running sending",
    "delivered": "done success succeeded completed sent fired deliver",
    "retrying": "retry",
    "failed": "error fail",
    "cancelled": "cancel",
}
"""Other names for fields, parameters and statuses, in lower case and without punctuation."""

_REQUIRED_FIELD = {
    "days": "delay",
    "weeks": "delay",
    "cancel": "delay",
    "cron": "delay",
    "Content-Type": "headers",
    "Authorization": "headers",
    "retry.max_attempts": "retry",
    "retry.initial_delay": "retry",
    "retry.max_delay": "retry",
    "backoff": "initial_delay",
    "Idempotency-Key": "url",
}
"""For keys that are not fields: the field a type must have to get this advice."""

_DEADLINE = "use `delay`, `fire_at`, or `hours`, `minutes` and `seconds`"

_CANCEL = "To cancel a timer, send DELETE /timers/{id}"

_ADVICE = {
    "delay": _DEADLINE,
    "fire_at": _DEADLINE,
    "days": 'use `delay`, as in "delay": "3d"',
    "weeks": 'use `delay`, as in "delay": "1w"',
    "cancel": f"Timers sets the status itself. {_CANCEL}",
    "cron": f"a timer fires once. To set the deadline, {_DEADLINE}",
    "backoff": "the backoff is always exponential, so leave it out",
    "Idempotency-Key": "`POST /timers` takes it as the header `Idempotency-Key`",
}
"""Advice other than "use the field"."""

_PLACES = {
    "Content-Type": '`headers`, as in "headers": {"Content-Type": "application/json"}',
    "Authorization": '`headers`, as in "headers": {"Authorization": "Bearer sesame"}',
    "retry.max_attempts": '`retry`, as in "retry": {"max_attempts": 3}',
    "retry.initial_delay": '`retry`, as in "retry": {"initial_delay": 10}',
    "retry.max_delay": '`retry`, as in "retry": {"max_delay": 3600}',
}
"""The fields that other names belong in."""

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
"""Units of fields that are not in seconds."""

_IN_SECONDS = frozenset({"seconds", "delay", "timeout", "initial_delay", "max_delay"})
_TIMES = _IN_SECONDS | _UNIT_OF.keys()

_MILLISECONDS = re.compile("(.*?)(?:in)?(?:ms|msecs?|millis|milliseconds?)")
"""A name that ends with this unit, without case and punctuation."""

_CANCEL_PATH = re.compile(r"/timers/[^/?]+/(?:cancel|delete|abort|stop)(?:[/?].*)?")

_UNKNOWN = re.compile("Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile("Object missing required field `(.*)`")
_GOT = re.compile(", got `(.*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_ANY_NAME = "..."
"""The step to a header or to an entry of metadata: msgspec does not tell its name."""


class Mistake(NamedTuple):
    """An error of msgspec: "Expected `int`, got `str` - at `$.retry.max_attempts`"."""

    fault: str
    path: list[str]

    @property
    def is_decimal(self) -> bool:
        """Whether a whole number has a decimal point or an exponent."""
        return self.fault.startswith("Expected `int") and self.fault.endswith("got `float`")


def found_in(error: msgspec.ValidationError) -> Mistake:
    """Return the mistake that msgspec found."""
    fault, _, path = str(error).partition(" - at `$")
    return Mistake(fault, ["".join(step) for step in _STEP.findall(path.removesuffix("`"))])


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
        path = _with_name(path, content)
        detail = _wrong(fault, path, raw_json.value_at(content, path), body_type)
        path = path[:-1] if path[-1:] == [_ANY_NAME] else path
    return InvalidRequest(detail, None if body_type is bodies.Query else raw_json.pointer_to(path))


def repeated(path: Sequence[str]) -> InvalidRequest:
    """Return the error for a field that an object has twice."""
    detail = f"`{_cut('.'.join(path))}` is repeated: send it once."
    return InvalidRequest(detail, raw_json.pointer_to(path))


def malformed(error: Exception, content: bytes, body_type: type) -> InvalidRequest:
    """Return the error for a body that is not JSON."""
    half = raw_json.half_character(content)
    if not _is_utf_8(content):
        detail = "The body is not valid UTF-8."
    elif not content.strip():
        detail = f"The body is empty: send JSON such as {EXAMPLES[body_type]}."
    elif isinstance(error, RecursionError):
        detail = "The body is nested too deeply."
    elif half is not None:
        detail = f"{half} is half a surrogate pair: write both halves, as in \\ud83d\\ude00."
    else:
        fault = str(error).removeprefix("JSON is malformed: ")
        fault = fault.replace("Input data was truncated", "it ends too early")
        detail = f"The body is not valid JSON: {fault}."
    return InvalidRequest(detail, "")


def unknown_path(path: str) -> NotFound:
    """Return the error for a path that has no route."""
    return NotFound(f"{_CANCEL}.") if _CANCEL_PATH.fullmatch(path) else NotFound()


def listed(words: Sequence[str], conjunction: str) -> str:
    """Return one or more words as a list: "PUT, PATCH or GET"."""
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def _unknown(name: str, path: Sequence[str], body_type: type) -> str:
    noun = "parameter" if body_type is bodies.Query else "field"
    names = tuple(_schema_at(path, body_type).get("properties", ()))
    likely = _likely(_cut(name), names)
    if likely in _PLACES:
        return f"`{_cut(name)}` belongs in {_PLACES[likely]}."
    if len(names) == 1:
        advice = f"send {EXAMPLES[body_type]}"
    elif (field := _in_milliseconds(_cut(name), names)) is not None:
        advice = f"use `{field}`, in seconds"
    elif likely is not None:
        advice = _ADVICE.get(likely, f"use `{likely}`")
    else:
        advice = f"the {noun}s are {listed([f'`{it}`' for it in names], 'and')}"
    return f"There is no {noun} `{_cut(name)}`: {advice}."


def _wrong(fault: str, path: Sequence[str], value: bytes | None, body_type: type) -> str:
    expected, got = _expected(path, body_type), _got(fault, value)
    return f"{_subject(path, body_type)} must be {expected}{got}.{_hint(value, path, body_type)}"


def _subject(path: Sequence[str], body_type: type) -> str:
    if not path:
        return "A timer" if body_type is bodies.BatchEntry else "The body"
    *outer, name = path
    return f"A value of `{outer[-1]}`" if name == _ANY_NAME else f"`{_cut('.'.join(path))}`"


def _expected(path: Sequence[str], body_type: type) -> str:
    """Return what a value must be: "a whole number from 1 to 15, such as 10"."""
    if not path:
        return f"an object such as {EXAMPLES[body_type]}"
    schema = _schema_at(path, body_type)
    kinds = [_kind(it, path[-1], body_type) for it in schema.get("anyOf", [schema])]
    expected = " or ".join(it for it in kinds if it != "null")
    examples = [_json(it) for it in schema.get("examples", ())]
    if examples:
        expected += f", such as {listed(examples, 'or')}"
    if "null" in kinds:
        expected += ", or null" if examples else " or null"
    return expected


def _kind(schema: Schema, name: str, body_type: type) -> str:
    match schema:
        case {"enum": values}:
            return listed([_written(it, body_type) for it in values], "or")
        case {"type": "integer", "minimum": low, "maximum": high}:
            unit = " of seconds" if name in _IN_SECONDS and name != "seconds" else ""
            return f"a whole number{unit} from {low} to {high:,}"
        case {"type": "string", "minLength": low, "maxLength": high}:
            return f"a string of {low} to {high} characters"
        case {"type": "string", "minLength": low}:
            return f"a string of at least {low} character"
        case {"type": "array", "maxItems": most}:
            return f"an array of at most {most} {name}"
    return _KINDS[schema.get("type", "object")]


def _got(fault: str, value: bytes | None) -> str:
    if value == b'""':
        return ", not empty"
    if value is not None and _is_quotable(value):
        return f", not {value.decode(errors='replace')}"
    if value is not None and fault.startswith("Expected `array` of length"):
        return f", not {raw_json.length(value)}"
    got = _GOT.search(fault)
    return f", not {_KINDS[got[1]]}" if got else ""


def _hint(value: bytes | None, path: Sequence[str], body_type: type) -> str:
    """Return a sentence with what was probably meant, or an empty text."""
    if value is None or not path or not _is_quotable(value):
        return ""
    try:
        meant = _meant(value.decode(), path, body_type)
    except (ValueError, OverflowError):  # nothing that can be corrected
        return ""
    parameter = f"{path[-1]}=" if body_type is bodies.Query else ""
    return f" Write {parameter}{meant}." if meant else ""


def _meant(text: str, path: Sequence[str], body_type: type) -> str | None:
    """Return the JSON that was probably meant, or None; raise ValueError or OverflowError."""
    name, schema, value = path[-1], _schema_at(path, body_type), msgspec.json.decode(text)
    meant = None
    match value:
        case bool():
            meant = None
        case str() if likely := _likely(value, tuple(schema.get("enum", ()))):
            meant = _written(likely, body_type)
        case str() if schema.get("type") == "integer" and (value.isdecimal() or name in _TIMES):
            meant = _whole_number(value, _UNIT_OF.get(name, "s"), schema)
        case float() if name in _UNIT_OF:
            delay = f"{value}{_UNIT_OF[name]}"
            seconds = durations.parse_duration(delay).total_seconds()
            meant = _instead(_json(delay), seconds, "`hours`, `minutes` and `seconds`")
        case float() if name in _IN_SECONDS:
            meant = _rounded_up(value, schema)
        case int() | float() if name == "fire_at":
            meant = _json(durations.moment_since_1970(value))
            meant = meant or _instead(f"{value:.0f}", value, "`fire_at`")
        case int() | float() if schema.get("type") == "string" and len(path) > 1:
            meant = _json(text)
    return meant


def _whole_number(text: str, unit: str, schema: Schema) -> str | None:
    """Return the number in "60" or "10s", None if it is out of range."""
    duration = durations.parse_duration(f"{text}{unit}" if text[-1:].isdecimal() else text)
    number = duration / durations.parse_duration(f"1{unit}")
    in_range = schema["minimum"] <= number <= schema["maximum"]
    return f"{number:.0f}" if number.is_integer() and in_range else None


def _rounded_up(seconds: float, schema: Schema) -> str | None:
    """Return whole seconds, so that nothing is early; None if they are out of range."""
    whole = ceil(seconds)
    number = next(it for it in schema.get("anyOf", [schema]) if it["type"] == "integer")
    return str(whole) if number["minimum"] <= whole <= number["maximum"] else None


def _instead(delay: str, seconds: float, others: str) -> str | None:
    """Return a delay to write instead of other fields; None if it is not valid."""
    is_valid = 0 <= seconds <= MAX_DELAY.total_seconds() and seconds == int(seconds)
    return f'"delay": {delay} instead of {others}' if is_valid else None


@lru_cache(1024)  # programs repeat their mistakes
def _likely(name: str, names: tuple[str, ...]) -> str | None:
    """Return the one of `names`, or the key of `_OTHER_NAMES`, that `name` probably means."""
    plain = _plain(name)
    for it in names:
        if _plain(it) == plain:
            return it
    for meant, others in _OTHER_NAMES.items():
        if plain in others.split() and _REQUIRED_FIELD.get(meant, meant) in names:
            return meant
    return next((it for it in names if _is_misspelled(plain, _plain(it))), None)


def _in_milliseconds(name: str, names: tuple[str, ...]) -> str | None:
    """Return the field in seconds that a name such as `delay_ms` probably means, or None."""
    unit = _MILLISECONDS.fullmatch(_plain(name))
    likely = _likely(unit[1], names) if unit else None
    return likely if likely in _IN_SECONDS else None


def _is_misspelled(word: str, right: str) -> bool:
    """Say whether one letter is missing, added or wrong, or two neighbours are swapped."""
    start = next((n for n, it in enumerate(right) if word[n : n + 1] != it), len(right))
    word, right = word[start:], right[start:]
    swapped = right[1::-1] + right[2:]
    return word == swapped or right == word[1:] or right[1:] in (word, word[1:])


def _with_name(path: list[str], content: bytes) -> list[str]:
    """Return the path with the name that msgspec leaves out, unless it can't be read."""
    if path[-1:] != [_ANY_NAME]:
        return path
    value = raw_json.value_at(content, path[:-1])
    name = None if value is None else raw_json.first_non_string_field(value)
    return path if name is None else [*path[:-1], name]


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


def _written(text: str, body_type: type) -> str:
    """Return a text as a request has it: in a URL without quotes."""
    return text if body_type is bodies.Query else _json(text)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def _is_quotable(value: bytes) -> bool:
    return len(value) <= MAX_QUOTED and value[:1] not in (b"{", b"[")


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
