"""Run one function in its own process: import it, send a first event, then further ones.

    python -P invoked.py app.fire events.json report.json

It imports nothing of this checkout, because it runs in a Python with Lambda's packages and the
bundle. The report has MB of memory and milliseconds of CPU time of all threads, without waiting.
"""

import json
import re
import sys
import uuid
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import awslambdaric.bootstrap  # noqa: F401  # Lambda has loaded it before the function

ARN = "arn:aws:lambda:eu-central-1:123456789012:function:timers-test"
SECONDS = 60
"""Seconds that an invocation may take."""


class Context:
    """Lambda's context object of one invocation."""

    invoked_function_arn = ARN

    def __init__(self) -> None:
        self.aws_request_id = str(uuid.uuid4())
        self._ends = perf_counter() + SECONDS

    def get_remaining_time_in_millis(self) -> int:
        return int((self._ends - perf_counter()) * 1000)


def live(handler: str, events: list[Any]) -> dict[str, Any]:
    """Return the times of the import, the first event, and the mean further event."""
    module, _, name = handler.partition(".")
    cpu = process_time()
    function = getattr(import_module(module), name)
    imported = _since(cpu)
    cpu = process_time()
    answer = function(events[0], Context())
    first, modules = _since(cpu), sorted(sys.modules)
    cpu = process_time()
    for event in events[1:]:
        answer = function(event, Context())
    return {
        "imported": imported,
        "first": first,
        "further": _since(cpu) / max(len(events) - 1, 1),
        "memory": _memory(),
        "modules": modules,
        "answer": answer,
    }


def _since(began: float) -> float:
    return (process_time() - began) * 1000


def _memory() -> float:
    # Not getrusage: it begins with the size of the process that started this one.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak[1]) / 1024 if peak else 0


if __name__ == "__main__":
    events, report = json.loads(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3])
    report.write_text(json.dumps(live(sys.argv[1], events)))
