"""IAM policies: each function may make its own calls only. Emulators do not check this."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from botocore.exceptions import ClientError
from chalice.cli.factory import CLIFactory

from chalicelib.aws import handlers
from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets
from chalicelib.aws.queue import encode_wakeup
from chalicelib.core.errors import ScheduleRefused, Unavailable
from chalicelib.core.pagination import TimerFilter
from chalicelib.core.timer import DEFAULT_TENANT, Status
from chalicelib.service import credentials
from tests.contracts.api_keys import TOKEN
from tests.support.aws import TENANTS, account
from tests.support.cloud import Cloud, Context, Record
from tests.support.processes import ROOT

ACTIONS = {
    "CreateSchedule": {"scheduler:CreateSchedule", "iam:PassRole"},
    "DeleteSchedule": {"scheduler:DeleteSchedule"},
    "SendMessageBatch": {"sqs:SendMessage"},
    "DeleteMessageBatch": {"sqs:DeleteMessage"},
    "TransactWriteItems": {"dynamodb:PutItem"},
    "GetQueueAttributes": {"sqs:GetQueueAttributes"},
}
"""The rights that a call needs, if they differ from `dynamodb:<call>`."""

LAMBDAS_OWN = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
}
"""Rights that Lambda needs in the function's role, for logs and for polling the queue."""


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
    records = [Record(encode_wakeup(timer.wakeup())) for timer in (good, bad)]
    with pytest.raises(Unavailable):
        handlers.deliver(cloud.dependencies, records, Context())
    cloud.aws.before = lambda operation: None
    # An early wake-up is requeued; a retry schedules the timer again.
    late = cloud.read(bad.id)
    cloud.service.scheduler.requeue([late.wakeup()])
    cloud.service.transitions.reschedule(late, late.change(late, ends_at), ends_at)


def sweep(cloud: Cloud) -> None:
    with cloud.aws.unobserved():
        lost, unarmed, _ = cloud.create(0), cloud.create(0), cloud.create(0)
        cloud.service.store.claim(lost.wakeup(), cloud.clock.now, cloud.clock.now)
        cloud.service.store.replace(unarmed.mark_unarmed(cloud.clock.now))
    cloud.clock.forward(60)
    assert cloud.sweep() == 3
    assert cloud.read(lost.id).status is Status.RETRYING


def authorizer(cloud: Cloud) -> None:
    credentials.authenticate(DynamoApiKeys(cloud.aws.dynamodb, TENANTS), f"Bearer {TOKEN}")


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
def test_a_policy_allows_only_needed_calls(cloud: Cloud, name: str) -> None:
    """A function's policy allows each call that it makes, and no other."""
    FUNCTIONS[name](cloud)
    needed = {
        action
        for operation in cloud.aws.names()
        for action in ACTIONS.get(operation, {f"dynamodb:{operation}"})
    }
    assert needed <= allowed(name)
    assert allowed(name) - needed <= LAMBDAS_OWN


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_policy_covers_timers_only(name: str) -> None:
    """No permission covers all resources; only EventBridge Scheduler may be passed the role."""
    for statement in statements(name):
        assert "timers-" in statement["Resource"]
        if statement["Effect"] == "Allow":
            assert not [action for action in statement["Action"] if "*" in action]
        if statement.get("Action") == ["iam:PassRole"]:
            condition = {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}
            assert statement["Condition"] == condition


def may(name: str, action: str, table: str, key: str | None) -> bool:
    """Return whether IAM allows a call on a table: one statement allows it, and none denies it.

    `key` is the item's partition key, or None for a call without one.
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
            # A condition with ForAllValues holds for a request without keys.
            key is None or is_like(key, names["dynamodb:LeadingKeys"]) is LIKE[operator]
            for operator, names in conditions.items()
        )
    )


def is_like(text: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


LIKE = {"ForAllValues:StringLike": True, "ForAllValues:StringNotLike": False}

CALLS = ["GetItem", "BatchGetItem", "Query", "Scan", "PutItem", "UpdateItem", "DeleteItem"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_authorizer_and_deliver_read_the_tenants_table(name: str) -> None:
    """The authorizer reads API keys and `deliver` reads secrets, one at a time; nobody writes them.

    The tables' names share a prefix, so a permission for one could cover the other.
    """
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


def test_the_iam_simulation_is_correct() -> None:
    """`may` allows the calls that the functions make on the timers table, and no others."""
    assert may("deliver", "dynamodb:PutItem", "timers-dev", "x")
    assert may("sweep", "dynamodb:GetItem", "timers-dev", "secrets#x")
    assert not may("deliver", "dynamodb:DeleteItem", "timers-dev", "x")
    assert may("api", "dynamodb:Query", "timers-dev/index/listed", "acme#1")
    assert not may("api", "dynamodb:Query", "timers-dev/index/due", "1")
    assert not may("sweep", "dynamodb:Query", "timers-dev/index/listed", "acme#1")
    assert not may("authorizer", "dynamodb:GetItem", "timers-dev", "key#x")
    assert not may("deliver", "dynamodb:GetItem", "other-dev-tenants", "secrets#x")


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "localstack": {
        "AUTH": "none",
        "NEAR": "190",
        "ALLOWED_TARGETS": "host.docker.internal,localhost,127.0.0.0/8",
    },
    "dev": {},
    "prod": {},
}
"""The environment variables of each stage, besides those that all stages have."""

LIMITS = {
    "api_handler": (29, 512),
    "authorizer": (10, 512),
    "fire": (30, 512),
    "deliver": (60, 1024),
    "sweep": (60, 1024),
}
"""Timeout in seconds and memory in MB of each function, under Chalice's names."""


@pytest.mark.parametrize("stage", ENVIRONMENTS)
@pytest.mark.parametrize("function", LIMITS)
def test_chalice_resolves_the_settings_of_each_function(stage: str, function: str) -> None:
    """Each function of each stage has its own policy, limits and environment variables."""
    project = CLIFactory(str(ROOT)).create_config_obj(chalice_stage_name=stage)
    config = project.scope(stage, function)
    assert (config.lambda_timeout, config.lambda_memory_size) == LIMITS[function]
    assert config.iam_policy_file == f"policy-{function.removesuffix('_handler')}.json"
    assert config.autogen_policy is False
    assert config.api_gateway_stage == "api"
    shared = {"STAGE": stage, "RES_OPTIONS": "timeout:2 attempts:2"}
    assert config.environment_variables == shared | ENVIRONMENTS[stage]


def test_config_sets_environment_variables_where_chalice_reads_them() -> None:
    """Chalice ignores environment variables under `lambda_functions` outside of a stage."""
    functions = json.loads((ROOT / ".chalice/config.json").read_text())["lambda_functions"]
    assert not [name for name, it in functions.items() if "environment_variables" in it]
