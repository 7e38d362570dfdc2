"""The standalone server as its own process, under load, while what it stands on breaks.

Clients make timers, cancel them, set new deadlines and have them fire at once; receivers refuse
some of the webhooks. Clients and kills go by dice of the seed: the same seed makes the same plan
again, but how far the server gets with it is up to the machine.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Self

import msgspec
import requests

from chalicelib.aws.bootstrap import now
from chalicelib.core.representation import TimerResource
from chalicelib.core.timer import DEFAULT_TENANT, FINAL, keyed_id
from tests.support.processes import Arrival, Receiver, Standalone, wait_until
from tools.chaos.ledger import Crash, Ledger, Received, Request, RequestKind, Run
from tools.chaos.log import Files, log_of

HERE = Path(__file__).parent

CLIENTS = 8

MAX_PAUSE = 0.03
"""Seconds that a client waits at most between two requests."""

DELAYS = (0.0, 0.2, 0.5, 1.0, 2.0, 3600.0)
"""Seconds from a request to the deadline that it asks for; the last lies behind all else."""

RESPONSES = ("200",) * 9 + ("500,200", "0,200", "410")
"""How receivers answer attempt after attempt: a status, or 0 for a connection that is cut."""

RETRY = {"max_attempts": 15, "initial_delay": 1, "max_delay": 1}

SETTLE_SECONDS = 90.0
"""Seconds for what is due to get done, once nothing breaks any more."""

HANG_SECONDS = 4.0
"""Seconds that a receiver hangs, which is longer than …"""

WEBHOOK_TIMEOUT = 3
"""… a webhook to one that hangs may take."""

FAULT_SECONDS = 3.0
"""Seconds that other faults last."""

TEARS = 50
"""How often a log is torn."""

GARBAGE = (0, 1, 24, 4096, 10_000)
"""Bytes of something else behind the tear."""

KILLED_AT_START = 0.3
"""How many of the kills come while the server is starting."""

MAX_LOAD = 1.0
"""Seconds of load before a kill, at most."""

KILLS_PER_DATABASE = 20
"""Kills until everything has to be delivered and is held against the ledger."""


_decode = msgspec.json.Decoder(TimerResource).decode  # made before there are threads: see timers.py


class Impossible(Exception):
    """This machine does not let such a fault be made; `str(error)` says why."""


class Client:
    """Asks for timers and changes them, one request after another; writes down what was said."""

    def __init__(self, rig: "Rig", number: int, dice: Random) -> None:
        self._rig = rig
        self._number = number
        self._dice = dice
        self._keys = 0
        self._pending: dict[str, dict[str, Any]] = {}
        """Creates that have no answer yet, by their keys."""
        self._mine: list[str] = []
        self._unseen: list[str] = []
        """Timers promised by a server that has died since."""
        self._session = requests.Session()
        # A connection that is kept could be closed just as the next request goes out.
        self._session.headers["Connection"] = "close"

    def work(self, over: threading.Event) -> None:
        """Ask until then, or until the server is gone. RequestKind it owed is asked for first."""
        for key in list(self._pending):
            if not self._create(key):
                return
        for id in self._unseen:
            if self._ask("read", id, "GET").status is None:
                return
        self._unseen = []
        while not over.wait(self._dice.uniform(0, MAX_PAUSE)):
            if not self._anything():
                return

    def _anything(self) -> bool:
        draw = self._dice.random()
        if draw < 0.6 or not self._mine:
            self._keys += 1
            key = f"{self._number}-{self._keys}"
            self._pending[key] = self._new_body()
            return self._create(key)
        id = self._dice.choice(self._mine[-20:])
        if draw < 0.75:
            request = self._ask("cancel", id, "DELETE")
        elif draw < 0.9:
            at = self._deadline()
            request = self._ask("move", id, "PATCH", at, json={"fire_at": at.isoformat()})
        elif draw < 0.95:
            request = self._ask("move", id, "POST", self._rig.clock(), "/fire")
        else:
            request = self._ask("read", id, "GET")
        return request.status is not None

    def _new_body(self) -> dict[str, Any]:
        url = f"{self._rig.receiver}/{{id}}/{self._dice.choice(RESPONSES)}"
        body = {"fire_at": self._deadline().isoformat(), "url": url, "retry": RETRY}
        return body | self._rig.extra_fields

    def _deadline(self) -> datetime:
        return self._rig.clock() + timedelta(seconds=self._dice.choice(DELAYS))

    def _create(self, key: str) -> bool:
        """Create the timer of this key, again if need be; say whether the server is there."""
        body, id = self._pending[key], keyed_id(DEFAULT_TENANT, key)
        asked = datetime.fromisoformat(body["fire_at"])
        header = {"Idempotency-Key": key}
        request = self._ask("create", id, "POST", asked, json=body, headers=header)
        if request.granted:
            del self._pending[key]
            self._mine.append(id)
            self._unseen.append(id)
        return request.status is not None

    def _ask(
        self,
        kind: RequestKind,
        id: str,
        method: str,
        deadline: datetime | None = None,
        action: str = "",
        **more: Any,
    ) -> Request:
        began = self._rig.clock()
        path = "/timers" if kind == "create" else f"/timers/{id}{action}"
        url = self._rig.server.url + path
        try:
            answer = self._session.request(method, url, timeout=60, **more)
        except requests.RequestException as error:
            asked = Request(kind, id, began, self._rig.clock(), None, deadline, why=str(error))
        else:
            asked = _answered(Request(kind, id, began, self._rig.clock(), None, deadline), answer)
        self._rig.ledger.requests.append(asked)
        return asked


def _answered(request: Request, answer: requests.Response) -> Request:
    if answer.status_code >= 300:
        is_problem = answer.headers["Content-Type"] == "application/problem+json"
        why = answer.json()["detail"] if is_problem else ""
        return request._replace(status=answer.status_code, why=why)
    timer = _decode(answer.content)
    made = timer.attempts[-1].number if timer.attempts else 0
    return request._replace(status=answer.status_code, deadline=timer.fire_at, attempts=made)


class Rig:
    """One database, the servers that live on it one after another, clients, and a receiver."""

    def __init__(self, folder: Path, seed: str, **settings: str) -> None:
        self.database = folder / "timers.db"
        self.ledger = Ledger()
        self.dice = Random(seed)  # noqa: S311
        self.hanging = threading.Event()
        self.extra_fields: dict[str, Any] = {}
        """RequestKind the clients want their timers to have besides."""
        self.starting = 0.5
        """Seconds that a server takes to be ready."""
        self._settings = settings
        self._steps = [(datetime.min.replace(tzinfo=now().tzinfo), timedelta(0))]
        self._dead_since: datetime | None = None
        self._troubles: list[str] = []
        self._receiver = Receiver(self._hold, answer=self._answer)
        self.receiver = self._receiver.url
        self._clients = [
            Client(self, number, Random(f"{seed}/{number}"))  # noqa: S311
            for number in range(CLIENTS)
        ]
        self.server = Standalone(self.database, settings)

    def __enter__(self) -> Self:
        self._receiver.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.hanging.clear()
        if hasattr(self.server, "process"):
            self.server.kill()
        self._receiver.__exit__(*raised)

    def clock(self) -> datetime:
        """Return the time as the server has it."""
        return now() + self._steps[-1][1]

    def step(self, seconds: float) -> None:
        """Let the server's clock be so much ahead of ours from now on, or behind it."""
        file = Path(self._settings["FAKETIME_TIMESTAMP_FILE"])
        new = file.with_suffix(".new")
        new.write_text(f"{seconds:+}")
        self._steps.append((now(), timedelta(seconds=seconds)))
        new.replace(file)

    def start(self) -> None:
        """Start a server, and go on as soon as it is ready."""
        began = time.monotonic()
        self.spawn()
        self.server.wait_until_ready()
        self.starting = time.monotonic() - began
        self._end_crash()

    def try_to_start(self) -> None:
        """Start a server where it may be impossible: it is killed, or has ended with a sentence."""
        self.spawn()
        try:
            self.server.wait_until_ready()
        except AssertionError:
            status, said = self.server.process.wait(60), self.server.lines
            self.server.kill()  # for what it has left open here
            if status != 1 or len(said) != 1:
                self._troubles.append(f"It ended with {status}, and said: {said}")
        else:
            self.kill()

    def spawn(self) -> None:
        """Start a server, and go on while it is starting."""
        self.server = Standalone(self.database, self._settings)
        self.server.spawn()

    @contextmanager
    def load(self) -> Iterator[None]:
        """Let all clients work meanwhile."""
        over = threading.Event()
        workers = [threading.Thread(target=it.work, args=(over,)) for it in self._clients]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            over.set()
            for worker in workers:
                worker.join()

    def kill(self) -> None:
        """Kill -9 the server."""
        self._end_crash()
        status = self.server.process.poll()
        assert status is None, f"It ended by itself with {status}: {self.server.lines[-20:]}"
        self._dead_since = self.clock()
        self.server.kill()
        self._look_for_tracebacks()

    def settle(self) -> Run:
        """Let all that is due get done; return how it went, and what was broken."""
        self.undone()  # what is left then is lost, and said to be
        self.ledger.ended = self.clock()
        self.ledger.received = [self._received(it) for it in self._receiver.arrivals]
        self._look_for_tracebacks()
        run = Run.of(self.ledger)
        run.violations += self._troubles
        return run

    def undone(self) -> list[str]:
        """Let all that is due get done; return the ids of what is not, in all this time."""
        with suppress(AssertionError):
            wait_until(lambda: not self._due(), SETTLE_SECONDS)
        return self._due()

    def _due(self) -> list[str]:
        # All in one list: a timer that goes from one status to another is in no list of each.
        try:
            self.ledger.ends = {timer.id: timer for timer in self._timers()}
        except requests.ConnectionError:
            raise AssertionError(f"It has ended by itself: {self.server.lines[-20:]}") from None
        soon = self.clock() + timedelta(seconds=DELAYS[-1] / 2)
        ends = self.ledger.ends.values()
        return [it.id for it in ends if it.status not in FINAL and it.fire_at < soon]

    def _timers(self) -> Iterator[TimerResource]:
        asked: dict[str, Any] = {"limit": 100}
        while True:
            answer = requests.get(f"{self.server.url}/timers", params=asked, timeout=60)
            page = answer.json()
            yield from msgspec.convert(page["timers"], type=list[TimerResource])
            if page["next_cursor"] is None:
                return
            asked["cursor"] = page["next_cursor"]

    def _look_for_tracebacks(self) -> None:
        lines = self.server.lines
        starts = [at for at, line in enumerate(lines) if line.startswith("Traceback")]
        self._troubles += ["\n".join(lines[at - 1 : at + 30]) for at in starts[:1]]

    def _end_crash(self) -> None:
        if self._dead_since is not None:
            self.ledger.crashes.append(Crash(self._dead_since, self.clock()))
        self._dead_since = None

    def _answer(self, path: str, attempt: int) -> int:
        statuses = path.rpartition("/")[2].split(",")
        return 0 if self.hanging.is_set() else int(statuses[min(attempt, len(statuses)) - 1])

    def _hold(self) -> None:
        end = time.monotonic() + HANG_SECONDS
        while self.hanging.is_set() and time.monotonic() < end:
            time.sleep(0.05)

    def _received(self, arrival: Arrival) -> Received:
        # A step may fall between sending and arrival: then the clock that was ahead counts.
        since = arrival.at - timedelta(seconds=2)
        last = max(n for n, (at, _) in enumerate(self._steps) if at <= since)
        ahead = max(ahead for at, ahead in self._steps[last:] if at <= arrival.at)
        return Received(
            arrival.id,
            arrival.at + ahead,
            datetime.fromisoformat(arrival.headers["timer-scheduled-at"]),
            int(arrival.headers["timer-attempt"]),
            arrival.status,
        )


