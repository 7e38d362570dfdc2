"""SQLite's write-ahead log, as its format is documented: sqlite.org/fileformat2.html#walformat

A second, independent reader: the tests compare SQLite's recovery of a torn log with it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HEADER = 32
FRAME_HEADER = 24


class Frame(NamedTuple):
    """One page as a transaction wrote it."""

    number: int
    """The page number, from 1."""
    size: int
    """The database size in pages if this frame commits a transaction, else 0."""
    page: bytes


@dataclass(frozen=True)
class Files:
    """The contents of a database file and its log, before any checkpoint."""

    database: bytes
    log: bytes

    @classmethod
    def left(cls, database: Path) -> "Files":
        """Read the files that a dead process left."""
        return cls(database.read_bytes(), log_of(database).read_bytes())

    def torn(self, place: int, garbage: bytes) -> "Files":
        """Return a copy whose log is cut at a byte offset and continues with garbage."""
        return Files(self.database, self.log[:place] + garbage)

    def committed(self) -> "Files":
        """Return a copy with every committed transaction moved into the database."""
        pages = done = self.database
        for number, size, page in self._frames():
            start = (number - 1) * len(page)
            pages = pages[:start].ljust(start, b"\0") + page + pages[start + len(page) :]
            done = pages[: size * len(page)] if size else done
        return Files(done, b"")

    def _frames(self) -> Iterator[Frame]:
        page = int.from_bytes(self.log[8:12])
        salt = self.log[16:24]
        for start in range(HEADER, len(self.log) - FRAME_HEADER - page + 1, FRAME_HEADER + page):
            head, content = self.log[start:][:FRAME_HEADER], self.log[start + FRAME_HEADER :][:page]
            if head[8:16] != salt:  # left from an earlier use of the file
                return
            yield Frame(int.from_bytes(head[:4]), int.from_bytes(head[4:8]), content)

    def lay_down(self, database: Path) -> None:
        """Write the files, replacing any existing ones."""
        Path(f"{database}-shm").unlink(missing_ok=True)
        database.write_bytes(self.database)
        log_of(database).write_bytes(self.log)

    def timers(self, database: Path) -> dict[str, str]:
        """Write the files; return SQLite's timers as JSON by id, or the faults that it reports."""
        self.lay_down(database)
        with closing(sqlite3.connect(database)) as db:
            faults = [row[0] for row in db.execute("PRAGMA integrity_check")]
            if faults != ["ok"]:
                return {"faults": str(faults)}
            return dict(db.execute("SELECT id, timer FROM timers"))


def log_of(database: Path) -> Path:
    """Return the path of a database's log."""
    return Path(f"{database}-wal")
