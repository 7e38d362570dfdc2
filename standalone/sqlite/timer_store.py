"""Timers in one SQLite file with a write-ahead log; optimistic locking by version.

A write returns after its commit. Each read borrows a connection: the pool grows to the most reads
that ever ran at once.
"""

import os
import sqlite3
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from chalicelib.core.errors import OperatorError
from chalicelib.core.pagination import Cursor, Page, TimerFilter, cursor_of
from chalicelib.core.timer import Status, Timer, Wakeup
from standalone.greenlets import run_in_thread
from standalone.sqlite.connection import connect, lock, translated_errors
from standalone.sqlite.credentials import SqliteApiKeys, SqliteSecrets
from standalone.sqlite.schema import create_or_upgrade, from_micros, to_micros
from standalone.sqlite.timer_writes import (
    Add,
    Claim,
    Replace,
    Row,
    TimerWrite,
    apply_all,
    row_of,
)
from standalone.sqlite.writer import Writer

MAX_ROWS_SCANNED = 10_000
"""The most timers that are scanned for one page; the page is short if few of them match."""

FiringPosition = tuple[int, str]
"""A waiting timer's place in firing order: `wake_at` in microseconds since 1970, then the id."""

_decode = msgspec.json.Decoder(Timer).decode

_WAITING = """
    SELECT wake_at, id, tenant, generation, host FROM timers
    WHERE wake_at >= ? AND (wake_at, id) > (?, ?) AND status <> 'delivering'
    ORDER BY wake_at, id LIMIT ?
"""
_CLAIMED = "SELECT timer FROM timers WHERE wake_at IS NOT NULL AND status = ?"

