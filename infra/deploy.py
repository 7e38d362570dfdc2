"""Deploys Timers into an AWS account or LocalStack, and takes it away again.

    template.yaml ──► bundle ──► chalice deploy ──► what Chalice can't set ──► first key and secrets

Every step may be repeated, and goes on where an earlier one was cut off. What Chalice has to
remember of a deployment (the ids that AWS chose) is kept in SSM, so that any machine can update it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from secrets import token_bytes
from tempfile import TemporaryDirectory
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

from chalicelib.aws.tenant_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core import signing
from chalicelib.core.api_keys import Role
from chalicelib.core.errors import CommandError
from chalicelib.core.timer import DEFAULT_TENANT
from cli.keys import new_key
from infra import bundle, stages
from infra.stages import ROOT

DEFAULT_RATE, DEFAULT_BURST = 500, 1000
"""Requests a second that the API takes, and how many at once; more are answered with 429."""

POLL_INTERVAL = 3
"""Seconds between two looks at something that is changing."""

WAITER_CONFIG = {"Delay": POLL_INTERVAL, "MaxAttempts": 600}

WAYS_OUT = {
    "ROLLBACK_COMPLETE": "delete it",
    "ROLLBACK_FAILED": "delete it",
    "CREATE_FAILED": "delete it",
    "DELETE_FAILED": "delete it, and keep what can't be deleted",
    "UPDATE_ROLLBACK_FAILED": "continue its roll-back",
}
"""States of a stack that it does not leave by itself, and what is to be done in the console."""


class Deployment:
    """One stage of Timers in one account and region."""

    def __init__(self, stage: str, session: boto3.Session, root: Path = ROOT) -> None:
        self._stage = stage
        self._name = f"timers-{stage}"
        self._session = session
        self._clients: dict[str, Any] = {}
        self._root = root
        self._state_file = root / f".chalice/deployed/{stage}.json"
        self._parameter = f"/timers/{stage}/deployed"
        self._keys = DynamoApiKeys(self._client("dynamodb"), f"{self._name}-tenants")
        self._secrets = DynamoSecrets(self._client("dynamodb"), f"{self._name}-tenants")

    def deploy(
        self, *, topic: str | None, rate: int | None, burst: int | None, pollers: int | None
    ) -> None:
        """Make or update everything; print where it is and how to use it. None: as it was."""
        _say(self._place())
        self._update_stack(topic)
        if not self._fetch_state():
            self._find_state()
        with TemporaryDirectory() as folder:
            bundle.build(self._root, Path(folder))
            self._chalice("deploy", Path(folder))
        self._keep_state()
        self._allow_recursion()
        self._throttle(rate, burst)
        # Before what may have to wait: whoever has deployed has a key.
        _say(self._greeting(self._first_key()))
        if pollers is not None:
            self._provision(pollers)

    def destroy(self) -> None:
        """Take everything away, timers included; refuse if it is protected."""
        _say(self._place())
        self._require_unprotected()
        # The API first, that nothing new comes in; the tables last.
        if self._fetch_state():
            self._chalice("delete", self._root)
        elif self._has_functions():
            raise CommandError(
                "An earlier command was cut off, and what Chalice made is known to nobody:"
                f" run `make deploy STAGE={self._stage}` once more, then destroy it."
            )
        self._forget_state()
        if self._stack() is None:
            _say(f"There is no {self._name} here.")
            return
        cloudformation = self._client("cloudformation")
        _say(f"Deleting the stack {self._name} …")
        cloudformation.delete_stack(StackName=self._name)
        self._wait(cloudformation.get_waiter("stack_delete_complete"), self._name)
        _say(f"{self._name} is gone.")

    def _first_key(self) -> str | None:
        found = self._keys.all()
        # Also those whose keys are older than signing.
        for tenant in sorted({DEFAULT_TENANT, *(key.tenant for key in found)}):
            signing.ensure_secret(self._secrets, tenant, token_bytes(signing.SECRET_ENTROPY))
        return None if found else new_key(self._keys, self._secrets, DEFAULT_TENANT, Role.FULL)

    def _place(self) -> str:
        return f"{self._name} in account {self._account()}, {self._session.region_name}."

    def _account(self) -> str:
        return str(self._client("sts").get_caller_identity()["Account"])

    def _update_stack(self, topic: str | None) -> None:
        stack = self._settled_stack()
        given = {"Stage": self._stage}
        if topic is not None:
            given["NotifyTopicArn"] = "" if topic == "none" else topic
        if stack is None:
            _say(f"Making the stack {self._name} …")
            # Unprotected at first: what fails half-way could not be taken back.
            self._create_stack(given | {"Protected": "no"})
            stack = self._stack() or {}
        else:
            _say(f"Updating the stack {self._name} …")
        self._change_stack(stack, given | {"Protected": "yes"})
        if self._stage == "prod":
            self._client("cloudformation").update_termination_protection(
                StackName=self._name, EnableTerminationProtection=True
            )

    def _create_stack(self, given: Mapping[str, str]) -> None:
        cloudformation = self._client("cloudformation")
        made = cloudformation.create_stack(
            **self._stack_request(), Parameters=_parameters(given), OnFailure="DELETE"
        )
        self._wait(cloudformation.get_waiter("stack_create_complete"), made["StackId"])

    def _change_stack(self, stack: Mapping[str, Any], given: Mapping[str, str]) -> None:
        cloudformation = self._client("cloudformation")
        request = self._stack_request()
        # What somebody set by hand stays, if the template still knows it.
        names = [parameter["ParameterKey"] for parameter in stack.get("Parameters", [])]
        kept = [
            {"ParameterKey": name, "UsePreviousValue": True}
            for name in names
            if name not in given and f"\n  {name}:\n" in request["TemplateBody"]
        ]
        with _ignoring("No updates are to be performed"):
            cloudformation.update_stack(**request, Parameters=[*_parameters(given), *kept])
            self._wait(cloudformation.get_waiter("stack_update_complete"), self._name)

    def _stack_request(self) -> dict[str, Any]:
        return {
            "StackName": self._name,
            "TemplateBody": (self._root / "infra/template.yaml").read_text(),
            "Capabilities": ["CAPABILITY_NAMED_IAM"],
        }

    def _stack(self) -> dict[str, Any] | None:
        with _ignoring("does not exist"):
            found = self._client("cloudformation").describe_stacks(StackName=self._name)
            return dict(found["Stacks"][0])
        return None

    def _settled_stack(self) -> dict[str, Any] | None:
        """Return the stack when nothing is changing it, or None; raise Refused if it is stuck."""
        stack = self._stack()
        while stack is not None and stack["StackStatus"].endswith("_IN_PROGRESS"):
            _say(f"The stack {self._name} is changing ({stack['StackStatus']}) …")
            time.sleep(POLL_INTERVAL)
            stack = self._stack()
        if stack is not None and (way_out := WAYS_OUT.get(stack["StackStatus"])):
            raise CommandError(
                f"The stack {self._name} is in {stack['StackStatus']}: {way_out} in the console"
                " (CloudFormation), and come again."
            )
        return stack

    def _wait(self, waiter: Any, stack: str) -> None:
        try:
            waiter.wait(StackName=stack, WaiterConfig=WAITER_CONFIG)
        except WaiterError as error:
            if "Max attempts" in str(error):
                raise CommandError(
                    f"The stack {self._name} is still changing; come again."
                ) from None
            raise CommandError(self._reasons(stack)) from None

    def _reasons(self, stack: str) -> str:
        events = self._client("cloudformation").describe_stack_events(StackName=stack)
        said = [(it, it.get("ResourceStatusReason", "")) for it in events["StackEvents"]]
        # The newest come first; before this, another command was under way.
        ours = takewhile(lambda event: event[1] != "User Initiated", said)
        reasons = [
            f"  {event['LogicalResourceId']}: {reason}"
            for event, reason in ours
            if event["ResourceStatus"].endswith("FAILED") and reason
        ]
        return "\n".join([f"The stack {self._name} failed:", *reversed(reasons)])

    def _fetch_state(self) -> bool:
        """Put what Chalice has to remember in its place; say whether it is known."""
        text = None
        with _ignoring("ParameterNotFound"):
            text = self._client("ssm").get_parameter(Name=self._parameter)["Parameter"]["Value"]
        if text is not None:
            self._write_state(text)
            return True
        # A plain `chalice deploy` may have left it here, whole, or for another account or region.
        if not self._state_file.exists():
            return False
        text = self._state_file.read_text()
        place = f":{self._session.region_name}:{self._account()}:"
        return place in text and '"rest_api_url"' in text

    def _find_state(self) -> None:
        """Remember what a deployment that was cut off, or made elsewhere, has left in the account.

        Chalice finds everything by its name but the API and the queue's subscription.
        """
        found = [*self._found_api(), *self._found_subscription()]
        state = {"resources": found, "schema_version": "2.0", "backend": "api"}
        self._write_state(json.dumps(state))

    def _forget_state(self) -> None:
        with _ignoring("ParameterNotFound"):
            self._client("ssm").delete_parameter(Name=self._parameter)
        self._state_file.unlink(missing_ok=True)

    def _write_state(self, text: str) -> None:
        self._state_file.parent.mkdir(exist_ok=True)
        self._state_file.write_text(text)

    def _found_api(self) -> list[dict[str, str]]:
        policy = "{}"
        with _ignoring("ResourceNotFoundException"):
            policy = self._client("lambda").get_policy(FunctionName=self._name)["Policy"]
        # Chalice has allowed the API, by its id, to invoke the function.
        for id in sorted(set(re.findall(r":execute-api:[^:]*:\d*:(\w+)/", policy))):
            with _ignoring("NotFoundException"):
                self._client("apigateway").get_rest_api(restApiId=id)
                record = {"name": "rest_api", "resource_type": "rest_api", "rest_api_id": id}
                return [record]
        return []

    def _found_subscription(self) -> list[dict[str, str]]:
        mappings: list[Any] = []
        with _ignoring("ResourceNotFoundException"):
            mappings = self._client("lambda").list_event_source_mappings(
                FunctionName=f"{self._name}-deliver"
            )["EventSourceMappings"]
        return [
            {
                "name": "deliver-sqs-event-source",
                "resource_type": "sqs_event",
                "queue_arn": mapping["EventSourceArn"],
                "event_uuid": mapping["UUID"],
                "queue": self._name,
                "lambda_arn": mapping["FunctionArn"],
            }
            for mapping in mappings
        ]

    def _chalice(self, command: str, project: Path) -> None:
        ended = subprocess.run(  # noqa: S603  # what it runs is ours
            [Path(sys.executable).with_name("chalice"), command, "--stage", self._stage],
            cwd=project,
            check=False,
        )
        if ended.returncode:
            raise CommandError(
                f"`chalice {command}` failed; what it said stands above. If it misses what an"
                f" earlier command took away, `make deploy STAGE={self._stage}` brings it back."
            )

    def _state(self, name: str) -> dict[str, str]:
        resources = json.loads(self._state_file.read_text())["resources"]
        return next(resource for resource in resources if resource["name"] == name)

    def _keep_state(self) -> None:
        text = json.dumps(json.loads(self._state_file.read_text()), separators=(",", ":"))
        self._client("ssm").put_parameter(
            Name=self._parameter,
            Description="What `chalice deploy` has to remember of this stage of Timers.",
            Value=text,
            Type="String",
            Tier="Intelligent-Tiering",  # it may grow beyond the 4 KB of the standard tier
            Overwrite=True,
        )

    def _allow_recursion(self) -> None:
        # A message that is due later goes back to the queue that it came from: that is no loop.
        self._client("lambda").put_function_recursion_config(
            FunctionName=f"{self._name}-deliver", RecursiveLoop="Allow"
        )

    def _throttle(self, rate: int | None, burst: int | None) -> None:
        gateway = self._client("apigateway")
        stage = {"restApiId": self._state("rest_api")["rest_api_id"], "stageName": "api"}
        kept = gateway.get_stage(**stage).get("methodSettings", {}).get("*/*", {})
        wanted = {
            "rateLimit": rate or kept.get("throttlingRateLimit") or DEFAULT_RATE,
            "burstLimit": burst or kept.get("throttlingBurstLimit") or DEFAULT_BURST,
        }
        gateway.update_stage(
            **stage,
            patchOperations=[
                {"op": "replace", "path": f"/*/*/throttling/{limit}", "value": f"{value:.0f}"}
                for limit, value in wanted.items()
            ],
        )

    def _provision(self, pollers: int) -> None:
        client = self._client("lambda")
        id = self._state("deliver-sqs-event-source")["event_uuid"]
        # Chalice has just made or changed it, and only one change at a time is taken.
        for _ in range(100):
            if client.get_event_source_mapping(UUID=id)["State"] in ("Enabled", "Disabled"):
                break
            time.sleep(POLL_INTERVAL)
        many = {"MinimumPollers": pollers, "MaximumPollers": 200} if pollers else {}
        client.update_event_source_mapping(UUID=id, ProvisionedPollerConfig=many)

    def _has_functions(self) -> bool:
        pages = self._client("lambda").get_paginator("list_functions").paginate()
        names = [function["FunctionName"] for page in pages for function in page["Functions"]]
        return any(name == self._name or name.startswith(f"{self._name}-") for name in names)

    def _require_unprotected(self) -> None:
        protected = []
        for table in (self._name, f"{self._name}-tenants"):
            with _ignoring("ResourceNotFoundException"):
                found = self._client("dynamodb").describe_table(TableName=table)["Table"]
                if found.get("DeletionProtectionEnabled"):
                    protected.append(f"the deletion protection of table {table}")
        if (self._stack() or {}).get("EnableTerminationProtection"):
            protected.append(f"the termination protection of stack {self._name}")
        if protected:
            raise CommandError(
                f"{self._name} is protected, and nothing was deleted. If you mean it, turn off"
                f" {' and '.join(protected)}, and come again."
            )

    def _greeting(self, key: str | None) -> str:
        api = self._state("rest_api")
        url = api["rest_api_url"].rstrip("/")
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):  # an emulator's own way to its APIs
            url = f"{endpoint}/_aws/execute-api/{api['rest_api_id']}/api"
        shown = "Its key is shown this once" if key else "It has keys; another one"
        return (
            f"Timers is deployed at {url}\n"
            f"{shown}: {key or f'make key STAGE={self._stage}'}\n"
            f"  curl {url}/timers -H 'content-type: application/json' \\\n"
            f'    -H "authorization: Bearer {key or "$TIMERS_KEY"}" \\\n'
            """    -d '{"seconds": 5, "url": "https://example.com/hook"}'"""
        )

    def _client(self, service: str) -> Any:
        # Each takes up to half a second to make.
        if service not in self._clients:
            self._clients[service] = self._session.client(service)  # type: ignore[call-overload]
        return self._clients[service]


def _parameters(given: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()]


@contextmanager
def _ignoring(words: str) -> Iterator[None]:
    """Suppress the error of AWS that says this."""
    try:
        yield
    except ClientError as error:
        if words not in str(error):
            raise


def main(arguments: Sequence[str]) -> None:
    """Run one command; what goes wrong ends it with one sentence and status 1."""
    given = _parser().parse_args(arguments)
    try:
        with stages.aws_session(given.stage) as session:
            _run(given, Deployment(given.stage, session))
    except CommandError as error:
        sys.exit(str(error))


def _run(given: argparse.Namespace, deployment: Deployment) -> None:
    match given.command:
        case "deploy":
            deployment.deploy(
                topic=given.topic, rate=given.rate, burst=given.burst, pollers=given.pollers
            )
        case "destroy":
            deployment.destroy()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    deploy = commands.add_parser("deploy", help="make or update a stage")
    destroy = commands.add_parser("destroy", help="take a stage away, its timers included")
    for command in (deploy, destroy):
        command.add_argument("stage", choices=stages.STAGES)
    deploy.add_argument("--topic", help="ARN of the SNS topic that the alarms tell, or none")
    deploy.add_argument("--rate", type=int, help=f"requests a second, {DEFAULT_RATE} at first")
    deploy.add_argument("--burst", type=int, help=f"requests at once, {DEFAULT_BURST} at first")
    deploy.add_argument(
        "--pollers",
        type=int,
        choices=[0, *range(2, 201)],
        metavar="0|2..200",
        help="pollers of the queue that always run, and are paid for; 0 for none",
    )
    return parser


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
