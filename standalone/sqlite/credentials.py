"""API keys and signing secrets in SQLite, for the server and for the `timers` command."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from chalicelib.core import signing
from chalicelib.core.api_keys import ApiKey, Role
from chalicelib.core.errors import OperatorError
from standalone.sqlite.connection import connect, transaction, translated_errors
from standalone.sqlite.schema import MIGRATIONS, from_micros, to_micros, version_of

_KEYS = "SELECT id, hash, tenant, role, created_at FROM keys"
_SECRETS = "SELECT secrets FROM secrets WHERE tenant = ?"

T = TypeVar("T")

Read = Callable[[str, tuple[Any, ...]], list[Any]]
"""Runs a query with parameters; returns its rows."""


class Write(Protocol):
    """Runs a function in a transaction; returns its result after a durable commit."""

    def __call__(self, do: Callable[[sqlite3.Connection], T], /) -> T: ...


class SqliteApiKeys:
    """API keys, stored as hashes."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    def add(self, key: ApiKey) -> None:
        sql = (
            "INSERT OR REPLACE INTO keys (id, hash, tenant, role, created_at)"
            " VALUES (?, ?, ?, ?, ?)"
        )
        row = (key.id, key.hash, key.tenant, key.role, to_micros(key.created_at))
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
    return ApiKey(
        id=id, hash=hash, tenant=tenant, role=Role(role), created_at=from_micros(created_at)
    )


class SqliteSecrets:
    """Each tenant's signing secrets, as a JSON array with the newest first."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    def of(self, tenant: str) -> list[str]:
        return _secrets(self._read(_SECRETS, (tenant,)))

    def add(self, tenant: str, secret: str) -> None:
        self._change(tenant, lambda secrets: signing.with_secret(secrets, secret))

    def retire(self, tenant: str, secret: str) -> None:
        self._change(tenant, lambda secrets: signing.without_secret(secrets, secret))

    def _change(self, tenant: str, decide: Callable[[list[str]], list[str]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            after = decide(_secrets(db.execute(_SECRETS, (tenant,)).fetchall()))
            sql = "INSERT OR REPLACE INTO secrets (tenant, secrets) VALUES (?, ?)"
            db.execute(sql, (tenant, msgspec.json.encode(after).decode()))

        self._write(write)


def _secrets(rows: list[Any]) -> list[str]:
    return msgspec.json.decode(rows[0][0], type=list[str]) if rows else []


@contextmanager
def credentials_in(path: Path) -> Iterator[tuple[SqliteApiKeys, SqliteSecrets]]:
    """Open the API keys and secrets of a database, even while a server uses it.

    Raises OperatorError if there is no such database, or if it has another schema version.
    """
    if not path.is_file():
        raise OperatorError(f"There is no database {path}. Run `make run` to create it.")
    with translated_errors(), closing(connect(path)) as db:
        if (version := version_of(db)) != len(MIGRATIONS):
            raise OperatorError(
                f"The database {path} belongs to another version of Timers (schema {version})."
                " Start the server of this version once to upgrade it."
            )
        db.execute("PRAGMA synchronous = FULL")

        def read(sql: str, parameters: tuple[Any, ...]) -> list[Any]:
            return db.execute(sql, parameters).fetchall()

        def write(do: Callable[[sqlite3.Connection], T]) -> T:
            with transaction(db):
                return do(db)

        yield SqliteApiKeys(read, write), SqliteSecrets(read, write)
