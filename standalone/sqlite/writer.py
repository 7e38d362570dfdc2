"""Group commit: one thread makes all writes, and one fsync covers all that wait for it."""

import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from chalicelib.core.errors import Unavailable
from standalone.greenlets import Promise, tell_all
from standalone.sqlite.connection import BUSY_TIMEOUT, connect, transaction, translated_errors

MAX_COMMIT_BATCH = 500
"""Writes at which a transaction is full. Its last turn of the loop may exceed this."""

WAL_LIMIT = 16 * 2**20
"""Size in bytes at which writes pause to truncate the write-ahead log.

SQLite restarts the log only at a moment without readers. Overlapping reads would let it grow
without bound.
"""

CHECKPOINT_TIMEOUT_MS = 200
"""Milliseconds that a truncation waits for readers. Only other programs (a backup) read longer."""

W = TypeVar("W")
T = TypeVar("T")

WriteAll = Callable[[sqlite3.Connection, Sequence[W]], Sequence[T]]
"""Makes several writes in a transaction; returns the result of each."""


class _Write(NamedTuple):
    what: Any
    write_all: WriteAll[Any, Any]
    durable: bool
    promise: Promise[Any]


class Writer:
    """Runs writes in one thread, and commits together the writes that are waiting."""

    def __init__(self, path: Path) -> None:
        self._db = connect(path)
        self._log = Path(f"{path}-wal")
        self._log_limit = WAL_LIMIT
        self._closed = False
        self._is_durable: bool | None = None
        self._queue: queue.SimpleQueue[list[_Write]] = queue.SimpleQueue()
        self._gathered: list[_Write] = []
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    def call(self, do: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `do` in a transaction and return its result after the commit.

        A `durable` commit survives a power cut; others survive only the end of the process.
        """
        return self.write(do, _call_each, durable=durable)

    def write(self, what: W, write_all: WriteAll[W, T], *, durable: bool = True) -> T:
        """Make a write by `write_all`, together with others that wait for the same function.

        Returns its result after the commit. If any write of a transaction fails, each is made
        again, alone.
        """
        promise: Promise[T] = Promise()
        self._submit(_Write(what, write_all, durable, promise))
        with translated_errors():
            return promise.wait()

    def close(self) -> None:
        """Finish the queued writes, then close the connection."""
        self._queue.put([])
        self._thread.join()
        self._closed = True
        self._reject_queued()
        self._db.close()

    def _submit(self, write: _Write) -> None:
        current = write.promise.greenlet
        if current is None:
            self._hand_over([write])
            return
        # All that greenlets write in one turn of their loop reaches the thread together: woken by
        # the first, it would commit that alone, and take the interpreter from the others.
        if not self._gathered:
            current.hub.loop.call_soon(self._hand_over, self._gathered)
        self._gathered.append(write)

    def _hand_over(self, writes: list[_Write]) -> None:
        if writes is self._gathered:
            self._gathered = []
        self._queue.put(writes)
        if self._closed:
            self._reject_queued()

    def _reject_queued(self) -> None:
        with suppress(queue.Empty):
            while True:
                for write in self._queue.get_nowait():
                    _fail([write], Unavailable("The database is closed."))

    def _run(self) -> None:
        while batch := self._next_batch():
            self._settle(batch)
            self._bound_log()

    def _next_batch(self) -> list[_Write]:
        batch: list[_Write] = []
        while len(batch) < MAX_COMMIT_BATCH:
            try:
                writes = self._queue.get(block=not batch)
            except queue.Empty:
                break
            if not writes:  # the end
                self._queue.put(writes)
                break
            batch += writes
        return batch

    def _settle(self, batch: list[_Write]) -> None:
        try:
            settled = self._commit(batch)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            # One failing write must not fail the others in its transaction: retry them one by one.
            for write in batch:
                self._settle([write])
        else:
            for write, result in settled:
                write.promise.keep(result)
            tell_all([write.promise for write in batch])

    def _commit(self, batch: list[_Write]) -> list[tuple[_Write, Any]]:
        self._set_durable(any(write.durable for write in batch))
        settled: list[tuple[_Write, Any]] = []
        with transaction(self._db):
            for write_all, writes in _by_function(batch).items():
                results = write_all(self._db, [write.what for write in writes])
                settled += zip(writes, results, strict=True)
        return settled

    def _set_durable(self, durable: bool) -> None:
        if durable is not self._is_durable:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable

    def _bound_log(self) -> None:
        with suppress(OSError, sqlite3.Error):  # no data is at risk: the log only stays longer
            if self._log.stat().st_size < self._log_limit:
                return
            try:
                self._db.execute(f"PRAGMA busy_timeout = {CHECKPOINT_TIMEOUT_MS}")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000}")
                self._log_limit = self._log.stat().st_size + WAL_LIMIT


def _fail(batch: list[_Write], error: Exception) -> None:
    for write in batch:
        write.promise.fail(error)
    tell_all([write.promise for write in batch])


def _call_each(
    db: sqlite3.Connection, calls: Sequence[Callable[[sqlite3.Connection], T]]
) -> list[T]:
    return [call(db) for call in calls]


def _by_function(batch: list[_Write]) -> dict[WriteAll[Any, Any], list[_Write]]:
    # Writes that wait together are concurrent, so any order among them is right.
    groups: dict[WriteAll[Any, Any], list[_Write]] = {}
    for write in batch:
        groups.setdefault(write.write_all, []).append(write)
    return groups
