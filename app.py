"""Timers: the routes and the functions. Each parses, calls the service, renders."""

from collections.abc import Callable
from typing import Any

from chalice.app import (
    AuthRequest,
    AuthResponse,
    Chalice,
    CloudWatchEvent,
    Request,
    Response,
    SQSEvent,
)

from chalicelib.aws import handlers
from chalicelib.aws.bootstrap import STAGE_NAME, current, current_at
from chalicelib.core.api_keys import Role
from chalicelib.core.targets import Targets
from chalicelib.http import responses, static
from chalicelib.service.service import Service

app = Chalice(app_name="timers", configure_logs=False)


@app.middleware("http")
def finish(event: Request, get_response: Callable[[Request], Response]) -> Response:
    return responses.finished(get_response(event), app.lambda_context)


@app.authorizer(name="authorizer", ttl_seconds=60)
def authorizer(request: AuthRequest) -> AuthResponse:
    """Does this request carry a key?"""
    return handlers.authorize(current_at(request.method_arn), request.token)


@app.route("/timers", methods=["POST"], authorizer=authorizer)
@responses.problems
def create_timer() -> Response:
    owner = tenant(Role.FULL)
    order = responses.read_order(app.current_request, targets(), service().now())
    return responses.created(service().create(owner, order), service().now(), app.current_request)


@app.route("/timers", methods=["GET"], authorizer=authorizer)
@responses.problems
def list_timers() -> Response:
    page = service().page(tenant(Role.READ), *responses.read_query(app.current_request))
    return responses.listed(page, service().now())


@app.route("/timers/batch", methods=["POST"], authorizer=authorizer)
@responses.problems
def create_timers() -> Response:
    owner = tenant(Role.FULL)
    orders = responses.read_orders(app.current_request, targets(), service().now())
    return responses.results(service().create_all(owner, orders), service().now())


@app.route("/timers/cancel", methods=["POST"], authorizer=authorizer)
@responses.problems
def cancel_timers() -> Response:
    owner = tenant(Role.FULL)
    cancelled = service().cancel_all(owner, responses.read_ids(app.current_request))
    return responses.results(cancelled, service().now())


@app.route("/timers/retry", methods=["POST"], authorizer=authorizer)
@responses.problems
def retry_timers() -> Response:
    owner = tenant(Role.FULL)
    retried = service().retry_all(owner, responses.read_ids(app.current_request))
    return responses.results(retried, service().now())


@app.route("/timers/{timer_id}", methods=["GET"], authorizer=authorizer)
@responses.problems
def read_timer(timer_id: str) -> Response:
    return responses.show(service().get(tenant(Role.READ), timer_id), service().now())


@app.route("/timers/{timer_id}", methods=["PATCH"], authorizer=authorizer)
@responses.problems
def change_timer(timer_id: str) -> Response:
    owner = tenant(Role.FULL)
    change = responses.read_change(app.current_request, targets(), service().now())
    return responses.show(service().change(owner, timer_id, *change), service().now())


@app.route("/timers/{timer_id}", methods=["DELETE"], authorizer=authorizer)
@responses.problems
def cancel_timer(timer_id: str) -> Response:
    return responses.show(service().cancel(tenant(Role.FULL), timer_id), service().now())


@app.route("/timers/{timer_id}/fire", methods=["POST"], authorizer=authorizer)
@responses.problems
def fire_timer(timer_id: str) -> Response:
    return responses.accepted(service().fire_now(tenant(Role.FULL), timer_id), service().now())


@app.route("/timers/{timer_id}/retry", methods=["POST"], authorizer=authorizer)
@responses.problems
def retry_timer(timer_id: str) -> Response:
    return responses.accepted(service().retry(tenant(Role.FULL), timer_id), service().now())


@app.route("/health", methods=["GET"])
@responses.problems
def health() -> Response:
    service().check()
    found = current(app.lambda_context)
    return responses.healthy(found.anonymous, found.receiver)


@app.route("/openapi.json", methods=["GET"])
@responses.problems
def openapi() -> Response:
    return static.contract()


@app.route("/api-docs", methods=["GET"])
@responses.problems
def api_docs() -> Response:
    return static.page("api-docs", app.current_request)


@app.route("/api-docs/{name}", methods=["GET"])
@responses.problems
def api_docs_part(name: str) -> Response:
    return static.part("api-docs", name, app.current_request)


@app.route("/console", methods=["GET"])
@responses.problems
def console() -> Response:
    return static.page("console", app.current_request)


@app.route("/console/{name}", methods=["GET"])
@responses.problems
def console_part(name: str) -> Response:
    return static.part("console", name, app.current_request)


@app.lambda_function(name="fire")
def fire(event: Any, context: Any) -> None:
    """A schedule went off."""
    handlers.fire(current(context), event)


@app.on_sqs_message(queue=STAGE_NAME, batch_size=10, name="deliver")
def deliver(event: SQSEvent) -> None:
    """Timers are due: up to ten messages, answered side by side."""
    handlers.deliver(current(event.context), event, event.context)


@app.schedule("rate(1 minute)", name="sweep")
def sweep(event: CloudWatchEvent) -> None:
    """Look after what was forgotten."""
    handlers.sweep(current(event.context), event.context)


def service() -> Service:
    return current(app.lambda_context).service


def tenant(role: Role) -> str:
    return responses.tenant(app.current_request, role, current(app.lambda_context).anonymous)


def targets() -> Targets:
    return current(app.lambda_context).targets
