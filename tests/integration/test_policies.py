"""Each function may do what it does, and nothing else: no emulator would tell."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from botocore.exceptions import ClientError

from chalicelib.aws import scheduler as scheduler_module
from chalicelib.aws.timer_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core.errors import ScheduleRefused, Unavailable
from chalicelib.core.pagination import TimerFilter
from chalicelib.core.timer import DEFAULT_TENANT, Status
from chalicelib.service import tenants
from tests.contracts.api_keys import TOKEN
from tests.support.aws import TENANTS, account
from tests.support.cloud import Cloud
from tests.support.processes import ROOT

ACTIONS = {
    "CreateSchedule": {"scheduler:CreateSchedule", "iam:PassRole"},
    "DeleteSchedule": {"scheduler:DeleteSchedule"},
    "SendMessageBatch": {"sqs:SendMessage"},
    "DeleteMessageBatch": {"sqs:DeleteMessage"},
    "TransactWriteItems": {"dynamodb:PutItem"},
    "GetQueueAttributes": {"sqs:GetQueueAttributes"},
}
"""The rights that a call needs; those of DynamoDB are called as the calls."""

LAMBDAS_OWN = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
}
"""What Lambda needs for its logs and its poller, in the function's role."""


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with account() as aws:
        yield Cloud(aws)


def api(cloud: Cloud) -> None:
    near, far = cloud.create(5), cloud.create(5000)
    cloud.service.get(DEFAULT_TENANT, near.id)
    cloud.service.cancel(DEFAULT_TENANT, far.id)
    cloud.service.check()
    assert len(cloud.service.page(DEFAULT_TENANT, TimerFilter(), None, 10).timers) == 2
    refusal: Any = {
        "Error": {"Code": "AccessDeniedException"},
        "ResponseMetadata": {"HTTPStatusCode": 403},
    }

    def refuse(operation: str) -> None:
        if operation == "CreateSchedule":
            raise ClientError(refusal, operation)

    cloud.aws.before = refuse
    with pytest.raises(ScheduleRefused):
        cloud.create(5)


def fire(cloud: Cloud) -> None:
    with cloud.aws.unobserved():
        timer = cloud.create(5000)
    cloud.service.fire(timer.wakeup())


def deliver(cloud: Cloud) -> None:
    with cloud.aws.unobserved():
        good, bad = cloud.create(0), cloud.create(0)

    def fail(operation: str) -> None:
        if operation == "UpdateItem" and cloud.aws.calls[-1][1]["Key"]["id"]["S"] == bad.id:
            raise Unavailable("DynamoDB")

    cloud.aws.before = fail
    ends_at = cloud.clock.now + timedelta(seconds=60)
    DynamoSecrets(cloud.aws.dynamodb, TENANTS).of(good.tenant)
    messages = [(scheduler_module._text(timer.wakeup()), "handle") for timer in (good, bad)]
    scheduler: Any = cloud.service.scheduler
    with pytest.raises(Unavailable):
        scheduler.answer(messages, lambda wakeup: cloud.service.deliver(wakeup, ends_at))
    cloud.aws.before = lambda operation: None
    # A ring too early is forwarded; an attempt that is to be made again moves the timer.
    late = cloud.read(bad.id)
    cloud.service.scheduler.requeue([late.wakeup()])
    cloud.service.transitions.reschedule(late, late.change(late, ends_at), cloud.clock.now)


def sweep(cloud: Cloud) -> None:
    with cloud.aws.unobserved():
        lost, unarmed, _ = cloud.create(0), cloud.create(0), cloud.create(0)
        cloud.service.store.claim(lost.wakeup(), cloud.clock.now, cloud.clock.now)
        cloud.service.store.replace(unarmed.mark_unarmed(cloud.clock.now))
    cloud.clock.forward(60)
    assert cloud.sweep() == 3
    assert cloud.read(lost.id).status is Status.RETRYING


def authorizer(cloud: Cloud) -> None:
    tenants.authenticate(DynamoApiKeys(cloud.aws.dynamodb, TENANTS), f"Bearer {TOKEN}")


FUNCTIONS: dict[str, Callable[[Cloud], None]] = {
    "api": api,
    "authorizer": authorizer,
    "fire": fire,
    "deliver": deliver,
    "sweep": sweep,
}


def statements(name: str) -> list[dict[str, Any]]:
    policy = json.loads((ROOT / f".chalice/policy-{name}.json").read_text())
    return list(policy["Statement"])


def allowed(name: str) -> set[str]:
    rights = [statement for statement in statements(name) if statement["Effect"] == "Allow"]
    return {action for statement in rights for action in statement["Action"]}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_policy_is_what_the_function_needs(cloud: Cloud, name: str) -> None:
    """Every call that a function makes is allowed to it, and all that is allowed is needed."""
    FUNCTIONS[name](cloud)
    needed = {
        action
        for operation in cloud.aws.names()
        for action in ACTIONS.get(operation, {f"dynamodb:{operation}"})
    }
    assert needed <= allowed(name)
    assert allowed(name) - needed <= LAMBDAS_OWN


