"""infra/deploy.py where it decides, on moto, with Chalice played by hand; whole in `make e2e`."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, WaiterError
from moto import mock_aws

from chalicelib import keys
from chalicelib.dynamodb import DynamoKeys
from chalicelib.keys import Role
from infra import deploy
from infra.deploy import Deployment, Refused
from tests.aws import ACCOUNT, REGION
from tests.processes import ROOT, environment

STATE = {
    "resources": [
        {"name": "rest_api", "rest_api_id": "abc", "rest_api_url": "https://abc.example/api/"},
        {"name": "deliver", "lambda_arn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:x"},
    ]
}


class Stage(Deployment):
    """A deployment of stage dev, whose commands of Chalice are only noted down."""

    def __init__(self, root: Path) -> None:
        self.ran: list[str] = []
        self.played: dict[str, Any] = {}
        self.session = boto3.Session("testing", "testing", region_name=REGION)
        super().__init__("dev", self.session, root)

    def _chalice(self, command: str) -> None:
        self.ran.append(command)

    def _client(self, service: str) -> Any:
        return self.played.get(service) or super()._client(service)

    def table(self, name: str, *, protected: bool = False) -> None:
        self._client("dynamodb").create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            DeletionProtectionEnabled=protected,
        )

    def parameter(self) -> str | None:
        names = self._client("ssm").describe_parameters()["Parameters"]
        return names[0]["Name"] if names else None


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / ".chalice").mkdir()
    with mock_aws():
        yield Stage(tmp_path)


def local(stage: Stage) -> Path:
    return stage._root / ".chalice/deployed/dev.json"


def write(stage: Stage, state: Any) -> None:
    stage._write_state(json.dumps(state))


def test_state_goes_by_way_of_ssm(stage: Stage, tmp_path: Path) -> None:
    """What one machine has deployed, another one updates: the same API, not a second one."""
    write(stage, STATE)
    stage._keep_state()
    assert stage.parameter() == "/timers/dev/deployed"
    local(stage).unlink()
    assert stage._fetch_state()
    assert json.loads(local(stage).read_text()) == STATE


def test_state_in_ssm_overrules_an_older_one_here(stage: Stage) -> None:
    """Of two, the one that everybody sees counts."""
    write(stage, STATE)
    stage._keep_state()
    write(stage, {"resources": []})
    assert stage._fetch_state()
    assert json.loads(local(stage).read_text()) == STATE


def test_state_of_a_plain_deploy_is_taken_up(stage: Stage) -> None:
    """Whoever began with `chalice deploy` goes on with `make deploy`."""
    write(stage, STATE)
    assert stage._fetch_state()


@pytest.mark.parametrize("place", ["us-east-1:123456789012", f"{REGION}:999999999999"])
def test_state_of_another_account_or_region_is_not_ours(stage: Stage, place: str) -> None:
    """The file is named for the stage only; one laptop may deploy it to many places."""
    stage._write_state(json.dumps(STATE).replace(f"{REGION}:{ACCOUNT}", place))
    assert not stage._fetch_state()


def test_large_states_fit(stage: Stage) -> None:
    """More than the 4 KB of a standard parameter."""
    write(stage, {"resources": [{"name": "x" * 5000}]})
    stage._keep_state()
    assert stage._fetch_state()


class Lambda:
    """What a first deployment has left that was cut off."""

    def get_policy(self, FunctionName: str) -> Any:
        assert FunctionName == "timers-dev"
        arns = [f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{id}/*" for id in ("gone", "there")]
        return {"Policy": json.dumps({"Statement": [{"Resource": arn} for arn in arns]})}

    def list_event_source_mappings(self, FunctionName: str) -> Any:
        assert FunctionName == "timers-dev-deliver"
        found = {"UUID": "u", "EventSourceArn": "arn:q", "FunctionArn": "arn:f"}
        return {"EventSourceMappings": [found]}


class ApiGateway:
    """Knows one API."""

    def get_rest_api(self, restApiId: str) -> Any:
        if restApiId != "there":
            raise ClientError({"Error": {"Code": "NotFoundException"}}, "GetRestApi")


def test_a_deployment_that_was_cut_off_is_found(stage: Stage) -> None:
    """Without a record the API and the queue's subscription are found through the functions."""
    stage.played = {"lambda": Lambda(), "apigateway": ApiGateway()}
    stage._find_state()
    api, queue = json.loads(local(stage).read_text())["resources"]
    assert (api["resource_type"], api["rest_api_id"]) == ("rest_api", "there")
    assert (queue["resource_type"], queue["event_uuid"]) == ("sqs_event", "u")
    assert queue["queue"] == "timers-dev"


