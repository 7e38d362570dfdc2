"""The deployed service in simulated time: the real service and scheduler on fake AWS clients.

The fake clients behave as AWS documents, at its worst. EventBridge Scheduler fires at any time in
its minute, sometimes twice, and no faster than its quota. SQS delays messages by whole seconds and
delivers some twice. Lambda's poller starts with 5 concurrent batches and adds 300 a minute, and a
batch lasts until its slowest POST ends. Functions start cold, and their errors are retried.

Each invocation is a greenlet that sleeps in simulated time, so invocations interleave as on AWS.
`make simulate` runs it at full size and prints the lateness of each scenario.
"""

import heapq
import logging
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, TypeVar

from botocore.exceptions import ClientError, ReadTimeoutError
from greenlet import getcurrent, greenlet

from chalicelib.aws import handlers
from chalicelib.aws.queue import MessageQueue
from chalicelib.aws.scheduler import Addresses, AwsScheduler
from chalicelib.core import representation
from chalicelib.core.errors import Conflict, TimerNotFound, Unavailable
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    IdempotencyKey,
    Outcome,
    Timer,
    TimerSpec,
    Wakeup,
    Webhook,
    keyed_id,
    new_timer,
    timer_id,
)
from tests.support.cloud import Context, Record, moment
from tests.support.fakes import NO_CONTENT, START, FakeStore
from tests.support.service import Service
from tools.chaos.ledger import Crash, Ledger, Received, Request, RequestKind

T = TypeVar("T")
R = TypeVar("R")

WEBHOOK = Webhook(url="https://example.com/x")

PRECISION = 60.0
"""Seconds within which EventBridge Scheduler fires."""

INVOCATIONS = 1000
"""Schedules that it fires a second, at most."""

POLLERS, RAMP, MOST_POLLERS = 5, 5.0, 1000
"""Concurrent batches of Lambda's poller: at the start, added a second, and at most."""

BATCH = 10
VISIBILITY = 360.0
RECEIVES = 5
FUNCTION_TIMEOUT = 60.0

TRIES = 3
"""Attempts at a throttled call."""

COLD = (0.4, 1.2)
"""Seconds that a cold start takes, from least to most."""

CALL = (0.003, 0.012)
"""Seconds that a call to DynamoDB, SQS or EventBridge Scheduler takes."""

POST = (0.02, 0.3)
"""Seconds that a receiver takes. One in a hundred takes ten times as long."""


@dataclass(frozen=True)
class FaultRates:
    """The share of calls and events that go wrong, from 0 to 1."""

    throttled: float = 0.03
    """Calls that are rejected before they have any effect."""
    unanswered: float = 0.0
    """Calls that take effect but never return."""
    deaths: float = 0.0
    """Calls and POSTs that kill their process, before or after the effect."""
    duplicates: float = 0.002
    """Messages and schedules that arrive twice."""
    disorder: float = 0.05
    """Seconds by which a message may be overtaken by a later one."""


class Killed(BaseException):
    """The process of this invocation died."""


class Process:
    """State shared by the greenlets of one invocation. All of them die together."""

    def __init__(self) -> None:
        self.alive = True
        self.sent: set[str] = set()
        """Ids of the timers whose webhooks it has sent."""


