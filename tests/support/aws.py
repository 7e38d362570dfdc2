"""An AWS account in moto with the template's resources, and a record of all calls to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Any

import boto3
import yaml
from botocore.config import Config
from moto import mock_aws

from chalicelib.aws.scheduler import Addresses
from tests.support.fakes import START
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_scheduler import EventBridgeSchedulerClient
    from mypy_boto3_sqs import SQSClient

REGION = "eu-central-1"
ACCOUNT = "123456789012"
STAGE = "test"
NAME = f"timers-{STAGE}"
TENANTS = f"{NAME}-tenants"

_LOCK = RLock()


@dataclass
class Account:
    """The clients of an empty account, and the calls made with them."""

    dynamodb: "DynamoDBClient"
    scheduler: "EventBridgeSchedulerClient"
    sqs: "SQSClient"
    addresses: Addresses
    queue_path: str
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    done: list[tuple[str, dict[str, Any], datetime]] = field(default_factory=list)
    """The calls that succeeded, with their time by `clock`."""
    clock: Callable[[], datetime] = lambda: START
    before: Callable[[str], object] = lambda operation: None
    """Runs before each call; if it raises, the call has no effect."""
    after: Callable[[str], object] = lambda operation: None
    """Runs after each call; if it raises, the call has had its effect."""

    def queue_url(self) -> str:
        """Return the URL of the queue."""
        return f"{self.sqs.meta.endpoint_url}/{self.queue_path}"

    def names(self) -> list[str]:
        """Return the operations called, in order."""
        return [operation for operation, _ in self.calls]

    def schedules(self) -> list[str]:
        """Return the names of all schedules, sorted."""
        with self.unobserved():
            pages = self.scheduler.get_paginator("list_schedules").paginate(GroupName=NAME)
            return sorted(item["Name"] for page in pages for item in page["Schedules"])

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Make calls that are not recorded and do not fail."""
        saved = self.calls, self.done, self.before, self.after
        self.calls, self.done, self.before, self.after = [], [], lambda _: None, lambda _: None
        try:
            yield
        finally:
            self.calls, self.done, self.before, self.after = saved


@cache
def _clients() -> tuple[Any, ...]:
    # Creating a client takes half a second, so all tests share them.
    session = boto3.Session("testing", "testing", region_name=REGION)
    settings = Config(max_pool_connections=40, retries={"total_max_attempts": 1})
    names: list[Any] = ["dynamodb", "scheduler", "sqs"]
    clients = [session.client(name, config=settings) for name in names]
    for client in clients:
        client._make_api_call = _one_at_a_time(client._make_api_call)
    return tuple(clients)


def _one_at_a_time(call: Callable[..., Any]) -> Callable[..., Any]:
    # Unlike DynamoDB, moto is not atomic between the check of a condition and the write.
    def locked(*args: Any) -> Any:
        with _LOCK:
            return call(*args)

    return locked


@contextmanager
def account() -> Iterator[Account]:
    """Create an account with the tables, the schedule group and the queue of stage `test`."""
    with mock_aws():
        dynamodb, scheduler, sqs = _clients()
        for table in ("Timers", "Tenants"):
            create_table(dynamodb, table)
        scheduler.create_schedule_group(Name=NAME)
        url = sqs.create_queue(QueueName=NAME)["QueueUrl"]
        addresses = Addresses(
            group=NAME,
            fire_arn=f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{NAME}-fire",
            role_arn=f"arn:aws:iam::{ACCOUNT}:role/{NAME}-scheduler",
            dead_letter_arn=f"arn:aws:sqs:{REGION}:{ACCOUNT}:{NAME}-dead",
        )
        path = url.partition("amazonaws.com/")[2]
        made = Account(dynamodb, scheduler, sqs, addresses, path)
        with _observed(made):
            yield made


@contextmanager
def _observed(made: Account) -> Iterator[None]:
    def before(params: dict[str, Any], model: Any, **_: Any) -> None:
        made.calls.append((model.name, params))
        made.before(model.name)

    def after(model: Any, parsed: Any, **_: Any) -> None:
        if "Error" not in parsed:
            made.done.append((*made.calls[-1], made.clock()))
        made.after(model.name)

    clients = [made.dynamodb, made.scheduler, made.sqs]
    for client in clients:
        client.meta.events.register("provide-client-params", before, unique_id="before")
        client.meta.events.register("after-call", after, unique_id="after")
    try:
        yield
    finally:
        for client in clients:
            client.meta.events.unregister("provide-client-params", before, unique_id="before")
            client.meta.events.unregister("after-call", after, unique_id="after")


def create_table(client: "DynamoDBClient", name: str) -> None:
    """Create the template's table of this name, with the properties that moto supports."""
    properties = TEMPLATE["Resources"][name]["Properties"]
    names = ("BillingMode", "KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes")
    supported = {name: properties[name] for name in names if name in properties}
    client.create_table(TableName=in_stage(properties["TableName"], STAGE), **supported)


def in_stage(text: str, stage: str) -> str:
    """Return a text of the template with the stage filled in."""
    return text.replace("${Stage}", stage)


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms as their content: `!Sub x` as `x`."""


def _plain(loader: Any, _: str, node: yaml.Node) -> Any:
    match node:
        case yaml.ScalarNode():
            return loader.construct_scalar(node)
        case yaml.SequenceNode():
            return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


_Loader.add_multi_constructor("!", _plain)

TEMPLATE: dict[str, Any] = yaml.load(
    (ROOT / "infra/template.yaml").read_text(),
    Loader=_Loader,  # noqa: S506  # a SafeLoader
)
