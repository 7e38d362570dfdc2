"""Compare the promises of the API with the webhooks that arrived. Pure.

Each timer has one client, which sends one request at a time. This determines which deadline was in
force for an attempt: the last deadline whose response shows fewer attempts, or one that was
requested later and got no response. Clocks only decide whether a webhook is early and whether a
crash lies between two webhooks.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Literal, NamedTuple

from chalicelib.core.representation import TimerResource
from chalicelib.core.timer import FINAL, Status

RequestKind = Literal["create", "cancel", "move", "read"]


class Request(NamedTuple):
    """One request about a timer, and its response."""

    kind: RequestKind
    """`move` is any request that sets a new deadline."""
    id: str
    began: datetime
    ended: datetime
    status: int | None
    """The HTTP status; None if the connection ended without a response."""
    deadline: datetime | None = None
    """The deadline in the response, or the requested one if there was none: it may be in force."""
    attempts: int = 0
    """The number of attempts in the response."""
    why: str = ""
    """The reason in an error response."""

    @property
    def granted(self) -> bool:
        return self.status is not None and self.status < 300


class Received(NamedTuple):
    """One webhook that a receiver got. `at` is by the service's clock, `deadline` by its header."""

    id: str
    at: datetime
    deadline: datetime
    attempt: int
    status: int
    """The status of the response; 0 if the receiver sent none."""

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


class Crash(NamedTuple):
    """The death of a process."""

    began: datetime
    ended: datetime
    """When its replacement had read the state that it left."""
    ids: frozenset[str] | None = None
    """The timers that it was sending; None if they are unknown."""

    def lies_between(self, one: Received, next: Received) -> bool:
        """Return whether the sender of `one` may have died before it recorded the attempt."""
        concerned = self.ids is None or one.id in self.ids
        return concerned and self.began <= next.at and one.at <= self.ended


@dataclass
class Ledger:
    """Everything that happened in a run. The requests of each timer are in order."""

    requests: list[Request] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    crashes: list[Crash] = field(default_factory=list)
    ends: dict[str, TimerResource] = field(default_factory=dict)
    """The timers at the end of the run, by id."""
    ended: datetime | None = None

    def violations(self) -> list[str]:
        """Return a line for each broken promise."""
        found = [
            line for request in self.requests for line in _without_response(request, self.crashes)
        ]
        for id, history in self._histories().items():
            lines = [
                *_lost(history, self.ended),
                *_early(history),
                *_twice(history),
                *_sent_after_cancel(history),
            ]
            found += [f"{id}: {line}" for line in lines]
        return found

    def figures(self) -> Counter[str]:
        """Return the counts that the table shows."""
        granted = Counter(request.kind for request in self.requests if request.granted)
        made = {it.id for it in self.requests if it.kind == "create" and it.granted}
        sent = Counter((it.id, it.taken) for it in self.received)
        return Counter(
            {
                "deaths": len(self.crashes),
                "timers": len(made),
                "cancelled": granted["cancel"],
                "moved": granted["move"],
                "refused": sum(request.status == 503 for request in self.requests),
                "unanswered": sum(request.status is None for request in self.requests),
                "webhooks": len(self.received),
                "retried": sum(not it.taken for it in self.received),
                "repeated": sum(n - 1 for (_, taken), n in sent.items() if taken),
            }
        )

    def _histories(self) -> dict[str, "_History"]:
        histories: dict[str, _History] = defaultdict(lambda: _History(self.crashes))
        for request in self.requests:
            histories[request.id].requests.append(request)
        for webhook in self.received:
            histories[webhook.id].received.append(webhook)
        for id, end in self.ends.items():
            histories[id].end = end
        return histories


@dataclass
class Run:
    """The result of one run, or of several together."""

    figures: Counter[str]
    violations: list[str]
    errors: Counter[str] = field(default_factory=Counter)
    """Attempts by error, as far as the timers' stored attempts reach."""

    @classmethod
    def of(cls, ledger: Ledger) -> "Run":
        attempts = (attempt for end in ledger.ends.values() for attempt in end.attempts)
        errors = Counter(attempt.error for attempt in attempts if attempt.error)
        return cls(ledger.figures(), ledger.violations(), errors)

    @classmethod
    def together(cls, runs: Iterable[tuple[str, "Run"]]) -> "Run":
        """Add up runs, given as pairs of seed and run."""
        total = cls(Counter(), [])
        for seed, run in runs:
            total.figures.update(run.figures, runs=1, broken=len(run.violations))
            total.violations += [f"{seed}: {line}" for line in run.violations]
            total.errors.update(run.errors)
        return total


