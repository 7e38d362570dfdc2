"""Logs and metrics for CloudWatch: a JSON line for each event, and metrics derived from events.

A line about a timer has its id and tenant. No line has a URL, a header or a body, because they may
be secret. Metrics are lines too, in CloudWatch's embedded metric format.
"""

import json
import logging
import sys
from typing import Any

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from aws_lambda_powertools.metrics import EphemeralMetrics

from chalicelib.core.timer import Status, Timer

NAMESPACE = "Timers"
"""The metrics' namespace in CloudWatch. Their only dimension is `service`, `timers-<stage>`."""

_ATTEMPTS = ("webhook delivered", "webhook failed")


def attach(name: str) -> "JsonLines":
    """Log this process to standard output as JSON; `name` is `timers-<stage>`."""
    lines = JsonLines(name)
    events, metrics = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stdout)
    events.setFormatter(lines)
    metrics.setFormatter(_Metrics(name))
    metrics.addFilter(lambda record: bool(_measurements(record)))
    root = logging.getLogger()
    root.handlers = [events, metrics]
    root.setLevel(logging.WARNING)
    logging.getLogger("chalicelib").setLevel(logging.INFO)
    return lines


class JsonLines(LambdaPowertoolsFormatter):
    """Powertools' JSON lines, with the fields of a timer that are not secret."""

    def __init__(self, name: str) -> None:
        super().__init__(service=name, utc=True, use_rfc3339=True, serialize_stacktrace=False)

    def serialize(self, log: Any) -> str:
        state = log.pop("state", None)
        fields = _fields(log["message"], state) if isinstance(state, Timer) else {}
        return super().serialize(log | fields)

    def set_invocation(self, context: Any) -> None:
        """Add the id of this Lambda invocation to the following lines."""
        self.append_keys(function_request_id=context.aws_request_id)


class _Metrics(logging.Formatter):
    """Lines in CloudWatch's embedded metric format.

    Each is written at once: metrics collected until the end of an invocation are lost if it dies.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        metrics = EphemeralMetrics(namespace=NAMESPACE, service=self._name)
        for metric, unit, value in _measurements(record):
            metrics.add_metric(metric, unit, value)
        return json.dumps(metrics.serialize_metric_set())


def _fields(event: str, timer: Timer) -> dict[str, Any]:
    fields: dict[str, Any] = {"status": timer.status, "generation": timer.generation}
    if event in _ATTEMPTS:
        last = timer.attempts[-1]
        fields |= {
            "attempt": last.number,
            "lateness": last.lateness,
            "duration": last.outcome.duration,
            "outcome": last.outcome.error or last.outcome.status,
        }
    return fields


def _measurements(record: logging.LogRecord) -> list[tuple[str, str, float]]:
    """Return the measurements of an event: metric, unit, value."""
    event, timer = record.msg, vars(record).get("state")
    if event == "request not served":
        return [("Unserved", "Count", 1)]
    if not isinstance(timer, Timer):
        return []
    measurements: list[tuple[str, str, float]] = []
    if event in _ATTEMPTS:
        measurements.append(("Lateness", "Seconds", timer.attempts[-1].lateness))
    if event == "timer requeued":
        measurements.append(("Overdue", "Count", 1))
    ended = {Status.DELIVERED: "Delivered", Status.FAILED: "Failed"}.get(timer.status)
    if ended and event in (*_ATTEMPTS, "timer reclaimed"):
        measurements.append((ended, "Count", 1))
    return measurements
