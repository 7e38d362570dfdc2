"""The rule that tests talk to loopback only, and the routes on fakes."""

import gc
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from chalicelib import runtime
from tests.support.routes import Api


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test reach beyond this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert ip_address(address[0]).is_loopback, f"A test reaches for {address}."
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def api_on_fakes(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    # What another test has installed comes back afterwards.
    monkeypatch.setattr(runtime, "_installed", None)
    runtime.install(made.service.dependencies(keys=made.keys))
    return made


def pytest_collection_finish() -> None:
    """Let no search for garbage look again at what all tests import."""
    gc.collect()
    gc.freeze()
