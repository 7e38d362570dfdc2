"""Webhook URLs: their parts, and the exact text that is sent. Pure.

Checks and senders use the same `parse`, so a webhook connects to the host that was checked.

A valid URL is sent byte for byte: dot segments, `%7e` and empty queries stay. Characters that RFC
3986 does not allow are percent-encoded, once. These include `[` and `]`: some servers, Tomcat among
them, refuse them in a path or query, and all servers understand `%5B`.
"""

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple

MAX_URL_LENGTH = 2048
"""Characters of a URL as it is sent, with `{id}` replaced."""

DEFAULT_PORTS = {"http": 80, "https": 443}

_ID = "{id}"
_ANY_ID = "00000000-0000-7000-8000-000000000000"
_MAX_NAME_LENGTH = 253

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.ASCII | re.IGNORECASE)
"""Scheme, authority, and path with query. A backslash does not end the authority."""
_AUTHORITY = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)]|(?P<name>[^\[\]:@]+))(?::(?P<port>[0-9]{0,9}))?"
)
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}")
_UNSENDABLE = re.compile(r"%(?![0-9A-Fa-f]{2})|[^%A-Za-z0-9._~!$&'()*+,;=:@/?-]")
_TWO_SCHEMES = re.compile(r"(?:https?://)+(?=https?://)", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(
    r"(?://)?(?P<url>(?P<host>localhost|\[[0-9A-Fa-f:.]+]|[\w-]+(?:\.[\w-]+)+|[\w-]+(?=:))"
    r"(?P<port>:[0-9]+)?(?:[/?#].*)?)"
)


class Url(NamedTuple):
    """A URL as it is sent."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name in lower-case ASCII (IDNA) without its final dot, or an address without brackets."""
    port: int
    host_header: str
    """The value of the Host header."""
    target: str
    """The target of the request line: path and query."""


def authority_of(host: str, port: int | None) -> str:
    """Return `host:port` as a URL has it: IPv6 in brackets, and the host alone for None."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def with_id(url: str, id: str) -> str:
    """Return a URL with a timer's id instead of each `{id}`."""
    return url.replace(_ID, id)


def with_any_id(url: str) -> str:
    """Return a URL with `{id}` filled in as it is for a timer: all ids have the same form."""
    return with_id(url, _ANY_ID)


@lru_cache(1024)  # a burst has few URLs
def parse(url: str) -> Url:
    """Return the parts of a URL without `{id}`. Raises ValueError if a part is not valid.

    Path and query may hold anything: stored timers may have URLs that `as_sent` now refuses.
    """
    scheme, authority, rest = _split(url)
    host, port = _endpoint(authority)
    default = DEFAULT_PORTS[scheme.lower()]
    target = _encoded(rest)
    return Url(
        scheme=scheme.lower(),
        host=host,
        port=port or default,
        host_header=authority_of(host, None if port == default else port),
        target=target if target.startswith("/") else f"/{target}",
    )


@lru_cache(1024)  # many timers have the same URL
def as_sent(url: str) -> str:
    """Return an owner's URL as it is sent, with `{id}` still in it and without its fragment.

    Raises ValueError if it is not valid, or is clearly a mistake: `%zz`, `{name}`. The text says
    what to do. The function is idempotent.
    """
    _check_characters(url)
    _check_meaning(url.partition("#")[0])
    _check_length(with_any_id(url.partition("#")[0]), f" once {_ID} is replaced")
    scheme, authority, rest = _split(url)
    parts = parse(with_any_id(url))
    if not authority.isascii():
        authority = parts.host_header.replace(_ANY_ID, _ID)
    sent = f"{scheme}://{authority}{_ID.join(map(_encoded, rest.split(_ID)))}"
    _check_length(with_any_id(sent), " once it is percent-encoded")
    return sent


def ascii_name(name: str) -> str | None:
    """Return a host name in lower-case ASCII (IDNA), without its final dot; None if not valid.

    IDNA may turn a name into an address: `127。0。0。1`.
    """
    try:
        name = name.lower() if name.isascii() else _idna(name)
    except UnicodeError:
        return None
    name = name.removesuffix(".")
    is_valid = len(name) <= _MAX_NAME_LENGTH and all(map(_LABEL.fullmatch, name.split(".")))
    return name if is_valid else None


def _idna(name: str) -> str:
    import idna  # noqa: PLC0415  # 5 ms of each cold start; few names need it

    return idna.encode(name, uts46=True).decode()


def _split(url: str) -> tuple[str, str, str]:
    match = _URL.match(url)
    if match is None:
        raise ValueError(f"The URL must begin with http:// or https://.{_suggestion(url)}")
    scheme, authority, rest = match.groups()
    return scheme, authority, rest


def _suggestion(url: str) -> str:
    match = _WITHOUT_SCHEME.fullmatch(url)
    if match is None:
        return ""
    is_public = "." in match["host"] and match["host"][-1].isalpha() and not match["port"]
    meant = f"{'https' if is_public else 'http'}://{match['url']}"
    return f' Write "{meant}".' if _is_valid(meant) else ""


def _is_valid(url: str) -> bool:
    try:
        as_sent(url)
    except ValueError:
        return False
    return True


@lru_cache(1024)  # URLs with ids differ, but not in this
def _endpoint(authority: str) -> tuple[str, int | None]:
    """Return the host and the port, None if there is none."""
    if "@" in authority:
        raise ValueError(
            "The URL must not contain a user name or a password. Send an Authorization header."
        )
    match = _AUTHORITY.fullmatch(authority)
    host = match and (_ipv6(match["address"]) if match["address"] else ascii_name(match["name"]))
    port = int(match["port"]) if match and match["port"] else None
    if not host or not (port is None or 0 < port < 65536):
        raise ValueError("The URL needs a valid host, and a port from 1 to 65535 if it names one.")
    return host, port


def _ipv6(text: str) -> str | None:
    try:
        IPv6Address(text)
    except ValueError:
        return None
    return text.lower()


def _check_characters(url: str) -> None:
    _check_length(url)
    if not url.isprintable():
        found = next(it for it in url if not it.isprintable())
        raise ValueError(
            f"The URL contains an invisible character, U+{ord(found):04X}."
            " Remove it, or percent-encode it."
        )
    if "\\" in url:
        raise ValueError("The URL contains a backslash. Write / or %5C.")
    if url != url.strip():
        raise ValueError("The URL begins or ends with a space. Remove it.")


def _check_meaning(url: str) -> None:
    if schemes := _TWO_SCHEMES.match(url):
        raise ValueError(f'The URL begins with two schemes. Write "{url[schemes.end() :]}".')
    rest = url.replace(_ID, "")
    if "{" in rest or "}" in rest:
        raise ValueError(
            f"The URL may have braces only in {_ID}, which stands for the timer's id."
            " Write other braces as %7B and %7D."
        )
    if bad := _BAD_ESCAPE.search(url):
        raise ValueError(f"The URL contains `{bad[0]}`. Write % as %25.")


def _check_length(url: str, when: str = "") -> None:
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(f"The URL is longer than {MAX_URL_LENGTH:,} characters{when}.")


def _encoded(text: str) -> str:
    return _UNSENDABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode(errors="replace"))
