"""infra/template.yaml: valid, and consistent with the code."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import app
from chalicelib.aws.timer_store import DynamoTimerStore
from chalicelib.core.pagination import TimerFilter
from tests.support.aws import NAME, TEMPLATE, account, in_stage
from tests.support.fakes import START
from tests.support.processes import ROOT, environment

RESOURCES: dict[str, Any] = TEMPLATE["Resources"]


def properties(type: str) -> list[dict[str, Any]]:
    """Return the properties of all resources of a type."""
    return [it["Properties"] for it in RESOURCES.values() if it["Type"] == type]


def test_passes_cfn_lint() -> None:
    """cfn-lint finds no errors or warnings."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "infra/template.yaml"],
        cwd=ROOT,
        env=environment(AWS_DEFAULT_REGION="us-east-1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "")


def test_names_match_the_code() -> None:
    """The template's names are those that bootstrap.py builds from the stage."""
    assert [in_stage(it["TableName"], "x") for it in properties("AWS::DynamoDB::Table")] == [
        "timers-x",
        "timers-x-tenants",
    ]
    assert in_stage(RESOURCES["Schedules"]["Properties"]["Name"], "x") == "timers-x"
    assert in_stage(RESOURCES["Queue"]["Properties"]["QueueName"], "x") == "timers-x"
    assert in_stage(RESOURCES["DeadLetters"]["Properties"]["QueueName"], "x") == "timers-x-dead"
    role = RESOURCES["SchedulerRole"]["Properties"]
    assert in_stage(role["RoleName"], "x") == "timers-x-scheduler"
    invoke = role["Policies"][0]["PolicyDocument"]["Statement"][0]["Resource"]
    assert in_stage(invoke, "x").endswith(":function:timers-x-fire")


def test_indexes_match_the_queries() -> None:
    """Each index has the keys that the store queries, and the attributes that it filters by."""
    asked = {}
    with account() as aws:
        store = DynamoTimerStore(aws.dynamodb, NAME)
        store.overdue(START, 10)
        store.page("acme", TimerFilter(label="a"), None, 10)
        for operation, request in aws.calls:
            if operation == "Query":
                keys = set(re.findall(r"#(\w+)", request["KeyConditionExpression"]))
                filters = set(re.findall(r"#(\w+)", request.get("FilterExpression", "")))
                asked[request["IndexName"]] = keys, filters
    made = {
        index["IndexName"]: (
            {key["AttributeName"] for key in index["KeySchema"]},
            set(index["Projection"]["NonKeyAttributes"]),
        )
        for index in RESOURCES["Timers"]["Properties"]["GlobalSecondaryIndexes"]
    }
    assert {name: keys for name, (keys, _) in made.items()} == {
        name: keys for name, (keys, _) in asked.items()
    }
    assert asked["listed"][1] == made["listed"][1] == {"label"}


def test_only_our_group_may_use_the_scheduler_role() -> None:
    """The role's trust policy names the account and the schedule group."""
    trust = RESOURCES["SchedulerRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"][0]
    conditions = trust["Condition"]["StringEquals"]
    assert set(conditions) == {"aws:SourceAccount", "aws:SourceArn"}
    assert in_stage(conditions["aws:SourceArn"], "x").endswith(":schedule-group/timers-x")


@pytest.mark.parametrize(
    "table", properties("AWS::DynamoDB::Table"), ids=lambda it: it["TableName"]
)
def test_tables_are_protected(table: dict[str, Any]) -> None:
    """Tables are encrypted, have point-in-time recovery, and deletion protection in prod."""
    assert table["SSESpecification"] == {"SSEEnabled": True}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["DeletionProtectionEnabled"] == ["IsProtected", True, False]


def test_finished_timers_expire() -> None:
    """DynamoDB's TTL uses the attribute that the store writes."""
    ttl = RESOURCES["Timers"]["Properties"]["TimeToLiveSpecification"]
    assert ttl == {"AttributeName": "expires", "Enabled": True}


def test_messages_return_after_the_function_ended() -> None:
    """The visibility timeout is six times the timeout of `deliver`; five receives are allowed."""
    queue = RESOURCES["Queue"]["Properties"]
    assert queue["VisibilityTimeout"] == 6 * 60
    assert queue["RedrivePolicy"]["maxReceiveCount"] == 5


def functions() -> set[str]:
    """Return the names of all functions, in stage x."""
    named: list[Any] = [
        *app.pure_lambda_functions,
        *app.event_sources,
        *app.builtin_auth_handlers,
    ]
    return {"timers-x", *(f"timers-x-{function.name}" for function in named)}


def test_every_function_is_watched() -> None:
    """The errors alarm sums the errors of all functions."""
    metrics = RESOURCES["ErrorsAlarm"]["Properties"]["Metrics"]
    watched = [
        in_stage(it["MetricStat"]["Metric"]["Dimensions"][0]["Value"], "x") for it in metrics[1:]
    ]
    assert sorted(watched) == sorted(functions())
    for it in metrics[1:]:
        assert f"FILL({it['Id']}, 0)" in metrics[0]["Expression"]


def test_every_function_has_its_log_group() -> None:
    """Each function has a log group with a retention period, so none may create one."""
    groups = properties("AWS::Logs::LogGroup")
    names = {in_stage(group["LogGroupName"], "x") for group in groups}
    assert names == {f"/aws/lambda/{function}" for function in functions()}
    assert all("RetentionInDays" in group for group in groups)


def test_dashboard_is_json() -> None:
    """The dashboard's body is JSON, with all placeholders filled in."""
    body = in_stage(RESOURCES["Dashboard"]["Properties"]["DashboardBody"], "x")
    widgets = json.loads(body)["widgets"]
    assert len(widgets) == 4
    assert not re.search(r"\$\{(?!AWS::)", body)
