"""What an authorizer's policy says of a method. Pure, and without LocalStack."""

from fnmatch import fnmatchcase
from typing import Any


def allows(policy: Any, arn: str) -> bool:
    """Say whether a policy lets a request on: a statement allows it, and none denies it."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        for resource in statement["Resource"]
        if fnmatchcase(arn, resource)
    }
    return effects == {"Allow"}
