"""The built-in receiver: what it keeps, and what it shows to which tenant."""

import logging
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec import json

from chalicelib.core import signing
from chalicelib.core.timer import DEFAULT_TENANT
from standalone.receiver import (
    MAX_ARRIVALS,
    MAX_BODY_KEPT,
    MAX_BODY_SHOWN,
    TIMESTAMP_TOLERANCE,
    Receiver,
)
from tests.support.fakes import START, Clock

SECRET, OTHER = (signing.new_secret(bytes([number]) * 32) for number in (1, 2))

SECRETS = {DEFAULT_TENANT: [SECRET], "acme": [OTHER], "nobody": []}


@pytest.fixture
def receiver() -> Receiver:
    return Receiver(Clock(), SECRETS.__getitem__)


def signed(body: bytes = b"", secret: str = SECRET, at: datetime = START) -> dict[str, str]:
    """Return the signature headers of a webhook with this body."""
    timestamp = int(at.timestamp())
    return {
        "webhook-id": "t1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signing.sign([secret], "t1", timestamp, body),
    }


SIGNATURE = signed(b"{}")["webhook-signature"]


def shown(receiver: Receiver, tenant: str = DEFAULT_TENANT, **ways: bool) -> list[dict[str, Any]]:
    """Return the list of the receiver."""
    answer = receiver.show(tenant, **{"signed_only": False, **ways})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    return list(json.decode(answer.body)["arrivals"])


def test_lists_a_received_request(receiver: Receiver) -> None:
    """The list shows the whole request and whether its signature is valid."""
    headers = {**signed(b"{}"), "timer-scheduled-at": "2026-01-31T11:59:58.500000Z"}
    assert receiver.take("PUT", "/_receiver/a?b=c", headers, b"{}").status_code == 204
    assert shown(receiver) == [
        {
            "at": "2026-01-31T12:00:00Z",
            "method": "PUT",
            "path": "/_receiver/a?b=c",
            "headers": headers,
            "body": "{}",
            "size": 2,
            "lateness": 1.5,
            "signature": "valid",
        }
    ]


def test_masks_secrets(receiver: Receiver) -> None:
    """Headers are masked as in a timer's view."""
    receiver.take("POST", "/_receiver/x", {"authorization": "Bearer sesame"}, b"")
    assert "sesame" not in str(shown(receiver))


def test_lists_the_newest_first(receiver: Receiver) -> None:
    """The latest MAX_ARRIVALS requests are kept."""
    for number in range(MAX_ARRIVALS + 1):
        receiver.take("POST", f"/_receiver/{number}", {}, b"")
    paths = [arrival["path"] for arrival in shown(receiver)]
    assert paths == [f"/_receiver/{number}" for number in range(MAX_ARRIVALS, 0, -1)]


@pytest.mark.parametrize(
    ("headers", "signature"),
    [
        (signed(b"{}"), "valid"),
        (signed(b"{}", at=START + TIMESTAMP_TOLERANCE), "valid"),
        (
            signed(b"{}") | {"webhook-signature": "v1,x " + signed(b"{}")["webhook-signature"]},
            "valid",
        ),
        (signed(b"{}", at=START + TIMESTAMP_TOLERANCE + timedelta(seconds=1)), "invalid"),
        (signed(b"{}", at=START - TIMESTAMP_TOLERANCE - timedelta(seconds=1)), "invalid"),
        (signed(b"{} "), "invalid"),
        (signed(b"{}", secret=OTHER), "invalid"),
        (signed(b"{}") | {"webhook-id": "t2"}, "invalid"),
        (signed(b"{}") | {"webhook-timestamp": "²" * 5}, "invalid"),
        (signed(b"{}") | {"webhook-timestamp": "9" * 5000}, "invalid"),
        (signed(b"{}") | {"webhook-signature": "v1,\xff"}, "invalid"),
        (signed(b"{}") | {"webhook-signature": ""}, "invalid"),
        ({"webhook-id": "t1"}, "missing"),
    ],
)
def test_checks_signatures(receiver: Receiver, headers: dict[str, str], signature: str) -> None:
    """A signature is valid if one of the tenant's secrets signed this request recently."""
    receiver.take("POST", "/_receiver/x", headers, b"{}")
    assert [arrival["signature"] for arrival in shown(receiver)] == [signature]


