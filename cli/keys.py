"""`timers keys add|list|revoke`: the API keys of a stage, or of this machine's database."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from chalicelib.core import api_keys
from chalicelib.core.api_keys import ApiKey, Role
from chalicelib.core.errors import OperatorError
from chalicelib.service.credentials import issue_key
from chalicelib.service.ports import ApiKeys
from cli.credentials import open_credentials, tenant_name

COLUMNS = ("id", "tenant", "role", "created (UTC)")


def run(options: argparse.Namespace) -> None:
    """Add, list or revoke; `add` prints the key and nothing else, so scripts can capture it."""
    stage = f" STAGE={options.stage}" if options.stage else ""
    tenant = tenant_name(options.tenant) if options.action == "add" else ""
    with open_credentials(options.stage) as (keys, secrets):
        match options.action:
            case "add":
                role = Role(options.role)
                print(issue_key(keys, secrets, tenant, role, datetime.now(UTC)))
            case "list":
                print(_table(keys.all()) or f"No API keys yet. `make key{stage}` creates one.")
            case "revoke":
                print(_revoke(keys, options.key, stage))


def _revoke(keys: ApiKeys, text: str, stage: str) -> str:
    id = api_keys.key_id_in(text)
    key = keys.get(id) if id else None
    if key is None or not keys.remove(key.id):
        raise OperatorError(f"No such API key. `make keys{stage}` lists them.")
    return f"Revoked API key {key.id} of tenant {key.tenant}."


def _table(keys: Sequence[ApiKey]) -> str:
    """Return the keys in aligned columns below a header, or an empty text for no keys."""
    if not keys:
        return ""
    rows = [COLUMNS] + [
        (key.id, key.tenant, key.role, f"{key.created_at:%Y-%m-%d %H:%M:%S}") for key in keys
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(row, widths, strict=True)
    return "  ".join(f"{cell:{width}}" for cell, width in cells).rstrip()
