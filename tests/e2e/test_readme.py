"""The README's commands do what the README says, as they are written."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, environment, wait_until

README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    """Return the shell blocks of the README, in their order."""
    return re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def free_port() -> int:
    """Return 8000, which the README names, or where that is taken another free one."""
    for port in (8000, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as free:
                return int(free.getsockname()[1])
        except OSError:
            continue
    raise AssertionError("There is no free port.")


def test_a_second_start_installs_nothing() -> None:
    """Once made, the environment is used as it is: a start takes seconds."""
    ended = subprocess.run(
        ["make", "--dry-run", "run"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == ["exec", ".venv/bin/python", "-m", "standalone"]


@pytest.mark.e2e
@pytest.mark.parametrize("way", ["with make", "without make"])
def test_first_timer(tmp_path: Path, way: str) -> None:
    """Run it, paste the curl, and five seconds later the webhook is shown to arrive."""
    port = str(free_port())
    run, curl = (block.replace("8000", port) for block in blocks()[:2])
    if way == "without make":
        line = re.search(r"Without make, .*: `(.*)`", README)
        assert line is not None
        run = line[1]
        assert run.startswith("pip install -r requirements-run.txt && python -m standalone")
        run = f"python -m pip --version && {run.split(' && ')[1]}"  # all of it is installed already
    log = tmp_path / "log"
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    settings = {"TIMERS_DB": str(tmp_path / "timers.db"), "PATH": path}
    if port != "8000":
        settings["PORT"] = port
    with log.open("w") as output:
        process = subprocess.Popen(
            ["sh", "-c", run],
            cwd=ROOT,
            env=environment(**settings),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: f"Timers is ready at http://127.0.0.1:{port}." in log.read_text(), 120)
        answer = subprocess.run(
            ["sh", "-c", curl], capture_output=True, text=True, check=True, timeout=30
        )
        assert '"time_left":5' in answer.stdout
        wait_until(lambda: "webhook received: POST /_receiver/hello" in log.read_text())
        wait_until(lambda: "webhook delivered" in log.read_text())
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    finally:
        # The group: sh or make stands between this process and the server.
        subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
        process.wait(60)
    wait_until(lambda: "Stopping: finishing" in log.read_text())
