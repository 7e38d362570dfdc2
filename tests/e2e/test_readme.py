"""The README's commands work as written."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, environment, wait_until

README = (ROOT / "README.md").read_text()


STARTS = [
    command
    for command in ("make run", "python -m standalone", "python -m cli serve")
    if command in README
]
"""The commands in the README that start a server."""


def first_curl() -> str:
    """Return the README's first shell block that calls curl."""
    shell_blocks: list[str] = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return next(block for block in shell_blocks if block.startswith("curl "))


def free_port() -> int:
    """Return 8000, the port in the README, or another free port if it is taken."""
    for port in (8000, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as free:
                return int(free.getsockname()[1])
        except OSError:
            continue
    raise AssertionError("There is no free port.")


def test_a_second_start_installs_nothing() -> None:
    """Once installed, `make run` starts the server and does nothing else."""
    ended = subprocess.run(
        ["make", "--dry-run", "run"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == ["exec", ".venv/bin/python", "-m", "cli", "serve"]


def test_readme_starts_with_make_run() -> None:
    """The README names `make run`, so the test below covers it."""
    assert "make run" in STARTS


@pytest.mark.e2e
@pytest.mark.parametrize("command", STARTS)
def test_first_timer(tmp_path: Path, command: str) -> None:
    """The server starts, the curl command sets a timer, and its webhook arrives after 5 s."""
    port = str(free_port())
    curl = first_curl().replace("8000", port)
    log = tmp_path / "log"
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    settings = {"TIMERS_DB": str(tmp_path / "timers.db"), "PATH": path}
    if port != "8000":
        settings["PORT"] = port
    with log.open("w") as output:
        process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=ROOT,
            env=environment(**settings),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: f"Timers is ready at http://127.0.0.1:{port}." in log.read_text(), 120)
        response = subprocess.run(
            ["sh", "-c", curl], capture_output=True, text=True, check=True, timeout=30
        )
        assert '"time_left":5' in response.stdout
        wait_until(lambda: "webhook received: POST /_receiver/hello" in log.read_text())
        wait_until(lambda: "webhook delivered" in log.read_text())
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    finally:
        # The whole group: sh or make is the parent of the server.
        subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
        process.wait(60)
    assert "Traceback" not in log.read_text()
