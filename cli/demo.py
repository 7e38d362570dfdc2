"""`timers demo`: Timers on a scratch database, with a few timers to look at."""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from chalicelib.core.errors import OperatorError
from chalicelib.core.targets import LOOPBACK_TARGETS

ROOT = Path(__file__).parent.parent

READY = re.compile(r"Timers is ready at (http://\S+)\. ")

REFUSING_URL = "http://127.0.0.1:9/"
"""A URL that refuses connections."""


def timers(receiver: str) -> list[dict[str, Any]]:
    """Return the specs for POST /timers; `receiver` is the built-in receiver's URL."""
    invoice = {"invoice": 4711, "total": "12.50"}
    few_attempts = {"max_attempts": 4, "initial_delay": 5, "max_delay": 20}
    return [
        {"seconds": 5, "url": f"{receiver}welcome", "label": "welcome"},
        {"seconds": 10, "url": f"{receiver}invoices/{{id}}", "label": "invoice", "body": invoice},
        {"seconds": 15, "url": f"{receiver}reminder", "label": "reminder"},
        {"seconds": 3, "url": REFUSING_URL, "retry": few_attempts, "label": "retries, then fails"},
        {
            "seconds": 8,
            "url": f"{receiver.removesuffix('_receiver/')}nothing-there",
            "label": "fails at once",
            "on_failure": f"{receiver}failed/{{id}}",
        },
        {"minutes": 1, "url": f"{receiver}later", "label": "in a minute"},
        {"minutes": 20, "url": f"{receiver}later", "label": "in 20 minutes"},
        {"minutes": 45, "url": f"{receiver}later", "label": "within the hour"},
        {"delay": "30d", "url": "https://example.com/renew", "label": "renewal"},
    ]


def run(options: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM, and show the server's output."""
    signal.signal(signal.SIGTERM, _exit)
    with TemporaryDirectory(prefix="timers-") as folder:
        server = _start(Path(folder), options.port)
        try:
            sys.exit(_follow(server))
        except KeyboardInterrupt:
            print()
        finally:
            server.terminate()
            server.wait()


def _exit(*_: object) -> None:
    sys.exit()


def _start(folder: Path, port: str | None) -> "subprocess.Popen[str]":
    """Start a server; the demo's own settings override the environment's, except for PORT."""
    settings = {
        "PORT": port or os.environ.get("PORT", "0"),
        "TIMERS_DB": f"{folder}/timers.db",
        "AUTH": "none",
        "HOST": "127.0.0.1",
        "ALLOWED_TARGETS": LOOPBACK_TARGETS,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "standalone"],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
    )


def _follow(server: "subprocess.Popen[str]") -> int:
    """Print the server's output until it ends; create the timers once it is ready."""
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", flush=True)
        if ready := READY.match(line):
            print(next(server.stdout))  # the curl command below the greeting
            _create_timers(ready[1])
    return server.wait()


def _create_timers(url: str) -> None:
    """Create the timers and print the console's URL; raise OperatorError if one is rejected."""
    specs = {"timers": timers(f"{url}/_receiver/")}
    with requests.Session() as session:
        session.trust_env = False  # a proxy would look for 127.0.0.1 on its own machine
        response = session.post(f"{url}/timers/batch", json=specs, timeout=30)
    response.raise_for_status()
    results = response.json()["results"]
    problems = [result["problem"]["detail"] for result in results if "problem" in result]
    if problems:
        raise OperatorError(f"The demo could not create its timers. {' '.join(problems)}")
    print(f"Look at {url}/console. Webhooks show up here as they arrive. Ctrl-C stops the demo.\n",
          flush=True)  # fmt: skip
