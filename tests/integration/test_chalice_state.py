"""ChaliceState: Chalice's state file of a stage, kept in SSM, on moto."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from infra.chalice_state import ChaliceState
from infra.clients import Clients
from tests.support.aws import ACCOUNT, REGION

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


@pytest.fixture
def clients() -> Iterator[Clients]:
    with mock_aws():
        yield Clients(boto3.Session("testing", "testing", region_name=REGION))


@pytest.fixture
def state(clients: Clients, tmp_path: Path) -> ChaliceState:
    return ChaliceState("dev", clients, tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file in which Chalice keeps the state."""
    path = tmp_path / ".chalice/deployed/dev.json"
    path.parent.mkdir(parents=True)
    return path


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def test_another_machine_fetches_the_state(state: ChaliceState, file: Path) -> None:
    """A second machine updates the same API instead of creating another one."""
    write(file, STATE)
    state.save()
    file.unlink()
    assert state.fetch()
    assert json.loads(file.read_text()) == STATE
    assert state.resource("rest_api")["rest_api_id"] == "abc"


def test_ssm_overrides_the_local_file(state: ChaliceState, file: Path) -> None:
    """The state in SSM is newer: every deployment from any machine saves it."""
    write(file, STATE)
    state.save()
    write(file, {"resources": []})
    assert state.fetch()
    assert json.loads(file.read_text()) == STATE


def test_adopts_the_state_of_a_plain_chalice_deploy(state: ChaliceState, file: Path) -> None:
    """`make deploy` updates a stage that `chalice deploy` created."""
    write(file, STATE)
    assert state.fetch()


@pytest.mark.parametrize("place", ["us-east-1:123456789012", f"{REGION}:999999999999"])
def test_ignores_the_state_of_another_account_or_region(
    state: ChaliceState, file: Path, place: str
) -> None:
    """The file is named after the stage alone, so it may describe another account or region."""
    file.write_text(json.dumps(STATE).replace(f"{REGION}:{ACCOUNT}", place))
    assert not state.fetch()


def test_saves_a_state_of_any_size(state: ChaliceState, file: Path, clients: Clients) -> None:
    """A state beyond 4 KB needs another parameter tier on AWS. Moto does not check this."""
    for size in (10, 5000):
        content = {"resources": [{"name": "x" * size}]}
        write(file, content)
        state.save()
        assert state.fetch()
        assert json.loads(file.read_text()) == content
    (parameter,) = clients["ssm"].describe_parameters()["Parameters"]
    assert (parameter["Name"], parameter["Tier"]) == ("/timers/dev/deployed", "Intelligent-Tiering")


class FakeLambda:
    """The functions of a first deployment that was interrupted."""

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


class FakeApiGateway:
    """Has one API, `there`."""

    def get_rest_api(self, restApiId: str) -> Any:
        if restApiId != "there":
            raise ClientError({"Error": {"Code": "NotFoundException"}}, "GetRestApi")


def test_rebuilds_the_state_of_an_interrupted_deployment(
    state: ChaliceState, clients: Clients
) -> None:
    """The API and the queue's subscription are found through the functions."""
    clients |= {"lambda": FakeLambda(), "apigateway": FakeApiGateway()}
    state.rebuild()
    api, queue = state.resource("rest_api"), state.resource("deliver-sqs-event-source")
    assert (api["resource_type"], api["rest_api_id"]) == ("rest_api", "there")
    assert (queue["resource_type"], queue["event_uuid"]) == ("sqs_event", "u")
    assert queue["queue"] == "timers-dev"


def test_a_rebuilt_state_is_incomplete(state: ChaliceState, clients: Clients) -> None:
    """A deployment that was interrupted twice rebuilds its state again."""
    clients |= {"lambda": FakeLambda(), "apigateway": FakeApiGateway()}
    state.rebuild()
    assert not state.fetch()
