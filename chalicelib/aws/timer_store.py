"""Store on one DynamoDB table, Keys and Secrets on another.

One item for each timer, its attributes named as the fields of `Timer`; moments are text of fixed
width, so that they compare as they should. An item that has yet to wake up is also in the index
`due`, under one of 32 shards, in the order of `wake_at`:

    created ──► scheduled ──claim──► delivering ──record──► delivered, failed
    wake_at     the deadline         the lease's end        none: it leaves the index
    version     1                    2                      3

The index `listed` has all timers of a tenant under 8 shards, in the order in which lists show them,
and their labels, so that neither claims nor outcomes touch it. A timer that a version without this
index has stored is in no list until it is written again. What an index says is a hint, and may be a
moment behind; what counts is the item.

Each condition is made of the clauses named below; where one fails, somebody else was first.

The tenants table has an item for each API key, its `id` being `key#` and the id of the key, and one
for all secrets of a tenant, under `secrets#` and its name.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.core import signing
from chalicelib.core.api_keys import ApiKey
from chalicelib.core.errors import Unavailable
from chalicelib.core.pagination import Cursor, Page, TimerFilter, cursor_of
from chalicelib.core.timer import Status, Timer, Wakeup, Webhook

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

    Item = dict[str, AttributeValueTypeDef]

DUE_SHARDS = 32
"""Partitions of the index `due`: so many times a thousand writes a second."""

LIST_SHARDS = 8
"""Partitions of each tenant in the index `listed`: so many times a thousand creates a second."""

MAX_ENTRIES_SCANNED = 500
"""Entries that are looked at in each of them for one page, where a label tells most apart."""

MAX_ID_BYTES = 2048
"""Bytes of a key; a longer id is nobody's."""

BATCH_GET_SIZE = 100
"""Items that BatchGetItem returns at most."""

BATCH_GET_TRIES = 5
"""How often it is asked for the same ones; it returns 16 MB at a time, and less when throttled."""

MAX_THREADS = 32
"""Calls side by side in a sweep; the client needs as many connections."""

MAX_RACES = 10
"""How often a change of secrets starts over because another one came between."""

_KEY = "key#"
_SECRETS = "secrets#"

IS_NEW = "attribute_not_exists(#id)"
IS_THE_TENANTS = "#tenant = :tenant"
IS_WAITING = "#status IN (:scheduled, :retrying)"
IS_OF_THE_GENERATION = "#generation = :generation"
IS_DUE = "#due_at <= :now"
IS_OF_THE_VERSION = "#version = :version"
IS_LISTED = "#listed = :listed"
IS_BEHIND = "#created < :end"
HAS_THE_LABEL = "#label = :label"


