"""Idempotency-Key: one timer for each key of a tenant, however many requests there are."""

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

from chalicelib.aws.timer_store import DynamoTimerStore
from chalicelib.core.errors import KeyReused, ScheduleRefused, Unavailable
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
from chalicelib.service.service import Created, Service, Store
from standalone.sqlite import SqliteTimerStore
from tests.support.aws import NAME, account
from tests.support.cloud import scheduler_of
from tests.support.fakes import START, Clock, FakeScheduler, FakeSender, FakeStore

MINUTE = timedelta(minutes=1)


class World:
    """A service on some store and alarm."""

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
        """Return a moment that no other call gets."""
        self.clock.now += timedelta(microseconds=1)
        return self.clock.now

    def create(
        self, key: str = "k", fingerprint: str = "a", tenant: str = DEFAULT_TENANT
    ) -> Created:
        webhook = Webhook(url="https://example.com/")
        once = IdempotencyKey(key, fingerprint)
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


def scheduler(world: World) -> int:
    """Return how many alarms were set: on AWS, how many schedules there are."""
    if isinstance(world.scheduler, FakeScheduler):
        return len(world.scheduler.wakeups)
    return len(world.scheduler.aws.schedules())


def test_the_same_request_gives_the_same_timer(world: World) -> None:
    """The second one finds what the first one made, as it is now, and changes nothing for it."""
    first, second = world.create(), world.create()
    assert (first.is_new, second.is_new) == (True, False)
    assert second.timer.id == first.timer.id
    assert second.timer.deadline == first.timer.deadline
    assert scheduler(world) == 1
    wakeup = first.timer.wakeup()
    assert world.store.claim(wakeup, START + MINUTE, START + 2 * MINUTE) is not None
    assert world.create().timer.status is Status.DELIVERING


def test_racing_requests_give_one_timer(world: World) -> None:
    """Of 8 at the same moment one creates it and sets its alarm, and all are told of the same."""
    gate = Barrier(8)

    def create(key: str) -> Created:
        gate.wait()
        return world.create(key)

    with ThreadPoolExecutor(8) as clients:
        for number in range(5):
            found = list(clients.map(create, [f"key {number}"] * 8))
            assert sum(created.is_new for created in found) == 1
            assert len({created.timer.id for created in found}) == 1
            assert scheduler(world) == number + 1


def test_another_request_under_the_key_is_refused(world: World) -> None:
    """The key stands for what it was first used for; the timer stays as it is."""
    first = world.create()
    with pytest.raises(KeyReused, match="different request"):
        world.create(fingerprint="b")
    assert world.service.get(DEFAULT_TENANT, first.timer.id).fingerprint == "a"


def test_keys_are_the_tenants_own(world: World) -> None:
    """Another tenant's use of the same key is another timer, and nobody hears of it."""
    first, other = world.create(), world.create(tenant="acme", fingerprint="b")
    assert other.is_new
    assert other.timer.id != first.timer.id


def test_a_changed_timer_is_still_the_keys(world: World) -> None:
    """What became of the timer since does not matter: changed or cancelled, it is this one."""
    first = world.create()
    world.service.change(DEFAULT_TENANT, first.timer.id, START + 5 * MINUTE)
    assert world.create().timer.deadline == START + 5 * MINUTE
    world.service.cancel(DEFAULT_TENANT, first.timer.id)
    assert world.create().timer.status is Status.CANCELLED


def test_a_forgotten_timer_frees_its_key(world: World) -> None:
    """Once it is expired, swept away or not, the key makes a new one, also for something else."""
    first = world.create()
    world.service.cancel(DEFAULT_TENANT, first.timer.id)
    world.clock.now += RETENTION
    second = world.create(fingerprint="b")
    assert second.is_new
    assert second.timer.id == first.timer.id
    assert second.timer.status is Status.SCHEDULED


def test_what_was_promised_twice_is_not_taken_back(fakes: World) -> None:
    """An alarm that is refused takes the creation back, but not from under a second request that
    was told of it meanwhile: then it stays, for the sweep to arm."""

    def refuse(timer: Timer) -> None:
        assert not fakes.create().is_new
        raise ScheduleRefused("The schedule may not be made.")

    fakes.scheduler.schedule = refuse
    created = fakes.create()
    assert created.is_new
    kept = fakes.service.get(DEFAULT_TENANT, created.timer.id)
    assert not kept.armed
    assert fakes.store.overdue(fakes.clock.now + timedelta(seconds=1), 10) == [kept]


def test_what_was_promised_once_is_taken_back(fakes: World) -> None:
    """Nobody else knows of it: it is gone, and the key can be used again."""
    fakes.scheduler.failure = ScheduleRefused("The schedule may not be made.")
    with pytest.raises(ScheduleRefused):
        fakes.create()
    fakes.scheduler.failure = None
    assert fakes.create(fingerprint="b").is_new


def test_a_request_beside_one_that_is_taken_back(fakes: World) -> None:
    """Who reads the timer just before it is taken back is not told of it, but makes it anew."""
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


def test_a_key_that_never_settles(fakes: World) -> None:
    """After some tries the request is a 503, and may be sent again."""
    fakes.create()
    store: Any = fakes.store
    store.replace = lambda *_: False
    with pytest.raises(Unavailable, match="too many requests"):
        fakes.create()


def test_an_id_that_is_taken(fakes: World) -> None:
    """Without a key an id that exists is never handed out a second time."""
    order = TimerSpec(webhook=Webhook(url="https://example.com/"), deadline=START)
    assert fakes.service.create(DEFAULT_TENANT, order).is_new
    with pytest.raises(Unavailable, match="id was taken"):
        fakes.service.create(DEFAULT_TENANT, order)


def test_a_store_that_is_down(fakes: World) -> None:
    """Nothing is decided then."""
    store: Any = fakes.store
    store.down = True
    with pytest.raises(Unavailable):
        fakes.create()


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_ids_of_keys(one: str, other: str) -> None:
    """The id is a UUIDv8 that depends on key and tenant alone."""
    id = keyed_id("acme", one)
    assert id == keyed_id("acme", one)
    assert (id == keyed_id("acme", other)) == (one == other)
    assert id != keyed_id("acm", f"e {one}")
    assert id != keyed_id("acme2", one)
    assert (id[14], id[19] in "89ab", len(id)) == ("8", True, 36)
