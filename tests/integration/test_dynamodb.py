"""DynamoTimerStore: the store contract, its items and its requests, on moto."""

import re
from collections.abc import Iterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from msgspec.structs import replace

from chalicelib.aws import dynamodb, timer_store
from chalicelib.aws.timer_store import DynamoTimerStore
from chalicelib.core.errors import Unavailable
from chalicelib.core.pagination import Page, TimerFilter, cursor_of
from chalicelib.core.timer import DEFAULT_TENANT, Status, Timer
from chalicelib.service.ports import Store
from tests.contracts.store import HOUR, SECOND, StoreContract, make, newest_first, walk
from tests.support.aws import NAME, Account, account
from tests.support.fakes import NO_CONTENT, START


@pytest.fixture
def aws() -> Iterator[Account]:
    with account() as made:
        yield made


@pytest.fixture
def store(aws: Account) -> DynamoTimerStore:
    return DynamoTimerStore(aws.dynamodb, NAME)


class TestDynamoTimerStore(StoreContract):
    """The contract, on a table in moto."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        with account() as made:
            yield DynamoTimerStore(made.dynamodb, NAME)

    def expire(self, store: Store, now: object) -> None:
        """Delete expired items, as DynamoDB's TTL does."""
        assert isinstance(store, DynamoTimerStore)
        assert isinstance(now, type(START))
        for item in store._client.scan(TableName=NAME)["Items"]:
            if "expires" in item and int(item["expires"]["N"]) <= now.timestamp():
                store._client.delete_item(TableName=NAME, Key={"id": item["id"]})