def test_no_signature_is_valid_without_secrets(receiver: Receiver) -> None:
    """For a tenant without secrets every signature is invalid."""
    receiver.take("POST", "/_receiver/x", signed(), b"")
    assert shown(receiver, "nobody")[0]["signature"] == "invalid"


def test_hides_webhooks_of_other_tenants(receiver: Receiver) -> None:
    """With `signed_only` a tenant sees only requests signed with its own secrets."""
    for secret in (SECRET, OTHER):
        receiver.take("POST", "/_receiver/x", signed(secret.encode(), secret), secret.encode())
    receiver.take("POST", "/_receiver/x", {}, b"unsigned")
    (arrival,) = shown(receiver, "acme", signed_only=True)
    assert arrival["body"] == OTHER


def test_shows_binary_and_large_bodies(receiver: Receiver) -> None:
    """Invalid UTF-8 is replaced; of a body that is too large only the size is shown."""
    receiver.take("POST", "/_receiver/x", {}, b"a\xff")
    receiver.take("POST", "/_receiver/x", {}, bytes(MAX_BODY_KEPT + 1))
    large, binary = shown(receiver)
    assert (binary["body"], binary["size"]) == ("a\ufffd", 2)
    assert (large["body"], large["size"]) == ("", MAX_BODY_KEPT + 1)


def test_the_list_stays_small(receiver: Receiver) -> None:
    """Long bodies are cut, but their signature is checked whole. A full list of them stays under
    2 MB, even if JSON escapes every byte as six."""
    body = b"\x01" * MAX_BODY_KEPT
    for _ in range(MAX_ARRIVALS):
        receiver.take("POST", "/_receiver/x", signed(body), body)
    arrivals = shown(receiver)
    assert len(json.encode(arrivals)) < 2**21
    assert (arrivals[0]["body"], arrivals[0]["size"]) == ("\x01" * MAX_BODY_SHOWN, MAX_BODY_KEPT)
    assert arrivals[0]["signature"] == "valid"


LATE = [
    ("2026-01-31T12:00:00Z", 1.5),
    ("2026-01-31T12:00:01.500000Z", 0.0),
    ("2026-01-31T12:00:02Z", -0.5),
    ("2026-01-31T13:00:00+01:00", 1.5),
    *(
        (text, (START - datetime.fromisoformat(text)).total_seconds() + 1.5)
        for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")
    ),
    *(
        (text, None)
        for text in ("", "soon", "2026-01-31", "2026-01-31T12:00:00", "0", "9" * 5000, "\xff")
    ),
    ("2026-13-01T00:00Z", None),
]


@pytest.mark.parametrize(("scheduled_at", "lateness"), LATE)
def test_measures_lateness(
    caplog: pytest.LogCaptureFixture, scheduled_at: str, lateness: float | None
) -> None:
    """Lateness is the seconds from `timer-scheduled-at` to the arrival, None if that is unusable.
    It is logged with method and path."""
    caplog.set_level(logging.INFO, "standalone.receiver")
    receiver = Receiver(Clock(START + timedelta(seconds=1.5)), SECRETS.__getitem__)
    headers = {"timer-scheduled-at": scheduled_at}
    receiver.take("POST", "/_receiver/hello?x=y", headers, b"")
    assert shown(receiver)[0]["lateness"] == lateness
    (event,) = map(vars, caplog.records)
    logged = (event["msg"], event["method"], event["path"], event["lateness"])
    assert logged == ("webhook received", "POST", "/_receiver/hello?x=y", lateness)
