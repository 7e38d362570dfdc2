"""The standalone server as its own process, and a receiver that records its requests."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import requests

ROOT = Path(__file__).parents[2]

TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
"""A PATH that puts the commands of the test environment first."""


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with these settings and no others of Timers.

    It also leaves out the variables that a parent `make` passes to a nested one.
    """
    ours = {"HOST", "PORT", "AUTH", "RATE", "RETENTION", "TIMERS_DB", "ALLOWED_TARGETS"}
    makes = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    kept = {name: value for name, value in os.environ.items() if name not in ours | makes}
    return {**kept, **settings}


def run_timers(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run `timers keys …` or `timers secrets …` on the database TIMERS_DB, or on a --stage."""
    return run_module("cli", *arguments, **settings)


def run_module(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m` with these arguments until it ends, for at most a minute."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Standalone:
    """`python -m standalone` on a database and a free port; killed at the end if still running."""

    def __init__(self, database: Path, settings: Mapping[str, str] | None = None) -> None:
        self._settings = {"TIMERS_DB": str(database), "PORT": "0", **(settings or {})}
        self.url = ""
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        self.spawn()
        self.wait_until_ready()
        return self

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "standalone"],
            cwd=ROOT,
            env=environment(PYTHONWARNINGS="default", **self._settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._ready: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Wait up to a minute for the ready line; fail if the server exits first."""
        ready = self._ready.get(timeout=60)
        assert ready is not None, f"The server did not start: {self.lines}"
        self.url = ready

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if match := re.match(r"Timers is ready at (http://\S+)\. ", line):
                self._ready.put(match[1])
        self._ready.put(None)

    def create(self, seconds: int, url: str) -> dict[str, Any]:
        """Create a timer with POST /timers; return it."""
        body = {"seconds": seconds, "url": url}
        response = requests.post(f"{self.url}/timers", json=body, timeout=30)
        assert response.status_code == 201, response.text
        return dict(response.json())

    def read(self, timer_id: str) -> dict[str, Any]:
        """Read a timer with GET /timers/{id}; return it."""
        response = requests.get(f"{self.url}/timers/{timer_id}", timeout=30)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self._wait()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, SIGTERM by default; return the exit status."""
        self.process.send_signal(number)
        return self._wait()

    def _wait(self) -> int:
        status = self.process.wait(60)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@dataclass(frozen=True)
class Arrival:
    """One request that the receiver got."""

    at: datetime
    id: str
    path: str
    body: bytes
    headers: dict[str, str]
    status: int
    """The status of the response; 0 if the connection was cut."""


class Receiver:
    """An HTTP server on a free port, by default of loopback.

    `hold` runs before each response. `status_of` returns its status for a path and an attempt
    number; 0 cuts the connection.
    """

    def __init__(
        self,
        hold: Callable[[], object] = lambda: None,
        listen: str = "127.0.0.1",
        status_of: Callable[[str, int], int] = lambda path, attempt: 200,
    ) -> None:
        self.arrivals: list[Arrival] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections open

            def handle(self) -> None:
                with suppress(ConnectionError):  # the sender was killed meanwhile
                    super().handle()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                now = datetime.now(UTC)
                id = headers.get("webhook-id", "")
                status = status_of(self.path, int(headers.get("timer-attempt", "1")))
                receiver.arrivals.append(Arrival(now, id, self.path, body, headers, status))
                hold()
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 1000
            daemon_threads = True

        self._server = Server((listen, 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://{listen}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ids(self) -> list[str]:
        """Return the webhook-id of each arrival, in order."""
        return [arrival.id for arrival in self.arrivals]


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return as soon as the condition holds; fail the test if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "The condition did not hold in time."
        time.sleep(0.01)
