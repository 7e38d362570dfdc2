"""API keys and signing secrets of tenants, in one DynamoDB table.

Each API key is an item with the id `key#<key id>`. All secrets of a tenant are one item with the
id `secrets#<tenant>`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from chalicelib.aws.dynamodb import IS_NEW, attribute, plain, translated_errors, write_if
from chalicelib.core import signing
from chalicelib.core.api_keys import ApiKey
from chalicelib.core.errors import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from chalicelib.aws.dynamodb import Item

MAX_RACES = 10
"""How often a change is tried while concurrent writes to the same secrets come first."""

HAS_THE_SECRETS = "#secrets = :before"

_KEY = "key#"
_SECRETS = "secrets#"


class DynamoApiKeys:
    """ApiKeys in the tenants table."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def add(self, key: ApiKey) -> None:
        fields = msgspec.structs.asdict(key) | {"id": _KEY + key.id}
        item = {name: attribute(value) for name, value in fields.items()}
        with translated_errors():
            self._client.put_item(TableName=self._table, Item=item)

    def get(self, key_id: str) -> ApiKey | None:
        key = {"id": attribute(_KEY + key_id)}
        with translated_errors():
            response = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return _key(response["Item"]) if "Item" in response else None

    def remove(self, key_id: str) -> bool:
        # Read first: if a response is lost, the client deletes again and finds no item.
        if self.get(key_id) is None:
            return False
        with translated_errors():
            self._client.delete_item(TableName=self._table, Key={"id": attribute(_KEY + key_id)})
        return True

    def all(self) -> list[ApiKey]:
        with translated_errors():
            pages = self._client.get_paginator("scan").paginate(
                TableName=self._table,
                ConsistentRead=True,
                FilterExpression="begins_with(id, :key)",
                ExpressionAttributeValues={":key": attribute(_KEY)},
            )
            keys = [_key(item) for page in pages for item in page["Items"]]
        return sorted(keys, key=lambda key: (key.created_at, key.id))


class DynamoSecrets:
    """Secrets in the tenants table."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def of(self, tenant: str) -> list[str]:
        return _decoded(self._stored(tenant))

    def add(self, tenant: str, secret: str) -> None:
        self._change(tenant, signing.with_secret, secret)

    def retire(self, tenant: str, secret: str) -> None:
        self._change(tenant, signing.without_secret, secret)

    def _stored(self, tenant: str) -> str | None:
        key = {"id": attribute(_SECRETS + tenant)}
        with translated_errors():
            response = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return response["Item"]["secrets"]["S"] if "Item" in response else None

    def _change(
        self, tenant: str, change: Callable[[list[str], str], list[str]], secret: str
    ) -> None:
        for _ in range(MAX_RACES):
            before = self._stored(tenant)
            after = msgspec.json.encode(change(_decoded(before), secret)).decode()
            if after == before or self._replace(tenant, before, after):
                return
        raise Unavailable("Too many requests are changing these secrets at once; try again.")

    def _replace(self, tenant: str, before: str | None, after: str) -> bool:
        item = {"id": attribute(_SECRETS + tenant), "secrets": attribute(after)}
        failed = write_if(
            [IS_NEW if before is None else HAS_THE_SECRETS],
            self._client.put_item,
            {} if before is None else {"before": before},
            TableName=self._table,
            Item=item,
        )
        # The same item means that a response was lost, and the client wrote it again.
        return failed is None or failed == item


def _decoded(secrets: str | None) -> list[str]:
    return [] if secrets is None else msgspec.json.decode(secrets, type=list[str])


def _key(item: "Item") -> ApiKey:
    fields = {name: plain(value) for name, value in item.items()}
    return msgspec.convert(fields | {"id": fields["id"].removeprefix(_KEY)}, ApiKey)
