"""The emulated gateway evaluates an authorizer's policy as API Gateway does."""

from typing import Any

import pytest

from tests.e2e.localstack.plugins.policy import allows

API = "arn:aws:execute-api:us-east-1:000000000000:abc/api"


def statement(effect: str, *paths: str) -> dict[str, Any]:
    return {"Effect": effect, "Resource": [f"{API}/{path}" for path in paths]}


ALL, NONE = statement("Allow", "*"), statement("Allow")


@pytest.mark.parametrize(
    ("statements", "is_allowed"),
    [
        ([ALL], True),
        ([NONE], False),
        ([], False),
        ([statement("Allow", "POST/timers")], False),
        ([statement("Allow", "POST/timers", "GET/*")], True),
        ([ALL, statement("Deny", "GET/timers")], False),
        ([statement("Deny", "*"), ALL], False),
        ([statement("Deny", "POST/*"), NONE, ALL], True),
        ([statement("Deny", "GET/timers")], False),
    ],
)
def test_evaluates_policies(statements: list[dict[str, Any]], is_allowed: bool) -> None:
    """A request needs a statement that allows it, and no statement that denies it."""
    assert allows({"Statement": statements}, f"{API}/GET/timers") is is_allowed
