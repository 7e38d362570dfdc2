"""A LocalStack executor that runs Lambda functions as local processes, without Docker.

LocalStack starts, invokes and stops execution environments. Here an environment is a process with a
copy of the bundle, its own folder for temporary files, and no variables of this machine. Settings:

    FUNCTION_PYTHON  a Python with the packages of the Lambda runtime only
    FUNCTION_LOGS    the folder for the functions' logs: <function>/<start time in ns>.log

The last argument of each process is the name of its function, so people and tests can find it.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from threading import Lock, Thread

from localstack.services.lambda_.invocation.executor_endpoint import StatusErrorException
from localstack.services.lambda_.invocation.lambda_models import FunctionVersion, InvocationResult
from localstack.services.lambda_.invocation.plugins import RuntimeExecutorPlugin
from localstack.services.lambda_.invocation.runtime_executor import RuntimeExecutor

from tests.e2e.localstack.plugins.function_process import FunctionProcess, InitFailed
from tests.e2e.localstack.plugins.runtime_api import Invocation


class ProcessExecutor(RuntimeExecutor):
    """One execution environment, which handles one event at a time."""

    def __init__(self, id: str, function_version: FunctionVersion) -> None:
        super().__init__(id, function_version)
        self._name = function_version.id.function_name
        self._config = function_version.config
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self._name}-"))
        self._log = Path(os.environ["FUNCTION_LOGS"], self._name, f"{time.time_ns()}.log")
        self._env: dict[str, str] = {}
        self._process: FunctionProcess | None = None
        self._busy = Lock()

    @classmethod
    def prepare_version(cls, function_version: FunctionVersion) -> None:
        """Unpack the bundle before the first start."""
        function_version.config.code.prepare_for_execution()

    @classmethod
    def cleanup_version(cls, function_version: FunctionVersion) -> None:
        """Do nothing: LocalStack removes the bundle."""

    def start(self, env_vars: dict[str, object]) -> None:
        """Start in a copy of the bundle: an update removes the original while events still run."""
        task = self._folder / "task"
        shutil.copytree(self._config.code.get_unzipped_code_location(), task)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._env = {
            **{name: str(value) for name, value in env_vars.items()},
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{self._config.runtime}",
            "LAMBDA_TASK_ROOT": str(task),
            "PYTHONPATH": str(task),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder),
        }
        self._running()

    def _running(self) -> FunctionProcess:
        """Return the process. As on AWS, an ended process is restarted in the same environment."""
        if self._process is None or self._process.ended.done():
            try:
                self._process = FunctionProcess(self._name, self._env, self._log)
            except InitFailed as error:
                raise StatusErrorException(f"{self._name} did not start.", error.document) from None
        return self._process

    def invoke(self, payload: dict[str, str]) -> InvocationResult:
        """Return the function's result for an event, with the log lines of this invocation."""
        with self._busy:
            process = self._running()
            id, seconds, began = payload["invoke-id"], self._config.timeout, time.time()
            headers = {
                "Lambda-Runtime-Aws-Request-Id": id,
                "Lambda-Runtime-Invoked-Function-Arn": payload["invoked-function-arn"],
                "Lambda-Runtime-Trace-Id": payload["trace-id"],
                "Lambda-Runtime-Deadline-Ms": str(int((began + seconds) * 1000)),
            }
            written = self._log.stat().st_size
            self._note(f"START RequestId: {id}")
            answer = process.answer(Invocation(headers, payload["payload"].encode()), seconds)
            if answer.is_error:
                self._note(answer.document.decode())
            self._note(f"REPORT RequestId: {id} Duration: {(time.time() - began) * 1000:.2f} ms")
            logs = self._log.read_bytes()[written:].decode(errors="replace")
            return InvocationResult(id, answer.document, answer.is_error, logs)

    def stop(self) -> None:
        """Stop after the current event: on AWS an update interrupts no invocation."""
        Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        with self._busy:
            if self._process:
                self._process.end()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _note(self, line: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{line}\n")

    def get_logs(self) -> str:
        """Return the whole log of this environment."""
        return self._log.read_text(errors="replace")

    def get_address(self) -> str:
        """Return the host on which LocalStack reaches the environment."""
        return "127.0.0.1"

    def get_endpoint_from_executor(self) -> str:
        """Return the host on which the environment reaches LocalStack."""
        return "127.0.0.1"

    def get_runtime_endpoint(self) -> str:
        """Return an empty string: only LocalStack's container runtime uses this."""
        return ""


class ProcessExecutorPlugin(RuntimeExecutorPlugin):
    """Selected by LAMBDA_RUNTIME_EXECUTOR=process."""

    name = "process"

    def load(self) -> type[ProcessExecutor]:
        return ProcessExecutor
