"""Replacements for two LocalStack providers: DynamoDB and S3."""

from collections.abc import Callable
from threading import Lock
from typing import Any

from localstack.aws.api.dynamodb import DynamodbApi
from localstack.services.moto import MotoFallbackDispatcher
from localstack.services.plugins import Service, aws_provider
from localstack.services.s3.provider import S3Provider
from localstack.services.s3.storage.ephemeral import EphemeralS3ObjectStore


@aws_provider(api="dynamodb", name="moto")
def dynamodb() -> Service:
    """Return DynamoDB on moto, as LocalStack's DynamoDB Local is not on PyPI."""
    return Service.for_provider(DynamodbApi(), dispatch_table_factory=_one_at_a_time)


@aws_provider(api="s3", name="temporary")
def s3() -> Service:
    """Return S3 in its own temporary folder; LocalStack's default folder is shared."""
    return Service.for_provider(S3Provider(EphemeralS3ObjectStore()))


def _one_at_a_time(provider: DynamodbApi) -> dict[str, Callable[..., Any]]:
    """Put moto's operations under one lock: moto's conditional writes are not atomic."""
    lock = Lock()

    def locked(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with lock:
                return operation(*arguments)

        return call

    return {name: locked(operation) for name, operation in MotoFallbackDispatcher(provider).items()}
