"""Adds, claims and replacements of timers: one statement reads or stores many.

Python's sqlite3 gives up the interpreter lock, and takes it back, in each step of a statement. With
a statement for each timer, the writer would wait for the lock again and again.
"""

import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from chalicelib.core.timer import Timer, Wakeup, host_of
from standalone.sqlite.schema import to_micros

MAX_ROWS = 64
"""The most timers in one statement: SQLite 3.31 allows 999 parameters."""

_COLUMN_COUNT = 12
_STORE = """
    INSERT INTO timers (id, tenant, version, generation, status, due_at, wake_at, expires_at,
        created_at, label, host, timer)
    SELECT * FROM (VALUES %s) WHERE typeof(column1) = 'text'
    ON CONFLICT (id) DO UPDATE SET version = excluded.version, generation = excluded.generation,
        status = excluded.status, due_at = excluded.due_at, wake_at = excluded.wake_at,
        expires_at = excluded.expires_at, created_at = excluded.created_at,
        label = excluded.label, host = excluded.host, timer = excluded.timer
"""
# Each returns one row, a JSON array: each row would be a step.
_READ_TIMERS = "SELECT '[' || group_concat(timer) || ']' FROM timers WHERE id IN %s"
_READ_HEADS = "SELECT json_group_array(json_array(id, tenant, version)) FROM timers WHERE id IN %s"


class Row(NamedTuple):
    """A timer to store, and the values of its columns."""

    timer: Timer
    values: tuple[Any, ...]


class Head(msgspec.Struct, array_like=True, frozen=True):
    """Tells whether a write applies, without the timer, which may be large."""

    id: str
    tenant: str
    version: int


class Add(NamedTuple):
    """Stores a new timer."""

    row: Row

    @property
    def id(self) -> str:
        return self.row.timer.id

    def apply(self, stored: Head | Timer | None) -> Row | None:
        """Return the row to store, or None to change nothing."""
        return self.row if stored is None else None


class Claim(NamedTuple):
    """Stores the result of `Timer.claim`."""

    wakeup: Wakeup
    now: datetime
    lease_until: datetime

    @property
    def id(self) -> str:
        return self.wakeup.id

    def apply(self, stored: Head | Timer | None) -> Row | None:
        """Return the row to store, or None to change nothing."""
        # A head is not enough for a claim, so its timer is read.
        if not isinstance(stored, Timer) or stored.tenant != self.wakeup.tenant:
            return None
        claimed = stored.claim(self.wakeup, self.now, self.lease_until)
        return None if claimed is None else row_of(claimed)


class Replace(NamedTuple):
    """Stores the next version of a timer."""

    row: Row

    @property
    def id(self) -> str:
        return self.row.timer.id

    def apply(self, stored: Head | Timer | None) -> Row | None:
        """Return the row to store, or None to change nothing."""
        after = self.row.timer
        if stored is None or (stored.tenant, stored.version) != (after.tenant, after.version - 1):
            return None
        return self.row


TimerWrite = Add | Claim | Replace

_decode_timers = msgspec.json.Decoder(list[Timer]).decode
_decode_heads = msgspec.json.Decoder(list[Head]).decode


def row_of(timer: Timer) -> Row:
    """Encode a timer as the table holds it."""
    values = (
        timer.id,
        timer.tenant,
        timer.version,
        timer.generation,
        str(timer.status),  # Python binds other types more slowly
        to_micros(timer.due_at),
        None if timer.wake_at is None else to_micros(timer.wake_at),
        None if timer.expires_at is None else to_micros(timer.expires_at),
        to_micros(timer.created_at),
        timer.label,
        host_of(timer.url),
        msgspec.json.encode(timer).decode(),
    )
    return Row(timer, values)


def apply_all(db: sqlite3.Connection, writes: Sequence[TimerWrite]) -> list[Row | None]:
    """Apply writes one after the other; return the row that each has stored, or None."""
    results: list[Row | None] = []
    for start in range(0, len(writes), MAX_ROWS):
        results += _apply(db, writes[start : start + MAX_ROWS])
    return results


def _apply(db: sqlite3.Connection, writes: Sequence[TimerWrite]) -> list[Row | None]:
    stored = _read(db, writes)
    changed: dict[str, Row] = {}
    results: list[Row | None] = []
    for write in writes:
        row = write.apply(stored.get(write.id))
        if row is not None:
            stored[write.id] = row.timer  # a later write of this timer finds it
            changed[write.id] = row
        results.append(row)
    if changed:
        _store(db, changed.values())
    return results


def _read(db: sqlite3.Connection, writes: Sequence[TimerWrite]) -> dict[str, Head | Timer]:
    claimed = [write.id for write in writes if isinstance(write, Claim)]
    others = [write.id for write in writes if not isinstance(write, Claim)]
    stored: dict[str, Head | Timer] = {}
    if others:
        stored |= {it.id: it for it in _decode_heads(_read_one(db, _READ_HEADS, others))}
    if claimed:  # after the heads: a timer may be both
        stored |= {it.id: it for it in _decode_timers(_read_one(db, _READ_TIMERS, claimed))}
    return stored


def _read_one(db: sqlite3.Connection, sql: str, ids: list[str]) -> str:
    size = _rounded_up(len(ids))
    (found,) = db.execute(sql % _places(size), _filled_up(ids, size)).fetchone()
    return found or "[]"


def _store(db: sqlite3.Connection, rows: Collection[Row]) -> None:
    size = _rounded_up(len(rows))
    values = [value for row in rows for value in row.values]
    sql = _STORE % ", ".join([_places(_COLUMN_COUNT)] * size)
    db.execute(sql, _filled_up(values, size * _COLUMN_COUNT))


def _rounded_up(count: int) -> int:
    """Return the next power of two: statements of few sizes stay prepared."""
    return 1 << (count - 1).bit_length()


def _filled_up(values: list[Any], count: int) -> list[Any]:
    # No id is a number. Python binds None much more slowly.
    return values + [0] * (count - len(values))


def _places(count: int) -> str:
    return f"({', '.join('?' * count)})"
