"""DynamoTimerStore: the Store in one DynamoDB table.

Each timer is one item; its attributes are named like the fields of `Timer`. Times are text of fixed
width, so they sort correctly. A timer with a `wake_at` is also in the index `due`, in one of 32
shards, sorted by `wake_at`:

    created ──► scheduled ──claim──► delivering ──record──► delivered, failed
    wake_at     the deadline         the lease's end        none: it leaves the index
    version     1                    2                      3

The index `listed` has all timers of a tenant in 8 shards, in the order of lists, with their labels:
claims and outcomes do not change it. Timers stored before this index existed are not listed until
they are written again. Both indexes may lag, so their entries are hints; the item decides.
"""

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from chalicelib.aws.dynamodb import (
    IS_NEW,
    attribute,
    placeholders,
    plain,
    time_text,
    translated_errors,
    write_if,
)
from chalicelib.core.errors import Unavailable
from chalicelib.core.pagination import Cursor, Page, TimerFilter, cursor_of
from chalicelib.core.timer import Status, Timer, Wakeup, Webhook

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from chalicelib.aws.dynamodb import Item

DUE_SHARDS = 32
"""Shards of the index `due`. Each takes 1,000 writes a second."""

LIST_SHARDS = 8
"""Shards of each tenant in the index `listed`. Each takes 1,000 creates a second."""

MAX_ENTRIES_SCANNED = 500
"""Index entries read from each shard for one page of a list filtered by label."""

MAX_ID_BYTES = 2048
"""DynamoDB's limit for a key in bytes; no timer has a longer id."""

BATCH_GET_SIZE = 100
"""BatchGetItem's limit of items."""

BATCH_GET_TRIES = 5
"""Calls of BatchGetItem for the same items. One returns up to 16 MB, or less when throttled."""

MAX_THREADS = 32
"""Concurrent calls in a sweep; the client needs as many connections."""

IS_THE_TENANTS = "#tenant = :tenant"
IS_WAITING = "#status IN (:scheduled, :retrying)"
IS_OF_THE_GENERATION = "#generation = :generation"
IS_DUE = "#due_at <= :now"
IS_OF_THE_VERSION = "#version = :version"
IS_LISTED = "#listed = :listed"
IS_BEFORE_THE_END = "#created < :end"
HAS_THE_LABEL = "#label = :label"


