"""Signatures of Standard Webhooks, and the secrets they are made with. Pure: no clock, no I/O.

A secret reads `whsec_` and the base64 of 24 to 64 bytes. A tenant may have several, newest first:
each webhook is signed with all of them, and a receiver that knows one is content. So a secret is
changed with no moment in which nobody can verify. https://www.standardwebhooks.com has the format.
"""

import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Protocol

from chalicelib.core.errors import CommandError

SECRET_ENTROPY = 32
"""Random bytes that a new secret is made of."""

MAX_SECRETS = 5
"""Secrets that a tenant may have at once."""

SECRET_PREFIX = "whsec_"  # noqa: S105  # public: every secret begins so

NEW_SECRET = "new"  # noqa: S105  # a keyword, no secret
"""What stands for a secret that is yet to be made."""


class Secrets(Protocol):
    """Keeps secrets. Every method raises Unavailable if it does not answer."""

    def of(self, tenant: str) -> list[str]:
        """Return the tenant's secrets, newest first."""

    def add(self, tenant: str, secret: str) -> None:
        """Do `added`, in one step that no other change can come between."""

    def retire(self, tenant: str, secret: str) -> None:
        """Do `retired`, in one step that no other change can come between."""


def sign(secrets: Sequence[str], id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`; `timestamp` is in seconds since 1970.

    `v1,` and the base64 of an HMAC-SHA256 for each secret, in their order, a space between them.
    """
    content = f"{id}.{timestamp}.".encode() + body
    codes = [hmac.digest(_content(secret), content, "sha256") for secret in secrets]
    return " ".join(f"v1,{b64encode(code).decode()}" for code in codes)


def is_signed_with(
    secrets: Sequence[str], id: str, timestamp: int, body: bytes, signature: str
) -> bool:
    """Say whether a `webhook-signature` has one that was made with one of the secrets."""
    wanted = sign(secrets, id, timestamp, body).split()
    return any(
        hmac.compare_digest(found.encode(), code.encode())
        for found in signature.split()
        for code in wanted
    )


def new_secret(entropy: bytes) -> str:
    """Return the secret made of 24 to 64 random bytes; raise SecretRefused if there are others."""
    if not 24 <= len(entropy) <= 64:
        raise CommandError(f"A secret is {SECRET_PREFIX} and the base64 of 24 to 64 bytes.")
    return SECRET_PREFIX + b64encode(entropy).decode()


def parse_secret(text: str) -> str:
    """Return a secret that somebody has written, in the one form it is kept; may be unpadded."""
    text = text.strip()
    try:
        content = _content(text) if text.startswith(SECRET_PREFIX) else b""
    except ValueError:
        content = b""
    return new_secret(content)


def with_secret(secrets: Sequence[str], secret: str) -> list[str]:
    """Return the secrets with one more, the newest; as they are if it is among them."""
    if secret in secrets:
        return list(secrets)
    if len(secrets) >= MAX_SECRETS:
        raise CommandError(f"A tenant has {MAX_SECRETS} secrets at most: retire one first.")
    return [secret, *secrets]


def without_secret(secrets: Sequence[str], secret: str) -> list[str]:
    """Return the secrets without this one. The last one stays: nothing would be signed then."""
    if secret not in secrets:
        raise CommandError("The tenant has no such secret.")
    if len(secrets) == 1:
        raise CommandError("It is the tenant's only secret: add another one first.")
    return [other for other in secrets if other != secret]


def ensure_secret(secrets: Secrets, tenant: str, entropy: bytes) -> None:
    """Give the tenant a first secret, if it has none."""
    if not secrets.of(tenant):
        secrets.add(tenant, new_secret(entropy))


def change_secrets(
    secrets: Secrets, tenant: str, entropy: bytes, *, add: str | None, retire: str | None
) -> list[str]:
    """Add a secret (`NEW` for one of `entropy`), retire one; return those the tenant has then.

    Raises SecretRefused, also if it has none.
    """
    new = None if add is None else new_secret(entropy) if add == NEW_SECRET else parse_secret(add)
    old = None if retire is None else parse_secret(retire)
    kept = secrets.of(tenant)
    if old is not None:
        without_secret(
            [*kept, *([new] if new else [])], old
        )  # a slip is found before anything changes
    # With a place free the new one comes first: at no moment is nothing signed.
    if new is not None and len(kept) < MAX_SECRETS:
        secrets.add(tenant, new)
    if old is not None:
        secrets.retire(tenant, old)
    if new is not None and len(kept) >= MAX_SECRETS:
        secrets.add(tenant, new)
    found = secrets.of(tenant)
    if not found:
        raise CommandError(f"Tenant {tenant} has no secret: ADD={NEW_SECRET} makes one.")
    return found


def _content(secret: str) -> bytes:
    encoded = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    return b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
