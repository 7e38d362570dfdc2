"""`make demo`: something to look at, at once, and nothing left behind."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from pytest_httpserver import HTTPServer

from cli import demo
from tests.support.processes import ROOT, environment, wait_until

OTHERS = {
    "AUTH": "keys",
    "HOST": "0.0.0.0",  # noqa: S104  # it is the demo's to say
    "ALLOWED_TARGETS": "192.0.2.1",
    "http_proxy": demo.NOBODY,
    "no_proxy": "",
}
"""What somebody's environment may have that is not meant for the demo."""


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo(tmp_path: Path, number: signal.Signals) -> None:
    """It says where the console is, shows what arrives, has a timer that retries, and cleans up,
    whatever else is set."""
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.demo"],
            cwd=ROOT,
            env=environment(TMPDIR=str(tmp_path), **OTHERS),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "Look at " in log.read_text(), 60)
        url = re.findall(r"Look at (\S+)/console", log.read_text())[0]
        assert requests.get(f"{url}/console", timeout=30).status_code == 200
        timers = requests.get(f"{url}/timers", timeout=30).json()["timers"]
        assert len({timer["label"] for timer in timers}) == 9
        (retrying,) = (it for it in timers if it["label"] == "retries, and fails")
        path = f"{url}/timers/{retrying['id']}"
        wait_until(lambda: requests.get(path, timeout=30).json()["status"] == "retrying")
        wait_until(lambda: "webhook received: POST /_receiver/welcome" in log.read_text())
        assert list(tmp_path.glob("timers-*"))
    finally:
        subprocess.run(["kill", f"-{number.value}", "--", f"-{process.pid}"], check=True)
        process.wait(60)
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.glob("timers-*"))


def test_what_is_refused_is_told(httpserver: HTTPServer) -> None:
    """A demo whose timers are not all set ends, and says why."""
    refused = {"status": 400, "problem": {"detail": "No such host."}}
    answer = {"results": [{"status": 201}, refused]}
    httpserver.expect_request("/timers/batch", "POST").respond_with_json(answer)
    with pytest.raises(SystemExit, match="can't set its timers: No such host"):
        demo._fill(httpserver.url_for("").rstrip("/"))
