"""`python -m cli.demo`: Timers on a scratch database, with a handful of timers to look at."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from chalicelib.core.targets import LOOPBACK_TARGETS

ROOT = Path(__file__).parent.parent

READY = re.compile(r"Timers is ready at (http://\S+)\. ")

NOBODY = "http://127.0.0.1:9/"
"""A URL that refuses to be connected to."""


def timers(receiver: str) -> list[dict[str, Any]]:
    """Return what POST /timers is asked for; `receiver` is the URL of the built-in one."""
    invoice = {"invoice": 4711, "total": "12.50"}
    few = {"max_attempts": 4, "initial_delay": 5, "max_delay": 20}
    return [
        {"seconds": 5, "url": f"{receiver}welcome", "label": "welcome"},
        {"seconds": 10, "url": f"{receiver}invoices/{{id}}", "label": "invoice", "body": invoice},
        {"seconds": 15, "url": f"{receiver}reminder", "label": "reminder"},
        {"seconds": 3, "url": NOBODY, "retry": few, "label": "retries, and fails"},
        {
            "seconds": 8,
            "url": f"{receiver.removesuffix('_receiver/')}nothing-there",
            "label": "fails at once",
            "on_failure": f"{receiver}failed/{{id}}",
        },
        {"minutes": 1, "url": f"{receiver}later", "label": "in a minute"},
        {"minutes": 20, "url": f"{receiver}later", "label": "in a while"},
        {"minutes": 45, "url": f"{receiver}later", "label": "within the hour"},
        {"delay": "30d", "url": "https://example.com/renew", "label": "renewal"},
    ]


def main() -> None:
    """Serve until Ctrl-C or SIGTERM; what arrives is shown, and the address of the console."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with TemporaryDirectory(prefix="timers-") as folder:
        mine = {
            "TIMERS_DB": f"{folder}/timers.db",
            "AUTH": "none",
            "HOST": "127.0.0.1",
            "ALLOWED_TARGETS": LOOPBACK_TARGETS,
        }
        server = subprocess.Popen(
            [sys.executable, "-m", "standalone"],
            cwd=ROOT,
            env={"PORT": "0", **os.environ, **mine},  # PORT is for who wants a certain one
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            sys.exit(_follow(server))
        except KeyboardInterrupt:
            print()
        finally:
            server.terminate()
            server.wait()


def _follow(server: "subprocess.Popen[str]") -> int:
    """Show what the server says until it ends, and once it is ready give it something to do."""
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", flush=True)
        if ready := READY.match(line):
            print(next(server.stdout))  # the curl that it proposes
            _fill(ready[1])
    return server.wait()


def _fill(url: str) -> None:
    """Set the timers, and say where they are to be seen; end if one of them is refused."""
    body = {"timers": timers(f"{url}/_receiver/")}
    with requests.Session() as session:
        session.trust_env = False  # a proxy would look for the server on its own machine
        answer = session.post(f"{url}/timers/batch", json=body, timeout=30)
    answer.raise_for_status()
    problems = [it["problem"]["detail"] for it in answer.json()["results"] if "problem" in it]
    if problems:
        sys.exit(f"The demo can't set its timers: {' '.join(problems)}")
    print(f"Look at {url}/console, and here at what arrives; Ctrl-C ends it.\n", flush=True)


if __name__ == "__main__":
    main()
