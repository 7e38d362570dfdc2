"""API keys: format and hashing. Pure.

A key looks like `tmr_<id>_<secret>`. The id is public: it names the key in lists and logs. Only the
SHA-256 of the whole key is stored; a plain hash is enough for 256 random bits.
"""

import re
from base64 import b32encode
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest

from msgspec import Struct

KEY_ENTROPY = 38
"""Random bytes of a key: 6 for its id, 32 for its secret."""

TENANT_PATTERN = re.compile("[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
"""Valid tenant names."""

_KEY = re.compile(r"tmr_([a-z2-7]{10})_[a-z2-7]{52}", re.ASCII)
_KEY_OR_ID = re.compile(r"(?:tmr_)?([a-z2-7]{10})(?:_.*)?", re.ASCII)
_BEARER = re.compile(r"bearer +(\S+)", re.ASCII | re.IGNORECASE)


class Role(StrEnum):
    """The requests that a key allows."""

    FULL = "full"
    READ = "read"
    """Only requests that change nothing."""


class ApiKey(Struct, frozen=True, kw_only=True):
    """An API key as it is stored."""

    id: str
    hash: str
    """SHA-256 of the whole key, in hexadecimal."""
    tenant: str
    role: Role
    created_at: datetime

    def matches(self, token: str) -> bool:
        """Return, in constant time, whether `token` is the text of this key."""
        return compare_digest(self.hash, _hash(token))


def mint(tenant: str, role: Role, now: datetime, entropy: bytes) -> tuple[str, ApiKey]:
    """Create a key from KEY_ENTROPY random bytes; return its text, shown once, and its record."""
    id, secret = _base32(entropy[:6]), _base32(entropy[6:])
    text = f"tmr_{id}_{secret}"
    return text, ApiKey(id=id, hash=_hash(text), tenant=tenant, role=role, created_at=now)


def token_in(authorization: str) -> str | None:
    """Return the key in an Authorization header (`Bearer tmr_…`), or None if there is none."""
    bearer = _BEARER.fullmatch(authorization.strip())
    return bearer[1] if bearer and _KEY.fullmatch(bearer[1]) else None


def key_id_in(text: str) -> str | None:
    """Return the id from `<id>`, `tmr_<id>` or a whole key; None if `text` is none of these."""
    match = _KEY_OR_ID.fullmatch(text.strip())
    return match[1] if match else None


def _base32(content: bytes) -> str:
    return b32encode(content).decode().rstrip("=").lower()


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