class Simulation:
    """Simulated time, and greenlets that sleep in it."""

    def __init__(self, seed: int | str, fault_rates: FaultRates) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.fault_rates = fault_rates
        self.time = 0.0
        self.crashes: list[Crash] = []
        self._hub = getcurrent()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._processes: dict[greenlet, Process] = {}

    def clock(self) -> datetime:
        return self.moment(self.time)

    def moment(self, time: float) -> datetime:
        return START + timedelta(seconds=time)

    def seconds(self, at: datetime) -> float:
        return (at - START).total_seconds()

    def at(self, time: float, do: Callable[[], object], process: Process | None = None) -> None:
        """Run `do` in a greenlet at that time, in a new process if none is given."""

        def run() -> None:
            self._processes[getcurrent()] = process or Process()
            try:
                do()
            except Killed:
                pass
            finally:
                del self._processes[getcurrent()]

        self._wake(max(time, self.time), greenlet(run, self._hub))

    def sleep(self, seconds: float) -> None:
        self._wake(self.time + max(0.0, seconds), getcurrent())
        self._wait()

    @property
    def process(self) -> Process:
        """The process of the current greenlet."""
        return self._processes[getcurrent()]

    def may_die(self) -> None:
        """Randomly kill the current process with all its greenlets."""
        if self.rng.random() < self.fault_rates.deaths:
            self.process.alive = False
            # Every webhook that it sent may be sent again.
            self.crashes.append(Crash(self.clock(), self.clock(), frozenset(self.process.sent)))
            raise Killed

    def _wake(self, time: float, sleeper: greenlet) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), sleeper.switch))

    def _wait(self) -> None:
        self._hub.switch()
        if not self.process.alive:
            raise Killed

    def take(self, span: tuple[float, float]) -> None:
        self.sleep(self.rng.uniform(*span))

    def call(self, operation: str) -> None:
        """Call AWS with the retries that bootstrap.py sets; raise if all are throttled."""
        self.may_die()
        for tries in range(TRIES):
            self.take(CALL)
            if self.rng.random() >= self.fault_rates.throttled:
                return
            self.sleep(self.rng.uniform(0, 2**tries))
        raise client_error("ThrottlingException", 429, operation)

    def answer(self) -> None:
        """Return from a call that took effect, unless the process dies or the response is lost."""
        self.may_die()
        if self.rng.random() < self.fault_rates.unanswered:
            raise ReadTimeoutError(endpoint_url="https://aws")

    def concurrently(self, call: Callable[[T], R], items: Sequence[T], /) -> list[R | Exception]:
        """Call for each item at the same simulated time; see `MapConcurrently`."""
        results: dict[int, R | Exception] = {}
        over: list[int] = []
        parent = getcurrent()

        def run(number: int) -> None:
            try:
                results[number] = call(items[number])
            except Exception as error:
                results[number] = error
            finally:
                over.append(number)
                if len(over) == len(items):
                    self._wake(self.time, parent)

        process = self.process
        for number in range(len(items)):
            self.at(self.time, partial(run, number), process)
        if items:
            self._wait()
        return [results[number] for number in range(len(items))]

    def run(self, until: float) -> None:
        """Run all events up to that time."""
        while self._events and self._events[0][0] <= until:
            self.time, _, resume = heapq.heappop(self._events)
            resume()
        self.time = until


@dataclass
class Message:
    """One message in the queue."""

    body: str
    visible_at: float
    handle: str
    receives: int = 0
    deleted: bool = False


