"""Fakes of the Protocols in chalicelib/service/ports.py, smaller than the real adapters."""

import heapq
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from chalicelib.core import signing
from chalicelib.core.api_keys import ApiKey
from chalicelib.core.errors import Unavailable
from chalicelib.core.pagination import Cursor, Page, TimerFilter, cursor_of
from chalicelib.core.timer import DEFAULT_TENANT, Outcome, Timer, TimerSpec, Wakeup, Webhook
from tests.support.service import Service

START = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)

NO_CONTENT = Outcome(status=204, duration=0.01)


class OnFakes:
    """A service on fakes; its timers are named `timer-0`, `timer-1`, … in order."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = FakeStore()
        self.scheduler = FakeScheduler()
        self.sender = FakeSender()
        ids = iter(f"timer-{number}" for number in range(1_000_000))
        self.service = Service(
            self.store,
            self.scheduler,
            self.sender,
            clock=self.clock,
            new_id=lambda: next(ids),
            pause=self.pause,
            chance=lambda: 0.5,
        )

    def pause(self, seconds: float) -> None:
        """Return at once."""


def created(
    service: Service, webhook: Webhook, seconds: float = 0, tenant: str = DEFAULT_TENANT
) -> Timer:
    """Return a new timer that is due in so many seconds."""
    deadline = service.now() + timedelta(seconds=seconds)
    return service.create(tenant, TimerSpec(webhook=webhook, deadline=deadline)).timer


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


class FakeStore:
    """A Store in a dict. While it is `down`, every call fails before it does anything."""

    def __init__(self) -> None:
        self.timers: dict[str, Timer] = {}
        self.down = False

    def add(self, timer: Timer) -> bool:
        self.check()
        return self.timers.setdefault(timer.id, timer) is timer

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        self.check()
        timer = self.timers.get(timer_id)
        return timer if timer is not None and timer.tenant == tenant else None

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Timer | None:
        timer = self.get(wakeup.tenant, wakeup.id)
        claimed = timer.claim(wakeup, now, lease_until) if timer else None
        return claimed if claimed is not None and self.replace(claimed) else None

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        stored = self.get(timer.tenant, timer.id)
        if stored is None or stored.version != timer.version - 1:
            return False
        self.timers[timer.id] = timer
        if adding is not None:
            self.timers.setdefault(adding.id, adding)
        return True

    def replace_all(self, changed: Sequence[Timer]) -> list[Timer]:
        return [timer for timer in changed if self.replace(timer)]

    def remove(self, timer: Timer) -> bool:
        stored = self.get(timer.tenant, timer.id)
        if stored is not None and stored.version == timer.version:
            del self.timers[timer.id]
        return timer.id not in self.timers

    def overdue(self, before: datetime, limit: int) -> list[Timer]:
        self.check()
        waiting = [(t.wake_at, t.id, t) for t in self.timers.values() if t.wake_at is not None]
        overdue = [entry for entry in waiting if entry[0] < before]
        return [timer for _, _, timer in heapq.nsmallest(limit, overdue)]

    def page(self, tenant: str, filter: TimerFilter, after: Cursor | None, limit: int) -> Page:
        self.check()
        owned = [timer for timer in list(self.timers.values()) if timer.tenant == tenant]
        matching = [
            timer
            for timer in sorted(owned, key=cursor_of, reverse=True)
            if filter.matches(timer) and (after is None or cursor_of(timer) < after)
        ]
        has_more = len(matching) > limit
        return Page(matching[:limit], cursor_of(matching[limit - 1]) if has_more else None)

    def check(self) -> None:
        if self.down:
            raise Unavailable("The fake store is down.")


class FakeApiKeys:
    """API keys in a dict."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}

    def add(self, key: ApiKey) -> None:
        self.keys[key.id] = key

    def get(self, key_id: str) -> ApiKey | None:
        return self.keys.get(key_id)

    def remove(self, key_id: str) -> bool:
        return self.keys.pop(key_id, None) is not None

    def all(self) -> list[ApiKey]:
        return sorted(self.keys.values(), key=lambda key: key.created_at)


class FakeSecrets:
    """Signing secrets in a dict."""

    def __init__(self) -> None:
        self.secrets: dict[str, list[str]] = {}

    def of(self, tenant: str) -> list[str]:
        return list(self.secrets.get(tenant, ()))

    def add(self, tenant: str, secret: str) -> None:
        self.secrets[tenant] = signing.with_secret(self.of(tenant), secret)

    def retire(self, tenant: str, secret: str) -> None:
        self.secrets[tenant] = signing.without_secret(self.of(tenant), secret)


class FakeScheduler:
    """A Scheduler that records wake-ups; the test delivers them."""

    def __init__(self) -> None:
        self.wakeups: list[Wakeup] = []
        self.unscheduled: list[Wakeup] = []
        self.failure: Unavailable | None = None
        self.behind = False

    def schedule(self, timer: Timer) -> None:
        self.check()
        self.wakeups.append(timer.wakeup())

    def unschedule(self, timer: Timer) -> None:
        self.check()
        self.unscheduled.append(timer.wakeup())

    def requeue(self, wakeups: Sequence[Wakeup]) -> None:
        self.check()
        self.wakeups.extend(wakeups)

    def is_behind(self) -> bool:
        return self.behind

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure


class FakeSender:
    """A Sender that records timers and returns `outcome`; `during` runs during the POST."""

    def __init__(self) -> None:
        self.sent: list[tuple[Timer, datetime]] = []
        self.outcome = NO_CONTENT
        self.during: Callable[[], object] = lambda: None

    def send(self, timer: Timer, at: datetime) -> Outcome:
        self.sent.append((timer, at))
        self.during()
        return self.outcome
