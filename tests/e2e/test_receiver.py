"""The built-in receiver of a running server."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import Standalone, run_timers, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with Standalone(tmp_path_factory.mktemp("received") / "timers.db") as running:
        yield running


def arrivals(server: Standalone, path: str = "/_receiver", **headers: str) -> Any:
    return requests.get(server.url + path, headers=headers, timeout=30)


@pytest.mark.e2e
def test_receives_a_webhook_of_its_own_server(server: Standalone) -> None:
    """A webhook to the server's own receiver arrives there with a valid signature."""
    before = datetime.now(UTC)
    timer = server.create(0, f"{server.url}/_receiver/{{id}}")
    path = f"/_receiver/{timer['id']}"
    wait_until(lambda: path in arrivals(server).text)
    (found,) = [it for it in arrivals(server).json()["arrivals"] if it["path"] == path]
    assert (found["method"], found["signature"], found["body"]) == ("POST", "valid", "")
    assert found["headers"]["webhook-id"] == timer["id"]
    assert datetime.fromisoformat(found["at"]) >= before
    assert found["lateness"] >= 0


@pytest.mark.e2e
def test_the_list_answers_to_local_hosts_only(server: Standalone) -> None:
    """Other hosts and origins can't read the list, and POST to it is a 404."""
    assert arrivals(server, Host="evil.example").status_code == 421
    assert arrivals(server, Origin="https://evil.example").status_code == 403
    assert "access-control-allow-origin" not in arrivals(server).headers
    assert requests.post(f"{server.url}/_receiver", timeout=30).status_code == 404


@pytest.mark.e2e
def test_the_list_needs_a_key(tmp_path: Path) -> None:
    """With keys, each tenant sees its own webhooks; without a key it is a 401."""
    database = tmp_path / "timers.db"
    with Standalone(database, {"AUTH": "keys"}) as server:
        mine, theirs = (
            "Bearer "
            + run_timers("keys", "add", "--tenant", name, TIMERS_DB=str(database)).stdout.strip()
            for name in ("acme", "zeta")
        )
        body = {"seconds": 0, "url": f"{server.url}/_receiver/x"}
        headers = {"Authorization": mine}
        made = requests.post(f"{server.url}/timers", json=body, headers=headers, timeout=30)
        assert made.status_code == 201
        wait_until(lambda: made.json()["id"] in arrivals(server, Authorization=mine).text)
        assert arrivals(server, Authorization=theirs).json() == {"arrivals": []}
        assert arrivals(server).status_code == 401
