"""The built-in receiver: accepts any webhook, keeps the latest ones and lists them."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Literal

import msgspec
from chalice.app import Response
from msgspec.structs import replace

from chalicelib.core import signing
from chalicelib.core.headers import mask

log = logging.getLogger(__name__)

RECEIVER_PATH = "/_receiver/"
"""Prefix of the paths that accept webhooks. Without the final slash it is the path of the list."""

MAX_ARRIVALS = 100
"""How many requests are kept."""

MAX_BODY_KEPT = 128 * 1024
"""Largest body that is kept, in bytes. Timers sends no larger ones."""

MAX_BODY_SHOWN = 2048
"""Bytes of a body that the list shows. The signature covers the whole body."""

TIMESTAMP_TOLERANCE = timedelta(minutes=5)
"""How far a signed timestamp may be from the time of arrival, either way."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One received request, as the list shows it."""

    at: datetime
    method: str
    path: str
    headers: Mapping[str, str]
    """Values that look like secrets are masked."""
    body: str
    """The first `MAX_BODY_SHOWN` bytes; empty if the body is larger than `MAX_BODY_KEPT`."""
    size: int
    """Bytes of the whole body."""
    lateness: float | None
    """Seconds since the timer's deadline; None if the request names no deadline."""
    signature: Literal["valid", "invalid", "missing"] = "missing"
    """Checked when the list is read, with the secrets of that moment."""


class Receiver:
    """Keeps the latest webhooks in memory. `secrets_of` returns a tenant's signing secrets."""

    def __init__(
        self, clock: Callable[[], datetime], secrets_of: Callable[[str], list[str]]
    ) -> None:
        self._clock = clock
        self._secrets_of = secrets_of
        self._latest: deque[tuple[Arrival, bytes]] = deque(maxlen=MAX_ARRIVALS)

    def take(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Keep a request, log it and return 204."""
        now = self._clock()
        lateness = _lateness(headers.get("timer-scheduled-at", ""), now)
        kept = body if len(body) <= MAX_BODY_KEPT else b""
        arrival = Arrival(
            at=now,
            method=method,
            path=path,
            headers={name: _mask(name, value) for name, value in headers.items()},
            body=kept[:MAX_BODY_SHOWN].decode(errors="replace"),
            size=len(body),
            lateness=lateness,
        )
        self._latest.append((arrival, kept))
        fields = {"method": method, "path": path, "lateness": lateness}
        log.info("webhook received", extra=fields)
        return Response(body="", status_code=HTTPStatus.NO_CONTENT)

    def show(self, tenant: str, *, signed_only: bool) -> Response:
        """List the kept requests, newest first, with signatures checked for this tenant.

        `signed_only` leaves out requests without a valid signature: they may be another tenant's.
        """
        secrets = self._secrets_of(tenant)
        latest = [_verified(*kept, secrets) for kept in reversed(self._latest)]
        listed = [it for it in latest if it.signature == "valid" or not signed_only]
        text = msgspec.json.encode({"arrivals": listed}).decode()
        return Response(body=text, headers={"Content-Type": "application/json"})


def _lateness(scheduled_at: str, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(scheduled_at)).total_seconds()
    except (ValueError, TypeError):  # not sent by Timers
        return None


def _mask(name: str, value: str) -> str:
    """Mask a header as the API does in timers, but not the signature."""
    return value if name == "webhook-signature" else mask(name, value)


def _verified(arrival: Arrival, body: bytes, secrets: list[str]) -> Arrival:
    signature = arrival.headers.get("webhook-signature")
    if signature is None:
        return arrival
    text = arrival.headers.get("webhook-timestamp", "")
    timestamp = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
    is_recent = abs(timestamp - arrival.at.timestamp()) <= TIMESTAMP_TOLERANCE.total_seconds()
    id = arrival.headers.get("webhook-id", "")
    matches = signing.is_signed_with(secrets, id, timestamp, body, signature)
    return replace(arrival, signature="valid" if is_recent and matches else "invalid")
