"""Fixtures of the tests that run a hub or send webhooks."""

import socket
import ssl
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

import pytest
import trustme

from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import Outcome, Timer
from chalicelib.webhook import transport
from chalicelib.webhook.sender import WebhookSender
from standalone.greenlets import Hub
from tests.support.hub import begin, running_hub
from tests.support.receivers import (
    RECEIVER_TIMEOUT,
    FakeResolver,
    sender_to,
    server_context,
    trusting,
)


class GreenletSender(WebhookSender):
    """Sends in greenlets of a hub, as the standalone server does."""

    def __init__(self, hub: Hub, *args: Any) -> None:
        super().__init__(*args, waiting=hub)
        self.hub = hub

    def send(self, timer: Timer, at: datetime) -> Outcome:
        return begin(self.hub, partial(super().send, timer, at)).result(2 * RECEIVER_TIMEOUT)

    def close_idle(self) -> None:
        """Close the connections that are kept open."""
        begin(self.hub, self._transport.close).result(RECEIVER_TIMEOUT)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that runs in its own thread."""
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """The receiver's side of TLS, with a certificate for 127.0.0.1 and receiver.example."""
    return server_context(authority, "127.0.0.1", "receiver.example")


@pytest.fixture(params=["http", "https"])
def maybe_tls(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> ssl.SSLContext | None:
    """Run the test twice: without TLS and with it."""
    return tls if request.param == "https" else None


@pytest.fixture(scope="module", params=["blocking", "greenlets"])
def sender(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[WebhookSender]:
    """A sender that may post to loopback and trusts `authority`, with each wait strategy.

    It keeps no connection open, because most receivers wait for the end of the connection.
    """
    if request.param == "blocking":
        yield sender_to(LOOPBACK_TARGETS, authority)
        return
    with pytest.MonkeyPatch.context() as patch, running_hub() as hub:
        patch.setattr(transport, "KEEPALIVE_SECONDS", 0.0)
        yield GreenletSender(hub, Targets.parse(LOOPBACK_TARGETS), trusting(authority))


@pytest.fixture
def keepalive_sender(
    hub: Hub, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> GreenletSender:
    """A sender that keeps connections open for as long as a test may take."""
    monkeypatch.setattr(transport, "KEEPALIVE_SECONDS", 60.0)
    return GreenletSender(hub, Targets.parse(LOOPBACK_TARGETS), trusting(authority))


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> FakeResolver:
    resolver = FakeResolver({"receiver.example": ["127.0.0.1"]})
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver
