"""Two services of LocalStack's that are made in another way here."""

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
    """Return DynamoDB by moto: DynamoDB Local, which LocalStack starts, is not on PyPI."""
    return Service.for_provider(DynamodbApi(), dispatch_table_factory=_one_at_a_time)


@aws_provider(api="s3", name="temporary")
def s3() -> Service:
    """Return S3 in a temporary folder of its own: LocalStack's is the same for all on a machine."""
    return Service.for_provider(S3Provider(EphemeralS3ObjectStore()))


def _one_at_a_time(provider: DynamodbApi) -> dict[str, Callable[..., Any]]:
    """Return moto's operations under one lock: moto checks a condition and writes in two steps."""
    lock = Lock()

    def locked(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with lock:
                return operation(*arguments)

        return call

    return {name: locked(operation) for name, operation in MotoFallbackDispatcher(provider).items()}