@pytest.mark.parametrize("protected", ["timers-dev", "timers-dev-tenants"])
def test_destroy_refuses_a_protected_table(stage: Stage, protected: str) -> None:
    """Nothing at all is deleted while one of the tables may not be, and it is said how to go on."""
    stage.table("timers-dev", protected=protected == "timers-dev")
    stage.table("timers-dev-tenants", protected=protected == "timers-dev-tenants")
    write(stage, STATE)
    stage._keep_state()
    with pytest.raises(Refused, match=f"{protected} is protected: nothing was deleted"):
        stage.destroy()
    assert stage.ran == []
    assert stage.parameter() is not None


def test_destroy_takes_all_away(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Functions first, then the stack, then the record; and again finds nothing to do."""
    cloudformation = CloudFormation()
    stage.played = {"cloudformation": cloudformation}
    cloudformation.before = lambda: stage.ran.append("stack")
    write(stage, STATE)
    stage._keep_state()
    stage.destroy()
    assert stage.ran == ["delete", "stack"]
    assert stage.parameter() is None
    assert not local(stage).exists()
    assert capsys.readouterr().out.endswith("timers-dev is gone.\n")
    stage.destroy()
    assert stage.ran == ["delete", "stack", "stack"]


def test_destroy_leaves_no_functions_behind(stage: Stage, monkeypatch: Any) -> None:
    """If Chalice can't know what there is, it is said, rather than half of it deleted."""
    monkeypatch.setattr(stage, "_has_functions", lambda: True)
    with pytest.raises(Refused, match="make deploy STAGE=dev"):
        stage.destroy()


class CloudFormation:
    """One stack, which is as it was asked for at once."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.outcome: dict[str, Any] | None = None
        self.before: Callable[[], object] = lambda: None

    def describe_stacks(self, StackName: str) -> Any:
        if not self.requests:
            raise self._error("Stack with id timers-dev does not exist")
        names = [it["ParameterKey"] for it in self.requests[-1]["Parameters"]]
        return {"Stacks": [{"Parameters": [{"ParameterKey": name} for name in names]}]}

    def create_stack(self, **request: Any) -> Any:
        self.requests.append(request)
        return {"StackId": "arn:stack"}

    def update_stack(self, **request: Any) -> None:
        if request["Parameters"] == self.requests[-1]["Parameters"]:
            raise self._error("No updates are to be performed.")
        self.requests.append(request)

    def delete_stack(self, StackName: str) -> None:
        self.before()

    def get_waiter(self, name: str) -> Any:
        return self

    def wait(self, StackName: str, WaiterConfig: Any) -> None:
        if self.outcome is not None:
            raise WaiterError("stack", "it failed", {})

    def describe_stack_events(self, StackName: str) -> Any:
        return {"StackEvents": [self.outcome, {"ResourceStatus": "CREATE_COMPLETE"}]}

    def _error(self, words: str) -> ClientError:
        return ClientError({"Error": {"Code": "ValidationError", "Message": words}}, "X")


@pytest.fixture
def stack(stage: Stage) -> CloudFormation:
    (stage._root / "infra").mkdir()
    (stage._root / "infra/template.yaml").write_text("Resources: {}")
    made = CloudFormation()
    stage.played = {"cloudformation": made}
    return made


def test_what_was_set_stays_set(stage: Stage, stack: CloudFormation) -> None:
    """An update keeps the stack's parameters that it is not told to change."""
    name = {"ParameterKey": "Stage", "ParameterValue": "dev"}
    stage._update_stack("arn:topic")
    topic = {"ParameterKey": "NotifyTopicArn", "ParameterValue": "arn:topic"}
    assert stack.requests[-1]["Parameters"] == [name, topic]
    stage._update_stack(None)
    kept = {"ParameterKey": "NotifyTopicArn", "UsePreviousValue": True}
    assert stack.requests[-1]["Parameters"] == [name, kept]
    stage._update_stack(None)
    assert len(stack.requests) == 2


def test_a_stack_that_fails_says_why(stage: Stage, stack: CloudFormation) -> None:
    """What CloudFormation gave as the reason is what the operator reads."""
    stack.outcome = {
        "ResourceStatus": "CREATE_FAILED",
        "LogicalResourceId": "Queue",
        "ResourceStatusReason": "It exists already.",
    }
    with pytest.raises(Refused, match=r"timers-dev failed:\n  Queue: It exists already\."):
        stage._update_stack(None)


@pytest.mark.parametrize(("name", "protected"), [("dev", False), ("prod", True)])
def test_a_stack_of_prod_is_protected(
    stage: Stage, stack: CloudFormation, name: str, protected: bool
) -> None:
    """It can't be deleted in passing, like its tables."""
    stage._stage = name
    stage._update_stack(None)
    assert stack.requests[-1]["EnableTerminationProtection"] is protected


def test_keys_are_made_as_asked(stage: Stage) -> None:
    """What is printed is what opens the API, for that tenant and role."""
    stage.table("timers-dev-tenants")
    text = stage.make_key("acme", Role.READ)
    kept = DynamoKeys(stage._client("dynamodb"), "timers-dev-tenants")
    found = keys.find(kept, f"Bearer {text}")
    assert found is not None
    assert (found.tenant, found.role) == ("acme", Role.READ)


@pytest.mark.parametrize(("endpoint", "url"), [
    (None, "https://abc.example/api"),
    ("http://localhost:4566", "http://localhost:4566/_aws/execute-api/abc/api"),
])  # fmt: skip
def test_greeting(stage: Stage, monkeypatch: Any, endpoint: str | None, url: str) -> None:
    """The URL that works, and a curl with the key, or where a key is to be had."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    write(stage, STATE)
    first = stage._greeting("tmr_x")
    assert f"Timers is deployed at {url}\n" in first
    assert f"curl {url}/timers" in first
    assert "authorization: Bearer tmr_x" in first
    later = stage._greeting(None)
    assert "make key STAGE=dev" in later
    assert "authorization: Bearer $TIMERS_KEY" in later


def refusal(*arguments: str, **settings: str) -> str:
    """Return what the command says before it ends with status 1 (2: used wrongly)."""
    ended = subprocess.run(
        [sys.executable, "-m", "infra.deploy", *arguments],
        cwd=ROOT,
        env=environment(HOME="/nonexistent", **settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode in (1, 2)
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_says_what_is_missing() -> None:
    """No such stage, no region, no LocalStack: one sentence, and what to do."""
    assert "choose from" in refusal("deploy", "nowhere")
    assert "AWS_DEFAULT_REGION" in refusal("deploy", "dev")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    down = refusal("deploy", "localstack", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
                   AWS_MAX_ATTEMPTS="1", AWS_PROFILE="none-such")  # fmt: skip
    assert "make localstack" in down
    assert f"127.0.0.1:{port}" in down


def test_stage_localstack_is_for_localstack(monkeypatch: Any) -> None:
    """Without an endpoint it goes to LocalStack's, with its credentials: never to an account."""
    seen: dict[str, str] = {}
    monkeypatch.setattr(deploy, "_run", lambda _: seen.update(os.environ))
    for name in (*deploy.LOCALSTACK, "AWS_PROFILE"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    deploy.main(["destroy", "localstack"])
    assert {name: seen[name] for name in deploy.LOCALSTACK} == deploy.LOCALSTACK
    assert "AWS_PROFILE" not in seen
