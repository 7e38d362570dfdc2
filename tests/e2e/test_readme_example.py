"""The README's use case works as it is written."""

import re
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import ROOT, Receiver, Standalone, run_timers, wait_until

SENDER, RECEIVER = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.e2e
def test_use_case(tmp_path: Path) -> None:
    """The timer is set once for each user, can be cancelled, and its webhook verifies."""
    database = tmp_path / "timers.db"
    ours, theirs = dict[str, Any](), dict[str, Any]()
    with Standalone(database) as server, Receiver() as hooks:
        code = SENDER.replace("http://127.0.0.1:8000", server.url)
        exec(code.replace("https://example.com", hooks.url), ours)  # noqa: S102 - the README is ours
        unpaid, paid = ours["on_sign_up"]("17"), ours["on_sign_up"]("18")
        assert ours["on_sign_up"]("17") == unpaid
        assert ours["on_payment"](paid)
        requests.post(f"{server.url}/timers/{unpaid}/fire", timeout=10).raise_for_status()
        wait_until(lambda: hooks.arrivals)
        secret = run_timers("secrets", TIMERS_DB=str(database)).stdout.strip()
    (arrival,) = hooks.arrivals
    exec(RECEIVER.replace("whsec_…", secret), theirs)  # noqa: S102 - the README is ours
    assert theirs["trial_over"](arrival.headers, arrival.body) == 204
    assert theirs["trial_over"](arrival.headers, arrival.body + b" ") == 401
