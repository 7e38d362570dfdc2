"""The built-in receiver: takes every webhook, remembers the latest ones, and shows them."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Literal

import msgspec
from chalice.app import Response

from chalicelib import signing
from chalicelib.guard import masked

log = logging.getLogger(__name__)

RECEIVER = "/_receiver/"
"""What begins so is a webhook; without the slash at its end it is the list of those that came."""

KEPT = 100
"""How many are remembered."""

MAX_BODY = 128 * 1024
"""Bytes of a body that is remembered: Timers sends none that is larger."""

TOLERANCE = timedelta(minutes=5)
"""How far a signed timestamp may be from the time of arrival."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request that came."""

    at: datetime
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    """Empty if it was too large to remember."""
    size: int
    """Bytes that the body had."""
    lateness: float | None
    """Seconds from the deadline of the timer, if it named one."""


class ArrivalView(msgspec.Struct, kw_only=True):
    """One request as it is shown."""

    at: datetime
    method: str
    path: str
    headers: Mapping[str, str]
    body: str
    size: int
    lateness: float | None
    signature: Literal["valid", "invalid", "missing"]


class Receiver:
    """Takes webhooks at any path; `secrets_of` returns what those of a tenant are signed with."""

    def __init__(
        self, clock: Callable[[], datetime], secrets_of: Callable[[str], list[str]]
    ) -> None:
        self._clock = clock
        self._secrets_of = secrets_of
        self._latest: deque[Arrival] = deque(maxlen=KEPT)

    def take(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Remember a request, log it, and be content with it."""
        now = self._clock()
        lateness = _lateness(headers.get("timer-scheduled-at", ""), now)
        kept = body if len(body) <= MAX_BODY else b""
        arrival = Arrival(
            at=now,
            method=method,
            path=path,
            headers=headers,
            body=kept,
            size=len(body),
            lateness=lateness,
        )
        self._latest.append(arrival)
        fields = {"method": method, "path": path, "lateness": lateness}
        log.info("webhook received", extra=fields)
        return Response(body="", status_code=HTTPStatus.NO_CONTENT)

    def show(self, tenant: str, *, signed_only: bool) -> Response:
        """Return what came, newest first, its signatures held against the tenant's secrets.

        `signed_only`: without what carries none of these, which may be another tenant's.
        """
        secrets = self._secrets_of(tenant)
        views = [_view(arrival, secrets) for arrival in reversed(self._latest)]
        shown = [it for it in views if it.signature == "valid" or not signed_only]
        text = msgspec.json.encode({"arrivals": shown}).decode()
        return Response(body=text, headers={"Content-Type": "application/json"})


def _lateness(scheduled_at: str, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(scheduled_at)).total_seconds()
    except (ValueError, TypeError):  # not one of ours
        return None


def _view(arrival: Arrival, secrets: list[str]) -> ArrivalView:
    return ArrivalView(
        at=arrival.at,
        method=arrival.method,
        path=arrival.path,
        headers={name: _shown(name, value) for name, value in arrival.headers.items()},
        body=arrival.body.decode(errors="replace"),
        size=arrival.size,
        lateness=arrival.lateness,
        signature=_signature(arrival, secrets),
    )


def _shown(name: str, value: str) -> str:
    """Return a header as a timer's view shows it; the signature is what is looked for here."""
    return value if name == "webhook-signature" else masked(name, value)


def _signature(arrival: Arrival, secrets: list[str]) -> Literal["valid", "invalid", "missing"]:
    found = arrival.headers.get("webhook-signature")
    if found is None:
        return "missing"
    text = arrival.headers.get("webhook-timestamp", "")
    timestamp = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
    is_recent = abs(timestamp - arrival.at.timestamp()) <= TOLERANCE.total_seconds()
    id = arrival.headers.get("webhook-id", "")
    made = signing.made_with(secrets, id, timestamp, arrival.body, found)
    return "valid" if is_recent and made else "invalid"
