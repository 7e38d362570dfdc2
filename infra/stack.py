"""The CloudFormation stack of a stage: everything that Chalice does not create."""

import time
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from botocore.exceptions import WaiterError

from chalicelib.core.errors import OperatorError
from infra.clients import ignoring

POLL_INTERVAL = 3
"""Seconds between two checks of a resource that is changing."""

WAITER_CONFIG = {"Delay": POLL_INTERVAL, "MaxAttempts": 600}

STUCK_STATES = {
    "ROLLBACK_COMPLETE": "delete it",
    "ROLLBACK_FAILED": "delete it",
    "CREATE_FAILED": "delete it",
    "DELETE_FAILED": "delete it, and retain the resources that can't be deleted",
    "UPDATE_ROLLBACK_FAILED": "continue its rollback",
}
"""States that a stack can't leave by itself, and the operator's way out in the AWS console."""


class Stack:
    """The stack `timers-<stage>`; `client` is a boto3 client of CloudFormation."""

    def __init__(self, stage: str, client: Any, template: Path) -> None:
        self.name = f"timers-{stage}"
        self._stage = stage
        self._client = client
        self._template = template

    def update(self, topic: str | None) -> None:
        """Create or update the stack, and wait for it.

        `topic` is the SNS topic of the alarms, "none" removes it, None keeps it.
        Raises OperatorError if the stack is stuck or fails.
        """
        parameters = {"Stage": self._stage}
        if topic is not None:
            parameters["NotifyTopicArn"] = "" if topic == "none" else topic
        if self._settled() is None:
            print(f"Creating the stack {self.name} …", flush=True)
            # Unprotected at first: CloudFormation could not roll back a protected table.
            self._create(parameters | {"Protected": "no"})
        else:
            print(f"Updating the stack {self.name} …", flush=True)
        self._change(parameters | {"Protected": "yes"})
        if self._stage == "prod":
            self._client.update_termination_protection(
                StackName=self.name, EnableTerminationProtection=True
            )

    def delete(self) -> bool:
        """Delete the stack, and wait for it; return False if there is none."""
        if self._describe() is None:
            return False
        print(f"Deleting the stack {self.name} …", flush=True)
        self._client.delete_stack(StackName=self.name)
        self._wait("stack_delete_complete", self.name)
        return True

    def is_protected(self) -> bool:
        """Return whether termination protection is on."""
        return bool((self._describe() or {}).get("EnableTerminationProtection"))

    def _create(self, parameters: Mapping[str, str]) -> None:
        created = self._client.create_stack(
            **self._request(), Parameters=_parameters(parameters), OnFailure="DELETE"
        )
        self._wait("stack_create_complete", created["StackId"])

    def _change(self, parameters: Mapping[str, str]) -> None:
        request = self._request()
        # Parameters set by hand are kept if the template still has them.
        kept = [
            {"ParameterKey": name, "UsePreviousValue": True}
            for name in self._parameter_names()
            if name not in parameters and f"\n  {name}:\n" in request["TemplateBody"]
        ]
        with ignoring("No updates are to be performed"):
            self._client.update_stack(**request, Parameters=[*_parameters(parameters), *kept])
            self._wait("stack_update_complete", self.name)

    def _request(self) -> dict[str, Any]:
        return {
            "StackName": self.name,
            "TemplateBody": self._template.read_text(),
            "Capabilities": ["CAPABILITY_NAMED_IAM"],
        }

    def _parameter_names(self) -> list[str]:
        parameters = (self._describe() or {}).get("Parameters", [])
        return [parameter["ParameterKey"] for parameter in parameters]

    def _describe(self) -> dict[str, Any] | None:
        with ignoring("does not exist"):
            response = self._client.describe_stacks(StackName=self.name)
            return dict(response["Stacks"][0])
        return None

    def _settled(self) -> dict[str, Any] | None:
        """Wait until nothing changes the stack, and return it; raise OperatorError if stuck."""
        stack = self._describe()
        while stack is not None and stack["StackStatus"].endswith("_IN_PROGRESS"):
            print(f"Waiting for the stack {self.name} ({stack['StackStatus']}) …", flush=True)
            time.sleep(POLL_INTERVAL)
            stack = self._describe()
        if stack is not None and (way_out := STUCK_STATES.get(stack["StackStatus"])):
            raise OperatorError(
                f"The stack {self.name} is stuck in {stack['StackStatus']}: {way_out} in the AWS"
                " console (CloudFormation), then run this command again."
            )
        return stack

    def _wait(self, waiter: str, stack: str) -> None:
        try:
            self._client.get_waiter(waiter).wait(StackName=stack, WaiterConfig=WAITER_CONFIG)
        except WaiterError as error:
            if "Max attempts" in str(error):
                raise OperatorError(
                    f"The stack {self.name} is still changing. Run this command again later."
                ) from None
            reasons = "\n".join(reversed(list(self._failures(stack))))
            raise OperatorError(f"The stack {self.name} failed:\n{reasons}") from None

    def _failures(self, stack: str) -> Iterator[str]:
        """Yield the failures of the last operation, newest first."""
        events = self._client.describe_stack_events(StackName=stack)["StackEvents"]
        for event in takewhile(_is_not_the_start, events):
            reason = event.get("ResourceStatusReason", "")
            if event["ResourceStatus"].endswith("FAILED") and reason:
                yield f"  {event['LogicalResourceId']}: {reason}"


def _is_not_the_start(event: Mapping[str, str]) -> bool:
    return event.get("ResourceStatusReason", "") != "User Initiated"


def _parameters(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()]
