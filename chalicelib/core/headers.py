"""Which headers a webhook may have, and which of their values are shown. Pure."""

import re
from collections.abc import Mapping

from chalicelib.core.errors import InvalidRequest

MAX_HEADERS = 50
"""How many headers a webhook may have beside ours."""

MASK = "•••"
"""What is shown of a header that looks like a secret."""

HEADER_NAME_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"
"""A regular expression, as the next one is, of Python and of JSON Schema."""

HEADER_VALUE_PATTERN = r"^([\x21-\x7e\xa1-\xff]([\t\x20-\x7e\xa1-\xff]*[\x21-\x7e\xa1-\xff])?)?$"
"""As RFC 9110 has it: visible characters, Latin-1 among them, with spaces and tabs between only."""

_OURS = re.compile(
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
    """Raise InvalidRequest if a webhook must not have these headers."""
    if len(headers) > MAX_HEADERS:
        raise InvalidRequest(f"There are more than {MAX_HEADERS} headers.", pointer)
    if len({name.lower() for name in headers}) < len(headers):
        raise InvalidRequest("Two headers differ in upper and lower case only.", pointer)
    for name, value in headers.items():
        at = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
        if not re.fullmatch(HEADER_NAME_PATTERN, name):
            raise InvalidRequest("This is no name of a header.", at)
        if _OURS.fullmatch(name.replace("_", "-")):  # many receivers take them for the same
            raise InvalidRequest(f"The header {name} is set by the service alone.", at)
        if not re.fullmatch(HEADER_VALUE_PATTERN, value):
            raise InvalidRequest(
                f"The value of {name} has a line break, another control character, a space at its"
                " end or a character beyond Latin-1.",
                at,
            )


def mask(name: str, value: str) -> str:
    """Return a header's value as it may be shown: those that look like secrets are not."""
    return MASK if _SECRET_NAME.search(name) or _SECRET_VALUE.match(value) else value
