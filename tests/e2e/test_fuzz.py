"""The standalone server conforms to its OpenAPI document; `make fuzz` sends far more."""

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
def test_server_conforms_to_the_contract(run: Run) -> None:
    """All responses are documented; invalid requests are rejected and valid ones accepted."""
    assert run.passed, f"{run.output}\n{run.fault}"
    assert not run.fault


@pytest.mark.e2e
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_succeeds_with_documented_statuses_only(run: Run, operation: str) -> None:
    """Each operation succeeds at least once and has only documented statuses."""
    method, path = operation.split()
    described = set(map(int, DOCUMENT["paths"][path][method.lower()]["responses"]))
    found = set(run.responses[operation])
    assert found & set(range(200, 300))
    assert found - {405} <= described  # 405 is for undocumented methods


@pytest.mark.parametrize(
    ("call", "works"),
    [
        ("socket.getaddrinfo('localhost', 80)", True),
        ("socket.getaddrinfo('timers.example', 80)", False),
        ("socket.gethostbyname('timers.example')", False),
        ("socket.create_connection(('192.0.2.1', 80), timeout=0.1)", False),
    ],
)
def test_connects_to_loopback_only(call: str, works: bool) -> None:
    """Server and fuzzer can't resolve names or connect beyond loopback."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import socket; {call}"],
        env=environment(PYTHONPATH=NOTHING_BUT_LOOPBACK),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode == 0) == works
    assert works or "Tests may use loopback only" in ended.stderr
