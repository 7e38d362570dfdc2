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

from chalicelib import api, functions, pages
from chalicelib.guard import Targets
from chalicelib.keys import Role
from chalicelib.service import Service
from chalicelib.wiring import NAME, parts, parts_at

app = Chalice(app_name="timers", configure_logs=False)


@app.middleware("http")
def finish(event: Request, get_response: Callable[[Request], Response]) -> Response:
    return api.finished(get_response(event), app.lambda_context)


@app.authorizer(name="authorizer", ttl_seconds=60)
def authorizer(request: AuthRequest) -> AuthResponse:
    """Does this request carry a key?"""
    return functions.authorize(parts_at(request.method_arn), request.token)


@app.route("/timers", methods=["POST"], authorizer=authorizer)
@api.problems
def create_timer() -> Response:
    owner = tenant(Role.FULL)
    order = api.read_order(app.current_request, targets(), service().now())
    return api.created(service().create(owner, order), service().now(), app.current_request)


@app.route("/timers", methods=["GET"], authorizer=authorizer)
@api.problems
def list_timers() -> Response:
    page = service().page(tenant(Role.READ), *api.read_query(app.current_request))
    return api.listed(page, service().now())


@app.route("/timers/batch", methods=["POST"], authorizer=authorizer)
@api.problems
def create_timers() -> Response:
    owner = tenant(Role.FULL)
    orders = api.read_orders(app.current_request, targets(), service().now())
    return api.results(service().create_all(owner, orders), service().now())


@app.route("/timers/cancel", methods=["POST"], authorizer=authorizer)
@api.problems
def cancel_timers() -> Response:
    owner = tenant(Role.FULL)
    cancelled = service().cancel_all(owner, api.read_ids(app.current_request))
    return api.results(cancelled, service().now())


@app.route("/timers/retry", methods=["POST"], authorizer=authorizer)
@api.problems
def retry_timers() -> Response:
    owner = tenant(Role.FULL)
    redriven = service().redrive_all(owner, api.read_ids(app.current_request))
    return api.results(redriven, service().now())


@app.route("/timers/{timer_id}", methods=["GET"], authorizer=authorizer)
@api.problems
def read_timer(timer_id: str) -> Response:
    return api.show(service().get(tenant(Role.READ), timer_id), service().now())


@app.route("/timers/{timer_id}", methods=["PATCH"], authorizer=authorizer)
@api.problems
def change_timer(timer_id: str) -> Response:
    owner = tenant(Role.FULL)
    change = api.read_change(app.current_request, targets(), service().now())
    return api.show(service().change(owner, timer_id, *change), service().now())


@app.route("/timers/{timer_id}", methods=["DELETE"], authorizer=authorizer)
@api.problems
def cancel_timer(timer_id: str) -> Response:
    return api.show(service().cancel(tenant(Role.FULL), timer_id), service().now())


@app.route("/timers/{timer_id}/fire", methods=["POST"], authorizer=authorizer)
@api.problems
def fire_timer(timer_id: str) -> Response:
    return api.accepted(service().fire_now(tenant(Role.FULL), timer_id), service().now())


@app.route("/timers/{timer_id}/retry", methods=["POST"], authorizer=authorizer)
@api.problems
def retry_timer(timer_id: str) -> Response:
    return api.accepted(service().redrive(tenant(Role.FULL), timer_id), service().now())


@app.route("/health", methods=["GET"])
@api.problems
def health() -> Response:
    service().check()
    found = parts(app.lambda_context)
    return api.healthy(found.anonymous, found.receiver)


@app.route("/openapi.json", methods=["GET"])
@api.problems
def openapi() -> Response:
    return pages.contract()


@app.route("/api-docs", methods=["GET"])
@api.problems
def api_docs() -> Response:
    return pages.page("api-docs", app.current_request)


@app.route("/api-docs/{name}", methods=["GET"])
@api.problems
def api_docs_part(name: str) -> Response:
    return pages.part("api-docs", name, app.current_request)


@app.route("/console", methods=["GET"])
@api.problems
def console() -> Response:
    return pages.page("console", app.current_request)


@app.route("/console/{name}", methods=["GET"])
@api.problems
def console_part(name: str) -> Response:
    return pages.part("console", name, app.current_request)


@app.lambda_function(name="fire")
def fire(event: Any, context: Any) -> None:
    """A schedule went off."""
    functions.fire(parts(context), event)


@app.on_sqs_message(queue=NAME, batch_size=10, name="deliver")
def deliver(event: SQSEvent) -> None:
    """Timers are due: up to ten messages, answered side by side."""
    functions.deliver(parts(event.context), event, event.context)


@app.schedule("rate(1 minute)", name="sweep")
def sweep(event: CloudWatchEvent) -> None:
    """Look after what was forgotten."""
    functions.sweep(parts(event.context), event.context)


def service() -> Service:
    return parts(app.lambda_context).service


def tenant(role: Role) -> str:
    return api.tenant(app.current_request, role, parts(app.lambda_context).anonymous)


def targets() -> Targets:
    return parts(app.lambda_context).targets
