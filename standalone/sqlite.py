"""Store, Keys and Secrets on one SQLite file in WAL mode.

All writes go through one thread, which commits together what arrives together: one fsync for many.
A call returns once its transaction is committed. A read takes a connection and gives it back, so
that there are as many as there ever were reads at the same time.
"""

import fcntl
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from chalicelib.core import signing
from chalicelib.core.api_keys import ApiKey, Role
from chalicelib.core.errors import CommandError, Unavailable
from chalicelib.core.pagination import Cursor as ListPosition
from chalicelib.core.pagination import Page, TimerFilter, cursor_of
from chalicelib.core.timer import Status, Timer, Wakeup, host_of
from standalone.greenlets import run_in_thread, wait

DEFAULT_DATABASE = ".data/timers.db"
"""Where it is, if nobody says otherwise."""

MAX_COMMIT_BATCH = 500
"""The most writes that share one transaction."""

WAL_LIMIT = 16 * 2**20
"""Bytes of the write-ahead log at which writes wait until it can begin anew.

SQLite lets it begin anew in any moment in which nobody reads; reads that overlap without end would
let it grow without end.
"""

CHECKPOINT_TIMEOUT_MS = 200
"""Milliseconds for which they wait. Only another program, say a backup, reads for longer."""

BUSY_TIMEOUT = 5
"""Seconds to wait for another program that writes."""

MAX_ROWS_SCANNED = 10_000
"""Timers that are looked at for one page of a list; it is short if few of them match."""

FiringPosition = tuple[int, str]
"""Where a waiting timer stands in the order of firing: `wake_at` in microseconds, id."""

MIGRATIONS = (
    # The columns are what SQL must see; `timer` is the whole of it as JSON.
    """
    CREATE TABLE timers (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        version INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        status TEXT NOT NULL,
        due_at INTEGER NOT NULL, -- microseconds since 1970, as the next two
        wake_at INTEGER,
        expires_at INTEGER,
        timer TEXT NOT NULL
    );
    CREATE INDEX timers_wake ON timers (wake_at, id, tenant, generation) WHERE wake_at IS NOT NULL;
    CREATE INDEX timers_postponed ON timers (id) WHERE wake_at > due_at AND status <> 'delivering';
    CREATE INDEX timers_expiry ON timers (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE health (checks INTEGER NOT NULL);
    INSERT INTO health VALUES (0);
    """,
    """
    CREATE TABLE secrets (
        tenant TEXT PRIMARY KEY,
        secrets TEXT NOT NULL -- a JSON array, newest first
    );
    """,
    # Moments in the JSON are text: 2026-01-31T12:00:00.000001Z, without a fraction if it is 0.
    """
    ALTER TABLE timers ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE timers ADD COLUMN label TEXT;
    UPDATE timers SET created_at =
        1000000 * strftime('%s', substr(json_extract(timer, '$.created_at'), 1, 19))
        + iif(substr(json_extract(timer, '$.created_at'), 20, 1) = '.',
              CAST(substr(json_extract(timer, '$.created_at'), 21, 6) AS INTEGER), 0);
    -- With the label, which in a row comes behind all of the JSON.
    CREATE INDEX timers_listed ON timers (tenant, created_at, id, label);
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        hash TEXT NOT NULL,
        tenant TEXT NOT NULL,
        role TEXT NOT NULL,
        created_at INTEGER NOT NULL -- microseconds since 1970
    );
    """,
    # All that a start and a refill look at, so that with a million timers they read no timer.
    """
    ALTER TABLE timers ADD COLUMN host TEXT NOT NULL DEFAULT '';
    UPDATE timers SET host = host_of(json_extract(timer, '$.url')) WHERE wake_at IS NOT NULL;
    DROP INDEX timers_wake;
    CREATE INDEX timers_wake ON timers (wake_at, id, tenant, generation, host, status)
        WHERE wake_at IS NOT NULL;
    """,
)
"""What makes each version of the schema from the one before it; never edited, only added to."""

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_decode = msgspec.json.Decoder(Timer).decode
_KEYS = "SELECT id, hash, tenant, role, created_at FROM keys"
_OF_TENANT = "SELECT secrets FROM secrets WHERE tenant = ?"

