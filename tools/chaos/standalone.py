"""Faults around the standalone server, which runs under load as its own process.

Clients create timers, cancel them, set new deadlines and fire them; receivers reject some of the
webhooks. The seed determines the plan of requests and kills. How far the server gets with it
depends on the machine.
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

from chalicelib.core.representation import TimerResource
from chalicelib.core.timer import DEFAULT_TENANT, FINAL, keyed_id
from chalicelib.runtime import now
from tests.support.processes import Arrival, Receiver, Standalone, wait_until
from tools.chaos.ledger import Crash, Ledger, Received, Request, RequestKind, Run
from tools.chaos.log import Files, log_of

HERE = Path(__file__).parent

CLIENTS = 8

MAX_PAUSE = 0.03
"""Seconds between two requests of a client, at most."""

DELAYS = (0.0, 0.2, 0.5, 1.0, 2.0, 3600.0)
"""Delays to request, in seconds. The last one lies beyond the end of any run."""

RESPONSES = ("200",) * 9 + ("500,200", "0,200", "410")
"""Statuses of successive attempts; 0 cuts the connection. The last one repeats."""

RETRY = {"max_attempts": 15, "initial_delay": 1, "max_delay": 1}

SETTLE_SECONDS = 90.0
"""Seconds that the server has to finish all due timers after the faults."""

HANG_SECONDS = 4.0
"""Seconds that the receiver hangs. It is longer than WEBHOOK_TIMEOUT."""

WEBHOOK_TIMEOUT = 3
"""Seconds that a webhook to the hanging receiver may take."""

FAULT_SECONDS = 3.0
"""Seconds that the other faults last."""

TEARS = 50
"""Number of places at which one log is torn."""

GARBAGE = (0, 1, 24, 4096, 10_000)
"""Numbers of random bytes after the tear."""

KILLED_AT_START = 0.3
"""The share of kills during the start of the server."""

MAX_LOAD = 1.0
"""Seconds of load before a kill, at most."""

KILLS_PER_DATABASE = 20
"""Kills before the server must finish all due timers and the ledger is checked."""


_decode = msgspec.json.Decoder(TimerResource).decode  # created before any thread starts


class Impossible(Exception):
    """This machine does not allow the fault; `str(error)` gives the reason."""


class Client:
    """Creates and changes timers, one request at a time, and records each response."""

    def __init__(self, rig: "Rig", number: int, rng: Random) -> None:
        self._rig = rig
        self._number = number
        self._rng = rng
        self._keys = 0
        self._pending: dict[str, dict[str, Any]] = {}
        """Bodies of creates without a success response yet, by idempotency key."""
        self._mine: list[str] = []
        self._unseen: list[str] = []
        """Timers whose creation was confirmed, and that are read again after a restart."""
        self._session = requests.Session()
        # The server could close a kept connection just as the next request is sent.
        self._session.headers["Connection"] = "close"

    def work(self, over: threading.Event) -> None:
        """Send requests until `over` is set or the server is gone, unfinished creates first."""
        for key in list(self._pending):
            if not self._create(key):
                return
        for id in self._unseen:
            if self._ask("read", id, "GET").status is None:
                return
        self._unseen = []
        while not over.wait(self._rng.uniform(0, MAX_PAUSE)):
            if not self._anything():
                return

    def _anything(self) -> bool:
        draw = self._rng.random()
        if draw < 0.6 or not self._mine:
            self._keys += 1
            key = f"{self._number}-{self._keys}"
            self._pending[key] = self._new_body()
            return self._create(key)
        id = self._rng.choice(self._mine[-20:])
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
        url = f"{self._rig.receiver}/{{id}}/{self._rng.choice(RESPONSES)}"
        body = {"fire_at": self._deadline().isoformat(), "url": url, "retry": RETRY}
        return body | self._rig.extra_fields

    def _deadline(self) -> datetime:
        return self._rig.clock() + timedelta(seconds=self._rng.choice(DELAYS))

    def _create(self, key: str) -> bool:
        """Create or repeat the timer of this key; return whether the server responded."""
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
    """A database, its successive servers, clients and a receiver."""

    def __init__(self, folder: Path, seed: str, **settings: str) -> None:
        self.database = folder / "timers.db"
        self.ledger = Ledger()
        self.rng = Random(seed)  # noqa: S311
        self.hanging = threading.Event()
        self.extra_fields: dict[str, Any] = {}
        """Further fields of each new timer."""
        self.starting = 0.5
        """Seconds that the last start took."""
        self._settings = settings
        self._steps = [(datetime.min.replace(tzinfo=now().tzinfo), timedelta(0))]
        self._dead_since: datetime | None = None
        self._troubles: list[str] = []
        self._receiver = Receiver(self._hold, status_of=self._answer)
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
        """Return the time by the server's clock."""
        return now() + self._steps[-1][1]

    def step(self, seconds: float) -> None:
        """Set how many seconds the server's clock is ahead of ours; negative is behind."""
        file = Path(self._settings["FAKETIME_TIMESTAMP_FILE"])
        new = file.with_suffix(".new")
        new.write_text(f"{seconds:+}")
        self._steps.append((now(), timedelta(seconds=seconds)))
        new.replace(file)

    def start(self) -> None:
        """Start a server and wait until it is ready."""
        began = time.monotonic()
        self.spawn()
        self.server.wait_until_ready()
        self.starting = time.monotonic() - began
        self._end_crash()

    def try_to_start(self) -> None:
        """Start a server that may fail to start: it must exit with one line. Otherwise kill it."""
        self.spawn()
        try:
            self.server.wait_until_ready()
        except AssertionError:
            status, lines = self.server.process.wait(60), self.server.lines
            self.server.kill()  # closes its pipes
            if status != 1 or len(lines) != 1:
                self._troubles.append(f"The server exited with {status} and printed: {lines}")
        else:
            self.kill()

    def spawn(self) -> None:
        """Start a server without waiting for it."""
        self.server = Standalone(self.database, self._settings)
        self.server.spawn()

    @contextmanager
    def load(self) -> Iterator[None]:
        """Run all clients during the block."""
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
        assert status is None, (
            f"The server exited by itself with {status}: {self.server.lines[-20:]}"
        )
        self._dead_since = self.clock()
        self.server.kill()
        self._look_for_tracebacks()

    def settle(self) -> Run:
        """Wait for all due timers, and check the promises."""
        self.undone()  # the ledger reports the rest as lost
        self.ledger.ended = self.clock()
        self.ledger.received = [self._received(it) for it in self._receiver.arrivals]
        self._look_for_tracebacks()
        run = Run.of(self.ledger)
        run.violations += self._troubles
        return run

    def undone(self) -> list[str]:
        """Wait for all due timers; return the ids of the timers that are still not final."""
        with suppress(AssertionError):
            wait_until(lambda: not self._due(), SETTLE_SECONDS)
        return self._due()

    def _due(self) -> list[str]:
        # One unfiltered list: a timer that changes its status could miss every filtered list.
        try:
            self.ledger.ends = {timer.id: timer for timer in self._timers()}
        except requests.ConnectionError:
            raise AssertionError(
                f"The server exited by itself: {self.server.lines[-20:]}"
            ) from None
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
        # A step may come between sending and arrival. Then use the clock that is ahead.
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
    """Kill the server repeatedly, under load or during its start."""
    with Rig(folder, seed) as rig:
        for _ in range(deaths):
            if rig.rng.random() < KILLED_AT_START:
                rig.spawn()
                time.sleep(rig.rng.random() * rig.starting)
                rig.kill()
            else:
                rig.start()
                with rig.load():
                    time.sleep(rig.rng.random() * MAX_LOAD)
                    rig.kill()
        rig.start()
        return rig.settle()


