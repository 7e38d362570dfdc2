"""Composition root on AWS.

All resources are named after the stage. Account and region are those of the running function.
Clients are created when a request first needs them, because creating one takes longer than using
it.
"""

import logging
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from chalicelib.core.errors import NotConfigured, OperatorError
from chalicelib.core.targets import Targets
from chalicelib.core.timer import DEFAULT_TENANT, Outcome, Timer
from chalicelib.runtime import Dependencies, new_id, now
from chalicelib.service.commands import Commands
from chalicelib.service.concurrency import in_threads
from chalicelib.service.worker import Worker

if TYPE_CHECKING:
    from chalicelib.service.ports import Secrets
    from chalicelib.webhook.sender import WebhookSender

log = logging.getLogger(__name__)

T = TypeVar("T")

STAGE_NAME = f"timers-{os.environ.get('STAGE', '')}"
"""Name of the stage's table, queue and schedule group; prefix of all other names."""

CLIENT_SETTINGS = {
    "connect_timeout": 1,
    "read_timeout": 2,
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "max_pool_connections": 40,
}
"""Timeouts in seconds. A call with all its retries takes at most 10 s: API Gateway waits for 29 s,
and a worker stops trying to record an outcome 10 s before its end."""

LOCALSTACK_ACCOUNT = "000000000000"
"""LocalStack's account; no AWS account has this number."""


def dependencies_at(arn: str) -> Dependencies:
    """Return the dependencies in the account and region of this ARN, or raise NotConfigured."""
    if not os.environ.get("STAGE") or not arn:
        raise NotConfigured(
            "This process has no AWS settings. Run `make run` to serve Timers on this machine."
        )
    _, partition, _, region, account, *_ = arn.split(":")
    return _dependencies(partition, region, account)


class _LazySender:
    """Creates the sender when a webhook is first sent: most requests send none."""

    def __init__(self, targets: Targets, secrets: "Secrets") -> None:
        self._targets = targets
        self._secrets = secrets
        self._sender = _lazy(self._create)

    def send(self, timer: Timer, at: datetime) -> Outcome:
        try:
            sender = self._sender()
        except OperatorError as error:  # before the attempt: no timer must fail because of it
            raise NotConfigured(str(error)) from error
        return sender.send(timer, at)

    def _create(self) -> "WebhookSender":
        from chalicelib.webhook.proxy import Proxy  # noqa: PLC0415
        from chalicelib.webhook.secrets_cache import SecretsCache  # noqa: PLC0415
        from chalicelib.webhook.sender import WebhookSender  # noqa: PLC0415  # loads requests, 60 ms
        from chalicelib.webhook.tls import client_context  # noqa: PLC0415

        return WebhookSender(
            self._targets,
            client_context(os.environ.get("CA_BUNDLE", ""), os.environ.get("CLIENT_CERT", "")),
            proxy=Proxy.parse(os.environ.get("PROXY", "")),
            secrets_of=SecretsCache(self._secrets.of, now).of,
        )


def _lazy(create: Callable[[], T]) -> Callable[[], T]:
    """Return a function that creates a value at its first call, in one thread only."""
    lock, created = Lock(), cache(create)

    def get() -> T:
        with lock:
            return created()

    return get


@cache
def _dependencies(partition: str, region: str, account: str) -> Dependencies:
    # Not at the top: importing app.py must not load what some requests don't need.
    import botocore.session  # noqa: PLC0415  # boto3 would add 12 ms and nothing that is used
    from botocore.config import Config  # noqa: PLC0415

    from chalicelib.aws import logs  # noqa: PLC0415
    from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets  # noqa: PLC0415
    from chalicelib.aws.queue import SQS_MAX_DELAY, MessageQueue  # noqa: PLC0415
    from chalicelib.aws.scheduler import Addresses, AwsScheduler  # noqa: PLC0415
    from chalicelib.aws.timer_store import DynamoTimerStore  # noqa: PLC0415

    log_lines = logs.attach(STAGE_NAME)
    anonymous = _anonymous_tenant(account)
    session = botocore.session.get_session()
    settings = Config(**CLIENT_SETTINGS)  # type: ignore[arg-type]
    client: Any = partial(session.create_client, region_name=region, config=settings)
    addresses = Addresses(
        group=STAGE_NAME,
        fire_arn=f"arn:{partition}:lambda:{region}:{account}:function:{STAGE_NAME}-fire",
        role_arn=f"arn:{partition}:iam::{account}:role/{STAGE_NAME}-scheduler",
        dead_letter_arn=f"arn:{partition}:sqs:{region}:{account}:{STAGE_NAME}-dead",
    )
    queue = MessageQueue(_lazy(partial(client, "sqs")), f"{account}/{STAGE_NAME}", now)
    # Stage localstack lowers it, so that early schedules are used within minutes.
    near = timedelta(seconds=int(os.environ.get("NEAR", SQS_MAX_DELAY.total_seconds())))
    eventbridge = _lazy(partial(client, "scheduler"))
    scheduler = AwsScheduler(eventbridge, queue, addresses, now, near=near)
    dynamodb = client("dynamodb")
    store = DynamoTimerStore(dynamodb, STAGE_NAME)
    tenants = f"{STAGE_NAME}-tenants"
    targets = Targets.parse(os.environ.get("ALLOWED_TARGETS", ""))
    return Dependencies(
        commands=Commands(
            store, scheduler, targets=targets, new_id=new_id, concurrently=in_threads
        ),
        worker=Worker(
            store,
            scheduler,
            _LazySender(targets, DynamoSecrets(dynamodb, tenants)),
            clock=now,
            pause=time.sleep,
            concurrently=in_threads,
        ),
        clock=now,
        keys=DynamoApiKeys(dynamodb, tenants),
        anonymous=anonymous,
        queue=queue,
        log_lines=log_lines,
    )


def _anonymous_tenant(account: str) -> str | None:
    auth = os.environ.get("AUTH", "keys")
    if auth == "none" and STAGE_NAME == "timers-localstack" and account == LOCALSTACK_ACCOUNT:
        return DEFAULT_TENANT
    if auth != "keys":
        # Logged only: the other functions must not stop firing timers because of it.
        log.error(
            "this AUTH is not allowed on this stage: API keys are required", extra={"auth": auth}
        )
    return None
