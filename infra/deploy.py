"""Deploys a stage of Timers to AWS or LocalStack, and destroys it.

    template.yaml ──► bundle ──► chalice deploy ──► settings Chalice lacks ──► first key and secrets

Every step is idempotent: a deployment that was interrupted is completed by the next one.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes
from tempfile import TemporaryDirectory

import boto3

from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core import signing
from chalicelib.core.api_keys import Role
from chalicelib.core.errors import OperatorError
from chalicelib.core.targets import Targets
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.service import credentials
from chalicelib.service.credentials import issue_key
from chalicelib.webhook.proxy import Proxy
from chalicelib.webhook.tls import client_context
from infra import bundle
from infra.chalice_state import ChaliceState
from infra.clients import Clients, ignoring
from infra.stack import POLL_INTERVAL, Stack
from infra.stages import ROOT

DEFAULT_RATE, DEFAULT_BURST = 500, 1000
"""The API's initial limits: requests per second, and requests at once. Others get 429."""

MAX_POLLERS = 200
"""Provisioned pollers that the queue's subscription may scale up to."""


class Deployment:
    """One stage of Timers in one account and region."""

    def __init__(self, stage: str, session: boto3.Session, root: Path = ROOT) -> None:
        self._stage = stage
        self._name = f"timers-{stage}"
        self._root = root
        self._clients = Clients(session)
        self._state = ChaliceState(stage, self._clients, root)
        table = f"{self._name}-tenants"
        self._keys = DynamoApiKeys(self._clients["dynamodb"], table)
        self._secrets = DynamoSecrets(self._clients["dynamodb"], table)

    def deploy(
        self, *, topic: str | None, rate: int | None, burst: int | None, pollers: int | None
    ) -> None:
        """Create or update the stage, and print its URL and how to use it.

        None keeps a setting as it is. Raises OperatorError.
        """
        self._check_settings()
        print(self._place(), flush=True)
        self._stack().update(topic)
        if not self._state.fetch():
            self._state.rebuild()
        with TemporaryDirectory() as folder:
            bundle.build(self._root, Path(folder))
            self._chalice("deploy", Path(folder))
        self._state.save()
        self._allow_recursion()
        self._throttle(rate, burst)
        # Before the step that may take minutes: an interrupted deployment has shown its key.
        print(self._greeting(self._first_key()), flush=True)
        if pollers is not None:
            self._provision(pollers)

    def destroy(self) -> None:
        """Delete the stage and its timers; raise OperatorError if it is protected."""
        print(self._place(), flush=True)
        self._require_unprotected()
        # The API goes first, so no new timers arrive. The tables go last.
        if self._state.fetch():
            self._chalice("delete", self._root)
        elif self._has_functions():
            raise OperatorError(
                "An earlier command was interrupted before it could record its Lambda functions."
                f" Run `make deploy STAGE={self._stage}` once more, then destroy the stage."
            )
        self._state.forget()
        deleted = self._stack().delete()
        print(f"{self._name} is {'deleted' if deleted else 'not deployed here'}.", flush=True)

    def _check_settings(self) -> None:
        """Raise OperatorError for a setting that would keep the functions from sending webhooks."""
        config = json.loads((self._root / ".chalice/config.json").read_text())
        ours = config["stages"][self._stage].get("environment_variables", {})
        settings = config.get("environment_variables", {}) | ours
        Targets.parse(settings.get("ALLOWED_TARGETS", ""))
        Proxy.parse(settings.get("PROXY", ""))
        client_context(
            *(self._copy_of(settings.get(it, "")) for it in ("CA_BUNDLE", "CLIENT_CERT"))
        )

    def _copy_of(self, path: str) -> str:
        """Return the checkout's copy of a file that functions read; "" for a file in a layer."""
        if not path or path.startswith("/opt/"):
            return ""
        if not path.startswith("chalicelib/"):
            raise OperatorError(
                f"Functions can't read {path}. Put the file into chalicelib/, which is deployed,"
                " or into a layer, which is at /opt/."
            )
        return str(self._root / path)

    def _place(self) -> str:
        account = self._clients["sts"].get_caller_identity()["Account"]
        return f"{self._name} in account {account}, {self._clients.session.region_name}."

    def _stack(self) -> Stack:
        template = self._root / "infra/template.yaml"
        return Stack(self._stage, self._clients["cloudformation"], template)

    def _chalice(self, command: str, project: Path) -> None:
        finished = subprocess.run(  # noqa: S603  # the command is fixed
            [Path(sys.executable).with_name("chalice"), command, "--stage", self._stage],
            cwd=project,
            check=False,
        )
        if finished.returncode:
            raise OperatorError(
                f"`chalice {command}` failed; its output is above. If an earlier command deleted"
                f" something that it needs, `make deploy STAGE={self._stage}` restores it."
            )

    def _first_key(self) -> str | None:
        """Give every tenant a signing secret; return a first key if there is none."""
        keys = self._keys.all()
        # Keys may be older than signing, so their tenants may lack a secret.
        for tenant in sorted({DEFAULT_TENANT, *(key.tenant for key in keys)}):
            credentials.ensure_secret(self._secrets, tenant, token_bytes(signing.SECRET_ENTROPY))
        if keys:
            return None
        now = datetime.now(UTC)
        return issue_key(self._keys, self._secrets, DEFAULT_TENANT, Role.FULL, now)

    def _greeting(self, key: str | None) -> str:
        api = self._state.resource("rest_api")
        url = api["rest_api_url"].rstrip("/")
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):  # LocalStack has its own URLs for APIs
            url = f"{endpoint}/_aws/execute-api/{api['rest_api_id']}/api"
        another = f"API keys exist. `make key STAGE={self._stage}` creates another one."
        return (
            f"Timers is deployed at {url}\n"
            f"{f'API key, shown only now: {key}' if key else another}\n"
            f"  curl {url}/timers -H 'content-type: application/json' \\\n"
            f'    -H "authorization: Bearer {key or "$TIMERS_KEY"}" \\\n'
            """    -d '{"seconds": 5, "url": "https://example.com/hook"}'"""
        )

    def _allow_recursion(self) -> None:
        # `deliver` puts messages that are not due yet back on its queue. Lambda would take this
        # for a loop and drop them.
        self._clients["lambda"].put_function_recursion_config(
            FunctionName=f"{self._name}-deliver", RecursiveLoop="Allow"
        )

    def _throttle(self, rate: int | None, burst: int | None) -> None:
        gateway = self._clients["apigateway"]
        stage = {"restApiId": self._state.resource("rest_api")["rest_api_id"], "stageName": "api"}
        current = gateway.get_stage(**stage).get("methodSettings", {}).get("*/*", {})
        limits = {
            "rateLimit": rate or current.get("throttlingRateLimit") or DEFAULT_RATE,
            "burstLimit": burst or current.get("throttlingBurstLimit") or DEFAULT_BURST,
        }
        gateway.update_stage(
            **stage,
            patchOperations=[
                {"op": "replace", "path": f"/*/*/throttling/{limit}", "value": f"{value:.0f}"}
                for limit, value in limits.items()
            ],
        )

    def _provision(self, pollers: int) -> None:
        client = self._clients["lambda"]
        id = self._state.resource("deliver-sqs-event-source")["event_uuid"]
        # Lambda rejects a change while the one that Chalice made is still in progress.
        for _ in range(100):
            if client.get_event_source_mapping(UUID=id)["State"] in ("Enabled", "Disabled"):
                break
            time.sleep(POLL_INTERVAL)
        limits = {"MinimumPollers": pollers, "MaximumPollers": MAX_POLLERS} if pollers else {}
        client.update_event_source_mapping(UUID=id, ProvisionedPollerConfig=limits)

    def _has_functions(self) -> bool:
        pages = self._clients["lambda"].get_paginator("list_functions").paginate()
        names = [function["FunctionName"] for page in pages for function in page["Functions"]]
        return any(name == self._name or name.startswith(f"{self._name}-") for name in names)

    def _require_unprotected(self) -> None:
        if protections := list(self._protections()):
            raise OperatorError(
                f"{self._name} is protected; nothing was deleted. To delete it, turn off"
                f" {' and '.join(protections)}, then run this command again."
            )

    def _protections(self) -> Iterator[str]:
        for name in (self._name, f"{self._name}-tenants"):
            with ignoring("ResourceNotFoundException"):
                table = self._clients["dynamodb"].describe_table(TableName=name)["Table"]
                if table.get("DeletionProtectionEnabled"):
                    yield f"the deletion protection of table {name}"
        if self._stack().is_protected():
            yield f"the termination protection of stack {self._name}"