class Queue:
    """SQS and the poller that invokes `deliver`."""

    def __init__(
        self,
        simulation: Simulation,
        deliver: Callable[[Sequence[tuple[str, str]]], None],
        rate: float | None,
    ) -> None:
        self._sim = simulation
        self._deliver = deliver
        self._rate = rate
        self._next_slot = 0.0
        self._visible: deque[Message] = deque()
        self._messages: dict[str, Message] = {}
        self._handles = count()
        self._running = 0
        self._pollers = float(POLLERS)
        self._looked_at = 0.0
        self._poll_is_set = False
        self._warm = 0
        self.sent = 0
        self.dead: list[str] = []
        self._depth = (0.0, 0)
        self.meta = self
        self.endpoint_url = "https://sqs"

    def send_message_batch(self, **request: Any) -> dict[str, Any]:
        self._sim.call("SendMessageBatch")
        assert 0 < len(request["Entries"]) <= 10
        for entry in request["Entries"]:
            delay = entry["DelaySeconds"]
            assert isinstance(delay, int)
            assert 0 <= delay <= 900
            self.sent += 1
            copies = 1 + (self._sim.rng.random() < self._sim.fault_rates.duplicates)
            for _ in range(copies):
                message = Message(entry["MessageBody"], 0, str(next(self._handles)))
                late = self._sim.rng.uniform(0, self._sim.fault_rates.disorder)
                self._show(message, delay + late)
        self._sim.answer()
        return {}

    def delete_message_batch(self, **request: Any) -> None:
        self._sim.call("DeleteMessageBatch")
        for entry in request["Entries"]:
            self._messages.pop(entry["ReceiptHandle"], Message("", 0, "")).deleted = True
        self._sim.answer()

    def get_queue_attributes(self, **_: Any) -> Any:
        self._sim.call("GetQueueAttributes")
        if self._sim.time - self._depth[0] > 30:  # the figure is approximate and lags behind
            self._depth = self._sim.time, len(self._visible)
        return {"Attributes": {"ApproximateNumberOfMessages": str(self._depth[1])}}

    def _show(self, message: Message, delay: float) -> None:
        def show() -> None:
            if not message.deleted:
                self._visible.append(message)
                self._poll()

        self._sim.at(self._sim.time + delay, show)

    def _poll(self) -> None:
        elapsed = self._sim.time - self._looked_at
        self._looked_at = self._sim.time
        busy = self._running >= int(self._pollers)
        grown = self._pollers + RAMP * elapsed if busy else max(POLLERS, self._pollers - elapsed)
        self._pollers = min(MOST_POLLERS, grown)
        while self._visible and self._running < int(self._pollers):
            if self._rate and self._next_slot > self._sim.time:
                self._poll_at(self._next_slot)
                return
            batch = [self._visible.popleft() for _ in range(min(BATCH, len(self._visible)))]
            if self._rate:
                self._next_slot = max(self._next_slot, self._sim.time) + len(batch) / self._rate
            self._running += 1
            self._sim.at(self._sim.time, lambda batch=batch: self._invoke(batch))  # type: ignore[misc]
        if self._visible:
            self._poll_at(self._sim.time + 0.1)

    def _poll_at(self, time: float) -> None:
        def poll() -> None:
            self._poll_is_set = False
            self._poll()

        if not self._poll_is_set:
            self._poll_is_set = True
            self._sim.at(time, poll)

    def _invoke(self, batch: Sequence[Message]) -> None:
        self._sim.sleep(self._sim.rng.uniform(0.005, 0.03))
        if self._running > self._warm:
            self._warm = self._running
            self._sim.take(COLD)
        for message in batch:
            message.receives += 1
            self._messages[message.handle] = message
        try:
            self._deliver([(message.body, message.handle) for message in batch])
        except (Exception, Killed):
            for message in batch:
                if not message.deleted and message.receives < RECEIVES:
                    self._show(message, VISIBILITY)
                elif not message.deleted:
                    self.dead.append(message.body)
        finally:
            self._running -= 1
        self._poll()