@pytest.mark.parametrize("name", FUNCTIONS)
def test_policy_reaches_timers_only(name: str) -> None:
    """No right is for all resources; the role is handed to the Scheduler and to nobody else."""
    for statement in statements(name):
        assert "timers-" in statement["Resource"]
        if statement["Effect"] == "Allow":
            assert not [action for action in statement["Action"] if "*" in action]
        if statement.get("Action") == ["iam:PassRole"]:
            condition = {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}
            assert statement["Condition"] == condition


def may(name: str, action: str, table: str, key: str | None) -> bool:
    """Say whether IAM lets a function do this to a table: allowed by one statement, denied by none.

    `key` is the partition key of the item; None for a call that names none.
    """
    resource = f"arn:aws:dynamodb:eu-central-1:123456789012:table/{table}"
    effects = {it["Effect"] for it in statements(name) if concerns(it, action, resource, key)}
    return effects == {"Allow"}


def concerns(statement: dict[str, Any], action: str, resource: str, key: str | None) -> bool:
    if "Action" in statement:
        meant = is_like(action, statement["Action"])
    else:
        meant = not is_like(action, statement["NotAction"])
    conditions = statement.get("Condition", {}) if meant else {}
    return (
        meant
        and is_like(resource, [statement["Resource"]])
        and all(
            # Where there is no key at all, whatever begins with ForAllValues is met.
            key is None or is_like(key, names["dynamodb:LeadingKeys"]) is LIKE[operator]
            for operator, names in conditions.items()
        )
    )


def is_like(text: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


LIKE = {"ForAllValues:StringLike": True, "ForAllValues:StringNotLike": False}

CALLS = ["GetItem", "BatchGetItem", "Query", "Scan", "PutItem", "UpdateItem", "DeleteItem"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keys_and_secrets_are_kept_from_whom_they_do_not_concern(name: str) -> None:
    """The authorizer reads keys and `deliver` secrets, one by one; nobody reads anything else
    there, and nobody writes. The names of the tables look alike, so that a right to one would be a
    right to the other."""
    api_keys = ["key#abc", "secrets#acme", "xsecrets#acme", "", None]
    allowed = {
        (call, key)
        for call in CALLS
        for key in api_keys
        if may(name, f"dynamodb:{call}", "timers-dev-tenants", key)
    }
    allowed.discard(("GetItem", None))  # there is no such call
    wanted = {"authorizer": {("GetItem", "key#abc")}, "deliver": {("GetItem", "secrets#acme")}}
    assert allowed == wanted.get(name, set())


def test_the_rules_of_iam_are_played_right() -> None:
    """The table of the timers is open to those who work with it, and to no authorizer."""
    assert may("deliver", "dynamodb:PutItem", "timers-dev", "x")
    assert may("sweep", "dynamodb:GetItem", "timers-dev", "secrets#x")
    assert not may("deliver", "dynamodb:DeleteItem", "timers-dev", "x")
    assert may("api", "dynamodb:Query", "timers-dev/index/listed", "acme#1")
    assert not may("api", "dynamodb:Query", "timers-dev/index/due", "1")
    assert not may("sweep", "dynamodb:Query", "timers-dev/index/listed", "acme#1")
    assert not may("authorizer", "dynamodb:GetItem", "timers-dev", "key#x")
    assert not may("deliver", "dynamodb:GetItem", "other-dev-tenants", "secrets#x")


@pytest.mark.parametrize("stage", ["localstack", "dev", "prod"])
def test_stages_are_set_up_alike(stage: str) -> None:
    """Each stage knows its name, has the limits that the design counts on, and writes no policy of
    its own making."""
    config = json.loads((ROOT / ".chalice/config.json").read_text())["stages"][stage]
    functions = config["lambda_functions"]
    settings = config["environment_variables"]
    assert settings.pop("STAGE") == stage
    assert settings.pop("RES_OPTIONS") == "timeout:2 attempts:2"
    assert (stage == "localstack") or settings == {}
    assert config["autogen_policy"] is False
    assert config["iam_policy_file"] == "policy-api.json"
    assert config["lambda_timeout"] == 29
    assert {name: it["iam_policy_file"] for name, it in functions.items()} == {
        name: f"policy-{name}.json" for name in FUNCTIONS if name != "api"
    }
    assert (functions["deliver"]["lambda_timeout"], functions["sweep"]["lambda_timeout"]) == (
        60,
        60,
    )
    assert functions["deliver"]["lambda_memory_size"] == 1024
