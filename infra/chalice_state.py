"""The ids of a stage's resources, which Chalice needs from one deployment to the next.

Chalice reads and writes `.chalice/deployed/<stage>.json` in the checkout. The stage's own copy
is in the SSM parameter `/timers/<stage>/deployed`, so any machine can update the stage.
"""

import json
import re
from pathlib import Path
from typing import Any

from infra.clients import Clients, ignoring


class ChaliceState:
    """The deployed state of one stage, in the checkout and in SSM."""

    def __init__(self, stage: str, clients: Clients, root: Path) -> None:
        self._name = f"timers-{stage}"
        self._clients = clients
        self._file = root / f".chalice/deployed/{stage}.json"
        self._parameter = f"/timers/{stage}/deployed"

    def resource(self, name: str) -> dict[str, str]:
        """Return what Chalice recorded about one of its resources."""
        resources = json.loads(self._file.read_text())["resources"]
        return next(resource for resource in resources if resource["name"] == name)

    def fetch(self) -> bool:
        """Copy the state from SSM into the checkout; return whether there is a usable one."""
        with ignoring("ParameterNotFound"):
            response = self._clients["ssm"].get_parameter(Name=self._parameter)
            self._write(response["Parameter"]["Value"])
            return True
        return self._file.exists() and self._is_complete(self._file.read_text())

    def rebuild(self) -> None:
        """Write a state from the account's resources, because the last deployment left none.

        Chalice finds its resources by name, except for the API and the queue's subscription.
        """
        resources = [*self._find_api(), *self._find_subscription()]
        state = {"resources": resources, "schema_version": "2.0", "backend": "api"}
        self._write(json.dumps(state))

    def save(self) -> None:
        """Copy the state from the checkout into SSM."""
        text = json.dumps(json.loads(self._file.read_text()), separators=(",", ":"))
        self._clients["ssm"].put_parameter(
            Name=self._parameter,
            Description="State of `chalice deploy` for this stage of Timers.",
            Value=text,
            Type="String",
            Tier="Intelligent-Tiering",  # the state may outgrow the 4 KB of the standard tier
            Overwrite=True,
        )

    def forget(self) -> None:
        """Delete the state from SSM and from the checkout."""
        with ignoring("ParameterNotFound"):
            self._clients["ssm"].delete_parameter(Name=self._parameter)
        self._file.unlink(missing_ok=True)

    def _is_complete(self, text: str) -> bool:
        """Return whether a plain `chalice deploy` to this account and region wrote the state."""
        account = self._clients["sts"].get_caller_identity()["Account"]
        place = f":{self._clients.session.region_name}:{account}:"
        return place in text and '"rest_api_url"' in text

    def _write(self, text: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(text)

    def _find_api(self) -> list[dict[str, str]]:
        policy = "{}"
        with ignoring("ResourceNotFoundException"):
            policy = self._clients["lambda"].get_policy(FunctionName=self._name)["Policy"]
        # The function's policy lets the API invoke it, and names the API's id.
        for id in sorted(set(re.findall(r":execute-api:[^:]*:\d*:(\w+)/", policy))):
            with ignoring("NotFoundException"):
                self._clients["apigateway"].get_rest_api(restApiId=id)
                return [{"name": "rest_api", "resource_type": "rest_api", "rest_api_id": id}]
        return []

    def _find_subscription(self) -> list[dict[str, str]]:
        mappings: list[Any] = []
        with ignoring("ResourceNotFoundException"):
            mappings = self._clients["lambda"].list_event_source_mappings(
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
