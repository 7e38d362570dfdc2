"""What was promised, what arrived, and where the one falls short of the other. Pure.

Each timer has one client, whose requests come one after the other. So it is known which deadline
was in force for which attempt: the last one whose answer shows fewer attempts than that, or one
asked for later whose answer never came. Clocks decide only what is early, and whether a crash lies
between two webhooks.
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
    """One request about a timer, and its answer."""

    kind: RequestKind
    """`move` is any that sets a new deadline."""
    id: str
    began: datetime
    ended: datetime
    status: int | None
    """HTTP's; None if the connection ended without an answer."""
    deadline: datetime | None = None
    """What the timer has by the answer, or without one what was asked for: it may be in force."""
    attempts: int = 0
    """How many the timer has behind it by the answer."""
    why: str = ""
    """What an answer that is no success says of it."""

    @property
    def granted(self) -> bool:
        return self.status is not None and self.status < 300


class Received(NamedTuple):
    """One webhook that a receiver got."""

    id: str
    at: datetime
    """When it got it, by the service's clock."""
    deadline: datetime
    """As its header has it."""
    attempt: int
    status: int
    """What it was answered with; 0 for nothing."""

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


class Crash(NamedTuple):
    """The death of a process."""

    began: datetime
    ended: datetime
    """When there was another one, which has seen what this one left."""
    ids: frozenset[str] | None = None
    """The timers that it was sending; None if that may be any."""

    def lies_between(self, one: Received, next: Received) -> bool:
        """Say whether the process that sent `one` may have died before it recorded that."""
        concerned = self.ids is None or one.id in self.ids
        return concerned and self.began <= next.at and one.at <= self.ended


@dataclass
class Ledger:
    """What happened, of which the requests of each timer are in their order."""

    requests: list[Request] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    crashes: list[Crash] = field(default_factory=list)
    ends: dict[str, TimerResource] = field(default_factory=dict)
    """The timers as they stood when all was over, which was at …"""
    ended: datetime | None = None

    def violations(self) -> list[str]:
        """Return a line for each promise that was broken."""
        found = [line for request in self.requests for line in _silent(request, self.crashes)]
        for id, story in self._stories().items():
            lines = [*_lost(story, self.ended), *_early(story), *_twice(story), *_not_void(story)]
            found += [f"{id}: {line}" for line in lines]
        return found

    def figures(self) -> Counter[str]:
        """Return how much there was of what."""
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

    def _stories(self) -> dict[str, "_Story"]:
        stories: dict[str, _Story] = defaultdict(lambda: _Story(self.crashes))
        for request in self.requests:
            stories[request.id].requests.append(request)
        for webhook in self.received:
            stories[webhook.id].received.append(webhook)
        for id, end in self.ends.items():
            stories[id].end = end
        return stories


@dataclass
class Run:
    """What came of a fault, or of many."""

    figures: Counter[str]
    violations: list[str]
    errors: Counter[str] = field(default_factory=Counter)
    """How many attempts have come to which error, as far as timers remember."""

    @classmethod
    def of(cls, ledger: Ledger) -> "Run":
        attempts = (attempt for end in ledger.ends.values() for attempt in end.attempts)
        errors = Counter(attempt.error for attempt in attempts if attempt.error)
        return cls(ledger.figures(), ledger.violations(), errors)

    @classmethod
    def together(cls, runs: Iterable[tuple[str, "Run"]]) -> "Run":
        """Return the sum of runs, which stand beside their seeds."""
        total = cls(Counter(), [])
        for seed, run in runs:
            total.figures.update(run.figures, runs=1, broken=len(run.violations))
            total.violations += [f"{seed}: {line}" for line in run.violations]
            total.errors.update(run.errors)
        return total


