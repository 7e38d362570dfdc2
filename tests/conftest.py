"""Fixtures that more than one test file uses, and the rule that tests talk to loopback only."""

import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from app import app
from chalicelib.guard import LOOPBACK, Targets
from chalicelib.wiring import now
from embedded.__main__ import Settings, run
from embedded.server import Server, application
from embedded.sqlite import SqliteStore


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
def embedded_url(tmp_path: Path) -> Iterator[str]:
    """The embedded server, run inside the test process on a free port and a database of its own."""
    settings = Settings("127.0.0.1", 0, tmp_path / "timers.db", Targets.parse(LOOPBACK))
    store = SqliteStore(settings.database)
    server = Server(application(app, now), settings.host, settings.port)
    stop = threading.Event()
    runner = threading.Thread(target=run, args=(settings, store, server, stop))
    runner.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    stop.set()
    runner.join()
