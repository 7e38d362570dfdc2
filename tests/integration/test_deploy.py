"""The steps of a deployment, on moto and without Chalice. `make e2e` runs them with Chalice."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from moto import mock_aws

from chalicelib.core.errors import OperatorError
from infra import deploy, stages
from infra.deploy import Deployment
from infra.stages import ON_LOCALSTACK
from tests.integration.test_chalice_state import STATE
from tests.support.aws import ACCOUNT, REGION
from tests.support.cloudformation import FakeCloudFormation
from tests.support.processes import ROOT, environment


class FakeDeployment(Deployment):
    """A deployment of stage dev that records the commands of Chalice instead of running them."""

    def __init__(self, root: Path) -> None:
        self.chalice_commands: list[str] = []
        super().__init__("dev", boto3.Session("testing", "testing", region_name=REGION), root)
        self.clients = self._clients
        self.cloudformation = FakeCloudFormation()
        self.clients["cloudformation"] = self.cloudformation
        self.state = self._state
        self.state_file = root / ".chalice/deployed/dev.json"
        self.state_file.parent.mkdir(parents=True)
        self.state_file.write_text(json.dumps(STATE))

    def _chalice(self, command: str, project: Path) -> None:
        self.chalice_commands.append(command)

    def create_table(self, name: str, *, protected: bool) -> None:
        self.clients["dynamodb"].create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            DeletionProtectionEnabled=protected,
        )

    def saved_states(self) -> list[str]:
        """Return the names of the parameters in SSM."""
        parameters = self.clients["ssm"].describe_parameters()["Parameters"]
        return [parameter["Name"] for parameter in parameters]


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[FakeDeployment]:
    with mock_aws():
        yield FakeDeployment(tmp_path)


@pytest.mark.parametrize("protected", ["timers-dev", "timers-dev-tenants", "stack"])
def test_destroy_refuses_a_protected_stage(deployment: FakeDeployment, protected: str) -> None:
    """While a table or the stack is protected nothing is deleted; the error says which one."""
    for table in ("timers-dev", "timers-dev-tenants"):
        deployment.create_table(table, protected=protected == table)
    deployment.cloudformation.stack = {
        "StackStatus": "X",
        "EnableTerminationProtection": protected == "stack",
    }
    deployment.state.save()
    resource = "stack timers-dev" if protected == "stack" else f"table {protected},"
    with pytest.raises(OperatorError, match=resource):
        deployment.destroy()
    assert deployment.chalice_commands == []
    assert deployment.saved_states()


def test_destroy_deletes_everything(
    deployment: FakeDeployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """The functions go first, then their state, then the stack. Repeating it does nothing."""
    order = deployment.chalice_commands
    cloudformation = deployment.cloudformation
    cloudformation.stack = {"StackStatus": "UPDATE_COMPLETE"}
    cloudformation.before_delete = lambda: order.append(f"stack, {deployment.saved_states()}")
    deployment.state.save()
    deployment.destroy()
    assert order == ["delete", "stack, []"]
    assert cloudformation.waiters == ["stack_delete_complete"]
    assert not deployment.state_file.exists()
    assert f"timers-dev in account {ACCOUNT}, {REGION}" in capsys.readouterr().out
    deployment.destroy()
    assert len(order) == 2


def test_destroy_continues_after_a_failed_stack(deployment: FakeDeployment) -> None:
    """Chalice would fail on resources that it has already deleted, so it runs only once."""
    cloudformation = deployment.cloudformation
    cloudformation.stack = {"StackStatus": "UPDATE_COMPLETE"}
    cloudformation.failure = {"ResourceStatus": "DELETE_FAILED", "LogicalResourceId": "Queue"}
    deployment.state.save()
    with pytest.raises(OperatorError):
        deployment.destroy()
    cloudformation.failure = None
    deployment.destroy()
    assert deployment.chalice_commands == ["delete"]


def test_destroy_leaves_no_functions_behind(
    deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a state Chalice can't delete the functions; the error says how to restore it."""
    monkeypatch.setattr(deployment, "_has_functions", lambda: True)
    deployment.state_file.unlink()
    with pytest.raises(OperatorError, match="make deploy STAGE=dev"):
        deployment.destroy()


class FakeApiGateway:
    """A stage of the API with these throttling settings."""

    def __init__(self, settings: dict[str, float]) -> None:
        self._settings = {"*/*": settings} if settings else {}
        self.patches: list[dict[str, str]] = []

    def get_stage(self, **_: str) -> Any:
        return {"methodSettings": self._settings}

    def update_stage(self, restApiId: str, stageName: str, patchOperations: Any) -> None:
        assert (restApiId, stageName) == ("abc", "api")
        self.patches = patchOperations


@pytest.mark.parametrize(
    ("current", "given", "expected"),
    [
        ({}, (None, None), ("500", "1000")),
        ({}, (50, 60), ("50", "60")),
        ({"throttlingRateLimit": 5000.0, "throttlingBurstLimit": 9}, (None, None), ("5000", "9")),
        ({"throttlingRateLimit": 5000.0, "throttlingBurstLimit": 9}, (50, None), ("50", "9")),
    ],
)
def test_sets_or_keeps_the_throttling_limits(
    deployment: FakeDeployment, current: Any, given: Any, expected: tuple[str, str]
) -> None:
    """A given limit counts; otherwise the current one stays; a new stage gets the default."""
    gateway = deployment.clients["apigateway"] = FakeApiGateway(current)
    deployment._throttle(*given)
    assert [(it["op"], it["path"], it["value"]) for it in gateway.patches] == [
        ("replace", "/*/*/throttling/rateLimit", expected[0]),
        ("replace", "/*/*/throttling/burstLimit", expected[1]),
    ]


