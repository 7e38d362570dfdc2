"""The measurements. Each loads an engine and compares the arrivals with the created timers."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Self

import requests

from bench.engines import Engine, Timers
from bench.load import Request, Response, post, send
from chalicelib.core.timer import DEFAULT_TENANT, Webhook, new_timer
from chalicelib.runtime import new_id
from standalone.sqlite.timer_store import SqliteTimerStore

DAY = 86_400_000
"""Milliseconds."""

GRACE = 60.0
"""Seconds to wait for late webhooks after the last deadline."""

POLL = 0.2
"""Seconds between two looks at the receiver's count; each look takes time from the engine."""

Figures = dict[str, float]


class Receiver:
    """A Node HTTP server in its own process, which records webhooks and their times."""

    def __enter__(self) -> Self:
        script = Path(__file__).parent / "receiver.js"
        self._process = subprocess.Popen(["node", script], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def forget(self) -> list[tuple[str, float]]:
        """Return the arrivals so far and forget them."""
        return _arrivals(requests.delete(f"{self.url}arrivals", timeout=60))

    def arrivals(self) -> list[tuple[str, float]]:
        """Return the id of each webhook and when it arrived, in Unix milliseconds."""
        return _arrivals(requests.get(f"{self.url}arrivals", timeout=60))

    def wait(self, number: int, until: float) -> None:
        """Return once this many webhooks have arrived, or at that Unix time."""
        while time.time() < until:
            if requests.get(f"{self.url}count", timeout=60).json()["count"] >= number:
                return
            time.sleep(POLL)


def _arrivals(response: requests.Response) -> list[tuple[str, float]]:
    content = response.json()
    if content["count"] != len(content["ids"]):
        raise RuntimeError("The receiver's count does not match its recorded arrivals.")
    return list(zip(content["ids"], content["moments"], strict=True))


@dataclass(frozen=True)
class Delivery:
    """The result of one measurement."""

    late: list[float]
    """Milliseconds from the deadline to the first arrival, ascending."""
    missing: int
    early: int
    duplicates: int
    seconds: float
    """From the first deadline to the last arrival."""

    def figures(self) -> Figures:
        """Return lateness in milliseconds, deliveries per second, and faults."""
        p50, p99 = percentiles(self.late)
        found = {"p50": p50, "p99": p99, "max": max(self.late, default=0.0)}
        return {**found, "drained": len(self.late) / self.seconds, **self.faults()}

    def faults(self) -> Figures:
        """Return the numbers of missing, early and duplicate webhooks."""
        return {"missing": self.missing, "early": self.early, "duplicates": self.duplicates}


def delivery(deadlines: dict[str, int], arrivals: Sequence[tuple[str, float]]) -> Delivery:
    """Compare arrivals with the deadlines in Unix milliseconds; ignore unknown ids."""
    first: dict[str, float] = {}
    times = Counter(id for id, _ in arrivals if id in deadlines)
    for id, at in arrivals:
        first.setdefault(id, at)
    late = sorted(first[id] - deadlines[id] for id in times)
    ended = max((first[id] for id in times), default=0.0)
    return Delivery(
        late=late,
        missing=len(deadlines) - len(times),
        early=sum(lateness < 0 for lateness in late),
        duplicates=times.total() - len(times),
        seconds=max(1e-3, (ended - min(deadlines.values())) / 1000),
    )


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the 50th and the 99th percentile."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


@dataclass(frozen=True)
class Bench:
    """The measurements of one running engine with one receiver."""

    engine: Engine
    receiver: Receiver

    def timer(self, deadline: int) -> Request:
        """Return the request for a timer that is due at a moment in Unix milliseconds."""
        moment = datetime.fromtimestamp(deadline / 1000, UTC).isoformat(timespec="milliseconds")
        path, content = self.engine.timer(moment, self.receiver.url)
        return post(path, json.dumps(content).encode(), deadline)

    def create(
        self, number: int, deadlines: Iterator[int], rate: float | None = None
    ) -> list[Response]:
        """Create timers, each with the next deadline; raise if one is rejected."""
        port = self.engine.port
        responses = send(port, number, lambda: self.timer(next(deadlines)), rate=rate)
        for response in responses:
            if response.status != 201:
                raise RuntimeError(f"{self.engine.name}: {response.status}: {response.body!r}")
        return responses

    def warm_up(self, number: int) -> None:
        """Warm up every part of the engine, as in long-running use."""
        self.receiver.forget()
        self.delivered(self.create(number, self._ahead(0)))

    def creates(self, number: int) -> Figures:
        """Create timers due tomorrow as fast as the engine responds."""
        began = time.perf_counter()
        responses = self.create(number, self._ahead(DAY))
        seconds = time.perf_counter() - began
        p50, p99 = percentiles([response.seconds * 1000 for response in responses])
        return {"rate": number / seconds, "p50": p50, "p99": p99}

    def steady(self, number: int, rate: float) -> Delivery:
        """Create timers due in one second at a low rate."""
        self.receiver.forget()
        return self.delivered(self.create(number, self._ahead(1000), rate))

    def burst(self, number: int, ahead: float) -> Delivery:
        """Create timers within `ahead` seconds; all fall due in the second after that."""
        return self.delivered(self._create_before(number, ahead, 1))

    def mixed(self, number: int, rate: float, ahead: float) -> Figures:
        """Create timers due tomorrow while as many others fire, `rate` a second of each.

        Return the p99 of the creates' response time and of the others' lateness in milliseconds.
        """
        firing = self._create_before(number, ahead, number / rate)
        _sleep_until(min(response.request.deadline for response in firing))
        created = self.create(number, self._ahead(DAY), rate)
        found = self.delivered(firing)
        _, response = percentiles([created.seconds * 1000 for created in created])
        return {"response": response, "late": percentiles(found.late)[1], **found.faults()}

    def _create_before(self, number: int, ahead: float, seconds: float) -> list[Response]:
        """Create timers within `ahead` seconds; all fall due in the `seconds` after that."""
        self.receiver.forget()
        first = _now() + round(ahead * 1000)
        deadlines = [first + round(1000 * seconds * place / number) for place in range(number)]
        Random(number).shuffle(deadlines)  # the same for all engines
        responses = self.create(number, iter(deadlines))
        if _now() < first:
            return responses
        self.delivered(responses)
        return self._create_before(number, 2 * ahead, seconds)

    def pending(self, number: int, settle: float) -> Figures:
        """Return the memory in bytes for each pending timer, after `settle` seconds."""
        before = self.engine.memory()
        self.create(number, self._ahead(DAY))
        time.sleep(settle)
        return {"bytes": (self.engine.memory() - before) / number}

    def recovery(self, number: int, ahead: float, outage: float) -> Figures:
        """Kill -9 an engine with timers that fall due before, while and after it is down.

        Return the seconds from the command that restarts it to its first response, and to the first
        webhook.
        """
        self.receiver.forget()
        first, span = _now() + round(1000 * ahead), round(2000 * outage)
        responses = self.create(number, (first + span * place // number for place in count()))
        _sleep_until(first + span // 6)
        self.engine.kill()
        before = len(self.receiver.arrivals())
        time.sleep(outage)
        began = time.time()
        self.engine.start()
        ready = time.time() - began
        found = self.delivered(responses)
        arrived = [at / 1000 - began for _, at in self.receiver.arrivals()[before:]]
        return {"ready": ready, "first": min(arrived, default=inf), **found.faults()}

    def delivered(self, responses: Sequence[Response]) -> Delivery:
        """Wait for the timers created by these responses, and return the result."""
        deadlines = {
            json.loads(response.body)["id"]: response.request.deadline for response in responses
        }
        until = max(_now(), *deadlines.values()) / 1000 + GRACE
        arrivals: list[tuple[str, float]] = []
        while time.time() < until and (missing := deadlines.keys() - {id for id, _ in arrivals}):
            self.receiver.wait(len(arrivals) + len(missing), until)
            arrivals = self.receiver.arrivals()
        time.sleep(0.2)  # for duplicates
        return delivery(deadlines, self.receiver.arrivals())

    def _ahead(self, milliseconds: int) -> Iterator[int]:
        return (_now() + milliseconds for _ in count())


def fill(database: Path, number: int, receiver: Receiver) -> None:
    """Add timers due tomorrow to a database, and one overdue timer."""
    now = datetime.now(UTC)
    webhook = Webhook(url=receiver.url)
    store = SqliteTimerStore(database)

    def add(deadline: datetime) -> None:
        store.add(new_timer(new_id(), DEFAULT_TENANT, webhook, deadline, now))

    try:
        with ThreadPoolExecutor(200) as pool:  # concurrent writers share a commit
            for begun in range(0, number, 10_000):
                batch = min(10_000, number - begun)
                moments = [now + timedelta(days=1, milliseconds=begun + n) for n in range(batch)]
                list(pool.map(add, moments))
        add(now)
    finally:
        store.close()


def many(number: int, receiver: Receiver, folder: Path, settle: float) -> Figures:
    """Measure Timers with this many timers stored, and with none, in seconds and MB."""
    with Timers(folder / "empty") as empty:
        time.sleep(settle)
        unloaded = empty.memory()
    engine = Timers(folder / "full")
    fill(engine.database, number, receiver)
    receiver.forget()
    began = time.time()
    with engine:
        ready = time.time() - began
        receiver.wait(1, began + GRACE)
        [(_, at)] = receiver.arrivals()
        time.sleep(settle)
        memory = engine.memory()
    return {
        "ready": ready,
        "first": at / 1000 - began,
        "memory": memory / 1e6,
        "empty": unloaded / 1e6,
        "bytes": (memory - unloaded) / number,
    }


def ceiling(receiver: Receiver, number: int) -> float:
    """Return the requests per second that the load generator reaches on an idle server."""
    began = time.perf_counter()
    send(receiver.port, number, lambda: post("/", b"{}"))
    return number / (time.perf_counter() - began)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _sleep_until(moment: int) -> None:
    time.sleep(max(0, moment / 1000 - time.time()))
