"""The ways to say when: durations and moments as people and machines write them. Pure."""

import re
from datetime import UTC, datetime, timedelta

_NUMBER = "([0-9]{1,10})"
_PARTS = ("days", "hours", "minutes", "seconds")

# Digits of ASCII only: \d and int() would take any that Unicode has.
_SHORT = "(?=[0-9])" + "".join(f"(?:{_NUMBER}{unit})?" for unit in "dhms")
_TIME = "T(?=[0-9])" + "".join(f"(?:{_NUMBER}{unit})?" for unit in "HMS")
_ISO_8601 = f"P(?=[0-9T])(?:{_NUMBER}D)?(?:{_TIME})?"

DURATION_PATTERN = f"^(?:{_SHORT}|{_ISO_8601})$"
"""What `duration` understands, as a regular expression of Python and of JSON Schema."""

# Python itself would also take a zone of 60 minutes, and from 3.13 on an hour 24.
_HOUR_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_RFC_3339 = re.compile(
    f"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[Tt ]({_HOUR_MINUTE}:[0-9]{{2}})"
    rf"(?:\.([0-9]+))?([Zz]|[+-]{_HOUR_MINUTE})?"
)


def parse_duration(text: str) -> timedelta:
    """Return what `1h30m`, `1d2h30m45s` or, as in ISO 8601, `PT1H30M` says, in whole seconds.

    Parts may be left out, but not all; the larger ones come first. Raises ValueError with a
    sentence, OverflowError for more than a timedelta can hold.
    """
    if re.fullmatch(_NUMBER, text):
        raise ValueError(f'Its unit is missing: write {text} or "{text}s".')
    found = re.fullmatch(_SHORT, text) or re.fullmatch(_ISO_8601, text)
    if found is None:
        raise ValueError('It is no duration like "1d2h30m45s" or "PT1H30M".')
    parts = zip(_PARTS, found.groups(), strict=True)
    return timedelta(**{name: int(digits or 0) for name, digits in parts})


def parse_moment(text: str) -> datetime:
    """Return the moment that RFC 3339 writes so, in UTC; raise ValueError with a sentence.

    What is finer than a microsecond is rounded up, for nothing may be early.
    """
    found = _RFC_3339.fullmatch(text)
    if found is None:
        raise ValueError('It is no moment like "2027-01-31T09:00:00+01:00".')
    date, time, fraction, zone = found.groups()
    if zone is None:
        raise ValueError('Its zone is missing: "Z", or one like "+01:00".')
    digits = (fraction or "0")[:12]
    micros = -(-int(digits) * 10**6 // 10 ** len(digits))
    try:
        whole = datetime.fromisoformat(f"{date}T{time}{zone.upper()}")
        return whole.astimezone(UTC) + timedelta(microseconds=micros)
    except (ValueError, OverflowError):
        raise ValueError("There is no such moment.") from None
