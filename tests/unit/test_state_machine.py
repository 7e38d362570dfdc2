"""Hypothesis drives the service through random events, and checks the promises."""

from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from chalicelib.core.errors import Conflict, TimerNotFound, Unavailable
from chalicelib.core.retry import WORKER_LOST
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    FINAL,
    MAX_ATTEMPTS_KEPT,
    IdempotencyKey,
    Outcome,
    Status,
    Timer,
    TimerSpec,
    Wakeup,
    Webhook,
    keyed_id,
)
from chalicelib.service.worker import LEASE_MARGIN, SWEEP_GRACE
from tests.support.fakes import NO_CONTENT
from tests.unit.test_service import LEASE, World

SECONDS = st.integers(0, 400)
OUTCOMES = st.sampled_from([NO_CONTENT, Outcome(status=500), Outcome(error="timeout")])


class Killed(Exception):
    """The process died here."""


class Machine(RuleBasedStateMachine):
    """Wake-ups arrive in any order, twice, late, early, or not at all; workers die anywhere."""

    created = Bundle("created")
    wakeups = Bundle("wakeups")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.void_since: dict[str, int] = {}
        self.crashes: dict[str, int] = {}
        self.seen: dict[str, Timer] = {}

    @rule(target=created, seconds=SECONDS)
    def create(self, seconds: int) -> str:
        return self.world.create(seconds).id

    @rule(timer_id=created)
    def cancel(self, timer_id: str) -> None:
        if self._allowed(lambda: self.world.service.cancel(DEFAULT_TENANT, timer_id)):
            self.void_since[timer_id] = len(self.world.sender.sent)

    @rule(timer_id=created, seconds=SECONDS)
    def reschedule(self, timer_id: str, seconds: int) -> None:
        deadline = self.world.clock.now + timedelta(seconds=seconds)
        self._allowed(lambda: self.world.service.change(DEFAULT_TENANT, timer_id, deadline))

    @rule(timer_id=created)
    def edit(self, timer_id: str) -> None:
        before = self.world.store.timers[timer_id]
        url = f"https://example.com/{before.version}"
        self._allowed(lambda: self.world.service.change(DEFAULT_TENANT, timer_id, url=url))

    @rule(timer_id=created)
    def fire(self, timer_id: str) -> None:
        self._allowed(lambda: self.world.service.fire_now(DEFAULT_TENANT, timer_id))

    @rule(target=created, key=st.sampled_from("ab"), seconds=SECONDS)
    def create_once(self, key: str, seconds: int) -> str:
        deadline = self.world.clock.now + timedelta(seconds=seconds)
        webhook = Webhook(url="https://example.com/")
        order = TimerSpec(
            webhook=webhook, deadline=deadline, idempotency_key=IdempotencyKey(key, "same")
        )
        id = keyed_id(DEFAULT_TENANT, key)
        try:
            found = self.world.service.create(DEFAULT_TENANT, order)
        except Conflict:
            assert self.world.store.timers[id].status is Status.CANCELLED
        else:
            assert found.is_new == (id not in self.seen)
        return id

    @rule(timer_id=created)
    def retry(self, timer_id: str) -> None:
        self._allowed(lambda: self.world.service.retry(DEFAULT_TENANT, timer_id))

    @rule(target=wakeups, index=st.integers(0, 1000))
    def alarm_goes_off(self, index: int) -> Wakeup | None:
        wakeups = self.world.scheduler.wakeups
        return wakeups[index % len(wakeups)] if wakeups else None

    @rule(wakeup=wakeups, outcome=OUTCOMES)
    def deliver(self, wakeup: Wakeup | None, outcome: Outcome) -> None:
        if wakeup is not None:
            self.world.sender.outcome = outcome
            self.world.wakeup(wakeup)

    @rule(wakeup=consumes(wakeups))
    def worker_dies_while_sending(self, wakeup: Wakeup | None) -> None:
        if wakeup is None:
            return

        def die() -> None:
            raise Killed

        self.world.sender.during = die
        try:
            self.world.wakeup(wakeup)
        except Killed:
            self.crashes[wakeup.id] = self.crashes.get(wakeup.id, 0) + 1
        self.world.sender.during = lambda: None

    @rule(wakeup=wakeups, seconds=st.integers(0, 1000))
    def worker_stalls_while_sending(self, wakeup: Wakeup | None, seconds: int) -> None:
        if wakeup is None:
            return
        started = self.world.clock.now

        def stall() -> None:
            self.world.sender.during = lambda: None
            self.world.clock.forward(seconds)
            self.sweep()

        self.world.sender.during = stall
        self.world.wakeup(wakeup)
        self.world.sender.during = lambda: None
        if self.world.clock.now > started + LEASE + LEASE_MARGIN:
            self.crashes[wakeup.id] = self.crashes.get(wakeup.id, 0) + 1

    @rule(seconds=st.integers(1, 500))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.forward(seconds)

    @rule()
    def sweep(self) -> None:
        self.world.sweep()

    @rule(seconds=SECONDS)
    def alarms_can_not_be_set(self, seconds: int) -> None:
        self.world.scheduler.failure = Unavailable("throttled")
        self.world.create(seconds)
        self.world.scheduler.failure = None

    @invariant()
    def nothing_was_early(self) -> None:
        assert all(at >= timer.due_at for timer, at in self.world.sender.sent)

    @invariant()
    def nothing_was_sent_after_a_cancel(self) -> None:
        for timer_id, sent_before in self.void_since.items():
            later = self.world.sender.sent[sent_before:]
            assert timer_id not in [timer.id for timer, _ in later]

    @invariant()
    def numbers_only_grow(self) -> None:
        for timer_id, timer in self.world.store.timers.items():
            before = self.seen.get(timer_id, timer)
            assert timer.generation >= before.generation
            assert timer.attempt >= before.attempt
            assert timer.version >= before.version
            assert timer == before or timer.version > before.version
            self.seen[timer_id] = timer

    @invariant()
    def no_second_success_without_a_crash(self) -> None:
        for timer in self.world.store.timers.values():
            good = [a for a in timer.attempts if a.outcome.succeeded]
            assert len(good) <= 1
            assert not good or timer.status is Status.DELIVERED

    @invariant()
    def nothing_is_sent_twice_without_a_crash(self) -> None:
        for timer_id, timer in self.world.store.timers.items():
            sent = sum(sent.id == timer_id for sent, _ in self.world.sender.sent)
            recorded = sum(a.outcome != WORKER_LOST for a in timer.attempts)
            under_way = timer.status is Status.DELIVERING
            forgot = timer.attempt > MAX_ATTEMPTS_KEPT
            assert forgot or sent <= recorded + self.crashes.get(timer_id, 0) + under_way

    def teardown(self) -> None:
        """Once all wake-ups have arrived and the sweep has run, every timer is final."""
        self.world.sender.outcome = NO_CONTENT
        for _ in range(20):
            self.world.clock.forward((LEASE + LEASE_MARGIN + SWEEP_GRACE).total_seconds() * 2)
            self.world.sweep()
            wakeups, self.world.scheduler.wakeups = self.world.scheduler.wakeups, []
            for wakeup in wakeups:
                self.world.wakeup(wakeup)
        for timer in self.world.store.timers.values():
            assert timer.status in FINAL
        self.nothing_was_early()
        self.nothing_was_sent_after_a_cancel()

    @staticmethod
    def _allowed(change: object) -> bool:
        try:
            change()  # type: ignore[operator]
        except (Conflict, TimerNotFound):
            return False
        return True


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
