"""LocalStack as a local process, without Docker. Lambda functions are processes beside it."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import requests

from tests.support.processes import ROOT

HERE = Path(__file__).parent
VENV = os.environ.get("LOCALSTACK_VENV", str(ROOT / ".localstack/venv"))
RUNTIME = os.environ.get("LOCALSTACK_RUNTIME", str(ROOT / ".localstack/runtime"))
"""Virtual environments: of LocalStack itself, and of the packages in the Lambda runtime."""

CATALOG = Path(VENV, "usr/lib/localstack")
"""Created by `localstack.aws.spec`. Without it the first request takes 10 s longer."""

STARTS_WITHIN = 120
ENDS_WITHIN = 10
"""Timeouts in seconds."""


def settings() -> dict[str, str]:
    """Return the settings shared with LocalStack in Docker."""
    lines = (ROOT / "infra/localstack/localstack.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Stack:
    """LocalStack on a free loopback port. It writes to `folder` only.

    It ends with the block or with this process, even after kill -9, and its functions end with it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{self._address}"
        self._log = folder / "localstack.log"

    def __enter__(self) -> Self:
        (self._folder / "tmp").mkdir()
        if CATALOG.exists():
            shutil.copytree(CATALOG, self._folder / "filesystem" / CATALOG.relative_to(VENV))
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [f"{VENV}/bin/python", "-P", HERE / "watchdog.py", "localstack.runtime.main"],
                cwd=self._folder,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{HERE / 'plugins'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self._folder),
            "TMP": str(self._folder / "tmp"),  # LocalStack warns about TMPDIR
            "FILESYSTEM_ROOT": str(self._folder / "filesystem"),
            "OVERRIDE_IN_DOCKER": "0",  # in a container it would write to /var
            "GATEWAY_LISTEN": self._address,
            "GATEWAY_SERVER": "loopback",
            "LOCALSTACK_HOST": self._address,
            "DNS_ADDRESS": "0",  # it needs no name server of its own
            "AWS_EC2_METADATA_DISABLED": "true",  # avoids a network lookup of credentials
            "PROVIDER_OVERRIDE_DYNAMODB": "moto",
            "PROVIDER_OVERRIDE_S3": "temporary",
            "SQS_ENDPOINT_STRATEGY": "path",  # queues share one host name
            "LAMBDA_RUNTIME_EXECUTOR": "process",
            "LAMBDA_SYNCHRONOUS_CREATE": "1",  # otherwise chalice polls after 5 s
            "FUNCTION_PYTHON": f"{RUNTIME}/bin/python",
            "FUNCTION_LOGS": str(self._folder / "logs"),
            **settings(),
        }

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(requests.RequestException):
                if requests.get(f"{self.url}/_localstack/health", timeout=5).ok:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"LocalStack did not start:\n{self._log.read_text()[-3000:]}")

    def logs(self, function: str) -> str:
        """Return the logs of a function so far, one environment after the other."""
        logs = sorted((self._folder / "logs" / function).glob("*.log"))
        return "".join(log.read_text(errors="replace") for log in logs)

    def processes(self, function: str) -> list[int]:
        """Return the ids of the processes that currently run a function."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                ours = os.getpgid(int(entry.name)) == self.process.pid
                if ours and (entry / "cmdline").read_text().endswith(f"\0{function}\0"):
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """Stop LocalStack and its functions, and wait until they are gone."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS_WITHIN)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
