"""Opens the API keys and signing secrets of a stage, or those of this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chalicelib.core.api_keys import TENANT_PATTERN
from chalicelib.core.errors import OperatorError, Unavailable
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.service.ports import ApiKeys, Secrets
from infra import stages
from standalone.sqlite.connection import DEFAULT_DATABASE
from standalone.sqlite.credentials import credentials_in


@contextmanager
def open_credentials(stage: str | None) -> Iterator[tuple[ApiKeys, Secrets]]:
    """Yield the API keys and signing secrets of a stage, or without a stage those in TIMERS_DB.

    The local database may be in use by a server, which reads it afresh each time.
    Raises OperatorError or Unavailable.
    """
    if stage:
        with _credentials_of(stage) as opened:
            yield opened
    else:
        with credentials_in(Path(os.environ.get("TIMERS_DB", DEFAULT_DATABASE))) as opened:
            yield opened


def tenant_name(name: str | None) -> str:
    """Return a valid tenant name, the default one for None; raise OperatorError."""
    if name is None:
        return DEFAULT_TENANT
    if not TENANT_PATTERN.fullmatch(name):
        raise OperatorError(
            f"{name[:80]!r} is not a valid tenant name: use 1 to 63 of a-z, 0-9, - and _,"
            " beginning with a letter or digit."
        )
    return name


@contextmanager
def _credentials_of(stage: str) -> Iterator[tuple[ApiKeys, Secrets]]:
    # `make run` does not install boto3, and the local database works without it.
    from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets  # noqa: PLC0415

    with stages.aws_session(stage) as session:
        client, table = session.client("dynamodb"), f"timers-{stage}-tenants"
        try:
            yield DynamoApiKeys(client, table), DynamoSecrets(client, table)
        except Unavailable as error:
            if "ResourceNotFoundException" not in str(error):
                raise
            raise OperatorError(
                f"timers-{stage} does not exist in this account and region."
                f" Run `make deploy STAGE={stage}` first."
            ) from None
