"""Connections to the SQLite file: opening, transactions, errors, and the lock file."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chalicelib.core.errors import OperatorError, Unavailable

DEFAULT_DATABASE = ".data/timers.db"
"""Path of the database, relative to the working directory, unless the operator sets another."""

OLDEST_SQLITE = (3, 31)
"""The oldest SQLite that runs every statement of this package, as of January 2020."""

BUSY_TIMEOUT = 5
"""Seconds to wait while another program writes."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection in autocommit mode that any thread may use.

    Raises OperatorError if SQLite is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise OperatorError(
            f"Timers needs SQLite {OLDEST_SQLITE[0]}.{OLDEST_SQLITE[1]} or newer;"
            f" this Python has {sqlite3.sqlite_version}."
        )
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    # On macOS an fsync may leave data in the disk's cache. Other systems ignore these.
    db.execute("PRAGMA fullfsync = 1")
    db.execute("PRAGMA checkpoint_fullfsync = 1")
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end of the block, or roll back if it raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # some errors have rolled it back already
            db.execute("ROLLBACK")
        raise


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise Unavailable in place of any error of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(f"The database is not available: {error}.") from error


def lock(path: Path) -> int:
    """Lock the database for this process; return the lock file's descriptor.

    The lock lasts until the descriptor is closed or the process ends. Raises OperatorError if
    another process holds it.
    """
    # A separate file: closing any descriptor of the database would drop SQLite's own locks.
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OperatorError(f"The database {path} can't be written: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OperatorError(f"The database {path} is in use by another process.") from error
    return descriptor
