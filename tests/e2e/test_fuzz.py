"""The standalone server keeps the contract, whatever is sent; `make fuzz` sends far more."""

import json
import subprocess
import sys

import pytest

from chalicelib.http import openapi
from chalicelib.http.routes import OPERATIONS
from tests.support.processes import environment
from tools.fuzz import NOTHING_BUT_LOOPBACK, Run, fuzz

DOCUMENT = json.loads(openapi.document())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fuzz(tmp_path_factory.mktemp("fuzz"), examples=10, seed=1)


@pytest.mark.e2e
def test_contract(run: Run) -> None:
    """No fault, no answer that is not described, nothing wrong accepted, nothing right refused."""
    assert run.passed, f"{run.said}\n{run.fault}"
    assert not run.fault


@pytest.mark.e2e
@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers(run: Run, operation: str) -> None:
    """Each operation was there to be tried: it succeeded; and it has no other status, also where
    Schemathesis does not look, for a request that is no HTTP of ours."""
    method, path = operation.split()
    described = set(map(int, DOCUMENT["paths"][path][method.lower()]["responses"]))
    found = set(run.answers[operation])
    assert found & set(range(200, 300))
    assert found - {405} <= described  # 405 is for methods that the document says nothing of


@pytest.mark.parametrize(
    ("call", "works"),
    [
        ("socket.getaddrinfo('localhost', 80)", True),
        ("socket.getaddrinfo('timers.example', 80)", False),
        ("socket.gethostbyname('timers.example')", False),
        ("socket.create_connection(('192.0.2.1', 80), timeout=0.1)", False),
    ],
)
def test_stays_on_this_machine(call: str, works: bool) -> None:
    """Neither the server nor what asks it looks up a name or connects to anything elsewhere."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import socket; {call}"],
        env=environment(PYTHONPATH=NOTHING_BUT_LOOPBACK),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode == 0) == works
    assert works or "Tests stay on this machine" in ended.stderr
