"""A process in which AWS's own runtime client, awslambdaric, calls a function's handler."""

import json
import os
import signal
import subprocess
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from threading import Thread
from typing import Any

from tests.e2e.localstack.plugins.runtime_api import Answer, Invocation, RuntimeApi

WATCHDOG = Path(__file__).parent.parent / "watchdog.py"

INIT_SECONDS = 10
"""Seconds until a process must ask for its first event, as on AWS."""


class InitFailed(Exception):
    """The function did not start; `document` is the error that Lambda reports."""

    def __init__(self, document: bytes) -> None:
        super().__init__(document.decode())
        self.document = document


class FunctionProcess:
    """Handles one event at a time; `ended` gets its exit status."""

    def __init__(self, function: str, env: dict[str, str], log: Path) -> None:
        """Start the process, with its output appended to the log; raise InitFailed on failure."""
        self._api = RuntimeApi()
        self.ended: Future[int] = Future()
        watched = [os.environ["FUNCTION_PYTHON"], "-P", str(WATCHDOG)]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*watched, "awslambdaric", env["_HANDLER"], function],
                cwd=env["LAMBDA_TASK_ROOT"],
                env={**env, "AWS_LAMBDA_RUNTIME_API": self._api.address},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        Thread(target=self._watch, daemon=True).start()
        initialized = self._within(INIT_SECONDS, self._api.initialized)
        if initialized.is_error:
            self.end()
            raise InitFailed(initialized.document)

    def answer(self, invocation: Invocation, seconds: int) -> Answer:
        """Return the function's result; kill the process after a timeout in seconds."""
        self._api.next.put(invocation)
        return self._within(seconds, invocation.answer)

    def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self._process.kill()
        self.ended.result()

    def _within(self, seconds: int, answer: Future[Answer]) -> Answer:
        """Return the result, or the error that Lambda reports after a crash or a timeout."""
        either: list[Future[Any]] = [answer, self.ended]
        wait(either, seconds, FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if self.ended.done():
            error, why = "Runtime.ExitError", f"Runtime exited with {_status(self.ended.result())}"
        else:
            error, why = "Sandbox.Timedout", f"Task timed out after {seconds:.2f} seconds"
            self.end()
        return Answer(json.dumps({"errorType": error, "errorMessage": why}).encode(), is_error=True)

    def _watch(self) -> None:
        self.ended.set_result(self._process.wait())
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._api.close()


def _status(number: int) -> str:
    return f"signal {signal.Signals(-number).name}" if number < 0 else f"status {number}"
