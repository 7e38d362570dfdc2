"""Issues API keys to tenants."""

from collections.abc import Callable
from datetime import datetime
from secrets import token_bytes

from chalicelib.core import api_keys, signing
from chalicelib.core.api_keys import ApiKeys, Role
from chalicelib.core.signing import Secrets


def issue_key(
    keys: ApiKeys,
    secrets: Secrets,
    tenant: str,
    role: Role,
    now: datetime,
    random_bytes: Callable[[int], bytes] = token_bytes,
) -> str:
    """Create an API key, store its hash, and return the key's text, which is stored nowhere.

    The tenant gets a signing secret first. A crash in between leaves a secret without a key,
    never a key whose webhooks are unsigned. Raises Unavailable.
    """
    signing.ensure_secret(secrets, tenant, random_bytes(signing.SECRET_ENTROPY))
    text, key = api_keys.mint(tenant, role, now, random_bytes(api_keys.KEY_ENTROPY))
    keys.add(key)
    return text
