"""Timers: the routes. A view parses, calls the service, renders."""

from collections.abc import Callable
from http import HTTPStatus

from chalice.app import Chalice, Request, Response

from chalicelib import api
from chalicelib.timers import DEFAULT_TENANT
from chalicelib.wiring import service, targets

app = Chalice(app_name="timers", configure_logs=False)


@app.middleware("http")
def problems(event: Request, get_response: Callable[[Request], Response]) -> Response:
    return api.own_errors_as_problems(get_response(event))


@app.route("/timers", methods=["POST"])
@api.problems
def create_timer() -> Response:
    wanted = api.read_new_timer(app.current_request, targets())
    timer = service().create(DEFAULT_TENANT, wanted.url, wanted.delay())
    return api.show(timer, service().now(), HTTPStatus.CREATED)


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
