"""Commands and worker over the same store and scheduler, on one clock."""

from collections.abc import Callable, Sequence
from datetime import datetime
from random import random
from typing import Any

from chalicelib.core.changes import Change, WebhookChange
from chalicelib.core.pagination import Cursor, ListQuery, Page, TimerFilter
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import Timer, TimerSpec, Wakeup
from chalicelib.runtime import Dependencies
from chalicelib.service.commands import Commands, Created
from chalicelib.service.concurrency import MapConcurrently, one_by_one
from chalicelib.service.ports import Scheduler, Sender, Store
from chalicelib.service.transitions import Transitions
from chalicelib.service.worker import Worker

TARGETS = Targets.parse(LOOPBACK_TARGETS)


class Service:
    """Every use case at the time that `clock` returns."""

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        sender: Sender,
        *,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        pause: Callable[[float], None],
        chance: Callable[[], float] = random,
        concurrently: MapConcurrently = one_by_one,
    ) -> None:
        self.now = clock
        self.store = store
        self.scheduler = scheduler
        self.transitions = Transitions(store, scheduler)
        self.commands = Commands(
            store, scheduler, targets=TARGETS, new_id=new_id, concurrently=concurrently
        )
        self.worker = Worker(
            store,
            scheduler,
            sender,
            clock=clock,
            pause=pause,
            chance=chance,
            concurrently=concurrently,
        )

    def dependencies(self, **others: Any) -> Dependencies:
        """Return the dependencies for app.py."""
        return Dependencies(commands=self.commands, worker=self.worker, clock=self.now, **others)

    def create(self, tenant: str, spec: TimerSpec) -> Created:
        return self.commands.create(tenant, spec, self.now())

    def create_all(
        self, tenant: str, specs: Sequence[TimerSpec | Exception]
    ) -> list[Created | Exception]:
        return self.commands.create_all(tenant, specs, self.now())

    def get(self, tenant: str, timer_id: str) -> Timer:
        return self.commands.get(tenant, timer_id, self.now())

    def page(self, tenant: str, filter: TimerFilter, after: Cursor | None, limit: int) -> Page:
        return self.commands.list_timers(tenant, ListQuery(filter, after, limit), self.now())

    def cancel(self, tenant: str, timer_id: str) -> Timer:
        return self.commands.cancel(tenant, timer_id, self.now())

    def cancel_all(self, tenant: str, timer_ids: Sequence[str]) -> list[Timer | Exception]:
        return self.commands.cancel_all(tenant, timer_ids, self.now())

    def change(
        self, tenant: str, timer_id: str, deadline: datetime | None = None, **fields: Any
    ) -> Timer:
        change = Change(webhook=WebhookChange(fields=fields), deadline=deadline)
        return self.commands.change(tenant, timer_id, change, self.now())

    def fire_now(self, tenant: str, timer_id: str) -> Timer:
        return self.commands.fire_now(tenant, timer_id, self.now())

    def retry(self, tenant: str, timer_id: str) -> Timer:
        return self.commands.retry(tenant, timer_id, self.now())

    def retry_all(self, tenant: str, timer_ids: Sequence[str]) -> list[Timer | Exception]:
        return self.commands.retry_all(tenant, timer_ids, self.now())

    def check(self) -> None:
        self.commands.check()

    def fire(self, wakeup: Wakeup) -> None:
        self.worker.fire(wakeup)

    def deliver(self, wakeup: Wakeup, ends_at: datetime) -> None:
        self.worker.deliver(wakeup, ends_at)

    def sweep(self, until: datetime) -> int:
        return self.worker.sweep(until)

    def reclaim(self, timer: Timer) -> bool:
        return self.worker.reclaim(timer)