class DynamoTimerStore:
    """Store on the table of that name."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def add(self, timer: Timer) -> bool:
        failed = self._write(self._client.put_item, Item=_item(timer), when=[IS_NEW])
        return failed is None or _was_ours(failed, timer)

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        if not 0 < len(timer_id.encode()) <= MAX_ID_BYTES:
            return None
        with _translated():
            answer = self._client.get_item(
                TableName=self._table, Key={"id": {"S": timer_id}}, ConsistentRead=True
            )
        timer = _timer(answer["Item"]) if "Item" in answer else None
        return timer if timer is not None and timer.tenant == tenant else None

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Timer | None:
        claimed: dict[str, Any] = {}
        token = secrets.token_hex(8)

        def update(**request: Any) -> None:
            claimed.update(self._client.update_item(**request))

        failed = self._write(
            update,
            Key={"id": {"S": wakeup.id}},
            UpdateExpression=(
                "SET #status = :delivering, #attempt = #attempt + :one,"
                " #version = #version + :one, #wake_at = :lease_until, #claimed_by = :token"
            ),
            ReturnValues="ALL_NEW",
            when=[IS_THE_TENANTS, IS_WAITING, IS_OF_THE_GENERATION, IS_DUE],
            values={
                "tenant": wakeup.tenant,
                "generation": wakeup.generation,
                "scheduled": Status.SCHEDULED,
                "retrying": Status.RETRYING,
                "delivering": Status.DELIVERING,
                "now": now,
                "lease_until": lease_until,
                "one": 1,
                "token": token,
            },
        )
        if failed and failed.get("claimed_by") == _attribute(token):
            return _timer(failed)  # the answer was lost, and the client asked again
        return _timer(claimed["Attributes"]) if claimed else None

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        failed = self._write(
            self._client.put_item if adding is None else partial(self._put_both, adding),
            Item=_item(timer),
            when=[IS_THE_TENANTS, IS_OF_THE_VERSION],
            values={"tenant": timer.tenant, "version": timer.version - 1},
        )
        return failed is None or _was_ours(failed, timer)

    def _put_both(self, adding: Timer, **put: Any) -> None:
        both: Any = [put, {"TableName": self._table, "Item": _item(adding)}]
        self._client.transact_write_items(TransactItems=[{"Put": one} for one in both])

    def replace_all(self, changed: Sequence[Timer]) -> list[Timer]:
        faults: list[Unavailable] = []

        def replace(timer: Timer) -> bool:
            try:
                return self.replace(timer)
            except Unavailable as error:
                faults.append(error)
                return False

        with ThreadPoolExecutor(MAX_THREADS) as threads:
            results = list(threads.map(replace, changed))
        written = [timer for timer, ok in zip(changed, results, strict=True) if ok]
        if faults and not written:
            raise faults[0]
        return written

    def remove(self, timer: Timer) -> bool:
        failed = self._write(
            self._client.delete_item,
            Key={"id": {"S": timer.id}},
            when=[IS_THE_TENANTS, IS_OF_THE_VERSION],
            values={"tenant": timer.tenant, "version": timer.version},
        )
        return not failed

    def overdue(self, before: datetime, limit: int) -> list[Timer]:
        found: list[Timer] = []
        # None where a shard is read from its beginning. The index may be behind: if all that it
        # shows has been dealt with already, read on.
        positions: dict[int, Any] = dict.fromkeys(range(DUE_SHARDS))
        with ThreadPoolExecutor(MAX_THREADS) as threads:
            while positions and not found:
                pages = list(threads.map(partial(self._due, before, limit), positions.items()))
                ids = [id for page, _ in pages for id in page]
                chunks = [
                    ids[start : start + BATCH_GET_SIZE]
                    for start in range(0, len(ids), BATCH_GET_SIZE)
                ]
                # What a call did not get round to is for the next sweep.
                found = [timer for read, _ in threads.map(self._read, chunks) for timer in read]
                found = [t for t in found if t.wake_at is not None and t.wake_at < before]
                nexts = zip(positions, pages, strict=True)
                positions = {shard: cursor_of for shard, (_, cursor_of) in nexts if cursor_of}
        return sorted(found, key=lambda timer: (timer.wake_at, timer.id))[:limit]

    def page(self, tenant: str, listing: TimerFilter, before: Cursor | None, limit: int) -> Page:
        # A status shows on the item only: as many are read for it as come in one call.
        most = limit if listing.status is None else max(limit, BATCH_GET_SIZE)
        with ThreadPoolExecutor(LIST_SHARDS) as threads:
            query = partial(self._listed, tenant, listing, _end(listing, before), most)
            shards = list(threads.map(query, range(LIST_SHARDS)))
        # Behind where one of the shards was left, it may have entries that are not known yet.
        horizon = max(left_at for _, left_at in shards)
        entries = [entry for shard, _ in shards for entry in shard if entry >= horizon]
        entries = sorted(entries, reverse=True)
        next = entries[most - 1] if len(entries) > most else horizon
        places = {_position(entry) for entry in entries[:most]}
        read = self._read_all(list({place.id for place in places}))
        # An id that was used again may be where it was before, for a moment.
        found = [it for it in read if cursor_of(it) in places and it.tenant == tenant]
        found = sorted(filter(listing.matches, found), key=cursor_of, reverse=True)
        if len(found) > limit:
            return Page(found[:limit], cursor_of(found[limit - 1]))
        return Page(found, _position(next) if next else None)

    def check(self) -> None:
        self.get("", "health")

    def _due(self, before: datetime, limit: int, at: tuple[int, Any]) -> tuple[list[str], Any]:
        """Return ids of one shard, in order, and the position after them, if there may be more.

        Twice its share of `limit`, for hashing spreads timers over the shards.
        """
        shard, cursor_of = at
        further = {"ExclusiveStartKey": cursor_of} if cursor_of else {}
        with _translated():
            answer = self._client.query(
                TableName=self._table,
                IndexName="due",
                KeyConditionExpression="#shard = :shard AND #wake_at < :before",
                ExpressionAttributeNames={"#shard": "shard", "#wake_at": "wake_at"},
                ExpressionAttributeValues={
                    ":shard": _attribute(shard),
                    ":before": _attribute(before),
                },
                Limit=max(10, 2 * limit // DUE_SHARDS),
                **further,
            )
        return [item["id"]["S"] for item in answer["Items"]], answer.get("LastEvaluatedKey")

    def _listed(
        self, tenant: str, listing: TimerFilter, end: str, most: int, shard: int
    ) -> tuple[list[str], str]:
        """Return what one shard lists before `end`, and where it was left; "" if there is no more.

        `since` is seen to here: BETWEEN would take in `end`, and refuse a span that ends before it
        begins. Little is read for nothing.
        """
        request: dict[str, Any] = {"KeyConditionExpression": f"{IS_LISTED} AND {IS_BEHIND}"}
        values: dict[str, object] = {"listed": f"{tenant}#{shard}", "end": end}
        if listing.label is not None:
            request["FilterExpression"] = HAS_THE_LABEL
            values["label"] = listing.label
            most = max(most, MAX_ENTRIES_SCANNED)
        with _translated():
            answer = self._client.query(
                TableName=self._table,
                IndexName="listed",
                ScanIndexForward=False,
                Limit=most,
                **request,
                **_named("".join(request.values()), values),
            )
        since = "" if listing.since is None else _text(listing.since)
        entries = [item["created"]["S"] for item in answer["Items"]]
        left_at = answer["LastEvaluatedKey"]["created"]["S"] if "LastEvaluatedKey" in answer else ""
        return [entry for entry in entries if entry >= since], left_at if left_at >= since else ""

    def _read_all(self, ids: Sequence[str]) -> list[Timer]:
        found: list[Timer] = []
        for start in range(0, len(ids), BATCH_GET_SIZE):
            left = ids[start : start + BATCH_GET_SIZE]
            for _ in range(BATCH_GET_TRIES):
                read, left = self._read(left)
                found += read
                if not left:
                    break
            else:
                raise Unavailable("DynamoDB can't read so much now.")
        return found

    def _read(self, ids: Sequence[str]) -> tuple[list[Timer], list[str]]:
        """Return the timers that are there, and the ids that the call did not get round to."""
        keys = [{"id": _attribute(id)} for id in ids]
        with _translated():
            answer = self._client.batch_get_item(
                RequestItems={self._table: {"Keys": keys, "ConsistentRead": True}}
            )
        found = [_timer(item) for item in answer["Responses"].get(self._table, [])]
        left = answer["UnprocessedKeys"].get(self._table, {"Keys": []})["Keys"]
        return found, [key["id"]["S"] for key in left]

    def _write(
        self,
        call: Callable[..., object],
        *,
        when: Sequence[str],
        values: dict[str, object] | None = None,
        **request: Any,
    ) -> "Item | None":
        """Make a conditional call; None if it went through, else the item that forbade it.

        That is {} where there is no item.
        """
        request["ConditionExpression"] = " AND ".join(when)
        expressions = request["ConditionExpression"] + request.get("UpdateExpression", "")
        request |= _named(expressions, values or {})
        try:
            with _translated():
                call(
                    TableName=self._table,
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                    **request,
                )
        except _ConditionFailed as failed:
            return failed.item
        return None


class DynamoApiKeys:
    """Keys on the tenants table of that name."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def add(self, key: ApiKey) -> None:
        fields = msgspec.structs.asdict(key) | {"id": _KEY + key.id}
        item = {name: _attribute(value) for name, value in fields.items()}
        with _translated():
            self._client.put_item(TableName=self._table, Item=item)

    def get(self, key_id: str) -> ApiKey | None:
        key = {"id": _attribute(_KEY + key_id)}
        with _translated():
            answer = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return _key(answer["Item"]) if "Item" in answer else None

    def remove(self, key_id: str) -> bool:
        # Asked before: a call whose answer was lost is made again by the client, and finds nothing.
        if self.get(key_id) is None:
            return False
        with _translated():
            self._client.delete_item(TableName=self._table, Key={"id": _attribute(_KEY + key_id)})
        return True

    def all(self) -> list[ApiKey]:
        with _translated():
            pages = self._client.get_paginator("scan").paginate(
                TableName=self._table,
                ConsistentRead=True,
                FilterExpression="begins_with(id, :key)",
                ExpressionAttributeValues={":key": _attribute(_KEY)},
            )
            found = [_key(item) for page in pages for item in page["Items"]]
        return sorted(found, key=lambda key: (key.created_at, key.id))


