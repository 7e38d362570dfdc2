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

from chalicelib.core.errors import CommandError
from infra import deploy, stages
from infra.deploy import Deployment
from infra.stages import ON_LOCALSTACK
from tests.support.aws import ACCOUNT, REGION
from tests.support.processes import ROOT, environment

STATE = {
    "resources": [
        {"name": "rest_api", "rest_api_id": "abc", "rest_api_url": "https://abc.example/api/"},
        {
            "name": "deliver-sqs-event-source",
            "lambda_arn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:timers-dev-deliver",
            "event_uuid": "u",
        },
    ]
}


class Stage(Deployment):
    """A deployment of stage dev, whose commands of Chalice are only noted down."""

    def __init__(self, root: Path) -> None:
        self.ran: list[str] = []
        self.played: dict[str, Any] = {}
        self.session = boto3.Session("testing", "testing", region_name=REGION)
        super().__init__("dev", self.session, root)

    def _chalice(self, command: str, project: Path) -> None:
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


def test_state_is_kept_again_and_may_grow(stage: Stage) -> None:
    """The record follows each deployment; beyond 4 KB AWS wants another tier, moto does not."""
    for size in (10, 5000):
        write(stage, {"resources": [{"name": "x" * size}]})
        stage._keep_state()
        assert stage._fetch_state()
        assert json.loads(local(stage).read_text())["resources"][0]["name"] == "x" * size
    (parameter,) = stage._client("ssm").describe_parameters()["Parameters"]
    assert parameter["Tier"] == "Intelligent-Tiering"


def test_what_was_only_found_is_no_record(stage: Stage) -> None:
    """A deployment cut off twice: what was found the first time is looked for again."""
    stage.played = {"lambda": Lambda(), "apigateway": ApiGateway()}
    stage._find_state()
    assert not stage._fetch_state()