@dataclass
class _History:
    """Everything in the ledger about one timer."""

    crashes: Sequence[Crash]
    requests: list[Request] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    end: TimerResource | None = None

    def granted(self, kind: RequestKind) -> list[Request]:
        return [request for request in self.requests if request.kind == kind and request.granted]

    @property
    def attempts(self) -> int:
        """The number of recorded attempts."""
        return self.end.attempts[-1].number if self.end and self.end.attempts else 0

    def asked(self, kind: RequestKind) -> bool:
        return any(request.kind == kind for request in self.requests)

    def deadline(self, attempt: int) -> tuple[datetime | None, list[datetime]]:
        """Return the deadline by the last response before this attempt, and later requested ones.

        A request without a response may have taken effect. It sets that deadline or a later one.
        """
        answered: datetime | None = None
        possible: list[datetime] = []
        for request in self.requests:
            if request.granted and request.attempts >= attempt:
                break
            if request.granted:
                answered, possible = request.deadline, []
            elif request.deadline is not None and _may_have_been(request):
                possible.append(request.deadline)
        return answered, possible

    def in_force(self, deadline: datetime, attempt: int) -> bool:
        """Return whether this attempt may have been made for that deadline."""
        answered, possible = self.deadline(attempt)
        return deadline == answered or any(deadline >= asked for asked in possible)


def _may_have_been(request: Request) -> bool:
    """Return whether a request may have taken effect without a success response."""
    return request.status is None or request.status == 503


def _without_response(request: Request, crashes: Sequence[Crash]) -> Iterator[str]:
    """The API responds to each request, and gives a reason with each error."""
    about = f"{request.id}: {request.kind} at {request.began:%H:%M:%S.%f}"
    if request.status is None:
        if not any(c.began <= request.ended and request.began <= c.ended for c in crashes):
            yield f"{about} got no response: {request.why}"
    elif not request.granted and (not request.why or request.status not in (404, 409, 503)):
        yield f"{about} got {request.status} {request.why!r}"


def _lost(history: _History, ended: datetime | None) -> Iterator[str]:
    """After a 201 a timer fires, is cancelled by its owner, or fails with a stored reason."""
    created = False
    for request in history.requests:
        created |= request.kind == "create" and request.granted
        if created and request.status == 404:
            yield f"lost: {request.kind} got 404"
    end = history.end
    if end is None:
        if created or history.received:
            yield "lost: the timer is gone"
        return
    if not history.asked("create"):
        yield "the timer was never requested"
    match end.status:
        case Status.DELIVERED if not any(webhook.taken for webhook in history.received):
            yield "lost: delivered, but nothing arrived"
        case Status.FAILED if not end.failure:
            yield "lost: failed without a reason"
        case Status.CANCELLED if not history.asked("cancel"):
            yield "lost: cancelled without a request"
        case status if status not in FINAL and (ended is None or end.fire_at <= ended):
            yield f"lost: still {status}"


def _early(history: _History) -> Iterator[str]:
    """No webhook is sent before its deadline, and a confirmed deadline is in force."""
    for webhook in history.received:
        if webhook.at < webhook.deadline:
            early = webhook.deadline - webhook.at
            yield f"early: attempt {webhook.attempt} arrived {early} too soon"
        if not history.in_force(webhook.deadline, webhook.attempt):
            yield f"wrong deadline: attempt {webhook.attempt} was made for {webhook.deadline}"
    if history.end is None:
        return
    for attempt in history.end.attempts:
        if attempt.lateness < 0:
            yield f"early: attempt {attempt.number} was made {-attempt.lateness} s too soon"
    if not history.in_force(history.end.fire_at, history.attempts + 1):
        yield f"wrong deadline: it became {history.end.fire_at}"


def _twice(history: _History) -> Iterator[str]:
    """A webhook is sent again only if it was not accepted or its sender crashed in between.

    A receiver that hangs up may get the same attempt once more.
    """
    resent: set[int] = set()
    for one, next in pairwise(sorted(history.received, key=lambda it: (it.attempt, it.at))):
        if any(crash.lies_between(one, next) for crash in history.crashes):
            continue
        if one.attempt < next.attempt:
            is_allowed = not one.taken
        else:
            is_allowed = not one.status and one.attempt not in resent
            resent.add(one.attempt)
        if not is_allowed:
            yield f"twice: attempts {one.attempt} and {next.attempt} without a crash in between"


def _sent_after_cancel(history: _History) -> Iterator[str]:
    """A confirmed cancel wins over every wake-up."""
    for cancelled in history.granted("cancel"):
        if any(webhook.attempt > cancelled.attempts for webhook in history.received):
            yield "sent after a cancel"
        if history.end is not None and history.end.status is not Status.CANCELLED:
            yield f"{history.end.status} after a cancel"
