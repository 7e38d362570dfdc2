"""Parse durations (`1h30m`, `90 minutes`, ISO 8601) and times (RFC 3339). Pure."""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

# ASCII digits only: \d and int() accept all digits of Unicode.
_WHOLE = "[0-9]{1,10}"
_TENTHS = f"{_WHOLE}(?:[.][0-9])?"
_HUNDREDTHS = f"{_WHOLE}(?:[.][0-9]{{1,2}})?"


class _Unit(NamedTuple):
    """A unit of durations, and regular expressions of its numbers and names."""

    seconds: int
    number: str
    """It allows only as many decimals as give whole seconds."""
    names: str
    iso: str


_UNITS = (
    _Unit(7 * 86_400, _HUNDREDTHS, "w(?:(?:ee)?ks?)?", "W"),
    _Unit(86_400, _HUNDREDTHS, "d(?:ays?)?", "D"),
    _Unit(3600, _HUNDREDTHS, "h(?:(?:ou)?rs?)?", "H"),
    _Unit(60, _TENTHS, "m(?:in(?:ute)?s?)?", "M"),
    _Unit(1, _WHOLE, "s(?:ec(?:ond)?s?)?", "S"),
)


def _in_any_case(pattern: str) -> str:
    # JSON Schema has no flag for this.
    return re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", pattern)


def _in_words(unit: _Unit) -> str:
    return f"(?:({unit.number}) *{_in_any_case(unit.names)}(?: +(?=[0-9]))?)?"


def _in_iso(unit: _Unit) -> str:
    return f"(?:({unit.number}){unit.iso})?"


# "1M" could be a month: an M at the end needs hours before it.
_NO_MONTHS = "(?![^Hh]*M$)"
_WORDS = f"(?=[0-9]){_NO_MONTHS}" + "".join(map(_in_words, _UNITS))
_DATE, _TIME = "".join(map(_in_iso, _UNITS[:2])), "".join(map(_in_iso, _UNITS[2:]))
_ISO_8601 = f"P(?=[0-9T]){_DATE}(?:T(?=[0-9]){_TIME})?"

DURATION_PATTERN = f"^(?:{_WORDS}|{_ISO_8601})$"
"""The durations that `parse_duration` accepts: a regular expression for Python and JSON Schema."""

_DURATION = re.compile(DURATION_PATTERN.removesuffix("$") + r"\Z")  # $ is also before a last \n

# Python also accepts an offset with 60 minutes and, since 3.13, hour 24.
_HOUR, _MINUTE = "(?:[01][0-9]|2[0-3])", "[0-5][0-9]"
_MOMENT = re.compile(
    f"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[Tt ]({_HOUR}:{_MINUTE})"
    rf"(?:(:[0-9]{{2}})(?:\.([0-9]+))?)?([Zz]|[+-]{_HOUR}(?::?{_MINUTE})?)?"
)
_DATE_ALONE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EPOCH = re.compile(r"[0-9]{1,19}(?:\.[0-9]{1,9})?")

EPOCH_SECONDS = (10**8, 10**11)
"""Bounds of a time since 1970, in seconds: a larger number is in milliseconds or a smaller unit."""


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as `1h30m`, `1.5 hours` or `PT1H30M` (ISO 8601).

    At least one unit is required, and larger units come first. The total is whole seconds. Raises
    ValueError with a message for users, and OverflowError if a timedelta can't hold the duration.
    """
    if re.fullmatch(_WHOLE, text):
        raise ValueError(f'The unit is missing: write {text} or "{text}s".')
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(_no_duration(text))
    amounts = zip(_UNITS * 2, match.groups(), strict=True)
    return timedelta(seconds=sum(round(float(it) * unit.seconds) for unit, it in amounts if it))


def is_duration(text: str) -> bool:
    """Say whether a text is a duration, or a number without its unit."""
    return bool(_DURATION.match(text) or re.fullmatch(_WHOLE, text))


def parse_moment(text: str) -> datetime:
    """Parse an RFC 3339 time; return it in UTC. Seconds, and minutes of the offset, are optional.

    Fractions of a microsecond are rounded up, because a timer must never fire early. Raises
    ValueError with a message for users.
    """
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError(_no_moment(text))
    date, time, seconds, fraction, zone = match.groups()
    if zone is None:
        raise ValueError('The time zone is missing: add "Z" or an offset like "+01:00".')
    digits = (fraction or "0")[:12]
    micros = -(-int(digits) * 10**6 // 10 ** len(digits))
    try:
        whole = datetime.fromisoformat(f"{date}T{time}{seconds or ':00'}{zone.upper()}")
        return whole.astimezone(UTC) + timedelta(microseconds=micros)
    except (ValueError, OverflowError):
        raise ValueError("There is no such date and time.") from None


def moment_since_1970(number: float) -> str | None:
    """Return the RFC 3339 time of a number of seconds, milliseconds, … nanoseconds since 1970.

    None if the number is too small or too large to be meant as one.
    """
    for units in (1, 10**3, 10**6, 10**9):
        seconds = number / units
        if EPOCH_SECONDS[0] <= seconds < EPOCH_SECONDS[1]:
            return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    return None


def _no_duration(text: str) -> str:
    in_minutes = (f"{text[:-1]}m", text.replace("P", "PT", 1)) if text.endswith("M") else ()
    meant = next(filter(_DURATION.match, in_minutes), None)
    if meant is not None:
        return f'"M" could mean months: write "{meant}".'
    return (
        'Write a duration of whole seconds such as "1h30m", "1.5 hours" or "PT1H30M". The'
        " units are w, d, h, m and s, the largest first."
    )


def _no_moment(text: str) -> str:
    if _DATE_ALONE.fullmatch(text) and _is_moment(f"{text}T09:00:00Z"):
        return f'The time is missing: write a date and time like "{text}T09:00:00Z".'
    since_1970 = moment_since_1970(float(text)) if _EPOCH.fullmatch(text) else None
    if since_1970 is not None:
        return f'Write the date and time as "{since_1970}".'
    return 'Write a date and time like "2027-01-31T09:00:00+01:00".'


def _is_moment(text: str) -> bool:
    try:
        parse_moment(text)
    except ValueError:
        return False
    return True