class FakeSubscription:
    """The queue's subscription, which Chalice is still creating."""

    def __init__(self) -> None:
        self._states = ["Creating", "Updating", "Enabled"]
        self.config: Any = None

    def get_event_source_mapping(self, UUID: str) -> Any:
        assert UUID == "u"
        return {"State": self._states.pop(0)}

    def update_event_source_mapping(self, UUID: str, ProvisionedPollerConfig: Any) -> None:
        assert self._states == []
        self.config = ProvisionedPollerConfig


@pytest.mark.parametrize(
    ("pollers", "expected"), [(5, {"MinimumPollers": 5, "MaximumPollers": 200}), (0, {})]
)
def test_sets_pollers_when_the_subscription_is_ready(
    deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch, pollers: int, expected: Any
) -> None:
    """Pollers are set once the subscription is ready; 0 removes them."""
    monkeypatch.setattr(deploy, "POLL_INTERVAL", 0)
    subscription = deployment.clients["lambda"] = FakeSubscription()
    deployment._provision(pollers)
    assert subscription.config == expected


def test_deliver_may_requeue_its_messages(deployment: FakeDeployment) -> None:
    """Lambda's loop detection is off for `deliver`: it would drop requeued messages."""
    requests: list[dict[str, str]] = []

    class Recursion:
        def put_function_recursion_config(self, **request: str) -> None:
            requests.append(request)

    deployment.clients["lambda"] = Recursion()
    deployment._allow_recursion()
    assert requests == [{"FunctionName": "timers-dev-deliver", "RecursiveLoop": "Allow"}]


@pytest.mark.parametrize(("endpoint", "url"), [
    (None, "https://abc.example/api"),
    ("http://localhost:4566", "http://localhost:4566/_aws/execute-api/abc/api"),
])  # fmt: skip
def test_greeting_shows_the_url_and_the_key(
    deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, url: str
) -> None:
    """It shows the URL and a curl command with the first key, or says how to create a key."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    first = deployment._greeting("tmr_x")
    assert f"curl {url}/timers" in first
    assert "authorization: Bearer tmr_x" in first
    later = deployment._greeting(None)
    assert "make key STAGE=dev" in later
    assert "authorization: Bearer $TIMERS_KEY" in later


def failure(*arguments: str, **settings: str) -> str:
    """Run a command that fails with status 1, or 2 for a usage error; return its stderr."""
    finished = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env=environment(HOME="/nonexistent", **settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode in (1, 2)
    assert "Traceback" not in finished.stderr
    return finished.stderr


def test_deploy_rejects_an_unknown_stage() -> None:
    """The usage error lists the stages."""
    assert "localstack" in failure("deploy", "nowhere")


def test_deploy_needs_a_region() -> None:
    """The error names the variable to set."""
    assert "AWS_DEFAULT_REGION" in failure("deploy", "dev")


def test_deploy_without_localstack_says_how_to_start_it() -> None:
    """The error names LocalStack's address and the command that starts it."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    down = failure("deploy", "localstack", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
                   AWS_MAX_ATTEMPTS="1", AWS_PROFILE="none-such")  # fmt: skip
    assert "make localstack" in down
    assert f"127.0.0.1:{port}" in down


def test_stage_localstack_never_reaches_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions use LocalStack's default address and credentials, with any AWS_PROFILE."""
    for name in (*ON_LOCALSTACK, "AWS_PROFILE"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with stages.aws_session("localstack") as session:
        variables = dict(os.environ)
        credentials = session.get_credentials()
        assert session.client("sts").meta.endpoint_url == "http://localhost:4566"
    assert {name: variables[name] for name in ON_LOCALSTACK} == ON_LOCALSTACK
    assert "AWS_PROFILE" not in variables
    assert credentials is not None
    assert credentials.access_key == "test"


def test_deploy_refuses_settings_that_the_functions_could_not_use(
    deployment: FakeDeployment, tmp_path: Path, authority: trustme.CA
) -> None:
    """A file must be readable, and where the functions find it; a layer's can't be checked."""
    (tmp_path / "chalicelib").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "chalicelib/ca.pem"))

    def check(**settings: str) -> None:
        stages = {"dev": {"environment_variables": settings}}
        (tmp_path / ".chalice/config.json").write_text(json.dumps({"stages": stages}))
        deployment._check_settings()

    check(CA_BUNDLE="chalicelib/ca.pem", CLIENT_CERT="/opt/client.pem", PROXY="http://proxy:3128")
    with pytest.raises(OperatorError, match=r"CA_BUNDLE=.*/chalicelib/missing\.pem"):
        check(CA_BUNDLE="chalicelib/missing.pem")
    with pytest.raises(OperatorError, match="chalicelib/"):
        check(CA_BUNDLE="/etc/ssl/ca.pem")
    with pytest.raises(OperatorError, match="PROXY"):
        check(PROXY="proxy:3128")
    with pytest.raises(OperatorError, match="ALLOWED_TARGETS"):
        check(ALLOWED_TARGETS="10.0.0.0/99")
