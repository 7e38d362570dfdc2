"""The service keeps its promises under faults, and the ledger detects each broken promise.

`make chaos` injects far more faults.
"""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from chalicelib.core import representation
from chalicelib.core.timer import DEFAULT_TENANT, Outcome, Status, Timer, Webhook, new_timer
from tests.support.fakes import NO_CONTENT, START
from tools.chaos import aws, standalone
from tools.chaos.__main__ import FAULTS
from tools.chaos.ledger import Crash, Ledger, Received, Request, Run
from tools.chaos.log import Files, log_of
from tools.chaos.standalone import Impossible

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
DUE = START + MINUTE
NEW = new_timer("a", DEFAULT_TENANT, Webhook(url="https://x.test/"), DUE, START)


def attempted(timer: Timer, outcome: Outcome = NO_CONTENT, late: timedelta = SECOND) -> Timer:
    """Return the timer after one more attempt; it is retried unless that was a success."""
    claimed = timer.claim(timer.wakeup(), DUE + MINUTE, DUE + 2 * MINUTE)
    assert claimed is not None
    retry_at = None if outcome.succeeded else DUE + late
    return claimed.record(outcome, timer.due_at + late, retry_at)


def ledger_of(end: Timer | None, *webhooks: Received, crashes: tuple[Crash, ...] = ()) -> Ledger:
    """Return the ledger of one timer that was created for `DUE`, with its end."""
    ends = {} if end is None else {"a": representation.represent(end, DUE)}
    created = Request("create", "a", START, START, 201, DUE)
    return Ledger([created], list(webhooks), list(crashes), ends, DUE + 2 * MINUTE)


def sent(attempt: int = 1, seconds: float = 1, status: int = 204) -> Received:
    return Received("a", DUE + timedelta(seconds=seconds), DUE, attempt, status)


def asked(ledger: Ledger, request: Request) -> Ledger:
    ledger.requests.append(request._replace(began=START + SECOND, ended=START + 2 * SECOND))
    return ledger


CANCEL = Request("cancel", "a", START, START, 200, DUE)
MOVE = Request("move", "a", START, START, 200, DUE + MINUTE)
LATE = DUE + 9 * MINUTE
CRASH = Crash(DUE + SECOND, DUE + 2 * SECOND)
DELIVERED = attempted(NEW)
FAILED_ONCE = attempted(NEW, Outcome(status=500))
LOST = attempted(attempted(NEW, Outcome(error="worker lost")))
CANCELLED = NEW.cancel(START)

KEPT = {
    "delivered": ledger_of(DELIVERED, sent()),
    "tried again": ledger_of(attempted(FAILED_ONCE), sent(1, 1, 500), sent(2, 3)),
    "sent again after a crash": ledger_of(LOST, sent(1), sent(2, 3), crashes=(CRASH,)),
    "sent again after a hang-up": ledger_of(
        attempted(FAILED_ONCE), sent(1, 1, 0), sent(1, 1, 0), sent(2, 3)
    ),
    "cancelled": asked(ledger_of(CANCELLED), CANCEL),
    "cancelled, perhaps": asked(ledger_of(DELIVERED, sent()), CANCEL._replace(status=503, why="?")),
    "moved, perhaps": asked(ledger_of(DELIVERED, sent()), MOVE._replace(status=503, why="?")),
    "not due yet": asked(ledger_of(NEW.change(NEW, LATE)), MOVE._replace(deadline=LATE)),
    "cut off by a crash": asked(
        ledger_of(DELIVERED, sent(), crashes=(Crash(START, START + MINUTE),)),
        MOVE._replace(status=None),
    ),
}
"""Ledgers that keep every promise."""


def failed_for_no_reason() -> Ledger:
    ledger = ledger_of(FAILED_ONCE, sent(1, 1, 500))
    ledger.ends["a"].status = Status.FAILED
    return ledger


