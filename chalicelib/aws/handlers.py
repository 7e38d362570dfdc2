"""The handlers of the Lambda functions other than the API, within their time limits."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

import msgspec
from chalice.app import AuthResponse

from chalicelib.core.errors import NotConfigured, Unavailable
from chalicelib.core.timer import Wakeup
from chalicelib.runtime import Dependencies
from chalicelib.service.concurrency import MapConcurrently, in_threads
from chalicelib.service.credentials import authenticate
from chalicelib.service.worker import Worker

log = logging.getLogger(__name__)

SWEEP_RESERVE = timedelta(seconds=15)
"""The sweep starts no batch within this time before the invocation ends."""


class Record(Protocol):
    """The fields of an SQS message that are used."""

    body: str
    receipt_handle: str


def authorize(dependencies: Dependencies, authorization: str) -> AuthResponse:
    """Tell API Gateway whether a request with this Authorization header may pass.

    The response covers all routes, because the gateway caches it. The views check the role.
    """
    keys = dependencies.keys
    key = authenticate(keys, authorization) if keys else None
    if key is None:
        return AuthResponse(routes=[], principal_id="unknown")
    context = {"tenant": key.tenant, "role": key.role.value}
    return AuthResponse(routes=["*"], principal_id=key.id, context=context)


def fire(dependencies: Dependencies, event: Any) -> None:
    """Handle a schedule that fired; `event` is the Input of its target."""
    dependencies.worker.fire(msgspec.convert(event, Wakeup))


def deliver(
    dependencies: Dependencies,
    records: Iterable[Record],
    context: Any,
    concurrently: MapConcurrently = in_threads,
) -> None:
    """Deliver a batch of messages concurrently.

    If some fail, deletes those that succeeded and raises the first failure: SQS then redelivers
    only the failed ones.
    """
    if dependencies.queue is None:
        raise NotConfigured("Messages are delivered on AWS only: this process has no queue.")
    records = list(records)
    ends_at = _ends_at(dependencies, context)
    results = concurrently(partial(_deliver, dependencies.worker, ends_at), records)
    failures = [result for result in results if result is not None]
    if not failures:
        return
    _log_failures(records, results)
    done = [it.receipt_handle for it, result in zip(records, results, strict=True) if not result]
    if done:
        # If this fails, SQS redelivers these too, and their wake-ups are ignored.
        with suppress(Unavailable):
            dependencies.queue.delete(done)
    raise failures[0]


def sweep(dependencies: Dependencies, context: Any) -> None:
    """Sweep overdue timers until shortly before this invocation ends."""
    dependencies.worker.sweep(_ends_at(dependencies, context) - SWEEP_RESERVE)


def decode_wakeup(body: str) -> Wakeup:
    """Return the wake-up of a message; raise msgspec.DecodeError if it is not one."""
    return msgspec.json.decode(body, type=Wakeup)


def _deliver(worker: Worker, ends_at: datetime, record: Record) -> None:
    worker.deliver(decode_wakeup(record.body), ends_at)


def _log_failures(records: Sequence[Record], results: Sequence[Exception | None]) -> None:
    for record, failure in zip(records, results, strict=True):
        if failure is not None:
            log.error("message failed", exc_info=failure, extra=_about(record.body))


def _about(body: str) -> dict[str, object]:
    try:
        return decode_wakeup(body).log_fields
    except msgspec.DecodeError:
        return {}


def _ends_at(dependencies: Dependencies, context: Any) -> datetime:
    now = dependencies.clock()  # first, so that the result is early rather than late
    return now + timedelta(milliseconds=context.get_remaining_time_in_millis())
