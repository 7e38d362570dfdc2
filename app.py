"""Timers: the routes and the functions. Each parses, calls the service, renders."""

from collections.abc import Callable
from typing import Any

from chalice.app import Chalice, CloudWatchEvent, Request, Response, SQSEvent

from chalicelib import api, functions
from chalicelib.guard import Targets
from chalicelib.service import Service
from chalicelib.timers import DEFAULT_TENANT
from chalicelib.wiring import NAME, parts

app = Chalice(app_name="timers", configure_logs=False)


@app.middleware("http")
def problems(event: Request, get_response: Callable[[Request], Response]) -> Response:
    return api.own_errors_as_problems(get_response(event))


@app.route("/timers", methods=["POST"])
@api.problems
def create_timer() -> Response:
    wanted = api.read_new_timer(app.current_request, targets())
    timer = service().create(DEFAULT_TENANT, wanted.url, wanted.delay())
    return api.created(timer, service().now(), app.current_request)


@app.route("/timers/{timer_id}", methods=["GET"])
@api.problems
def read_timer(timer_id: str) -> Response:
    return api.show(service().get(DEFAULT_TENANT, timer_id), service().now())


@app.route("/timers/{timer_id}", methods=["DELETE"])
@api.problems
def cancel_timer(timer_id: str) -> Response:
    return api.show(service().cancel(DEFAULT_TENANT, timer_id), service().now())


@app.route("/health", methods=["GET"])
@api.problems
def health() -> Response:
    service().check()
    return api.healthy()


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


def targets() -> Targets:
    return parts(app.lambda_context).targets
