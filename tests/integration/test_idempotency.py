"""Idempotency-Key: all requests of a tenant with one key create one timer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chalicelib.aws.timer_store import DynamoTimerStore
from chalicelib.core.errors import (
    Conflict,
    IdempotencyKeyReused,
    ScheduleRefused,
    Unavailable,
)
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    RETENTION,
    IdempotencyKey,
    Status,
    Timer,
    TimerSpec,
    Webhook,
    keyed_id,
)
from chalicelib.service.commands import Created
from chalicelib.service.ports import Store
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.aws import NAME, account
from tests.support.cloud import scheduler_of
from tests.support.fakes import START, Clock, FakeScheduler, FakeSender, FakeStore
from tests.support.service import Service

MINUTE = timedelta(minutes=1)


class World:
    """A service on any store and scheduler."""

    def __init__(self, store: Store, scheduler: Any, clock: Clock) -> None:
        self.store = store
        self.scheduler = scheduler
        self.clock = clock
        self.service = Service(
            store,
            scheduler,
            FakeSender(),
            clock=self.tick,
            new_id=lambda: "id-1",
            pause=lambda _: None,
        )

    def tick(self) -> Any:
        """Return a time that no other call gets."""
        self.clock.now += timedelta(microseconds=1)
        return self.clock.now

    def create(
        self,
        key: str = "k",
        fingerprint: str = "a",
        tenant: str = DEFAULT_TENANT,
        former: str = "",
    ) -> Created:
        webhook = Webhook(url="https://example.com/")
        once = IdempotencyKey(key, fingerprint, former)
        return self.service.create(
            tenant, TimerSpec(webhook=webhook, deadline=START + MINUTE, idempotency_key=once)
        )


@pytest.fixture
def fakes() -> World:
    return World(FakeStore(), FakeScheduler(), Clock())


def sqlite(folder: Path) -> Iterator[World]:
    with closing(SqliteTimerStore(folder / "timers.db")) as store:
        yield World(store, FakeScheduler(), Clock())


def dynamodb(_: Path) -> Iterator[World]:
    with account() as aws:
        clock = Clock()
        scheduler = scheduler_of(aws, clock)
        world = World(DynamoTimerStore(aws.dynamodb, NAME), scheduler, clock)
        world.scheduler.aws = aws
        yield world


@pytest.fixture(params=[sqlite, dynamodb], ids=lambda it: it.__name__)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    yield from request.param(tmp_path)


def scheduled(world: World) -> int:
    """Return how many timers are scheduled: on AWS, the number of schedules."""
    if isinstance(world.scheduler, FakeScheduler):
        return len(world.scheduler.wakeups)
    return len(world.scheduler.aws.schedules())


def test_a_repeated_request_returns_the_same_timer(world: World) -> None:
    """A repeated request returns the existing timer in its current state, and changes nothing."""
    first, second = world.create(), world.create()
    assert (first.is_new, second.is_new) == (True, False)
    assert second.timer.id == first.timer.id
    assert second.timer.deadline == first.timer.deadline
    assert scheduled(world) == 1
    wakeup = first.timer.wakeup()
    assert world.store.claim(wakeup, START + MINUTE, START + 2 * MINUTE) is not None
    assert world.create().timer.status is Status.DELIVERING


def test_racing_requests_create_one_timer(world: World) -> None:
    """Of 8 concurrent requests one creates and schedules the timer, and all return it."""
    gate = Barrier(8)

    def create(key: str) -> Created:
        gate.wait()
        return world.create(key)

    with ThreadPoolExecutor(8) as clients:
        for number in range(5):
            found = list(clients.map(create, [f"key {number}"] * 8))
            assert sum(created.is_new for created in found) == 1
            assert len({created.timer.id for created in found}) == 1
            assert scheduled(world) == number + 1


def test_rejects_a_key_used_for_another_request(world: World) -> None:
    """A key used for a different request is refused, and the timer stays the same."""
    first = world.create()
    with pytest.raises(IdempotencyKeyReused, match="different request"):
        world.create(fingerprint="b")
    assert world.service.get(DEFAULT_TENANT, first.timer.id).fingerprint == "a"


def test_keys_belong_to_a_tenant(world: World) -> None:
    """The same key of another tenant creates another timer."""
    first, other = world.create(), world.create(tenant="acme", fingerprint="b")
    assert other.is_new
    assert other.timer.id != first.timer.id


def test_a_changed_timer_keeps_its_key(world: World) -> None:
    """A repeated request returns the timer even if it was changed."""
    first = world.create()
    world.service.change(DEFAULT_TENANT, first.timer.id, START + 5 * MINUTE)
    assert world.create().timer.deadline == START + 5 * MINUTE


def test_a_cancelled_timer_is_not_created_again(world: World) -> None:
    """A repeated request is refused: nothing will be sent. A different one is told so first."""
    first = world.create()
    world.service.cancel(DEFAULT_TENANT, first.timer.id)
    with pytest.raises(Conflict, match=first.timer.id):
        world.create()
    with pytest.raises(IdempotencyKeyReused):
        world.create(fingerprint="b")


@pytest.mark.parametrize("status", [Status.DELIVERED, Status.FAILED])
def test_a_finished_timer_is_returned(fakes: World, status: Status) -> None:
    """A repeated request returns a delivered or failed timer: it did what it was created for."""
    first = fakes.create()
    store: Any = fakes.store
    store.timers[first.timer.id] = replace(first.timer, status=status, version=2)
    assert fakes.create().timer.status is status


def test_a_timer_of_an_earlier_version_is_found(world: World) -> None:
    """A request matches the fingerprint that an earlier version stored for it."""
    first = world.create(fingerprint="old")
    second = world.create(fingerprint="new", former="old")
    assert (second.is_new, second.timer.id) == (False, first.timer.id)
    assert second.timer.fingerprint == "old"


def test_an_expired_timer_frees_its_key(world: World) -> None:
    """After the timer expired, deleted or not, its key creates a new one for any request."""
    first = world.create()
    world.service.cancel(DEFAULT_TENANT, first.timer.id)
    world.clock.now += RETENTION
    second = world.create(fingerprint="b")
    assert second.is_new
    assert second.timer.id == first.timer.id
    assert second.timer.status is Status.SCHEDULED


def test_a_refused_timer_stays_if_a_second_request_returned_it(fakes: World) -> None:
    """If scheduling is refused, a timer that a second request has returned is left to the sweep."""

    def refuse(timer: Timer) -> None:
        assert not fakes.create().is_new
        raise ScheduleRefused("The schedule may not be made.")

    fakes.scheduler.schedule = refuse
    created = fakes.create()
    assert created.is_new
    kept = fakes.service.get(DEFAULT_TENANT, created.timer.id)
    assert not kept.armed
    assert fakes.store.overdue(fakes.clock.now + timedelta(seconds=1), 10) == [kept]


def test_a_refused_timer_is_removed(fakes: World) -> None:
    """If scheduling is refused, the timer is removed, and its key can be used again."""
    fakes.scheduler.failure = ScheduleRefused("The schedule may not be made.")
    with pytest.raises(ScheduleRefused):
        fakes.create()
    fakes.scheduler.failure = None
    assert fakes.create(fingerprint="b").is_new


def test_a_request_that_races_a_removal_creates_the_timer(fakes: World) -> None:
    """A request that reads a timer just before its removal creates it again."""
    store: Any = fakes.store
    real_get = store.get
    taken: list[Timer] = []

    def get(tenant: str, timer_id: str) -> Timer | None:
        found: Timer | None = real_get(tenant, timer_id)
        if found is not None and not taken:
            taken.append(store.timers.pop(timer_id))
        return found

    fakes.create()
    store.get = get
    again = fakes.create()
    assert taken
    assert again.is_new


def test_gives_up_after_too_many_races(fakes: World) -> None:
    """After MAX_RACES tries the request raises Unavailable."""
    fakes.create()
    store: Any = fakes.store
    store.replace = lambda *_: False
    with pytest.raises(Unavailable):
        fakes.create()


def test_never_reuses_an_id_without_a_key(fakes: World) -> None:
    """Without a key an existing id raises Unavailable."""
    order = TimerSpec(webhook=Webhook(url="https://example.com/"), deadline=START)
    assert fakes.service.create(DEFAULT_TENANT, order).is_new
    with pytest.raises(Unavailable):
        fakes.service.create(DEFAULT_TENANT, order)


def test_raises_unavailable_if_the_store_is_down(fakes: World) -> None:
    """If the store is down, a request with a key raises Unavailable."""
    store: Any = fakes.store
    store.down = True
    with pytest.raises(Unavailable):
        fakes.create()


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_an_id_depends_on_tenant_and_key_only(one: str, other: str) -> None:
    """The id is a UUIDv8 that depends only on the tenant and the key."""
    id = keyed_id("acme", one)
    assert id == keyed_id("acme", one)
    assert (id == keyed_id("acme", other)) == (one == other)
    assert id != keyed_id("acm", f"e {one}")
    assert id != keyed_id("acme2", one)
    assert (id[14], id[19] in "89ab", len(id)) == ("8", True, 36)