BROKEN = {
    "lost: the timer is gone": ledger_of(None),
    "lost: still scheduled": ledger_of(NEW),
    "lost: delivered, but nothing arrived": ledger_of(DELIVERED),
    "lost: cancelled without a request": ledger_of(CANCELLED),
    "lost: read got 404": asked(
        ledger_of(DELIVERED, sent()), Request("read", "a", START, START, 404, why="?")
    ),
    "lost: failed without a reason": failed_for_no_reason(),
    "the timer was never requested": Ledger(
        ends={"a": representation.represent(CANCELLED, DUE)}, ended=DUE
    ),
    "early: attempt 1 arrived": ledger_of(DELIVERED, sent(seconds=-1)),
    "early: attempt 1 was made": ledger_of(attempted(NEW, late=-SECOND), sent()),
    "wrong deadline: attempt 1": asked(ledger_of(DELIVERED, sent()), MOVE),
    "wrong deadline: it became": asked(ledger_of(CANCELLED), MOVE),
    "twice: attempts 1 and 2": ledger_of(LOST, sent(1), sent(2, 3)),
    "twice: attempts 1 and 1": ledger_of(FAILED_ONCE, sent(1, 1, 500), sent(1, 3, 500)),
    "twice: attempts 1 and 1 without": ledger_of(
        FAILED_ONCE, *(sent(1, 1 + n, 0) for n in range(3))
    ),
    "sent after a cancel": asked(ledger_of(CANCELLED, sent()), CANCEL),
    "delivered after a cancel": asked(ledger_of(DELIVERED, sent()), CANCEL),
    "move at 12:00:01.000000 got no response": asked(
        ledger_of(DELIVERED, sent()), MOVE._replace(status=None)
    ),
    "got 503 ''": asked(ledger_of(DELIVERED, sent()), MOVE._replace(status=503)),
    "got 500 'Oh.'": asked(ledger_of(DELIVERED, sent()), MOVE._replace(status=500, why="Oh.")),
}
"""Ledgers with one broken promise, by a part of the line that reports it."""


@pytest.mark.parametrize("name", KEPT)
def test_accepts_kept_promises(name: str) -> None:
    """A ledger that keeps every promise has no violations."""
    assert KEPT[name].violations() == []


@pytest.mark.parametrize("line", BROKEN)
def test_detects_broken_promises(line: str) -> None:
    """Each way to break a promise is reported with its own line."""
    assert any(line in violation for violation in BROKEN[line].violations())


def test_unrelated_crash_does_not_excuse_a_duplicate() -> None:
    """A duplicate is excused only if its sender crashed between the two webhooks."""
    elsewhere = CRASH._replace(ids=frozenset("b"))
    for crash in (elsewhere, Crash(START, START), Crash(LATE, LATE)):
        assert ledger_of(LOST, sent(1), sent(2, 3), crashes=(crash,)).violations()


def test_reads_a_torn_log_as_sqlite_does(tmp_path: Path) -> None:
    """A transaction exists from the byte that completes its last frame."""
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE timers (id, timer)")
        ends = []
        for number in range(3):
            db.execute("INSERT INTO timers VALUES (?, ?)", (number, "x" * 5000))
            ends.append(log_of(path).stat().st_size)
        left = Files.left(path)
    for number, end in enumerate(ends):
        for place, there in ((end - 1, number), (end, number + 1)):
            torn, clean = left.torn(place, b"garbage"), left.torn(place, b"").committed()
            assert len(torn.timers(tmp_path / "torn.db")) == there
            assert len(clean.timers(tmp_path / "clean.db")) == there


KILLS = 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[Run]"]]:
    """Run all faults of the standalone server concurrently, each on its own server."""
    faults: dict[str, Callable[[Path, str], Run]] = {
        "kill -9": partial(standalone.kills, deaths=KILLS),
        **FAULTS,
    }
    with ThreadPoolExecutor() as pool:
        yield {
            name: pool.submit(fault, tmp_path_factory.mktemp("chaos"), "1")
            for name, fault in faults.items()
        }


SIGNS_OF_FAULT: dict[str, Callable[[Run], object]] = {
    "kill -9": lambda run: run.figures["deaths"] == KILLS and run.errors["worker lost"],
    "full disk": lambda run: run.figures["refused"],
    "read-only file": lambda run: run.figures["refused"],
    "torn log": lambda run: run.figures["deaths"],
    "stepped clock": lambda run: run.figures["webhooks"],
    "no name resolved": lambda run: run.errors["dns"],
    "receiver hangs": lambda run: run.errors["timeout"],
}
"""Whether a run shows signs that its fault took effect."""


@pytest.mark.e2e
@pytest.mark.parametrize("fault", SIGNS_OF_FAULT)
def test_standalone_server_keeps_its_promises(runs: dict[str, "Future[Run]"], fault: str) -> None:
    """The standalone server breaks no promise under any of the faults."""
    try:
        run = runs[fault].result()
    except Impossible as error:
        pytest.skip(str(error))
    assert run.violations == []
    assert SIGNS_OF_FAULT[fault](run)


@pytest.mark.parametrize("storm", [aws.simulated, aws.emulated], ids=lambda it: it.__name__)
def test_deployed_service_keeps_its_promises(storm: Callable[[str], Run]) -> None:
    """The AWS side breaks no promise if calls fail and events are late, doubled or reordered.

    The same seed reproduces the same run.
    """
    runs = [storm(seed) for seed in "0123"]
    together = Run.together(zip("0123", runs, strict=True))
    assert together.violations == []
    assert together.errors["worker lost"]
    assert together.figures["unanswered"]
    assert together.figures["refused"]
    assert storm("0") == runs[0] != runs[1]
