"""Timers: the routes and the Lambda functions. Each view makes one call and returns its result."""

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, NamedTuple

from chalice.app import (
    AuthRequest,
    AuthResponse,
    CloudWatchEvent,
    Request,
    Response,
    SQSEvent,
)

from chalicelib.aws import handlers
from chalicelib.aws.bootstrap import STAGE_NAME
from chalicelib.core.api_keys import Role
from chalicelib.core.errors import NotConfigured
from chalicelib.http import requests, responses, static
from chalicelib.http.concurrent_chalice import ConcurrentChalice
from chalicelib.http.responses import errors_as_problems
from chalicelib.runtime import current, current_at
from chalicelib.service.commands import Commands

app = ConcurrentChalice(app_name="timers", configure_logs=False)
# All bodies are text, so no request need be compared with the types that API Gateway encodes.
app.api.binary_types.clear()

READ = ["GET", "HEAD"]
"""The methods of a route that reads. The server, or API Gateway, drops the body of a HEAD."""


class Call(NamedTuple):
    """A request about timers, with its tenant, its time and the commands that serve it."""

    request: Request
    tenant: str
    now: datetime
    commands: Commands


def for_role(role: Role) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
    """Decorate a view that needs this role: pass it a Call, and return its errors as problems."""

    def decorate(view: Callable[..., Response]) -> Callable[..., Response]:
        @wraps(view)
        def respond(**parameters: str) -> Response:
            return view(_call(role), **parameters)

        return errors_as_problems(respond)

    return decorate


@app.middleware("http")
def finish(event: Request, get_response: Callable[[Request], Response]) -> Response:
    return responses.finished(get_response(event), app.lambda_context)


@app.authorizer(name="authorizer", ttl_seconds=60)
def authorizer(request: AuthRequest) -> AuthResponse:
    """Tell API Gateway whether the request has a valid API key."""
    return handlers.authorize(current_at(request.method_arn), request.token)


@app.route("/timers", methods=["POST"], authorizer=authorizer)
@for_role(Role.FULL)
def create_timer(call: Call) -> Response:
    spec = requests.timer_spec(call.request, call.now)
    created = call.commands.create(call.tenant, spec, call.now)
    return responses.created(created, call.now, call.request)


@app.route("/timers", methods=READ, authorizer=authorizer)
@for_role(Role.READ)
def list_timers(call: Call) -> Response:
    query = requests.list_query(call.request)
    return responses.listed(call.commands.list_timers(call.tenant, query, call.now), call.now)


@app.route("/timers/batch", methods=["POST"], authorizer=authorizer)
@for_role(Role.FULL)
def create_timers(call: Call) -> Response:
    specs = requests.timer_specs(call.request, call.now)
    return responses.results(call.commands.create_all(call.tenant, specs, call.now), call.now)


@app.route("/timers/cancel", methods=["POST"], authorizer=authorizer)
@for_role(Role.FULL)
def cancel_timers(call: Call) -> Response:
    ids = requests.ids(call.request)
    results = call.commands.cancel_all(call.tenant, ids, call.now)
    return responses.results(results, call.now, ids)


@app.route("/timers/retry", methods=["POST"], authorizer=authorizer)
@for_role(Role.FULL)
def retry_timers(call: Call) -> Response:
    ids = requests.ids(call.request)
    results = call.commands.retry_all(call.tenant, ids, call.now)
    return responses.results(results, call.now, ids)


@app.route("/timers/{timer_id}", methods=READ, authorizer=authorizer)
@for_role(Role.READ)
def read_timer(call: Call, timer_id: str) -> Response:
    return responses.ok(call.commands.get(call.tenant, timer_id, call.now), call.now)


@app.route("/timers/{timer_id}", methods=["PATCH"], authorizer=authorizer)
@for_role(Role.FULL)
def change_timer(call: Call, timer_id: str) -> Response:
    change = requests.timer_change(call.request, call.now)
    return responses.ok(call.commands.change(call.tenant, timer_id, change, call.now), call.now)


@app.route("/timers/{timer_id}", methods=["DELETE"], authorizer=authorizer)
@for_role(Role.FULL)
def cancel_timer(call: Call, timer_id: str) -> Response:
    return responses.ok(call.commands.cancel(call.tenant, timer_id, call.now), call.now)


@app.route("/timers/{timer_id}/fire", methods=["POST"], authorizer=authorizer)
@for_role(Role.FULL)
def fire_timer(call: Call, timer_id: str) -> Response:
    return responses.accepted(call.commands.fire_now(call.tenant, timer_id, call.now), call.now)


@app.route("/timers/{timer_id}/retry", methods=["POST"], authorizer=authorizer)
@for_role(Role.FULL)
def retry_timer(call: Call, timer_id: str) -> Response:
    return responses.accepted(call.commands.retry(call.tenant, timer_id, call.now), call.now)


@app.route("/", methods=READ)
@errors_as_problems
def root() -> Response:
    return static.root(_request())


@app.route("/health", methods=READ)
@errors_as_problems
def health() -> Response:
    dependencies = current(app.lambda_context)
    dependencies.commands.check()
    return responses.healthy(dependencies.anonymous, dependencies.receiver)


@app.route("/openapi.json", methods=READ)
@errors_as_problems
def openapi() -> Response:
    return static.contract()


@app.route("/api-docs", methods=READ)
@errors_as_problems
def api_docs() -> Response:
    return static.page("api-docs", _request())


@app.route("/api-docs/{name}", methods=READ)
@errors_as_problems
def api_docs_file(name: str) -> Response:
    return static.file("api-docs", name, _request())


@app.route("/console", methods=READ)
@errors_as_problems
def console() -> Response:
    return static.page("console", _request())


@app.route("/console/{name}", methods=READ)
@errors_as_problems
def console_file(name: str) -> Response:
    return static.file("console", name, _request())


@app.lambda_function(name="fire")
def fire(event: Any, context: Any) -> None:
    """Handle a schedule that fired."""
    handlers.fire(current(context), event)


@app.on_sqs_message(queue=STAGE_NAME, batch_size=10, name="deliver")
def deliver(event: SQSEvent) -> None:
    """Deliver up to ten wake-ups from the queue."""
    handlers.deliver(current(event.context), event, event.context)


@app.schedule("rate(1 minute)", name="sweep")
def sweep(event: CloudWatchEvent) -> None:
    """Find forgotten timers."""
    handlers.sweep(current(event.context), event.context)


def _request() -> Request:
    if app.current_request is None:
        raise NotConfigured("There is no request.")
    return app.current_request


def _call(role: Role) -> Call:
    request = _request()
    dependencies = current(app.lambda_context)
    tenant = requests.tenant(request, role, dependencies.anonymous)
    return Call(request, tenant, dependencies.clock(), dependencies.commands)