@dataclass
class _Story:
    """All there is about one timer."""

    crashes: Sequence[Crash]
    requests: list[Request] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    end: TimerResource | None = None

    def granted(self, kind: RequestKind) -> list[Request]:
        return [request for request in self.requests if request.kind == kind and request.granted]

    @property
    def attempts(self) -> int:
        """How many have been recorded."""
        return self.end.attempts[-1].number if self.end and self.end.attempts else 0

    def asked(self, kind: RequestKind) -> bool:
        return any(request.kind == kind for request in self.requests)

    def deadline(self, attempt: int) -> tuple[datetime | None, list[datetime]]:
        """Return what the deadline of this attempt was by the last answer before it, and what it
        may have become since: those asked for, which are the earliest that it can be then."""
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
        """Say whether this attempt may have been made for that deadline."""
        answered, possible = self.deadline(attempt)
        return deadline == answered or any(deadline >= asked for asked in possible)


def _may_have_been(request: Request) -> bool:
    """Say whether it may have taken effect though its answer was no success."""
    return request.status is None or request.status == 503


def _silent(request: Request, crashes: Sequence[Crash]) -> Iterator[str]:
    """The API answers, or says why not."""
    about = f"{request.id}: {request.kind} at {request.began:%H:%M:%S.%f}"
    if request.status is None:
        if not any(c.began <= request.ended and request.began <= c.ended for c in crashes):
            yield f"{about} was not answered: {request.why}"
    elif not request.granted and (not request.why or request.status not in (404, 409, 503)):
        yield f"{about} was answered with {request.status} {request.why!r}"


def _lost(story: _Story, ended: datetime | None) -> Iterator[str]:
    """After a 201 it fires, is cancelled by its owner, or ends as failed with the reason on it."""
    created = False
    for request in story.requests:
        created |= request.kind == "create" and request.granted
        if created and request.status == 404:
            yield f"lost: {request.kind} is told that there is none"
    end = story.end
    if end is None:
        if created or story.received:
            yield "lost: it is gone"
        return
    if not story.asked("create"):
        yield "nobody has asked for it"
    match end.status:
        case Status.DELIVERED if not any(webhook.taken for webhook in story.received):
            yield "lost: delivered, and nothing arrived"
        case Status.FAILED if not end.failure:
            yield "lost: failed without a reason"
        case Status.CANCELLED if not story.asked("cancel"):
            yield "lost: cancelled, and nobody asked for that"
        case status if status not in FINAL and (ended is None or end.fire_at <= ended):
            yield f"lost: still {status}"


def _early(story: _Story) -> Iterator[str]:
    """It leaves at or after the deadline, and a deadline that was answered for is in force."""
    for webhook in story.received:
        if webhook.at < webhook.deadline:
            yield f"early: attempt {webhook.attempt} came {webhook.deadline - webhook.at} too soon"
        if not story.in_force(webhook.deadline, webhook.attempt):
            yield f"overruled: attempt {webhook.attempt} was made for {webhook.deadline}"
    if story.end is None:
        return
    for attempt in story.end.attempts:
        if attempt.lateness < 0:
            yield f"early: attempt {attempt.number} was made {-attempt.lateness} s too soon"
    if not story.in_force(story.end.fire_at, story.attempts + 1):
        yield f"overruled: its deadline became {story.end.fire_at}"


def _twice(story: _Story) -> Iterator[str]:
    """One claim at a time: again only what was not taken, or if there was a crash in between.

    A receiver that hangs up may get the same attempt once more.
    """
    resent: set[int] = set()
    for one, next in pairwise(sorted(story.received, key=lambda it: (it.attempt, it.at))):
        if any(crash.lies_between(one, next) for crash in story.crashes):
            continue
        if one.attempt < next.attempt:
            is_meant = not one.taken
        else:
            is_meant = not one.status and one.attempt not in resent
            resent.add(one.attempt)
        if not is_meant:
            yield f"twice: attempts {one.attempt} and {next.attempt}, and no crash in between"


def _not_void(story: _Story) -> Iterator[str]:
    """A cancel that was answered wins over every alarm."""
    for cancelled in story.granted("cancel"):
        if any(webhook.attempt > cancelled.attempts for webhook in story.received):
            yield "cancelled, and sent afterwards"
        if story.end is not None and story.end.status is not Status.CANCELLED:
            yield f"cancelled, and {story.end.status} afterwards"