class DynamoSecrets:
    """Secrets on the tenants table of that name."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def of(self, tenant: str) -> list[str]:
        return _secrets(self._kept(tenant))

    def add(self, tenant: str, secret: str) -> None:
        self._change(tenant, lambda kept: signing.with_secret(kept, secret))

    def retire(self, tenant: str, secret: str) -> None:
        self._change(tenant, lambda kept: signing.without_secret(kept, secret))

    def _kept(self, tenant: str) -> str | None:
        key = {"id": _attribute(_SECRETS + tenant)}
        with _translated():
            answer = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return answer["Item"]["secrets"]["S"] if "Item" in answer else None

    def _change(self, tenant: str, decide: Callable[[list[str]], list[str]]) -> None:
        for _ in range(MAX_RACES):
            before = self._kept(tenant)
            after = msgspec.json.encode(decide(_secrets(before))).decode()
            if after == before or self._replace(tenant, before, after):
                return
        raise Unavailable("The secrets are being changed by too many at once.")

    def _replace(self, tenant: str, before: str | None, after: str) -> bool:
        item = {"id": _attribute(_SECRETS + tenant), "secrets": _attribute(after)}
        unchanged: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(id)"}
        if before is not None:
            unchanged = {
                "ConditionExpression": "secrets = :before",
                "ExpressionAttributeValues": {":before": _attribute(before)},
            }
        try:
            with _translated():
                self._client.put_item(
                    TableName=self._table,
                    Item=item,
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                    **unchanged,
                )
        except _ConditionFailed as failed:
            return failed.item == item  # the answer was lost, and the client asked again
        return True


def _secrets(kept: str | None) -> list[str]:
    return [] if kept is None else msgspec.json.decode(kept, type=list[str])


class _ConditionFailed(Exception):
    def __init__(self, item: "Item") -> None:
        super().__init__()
        self.item = item


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "ConditionalCheckFailedException":
            item: Any = error.response.get("Item", {})
            raise _ConditionFailed(item) from None
        # In a transaction the first write is the one with conditions.
        reasons: Any = error.response.get("CancellationReasons", [])
        if reasons and reasons[0]["Code"] == "ConditionalCheckFailed":
            raise _ConditionFailed(reasons[0].get("Item", {})) from None
        # No more than the code: this sentence reaches whoever asked, and AWS names roles and ARNs.
        raise Unavailable(f"DynamoDB can't do this now: {code}.") from error
    except BotoCoreError as error:
        raise Unavailable("DynamoDB does not answer.") from error


def _was_ours(stored: "Item", timer: Timer) -> bool:
    # A call whose answer was lost on the way is made again, and finds what it wrote itself.
    return bool(stored) and _timer(stored) == timer


def _named(expressions: str, values: dict[str, object]) -> dict[str, Any]:
    """Return what the names and values in the clauses stand for."""
    names = {f"#{name}": name for name in re.findall(r"#(\w+)", expressions)}
    attributes = {f":{name}": _attribute(value) for name, value in values.items()}
    named: dict[str, Any] = {"ExpressionAttributeNames": names}
    return named | ({"ExpressionAttributeValues": attributes} if attributes else {})


def _end(listing: TimerFilter, before: Cursor | None) -> str:
    """Return what all wanted entries of the index `listed` come before."""
    until = _text(listing.until or datetime.max.replace(tzinfo=UTC))
    return until if before is None else min(until, _entry(before))


def _entry(at: Cursor) -> str:
    return f"{_text(at.created_at)}#{at.id}"


def _position(entry: str) -> Cursor:
    created_at, _, id = entry.partition("#")
    return Cursor(datetime.fromisoformat(created_at), id)


_AS_JSON = {"attempts", "headers", "metadata", "retry"}
"""Attributes that no condition looks at, and that have parts of their own."""


def _fields(webhook: Webhook) -> dict[str, Any]:
    fields = msgspec.structs.asdict(webhook)
    for name in _AS_JSON & fields.keys():
        fields[name] = msgspec.json.encode(fields[name]).decode()
    return fields


_DEFAULTS = {name: it for name, it in _fields(Webhook(url="")).items() if name != "url"}
"""What is left out, as most webhooks are nothing else."""


def _item(timer: Timer) -> "Item":
    fields = _fields(timer)
    for name, default in _DEFAULTS.items():
        if fields[name] == default:
            del fields[name]
    if timer.wake_at is not None:
        fields["shard"] = crc32(timer.id.encode()) % DUE_SHARDS
    fields["listed"] = f"{timer.tenant}#{crc32(timer.id.encode()) % LIST_SHARDS}"
    fields["created"] = _entry(cursor_of(timer))
    if (expires_at := fields.pop("expires_at")) is not None:
        fields["expires"] = int(expires_at.timestamp())  # as DynamoDB's TTL wants it
    return {name: _attribute(value) for name, value in fields.items() if value is not None}


def _timer(item: "Item") -> Timer:
    fields = {name: _value(attribute) for name, attribute in item.items()}
    for name in _AS_JSON & fields.keys():
        fields[name] = msgspec.json.decode(fields[name])
    if "expires" in fields:
        fields["expires_at"] = datetime.fromtimestamp(fields["expires"], UTC)
    return msgspec.convert({"wake_at": None, **fields}, Timer)


def _key(item: "Item") -> ApiKey:
    fields = {name: _value(attribute) for name, attribute in item.items()}
    return msgspec.convert(fields | {"id": fields["id"].removeprefix(_KEY)}, ApiKey)


def _attribute(value: object) -> "AttributeValueTypeDef":
    match value:
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case datetime():
            return {"S": _text(value)}
        case str():
            return {"S": str(value)}
    raise TypeError(f"There is no attribute for {value!r}.")


def _text(moment: datetime) -> str:
    # strftime would write the year 1 in one digit, and nothing could be compared with that.
    naive = moment.astimezone(UTC).replace(tzinfo=None)
    return naive.isoformat(timespec="microseconds") + "Z"


def _value(attribute: "AttributeValueTypeDef") -> Any:
    if "N" in attribute:
        return int(attribute["N"])
    return attribute["BOOL"] if "BOOL" in attribute else attribute["S"]
