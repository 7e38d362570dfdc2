"""The functions beside the API: what their events mean, and how long they have."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec
from chalice.app import AuthResponse

from chalicelib.core.errors import NotConfigured
from chalicelib.core.timer import Wakeup
from chalicelib.runtime import Dependencies
from chalicelib.service import tenants

SWEEP_RESERVE = timedelta(seconds=15)
"""How long before its end the sweep begins no further batch."""


class Record(Protocol):
    """What is used of a message."""

    body: str
    receipt_handle: str


def authorize(parts: Dependencies, authorization: str) -> AuthResponse:
    """Answer API Gateway, which asks whether a request with this Authorization header may pass.

    The answer is good for all routes, since the gateway keeps it for a while; what the key may be
    used for, the views see to.
    """
    key = tenants.authenticate(parts.keys, authorization) if parts.keys else None
    if key is None:
        return AuthResponse(routes=[], principal_id="unknown")
    found = {"tenant": key.tenant, "role": key.role.value}
    return AuthResponse(routes=["*"], principal_id=key.id, context=found)


def fire(parts: Dependencies, event: Any) -> None:
    """Answer a schedule that went off; `event` is its target's Input."""
    parts.worker.fire(msgspec.convert(event, Wakeup))


def deliver(parts: Dependencies, records: Iterable[Record], context: Any) -> None:
    """Answer a batch of messages; raises if some must come again."""
    if parts.scheduler is None:
        raise NotConfigured("There are no queues here: the messages are nobody's.")
    ends_at = _ends_at(parts, context)
    messages = [(record.body, record.receipt_handle) for record in records]
    parts.scheduler.answer(messages, lambda wakeup: parts.worker.deliver(wakeup, ends_at))


def sweep(parts: Dependencies, context: Any) -> None:
    """Look after what was forgotten, as long as this invocation lasts."""
    parts.worker.sweep(_ends_at(parts, context) - SWEEP_RESERVE)


def _ends_at(parts: Dependencies, context: Any) -> datetime:
    return parts.clock() + timedelta(milliseconds=context.get_remaining_time_in_millis())
