"""A fake CloudFormation client."""

from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError, WaiterError


class FakeCloudFormation:
    """Holds one stack, whose operations complete at once; `failure` is a failure's event."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.stack: dict[str, Any] | None = None
        self.passing_states: list[str] = []
        """States that the stack shows first, one per call."""
        self.failure: dict[str, Any] | None = None
        self.before_delete: Callable[[], object] = lambda: None
        self.waiters: list[str] = []
        self.termination_protection: list[bool] = []

    def describe_stacks(self, StackName: str) -> Any:
        if self.stack is None:
            raise _validation_error(f"Stack with id {StackName} does not exist")
        passing = {"StackStatus": self.passing_states.pop(0)} if self.passing_states else {}
        return {"Stacks": [{**self.stack, **passing}]}

    def create_stack(self, **request: Any) -> Any:
        self._accept(request, "CREATE_COMPLETE")
        return {"StackId": "arn:stack"}

    def update_stack(self, **request: Any) -> None:
        if request["Parameters"] == self.requests[-1]["Parameters"]:
            raise _validation_error("No updates are to be performed.")
        self._accept(request, "UPDATE_COMPLETE")

    def update_termination_protection(
        self, StackName: str, EnableTerminationProtection: bool
    ) -> None:
        self.termination_protection.append(EnableTerminationProtection)

    def delete_stack(self, StackName: str) -> None:
        self.before_delete()

    def get_waiter(self, name: str) -> Any:
        self.waiters.append(name)
        return self

    def wait(self, StackName: str, WaiterConfig: Any) -> None:
        if self.failure is not None:
            raise WaiterError("stack", "it failed", {})
        if self.waiters[-1] == "stack_delete_complete":
            self.stack = None

    def describe_stack_events(self, StackName: str) -> Any:
        """Return the failure, the start of the operation, and a failure of an earlier one."""
        assert self.failure is not None
        start = {"ResourceStatus": "X", "ResourceStatusReason": "User Initiated"}
        earlier = {**self.failure, "ResourceStatusReason": "An older failure."}
        return {"StackEvents": [self.failure, {"ResourceStatus": "Y"}, start, earlier]}

    def _accept(self, request: dict[str, Any], status: str) -> None:
        self.requests.append(request)
        names = [{"ParameterKey": it["ParameterKey"]} for it in request["Parameters"]]
        self.stack = {"StackStatus": status, "Parameters": names}


def _validation_error(message: str) -> ClientError:
    return ClientError({"Error": {"Code": "ValidationError", "Message": message}}, "X")
