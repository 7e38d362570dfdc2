"""API keys and signing secrets of tenants: authenticate, issue, rotate."""

from datetime import datetime
from secrets import token_bytes

from chalicelib.core import api_keys, signing
from chalicelib.core.api_keys import ApiKey, Role
from chalicelib.core.errors import OperatorError
from chalicelib.service.ports import ApiKeys, Secrets


def authenticate(keys: ApiKeys, authorization: str) -> ApiKey | None:
    """Return the API key of an Authorization header (`Bearer tmr_…`), or None if it is not valid.

    Raises Unavailable.
    """
    token = api_keys.token_in(authorization)
    id = api_keys.key_id_in(token) if token else None
    key = keys.get(id) if id else None
    return key if key is not None and token is not None and key.matches(token) else None


def issue_key(
    keys: ApiKeys,
    secrets: Secrets,
    tenant: str,
    role: Role,
    now: datetime,
) -> str:
    """Create an API key, store its hash, and return the key's text, which is stored nowhere.

    The tenant gets a signing secret first. A crash in between leaves a secret without a key,
    never a key whose webhooks are unsigned. Raises Unavailable.
    """
    ensure_secret(secrets, tenant, token_bytes(signing.SECRET_ENTROPY))
    text, key = api_keys.mint(tenant, role, now, token_bytes(api_keys.KEY_ENTROPY))
    keys.add(key)
    return text


def ensure_secret(secrets: Secrets, tenant: str, entropy: bytes) -> None:
    """Add a secret made of `entropy` if the tenant has none."""
    if not secrets.of(tenant):
        secrets.add(tenant, signing.new_secret(entropy))


def change_secrets(
    secrets: Secrets, tenant: str, entropy: bytes, *, add: str | None, retire: str | None
) -> list[str]:
    """Add and retire a secret, either optional; return the tenant's secrets afterwards.

    `add` may be NEW_SECRET, for a secret made of `entropy`. Raises OperatorError, also if the
    tenant ends up without a secret.
    """
    new = None if add is None else _added_secret(add, entropy)
    old = None if retire is None else signing.parse_secret(retire)
    before = secrets.of(tenant)
    if old is not None:
        # Finds a mistake before anything changes.
        signing.without_secret([*before, *([new] if new else [])], old)
    # Add first if there is room, so that the tenant always has a secret.
    if new is not None and len(before) < signing.MAX_SECRETS:
        secrets.add(tenant, new)
    if old is not None:
        secrets.retire(tenant, old)
    if new is not None and len(before) >= signing.MAX_SECRETS:
        secrets.add(tenant, new)
    after = secrets.of(tenant)
    if not after:
        raise OperatorError(
            f"Tenant {tenant} has no secret. Add one with ADD={signing.NEW_SECRET}."
        )
    return after


def _added_secret(add: str, entropy: bytes) -> str:
    return signing.new_secret(entropy) if add == signing.NEW_SECRET else signing.parse_secret(add)