_WAITING = """
    SELECT wake_at, id, tenant, generation, host FROM timers
    WHERE wake_at >= ? AND (wake_at, id) > (?, ?) ORDER BY wake_at, id LIMIT ?
"""
_CLAIMED = "SELECT timer FROM timers WHERE wake_at IS NOT NULL AND status = ?"

_LOOKED_AT_LAST = """
    SELECT created_at, id FROM timers
    WHERE tenant = ? AND (created_at, id) < (?, ?) AND (created_at, id) >= (?, ?)
    ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?
"""
_PAGE = """
    SELECT timer FROM timers
    WHERE tenant = ? AND (created_at, id) < (?, ?) AND (created_at, id) >= (?, ?)
        AND label IS coalesce(?, label) AND status = coalesce(?, status)
    ORDER BY created_at DESC, id DESC LIMIT ?
"""


class SqliteTimerStore:
    """Store on the SQLite file at `path`, which it makes if need be; raises Unusable.

    A lock on a file beside it keeps a second process out until `close` or the end of this one.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._path = path.resolve()
        except (OSError, RuntimeError) as error:  # links that lead in a circle
            raise CommandError(f"The database {path} can't be found: {error}.") from error
        self._lock = _lock(self._path)
        try:
            _migrate(self._path)
            self._writer = _Writer(self._path)
        except BaseException:
            os.close(self._lock)
            raise
        self.keys = SqliteApiKeys(self._read, self._writer.call)
        self.secrets = SqliteSecrets(self._read, self._writer.call)
        self._readers: deque[sqlite3.Connection] = deque()  # those that nobody reads with now

    def close(self) -> None:
        """Finish what is being written, then let go of the file."""
        self._writer.close()
        for reader in self._readers:
            reader.close()
        os.close(self._lock)

    def add(self, timer: Timer) -> bool:
        return self._writer.call(lambda db: _add(db, timer))

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        sql = "SELECT timer FROM timers WHERE id = ? AND tenant = ?"
        rows = self._read(sql, (timer_id, tenant))
        return _decode(rows[0][0]) if rows else None

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Timer | None:
        def write(db: sqlite3.Connection) -> Timer | None:
            sql = "SELECT timer FROM timers WHERE id = ? AND tenant = ?"
            row = db.execute(sql, (wakeup.id, wakeup.tenant)).fetchone()
            claimed = _decode(row[0]).claim(wakeup, now, lease_until) if row else None
            return claimed if claimed is not None and _replace(db, claimed) else None

        # A power cut that loses a claim leaves a timer that is due: it is sent again, as promised.
        return self._writer.call(write, durable=False)

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        def write(db: sqlite3.Connection) -> bool:
            replaced = _replace(db, timer)
            if replaced and adding is not None:
                _add(db, adding)
            return replaced

        return self._writer.call(write)

    def replace_all(self, changed: Sequence[Timer]) -> list[Timer]:
        return self._writer.call(lambda db: [timer for timer in changed if _replace(db, timer)])

    def remove(self, timer: Timer) -> bool:
        def write(db: sqlite3.Connection) -> bool:
            sql = "DELETE FROM timers WHERE id = ? AND tenant = ? AND version = ?"
            db.execute(sql, (timer.id, timer.tenant, timer.version))
            return not db.execute("SELECT 1 FROM timers WHERE id = ?", (timer.id,)).fetchone()

        return self._writer.call(write)

    def overdue(self, before: datetime, limit: int) -> list[Timer]:
        sql = "SELECT timer FROM timers WHERE wake_at < ? ORDER BY wake_at, id LIMIT ?"
        return [_decode(row[0]) for row in self._read(sql, (micros(before), limit))]

    def page(
        self, tenant: str, listing: TimerFilter, before: ListPosition | None, limit: int
    ) -> Page:
        return run_in_thread(lambda: self._page(tenant, listing, before, limit))

    def _page(
        self, tenant: str, listing: TimerFilter, before: ListPosition | None, limit: int
    ) -> Page:
        top, bottom = _bounds(listing, before)
        # This first: what comes in between is then looked at, and not passed over.
        edge = self._read(_LOOKED_AT_LAST, (tenant, *top, *bottom, MAX_ROWS_SCANNED - 1))
        bottom = edge[0] if edge else bottom
        wanted = (tenant, *top, *bottom, listing.label, listing.status)
        rows = self._read(_PAGE, (*wanted, limit + 1))
        found = [_decode(row[0]) for row in rows[:limit]]
        if len(rows) > limit:
            return Page(found, cursor_of(found[-1]))
        return Page(found, ListPosition(_moment(bottom[0]), bottom[1]) if edge else None)

    def check(self) -> None:
        """Write, so that a full disk or a file gone read-only shows."""
        sql = "UPDATE health SET checks = checks + 1"
        self._writer.call(lambda db: db.execute(sql), durable=False)

    def waiting(self, after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        """Return the next rings to come behind a position, in their order."""
        rows = self._read(_WAITING, (after[0], *after, limit))
        return [
            ((at, id), Wakeup(id, tenant, generation, _moment(at), host=host))
            for at, id, tenant, generation, host in rows
        ]

    def claimed(self) -> list[Timer]:
        """Return the timers that are being delivered; at start those whose worker has died."""
        return [_decode(row[0]) for row in self._read(_CLAIMED, (Status.DELIVERING,))]

    def postponed(self, limit: int) -> list[Timer]:
        """Return timers that a sweep has rung for; at start those rings are lost."""
        sql = "SELECT timer FROM timers WHERE wake_at > due_at AND status <> 'delivering' LIMIT ?"
        return [_decode(row[0]) for row in self._read(sql, (limit,))]

    def purge(self, now: datetime, limit: int = 5000) -> int:
        """Delete timers that expired before `now`; return how many."""
        sql = "DELETE FROM timers WHERE id IN (SELECT id FROM timers WHERE expires_at < ? LIMIT ?)"
        bounds = (micros(now), limit)
        return self._writer.call(lambda db: db.execute(sql, bounds).rowcount, durable=False)

    def _read(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        with _translated():
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = _connect(self._path)
            try:
                return reader.execute(sql, parameters).fetchall()
            finally:
                self._readers.append(reader)


Read = Callable[[str, tuple[Any, ...]], list[Any]]


class Write(Protocol):
    """Runs something in a transaction; what it returns is durable."""

    def __call__(self, do: Callable[[sqlite3.Connection], T], /) -> T: ...


class SqliteApiKeys:
    """Keys in a database: `read` makes a query, `write` runs something in a transaction."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    def add(self, key: ApiKey) -> None:
        sql = (
            "INSERT OR REPLACE INTO keys (id, hash, tenant, role, created_at)"
            " VALUES (?, ?, ?, ?, ?)"
        )
        row = (key.id, key.hash, key.tenant, key.role, micros(key.created_at))
        self._write(lambda db: db.execute(sql, row))

    def get(self, key_id: str) -> ApiKey | None:
        rows = self._read(f"{_KEYS} WHERE id = ?", (key_id,))
        return _key(rows[0]) if rows else None

    def remove(self, key_id: str) -> bool:
        sql = "DELETE FROM keys WHERE id = ?"
        return self._write(lambda db: db.execute(sql, (key_id,)).rowcount == 1)

    def all(self) -> list[ApiKey]:
        return [_key(row) for row in self._read(f"{_KEYS} ORDER BY created_at, id", ())]


