"""This version reads the items and messages of all earlier ones.

`samples/<number>.json` has items and messages as a version wrote them. A version that writes
others adds a file with the next number; existing files never change.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chalicelib.aws import handlers, queue, timer_store
from chalicelib.aws.credential_store import DynamoApiKeys
from chalicelib.aws.timer_store import DynamoTimerStore
from chalicelib.core import api_keys
from chalicelib.core.api_keys import KEY_ENTROPY, Role
from chalicelib.core.retry import WORKER_LOST
from chalicelib.core.timer import Outcome, RetryPolicy, Status, Timer, Wakeup, Webhook, new_timer
from tests.support.aws import NAME, TENANTS, account
from tests.support.fakes import START

FOLDER = Path(__file__).parent / "samples"
VERSIONS = sorted((path.stem for path in FOLDER.glob("*.json")), key=int)

ID = "019c13ec-9e00-7000-8000-000000000001"
SECOND = timedelta(seconds=1)

SCHEDULED = new_timer(
    ID, "acme", Webhook(url="https://example.com/{id}?q=ä"), START + SECOND, START
)
DELIVERING = SCHEDULED.claim(SCHEDULED.wakeup(), START + SECOND, START + timedelta(minutes=1))
assert DELIVERING is not None
RETRYING = DELIVERING.record(WORKER_LOST, START + 2 * SECOND, START + 3 * SECOND)
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
    "labelled": new_timer(ID, "acme", LABELLED, START + SECOND, START, fingerprint="ab12" * 16),
    "custom": new_timer(ID, "acme", CUSTOM, START + SECOND, START),
    "busy": DELIVERING.record(BUSY, START + SECOND, START + 8 * SECOND),
    "scheduled": SCHEDULED,
    "unarmed": SCHEDULED.mark_unarmed(START),
    "delivering": DELIVERING,
    "retrying": RETRYING,
    "delivered": DELIVERING.record(
        Outcome(status=204, answer="thanks", duration=0.25),
        START + timedelta(seconds=1, milliseconds=5),
        None,
    ),
    "failed": DELIVERING.record(
        Outcome(error="connect", detail="Connection refused", duration=0.5),
        START + SECOND,
        None,
    ),
    "cancelled": SCHEDULED.cancel(START),
}
"""Every status, and every field."""

WAKEUPS: dict[str, Wakeup] = {
    "first": SCHEDULED.wakeup(),
    "forwarded": replace(RETRYING.wakeup(), hops=2),
}

KEY = api_keys.mint("acme", Role.READ, START, bytes(range(KEY_ENTROPY)))[1]


def written() -> dict[str, Any]:
    """Return a sample of this version's items and messages."""
    with account() as aws:
        DynamoApiKeys(aws.dynamodb, TENANTS).add(KEY)
        (key,) = aws.dynamodb.scan(TableName=TENANTS)["Items"]
    return {
        "items": {name: timer_store._item(timer) for name, timer in TIMERS.items()},
        "messages": {name: queue.encode_wakeup(wakeup) for name, wakeup in WAKEUPS.items()},
        "key": key,
    }


def sample(version: str) -> dict[str, Any]:
    text = (FOLDER / f"{version}.json").read_text()
    return dict(json.loads(text))


def test_the_newest_sample_is_of_this_version() -> None:
    """This version writes the newest sample, which covers every status."""
    assert sample(VERSIONS[-1]) == written()
    assert {timer.status for timer in TIMERS.values()} == set(Status)


@pytest.mark.parametrize("version", VERSIONS)
def test_reads_items_of_all_versions(version: str) -> None:
    """Items of every version are read as the same timers."""
    for name, item in sample(version)["items"].items():
        assert timer_store._timer(item) == TIMERS[name]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", WAKEUPS)
def test_reads_messages_of_all_versions(version: str, name: str) -> None:
    """Messages of every version are read as the same wake-ups; the first had no host."""
    wakeup = handlers.decode_wakeup(sample(version)["messages"][name])
    assert wakeup == replace(WAKEUPS[name], host=wakeup.host)
    assert wakeup.host in ("", WAKEUPS[name].host)


CHANGES: dict[str, Callable[[DynamoTimerStore, Timer], bool]] = {
    "scheduled": lambda store, timer: (
        store.claim(timer.wakeup(), timer.due_at, timer.due_at + SECOND) is not None
    ),
    "retrying": lambda store, timer: (
        store.claim(timer.wakeup(), timer.due_at, timer.due_at + SECOND) is not None
    ),
    "unarmed": lambda store, timer: store.replace(timer.mark_armed()),
    "delivering": lambda store, timer: store.replace(timer.record(WORKER_LOST, START, None)),
    "failed": lambda store, timer: store.replace(timer.retry_now(START)),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CHANGES)
def test_changes_timers_of_all_versions(version: str, name: str) -> None:
    """Timers of every version can be claimed, scheduled, recorded and retried."""
    with account() as aws:
        aws.dynamodb.put_item(TableName=NAME, Item=sample(version)["items"][name])
        assert CHANGES[name](DynamoTimerStore(aws.dynamodb, NAME), TIMERS[name])


@pytest.mark.parametrize("version", VERSIONS)
def test_reads_keys_of_all_versions(version: str) -> None:
    """API keys of every version still work."""
    with account() as aws:
        aws.dynamodb.put_item(TableName=TENANTS, Item=sample(version)["key"])
        assert DynamoApiKeys(aws.dynamodb, TENANTS).get(KEY.id) == KEY
