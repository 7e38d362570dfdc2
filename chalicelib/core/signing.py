"""Standard Webhooks signatures and signing secrets. The format: https://www.standardwebhooks.com.

A secret is `whsec_` followed by the base64 of 24 to 64 bytes. A tenant may have several, newest
first. Each webhook is signed with all of them, and a receiver needs only one to verify it, so
secrets can be rotated without a gap.
"""

import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from functools import lru_cache

from chalicelib.core.errors import OperatorError

SECRET_ENTROPY = 32
"""Random bytes of a new secret."""

MAX_SECRETS = 5
"""Secrets of one tenant at a time."""

SECRET_PREFIX = "whsec_"  # noqa: S105  # public: every secret starts with it

NEW_SECRET = "new"  # noqa: S105  # a keyword, not a secret
"""Stands for a secret to be generated."""


def sign(secrets: Sequence[str], id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`; `timestamp` is in seconds since 1970.

    It has one signature for each secret, separated by spaces: `v1,` and the base64 of HMAC-SHA256.
    """
    content = f"{id}.{timestamp}.".encode() + body
    codes = [hmac.digest(_content(secret), content, "sha256") for secret in secrets]
    return " ".join(f"v1,{b64encode(code).decode()}" for code in codes)


def is_signed_with(
    secrets: Sequence[str], id: str, timestamp: int, body: bytes, signature: str
) -> bool:
    """Return whether any signature of a `webhook-signature` was made with any of the secrets."""
    expected = sign(secrets, id, timestamp, body).split()
    return any(
        hmac.compare_digest(received.encode(), code.encode())
        for received in signature.split()
        for code in expected
    )


def new_secret(entropy: bytes) -> str:
    """Return random bytes as a secret; raise OperatorError unless there are 24 to 64."""
    if not 24 <= len(entropy) <= 64:
        raise OperatorError(
            f"A secret is {SECRET_PREFIX} followed by the base64 of 24 to 64 bytes."
        )
    return SECRET_PREFIX + b64encode(entropy).decode()


def parse_secret(text: str) -> str:
    """Return a secret as it is stored; `text` may lack the padding of its base64."""
    text = text.strip()
    try:
        content = _content(text) if text.startswith(SECRET_PREFIX) else b""
    except ValueError:
        content = b""
    return new_secret(content)


def with_secret(secrets: Sequence[str], secret: str) -> list[str]:
    """Return the secrets with `secret` as the newest; unchanged if it is one of them already."""
    if secret in secrets:
        return list(secrets)
    if len(secrets) >= MAX_SECRETS:
        raise OperatorError(f"A tenant can have at most {MAX_SECRETS} secrets. Retire one first.")
    return [secret, *secrets]


def without_secret(secrets: Sequence[str], secret: str) -> list[str]:
    """Return the secrets without this one; raise OperatorError if it is unknown or the only one."""
    if secret not in secrets:
        raise OperatorError("The tenant does not have this secret.")
    if len(secrets) == 1:
        raise OperatorError("This is the tenant's only secret. Add another one first.")
    return [other for other in secrets if other != secret]


@lru_cache(1024)  # called for each webhook
def _content(secret: str) -> bytes:
    encoded = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    return b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
