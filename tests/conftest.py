"""Fixtures for all tests: loopback connections only, and the API on fakes."""

import gc
import socket
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib import runtime
from tests.support.routes import Api


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects beyond loopback."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert ip_address(address[0]).is_loopback, f"A test connects to {address}."
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def api_on_fakes(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    # monkeypatch restores the dependencies that another test installed.
    monkeypatch.setattr(runtime, "_installed", None)
    runtime.install(made.service.dependencies(keys=made.keys))
    return made


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection, which saves time."""
    _register_hypothesis_random()
    gc.collect()
    gc.freeze()


@given(st.none())
def _register_hypothesis_random(_: None) -> None:
    # Hypothesis looks for references to its generator when a first test runs. On Python 3.14 the
    # search finds none in frozen objects, and Hypothesis warns.
    pass
