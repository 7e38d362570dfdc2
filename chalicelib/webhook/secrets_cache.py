"""A TTL cache with single flight for the signing secrets of tenants."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta

SECRETS_TTL = timedelta(minutes=1)
"""How long secrets are cached on AWS: a retired secret may sign for this long."""

SecretsOf = Callable[[str], Sequence[str]]
"""Returns a tenant's secrets, newest first, or raises Unavailable."""


class SecretsCache:
    """Reads each tenant's secrets at most once per TTL, however many threads ask.

    `clock` returns wall time: a monotonic clock may stand still while Lambda freezes the function.
    """

    def __init__(
        self, read: SecretsOf, clock: Callable[[], datetime], ttl: timedelta = SECRETS_TTL
    ) -> None:
        self._read = read
        self._ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[datetime, Future[Sequence[str]]]] = {}

    def of(self, tenant: str) -> Sequence[str]:
        """Return the tenant's secrets, newest first; raise Unavailable if they can't be read."""
        with self._lock:
            now = self._clock()
            read_at, secrets = self._entries.get(tenant, (now - self._ttl, Future()))
            # An age below zero means that the clock was set back.
            is_fresh = timedelta(0) <= now - read_at < self._ttl
            if not is_fresh:
                secrets = Future()
                self._entries[tenant] = now, secrets
        if not is_fresh:
            self._fill(tenant, secrets)
        return secrets.result()

    def _fill(self, tenant: str, secrets: "Future[Sequence[str]]") -> None:
        try:
            secrets.set_result(self._read(tenant))
        except BaseException as error:
            # All callers that wait for this read fail with it; the next call reads again.
            with self._lock:
                self._entries.pop(tenant, None)
            secrets.set_exception(error)