_LAST_SCANNED = """
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
    """Store in the SQLite file at `path`, which is created if missing.

    A lock file excludes other servers until `close`. Raises OperatorError if the
    file can't be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._path = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of symbolic links
            raise OperatorError(f"The database {path} can't be opened: {error}.") from error
        self._lock = lock(self._path)
        try:
            create_or_upgrade(self._path)
            self._writer = Writer(self._path)
        except BaseException:
            os.close(self._lock)
            raise
        self.keys = SqliteApiKeys(self._read, self._writer.call)
        self.secrets = SqliteSecrets(self._read, self._writer.call)
        self._readers: deque[sqlite3.Connection] = deque()  # idle connections

    def close(self) -> None:
        """Finish the queued writes, then release the file."""
        self._writer.close()
        for reader in self._readers:
            reader.close()
        os.close(self._lock)

    def add(self, timer: Timer) -> bool:
        return self._write(Add(row_of(timer))) is not None

    def get(self, tenant: str, timer_id: str) -> Timer | None:
        sql = "SELECT timer FROM timers WHERE id = ? AND tenant = ?"
        rows = self._read(sql, (timer_id, tenant))
        return _decode(rows[0][0]) if rows else None

    def claim(self, wakeup: Wakeup, now: datetime, lease_until: datetime) -> Timer | None:
        # A power cut may lose a claim: the timer is due again and sent again (at least once).
        row = self._write(Claim(wakeup, now, lease_until), durable=False)
        return None if row is None else row.timer

    def replace(self, timer: Timer, adding: Timer | None = None) -> bool:
        replacing = Replace(row_of(timer))
        if adding is None:
            return self._write(replacing) is not None
        add = Add(row_of(adding))

        def write(db: sqlite3.Connection) -> bool:
            (replaced,) = apply_all(db, [replacing])
            if replaced is not None:
                apply_all(db, [add])
            return replaced is not None

        return self._writer.call(write)

    def replace_all(self, changed: Sequence[Timer]) -> list[Timer]:
        writes = [Replace(row_of(timer)) for timer in changed]
        rows = self._writer.call(lambda db: apply_all(db, writes))
        return [row.timer for row in rows if row is not None]

    def remove(self, timer: Timer) -> bool:
        def write(db: sqlite3.Connection) -> bool:
            sql = "DELETE FROM timers WHERE id = ? AND tenant = ? AND version = ?"
            db.execute(sql, (timer.id, timer.tenant, timer.version))
            return not db.execute("SELECT 1 FROM timers WHERE id = ?", (timer.id,)).fetchone()

        return self._writer.call(write)

    def overdue(self, before: datetime, limit: int) -> list[Timer]:
        sql = "SELECT timer FROM timers WHERE wake_at < ? ORDER BY wake_at, id LIMIT ?"
        return [_decode(row[0]) for row in self._read(sql, (to_micros(before), limit))]

    def page(self, tenant: str, filter: TimerFilter, after: Cursor | None, limit: int) -> Page:
        return run_in_thread(lambda: self._page(tenant, filter, after, limit))

    def _page(self, tenant: str, filter: TimerFilter, after: Cursor | None, limit: int) -> Page:
        top, bottom = _bounds(filter, after)
        # Fix the last row to scan first: changes between the two queries then skip no timer.
        last_scanned = self._read(_LAST_SCANNED, (tenant, *top, *bottom, MAX_ROWS_SCANNED - 1))
        bottom = last_scanned[0] if last_scanned else bottom
        conditions = (tenant, *top, *bottom, filter.label, filter.status)
        rows = self._read(_PAGE, (*conditions, limit + 1))
        timers = [_decode(row[0]) for row in rows[:limit]]
        if len(rows) > limit:
            return Page(timers, cursor_of(timers[-1]))
        if last_scanned:
            return Page(timers, Cursor(from_micros(bottom[0]), bottom[1]))
        return Page(timers, None)

    def check(self) -> None:
        """Make a write: it raises Unavailable if the disk is full or the file is read-only."""
        sql = "UPDATE health SET checks = checks + 1"
        self._writer.call(lambda db: db.execute(sql), durable=False)

    def waiting(self, after: FiringPosition, limit: int) -> list[tuple[FiringPosition, Wakeup]]:
        """Return the next wake-ups after a position, in firing order."""
        rows = self._read(_WAITING, (after[0], *after, limit))
        return [
            ((at, id), Wakeup(id, tenant, generation, from_micros(at), host=host))
            for at, id, tenant, generation, host in rows
        ]

    def claimed(self) -> list[Timer]:
        """Return the claimed timers. At start, a dead process was sending them."""
        return [_decode(row[0]) for row in self._read(_CLAIMED, (Status.DELIVERING,))]

    def requeued_by_sweep(self, limit: int) -> list[Timer]:
        """Return timers whose `wake_at` a sweep moved past the deadline when it requeued them.

        At start, the wake-ups that it put on the queue are lost.
        """
        sql = "SELECT timer FROM timers WHERE wake_at > due_at AND status <> 'delivering' LIMIT ?"
        return [_decode(row[0]) for row in self._read(sql, (limit,))]

    def purge(self, now: datetime, limit: int = 5000) -> int:
        """Delete timers whose retention ended before `now`; return how many."""
        sql = "DELETE FROM timers WHERE id IN (SELECT id FROM timers WHERE expires_at < ? LIMIT ?)"
        bounds = (to_micros(now), limit)
        return self._writer.call(lambda db: db.execute(sql, bounds).rowcount, durable=False)

    def _write(self, write: TimerWrite, *, durable: bool = True) -> Row | None:
        return self._writer.write(write, apply_all, durable=durable)

    def _read(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        with translated_errors():
            try:
                reader = self._readers.pop()
            except IndexError:  # all are in use
                reader = connect(self._path)
            try:
                return reader.execute(sql, parameters).fetchall()
            finally:
                self._readers.append(reader)


def _bounds(filter: TimerFilter, after: Cursor | None) -> tuple[tuple[int, str], tuple[int, str]]:
    """Return the bounds of (`created_at`, id): the exclusive upper and the inclusive lower one."""
    top, bottom = (2**63 - 1, ""), (-(2**63), "")
    if after is not None:
        top = (to_micros(after.created_at), after.id)
    if filter.until is not None:
        top = min(top, (to_micros(filter.until), ""))
    if filter.since is not None:
        bottom = (to_micros(filter.since), "")
    return top, bottom
