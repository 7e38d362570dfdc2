"""Settings of the standalone server, read from environment variables."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from chalicelib.core.errors import OperatorError
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import RETENTION
from chalicelib.webhook.proxy import Proxy
from chalicelib.webhook.tls import client_context
from standalone.rate_limit import DEFAULT_RATE, MAX_RATE
from standalone.sqlite.connection import DEFAULT_DATABASE

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
"""The only hosts that a server without keys listens on and answers to: loopback."""

MAX_PORT = 65535


@dataclass(frozen=True)
class Settings:
    """The operator's settings; docs/configuration.md documents the variables."""

    host: str
    port: int
    """0 picks a free port."""
    database: Path
    targets: Targets
    keys: bool = False
    """Whether requests need an API key."""
    rate: int = 0
    """Requests per second: for each key, or without keys for all together; 0 for no limit."""
    retention: timedelta = RETENTION
    """How long finished timers are kept, at most `timer.RETENTION`."""
    tls: ssl.SSLContext | None = field(default=None, compare=False)  # contexts have no equality
    """The authorities and the client certificate for https webhooks; None for the defaults."""
    proxy: Proxy | None = None

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings from environment variables; raise OperatorError for a bad value."""
        keys = _needs_keys(environ)
        host = environ.get("HOST", "127.0.0.1").lower().strip("[]")
        if host not in LOCAL_HOSTS and not keys:
            raise OperatorError(
                f"HOST={host} requires AUTH=keys."
                " Without keys, Timers listens on 127.0.0.1, localhost or ::1 only."
            )
        default_rate = DEFAULT_RATE if keys else 0
        default_targets = LOOPBACK_TARGETS if host in LOCAL_HOSTS else ""
        return cls(
            host=host,
            port=_number(environ, "PORT", 8000, MAX_PORT),
            database=Path(environ.get("TIMERS_DB", DEFAULT_DATABASE)),
            targets=Targets.parse(environ.get("ALLOWED_TARGETS", default_targets)),
            keys=keys,
            rate=_number(environ, "RATE", default_rate, MAX_RATE),
            retention=timedelta(days=_number(environ, "RETENTION", RETENTION.days, RETENTION.days)),
            tls=client_context(environ.get("CA_BUNDLE", ""), environ.get("CLIENT_CERT", "")),
            proxy=Proxy.parse(environ.get("PROXY", "")),
        )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOCAL_HOSTS


def _needs_keys(environ: Mapping[str, str]) -> bool:
    auth = environ.get("AUTH", "none")
    if auth not in ("none", "keys"):
        raise OperatorError(f"AUTH must be none or keys, not {auth[:20]!r}.")
    return auth == "keys"


def _number(environ: Mapping[str, str], name: str, default: int, limit: int) -> int:
    text = environ.get(name, str(default))
    if not (re.fullmatch("[0-9]{1,9}", text) and int(text) <= limit):
        raise OperatorError(f"{name} must be a number from 0 to {limit}, not {text[:20]!r}.")
    return int(text)