def _key(row: tuple[Any, ...]) -> ApiKey:
    id, hash, tenant, role, created_at = row
    return ApiKey(id=id, hash=hash, tenant=tenant, role=Role(role), created_at=_moment(created_at))


class SqliteSecrets:
    """Secrets in a database: `read` makes a query, `write` runs something in a transaction."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    def of(self, tenant: str) -> list[str]:
        return _secrets(self._read(_OF_TENANT, (tenant,)))

    def add(self, tenant: str, secret: str) -> None:
        self._change(tenant, lambda kept: signing.with_secret(kept, secret))

    def retire(self, tenant: str, secret: str) -> None:
        self._change(tenant, lambda kept: signing.without_secret(kept, secret))

    def _change(self, tenant: str, decide: Callable[[list[str]], list[str]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            after = decide(_secrets(db.execute(_OF_TENANT, (tenant,)).fetchall()))
            sql = "INSERT OR REPLACE INTO secrets (tenant, secrets) VALUES (?, ?)"
            db.execute(sql, (tenant, msgspec.json.encode(after).decode()))

        self._write(write)


def _secrets(rows: list[Any]) -> list[str]:
    return msgspec.json.decode(rows[0][0], type=list[str]) if rows else []


@contextmanager
def tenants_in(path: Path) -> Iterator[tuple[SqliteApiKeys, SqliteSecrets]]:
    """Give the Keys and Secrets of a database, also beside the process that has it open.

    Raises Unusable.
    """
    if not path.is_file():
        raise CommandError(f"There is no database {path} yet: `make run` makes it.")
    with _translated(), closing(_connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != len(MIGRATIONS):
            raise CommandError(
                f"The database {path} is of another version of Timers (schema {version}):"
                " start this one on it first."
            )
        db.execute("PRAGMA synchronous = FULL")

        def read(sql: str, parameters: tuple[Any, ...]) -> list[Any]:
            return db.execute(sql, parameters).fetchall()

        def write(do: Callable[[sqlite3.Connection], T]) -> T:
            with _transaction(db):
                return do(db)

        yield SqliteApiKeys(read, write), SqliteSecrets(read, write)


class _Write(NamedTuple):
    do: Callable[[sqlite3.Connection], Any]
    durable: bool
    done: "Future[Any]"


class _Writer:
    """The one thread that writes."""

    def __init__(self, path: Path) -> None:
        self._db = _connect(path)
        self._log = Path(f"{path}-wal")
        self._log_limit = WAL_LIMIT
        self._closed = False
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    def call(self, do: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `do` in a transaction and return its result after the commit.

        A `durable` commit outlives a power cut, another one the end of the process only.
        """
        done: Future[T] = Future()
        self._queue.put(_Write(do, durable, done))
        if self._closed:
            self._refuse_the_rest()
        with _translated():
            return wait(done)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._closed = True
        self._refuse_the_rest()
        self._db.close()

    def _refuse_the_rest(self) -> None:
        with suppress(queue.Empty):
            while True:
                if (write := self._queue.get_nowait()) is not None:
                    write.done.set_exception(Unavailable("The database is closed."))

    def _run(self) -> None:
        while batch := self._next_batch():
            self._settle(batch)
            self._bound_log()

    def _bound_log(self) -> None:
        with suppress(OSError, sqlite3.Error):  # nothing is lost: the log is only longer
            if self._log.stat().st_size < self._log_limit:
                return
            try:
                self._db.execute(f"PRAGMA busy_timeout = {CHECKPOINT_TIMEOUT_MS}")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000}")
                self._log_limit = self._log.stat().st_size + WAL_LIMIT

    def _settle(self, batch: list[_Write]) -> None:
        try:
            results = self._commit(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].done.set_exception(error)
                return
            # One write that can't be done must not fail those that happened to share its commit.
            for write in batch:
                self._settle([write])
        else:
            for write, result in zip(batch, results, strict=True):
                write.done.set_result(result)

    def _next_batch(self) -> list[_Write]:
        batch: list[_Write] = []
        while len(batch) < MAX_COMMIT_BATCH:
            try:
                write = self._queue.get(block=not batch)
            except queue.Empty:
                break
            if write is None:
                self._queue.put(None)
                break
            batch.append(write)
        return batch

    def _commit(self, batch: list[_Write]) -> list[Any]:
        durable = any(write.durable for write in batch)
        self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        with _transaction(self._db):
            return [write.do(self._db) for write in batch]


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # some errors have rolled it back already
            db.execute("ROLLBACK")
        raise