class Scheduler:
    """EventBridge Scheduler, which invokes `fire` asynchronously."""

    def __init__(self, simulation: Simulation, fire: Callable[[str], None]) -> None:
        self._sim = simulation
        self._fire = fire
        self._schedules: dict[str, str] = {}
        self._next_slot = 0.0
        self.needless = 0
        """Schedules that fired twice or after their deletion."""

    def create_schedule(self, **request: Any) -> None:
        self._sim.call("CreateSchedule")
        at = self._sim.seconds(moment(request["ScheduleExpression"]))
        assert at >= self._sim.time + 60
        name = request["Name"]
        if name in self._schedules:
            raise client_error("ConflictException", 409, "CreateSchedule")
        self._schedules[name] = request["Target"]["Input"]
        text = self._schedules[name]
        for _ in range(1 + (self._sim.rng.random() < self._sim.fault_rates.duplicates)):
            when = at + self._sim.rng.uniform(-0.5, PRECISION)
            self._sim.at(when, lambda: self._fire_now(name, text))
        self._sim.answer()

    def delete_schedule(self, **request: Any) -> None:
        self._sim.call("DeleteSchedule")
        if self._schedules.pop(request["Name"], None) is None:
            raise client_error("ResourceNotFoundException", 404, "DeleteSchedule")
        self._sim.answer()

    def names(self) -> list[str]:
        return list(self._schedules)

    def _fire_now(self, name: str, text: str) -> None:
        if self._schedules.pop(name, None) is None:
            # A schedule may fire again, or after its deletion.
            if self._sim.rng.random() < 0.5:
                return
            self.needless += 1
        self._next_slot = max(self._next_slot, self._sim.time) + 1 / INVOCATIONS
        self._sim.sleep(self._next_slot - self._sim.time)
        self._invoke(text, 0)

    def _invoke(self, text: str, retries: int) -> None:
        self._sim.take(COLD if self._sim.rng.random() < 0.1 else CALL)
        try:
            self._fire(text)
        except (Exception, Killed):
            if retries < 2:
                wait = 60.0 * (retries + 1)
                self._sim.at(self._sim.time + wait, lambda: self._invoke(text, retries + 1))


