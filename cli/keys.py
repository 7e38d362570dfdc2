"""Keys and secrets of the tenants: `python -m cli.keys [--stage STAGE] COMMAND …`.

    add  list  revoke     the keys that open the API
    secrets               what webhooks are signed with

Without a stage it works on this machine's database, TIMERS_DB, also while the server runs: that
reads them afresh each time.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes

from chalicelib.core import api_keys, signing
from chalicelib.core.api_keys import ApiKey, ApiKeys, Role
from chalicelib.core.errors import CommandError, Unavailable
from chalicelib.core.signing import Secrets
from chalicelib.core.timer import DEFAULT_TENANT
from infra import stages
from standalone.sqlite import DEFAULT_DATABASE, tenants_in

Opened = AbstractContextManager[tuple[ApiKeys, Secrets]]

COLUMNS = ("id", "tenant", "role", "created (UTC)")


def main(arguments: Sequence[str]) -> None:
    """Run one command; what goes wrong ends it with one sentence and status 1."""
    given = _parser().parse_args(arguments)
    try:
        with _opened(given.stage) as (kept, signed):
            said = _run(given, kept, signed)
    except (CommandError, Unavailable) as error:
        sys.exit(str(error))
    sys.stdout.write(said + "\n")


def new_key(kept: ApiKeys, signed: Secrets, tenant: str, role: Role) -> str:
    """Return a new API key, which is kept as its hash only. Its tenant has a secret by then."""
    signing.ensure_secret(signed, tenant, token_bytes(signing.SECRET_ENTROPY))
    text, key = api_keys.mint(tenant, role, datetime.now(UTC), token_bytes(api_keys.KEY_ENTROPY))
    kept.add(key)
    return text


def _run(given: argparse.Namespace, kept: ApiKeys, signed: Secrets) -> str:
    there = f" STAGE={given.stage}" if given.stage else ""
    match given.command:
        case "add":
            return new_key(kept, signed, given.tenant, Role(given.role))
        case "list":
            found = kept.all()
            return _table(found) if found else f"There is no key: `make key{there}` makes one."
        case "revoke":
            id = api_keys.key_id_in(given.key)
            key = kept.get(id) if id else None
            if key is None or not kept.remove(key.id):
                raise CommandError(
                    f"There is no such key: `make keys{there}` lists those there are."
                )
            return f"Revoked key {key.id} of tenant {key.tenant}."
        case _:
            return "\n".join(_secrets(given, signed))


def _secrets(given: argparse.Namespace, signed: Secrets) -> list[str]:
    entropy = token_bytes(signing.SECRET_ENTROPY)
    return signing.change_secrets(signed, given.tenant, entropy, add=given.add, retire=given.retire)


def _table(found: Sequence[ApiKey]) -> str:
    rows = [COLUMNS] + [
        (key.id, key.tenant, key.role, f"{key.created_at:%Y-%m-%d %H:%M:%S}") for key in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in line).rstrip() for line in lines
    )


def _opened(stage: str | None) -> Opened:
    return (
        _of_stage(stage)
        if stage
        else tenants_in(Path(os.environ.get("TIMERS_DB", DEFAULT_DATABASE)))
    )


@contextmanager
def _of_stage(stage: str) -> Iterator[tuple[ApiKeys, Secrets]]:
    # Not at the top: without a stage there is no boto3.
    from chalicelib.aws.tenant_store import DynamoApiKeys, DynamoSecrets  # noqa: PLC0415

    with stages.aws_session(stage) as session:
        client, table = session.client("dynamodb"), f"timers-{stage}-tenants"
        try:
            yield DynamoApiKeys(client, table), DynamoSecrets(client, table)
        except Unavailable as error:
            if "ResourceNotFoundException" not in str(error):
                raise
            raise CommandError(
                f"There is no timers-{stage} in this account and region:"
                f" `make deploy STAGE={stage}` makes it."
            ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cli.keys",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=stages.STAGES, help="of this one, not of this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a key and print it, this once")
    commands.add_parser("list", help="show the keys there are")
    revoke = commands.add_parser("revoke", help="make a key open nothing any more")
    secrets = commands.add_parser("secrets", help="print what a tenant's webhooks are signed with")
    for command in (add, secrets):
        command.add_argument("--tenant", type=_tenant, default=DEFAULT_TENANT)
    add.add_argument("--role", choices=[role.value for role in Role], default=Role.FULL.value)
    revoke.add_argument("key", metavar="ID", help="as it is listed, or the whole key")
    secrets.add_argument("--add", metavar="new|whsec_…", help="add this one first")
    secrets.add_argument("--retire", metavar="whsec_…", help="then retire this one")
    return parser


def _tenant(name: str) -> str:
    if not api_keys.TENANT_PATTERN.fullmatch(name):
        raise argparse.ArgumentTypeError("up to 63 of a-z, 0-9, - and _, not - or _ first")
    return name


if __name__ == "__main__":
    main(sys.argv[1:])
