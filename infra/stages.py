"""What the commands for a stage share: which stages there are, and how their account is reached."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chalicelib.core.errors import CommandError, Unavailable

if TYPE_CHECKING:
    import boto3

ROOT = Path(__file__).parent.parent

STAGES = sorted(json.loads((ROOT / ".chalice/config.json").read_text())["stages"])

ON_LOCALSTACK = {
    "AWS_ENDPOINT_URL": "http://localhost:4566",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""What stage localstack takes for granted, where the environment does not say otherwise."""


@contextmanager
def aws_session(stage: str) -> Iterator["boto3.Session"]:
    """Give a session for the account of a stage; what AWS does not do then raises Refused."""
    # Not at the top: a machine that never deploys has no boto3.
    import boto3  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    if stage == "localstack":
        os.environ.pop("AWS_PROFILE", None)
        os.environ.update(ON_LOCALSTACK | os.environ)
    hint = " Is it running? `make localstack` starts it." if stage == "localstack" else ""
    try:
        session = boto3.Session()
        if not session.region_name:
            raise CommandError(
                "Say which region, for example: export AWS_DEFAULT_REGION=eu-central-1"
            )
        yield session
    except (BotoCoreError, ClientError) as error:
        raise CommandError(f"{error}{hint}") from None
    except Unavailable as error:
        # The operator may read AWS's own words, which an answer of the API leaves out.
        raise CommandError(f"{error.__cause__ or error}{hint}") from None
