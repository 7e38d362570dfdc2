"""Parse durations (`1h30m`, ISO 8601) and times (RFC 3339). Pure."""

import re
from datetime import UTC, datetime, timedelta

_NUMBER = "([0-9]{1,10})"
_UNITS = ("days", "hours", "minutes", "seconds")

# ASCII digits only: \d and int() accept all digits of Unicode.
_SHORT = "(?=[0-9])" + "".join(f"(?:{_NUMBER}{unit})?" for unit in "dhms")
_TIME = "T(?=[0-9])" + "".join(f"(?:{_NUMBER}{unit})?" for unit in "HMS")
_ISO_8601 = f"P(?=[0-9T])(?:{_NUMBER}D)?(?:{_TIME})?"

DURATION_PATTERN = f"^(?:{_SHORT}|{_ISO_8601})$"
"""The durations that `parse_duration` accepts: a regular expression for Python and JSON Schema."""

# Python also accepts an offset with 60 minutes and, since 3.13, hour 24.
_HOUR_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_RFC_3339 = re.compile(
    f"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[Tt ]({_HOUR_MINUTE}:[0-9]{{2}})"
    rf"(?:\.([0-9]+))?([Zz]|[+-]{_HOUR_MINUTE})?"
)


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as `1h30m`, `1d2h30m45s` or `PT1H30M` (ISO 8601).

    At least one unit is required, and larger units come first. Raises ValueError with a message
    for users, and OverflowError if a timedelta can't hold the duration.
    """
    if re.fullmatch(_NUMBER, text):
        raise ValueError(f'The unit is missing: write {text} or "{text}s".')
    match = re.fullmatch(_SHORT, text) or re.fullmatch(_ISO_8601, text)
    if match is None:
        raise ValueError(
            'Write whole numbers with the units d, h, m or s, like "1d2h30m45s" or "PT1H30M".'
        )
    amounts = zip(_UNITS, match.groups(), strict=True)
    return timedelta(**{name: int(digits or 0) for name, digits in amounts})


def parse_moment(text: str) -> datetime:
    """Parse an RFC 3339 time; return it in UTC.

    Fractions of a microsecond are rounded up, because a timer must never fire early. Raises
    ValueError with a message for users.
    """
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError('Write a date and time like "2027-01-31T09:00:00+01:00".')
    date, time, fraction, zone = match.groups()
    if zone is None:
        raise ValueError('The time zone is missing: add "Z" or an offset like "+01:00".')
    digits = (fraction or "0")[:12]
    micros = -(-int(digits) * 10**6 // 10 ** len(digits))
    try:
        whole = datetime.fromisoformat(f"{date}T{time}{zone.upper()}")
        return whole.astimezone(UTC) + timedelta(microseconds=micros)
    except (ValueError, OverflowError):
        raise ValueError("There is no such date and time.") from None
