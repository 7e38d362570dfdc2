"""Composition root for AWS, and the place where the application finds its service.

Everything on AWS is named by rule from the stage; account and region are those of the function that
runs. Clients are made when a request first needs them: making one takes longer than using it.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from chalicelib.core.api_keys import ApiKeys
from chalicelib.core.errors import NotConfigured
from chalicelib.core.targets import Targets
from chalicelib.core.timer import DEFAULT_TENANT, Outcome, Timer, timer_id
from chalicelib.service.service import Service, in_threads

if TYPE_CHECKING:
    from chalicelib.aws.logs import JsonLines
    from chalicelib.aws.queue import MessageQueue
    from chalicelib.core.signing import Secrets
    from chalicelib.webhook.sender import WebhookSender

log = logging.getLogger(__name__)

T = TypeVar("T")

STAGE_NAME = f"timers-{os.environ.get('STAGE', '')}"
"""What everything of this stage is called, the table, the queue and the schedule group first."""

CLIENT_SETTINGS = {
    "connect_timeout": 1,
    "read_timeout": 2,
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "max_pool_connections": 40,
}
"""Seconds. One call with all its tries takes 10 s at most: API Gateway waits 29 s, and a worker
that can't record its outcome gives up 10 s before its end."""


LOCALSTACK_ACCOUNT = "000000000000"
"""The account that LocalStack plays; no customer of AWS has this number."""


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """The application, put together."""

    service: Service
    targets: Targets
    keys: ApiKeys | None = None
    """None where there are none."""
    anonymous: str | None = None
    """The tenant of requests without a key; None where these are refused."""
    queue: "MessageQueue | None" = None
    """On AWS only."""
    lines: "JsonLines | None" = None
    """On AWS only."""
    receiver: str | None = None
    """Path of the built-in receiver, where there is one: not on AWS."""


_installed: Dependencies | None = None


def install(installed: Dependencies) -> None:
    """Make these the parts that app.py works with, instead of those on AWS."""
    global _installed  # noqa: PLW0603  # one application in a process, as Chalice has it
    _installed = installed


def current(context: Any) -> Dependencies:
    """Return the parts for a Lambda invocation's context, or raise NotConfigured."""
    found = current_at(getattr(context, "invoked_function_arn", ""))
    if found.lines is not None:
        found.lines.invocation(context)
    return found


def current_at(arn: str) -> Dependencies:
    """Return the parts in the account and region of any ARN there, or raise NotConfigured."""
    if _installed is not None:
        return _installed
    if not os.environ.get("STAGE") or not arn:
        raise NotConfigured(
            "There are no AWS settings here; run `make run` to serve Timers on this machine."
        )
    _, partition, _, region, account, *_ = arn.split(":")
    return _on_aws(partition, region, account)


def now() -> datetime:
    """Return the wall time."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return an id that no timer has."""
    return timer_id(now(), secrets.token_bytes(10))


class _Sender:
    """The Sender, made when a webhook is first sent: most requests send none."""

    def __init__(self, targets: Targets, secrets: "Secrets") -> None:
        self._real = _once(partial(_make_sender, targets, secrets))

    def send(self, timer: Timer, at: datetime) -> Outcome:
        return self._real().send(timer, at)


def _make_sender(targets: Targets, secrets: "Secrets") -> "WebhookSender":
    from chalicelib.webhook.sender import SecretsCache, WebhookSender  # noqa: PLC0415  # requests takes 60 ms to import

    return WebhookSender(targets, secrets_of=SecretsCache(secrets.of, now).of)


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that makes a thing when it is first called, in one thread only."""
    lock, made = Lock(), cache(make)

    def get() -> T:
        with lock:
            return made()

    return get


@cache
def _on_aws(partition: str, region: str, account: str) -> Dependencies:
    # Not at the top: importing the application must not load what a request may not need.
    import botocore.session  # noqa: PLC0415  # what boto3 adds to it takes 12 ms, for nothing here
    from botocore.config import Config  # noqa: PLC0415

    from chalicelib.aws import logs  # noqa: PLC0415
    from chalicelib.aws.queue import SQS_MAX_DELAY, MessageQueue  # noqa: PLC0415
    from chalicelib.aws.scheduler import Addresses, AwsScheduler  # noqa: PLC0415
    from chalicelib.aws.tenant_store import DynamoApiKeys, DynamoSecrets  # noqa: PLC0415
    from chalicelib.aws.timer_store import DynamoTimerStore  # noqa: PLC0415

    lines = logs.attach(STAGE_NAME)
    anonymous = _anonymous(account)
    session = botocore.session.get_session()
    settings = Config(**CLIENT_SETTINGS)  # type: ignore[arg-type]
    client: Any = partial(session.create_client, region_name=region, config=settings)
    addresses = Addresses(
        group=STAGE_NAME,
        fire_arn=f"arn:{partition}:lambda:{region}:{account}:function:{STAGE_NAME}-fire",
        role_arn=f"arn:{partition}:iam::{account}:role/{STAGE_NAME}-scheduler",
        dead_letter_arn=f"arn:{partition}:sqs:{region}:{account}:{STAGE_NAME}-dead",
    )
    eventbridge = _once(partial(client, "scheduler"))
    queue = MessageQueue(_once(partial(client, "sqs")), f"{account}/{STAGE_NAME}", now)
    # LocalStack's stage lowers it, to show in minutes what takes more than a quarter of an hour.
    near = timedelta(seconds=int(os.environ.get("NEAR", SQS_MAX_DELAY.total_seconds())))
    scheduler = AwsScheduler(eventbridge, queue, addresses, now, near=near)
    dynamodb = client("dynamodb")
    targets = Targets.parse(os.environ.get("ALLOWED_TARGETS", ""))
    service = Service(
        DynamoTimerStore(dynamodb, STAGE_NAME),
        scheduler,
        _Sender(targets, DynamoSecrets(dynamodb, f"{STAGE_NAME}-tenants")),
        clock=now,
        new_id=new_id,
        pause=time.sleep,
        side_by_side=in_threads,
    )
    return Dependencies(
        service=service,
        targets=targets,
        keys=DynamoApiKeys(dynamodb, f"{STAGE_NAME}-tenants"),
        anonymous=anonymous,
        queue=queue,
        lines=lines,
    )


def _anonymous(account: str) -> str | None:
    auth = os.environ.get("AUTH", "keys")
    if auth == "none" and STAGE_NAME == "timers-localstack" and account == LOCALSTACK_ACCOUNT:
        return DEFAULT_TENANT
    if auth != "keys":
        # The functions beside the API go on: a mistake here must not keep timers from firing.
        log.error("AUTH is not for this stage: keys are wanted", extra={"auth": auth})
    return None