class Lambda:
    """What a first deployment has left that was cut off."""

    def get_policy(self, FunctionName: str) -> Any:
        assert FunctionName == "timers-dev"
        arns = [f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{id}/*" for id in ("gone", "there")]
        return {"Policy": json.dumps({"Statement": [{"Resource": arn} for arn in arns]})}

    def list_event_source_mappings(self, FunctionName: str) -> Any:
        assert FunctionName == "timers-dev-deliver"
        queue = f"arn:aws:sqs:{REGION}:{ACCOUNT}:timers-dev"
        function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:timers-dev-deliver"
        found = {"UUID": "u", "EventSourceArn": queue, "FunctionArn": function}
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


class CloudFormation:
    """One stack, which is as it was asked for at once; `outcome` is the event of a failure."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.state: dict[str, Any] | None = None
        self.states: list[str] = []
        """States that it goes through before it is as it says."""
        self.outcome: dict[str, Any] | None = None
        self.before_delete: Callable[[], object] = lambda: None
        self.waited: list[str] = []
        self.protected: list[bool] = []

    def describe_stacks(self, StackName: str) -> Any:
        if self.state is None:
            raise self._error("Stack with id timers-dev does not exist")
        return {"Stacks": [{**self.state, **({"StackStatus": s} if (s := self._next()) else {})}]}

    def _next(self) -> str | None:
        return self.states.pop(0) if self.states else None

    def create_stack(self, **request: Any) -> Any:
        self._asked(request, "CREATE_COMPLETE")
        return {"StackId": "arn:stack"}

    def update_stack(self, **request: Any) -> None:
        if request["Parameters"] == self.requests[-1]["Parameters"]:
            raise self._error("No updates are to be performed.")
        self._asked(request, "UPDATE_COMPLETE")

    def _asked(self, request: dict[str, Any], status: str) -> None:
        self.requests.append(request)
        names = [{"ParameterKey": it["ParameterKey"]} for it in request["Parameters"]]
        self.state = {"StackStatus": status, "Parameters": names}

    def update_termination_protection(
        self, StackName: str, EnableTerminationProtection: bool
    ) -> None:
        self.protected.append(EnableTerminationProtection)

    def delete_stack(self, StackName: str) -> None:
        self.before_delete()

    def get_waiter(self, name: str) -> Any:
        self.waited.append(name)
        return self

    def wait(self, StackName: str, WaiterConfig: Any) -> None:
        if self.outcome is not None:
            raise WaiterError("stack", "it failed", {})
        if self.waited[-1] == "stack_delete_complete":
            self.state = None

    def describe_stack_events(self, StackName: str) -> Any:
        assert self.outcome is not None
        begun = {"ResourceStatus": "X", "ResourceStatusReason": "User Initiated"}
        earlier = {**self.outcome, "ResourceStatusReason": "An older failure."}
        return {"StackEvents": [self.outcome, {"ResourceStatus": "Y"}, begun, earlier]}

    def _error(self, words: str) -> ClientError:
        return ClientError({"Error": {"Code": "ValidationError", "Message": words}}, "X")


@pytest.fixture
def stack(stage: Stage) -> CloudFormation:
    (stage._root / "infra").mkdir()
    template = "Parameters:\n  Stage:\n    X\n  Protected:\n    X\n  NotifyTopicArn:\n    X\n"
    (stage._root / "infra/template.yaml").write_text(template)
    made = CloudFormation()
    stage.played = {"cloudformation": made}
    return made


def values(request: dict[str, Any]) -> dict[str, str | None]:
    """Return the parameters of a request; None for what stays as it was."""
    return {it["ParameterKey"]: it.get("ParameterValue") for it in request["Parameters"]}


@pytest.mark.parametrize("protected", ["timers-dev", "timers-dev-tenants", "stack"])
def test_destroy_refuses_what_is_protected(
    stage: Stage, stack: CloudFormation, protected: str
) -> None:
    """Nothing at all is deleted while a table or the stack may not be; how to go on is said."""
    for table in ("timers-dev", "timers-dev-tenants"):
        stage.table(table, protected=protected == table)
    stack.state = {"StackStatus": "X", "EnableTerminationProtection": protected == "stack"}
    write(stage, STATE)
    stage._keep_state()
    what = "termination" if protected == "stack" else f"deletion protection of table {protected},"
    with pytest.raises(CommandError, match=f"nothing was deleted.*{what}"):
        stage.destroy()
    assert stage.ran == []
    assert stage.parameter() is not None


def test_destroy_takes_all_away(
    stage: Stage, stack: CloudFormation, capsys: pytest.CaptureFixture[str]
) -> None:
    """Functions first, then their record, then the stack; and again finds nothing to do."""
    stack.state = {"StackStatus": "UPDATE_COMPLETE"}
    stack.before_delete = lambda: stage.ran.append(f"stack, record: {stage.parameter()}")
    write(stage, STATE)
    stage._keep_state()
    stage.destroy()
    assert stage.ran == ["delete", "stack, record: None"]
    assert stack.waited == ["stack_delete_complete"]
    assert not local(stage).exists()
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"timers-dev in account {ACCOUNT}, {REGION}."
    assert last == "timers-dev is gone."
    stage.destroy()
    assert len(stage.ran) == 2
    assert capsys.readouterr().out.endswith("There is no timers-dev here.\n")


def test_destroy_goes_on_where_the_stack_failed(stage: Stage, stack: CloudFormation) -> None:
    """Chalice is not asked again for what it has deleted: it would stumble over it."""
    stack.state = {"StackStatus": "UPDATE_COMPLETE"}
    stack.outcome = {"ResourceStatus": "DELETE_FAILED", "LogicalResourceId": "Queue"}
    write(stage, STATE)
    stage._keep_state()
    with pytest.raises(CommandError, match="The stack timers-dev failed"):
        stage.destroy()
    stack.outcome = None
    stage.destroy()
    assert stage.ran == ["delete"]


def test_destroy_leaves_no_functions_behind(
    stage: Stage, stack: CloudFormation, monkeypatch: Any
) -> None:
    """If Chalice can't know what there is, it is said, rather than half of it deleted."""
    monkeypatch.setattr(stage, "_has_functions", lambda: True)
    with pytest.raises(CommandError, match="make deploy STAGE=dev"):
        stage.destroy()


def test_what_was_set_stays_set(stage: Stage, stack: CloudFormation) -> None:
    """An update keeps the stack's parameters that it is not told to change, as far as the template
    has them still; a topic goes away with `none`."""
    stage._update_stack("arn:topic")
    made, protected = map(values, stack.requests)
    assert made == {"Stage": "dev", "NotifyTopicArn": "arn:topic", "Protected": "no"}
    assert protected == made | {"Protected": "yes"}
    assert stack.state is not None
    stack.state["Parameters"].append({"ParameterKey": "Forgotten"})
    stage._update_stack(None)
    assert values(stack.requests[-1]) == {
        "Stage": "dev",
        "NotifyTopicArn": None,
        "Protected": "yes",
    }
    stage._update_stack(None)
    assert len(stack.requests) == 3
    stage._update_stack("none")
    assert values(stack.requests[-1])["NotifyTopicArn"] == ""


def test_a_stack_that_fails_says_why(stage: Stage, stack: CloudFormation) -> None:
    """What CloudFormation gave as the reason is what the operator reads, of this time only."""
    stack.outcome = {
        "ResourceStatus": "CREATE_FAILED",
        "LogicalResourceId": "Queue",
        "ResourceStatusReason": "It exists already.",
    }
    with pytest.raises(CommandError) as refused:
        stage._update_stack(None)
    assert str(refused.value) == "The stack timers-dev failed:\n  Queue: It exists already."
    assert stack.requests[0]["OnFailure"] == "DELETE"


def test_a_stack_that_is_changing_is_waited_for(
    stage: Stage, stack: CloudFormation, monkeypatch: Any
) -> None:
    """Whoever was cut off may come again at once."""
    monkeypatch.setattr(deploy, "POLL_INTERVAL", 0)
    stage._update_stack(None)
    stack.states = ["CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"]
    stage._update_stack("arn:topic")
    assert stack.states == []
    assert values(stack.requests[-1])["NotifyTopicArn"] == "arn:topic"


@pytest.mark.parametrize("status", deploy.WAYS_OUT)
def test_a_stack_that_is_stuck_is_said(stage: Stage, stack: CloudFormation, status: str) -> None:
    """What CloudFormation does not leave by itself, a person has to; and how."""
    stack.state = {"StackStatus": status}
    with pytest.raises(CommandError, match=f"is in {status}: .* in the console"):
        stage._update_stack(None)
    assert stack.requests == []


@pytest.mark.parametrize(("name", "protected"), [("dev", []), ("prod", [True])])
def test_a_stack_of_prod_is_protected(
    stage: Stage, stack: CloudFormation, name: str, protected: list[bool]
) -> None:
    """It can't be deleted in passing, like its tables; but what fails at first can be."""
    stage._stage = name
    stage._update_stack(None)
    assert stack.protected == protected
    assert [values(request)["Protected"] for request in stack.requests] == ["no", "yes"]


class Gateway:
    """A stage of the API with these settings."""

    def __init__(self, settings: dict[str, float]) -> None:
        self._settings = {"*/*": settings} if settings else {}
        self.patched: list[dict[str, str]] = []

    def get_stage(self, **_: str) -> Any:
        return {"methodSettings": self._settings}

    def update_stage(self, restApiId: str, stageName: str, patchOperations: Any) -> None:
        assert (restApiId, stageName) == ("abc", "api")
        self.patched = patchOperations


@pytest.mark.parametrize(
    ("kept", "given", "wanted"),
    [
        ({}, (None, None), ("500", "1000")),
        ({}, (50, 60), ("50", "60")),
        ({"throttlingRateLimit": 5000.0, "throttlingBurstLimit": 9}, (None, None), ("5000", "9")),
        ({"throttlingRateLimit": 5000.0, "throttlingBurstLimit": 9}, (50, None), ("50", "9")),
    ],
)
def test_throttle(stage: Stage, kept: Any, given: Any, wanted: tuple[str, str]) -> None:
    """A default at first; later what was set stays, unless another value is given."""
    write(stage, STATE)
    gateway = Gateway(kept)
    stage.played = {"apigateway": gateway}
    stage._throttle(*given)
    assert [(it["op"], it["path"], it["value"]) for it in gateway.patched] == [
        ("replace", "/*/*/throttling/rateLimit", wanted[0]),
        ("replace", "/*/*/throttling/burstLimit", wanted[1]),
    ]


class Subscription:
    """The queue's subscription, still being made when it is first looked at."""

    def __init__(self) -> None:
        self._states = ["Creating", "Updating", "Enabled"]
        self.set: Any = None

    def get_event_source_mapping(self, UUID: str) -> Any:
        assert UUID == "u"
        return {"State": self._states.pop(0)}

    def update_event_source_mapping(self, UUID: str, ProvisionedPollerConfig: Any) -> None:
        assert self._states == []
        self.set = ProvisionedPollerConfig


@pytest.mark.parametrize(
    ("pollers", "wanted"), [(5, {"MinimumPollers": 5, "MaximumPollers": 200}), (0, {})]
)
def test_pollers(stage: Stage, monkeypatch: Any, pollers: int, wanted: Any) -> None:
    """Set once Chalice's own change is over; 0 takes them away."""
    monkeypatch.setattr(deploy, "POLL_INTERVAL", 0)
    write(stage, STATE)
    subscription = Subscription()
    stage.played = {"lambda": subscription}
    stage._provision(pollers)
    assert subscription.set == wanted


def test_a_message_may_go_round(stage: Stage) -> None:
    """Lambda takes it for a loop otherwise, and drops it."""
    asked: dict[str, str] = {}

    class Recursion:
        put_function_recursion_config = staticmethod(lambda **given: asked.update(given))

    stage.played = {"lambda": Recursion()}
    stage._allow_recursion()
    assert asked == {"FunctionName": "timers-dev-deliver", "RecursiveLoop": "Allow"}


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
    for name in (*ON_LOCALSTACK, "AWS_PROFILE"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with stages.aws_session("localstack") as session:
        seen = dict(os.environ)
        credentials = session.get_credentials()
        assert session.client("sts").meta.endpoint_url == "http://localhost:4566"
    assert {name: seen[name] for name in ON_LOCALSTACK} == ON_LOCALSTACK
    assert "AWS_PROFILE" not in seen
    assert credentials is not None
    assert credentials.access_key == "test"
