"""SqliteTimerStore: the contract, group commit, durability, migrations, unusable files."""

import ast
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from chalicelib.core.errors import OperatorError, Unavailable
from chalicelib.core.pagination import Page, TimerFilter, cursor_of
from chalicelib.core.timer import DEFAULT_TENANT, RETENTION, Status, Timer, Wakeup
from chalicelib.service.concurrency import in_threads
from chalicelib.service.ports import Store
from standalone.sqlite import schema, timer_store, writer
from standalone.sqlite.connection import connect
from standalone.sqlite.schema import MIGRATIONS, from_micros, to_micros
from standalone.sqlite.timer_store import SqliteTimerStore
from standalone.sqlite.timer_writes import (
    Add,
    Claim,
    Replace,
    TimerWrite,
    apply_all,
    row_of,
)
from tests.contracts.store import HOUR, SECOND, StoreContract, make, newest_first, walk
from tests.support.fakes import START, FakeStore
from tests.support.processes import ROOT

DATA = ROOT / "tests/compat/databases"

NORMAL, FULL = 1, 2
"""Values of `PRAGMA synchronous`."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timers.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteTimerStore]:
    with closing(SqliteTimerStore(path)) as store:
        yield store


class TestSqliteTimerStore(StoreContract):
    """The contract of all stores, on a real file."""

    @pytest.fixture
    def store(self, path: Path) -> Iterator[SqliteTimerStore]:
        with closing(SqliteTimerStore(path)) as store:
            yield store

    def expire(self, store: Store, now: object) -> None:
        assert isinstance(store, SqliteTimerStore)
        assert isinstance(now, type(START))
        store.purge(now)


def statements(store: SqliteTimerStore) -> list[str]:
    """Return a list that collects the writer's SQL from now on."""
    seen: list[str] = []
    store._writer._db.set_trace_callback(seen.append)
    return seen


def held(store: SqliteTimerStore) -> threading.Event:
    """Keep the writer inside a transaction until the event is set."""
    entered, go = threading.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        entered.set()
        assert go.wait(10)

    threading.Thread(target=lambda: store._writer.call(hold, durable=False)).start()
    assert entered.wait(10)
    return go


def wait_for_queue(store: SqliteTimerStore, length: int) -> None:
    """Wait until the writer's queue has this length."""
    for _ in range(1000):
        if store._writer._queue.qsize() >= length:
            return
        threading.Event().wait(0.01)
    pytest.fail(f"{length} writes never came")


def test_queued_writes_share_one_commit(store: SqliteTimerStore) -> None:
    """Group commit: writes queued during a commit share the next transaction and its statements."""
    with ThreadPoolExecutor(20) as clients:
        go = held(store)
        added = [clients.submit(store.add, make(number)) for number in range(20)]
        wait_for_queue(store, 20)
        seen = statements(store)
        go.set()
        assert all(future.result() for future in added)
    assert seen.count("COMMIT") == 2  # one for the write that was held, one for all others
    commit = seen[seen.index("COMMIT") + 1 :]
    assert [sql.split()[0] for sql in commit] == ["PRAGMA", "BEGIN", "SELECT", "INSERT", "COMMIT"]


