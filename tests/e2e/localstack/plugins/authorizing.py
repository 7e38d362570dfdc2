"""API Gateway's Lambda authorizers, which LocalStack stores but never calls.

Stage localstack is exempt: people run it on a LocalStack without this extension.
"""

import json
import re
from typing import Any

from localstack.aws.connect import connect_to
from localstack.runtime import hooks
from localstack.services.apigateway.next_gen.execute_api.gateway_response import (
    AccessDeniedError,
    UnauthorizedError,
)
from localstack.services.apigateway.next_gen.execute_api.handlers import preprocess_request

from tests.e2e.localstack.plugins.policy import allows


@hooks.on_infra_start()
def ask_authorizers() -> None:
    """Call the authorizer of each request."""
    preprocess_request.append(_authorize)


def _authorize(_: object, context: Any, response: object) -> None:
    """Add the authorizer's context to a request, or raise the error that AWS responds with."""
    method = context.resource_method
    if method["authorizationType"] != "CUSTOM":
        return
    authorizer = context.deployment.rest_api.authorizers[method["authorizerId"]]
    if ":timers-localstack-" in authorizer["authorizerUri"]:
        return
    token = context.invocation_request["headers"].get("Authorization")
    if not token:
        raise UnauthorizedError("Unauthorized")
    decision = _ask(context, authorizer["authorizerUri"], token)
    if not allows(decision["policyDocument"], _method_arn(context)):
        raise AccessDeniedError("User is not authorized to access this resource")
    found = {**decision.get("context", {}), "principalId": decision["principalId"]}
    context.context_variables["authorizer"] = found


def _ask(context: Any, uri: str, token: str) -> Any:
    function = re.search("functions/(.*)/invocations", uri)
    assert function
    event = {
        "type": "TOKEN",
        "authorizationToken": token,
        "methodArn": _method_arn(context),
    }
    functions = connect_to(region_name=context.region, aws_access_key_id=context.account_id).lambda_
    answer = functions.invoke(FunctionName=function[1], Payload=json.dumps(event))
    return json.loads(answer["Payload"].read())


def _method_arn(context: Any) -> str:
    request = context.invocation_request
    where = f"{context.region}:{context.account_id}:{context.api_id}"
    return f"arn:aws:execute-api:{where}/{context.stage}/{request['http_method']}{request['path']}"