class DynamoTimerStore:
    """Store in the DynamoDB table named `table`."""

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def add(self, timer: Timer) -> bool:
        failed = self._write(self._client.put_item, Item=_item(timer), when=[IS_NEW])
        return failed is None or _is_own_write(failed, timer)

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        if not 0 < len(timer_id.encode()) <= MAX_ID_BYTES:
            return None
        with translated_errors():
            response = self._client.get_item(
                TableName=self._table, Key={"id": {"S": timer_id}}, ConsistentRead=True
            )
        timer = _timer(response["Item"]) if "Item" in response else None
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
        if failed and failed.get("claimed_by") == attribute(token):
            return _timer(failed)  # a response was lost, and the client retried
        return _timer(claimed["Attributes"]) if claimed else None

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        failed = self._write(
            self._client.put_item if adding is None else partial(self._put_both, adding),
            Item=_item(timer),
            when=[IS_THE_TENANTS, IS_OF_THE_VERSION],
            values={"tenant": timer.tenant, "version": timer.version - 1},
        )
        return failed is None or _is_own_write(failed, timer)

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
        timers: list[Timer] = []
        # None reads a shard from its start. The index may lag: if all its entries are outdated,
        # read on.
        positions: dict[int, Any] = dict.fromkeys(range(DUE_SHARDS))
        with ThreadPoolExecutor(MAX_THREADS) as threads:
            while positions and not timers:
                pages = list(threads.map(partial(self._due, before, limit), positions.items()))
                ids = [id for page, _ in pages for id in page]
                chunks = [
                    ids[start : start + BATCH_GET_SIZE]
                    for start in range(0, len(ids), BATCH_GET_SIZE)
                ]
                # The next sweep reads the keys that a call left unprocessed.
                timers = [timer for read, _ in threads.map(self._read, chunks) for timer in read]
                timers = [t for t in timers if t.wake_at is not None and t.wake_at < before]
                nexts = zip(positions, pages, strict=True)
                positions = {shard: position for shard, (_, position) in nexts if position}
        return sorted(timers, key=lambda timer: (timer.wake_at, timer.id))[:limit]

    def page(self, tenant: str, filter: TimerFilter, after: Cursor | None, limit: int) -> Page:
        # The index has no status, so a filter by status reads as many items as one call returns.
        most = limit if filter.status is None else max(limit, BATCH_GET_SIZE)
        with ThreadPoolExecutor(LIST_SHARDS) as threads:
            query = partial(self._listed, tenant, filter, _end(filter, after), most)
            shards = list(threads.map(query, range(LIST_SHARDS)))
        # A shard that was read only in part may have more entries, all below the last one read.
        horizon = max(left_at for _, left_at in shards)
        entries = [entry for shard, _ in shards for entry in shard if entry >= horizon]
        entries = sorted(entries, reverse=True)
        next = entries[most - 1] if len(entries) > most else horizon
        places = {_cursor(entry) for entry in entries[:most]}
        read = self._read_all(list({place.id for place in places}))
        # The index may still have an old position of an id that was used again.
        current = [it for it in read if cursor_of(it) in places and it.tenant == tenant]
        matching = [timer for timer in current if filter.matches(timer)]
        timers = sorted(matching, key=cursor_of, reverse=True)
        if len(timers) > limit:
            return Page(timers[:limit], cursor_of(timers[limit - 1]))
        return Page(timers, _cursor(next) if next else None)

    def check(self) -> None:
        self.get("", "health")

    def _due(self, before: datetime, limit: int, at: tuple[int, Any]) -> tuple[list[str], Any]:
        """Return a shard's ids, in order, and DynamoDB's key to continue from, if any.

        Reads twice its share of `limit`, because hashing spreads timers unevenly.
        """
        shard, position = at
        further = {"ExclusiveStartKey": position} if position else {}
        with translated_errors():
            response = self._client.query(
                TableName=self._table,
                IndexName="due",
                KeyConditionExpression="#shard = :shard AND #wake_at < :before",
                ExpressionAttributeNames={"#shard": "shard", "#wake_at": "wake_at"},
                ExpressionAttributeValues={
                    ":shard": attribute(shard),
                    ":before": attribute(before),
                },
                Limit=max(10, 2 * limit // DUE_SHARDS),
                **further,
            )
        return [item["id"]["S"] for item in response["Items"]], response.get("LastEvaluatedKey")

    def _listed(
        self, tenant: str, filter: TimerFilter, end: str, most: int, shard: int
    ) -> tuple[list[str], str]:
        """Return a shard's entries before `end`, and the last one read, or "" at the shard's end.

        `since` is applied after the query: BETWEEN would include `end`, and fail for a span that
        ends before it begins. Few entries are read needlessly.
        """
        request: dict[str, Any] = {"KeyConditionExpression": f"{IS_LISTED} AND {IS_BEFORE_THE_END}"}
        values: dict[str, object] = {"listed": f"{tenant}#{shard}", "end": end}
        if filter.label is not None:
            request["FilterExpression"] = HAS_THE_LABEL
            values["label"] = filter.label
            most = max(most, MAX_ENTRIES_SCANNED)
        with translated_errors():
            response = self._client.query(
                TableName=self._table,
                IndexName="listed",
                ScanIndexForward=False,
                Limit=most,
                **request,
                **placeholders("".join(request.values()), values),
            )
        since = "" if filter.since is None else time_text(filter.since)
        entries = [item["created"]["S"] for item in response["Items"]]
        left_at = (
            response["LastEvaluatedKey"]["created"]["S"] if "LastEvaluatedKey" in response else ""
        )
        return [entry for entry in entries if entry >= since], left_at if left_at >= since else ""

    def _read_all(self, ids: Sequence[str]) -> list[Timer]:
        timers: list[Timer] = []
        for start in range(0, len(ids), BATCH_GET_SIZE):
            left = ids[start : start + BATCH_GET_SIZE]
            for _ in range(BATCH_GET_TRIES):
                read, left = self._read(left)
                timers += read
                if not left:
                    break
            else:
                raise Unavailable("DynamoDB can't read this many timers now; try again.")
        return timers

    def _read(self, ids: Sequence[str]) -> tuple[list[Timer], list[str]]:
        """Return the timers with these ids, and the ids that the call left unprocessed."""
        keys = [{"id": attribute(id)} for id in ids]
        with translated_errors():
            response = self._client.batch_get_item(
                RequestItems={self._table: {"Keys": keys, "ConsistentRead": True}}
            )
        timers = [_timer(item) for item in response["Responses"].get(self._table, [])]
        left = response["UnprocessedKeys"].get(self._table, {"Keys": []})["Keys"]
        return timers, [key["id"]["S"] for key in left]

    def _write(
        self,
        call: Callable[..., object],
        *,
        when: Sequence[str],
        values: dict[str, object] | None = None,
        **request: Any,
    ) -> "Item | None":
        return write_if(when, call, values, TableName=self._table, **request)


def _is_own_write(stored: "Item", timer: Timer) -> bool:
    # If a response is lost, the client repeats the call and finds its own write.
    return bool(stored) and _timer(stored) == timer


def _end(filter: TimerFilter, after: Cursor | None) -> str:
    """Return the upper bound, exclusive, of the entries to read from the index `listed`."""
    until = time_text(filter.until or datetime.max.replace(tzinfo=UTC))
    return until if after is None else min(until, _entry(after))


def _entry(at: Cursor) -> str:
    return f"{time_text(at.created_at)}#{at.id}"


def _cursor(entry: str) -> Cursor:
    created_at, _, id = entry.partition("#")
    return Cursor(datetime.fromisoformat(created_at), id)


_AS_JSON = {"attempts", "headers", "metadata", "retry"}
"""Structured fields, stored as JSON text; no condition uses them."""


def _fields(webhook: Webhook) -> dict[str, Any]:
    fields = msgspec.structs.asdict(webhook)
    for name in _AS_JSON & fields.keys():
        fields[name] = msgspec.json.encode(fields[name]).decode()
    return fields


_DEFAULTS = {name: it for name, it in _fields(Webhook(url="")).items() if name != "url"}
"""Values that are not stored, because most webhooks have them."""


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
        fields["expires"] = int(expires_at.timestamp())  # the format of DynamoDB's TTL
    return {name: attribute(value) for name, value in fields.items() if value is not None}


def _timer(item: "Item") -> Timer:
    fields = {name: plain(value) for name, value in item.items()}
    for name in _AS_JSON & fields.keys():
        fields[name] = msgspec.json.decode(fields[name])
    if "expires" in fields:
        fields["expires_at"] = datetime.fromtimestamp(fields["expires"], UTC)
    return msgspec.convert({"wake_at": None, **fields}, Timer)