def kills(folder: Path, seed: str, deaths: int = KILLS_PER_DATABASE) -> Run:
    """The server is killed again and again: under load, or while it is starting."""
    with Rig(folder, seed) as rig:
        for _ in range(deaths):
            if rig.dice.random() < KILLED_AT_START:
                rig.spawn()
                time.sleep(rig.dice.random() * rig.starting)
                rig.kill()
            else:
                rig.start()
                with rig.load():
                    time.sleep(rig.dice.random() * MAX_LOAD)
                    rig.kill()
        rig.start()
        return rig.settle()


def full_disk(folder: Path, seed: str) -> Run:
    """The disk fills up under load, and the server is killed and started on the full disk."""
    with _small_disk(folder) as disk, Rig(disk, seed) as rig:
        rig.start()
        with rig.load():
            time.sleep(1)
            _fill(disk / "ballast")
            time.sleep(FAULT_SECONDS)
        rig.kill()
        rig.try_to_start()
        (disk / "ballast").unlink()
        rig.start()
        with rig.load():
            time.sleep(1)
        return rig.settle()


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    _run_or_give_up("mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk))
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _run_or_give_up(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise Impossible(f"There is no {command[0]} here.") from None
    except subprocess.CalledProcessError as error:
        raise Impossible(f"{command[0]} does not work here: {error.stderr.strip()}") from None


def _fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def read_only(folder: Path, seed: str) -> Run:
    """The database can be written no more for a time: under load, and when a server starts."""
    with Rig(folder, seed) as rig:
        rig.start()
        with rig.load():
            time.sleep(1)
            with _immutable(rig.database):
                time.sleep(FAULT_SECONDS)
            time.sleep(1)
        rig.kill()
        with _immutable(rig.database):
            rig.try_to_start()
        rig.start()
        return rig.settle()


@contextmanager
def _immutable(database: Path) -> Iterator[None]:
    files = [str(database), f"{database}-wal"]
    try:
        # RequestKind rights a file has means nothing to root, who runs this in a container.
        _run_or_give_up("chattr", "+i", *files)
        yield
    finally:
        subprocess.run(["chattr", "-i", *files], check=False, capture_output=True)


def no_names(folder: Path, seed: str) -> Run:
    """For a time no name can be resolved."""
    sign = folder / "no-names"
    settings = {"NO_NAMES": str(sign), "PYTHONPATH": str(HERE / "resolver")}
    with Rig(folder, seed, **settings) as rig:
        rig.receiver = rig.receiver.replace("127.0.0.1", "localhost")
        rig.start()
        with rig.load():
            time.sleep(1)
            sign.touch()
            time.sleep(FAULT_SECONDS)
            sign.unlink()
            time.sleep(1)
        return rig.settle()


def hanging(folder: Path, seed: str) -> Run:
    """For a time the receiver takes connections and requests, and answers none of them."""
    with Rig(folder, seed) as rig:
        rig.extra_fields = {"timeout": WEBHOOK_TIMEOUT}
        rig.start()
        with rig.load():
            time.sleep(1)
            rig.hanging.set()
            time.sleep(HANG_SECONDS)
            rig.hanging.clear()
            time.sleep(1)
        return rig.settle()


def stepped_clock(folder: Path, seed: str) -> Run:
    """The clock goes forward by more than the farthest deadline, back behind the start, and forward
    again, so that all is due in the end."""
    ahead = DELAYS[-1] * 1.2
    with Rig(folder, seed, **_faked_time(folder / "time")) as rig:
        rig.step(0)
        rig.start()
        with rig.load():
            for seconds in (0, ahead, -ahead / 2, 0, 3 * ahead):
                rig.step(seconds)
                time.sleep(1.5)
        return rig.settle()


def _faked_time(file: Path) -> dict[str, str]:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        raise Impossible("libfaketime is missing (on Debian and Ubuntu: apt-get install faketime).")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def torn_log(folder: Path, seed: str, tears: int = TEARS) -> Run:
    """The log that a killed server leaves ends too early, or in something else: so many times.

    Whatever was committed before that place is there, and of what came after it nothing is. A
    server starts on what is left, and all that is due in it gets done.
    """
    with Rig(folder, seed) as rig:
        rig.start()
        with rig.load():
            _wait_for_log(rig.database)
            rig.kill()
        left = Files.left(rig.database)
        rig.start()
        run = rig.settle()
        rig.kill()
        for _ in range(tears):
            place = rig.dice.randrange(len(left.log) + 1)
            torn = left.torn(place, rig.dice.randbytes(rig.dice.choice(GARBAGE)))
            clean = left.torn(place, b"").committed()
            if torn.timers(folder / "torn.db") != clean.timers(folder / "clean.db"):
                run.violations.append(f"torn at {place}: it is not what was committed by then")
        left.torn(rig.dice.randrange(len(left.log)), b"").lay_down(rig.database)
        rig.start()
        run.violations += [f"{id}: not done from a torn log" for id in rig.undone()]
        return run


def _wait_for_log(database: Path) -> None:
    # From 4 MB on SQLite moves it into the database, which it does only once the log is safe.
    end = time.monotonic() + FAULT_SECONDS
    while time.monotonic() < end and log_of(database).stat().st_size < 2_000_000:
        time.sleep(0.01)
