"""What earlier versions have stored and sent is understood by this one.

`samples/<number>.json` holds items and messages as the code once wrote them. Code that writes
something else adds a file with the next number; none is ever changed.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chalicelib import alarm, dynamodb, keys, timers
from chalicelib.dynamodb import DynamoKeys, DynamoStore
from chalicelib.keys import ENTROPY, Role
from chalicelib.retry import WORKER_LOST
from chalicelib.timers import Outcome, RetryPolicy, Ring, Status, Timer, Webhook
from tests.aws import NAME, TENANTS, account
from tests.fakes import START

FOLDER = Path(__file__).parent / "samples"
VERSIONS = sorted((path.stem for path in FOLDER.glob("*.json")), key=int)

ID = "019c13ec-9e00-7000-8000-000000000001"
SECOND = timedelta(seconds=1)

SCHEDULED = timers.new(
    ID, "acme", Webhook(url="https://example.com/{id}?q=ä"), START + SECOND, START
)
DELIVERING = timers.claim(
    SCHEDULED, timers.ring(SCHEDULED), START + SECOND, START + timedelta(minutes=1)
)
assert DELIVERING is not None
RETRYING = timers.record(DELIVERING, WORKER_LOST, START + 2 * SECOND, START + 3 * SECOND)
CUSTOM = Webhook(
    url="https://example.com/",
    method="PUT",
    headers={"Content-Type": "application/json", "X-A": "ä"},
    body='{"a": 1}',
    timeout=5,
    retry=RetryPolicy(max_attempts=3, initial_delay=1, max_delay=60),
    on_failure="https://example.com/failed",
)
BUSY = Outcome(status=503, answer="busy", duration=0.25, retry_after=7.0)
LABELLED = replace(CUSTOM, label="orders", metadata={"order": "7", "für": "ä"})
TIMERS: dict[str, Timer] = {
    "labelled": timers.new(ID, "acme", LABELLED, START + SECOND, START, fingerprint="ab12" * 16),
    "custom": timers.new(ID, "acme", CUSTOM, START + SECOND, START),
    "busy": timers.record(DELIVERING, BUSY, START + SECOND, START + 8 * SECOND),
    "scheduled": SCHEDULED,
    "unarmed": timers.unarmed(SCHEDULED, START),
    "delivering": DELIVERING,
    "retrying": RETRYING,
    "delivered": timers.record(
        DELIVERING,
        Outcome(status=204, answer="thanks", duration=0.25),
        START + timedelta(seconds=1, milliseconds=5),
        None,
    ),
    "failed": timers.record(
        DELIVERING,
        Outcome(error="connect", detail="Connection refused", duration=0.5),
        START + SECOND,
        None,
    ),
    "cancelled": timers.cancel(SCHEDULED, START),
}
"""Every state, and every field that there is."""

RINGS: dict[str, Ring] = {
    "first": timers.ring(SCHEDULED),
    "forwarded": replace(timers.ring(RETRYING), hops=2),
}

KEY = keys.mint("acme", Role.READ, START, bytes(range(ENTROPY)))[1]


def written() -> dict[str, Any]:
    """Return what this version writes."""
    with account() as aws:
        DynamoKeys(aws.dynamodb, TENANTS).add(KEY)
        (key,) = aws.dynamodb.scan(TableName=TENANTS)["Items"]
    return {
        "items": {name: dynamodb._item(timer) for name, timer in TIMERS.items()},
        "messages": {name: alarm._text(ring) for name, ring in RINGS.items()},
        "key": key,
    }


def sample(version: str) -> dict[str, Any]:
    text = (FOLDER / f"{version}.json").read_text()
    return dict(json.loads(text))


def test_the_newest_sample_is_what_this_version_writes() -> None:
    """Whoever changes what is stored or sent has to keep a sample of it; and no field is missed."""
    assert sample(VERSIONS[-1]) == written()
    assert {timer.status for timer in TIMERS.values()} == set(Status)


@pytest.mark.parametrize("version", VERSIONS)
def test_items_are_understood(version: str) -> None:
    """A stored timer is read with all that it was written with."""
    for name, item in sample(version)["items"].items():
        assert dynamodb._timer(item) == TIMERS[name]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RINGS)
def test_messages_are_understood(version: str, name: str) -> None:
    """A message on its way, or the input of a schedule set years ago, is read as it was meant; the
    first ones did not say the host."""
    ring = alarm.read(sample(version)["messages"][name])
    assert ring == replace(RINGS[name], host=ring.host)
    assert ring.host in ("", RINGS[name].host)


CHANGES: dict[str, Callable[[DynamoStore, Timer], bool]] = {
    "scheduled": lambda store, timer: (
        store.claim(timers.ring(timer), timer.due_at, timer.due_at + SECOND) is not None
    ),
    "retrying": lambda store, timer: (
        store.claim(timers.ring(timer), timer.due_at, timer.due_at + SECOND) is not None
    ),
    "unarmed": lambda store, timer: store.replace(timers.armed(timer)),
    "delivering": lambda store, timer: store.replace(
        timers.record(timer, WORKER_LOST, START, None)
    ),
    "failed": lambda store, timer: store.replace(timers.redrive(timer, START)),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CHANGES)
def test_stored_timers_go_on(version: str, name: str) -> None:
    """What an earlier version has stored is claimed, armed, recorded and redriven by this one."""
    with account() as aws:
        aws.dynamodb.put_item(TableName=NAME, Item=sample(version)["items"][name])
        assert CHANGES[name](DynamoStore(aws.dynamodb, NAME), TIMERS[name])


@pytest.mark.parametrize("version", VERSIONS)
def test_keys_are_understood(version: str) -> None:
    """A key that was handed out keeps working."""
    with account() as aws:
        aws.dynamodb.put_item(TableName=TENANTS, Item=sample(version)["key"])
        assert DynamoKeys(aws.dynamodb, TENANTS).get(KEY.id) == KEY
