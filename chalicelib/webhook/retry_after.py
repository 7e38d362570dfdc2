"""The Retry-After header (RFC 9110, 10.2.3)."""

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_SECONDS = 10**9
"""Longer waits are cut to this."""

MAX_LENGTH = 500
"""Characters of the header that count: a receiver may send 16 KB, and each value costs time."""

# Values of a repeated header are joined with commas; a comma after a weekday belongs to its date.
_SEPARATOR = re.compile(r"(?<!Mon|Tue|Wed|Thu|Fri|Sat|Sun|day),", re.ASCII | re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?", re.ASCII)


def seconds_to_wait(header: str | None, at: datetime) -> float | None:
    """Return the whole seconds from `at` that a Retry-After header asks to wait, or None.

    If it is given twice, the longest wait counts. Values that are not valid are ignored.
    """
    if header is None:
        return None
    values = _SEPARATOR.split(header[:MAX_LENGTH])
    waits = [_wait(value.strip(), at) for value in values]
    return max((wait for wait in waits if wait is not None), default=None)


def _wait(value: str, at: datetime) -> float | None:
    if _SECONDS.fullmatch(value):
        return float(min(math.ceil(float(value)), MAX_SECONDS)) if len(value) < 300 else MAX_SECONDS
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:  # asctime's form, or -0000: both mean UTC
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, math.ceil((moment - at).total_seconds()))
    except (ValueError, TypeError, OverflowError):  # not a date
        return None
