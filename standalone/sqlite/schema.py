"""The database schema: migrations, and times as its columns hold them."""

import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from chalicelib.core.errors import OperatorError
from chalicelib.core.timer import host_of
from standalone.sqlite.connection import connect

MIGRATIONS = (
    # `timer` holds the whole timer as JSON; the other columns exist for queries and indexes.
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
    # Times in the JSON are text: 2026-01-31T12:00:00.000001Z, without the fraction if it is 0.
    """
    ALTER TABLE timers ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE timers ADD COLUMN label TEXT;
    UPDATE timers SET created_at =
        1000000 * strftime('%s', substr(json_extract(timer, '$.created_at'), 1, 19))
        + CASE substr(json_extract(timer, '$.created_at'), 20, 1)
            WHEN '.' THEN CAST(substr(json_extract(timer, '$.created_at'), 21, 6) AS INTEGER)
            ELSE 0 END;
    -- Includes the label, which a row stores after the long JSON.
    CREATE INDEX timers_listed ON timers (tenant, created_at, id, label);
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        hash TEXT NOT NULL,
        tenant TEXT NOT NULL,
        role TEXT NOT NULL,
        created_at INTEGER NOT NULL -- microseconds since 1970
    );
    """,
    # The index covers all columns that a start and a refill read: they read no timer rows.
    """
    ALTER TABLE timers ADD COLUMN host TEXT NOT NULL DEFAULT '';
    UPDATE timers SET host = host_of(json_extract(timer, '$.url')) WHERE wake_at IS NOT NULL;
    DROP INDEX timers_wake;
    CREATE INDEX timers_wake ON timers (wake_at, id, tenant, generation, host, status)
        WHERE wake_at IS NOT NULL;
    """,
)
"""Each step upgrades the schema by one version. Add steps; never edit one."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Return the time in microseconds since 1970, as the columns hold it."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the time (UTC) that a column holds in microseconds since 1970."""
    return _EPOCH + micros * _MICROSECOND


def create_or_upgrade(path: Path) -> None:
    """Bring the database to the current schema, and make the file if there is none.

    Raises OperatorError if the file can't be used.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # The file holds secrets, and a restored copy may be open to all users. SQLite gives its
        # other files the same permissions.
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        db = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise OperatorError(f"The database {path} can't be written: {_reason(error)}.") from error
    try:
        _upgrade(db, path)
    except sqlite3.Error as error:
        raise OperatorError(f"The database {path} can't be used: {error}.") from error
    finally:
        db.close()


def version_of(db: sqlite3.Connection) -> int:
    """Return the schema version: the number of migrations that were applied."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    version = version_of(db)
    if version > len(MIGRATIONS):
        raise OperatorError(
            f"The database {path} is from a newer version of Timers (schema {version})."
            " Start that version instead."
        )
    db.execute("PRAGMA journal_mode = WAL")  # stored in the file
    steps = "".join(MIGRATIONS[version:])
    db.create_function("host_of", 1, host_of, deterministic=True)
    # This writes even if there is no step to run: a read-only file fails at start.
    db.executescript(
        f"PRAGMA synchronous = FULL; BEGIN IMMEDIATE; {steps}"
        f" PRAGMA user_version = {len(MIGRATIONS)}; COMMIT"
    )


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
