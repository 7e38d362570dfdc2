"""The CloudFormation stack of a stage, against a fake CloudFormation."""

from pathlib import Path
from typing import Any

import pytest

from chalicelib.core.errors import OperatorError
from infra import stack as stack_module
from infra.stack import STUCK_STATES, Stack
from tests.support.cloudformation import FakeCloudFormation

TEMPLATE = "Parameters:\n  Stage:\n    X\n  Protected:\n    X\n  NotifyTopicArn:\n    X\n"


@pytest.fixture
def cloudformation() -> FakeCloudFormation:
    return FakeCloudFormation()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.yaml"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def stack(cloudformation: FakeCloudFormation, template: Path) -> Stack:
    return Stack("dev", cloudformation, template)


def values(request: dict[str, Any]) -> dict[str, str | None]:
    """Return a request's parameters; None stands for the previous value."""
    return {it["ParameterKey"]: it.get("ParameterValue") for it in request["Parameters"]}


def test_update_creates_a_missing_stack(stack: Stack, cloudformation: FakeCloudFormation) -> None:
    """A new stack is protected only after its creation, so a failed creation can roll back."""
    stack.update("arn:topic")
    created, protected = map(values, cloudformation.requests)
    assert created == {"Stage": "dev", "NotifyTopicArn": "arn:topic", "Protected": "no"}
    assert protected == created | {"Protected": "yes"}
    assert cloudformation.requests[0]["OnFailure"] == "DELETE"


def test_update_keeps_other_parameters(stack: Stack, cloudformation: FakeCloudFormation) -> None:
    """An update keeps the parameters it does not set, except those the template lacks."""
    stack.update("arn:topic")
    assert cloudformation.stack is not None
    cloudformation.stack["Parameters"].append({"ParameterKey": "Forgotten"})
    stack.update(None)
    assert values(cloudformation.requests[-1]) == {
        "Stage": "dev",
        "NotifyTopicArn": None,
        "Protected": "yes",
    }


def test_update_without_changes_succeeds(stack: Stack, cloudformation: FakeCloudFormation) -> None:
    """CloudFormation's error for an update without changes is ignored."""
    stack.update(None)
    stack.update(None)
    assert len(cloudformation.requests) == 2


def test_topic_none_removes_the_topic(stack: Stack, cloudformation: FakeCloudFormation) -> None:
    """The topic `none` sets the parameter to an empty text."""
    stack.update("arn:topic")
    stack.update("none")
    assert values(cloudformation.requests[-1])["NotifyTopicArn"] == ""


def test_failure_shows_the_reasons(stack: Stack, cloudformation: FakeCloudFormation) -> None:
    """The error lists CloudFormation's reasons for this operation, not for earlier ones."""
    cloudformation.failure = {
        "ResourceStatus": "CREATE_FAILED",
        "LogicalResourceId": "Queue",
        "ResourceStatusReason": "It exists already.",
    }
    with pytest.raises(OperatorError) as failed:
        stack.update(None)
    assert "Queue: It exists already." in str(failed.value)
    assert "older" not in str(failed.value)


def test_update_waits_for_a_changing_stack(
    stack: Stack, cloudformation: FakeCloudFormation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update may follow an interrupted one at once."""
    monkeypatch.setattr(stack_module, "POLL_INTERVAL", 0)
    stack.update(None)
    cloudformation.passing_states = ["CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"]
    stack.update("arn:topic")
    assert cloudformation.passing_states == []
    assert values(cloudformation.requests[-1])["NotifyTopicArn"] == "arn:topic"


@pytest.mark.parametrize("status", STUCK_STATES)
def test_update_rejects_a_stuck_stack(
    stack: Stack, cloudformation: FakeCloudFormation, status: str
) -> None:
    """The error names the state and the way out of it, and nothing is changed."""
    cloudformation.stack = {"StackStatus": status}
    with pytest.raises(OperatorError, match=STUCK_STATES[status]):
        stack.update(None)
    assert cloudformation.requests == []


@pytest.mark.parametrize(("stage", "protection"), [("dev", []), ("prod", [True])])
def test_only_prod_has_termination_protection(
    cloudformation: FakeCloudFormation, template: Path, stage: str, protection: list[bool]
) -> None:
    """The stack of prod is protected against deletion, like its tables."""
    Stack(stage, cloudformation, template).update(None)
    assert cloudformation.termination_protection == protection
