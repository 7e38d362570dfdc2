"""DynamoStore: the contract and the shapes of its items, on moto."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from chalicelib import dynamodb, timers
from chalicelib.dynamodb import DynamoStore
from chalicelib.errors import Unavailable
from chalicelib.service import Store
from chalicelib.timers import Timer
from tests.aws import NAME, Account, account
from tests.fakes import START
from tests.store_contract import HOUR, StoreContract, make, rung


@pytest.fixture
def aws() -> Iterator[Account]:
    with account() as made:
        yield made


@pytest.fixture
def store(aws: Account) -> DynamoStore:
    return DynamoStore(aws.dynamodb, NAME)


class TestDynamoStore(StoreContract):
    """The contract, on a table in moto."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        with account() as made:
            yield DynamoStore(made.dynamodb, NAME)

    def expire(self, store: Store, now: object) -> None:
        """Delete what has expired, as DynamoDB's TTL does."""
        assert isinstance(store, DynamoStore)
        assert isinstance(now, type(START))
        for item in store._client.scan(TableName=NAME)["Items"]:
            if "expires" in item and int(item["expires"]["N"]) <= now.timestamp():
                store._client.delete_item(TableName=NAME, Key={"id": item["id"]})


def test_a_claim_whose_answer_was_lost_is_ours(
    aws: Account, store: DynamoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again and is told that somebody has claimed it: that was us."""
    timer = make()
    store.add(timer)
    update = aws.dynamodb.update_item

    def lost(**request: Any) -> Any:
        update(**request)
        return update(**request)

    monkeypatch.setattr(aws.dynamodb, "update_item", lost)
    lease_until = timer.due_at + HOUR
    claimed = store.claim(rung(timer), timer.due_at, lease_until)
    assert claimed == timers.claim(timer, rung(timer), timer.due_at, lease_until)
    assert store.claim(rung(timer), timer.due_at, lease_until) is None


@pytest.mark.parametrize("call", ["add", "replace", "remove"])
def test_a_write_whose_answer_was_lost_is_done(
    aws: Account, store: DynamoStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Asked again, the client finds what it wrote itself."""
    timer = make()
    if call != "add":
        store.add(timer)
    for name in ("put_item", "delete_item"):
        real = getattr(aws.dynamodb, name)

        def lost(real: Any = real, **request: Any) -> Any:
            real(**request)
            return real(**request)

        monkeypatch.setattr(aws.dynamodb, name, lost)
    match call:
        case "add":
            assert store.add(timer)
        case "replace":
            assert store.replace(timers.cancel(timer, START))
        case "remove":
            assert store.remove(timer)


def test_overdue_reads_past_an_index_that_is_behind(
    aws: Account, store: DynamoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hints of what was dealt with already do not hide what comes after them."""
    monkeypatch.setattr(dynamodb, "SHARDS", 1)
    stored = [make(number, timedelta(seconds=number)) for number in range(30)]
    for timer in stored:
        store.add(timer)
    index = [{"id": {"S": timer.id}} for timer in stored]

    def stale(**request: Any) -> Any:
        start = request.get("ExclusiveStartKey", 0)
        end = start + 7
        return {"Items": index[start:end], **({"LastEvaluatedKey": end} if end < 30 else {})}

    monkeypatch.setattr(aws.dynamodb, "query", stale)
    seen: list[Timer] = []
    while found := store.overdue(START + HOUR, 5):
        seen += found
        store.replace_all([timers.postponed(timer, START + 2 * HOUR) for timer in found])
    assert seen == stored


def test_throttling_is_unavailable(
    aws: Account, store: DynamoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What DynamoDB can't do now is one error, whatever its code; so is no answer at all."""
    answer: Any = {
        "Error": {"Code": "ProvisionedThroughputExceededException"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    for fault in (ClientError(answer, "GetItem"), ReadTimeoutError(endpoint_url="https://x")):

        def fail(operation: str, fault: Exception = fault) -> None:
            raise fault

        aws.before = fail
        for call in (store.check, lambda: store.add(make()), lambda: store.overdue(START, 10)):
            with pytest.raises(Unavailable):
                call()


def test_replace_all_names_what_was_written_in_spite_of_faults(
    aws: Account, store: DynamoStore
) -> None:
    """If some writes fail, those that went through are still named, for they must be rung for."""
    stored = [make(number) for number in range(4)]
    for timer in stored:
        store.add(timer)
    changed = [timers.postponed(timer, START + HOUR) for timer in stored]

    def fail(operation: str) -> None:
        if aws.calls[-1][1]["Item"]["id"]["S"] == stored[1].id:
            raise ReadTimeoutError(endpoint_url="https://x")

    aws.before = fail
    assert store.replace_all(changed) == [changed[0], *changed[2:]]
    with pytest.raises(Unavailable):
        store.replace_all([changed[1]])
