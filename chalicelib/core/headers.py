"""A webhook's headers: allowed names and values, and the masking of secrets. Pure."""

import re
from collections.abc import Mapping

from chalicelib.core.errors import InvalidRequest

MAX_HEADERS = 50
"""Headers that a webhook may have, besides those that Timers adds."""

MASK = "•••"
"""Shown instead of a value that looks like a secret."""

HEADER_NAME_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"
"""A regular expression for Python and JSON Schema."""

HEADER_VALUE_PATTERN = r"^([\x21-\x7e\xa1-\xff]([\t\x20-\x7e\xa1-\xff]*[\x21-\x7e\xa1-\xff])?)?$"
"""RFC 9110: visible Latin-1 characters, with spaces and tabs only between them.

A regular expression for Python and JSON Schema.
"""

_RESERVED = re.compile(
    r"host|content-length|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect"
    r"|accept-encoding|http2-settings|proxy(-.*)?|webhook-.*|timer-.*",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"auth|token|secret|key|cookie|pass|pwd|credential|signature|session|jwt|assertion",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"(bearer|basic|digest|token|negotiate|aws4-hmac-sha256)\s", re.IGNORECASE
)


def check_headers(headers: Mapping[str, str], pointer: str) -> None:
    """Raise InvalidRequest unless a webhook may have these headers.

    `pointer` is the JSON pointer to the headers in the request.
    """
    if len(headers) > MAX_HEADERS:
        raise InvalidRequest(f"A webhook can have at most {MAX_HEADERS} headers.", pointer)
    if len({name.lower() for name in headers}) < len(headers):
        raise InvalidRequest("Two header names differ only in case.", pointer)
    for name, value in headers.items():
        at = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
        if not re.fullmatch(HEADER_NAME_PATTERN, name):
            raise InvalidRequest(f"`{name[:100]}` is not a valid header name.", at)
        if _RESERVED.fullmatch(name.replace("_", "-")):  # many receivers treat both alike
            raise InvalidRequest(f"The header {name} is reserved: Timers sets it itself.", at)
        if not re.fullmatch(HEADER_VALUE_PATTERN, value):
            raise InvalidRequest(
                f"The value of {name} must consist of visible Latin-1 characters, with spaces and"
                " tabs only between them.",
                at,
            )


def mask(name: str, value: str) -> str:
    """Return a header's value for display, masked if its name or value looks like a secret."""
    return MASK if _SECRET_NAME.search(name) or _SECRET_VALUE.match(value) else value