def full_disk(folder: Path, seed: str) -> Run:
    """Fill the disk under load, then kill and restart the server on the full disk."""
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
        raise Impossible(f"{command[0]} is not installed.") from None
    except subprocess.CalledProcessError as error:
        raise Impossible(f"{command[0]} does not work here: {error.stderr.strip()}") from None


def _fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def read_only(folder: Path, seed: str) -> Run:
    """Make the database read-only for a time, under load and during a start."""
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
        # File modes do not bind root, and in a container this runs as root.
        _run_or_give_up("chattr", "+i", *files)
        yield
    finally:
        subprocess.run(["chattr", "-i", *files], check=False, capture_output=True)


def no_names(folder: Path, seed: str) -> Run:
    """Make name resolution fail for a time."""
    flag = folder / "no-names"
    settings = {"NO_NAMES": str(flag), "PYTHONPATH": str(HERE / "resolver")}
    with Rig(folder, seed, **settings) as rig:
        rig.receiver = rig.receiver.replace("127.0.0.1", "localhost")
        rig.start()
        with rig.load():
            time.sleep(1)
            flag.touch()
            time.sleep(FAULT_SECONDS)
            flag.unlink()
            time.sleep(1)
        return rig.settle()


def hanging(folder: Path, seed: str) -> Run:
    """Let the receiver accept requests for a time without responding."""
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
    """Step the clock beyond the last deadline, back before the start, and forward again.

    In the end every timer is due.
    """
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
    """Truncate the log of a killed server at random places, with or without garbage after it.

    SQLite must recover exactly the transactions committed before the tear. A server then starts on
    a torn log and must finish all its due timers.
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
            place = rig.rng.randrange(len(left.log) + 1)
            torn = left.torn(place, rig.rng.randbytes(rig.rng.choice(GARBAGE)))
            clean = left.torn(place, b"").committed()
            if torn.timers(folder / "torn.db") != clean.timers(folder / "clean.db"):
                run.violations.append(
                    f"torn at {place}: SQLite did not recover the committed transactions"
                )
        left.torn(rig.rng.randrange(len(left.log)), b"").lay_down(rig.database)
        rig.start()
        run.violations += [f"{id}: not finished from a torn log" for id in rig.undone()]
        return run


def _wait_for_log(database: Path) -> None:
    # Stop well before 4 MB, where SQLite starts to move the log into the database.
    end = time.monotonic() + FAULT_SECONDS
    while time.monotonic() < end and log_of(database).stat().st_size < 2_000_000:
        time.sleep(0.01)
