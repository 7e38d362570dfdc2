"""Evaluate an authorizer's IAM policy. Pure, and without LocalStack."""

from fnmatch import fnmatchcase
from typing import Any


def allows(policy: Any, arn: str) -> bool:
    """Return whether a statement allows the method's ARN and no statement denies it."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        for resource in statement["Resource"]
        if fnmatchcase(arn, resource)
    }
    return effects == {"Allow"}