@pytest.mark.parametrize("earlier", ["add", "check"])
@pytest.mark.parametrize(
    ("write", "level"), [("add", FULL), ("replace", FULL), ("remove", FULL), ("claim", NORMAL)]
)
def test_all_writes_but_claims_are_synced_to_disk(
    store: SqliteTimerStore, write: str, level: int, earlier: str
) -> None:
    """Each write but a claim is synced before it returns. Earlier writes make no difference."""
    timer = make(1)
    store.add(timer)
    writes: dict[str, Callable[[], object]] = {
        "check": store.check,
        "add": lambda: store.add(make(2)),
        "replace": lambda: store.replace(timer.cancel(START)),
        "remove": lambda: store.remove(timer),
        "claim": lambda: store.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR),
    }
    writes[earlier]()
    writes[write]()
    assert store._writer._db.execute("PRAGMA synchronous").fetchone() == (level,)
    with closing(sqlite3.connect(store._path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_synchronous_is_set_only_if_it_changes(store: SqliteTimerStore) -> None:
    """A transaction that is synced like the one before costs no further statement."""
    store.add(make(1))
    seen = statements(store)
    store.add(make(2))
    assert not any("synchronous" in sql for sql in seen)


def test_add_returns_after_the_commit(store: SqliteTimerStore, path: Path) -> None:
    """Another connection sees a timer as soon as `add` has returned."""
    timer = make()
    store.add(timer)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT id FROM timers").fetchall() == [(timer.id,)]


def together(
    store: SqliteTimerStore, calls: Sequence[Callable[[], object]]
) -> list[Future[object]]:
    """Make calls whose writes wait for one transaction, in this order."""
    with ThreadPoolExecutor(len(calls)) as clients:
        go = held(store)
        made = []
        for count, call in enumerate(calls, 1):
            made.append(clients.submit(call))
            wait_for_queue(store, count)
        go.set()
    return made


def with_no_tenant() -> Timer:
    return msgspec.structs.replace(make(3), tenant=None)


def raising(db: sqlite3.Connection) -> None:
    raise ZeroDivisionError


FAILURES: dict[str, tuple[Callable[[SqliteTimerStore], object], type[Exception]]] = {
    "SQL": (lambda store: store._writer.call(lambda db: db.execute("UPDATE nowhere")), Unavailable),
    "exception": (lambda store: store._writer.call(raising), ZeroDivisionError),
    "constraint": (lambda store: store.add(with_no_tenant()), Unavailable),
    "surrogate": (
        lambda store: store.claim(Wakeup("\ud800", DEFAULT_TENANT, 1, START), START, START),
        UnicodeEncodeError,
    ),
    "unreadable timer": (
        lambda store: store.claim(make(8).wakeup(), START + 2 * HOUR, START + 3 * HOUR),
        msgspec.DecodeError,
    ),
    "number": (
        lambda store: store.add(msgspec.structs.replace(make(3), version=2**63)),
        OverflowError,
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_write_fails_alone(store: SqliteTimerStore, failure: str) -> None:
    """A write that fails does not fail the others in its transaction."""
    waiting, replaced = make(1), make(2)
    for timer in (waiting, replaced, make(8)):
        store.add(timer)
    spoil = "UPDATE timers SET timer = '{' WHERE id = ?"
    store._writer.call(lambda db: db.execute(spoil, (make(8).id,)))
    fail, error = FAILURES[failure]
    calls: list[Callable[[], object]] = [
        lambda: store.add(make(4)),
        lambda: store.claim(waiting.wakeup(), waiting.due_at, waiting.due_at + HOUR),
        lambda: fail(store),
        lambda: store.replace(replaced.cancel(START)),
    ]
    made = together(store, calls)
    with pytest.raises(error):
        made.pop(2).result()
    assert all(future.result() for future in made)
    assert store.get(DEFAULT_TENANT, make(4).id) == make(4)
    assert store.get(DEFAULT_TENANT, replaced.id) == replaced.cancel(START)


def test_each_write_of_a_transaction_gets_its_own_answer(store: SqliteTimerStore) -> None:
    """One transaction can hold writes of every kind, successful ones and others."""
    stored = [make(number) for number in range(4)]
    for timer in stored:
        store.add(timer)
    late, lease = stored[0].due_at + HOUR, stored[0].due_at + 2 * HOUR
    stale = msgspec.structs.replace(stored[1].wakeup(), generation=2)
    answers = together(
        store,
        [
            lambda: store.add(make(5)),
            lambda: store.add(stored[0]),
            lambda: store.claim(stored[0].wakeup(), late, lease),
            lambda: store.claim(stale, late, lease),
            lambda: store.claim(make(6).wakeup(), late, lease),
            lambda: store.replace(stored[2].cancel(START)),
            lambda: store.replace(msgspec.structs.replace(stored[3], version=3)),
            lambda: store.replace(make(7).cancel(START)),
        ],
    )
    claimed = stored[0].claim(stored[0].wakeup(), late, lease)
    expected = [True, False, claimed, None, None, True, False, False]
    assert [future.result() for future in answers] == expected
    after = [claimed, stored[1], stored[2].cancel(START), stored[3], make(5), None, None]
    ids = [make(number).id for number in (0, 1, 2, 3, 5, 6, 7)]
    assert [store.get(DEFAULT_TENANT, id) for id in ids] == after


@pytest.mark.parametrize("seed", range(20))
def test_writes_in_one_transaction_act_as_if_one_by_one(store: SqliteTimerStore, seed: int) -> None:
    """Many writes of few timers in one transaction have the results that they have one by one."""
    random, model = Random(seed), FakeStore()  # noqa: S311  # the same every time
    late, lease = START + 2 * HOUR, START + 3 * HOUR
    writes: list[TimerWrite] = []
    expected: list[object] = []
    for _ in range(200):
        new = make(random.randrange(12), tenant=random.choice(["a", "b"]))
        timer = random.choice([new, model.timers.get(new.id, new)])
        changed = random.choice([timer.confirm(), timer.mark_unarmed(START)])
        match random.choice(["add", "claim", "replace"]):
            case "add":
                writes.append(Add(row_of(new)))
                expected.append(new if model.add(new) else None)
            case "claim":
                writes.append(Claim(timer.wakeup(), late, lease))
                expected.append(model.claim(timer.wakeup(), late, lease))
            case "replace":
                writes.append(Replace(row_of(changed)))
                expected.append(changed if model.replace(changed) else None)
    rows = store._writer.call(lambda db: apply_all(db, writes))
    assert [None if row is None else row.timer for row in rows] == expected
    columns = store._read("SELECT id, tenant, version, timer FROM timers ORDER BY id", ())
    model_columns = [
        (timer.id, timer.tenant, timer.version, msgspec.json.encode(timer).decode())
        for _, timer in sorted(model.timers.items())
    ]
    assert columns == model_columns


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 500])
def test_any_number_of_timers_is_written(store: SqliteTimerStore, count: int) -> None:
    """A transaction may hold more values than SQLite 3.31 allows in one statement."""
    store._writer._db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    timers = [make(number) for number in range(count)]
    store._writer.call(lambda db: apply_all(db, [Add(row_of(timer)) for timer in timers]))
    changed = [timer.confirm() for timer in timers]
    assert store.replace_all(changed) == changed
    rows = store._read("SELECT timer FROM timers ORDER BY id", ())
    assert [timer_store._decode(row[0]) for row in rows] == changed


STRANGE: dict[str, dict[str, Any]] = {
    "plain": {},
    "NUL": {"label": "a\x00b", "tenant": "\x00", "body": "\x00\x00", "metadata": {"\x00": "\x00"}},
    "NUL in the id": {"id": "\x00x", "label": "\x00"},
    "empty": {"label": "", "tenant": "", "id": ""},
    "Unicode": {
        "label": "\U0001f680é\u2028\ufeff",
        "tenant": "ü",
        "id": "\u202e",
        "body": "\uffff",
    },
    "quotes": {"label": "'\"\\%_;--", "tenant": "\\u0000", "body": '{"a": [1, null]}'},
    "like a number": {"label": "1e3", "tenant": "007", "id": "12"},
    "like JSON": {"label": "null", "tenant": "{}", "id": "[1]"},
    "controls": {"label": "".join(map(chr, range(32))), "body": "\x7f\x80\r\n"},
    "large numbers": {"version": 2**63 - 1, "generation": 2**53 + 1},
    "far times": {
        "due_at": datetime.max.replace(tzinfo=UTC),
        "wake_at": None,
        "expires_at": datetime.max.replace(tzinfo=UTC),
        "created_at": datetime.min.replace(tzinfo=UTC),
    },
    "large": {"body": "\x00é" * 128 * 1024},
}


@pytest.mark.parametrize("strange", STRANGE)
def test_rows_keep_every_value(store: SqliteTimerStore, strange: str) -> None:
    """A row holds the timer's values to the byte, also after it was replaced."""
    timer = msgspec.structs.replace(make(), **STRANGE[strange])
    version = timer.version - 1
    before = msgspec.structs.replace(
        make(label="x"), id=timer.id, tenant=timer.tenant, version=version
    )
    before = msgspec.structs.replace(before, url="http://[::1]:81/", expires_at=START)
    assert store.add(timer)
    added = store._read("SELECT * FROM timers", ())
    store._writer.call(lambda db: db.execute("DELETE FROM timers"))
    assert store.add(before)
    assert store.replace(timer)
    assert added == store._read("SELECT * FROM timers", ()) == [columns_of(timer)]


def columns_of(timer: Timer) -> tuple[object, ...]:
    """Return the row of a timer for example.com, in the table's order."""
    moments = [timer.due_at, timer.wake_at, timer.expires_at, timer.created_at]
    numbers = [None if at is None else (at - EPOCH) // timedelta(microseconds=1) for at in moments]
    text = msgspec.json.encode(timer).decode()
    return (
        *(timer.id, timer.tenant, timer.version, timer.generation, timer.status.value),
        *(*numbers[:3], text, numbers[3], timer.label, "example.com"),
    )


def test_a_full_disk_is_unavailable_until_there_is_room(store: SqliteTimerStore) -> None:
    """On a full disk, writes raise Unavailable and store nothing; later writes succeed."""
    store.add(make(1))

    def limit(pages: int) -> None:
        store._writer._db.execute(f"PRAGMA max_page_count = {pages}")

    limit(1)
    with pytest.raises(Unavailable, match="full"):
        all(store.add(make(number)) for number in range(2, 1000))
    stored = store.overdue(START + 10 * HOUR, 2000)
    limit(1_000_000)
    assert store.add(make(5000))
    assert len(store.overdue(START + 10 * HOUR, 2000)) == len(stored) + 1
    store.check()


def test_waiting_reads_every_timer_in_firing_order(store: SqliteTimerStore) -> None:
    """Reading on from the last position returns each timer once, even with equal deadlines."""
    delays = [5, 1, 3, 3, 3, 3, 2]
    stored = [make(number, delay * SECOND) for number, delay in enumerate(delays)]
    for timer in stored:
        store.add(timer)
    cursor_of, seen = (-(2**63), ""), []
    while page := store.waiting(cursor_of, 2):
        assert len(page) <= 2
        cursor_of = page[-1][0]
        seen += [wakeup for _, wakeup in page]
    assert seen == [t.wakeup() for t in sorted(stored, key=lambda t: (t.due_at, t.id))]


def test_waiting_reads_no_timer_rows(store: SqliteTimerStore) -> None:
    """A refill reads a covering index only: no timer rows, no sort."""
    plan = store._read(f"EXPLAIN QUERY PLAN {timer_store._WAITING}", (5, 5, "x", 10))
    assert all("USING COVERING INDEX timers_wake" in row[3] for row in plan)
    assert all(row[3].startswith("SEARCH") for row in plan)


def test_claimed_timers_are_found_through_an_index(store: SqliteTimerStore) -> None:
    """At start, claimed timers are found by an index that holds the status."""
    plan = store._read(f"EXPLAIN QUERY PLAN {timer_store._CLAIMED}", (Status.DELIVERING,))
    assert all("USING INDEX timers_wake" in row[3] for row in plan)
    index = store._read("SELECT sql FROM sqlite_master WHERE name = 'timers_wake'", ())[0][0]
    assert "status)" in index


def test_a_page_scans_a_bounded_number_of_timers(
    store: SqliteTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page with few matches is short, and its cursor is the last timer that was scanned."""
    monkeypatch.setattr(timer_store, "MAX_ROWS_SCANNED", 5)
    added = [make(number, label="rare" if number in (3, 6) else None) for number in range(12)]
    for timer in added:
        store.add(timer)
    rare = TimerFilter(label="rare")
    first = store.page(DEFAULT_TENANT, rare, None, 10)
    assert first == Page([], cursor_of(added[7]))
    second = store.page(DEFAULT_TENANT, rare, first.next, 10)
    assert second == Page([added[6], added[3]], cursor_of(added[2]))
    assert store.page(DEFAULT_TENANT, rare, second.next, 10) == Page([], None)
    full = store.page(DEFAULT_TENANT, rare, first.next, 1)
    assert full == Page([added[6]], cursor_of(added[6]))
    assert walk(store, TimerFilter(status=Status.CANCELLED)) == []
    assert walk(store, limit=10) == newest_first(added)


def test_a_page_skips_no_timer_when_others_are_removed(
    store: SqliteTimerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers removed between the two queries of a page do not make it skip a match."""
    monkeypatch.setattr(timer_store, "MAX_ROWS_SCANNED", 3)
    added = [make(number, label="rare" if number == 1 else None) for number in range(6)]
    for timer in added:
        store.add(timer)
    read = store._read

    def removing(sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        found = read(sql, parameters)
        store.remove(added[4])
        store.remove(added[5])
        return found

    monkeypatch.setattr(store, "_read", removing)
    assert walk(store, TimerFilter(label="rare")) == [added[1]]


def test_pages_use_their_index(store: SqliteTimerStore) -> None:
    """A page is read within its bounds in the order of an index: no scan, no sort."""
    for sql, parameters in ((timer_store._LAST_SCANNED, 6), (timer_store._PAGE, 8)):
        plan = store._read(f"EXPLAIN QUERY PLAN {sql}", (1,) * parameters)
        assert all(row[3].startswith("SEARCH") and "timers_listed" in row[3] for row in plan)


def test_claimed_returns_timers_under_way(store: SqliteTimerStore) -> None:
    """At start, the store returns the timers that a dead process was sending."""
    waiting, sending = make(1), make(2)
    store.add(waiting)
    store.add(sending)
    claimed = store.claim(sending.wakeup(), sending.due_at, sending.due_at + HOUR)
    assert store.claimed() == [claimed]


def test_requeued_by_sweep_returns_timers_moved_by_a_sweep(
    store: SqliteTimerStore,
) -> None:
    """At start, the store returns the timers whose requeued wake-ups were lost."""
    waiting, put_off, sending = make(1), make(2), make(3)
    for timer in (waiting, put_off, sending):
        store.add(timer)
    requeued = put_off.with_next_check(put_off.due_at + HOUR)
    store.replace(requeued)
    store.claim(sending.wakeup(), sending.due_at, sending.due_at + HOUR)
    assert store.requeued_by_sweep(2) == [requeued]
    plan = store._read(
        "EXPLAIN QUERY PLAN SELECT timer FROM timers"
        " WHERE wake_at > due_at AND status <> 'delivering'",
        (),
    )
    assert "timers_postponed" in plan[0][3]


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    """A path in a loop of symbolic links is refused."""
    path = tmp_path / "timers.db"
    path.symlink_to(path)
    with pytest.raises(OperatorError, match="can't be"):
        SqliteTimerStore(path)


def test_purge_deletes_only_expired_timers(store: SqliteTimerStore) -> None:
    """TTL: finished timers are deleted after the retention; others stay."""
    waiting, finished = make(1), make(2)
    store.add(waiting)
    store.add(finished)
    store.replace(finished.cancel(START))
    assert store.purge(START + RETENTION) == 0
    assert store.purge(START + RETENTION + SECOND) == 1
    assert store.get(DEFAULT_TENANT, waiting.id) == waiting
    assert store.get(DEFAULT_TENANT, finished.id) is None


@contextmanager
def reads_without_a_gap(path: Path) -> Iterator[None]:
    """Run two readers that overlap: each reads until the other has begun."""
    began, stop = (threading.Semaphore(0), threading.Semaphore(1)), threading.Event()

    def read(mine: int) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            while not stop.is_set():
                db.execute("BEGIN")
                db.execute("SELECT count(*) FROM health").fetchone()
                began[mine].release()
                assert began[1 - mine].acquire(timeout=10)
                db.execute("COMMIT")
            began[mine].release()

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read, mine) for mine in (0, 1)]
        try:
            yield
        finally:
            stop.set()
            for each in reading:
                each.result(20)


def test_the_log_is_bounded_under_overlapping_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write-ahead log stays small while reads overlap without a gap."""
    monkeypatch.setattr(writer, "WAL_LIMIT", 2**20)
    monkeypatch.setattr(writer, "CHECKPOINT_TIMEOUT_MS", 10_000)  # readers stall on a busy machine
    body, sizes = "x" * 100_000, []
    with closing(SqliteTimerStore(path)) as store, reads_without_a_gap(path):
        for number in range(100):
            store.add(msgspec.structs.replace(make(number), body=body))
            sizes.append(Path(f"{path}-wal").stat().st_size)
    assert max(sizes) < 2 * 2**20


def test_a_long_reader_causes_few_checkpoints(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another program blocks truncation, it is tried once per WAL_LIMIT; writes are safe."""
    monkeypatch.setattr(writer, "WAL_LIMIT", 2**20)
    monkeypatch.setattr(writer, "CHECKPOINT_TIMEOUT_MS", 1)
    with closing(SqliteTimerStore(path)) as store, closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM health").fetchone()
        seen = statements(store)
        for number in range(40):
            store.add(msgspec.structs.replace(make(number), body="x" * 100_000))
        tried = [sql for sql in seen if "wal_checkpoint" in sql]
        assert 2 <= len(tried) <= 5
        assert store.get(DEFAULT_TENANT, make(39).id) is not None
        reader.rollback()
        store.add(msgspec.structs.replace(make(40), body="x" * 2**20))
        store.check()
    assert path.stat().st_size > 40 * 100_000


def test_a_timer_survives_a_killed_process(path: Path) -> None:
    """A stored timer is there after SIGKILL."""
    timer = make()
    program = (
        "import os, sys; from pathlib import Path;"
        "from standalone.sqlite.timer_store import SqliteTimerStore;"
        "from tests.contracts.store import make; store = SqliteTimerStore(Path(sys.argv[1]));"
        "store.add(make()); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -9
    with closing(SqliteTimerStore(path)) as store:
        assert store.get(DEFAULT_TENANT, timer.id) == timer


def test_a_second_process_is_refused(store: SqliteTimerStore, path: Path) -> None:
    """While one process has the file open, others are refused, also by a symbolic link."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(OperatorError, match="in use by another process"):
            SqliteTimerStore(name)


def test_can_be_opened_again_after_close(path: Path) -> None:
    """After close, the file can be opened again."""
    SqliteTimerStore(path).close()
    SqliteTimerStore(path).close()


def test_files_are_private_to_their_owner(store: SqliteTimerStore, path: Path) -> None:
    """Only the owner can read the database and the files beside it: they hold secrets."""
    store.add(make())
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def unwritable(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "timers.db"


def no_database(tmp_path: Path) -> Path:
    (tmp_path / "timers.db").write_text("This is a letter to my grandmother. " * 100)
    return tmp_path / "timers.db"


def newer(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "timers.db")) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    return tmp_path / "timers.db"


@pytest.mark.parametrize(
    ("make_file", "sentence"),
    [
        (unwritable, "can't be written: Not a directory"),
        (lambda tmp_path: tmp_path, "can't be written: Is a directory"),
        (no_database, "file is not a database"),
        (newer, "is from a newer version of Timers"),
    ],
)
def test_an_unusable_file_is_one_line(tmp_path: Path, make_file: object, sentence: str) -> None:
    """An unusable file is reported in one line, and stays unchanged."""
    path: Path = make_file(tmp_path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(OperatorError, match=sentence) as caught:
        SqliteTimerStore(path)
    assert str(caught.value).count("\n") == 0
    assert before is None or path.read_bytes() == before


def test_a_read_only_database_is_refused_at_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only file is refused when it is opened, not at the first timer."""
    SqliteTimerStore(path).close()
    connect = sqlite3.connect

    def read_only(database: object, **options: object) -> sqlite3.Connection:
        options["uri"] = True
        return connect(f"file:{database}?mode=ro", **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(OperatorError, match="readonly"):
        SqliteTimerStore(path)


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_opens_databases_of_every_version(tmp_path: Path, version: int) -> None:
    """A database of each released version is upgraded with all its timers."""
    path = tmp_path / "timers.db"
    shutil.copy(DATA / f"timers-v{version}.db", path)
    with closing(SqliteTimerStore(path)) as store:
        assert store._read("PRAGMA user_version", ())[0][0] == len(MIGRATIONS)
        rows = store._read("SELECT id, status FROM timers", ())
        assert {status for _, status in rows} == set(Status)
        for id, status in rows:
            timer = store.get(DEFAULT_TENANT, id)
            assert isinstance(timer, Timer)
            assert timer.status == status


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_lists_timers_of_every_version(tmp_path: Path, version: int) -> None:
    """Timers of each released version are listed in order, to the microsecond."""
    path = tmp_path / "timers.db"
    shutil.copy(DATA / f"timers-v{version}.db", path)
    if version < 3:  # those files have whole seconds only
        moments = [START + timedelta(microseconds=it) for it in (1, 999_999, 500_000, 0, 70)]
        moments.append(START - timedelta(days=30_000, microseconds=1))
        with closing(sqlite3.connect(path)) as db, db:
            sql = "UPDATE timers SET timer = json_set(timer, '$.created_at', ?) WHERE id LIKE ?"
            for number, moment in enumerate(moments, 1):
                text = msgspec.json.encode(moment).decode().strip('"')
                assert db.execute(sql, (text, f"%{number}")).rowcount == 1
    with closing(SqliteTimerStore(path)) as store:
        stored = [
            timer_store._decode(row[0]) for row in store._read("SELECT timer FROM timers", ())
        ]
        assert len({timer.created_at for timer in stored}) == len(stored) == len(Status)
        assert walk(store) == newest_first(stored)
        for timer in stored:
            until = timer.created_at + timedelta(microseconds=1)
            assert walk(store, TimerFilter(since=timer.created_at, until=until)) == [timer]
            if timer.label is not None:
                assert walk(store, TimerFilter(label=timer.label)) == [timer]


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_wakeups_of_every_version_have_their_host(tmp_path: Path, version: int) -> None:
    """Waiting timers of each released version have the host of their URL after the upgrade."""
    path = tmp_path / "timers.db"
    shutil.copy(DATA / f"timers-v{version}.db", path)
    with closing(SqliteTimerStore(path)) as store:
        wakeups = [wakeup for _, wakeup in store.waiting((0, ""), 10)]
        assert [wakeup.host for wakeup in wakeups] == ["example.com"] * 2


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_every_version_is_upgraded_to_the_same_schema(tmp_path: Path, version: int) -> None:
    """An upgraded database has the schema of a new one."""

    def tables(path: Path) -> list[Any]:
        with closing(SqliteTimerStore(path)) as store:
            return store._read("SELECT type, name, sql FROM sqlite_master ORDER BY name", ())

    path = tmp_path / "timers.db"
    shutil.copy(DATA / f"timers-v{version}.db", path)
    assert tables(path) == tables(tmp_path / "new.db")


def test_a_failed_migration_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed step, the earlier version can open the database."""
    SqliteTimerStore(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE extra (x); SELECT * FROM nowhere;")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        with pytest.raises(OperatorError, match="nowhere"):
            SqliteTimerStore(path)
    with closing(SqliteTimerStore(path)) as store:
        assert store._read("SELECT name FROM sqlite_master WHERE name = 'extra'", ()) == []


def test_times_keep_their_microseconds() -> None:
    """A column holds a time exactly, also before 1970."""
    for moment in (START, START.replace(microsecond=999_999), START.replace(year=1969, day=1)):
        assert from_micros(to_micros(moment)) == moment
    assert to_micros(START + timedelta(microseconds=1)) == to_micros(START) + 1


def test_writes_to_a_closed_store_are_refused(path: Path) -> None:
    """A write to a closed store raises Unavailable at once."""
    store = SqliteTimerStore(path)
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.add(make())


def test_close_finishes_queued_writes(path: Path) -> None:
    """Writes that were queued before `close` are committed."""
    store = SqliteTimerStore(path)
    go = held(store)
    with ThreadPoolExecutor(2) as clients:
        added = clients.submit(store.add, make())
        wait_for_queue(store, 1)
        closing_store = clients.submit(store.close)
        go.set()
        assert added.result()
        closing_store.result()
    assert os.path.exists(path)  # noqa: PTH110


def test_reads_share_a_bounded_number_of_connections(store: SqliteTimerStore) -> None:
    """The store keeps as many connections as reads ran at once, not one per thread."""
    for _ in range(20):
        in_threads(partial(store.get, DEFAULT_TENANT), ["nobody"] * 8)
    assert 1 <= len(store._readers) <= 8


def test_macos_writes_through_the_disk_cache(store: SqliteTimerStore) -> None:
    """Every connection asks macOS for F_FULLFSYNC, at commits and at checkpoints."""
    with closing(connect(store._path)) as other:
        for db in (store._writer._db, other):
            for pragma in ("fullfsync", "checkpoint_fullfsync"):
                assert db.execute(f"PRAGMA {pragma}").fetchone() == (1,)


@pytest.mark.parametrize("version", [(3, 30, 1), (3, 7, 17)])
def test_an_older_sqlite_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    """A SQLite before 3.31 ends the start with one sentence, and the database stays free."""
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "sqlite_version_info", version)
        with pytest.raises(OperatorError, match=r"needs SQLite 3\.31"):
            SqliteTimerStore(path)
    SqliteTimerStore(path).close()


NEWER_SQL = re.compile(
    r"\b(iif|unixepoch|octet_length|timediff|concat|concat_ws|format|sign|jsonb\w*|string_agg)\s*\("
    r"|->|\bRETURNING\b|\)\s*STRICT\b|\bMATERIALIZED\b|\bDROP COLUMN\b|\bDISTINCT FROM\b"
    r"|\bUPDATE [^;]* SET [^;]* FROM\b|\b(RIGHT|FULL) (OUTER )?JOIN\b"
    r"|\bON CONFLICT\b.*\bON CONFLICT\b",
    re.IGNORECASE,
)
"""SQL that SQLite 3.31 does not have."""


def test_no_statement_needs_a_newer_sqlite() -> None:
    """No SQL text of the store has a feature that SQLite 3.31 lacks."""
    sources = [ast.parse(file.read_text()) for file in (ROOT / "standalone/sqlite").glob("*.py")]
    texts = [
        node.value
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert any("CREATE TABLE timers" in text for text in texts)
    assert not [text for text in texts if NEWER_SQL.search(text)]
