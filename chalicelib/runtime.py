"""The dependencies of app.py: those on AWS, or those that a server installed."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from chalicelib.core.timer import timer_id
from chalicelib.service.commands import Commands
from chalicelib.service.ports import ApiKeys
from chalicelib.service.worker import Worker

if TYPE_CHECKING:
    from chalicelib.aws.logs import JsonLines
    from chalicelib.aws.queue import MessageQueue


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """The objects that the views and the Lambda handlers use."""

    commands: Commands
    worker: Worker
    clock: Callable[[], datetime]
    keys: ApiKeys | None = None
    """None if requests need no API key."""
    anonymous: str | None = None
    """The tenant of requests without an API key; None if these are rejected."""
    receiver: str | None = None
    """Path of the built-in receiver, if there is one; never on AWS."""
    queue: "MessageQueue | None" = None
    """On AWS only."""
    log_lines: "JsonLines | None" = None
    """On AWS only."""


_installed: Dependencies | None = None


def install(dependencies: Dependencies) -> None:
    """Make app.py use these dependencies instead of those on AWS."""
    global _installed  # noqa: PLW0603  # one application in a process, as in Chalice
    _installed = dependencies


def current(context: Any) -> Dependencies:
    """Return the dependencies for a Lambda invocation, or raise NotConfigured.

    Later log lines have the invocation's id.
    """
    dependencies = current_at(getattr(context, "invoked_function_arn", ""))
    if dependencies.log_lines is not None:
        dependencies.log_lines.set_invocation(context)
    return dependencies


def current_at(arn: str) -> Dependencies:
    """Return the dependencies in the account and region of this ARN, or raise NotConfigured."""
    if _installed is not None:
        return _installed
    from chalicelib.aws import bootstrap  # noqa: PLC0415  # needs this module

    return bootstrap.dependencies_at(arn)


def now() -> datetime:
    """Return the wall time, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return an unused timer id."""
    return timer_id(now(), secrets.token_bytes(10))
