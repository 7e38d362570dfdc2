"""AWS clients of a session, and how their expected errors are ignored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.exceptions import ClientError


class Clients(dict[str, Any]):
    """boto3 clients by service name, each created when first used: one takes up to 0.5 s."""

    def __init__(self, session: boto3.Session) -> None:
        super().__init__()
        self.session = session

    def __missing__(self, service: str) -> Any:
        self[service] = client = self.session.client(service)  # type: ignore[call-overload]  # any name
        return client


@contextmanager
def ignoring(text: str) -> Iterator[None]:
    """Suppress a ClientError whose code or message contains `text`."""
    try:
        yield
    except ClientError as error:
        if text not in str(error):
            raise