def test_a_retried_claim_is_recognized(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the response to a claim is lost, the client retries and recognizes its own claim."""
    timer = make()
    store.add(timer)
    update = aws.dynamodb.update_item

    def lost(**request: Any) -> Any:
        update(**request)
        return update(**request)

    monkeypatch.setattr(aws.dynamodb, "update_item", lost)
    lease_until = timer.due_at + HOUR
    claimed = store.claim(timer.wakeup(), timer.due_at, lease_until)
    assert claimed == timer.claim(timer.wakeup(), timer.due_at, lease_until)
    assert store.claim(timer.wakeup(), timer.due_at, lease_until) is None


@pytest.mark.parametrize("call", ["add", "replace", "remove"])
def test_a_retried_write_is_recognized(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """If the response to a write is lost, the client retries and recognizes its own write."""
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
            assert store.replace(timer.cancel(START))
        case "remove":
            assert store.remove(timer)


def test_overdue_reads_past_outdated_index_entries(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outdated entries of a lagging index do not hide the overdue timers after them."""
    monkeypatch.setattr(timer_store, "DUE_SHARDS", 1)
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
        store.replace_all([timer.with_next_check(START + 2 * HOUR) for timer in found])
    assert seen == stored


def test_errors_of_dynamodb_are_unavailable(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any error of DynamoDB raises Unavailable, and so does a timeout."""
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


def test_replace_all_returns_the_written_timers(aws: Account, store: DynamoTimerStore) -> None:
    """If some writes fail, the written timers are still returned, so they can be requeued."""
    stored = [make(number) for number in range(4)]
    for timer in stored:
        store.add(timer)
    changed = [timer.with_next_check(START + HOUR) for timer in stored]

    def fail(operation: str) -> None:
        if aws.calls[-1][1]["Item"]["id"]["S"] == stored[1].id:
            raise ReadTimeoutError(endpoint_url="https://x")

    aws.before = fail
    assert store.replace_all(changed) == [changed[0], *changed[2:]]
    with pytest.raises(Unavailable):
        store.replace_all([changed[1]])


def added(store: DynamoTimerStore, count: int) -> list[Timer]:
    """Return new timers in all shards, newest first; every seventh has the label `rare`."""
    random = Random(11)  # noqa: S311  # the same every time
    made = [
        make(
            number,
            created_at=START + random.randrange(count) * SECOND,
            label="rare" if number % 7 == 0 else random.choice([None, "common"]),
        )
        for number in range(count)
    ]
    for timer in made:
        store.add(timer)
    return newest_first(made)


LISTINGS = [
    TimerFilter(),
    TimerFilter(label="common", until=START + 20 * SECOND),
    TimerFilter(status=Status.CANCELLED),
    TimerFilter(label="rare", since=START + 5 * SECOND),
]


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("limit", [1, 4])
def test_pages_cover_all_shards(
    store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch, listing: TimerFilter, limit: int
) -> None:
    """However few entries each read returns, the pages have all matching timers, in order."""
    monkeypatch.setattr(timer_store, "MAX_ENTRIES_SCANNED", 1)
    monkeypatch.setattr(timer_store, "BATCH_GET_SIZE", 1)
    wanted = [timer for timer in added(store, 30) if listing.matches(timer)]
    assert walk(store, listing, limit) == wanted


def test_a_shard_may_return_less_than_its_limit(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DynamoDB ends a response after 1 MB, so a shard may stop at any entry."""
    wanted, query, random = added(store, 40), aws.dynamodb.query, Random(3)  # noqa: S311

    def short(**request: Any) -> Any:
        return query(**request | {"Limit": random.randint(1, 3)})

    monkeypatch.setattr(aws.dynamodb, "query", short)
    assert walk(store, limit=9) == wanted
    rare = [timer for timer in wanted if timer.label == "rare"]
    assert walk(store, TimerFilter(label="rare"), limit=9) == rare


def test_an_empty_page_has_a_next_cursor(
    store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no entry read has the label, the page is empty and has a cursor."""
    monkeypatch.setattr(timer_store, "LIST_SHARDS", 1)
    monkeypatch.setattr(timer_store, "MAX_ENTRIES_SCANNED", 3)
    stored = [make(number, label="old" if number < 2 else None) for number in range(8)]
    for timer in stored:
        store.add(timer)
    page = store.page(DEFAULT_TENANT, TimerFilter(label="old"), None, 1)
    assert page == Page([], cursor_of(stored[5]))
    page = store.page(DEFAULT_TENANT, TimerFilter(label="old"), page.next, 1)
    assert page == Page([], cursor_of(stored[2]))
    page = store.page(DEFAULT_TENANT, TimerFilter(label="old"), page.next, 2)
    assert page == Page([stored[1], stored[0]], None)


def test_reads_only_the_requested_span(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list reads only timers between `since` and `until`."""
    monkeypatch.setattr(timer_store, "LIST_SHARDS", 1)
    stored = [make(number, created_at=START - number * SECOND) for number in range(20)]
    for timer in stored:
        store.add(timer)
    span = TimerFilter(since=stored[9].created_at, until=stored[5].created_at)
    aws.calls.clear()
    assert store.page(DEFAULT_TENANT, span, cursor_of(stored[1]), 5) == Page(stored[6:10], None)
    (read,) = [request for name, request in aws.calls if name == "BatchGetItem"]
    asked = [key["id"]["S"] for key in read["RequestItems"][NAME]["Keys"]]
    assert sorted(asked) == [timer.id for timer in stored[6:10]]


def test_a_page_takes_one_query_per_shard_and_one_read(
    aws: Account, store: DynamoTimerStore
) -> None:
    """A page costs one query of each shard and one BatchGetItem, for any size and filter."""
    wanted = added(store, 60)
    for listing in (TimerFilter(), TimerFilter(label="rare"), TimerFilter(status=Status.SCHEDULED)):
        aws.calls.clear()
        found = store.page(DEFAULT_TENANT, listing, None, 7).timers
        assert found == [timer for timer in wanted if listing.matches(timer)][:7]
        assert sorted(aws.names()) == ["BatchGetItem", *["Query"] * timer_store.LIST_SHARDS]
    (request,) = [request for name, request in aws.calls if name == "BatchGetItem"]
    assert request["RequestItems"][NAME]["ConsistentRead"] is True


def test_a_filter_by_status_reads_a_full_batch(store: DynamoTimerStore) -> None:
    """The index has no status, so a filter by status reads as many items as one call takes."""
    cancelled = added(store, 60)[-1].cancel(START)
    store.replace(cancelled)
    page = store.page(DEFAULT_TENANT, TimerFilter(status=Status.CANCELLED), None, 1)
    assert page == Page([cancelled], None)


def reading_few(aws: Account, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Make each BatchGetItem process `at_once` items only."""
    read = aws.dynamodb.batch_get_item

    def some(RequestItems: Any) -> Any:
        asked = RequestItems[NAME]
        keys, left = asked["Keys"][:at_once], asked["Keys"][at_once:]
        answer: Any = {"Responses": {}, "UnprocessedKeys": {}}
        if keys:
            answer = read(RequestItems={NAME: asked | {"Keys": keys}})
        return answer | ({"UnprocessedKeys": {NAME: asked | {"Keys": left}}} if left else {})

    monkeypatch.setattr(aws.dynamodb, "batch_get_item", some)


def test_reads_unprocessed_keys_again(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page reads unprocessed keys again; after some tries it raises Unavailable."""
    wanted = added(store, 20)
    reading_few(aws, monkeypatch, 3)
    assert walk(store, limit=3 * timer_store.BATCH_GET_TRIES) == wanted
    with pytest.raises(Unavailable):
        store.page(DEFAULT_TENANT, TimerFilter(), None, 3 * timer_store.BATCH_GET_TRIES + 1)
    reading_few(aws, monkeypatch, 0)
    with pytest.raises(Unavailable):
        store.page(DEFAULT_TENANT, TimerFilter(), None, 1)


def test_overdue_leaves_unprocessed_keys(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`overdue` leaves unprocessed keys to the next sweep."""
    added(store, 10)
    reading_few(aws, monkeypatch, 4)
    assert len(store.overdue(START + 2 * HOUR, 100)) == 4


def test_a_large_page_takes_several_reads(store: DynamoTimerStore) -> None:
    """A page may have more timers than one BatchGetItem reads."""
    wanted = added(store, timer_store.BATCH_GET_SIZE + 5)
    assert store.page(DEFAULT_TENANT, TimerFilter(), None, 1000) == Page(wanted, None)


def test_outdated_index_entries_are_not_listed(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outdated entry does not list a timer that is gone, another's, moved or relabelled."""
    monkeypatch.setattr(timer_store, "LIST_SHARDS", 1)
    gone, others, moved = make(1), make(2, tenant="other"), make(3, created_at=START - SECOND)
    relabelled, right = make(4, label="new"), make(5, label="old")
    for timer in (others, moved, relabelled, right):
        store.add(timer)
    index = [
        timer_store._item(replace(timer, created_at=START))
        for timer in (right, relabelled, moved, others, gone)
    ]
    monkeypatch.setattr(aws.dynamodb, "query", lambda **_: {"Items": index})
    assert store.page(DEFAULT_TENANT, TimerFilter(), None, 10) == Page([right, relabelled], None)
    assert store.page(DEFAULT_TENANT, TimerFilter(label="old"), None, 10) == Page([right], None)


def test_a_claim_does_not_write_to_the_index_listed(aws: Account, store: DynamoTimerStore) -> None:
    """A claim changes no attribute of the index `listed`, so it costs no write there."""
    timer = make(label="a")
    store.add(timer)
    aws.calls.clear()
    store.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
    ((operation, request),) = aws.calls
    assert operation == "UpdateItem"
    changed = set(re.findall(r"#(\w+)", request["UpdateExpression"]))
    assert "status" in changed
    assert not changed & {"listed", "created", "label"}


def test_old_timers_are_listed_once_written(aws: Account, store: DynamoTimerStore) -> None:
    """A timer stored before the index `listed` existed is listed after its next write."""
    timer = make()
    item = timer_store._item(timer)
    del item["listed"], item["created"]
    aws.dynamodb.put_item(TableName=NAME, Item=item)
    assert walk(store) == []
    claimed = store.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
    assert claimed is not None
    delivered = claimed.record(NO_CONTENT, timer.due_at, None)
    assert store.replace(delivered)
    assert walk(store) == [delivered]


def test_times_sort_as_text() -> None:
    """Times as text sort in the order of the times."""
    years = [1, 999, 1000, 1969, 2026, 9999]
    texts = [dynamodb.time_text(START.replace(year=year, microsecond=7)) for year in years]
    assert texts == sorted(texts)
    assert texts[0] == "0001-01-31T12:00:00.000007Z"
