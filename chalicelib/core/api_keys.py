"""API keys: what one looks like, what of it is kept, and whose it is. Pure: no clock, no I/O.

A key reads `tmr_<id>_<secret>`. The id is no secret: it names the key in lists and logs. Of the
whole only the SHA-256 is stored: of 256 random bits there is nothing to guess.
"""

import re
from base64 import b32encode
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from typing import Protocol

from msgspec import Struct

KEY_ENTROPY = 38
"""Random bytes that a key is made of."""

TENANT_PATTERN = re.compile("[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
"""The names that tenants may have."""

_KEY = re.compile(r"tmr_([a-z2-7]{10})_[a-z2-7]{52}", re.ASCII)
_NAMED = re.compile(r"(?:tmr_)?([a-z2-7]{10})(?:_.*)?", re.ASCII)
_BEARER = re.compile(r"bearer +(\S+)", re.ASCII | re.IGNORECASE)


class Role(StrEnum):
    """What a key may be used for."""

    FULL = "full"
    READ = "read"
    """Only what changes nothing."""


class ApiKey(Struct, frozen=True, kw_only=True):
    """What is kept of an API key."""

    id: str
    hash: str
    """SHA-256 of the whole key, in hexadecimal digits."""
    tenant: str
    role: Role
    created_at: datetime


class ApiKeys(Protocol):
    """Keeps API keys. Every method raises Unavailable if it does not answer."""

    def add(self, key: ApiKey) -> None:
        """Keep a new key."""

    def get(self, key_id: str) -> ApiKey | None:
        """Return the key of this id as last written, or None."""

    def remove(self, key_id: str) -> bool:
        """Forget the key; say whether there was one."""

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first."""


def mint(tenant: str, role: Role, now: datetime, entropy: bytes) -> tuple[str, ApiKey]:
    """Return a new key of `ENTROPY` random bytes: the text to be shown once, and what is kept."""
    name, secret = (_letters(part) for part in (entropy[:6], entropy[6:]))
    text = f"tmr_{name}_{secret}"
    return text, ApiKey(id=name, hash=_hash(text), tenant=tenant, role=role, created_at=now)


def find(keys: ApiKeys, authorization: str) -> ApiKey | None:
    """Return the key that an Authorization header holds (`Bearer tmr_…`), or None if it is none."""
    bearer = _BEARER.fullmatch(authorization.strip())
    shown = _KEY.fullmatch(bearer[1]) if bearer else None
    kept = keys.get(shown[1]) if shown else None
    if shown is None or kept is None or not compare_digest(kept.hash, _hash(shown[0])):
        return None
    return kept


def key_id_in(text: str) -> str | None:
    """Return the id in what somebody calls a key by: `<id>`, `tmr_<id>`, or all of it."""
    named = _NAMED.fullmatch(text.strip())
    return named[1] if named else None


def _letters(content: bytes) -> str:
    return b32encode(content).decode().rstrip("=").lower()


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
