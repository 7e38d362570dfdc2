"""DynamoStore: the contract and the shapes of its items, on moto."""

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
from chalicelib.service.service import Store
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


class TestDynamoStore(StoreContract):
    """The contract, on a table in moto."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        with account() as made:
            yield DynamoTimerStore(made.dynamodb, NAME)

    def expire(self, store: Store, now: object) -> None:
        """Delete what has expired, as DynamoDB's TTL does."""
        assert isinstance(store, DynamoTimerStore)
        assert isinstance(now, type(START))
        for item in store._client.scan(TableName=NAME)["Items"]:
            if "expires" in item and int(item["expires"]["N"]) <= now.timestamp():
                store._client.delete_item(TableName=NAME, Key={"id": item["id"]})


def test_a_claim_whose_answer_was_lost_is_ours(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
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
    claimed = store.claim(timer.wakeup(), timer.due_at, lease_until)
    assert claimed == timer.claim(timer.wakeup(), timer.due_at, lease_until)
    assert store.claim(timer.wakeup(), timer.due_at, lease_until) is None


@pytest.mark.parametrize("call", ["add", "replace", "remove"])
def test_a_write_whose_answer_was_lost_is_done(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch, call: str
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
            assert store.replace(timer.cancel(START))
        case "remove":
            assert store.remove(timer)


def test_overdue_reads_past_an_index_that_is_behind(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hints of what was dealt with already do not hide what comes after them."""
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


def test_throttling_is_unavailable(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
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
    aws: Account, store: DynamoTimerStore
) -> None:
    """If some writes fail, those that went through are still named, for they must be rung for."""
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
    """Return so many timers, newest first, in all shards; every seventh is labelled `rare`."""
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
def test_no_shard_is_left_behind(
    store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch, listing: TimerFilter, limit: int
) -> None:
    """However little is read of each shard, the pages together have all that matches, in order."""
    monkeypatch.setattr(timer_store, "MAX_ENTRIES_SCANNED", 1)
    monkeypatch.setattr(timer_store, "BATCH_GET_SIZE", 1)
    wanted = [timer for timer in added(store, 30) if listing.matches(timer)]
    assert walk(store, listing, limit) == wanted


def test_a_shard_may_answer_with_less_than_its_limit(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DynamoDB ends an answer after 1 MB, so that every shard may be left anywhere."""
    wanted, query, random = added(store, 40), aws.dynamodb.query, Random(3)  # noqa: S311

    def short(**request: Any) -> Any:
        return query(**request | {"Limit": random.randint(1, 3)})

    monkeypatch.setattr(aws.dynamodb, "query", short)
    assert walk(store, limit=9) == wanted
    rare = [timer for timer in wanted if timer.label == "rare"]
    assert walk(store, TimerFilter(label="rare"), limit=9) == rare


def test_a_page_of_nothing_leads_on(
    store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing of what was looked at has the label, the page is empty and has a next one."""
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


def test_nothing_outside_a_span_is_read(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list begins and ends with its span, however much there is above and below."""
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


def test_a_full_page_is_read_at_once(aws: Account, store: DynamoTimerStore) -> None:
    """A page costs a query of each shard and one BatchGetItem, whatever its size and filter."""
    wanted = added(store, 60)
    for listing in (TimerFilter(), TimerFilter(label="rare"), TimerFilter(status=Status.SCHEDULED)):
        aws.calls.clear()
        found = store.page(DEFAULT_TENANT, listing, None, 7).timers
        assert found == [timer for timer in wanted if listing.matches(timer)][:7]
        assert sorted(aws.names()) == ["BatchGetItem", *["Query"] * timer_store.LIST_SHARDS]
    (request,) = [request for name, request in aws.calls if name == "BatchGetItem"]
    assert request["RequestItems"][NAME]["ConsistentRead"] is True


def test_a_status_that_few_have_is_looked_for_in_many(store: DynamoTimerStore) -> None:
    """A status shows on the item only, so as many are read as one call takes, however few are
    wanted."""
    cancelled = added(store, 60)[-1].cancel(START)
    store.replace(cancelled)
    page = store.page(DEFAULT_TENANT, TimerFilter(status=Status.CANCELLED), None, 1)
    assert page == Page([cancelled], None)


def reading_few(aws: Account, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Let BatchGetItem get round to so many items in each call only."""
    read = aws.dynamodb.batch_get_item

    def some(RequestItems: Any) -> Any:
        asked = RequestItems[NAME]
        keys, left = asked["Keys"][:at_once], asked["Keys"][at_once:]
        answer: Any = {"Responses": {}, "UnprocessedKeys": {}}
        if keys:
            answer = read(RequestItems={NAME: asked | {"Keys": keys}})
        return answer | ({"UnprocessedKeys": {NAME: asked | {"Keys": left}}} if left else {})

    monkeypatch.setattr(aws.dynamodb, "batch_get_item", some)


def test_what_was_not_got_round_to_is_asked_for_again(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page lacks nothing because a call returned a part only; if that goes on, it raises."""
    wanted = added(store, 20)
    reading_few(aws, monkeypatch, 3)
    assert walk(store, limit=3 * timer_store.BATCH_GET_TRIES) == wanted
    with pytest.raises(Unavailable):
        store.page(DEFAULT_TENANT, TimerFilter(), None, 3 * timer_store.BATCH_GET_TRIES + 1)
    reading_few(aws, monkeypatch, 0)
    with pytest.raises(Unavailable):
        store.page(DEFAULT_TENANT, TimerFilter(), None, 1)


def test_a_sweep_takes_what_it_gets(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What BatchGetItem did not get round to is left to the next sweep."""
    added(store, 10)
    reading_few(aws, monkeypatch, 4)
    assert len(store.overdue(START + 2 * HOUR, 100)) == 4


def test_many_are_read_in_several_calls(store: DynamoTimerStore) -> None:
    """A page may be larger than what one call of BatchGetItem takes."""
    wanted = added(store, timer_store.BATCH_GET_SIZE + 5)
    assert store.page(DEFAULT_TENANT, TimerFilter(), None, 1000) == Page(wanted, None)


def test_the_index_is_only_a_hint(
    aws: Account, store: DynamoTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is behind, nothing is shown that is gone, another's, of another moment, or does not
    match any more."""
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


def test_a_claim_leaves_the_list_alone(aws: Account, store: DynamoTimerStore) -> None:
    """A claim writes nothing that the index `listed` holds, so that it costs no write there."""
    timer = make(label="a")
    store.add(timer)
    aws.calls.clear()
    store.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
    ((operation, request),) = aws.calls
    assert operation == "UpdateItem"
    changed = set(re.findall(r"#(\w+)", request["UpdateExpression"]))
    assert "status" in changed
    assert not changed & {"listed", "created", "label"}


def test_a_timer_without_the_attributes_of_the_index_is_listed_once_it_is_written(
    aws: Account, store: DynamoTimerStore
) -> None:
    """What a version before the list has stored is in no list, until anything is written of it."""
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


def test_moments_are_text_of_fixed_width() -> None:
    """Any moment that can be asked for compares as text as it does as a moment."""
    years = [1, 999, 1000, 1969, 2026, 9999]
    texts = [dynamodb.time_text(START.replace(year=year, microsecond=7)) for year in years]
    assert texts == sorted(texts)
    assert texts[0] == "0001-01-31T12:00:00.000007Z"
