"""Fixtures that more than one test file uses, and the rule that tests talk to loopback only."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import app
from chalicelib.guard import LOOPBACK, Targets
from chalicelib.wiring import now
from embedded.__main__ import Settings, run
from embedded.server import Server, application
from embedded.sqlite import SqliteStore


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
