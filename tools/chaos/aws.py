"""Faults on the AWS side: calls fail before or after their effect, events are late or doubled.

In simulated time many invocations interleave, as on AWS. On moto the real adapters make their
calls one after another. Both are deterministic: the same seed reproduces every call.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, TypeVar
from unittest.mock import patch

from botocore.exceptions import ReadTimeoutError

from chalicelib.aws import handlers, timer_store
from chalicelib.core import representation
from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    FINAL,
    IdempotencyKey,
    Outcome,
    Timer,
    TimerSpec,
    Webhook,
    keyed_id,
)
from tests.support.aws import NAME, Account, account
from tests.support.cloud import Cloud
from tests.support.fakes import NO_CONTENT
from tools.chaos.ledger import Crash, Ledger, Received, Request, RequestKind, Run
from tools.simulation import VISIBILITY, Deployment, FaultRates, Killed, answered, client_error

T = TypeVar("T")

STORM_RATES = FaultRates(
    throttled=0.1, unanswered=0.02, deaths=0.01, duplicates=0.05, disorder=20.0
)

DELAYS = (5, 30, 300, 890, 901, 1200, 3600)
"""Longest delays to request, in seconds. They cover both tiers of the scheduler."""

MAX_CHANGES = 3
"""Changes that an owner makes to one timer, at most."""

FAULTS: tuple[Callable[[], BaseException], ...] = (
    lambda: client_error("ThrottlingException", 429, ""),
    lambda: ReadTimeoutError(endpoint_url="https://aws"),
    Killed,
)
"""Ways for a call to fail. A throttled call never has an effect."""

FAILING = 0.05
"""The share of moto calls that fail before their effect, and the share that fail after it."""

OUTCOMES = (Outcome(status=500), Outcome(error="timeout"), NO_CONTENT, NO_CONTENT)
"""Responses of the receivers."""

STEPS = 40
"""Steps of a run on moto before the faults stop."""


def simulated(seed: str, number: int = 150) -> Run:
    """Run timers that owners create, cancel and move within an hour, at high fault rates."""
    world = Deployment(seed, fault_rates=STORM_RATES)
    for _ in range(number):
        delay = world.sim.rng.choice(DELAYS) * world.sim.rng.random()
        world.create_at(world.sim.rng.uniform(0, 3600), delay, partial(_change, world, MAX_CHANGES))
    world.sim.run(6 * 3600)
    run = Run.of(world.ledger())
    run.violations += [f"in the dead-letter queue: {text}" for text in world.queue.dead]
    return run


def _change(world: Deployment, left: int, id: str) -> None:
    """Let the owner change a timer up to `left` more times, at random moments."""
    rng, service = world.sim.rng, world.service
    if not left or rng.random() < 0.5:
        return
    time = world.sim.time + rng.choice(DELAYS) * rng.random()
    at = world.sim.moment(time + rng.choice(DELAYS) * rng.random())
    changes: list[tuple[RequestKind, datetime | None, Callable[[], Timer]]] = [
        ("cancel", None, partial(service.cancel, DEFAULT_TENANT, id)),
        ("move", at, partial(service.change, DEFAULT_TENANT, id, at)),
        ("move", world.sim.moment(time), partial(service.fire_now, DEFAULT_TENANT, id)),
        ("read", None, partial(service.get, DEFAULT_TENANT, id)),
    ]
    kind, deadline, call = rng.choice(changes)
    world.ask_at(time, kind, id, deadline, call, lambda _: _change(world, left - 1, id))


class Storm(Cloud):
    """The deployed service on moto, with failing calls and late, doubled or reordered events."""

    def __init__(self, aws: Account, seed: str) -> None:
        super().__init__(aws)
        self.ledger = Ledger()
        self.calm = False
        self._rng = Random(seed)  # noqa: S311
        self.chance = self._rng.random
        self._specs: list[TimerSpec] = []
        self._answers: list[int] = []
        self.sender.during = self._answer
        aws.before = lambda _: self._fail(FAULTS)
        aws.after = lambda _: self._fail(FAULTS[1:])

    def happen(self) -> None:
        """Make one random request, let time pass, or sweep."""
        draw = self._rng.random()
        if draw < 0.25 or not self._specs:
            key = str(len(self._specs))
            self._specs.append(self._new_spec(key))
            self._create(self._specs[-1])
        elif draw < 0.3:
            self._create(self._rng.choice(self._specs))
        elif draw < 0.5:
            self._change(self._rng.choice(self._specs))
        elif draw < 0.9:
            self.turn(self._span())
        else:
            self._survive("", self.sweep)

    def settle(self) -> Run:
        """Stop all faults, let time pass until all timers are final, and check the promises."""
        self.calm = True
        for spec in self._specs:
            self._create(spec)
        for _ in range(30):
            self.turn(400)
            self.sweep()
            stored = [self.read(id) for id in self._stored()]
            if all(timer.status in FINAL for timer in stored):
                break
        self.ledger.ends = {
            timer.id: representation.represent(timer, self.clock.now) for timer in stored
        }
        self.ledger.ended = self.clock.now
        self.ledger.received = [
            Received(timer.id, at, timer.deadline, timer.attempt, answer)
            for (timer, at), answer in zip(self.sender.sent, self._answers, strict=True)
        ]
        return Run.of(self.ledger)

    def messages_due(self) -> list[str]:
        """Remove and return the due messages: shuffled, some doubled, some put back for later."""
        due = super().messages_due()
        due += [text for text in due if self._strikes(STORM_RATES.duplicates)]
        self._rng.shuffle(due)
        late = [text for text in due if self._strikes(STORM_RATES.duplicates)]
        for text in late:
            due.remove(text)
            self._come_again(text, self._span())
        return due

    def deliver(self, text: str) -> None:
        if not self._survive(
            handlers.decode_wakeup(text).id, lambda: super(Storm, self).deliver(text)
        ):
            self._come_again(text, VISIBILITY)

    def fire(self, text: str) -> None:
        # Lambda retries twice; after that, the sweep picks the timer up.
        for _ in range(3):
            if self._survive("", lambda: super(Storm, self).fire(text)):
                return

    def _come_again(self, text: str, seconds: float) -> None:
        self.messages().append((self.clock.now + timedelta(seconds=seconds), text))

    def _survive(self, id: str, invocation: Callable[[], object]) -> bool:
        """Invoke a function for a timer; return whether it finished."""
        try:
            invocation()
        except Unavailable:
            return False
        except Killed:
            self._record_crash(frozenset({id}))
            return False
        return True

    def _record_crash(self, ids: frozenset[str]) -> None:
        self.ledger.crashes.append(Crash(self.clock.now, self.clock.now, ids))

    def _new_spec(self, key: str) -> TimerSpec:
        webhook = Webhook(url="https://example.com/hook")
        return TimerSpec(
            webhook=webhook, deadline=self._deadline(), idempotency_key=IdempotencyKey(key, "")
        )

    def _deadline(self) -> datetime:
        return self.clock.now + timedelta(seconds=self._span())

    def _span(self) -> float:
        return self._rng.choice(DELAYS) * self._rng.random()

    def _create(self, spec: TimerSpec) -> None:
        def create() -> Timer:
            return self.service.create(DEFAULT_TENANT, spec).timer

        self._ask("create", _id(spec), spec.deadline, create)

    def _change(self, spec: TimerSpec) -> None:
        id, at = _id(spec), self._deadline()
        draw = self._rng.random()
        if draw < 0.4:
            self._ask("cancel", id, None, lambda: self.service.cancel(DEFAULT_TENANT, id))
        elif draw < 0.7:
            self._ask("move", id, at, lambda: self.service.change(DEFAULT_TENANT, id, at))
        else:
            now = self.clock.now
            self._ask("move", id, now, lambda: self.service.fire_now(DEFAULT_TENANT, id))

    def _ask(
        self, kind: RequestKind, id: str, deadline: datetime | None, call: Callable[[], Timer]
    ) -> None:
        now = self.clock.now
        request = Request(kind, id, now, now, None, deadline)
        try:
            request = answered(request, call)
        except Killed:
            self._record_crash(frozenset())
        self.ledger.requests.append(request)

    def _stored(self) -> list[str]:
        with self.aws.unobserved():
            return [item["id"]["S"] for item in self.aws.dynamodb.scan(TableName=NAME)["Items"]]

    def _strikes(self, share: float) -> bool:
        return not self.calm and self._rng.random() < share

    def _fail(self, faults: tuple[Callable[[], BaseException], ...]) -> None:
        if self._strikes(FAILING):
            raise self._rng.choice(faults)()  # noqa: RSE102  # the call creates the exception

    def _answer(self) -> None:
        self.sender.outcome = NO_CONTENT if self.calm else self._rng.choice(OUTCOMES)
        self._answers.append(self.sender.outcome.status or 0)
        if self._strikes(FAILING):
            raise Killed


class SequentialExecutor(Executor):
    """Runs each call at once: threads would draw random numbers in an unpredictable order."""

    def __init__(self, threads: int) -> None:
        pass

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        made: Future[T] = Future()
        try:
            made.set_result(call(*args, **kwargs))
        except BaseException as error:
            made.set_exception(error)
        return made


def _id(spec: TimerSpec) -> str:
    return keyed_id(DEFAULT_TENANT, spec.idempotency_key.key if spec.idempotency_key else "")


def emulated(seed: str) -> Run:
    """Run random steps on moto while calls fail before or after their effect."""
    # A sweep queries every shard; 32 shards would take most of the run.
    with (
        patch.object(timer_store, "DUE_SHARDS", 2),
        patch.object(timer_store, "ThreadPoolExecutor", SequentialExecutor),
        account() as aws,
    ):
        storm = Storm(aws, seed)
        for _ in range(STEPS):
            storm.happen()
        return storm.settle()
