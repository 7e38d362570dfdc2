"""DynamoDB's attribute values, conditional writes, and errors, for the stores beside this module.

Conditions are built from named clauses. If a condition fails, a concurrent write came first.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.core.errors import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

    Item = dict[str, AttributeValueTypeDef]

IS_NEW = "attribute_not_exists(#id)"


class _ConditionFailed(Exception):
    def __init__(self, item: "Item") -> None:
        super().__init__()
        self.item = item


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise Unavailable for any error of DynamoDB or of the connection to it."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "ConditionalCheckFailedException":
            item: Any = error.response.get("Item", {})
            raise _ConditionFailed(item) from None
        # In a transaction only the first write has conditions.
        reasons: Any = error.response.get("CancellationReasons", [])
        if reasons and reasons[0]["Code"] == "ConditionalCheckFailed":
            raise _ConditionFailed(reasons[0].get("Item", {})) from None
        # Only the code: the client sees this sentence, and AWS's message names roles and ARNs.
        raise Unavailable(f"DynamoDB can't do this now: {code}.") from error
    except BotoCoreError as error:
        raise Unavailable("DynamoDB does not respond.") from error


def write_if(
    clauses: Sequence[str],
    call: Callable[..., object],
    values: dict[str, object] | None = None,
    **request: Any,
) -> "Item | None":
    """Make a write if all clauses hold; return None if it was made.

    Otherwise return the stored item that failed the condition, or {} if there is none.
    """
    request["ConditionExpression"] = " AND ".join(clauses)
    expressions = request["ConditionExpression"] + request.get("UpdateExpression", "")
    request |= placeholders(expressions, values or {})
    try:
        with translated_errors():
            call(ReturnValuesOnConditionCheckFailure="ALL_OLD", **request)
    except _ConditionFailed as failed:
        return failed.item
    return None


def placeholders(expressions: str, values: dict[str, object]) -> dict[str, Any]:
    """Return the request's parameters that define each `#name` and `:value` of the expressions."""
    names = {f"#{name}": name for name in re.findall(r"#(\w+)", expressions)}
    attributes = {f":{name}": attribute(value) for name, value in values.items()}
    parameters: dict[str, Any] = {"ExpressionAttributeNames": names}
    return parameters | ({"ExpressionAttributeValues": attributes} if attributes else {})


def attribute(value: object) -> "AttributeValueTypeDef":
    """Return a bool, int, datetime or str as an attribute value."""
    match value:
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case datetime():
            return {"S": time_text(value)}
        case str():
            return {"S": str(value)}
    raise TypeError(f"No attribute type is known for {value!r}.")


def plain(attribute: "AttributeValueTypeDef") -> Any:
    """Return the bool, int or str that an attribute holds; times stay text."""
    if "N" in attribute:
        return int(attribute["N"])
    return attribute["BOOL"] if "BOOL" in attribute else attribute["S"]


def time_text(time: datetime) -> str:
    """Return a time as text of fixed width, so that texts sort as their times do."""
    # strftime would write the year 1 with one digit.
    naive = time.astimezone(UTC).replace(tzinfo=None)
    return naive.isoformat(timespec="microseconds") + "Z"
