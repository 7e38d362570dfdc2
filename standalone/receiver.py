"""The built-in receiver: takes every webhook, remembers the latest ones, and shows them."""

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
"""What begins so is a webhook; without the slash at its end it is the list of those that came."""

MAX_ARRIVALS = 100
"""How many are remembered."""

MAX_BODY_KEPT = 128 * 1024
"""Bytes of a body that is remembered: Timers sends none that is larger."""

MAX_BODY_SHOWN = 2048
"""Bytes of a body that are shown; its signature is of the whole."""

TIMESTAMP_TOLERANCE = timedelta(minutes=5)
"""How far a signed timestamp may be from the time of arrival."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request that came, as it is shown."""

    at: datetime
    method: str
    path: str
    headers: Mapping[str, str]
    """What looks like a secret is masked."""
    body: str
    """How it begins; empty if it was too large to remember."""
    size: int
    """Bytes that the body had."""
    lateness: float | None
    """Seconds from the deadline of the timer, if it named one."""
    signature: Literal["valid", "invalid", "missing"] = "missing"
    """Held against the secrets that there are when it is shown."""


class Receiver:
    """Takes webhooks at any path; `secrets_of` returns what those of a tenant are signed with."""

    def __init__(
        self, clock: Callable[[], datetime], secrets_of: Callable[[str], list[str]]
    ) -> None:
        self._clock = clock
        self._secrets_of = secrets_of
        self._latest: deque[tuple[Arrival, bytes]] = deque(maxlen=MAX_ARRIVALS)

    def take(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Remember a request, log it, and be content with it."""
        now = self._clock()
        lateness = _lateness(headers.get("timer-scheduled-at", ""), now)
        kept = body if len(body) <= MAX_BODY_KEPT else b""
        arrival = Arrival(
            at=now,
            method=method,
            path=path,
            headers={name: _shown(name, value) for name, value in headers.items()},
            body=kept[:MAX_BODY_SHOWN].decode(errors="replace"),
            size=len(body),
            lateness=lateness,
        )
        self._latest.append((arrival, kept))
        fields = {"method": method, "path": path, "lateness": lateness}
        log.info("webhook received", extra=fields)
        return Response(body="", status_code=HTTPStatus.NO_CONTENT)

    def show(self, tenant: str, *, signed_only: bool) -> Response:
        """Return what came, newest first, its signatures held against the tenant's secrets.

        `signed_only`: without what carries none of these, which may be another tenant's.
        """
        secrets = self._secrets_of(tenant)
        came = [_verified(*it, secrets) for it in reversed(self._latest)]
        shown = [it for it in came if it.signature == "valid" or not signed_only]
        text = msgspec.json.encode({"arrivals": shown}).decode()
        return Response(body=text, headers={"Content-Type": "application/json"})


def _lateness(scheduled_at: str, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(scheduled_at)).total_seconds()
    except (ValueError, TypeError):  # not one of ours
        return None


def _shown(name: str, value: str) -> str:
    """Return a header as a timer's view shows it; the signature is what is looked for here."""
    return value if name == "webhook-signature" else mask(name, value)


def _verified(arrival: Arrival, body: bytes, secrets: list[str]) -> Arrival:
    found = arrival.headers.get("webhook-signature")
    if found is None:
        return arrival
    text = arrival.headers.get("webhook-timestamp", "")
    timestamp = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
    is_recent = abs(timestamp - arrival.at.timestamp()) <= TIMESTAMP_TOLERANCE.total_seconds()
    id = arrival.headers.get("webhook-id", "")
    made = signing.is_signed_with(secrets, id, timestamp, body, found)
    return replace(arrival, signature="valid" if is_recent and made else "invalid")
