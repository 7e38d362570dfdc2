"""DynamoStore: the contract and the shapes of its items, on moto."""

from collections.abc import Iterator

import pytest

from chalicelib.dynamodb import DynamoStore
from chalicelib.service import Store
from tests.aws import NAME, Account, account
from tests.fakes import START
from tests.store_contract import StoreContract


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
