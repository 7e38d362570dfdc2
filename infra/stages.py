"""Stages (dev, prod, localstack) and the AWS sessions to reach them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chalicelib.core.errors import OperatorError, Unavailable

if TYPE_CHECKING:
    import boto3

ROOT = Path(__file__).parent.parent

STAGES = ("dev", "localstack", "prod")
"""The stages in .chalice/config.json."""

ON_LOCALSTACK = {
    "AWS_ENDPOINT_URL": "http://localhost:4566",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""Settings of stage localstack; environment variables override them."""


@contextmanager
def aws_session(stage: str) -> Iterator["boto3.Session"]:
    """Yield a session for a stage's account; AWS errors in the block become a OperatorError."""
    # Imported here because `make run` does not install boto3.
    import boto3  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    if stage == "localstack":
        os.environ.pop("AWS_PROFILE", None)
        os.environ.update(ON_LOCALSTACK | os.environ)
    hint = " Is LocalStack running? `make localstack` starts it." if stage == "localstack" else ""
    try:
        session = boto3.Session()
        if not session.region_name:
            raise OperatorError("Set the region first: export AWS_DEFAULT_REGION=eu-central-1")
        yield session
    except (BotoCoreError, ClientError) as error:
        raise OperatorError(f"{error}{hint}") from None
    except Unavailable as error:
        # Operators may see the AWS error, which the API hides from its users.
        raise OperatorError(f"{error.__cause__ or error}{hint}") from None