def _row(timer: Timer) -> tuple[Any, ...]:
    return (
        timer.tenant,
        timer.version,
        timer.generation,
        timer.status,
        micros(timer.due_at),
        None if timer.wake_at is None else micros(timer.wake_at),
        None if timer.expires_at is None else micros(timer.expires_at),
        micros(timer.created_at),
        timer.label,
        host_of(timer.url),
        msgspec.json.encode(timer).decode(),
        timer.id,
    )


def _add(db: sqlite3.Connection, timer: Timer) -> bool:
    sql = (
        "INSERT INTO timers (tenant, version, generation, status, due_at, wake_at, expires_at,"
        " created_at, label, host, timer, id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING"
    )
    return db.execute(sql, _row(timer)).rowcount == 1


def _replace(db: sqlite3.Connection, timer: Timer) -> bool:
    sql = (
        "UPDATE timers SET tenant = ?, version = ?, generation = ?, status = ?, due_at = ?,"
        " wake_at = ?, expires_at = ?, created_at = ?, label = ?, host = ?, timer = ?"
        " WHERE id = ? AND tenant = ? AND version = ?"
    )
    return db.execute(sql, (*_row(timer), timer.tenant, timer.version - 1)).rowcount == 1


def _bounds(
    listing: TimerFilter, before: ListPosition | None
) -> tuple[tuple[int, str], tuple[int, str]]:
    """Return below what `created_at` and id have to be, and what they have to reach."""
    top, bottom = (2**63 - 1, ""), (-(2**63), "")
    if before is not None:
        top = (micros(before.created_at), before.id)
    if listing.until is not None:
        top = min(top, (micros(listing.until), ""))
    if listing.since is not None:
        bottom = (micros(listing.since), "")
    return top, bottom


