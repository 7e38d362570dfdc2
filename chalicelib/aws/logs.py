"""What CloudWatch gets: a JSON line for each event that the core logs, and metrics made of them.

A line about a timer names it and its tenant. No line holds a URL, a header or a body: they may be
secrets. Metrics are lines as well, in CloudWatch's embedded metric format.
"""

import json
import logging
import sys
from typing import Any

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from aws_lambda_powertools.metrics import EphemeralMetrics

from chalicelib.core.timer import Status, Timer

NAMESPACE = "Timers"
"""Where CloudWatch has the metrics; their one dimension is `service`, the name of the stage."""

_SENT = ("webhook delivered", "webhook failed")


def attach(name: str) -> "JsonLines":
    """Send all logs of this process to standard output as JSON; `name` is that of the stage."""
    lines = JsonLines(name)
    told, counted = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stdout)
    told.setFormatter(lines)
    counted.setFormatter(_Metrics(name))
    counted.addFilter(lambda record: bool(_measures(record)))
    root = logging.getLogger()
    root.handlers = [told, counted]
    root.setLevel(logging.WARNING)
    logging.getLogger("chalicelib").setLevel(logging.INFO)
    return lines


class JsonLines(LambdaPowertoolsFormatter):
    """Powertools' JSON lines, with what may be told of the timer they are about."""

    def __init__(self, name: str) -> None:
        super().__init__(service=name, utc=True, use_rfc3339=True, serialize_stacktrace=False)

    def serialize(self, log: Any) -> str:
        state = log.pop("state", None)
        told = _told(log["message"], state) if isinstance(state, Timer) else {}
        return super().serialize(log | told)

    def set_invocation(self, context: Any) -> None:
        """Put the id of this Lambda invocation on the lines that follow."""
        self.append_keys(function_request_id=context.aws_request_id)


class _Metrics(logging.Formatter):
    """One line of CloudWatch's embedded metric format, for the events that are counted.

    Written at once: what waits for the end of an invocation may be lost with it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        metrics = EphemeralMetrics(namespace=NAMESPACE, service=self._name)
        for metric, unit, value in _measures(record):
            metrics.add_metric(metric, unit, value)
        return json.dumps(metrics.serialize_metric_set())


def _told(event: str, timer: Timer) -> dict[str, Any]:
    told: dict[str, Any] = {"status": timer.status, "generation": timer.generation}
    if event in _SENT:
        last = timer.attempts[-1]
        told |= {
            "attempt": last.number,
            "lateness": last.lateness,
            "duration": last.outcome.duration,
            "outcome": last.outcome.error or last.outcome.status,
        }
    return told


def _measures(record: logging.LogRecord) -> list[tuple[str, str, float]]:
    """Return what an event adds to which metric: name, unit, value."""
    event, timer = record.msg, vars(record).get("state")
    if event == "request not served":
        return [("Unserved", "Count", 1)]
    if not isinstance(timer, Timer):
        return []
    found: list[tuple[str, str, float]] = []
    if event in _SENT:
        found.append(("Lateness", "Seconds", timer.attempts[-1].lateness))
    if event == "timer requeued":
        found.append(("Overdue", "Count", 1))
    ended = {Status.DELIVERED: "Delivered", Status.FAILED: "Failed"}.get(timer.status)
    if ended and event in (*_SENT, "timer reclaimed"):
        found.append((ended, "Count", 1))
    return found
