"""Checks API keys and rate limits before the views run, as API Gateway does on AWS."""

from collections.abc import Mapping, Sequence

from chalicelib.core import errors
from chalicelib.core.api_keys import ApiKey
from chalicelib.service.credentials import authenticate
from chalicelib.service.ports import ApiKeys
from standalone.rate_limit import RateLimiter


class ApiKeyAuthorizer:
    """Admits requests with a valid API key, at a limited rate for each key.

    Without `keys` every request passes, but the server then answers to local hosts only.
    """

    def __init__(self, keys: ApiKeys | None = None, limit: RateLimiter | None = None) -> None:
        self._keys = keys
        self._limit = limit

    def admit(self, headers: Mapping[str, Sequence[str]]) -> ApiKey | None:
        """Take a token from the caller's bucket; return the API key, None on a server without keys.

        Raise Unauthenticated, TooManyRequests, Unavailable.
        """
        # Unknown keys get no bucket: a caller could invent a million of them.
        key = None if self._keys is None else _find_key(self._keys, headers)
        if self._limit is not None and not self._limit.take("" if key is None else key.id):
            raise errors.TooManyRequests("There are too many requests: slow down, then try again.")
        return key


def _find_key(keys: ApiKeys, headers: Mapping[str, Sequence[str]]) -> ApiKey:
    # Looked up for every request: a revoked key stops working at once.
    authorization = headers.get("authorization", [""])[-1]
    key = authenticate(keys, authorization)
    if key is None:
        fault = "The Authorization header has no valid API key. " if authorization else ""
        raise errors.Unauthenticated(f"{fault}Send an API key: `Authorization: Bearer tmr_…`.")
    return key