def micros(moment: datetime) -> int:
    """Return the moment in microseconds since 1970, as the columns hold it."""
    return (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(f"The database can't do this now: {error}.") from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )


def _lock(path: Path) -> int:
    # A file of its own: closing any descriptor of the database would drop SQLite's own locks.
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"The database {path} can't be written: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise CommandError(f"The database {path} is in use by another process.") from error
    return lock


def _migrate(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # It holds secrets, and a copy that was brought back may be open to all. What SQLite makes
        # beside it has the same rights.
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        db = _connect(path)
    except (OSError, sqlite3.Error) as error:
        raise CommandError(f"The database {path} can't be written: {_why(error)}.") from error
    try:
        _upgrade(db, path)
    except sqlite3.Error as error:
        raise CommandError(f"The database {path} can't be used: {error}.") from error
    finally:
        db.close()


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise CommandError(
            f"The database {path} is from a newer version of Timers (schema {version})."
        )
    db.execute("PRAGMA journal_mode = WAL")  # stays with the file
    steps = "".join(MIGRATIONS[version:])
    db.create_function("host_of", 1, host_of, deterministic=True)
    # Even with no step to take this writes, so that a read-only file shows at start.
    db.executescript(
        f"PRAGMA synchronous = FULL; BEGIN IMMEDIATE; {steps}"
        f" PRAGMA user_version = {len(MIGRATIONS)}; COMMIT"
    )


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