class SlowStore(FakeStore):
    """The fake store with latency: each call waits first, then takes effect in one step."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._sim = simulation

    def check(self) -> None:
        try:
            self._sim.call("PutItem")
        except ClientError as error:
            raise Unavailable("The simulated store is throttled.") from error

    def add(self, timer: Timer) -> bool:
        return self._answered(super().add(timer))

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        return self._answered(super().get(tenant, timer_id))

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        self.check()
        return self._answered(self._replace_now(timer))

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Timer | None:
        self.check()
        stored = self.timers.get(wakeup.id)
        claimed = stored.claim(wakeup, now, lease_until) if stored else None
        got = claimed is not None and self._replace_now(claimed)
        return self._answered(claimed if got else None)

    def replace_all(self, changed: Sequence[Timer]) -> list[Timer]:
        self.check()
        return self._answered([timer for timer in changed if self._replace_now(timer)])

    def remove(self, timer: Timer) -> bool:
        self.check()
        stored = self.timers.get(timer.id)
        if stored is not None and stored.version == timer.version:
            del self.timers[timer.id]
        return self._answered(timer.id not in self.timers)

    def _answered(self, result: T) -> T:
        try:
            self._sim.answer()
        except ReadTimeoutError as error:
            raise Unavailable("The simulated store does not respond.") from error
        return result

    def _replace_now(self, timer: Timer) -> bool:
        stored = self.timers.get(timer.id)
        if stored == timer:  # an earlier attempt was written but its response was lost
            return True
        if stored is None or stored.version != timer.version - 1:
            return False
        self.timers[timer.id] = timer
        return True


@dataclass
class Deployment:
    """A simulated stage: the service, its functions, and the webhooks sent."""

    seed: int | str = 1
    rate: float | None = None
    """Messages a second that `deliver` gets, at most; None is unlimited."""
    fault_rates: FaultRates = FaultRates()
    sent: list[tuple[Timer, datetime]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sim = Simulation(self.seed, self.fault_rates)
        self.store = SlowStore(self.sim)
        self.queue = Queue(self.sim, self._deliver, self.rate)
        self.scheduler = Scheduler(self.sim, self._fire)
        sqs: Any = self.queue
        eventbridge: Any = self.scheduler
        queue = MessageQueue(lambda: sqs, "123456789012/timers-sim", self.sim.clock)
        scheduler = AwsScheduler(
            lambda: eventbridge, queue, ADDRESSES, self.sim.clock, self.sim.concurrently
        )
        self._keys = count(1)
        self.service = Service(
            self.store,
            scheduler,
            self,
            clock=self.sim.clock,
            new_id=lambda: "",  # unused: each timer has an idempotency key
            pause=self.sim.sleep,
            concurrently=self.sim.concurrently,
        )
        self._dependencies = self.service.dependencies(queue=queue)
        self.sim.at(30.0, self._sweep)

    def create_at(
        self, time: float, delay: float, then: Callable[[str], object] = lambda _: None
    ) -> None:
        """Let a client create a timer at that time and repeat the request until it succeeds.

        Then call `then` with the timer's id.
        """
        key = str(next(self._keys))
        id = keyed_id(DEFAULT_TENANT, key)
        deadline = self.sim.moment(time + delay)
        spec = TimerSpec(
            webhook=WEBHOOK, deadline=deadline, idempotency_key=IdempotencyKey(key, "")
        )

        def create() -> Timer:
            return self.service.create(DEFAULT_TENANT, spec).timer

        def done(request: Request) -> None:
            if request.granted:
                then(id)
            else:
                self.ask_at(self.sim.time + 1, "create", id, deadline, create, done)

        self.ask_at(time, "create", id, deadline, create, done)

    def ask_at(
        self,
        time: float,
        kind: RequestKind,
        id: str,
        deadline: datetime | None,
        call: Callable[[], Timer],
        done: Callable[[Request], object],
    ) -> None:
        """Let a client make a request at that time, and record the response."""

        def ask() -> None:
            began = self.sim.clock()
            request = Request(kind, id, began, began, None, deadline)
            try:
                request = answered(request, call)
            finally:
                request = request._replace(ended=self.sim.clock())
                self.requests.append(request)
                done(request)

        self.sim.at(time, ask)

    def send(self, timer: Timer, at: datetime) -> Outcome:
        """Stand in for the Sender: record the webhook, and wait as long as a receiver takes."""
        self.sim.may_die()
        self.sim.process.sent.add(timer.id)
        self.sent.append((timer, at))
        slow = 10 if self.sim.rng.random() < 0.01 else 1
        self.sim.sleep(slow * self.sim.rng.uniform(*POST))
        self.sim.may_die()
        return NO_CONTENT

    def lateness(self) -> list[float]:
        """Return the lateness of each first attempt in seconds, sorted.

        A timer that fell due during an outage counts from the end of the outage.
        """
        first: dict[str, float] = {}
        for timer, at in self.sent:
            late = (at - max(timer.deadline, START)).total_seconds()
            first.setdefault(timer.id, late)
        return sorted(first.values())

    def ledger(self) -> Ledger:
        """Return the ledger of all requests and webhooks so far."""
        now = self.sim.clock()
        webhooks = [
            Received(timer.id, at, timer.deadline, timer.attempt, 204) for timer, at in self.sent
        ]
        ends = {id: representation.represent(timer, now) for id, timer in self.store.timers.items()}
        return Ledger(self.requests, webhooks, self.sim.crashes, ends, now)

    def check(self) -> None:
        """Fail unless every promise was kept."""
        assert not self.ledger().violations()
        assert not self.queue.dead

    def _deliver(self, messages: Sequence[tuple[str, str]]) -> None:
        records = [Record(body, handle) for body, handle in messages]
        context = Context(FUNCTION_TIMEOUT)
        handlers.deliver(self._dependencies, records, context, self.sim.concurrently)

    def _fire(self, text: str) -> None:
        self.service.fire(handlers.decode_wakeup(text))

    def _sweep(self) -> None:
        self.sim.at(self.sim.time + 60.0, self._sweep)
        with suppress(Unavailable):  # Lambda logs it; the next sweep is a minute away
            self.service.sweep(self.sim.clock() + timedelta(seconds=50))


ADDRESSES = Addresses(
    group="timers-sim",
    fire_arn="arn:aws:lambda:eu-central-1:123456789012:function:timers-sim-fire",
    role_arn="arn:aws:iam::123456789012:role/timers-sim-scheduler",
    dead_letter_arn="arn:aws:sqs:eu-central-1:123456789012:timers-sim-dead",
)


def answered(request: Request, call: Callable[[], Timer]) -> Request:
    """Make the service call of a request; return the request with its response."""
    try:
        timer = call()
    except TimerNotFound as error:
        return request._replace(status=404, why=str(error))
    except Conflict as error:
        return request._replace(status=409, why=str(error))
    except Unavailable as error:
        return request._replace(status=503, why=str(error))
    made = timer.attempts[-1].number if timer.attempts else 0
    return request._replace(status=200, deadline=timer.deadline, attempts=made)


def client_error(code: str, status: int, operation: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)


def steady(number: int, seed: int = 1) -> Deployment:
    """Run timers with mixed delays of up to two hours, created over an hour."""
    world = Deployment(seed)
    for _ in range(number):
        delay = world.sim.rng.choice([5, 30, 300, 890, 901, 1200, 3600, 7200])
        world.create_at(world.sim.rng.uniform(0, 3600), delay * world.sim.rng.random())
    world.sim.run(4 * 3600)
    return world


def burst(number: int, seed: int = 1) -> Deployment:
    """Run timers created up to an hour ahead, all due within one second."""
    world = Deployment(seed)
    for _ in range(number):
        created = world.sim.rng.uniform(0, 1800)
        world.create_at(created, 3600 - created + world.sim.rng.random())
    world.sim.run(2 * 3600)
    return world


def outage(number: int, rate: float = 500.0, seed: int = 1) -> Deployment:
    """Run timers that fell due during an outage in which every schedule was lost."""
    world = Deployment(seed, rate)
    for n in range(number):
        due_at = START - timedelta(seconds=3600) + timedelta(seconds=3500 * n / number)
        id = timer_id(START, n.to_bytes(10, "big"))
        world.store.timers[id] = new_timer(id, DEFAULT_TENANT, WEBHOOK, due_at, due_at)
        world.requests.append(Request("create", id, due_at, due_at, 200, due_at))
    world.sim.run(max(3600.0, number / rate * 4))
    return world


def crashing(number: int, seed: int = 1) -> Deployment:
    """Run steady load in which one call in a thousand kills its process."""
    world = Deployment(seed, fault_rates=FaultRates(deaths=0.001))
    for _ in range(number):
        world.create_at(world.sim.rng.uniform(0, 3600), world.sim.rng.uniform(0, 1800))
    world.sim.run(5 * 3600)
    return world


def report(title: str, world: Deployment) -> str:
    """Check the promises; return a line with the lateness and the messages per timer."""
    world.check()
    late = world.lateness()
    figures = [late[min(len(late) - 1, int(len(late) * part))] for part in (0.5, 0.99, 1.0)]
    messages = world.queue.sent / len(world.store.timers)
    assert messages <= 1.1
    return (
        f"{title:<34} {len(late):>7} timers   late p50 {figures[0]:8.3f} s  p99 {figures[1]:8.3f} s"
        f"  max {figures[2]:8.3f} s   {messages:.2f} messages per timer"
    )


def main(scale: float = 1.0) -> None:
    """Run all scenarios and print a line for each."""
    logging.disable()
    assert steady(int(2_000 * scale)).lateness()[-int(20 * scale) - 1] < 1, (
        "fewer than 99 % are on time to the second"
    )
    scenarios: list[tuple[str, Callable[[], Deployment]]] = [
        ("steady load, mixed deadlines", lambda: steady(int(10_000 * scale))),
        ("1,000 due in one second", lambda: burst(int(1_000 * scale))),
        ("10,000 due in one second", lambda: burst(int(10_000 * scale))),
        ("workers that die while sending", lambda: crashing(int(10_000 * scale))),
        ("100,000 overdue after an outage", lambda: outage(int(100_000 * scale))),
    ]
    for title, scenario in scenarios:
        print(report(title, scenario()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
