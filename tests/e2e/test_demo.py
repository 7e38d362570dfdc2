"""`timers demo` serves a scratch database with timers, and leaves nothing behind."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from pytest_httpserver import HTTPServer

from chalicelib.core.errors import OperatorError
from cli import demo
from tests.support.processes import ROOT, environment, wait_until

UNRELATED_SETTINGS = {
    "AUTH": "keys",
    "HOST": "0.0.0.0",  # noqa: S104  # the demo overrides it
    "ALLOWED_TARGETS": "192.0.2.1",
    "http_proxy": demo.REFUSING_URL,
    "no_proxy": "",
}
"""Settings in the operator's environment that the demo must override."""


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_shows_timers_and_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    """The demo prints its URL and arriving webhooks, has a retrying timer, and cleans up."""
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "demo"],
            cwd=ROOT,
            env=environment(TMPDIR=str(tmp_path), **UNRELATED_SETTINGS),
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
        (retrying,) = (it for it in timers if it["label"] == "retries, then fails")
        path = f"{url}/timers/{retrying['id']}"
        wait_until(lambda: requests.get(path, timeout=30).json()["status"] == "retrying")
        wait_until(lambda: "webhook received: POST /_receiver/welcome" in log.read_text())
        assert list(tmp_path.glob("timers-*"))
    finally:
        subprocess.run(["kill", f"-{number.value}", "--", f"-{process.pid}"], check=True)
        process.wait(60)
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.glob("timers-*"))


def test_demo_fails_if_a_timer_is_rejected(httpserver: HTTPServer) -> None:
    """The error holds the reason of the rejection."""
    refused = {"status": 400, "problem": {"detail": "No such host."}}
    answer = {"results": [{"status": 201}, refused]}
    httpserver.expect_request("/timers/batch", "POST").respond_with_json(answer)
    with pytest.raises(OperatorError, match="No such host"):
        demo._create_timers(httpserver.url_for("").rstrip("/"))
