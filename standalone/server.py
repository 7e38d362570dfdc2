"""HTTP for the standalone server: waitress, in front of Chalice's local gateway and the receiver.

One thread does it all. waitress reads requests without blocking, so slow clients delay nobody, and
limits their size. Each request is handled in a greenlet. The gateway turns it into the event that
views get on Lambda; its authorizer checks API keys and rates.
"""

import base64
import math
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from chalice.app import Chalice, Response
from chalice.config import Config
from chalice.local import LocalChalice, LocalGateway, RouteMatcher
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask

from chalicelib.core import errors
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.http import mistakes, requests, responses
from chalicelib.service.ports import ApiKeys
from standalone.authorizer import ApiKeyAuthorizer
from standalone.greenlets import Dispatcher, wait
from standalone.listening import bound_sockets
from standalone.rate_limit import RateLimiter
from standalone.receiver import RECEIVER_PATH, Receiver

MAX_CONNECTIONS = 500
"""Connections open at once. Each takes a file descriptor, as do the database and webhooks."""

MAX_HEADER_BYTES = 10 * 1024
"""As on API Gateway. A small limit matters: waitress parses runs of spaces in quadratic time."""

MAX_BODY_BYTES = 10 * 1024 * 1024
"""The most bytes that are read, as on API Gateway; the views have lower limits."""

IDLE_TIMEOUT = 30
"""Seconds after which an idle connection is closed."""

REQUEST_TIMEOUT = 30
"""Seconds within which a request must arrive completely."""

SEND_BUFFER_BYTES = 64 * 1024
"""Bytes of a response that are collected before the first are sent."""

CLOCK_STEP = 1
"""Seconds that the wall clock must jump to count as stepped."""

_LOCAL_AUTHORITY = re.compile(r"(127\.0\.0\.1|(?i:localhost)|\[::1])(:[0-9]{1,5})?")
"""`LOCAL_HOSTS` with an optional port. urlsplit would find ::1 in `evil[::1]`."""

_OTHER_HOST = (
    "This server answers to 127.0.0.1, ::1 and localhost only."
    " To serve other names, start it with AUTH=keys."
)
_OTHER_ORIGIN = "Web pages of other hosts may not use this server."

_IDEMPOTENCY_KEY_LINE = re.compile(rb"^idempotency-key:", re.IGNORECASE | re.MULTILINE)

_request: ContextVar[Any] = ContextVar("request", default=None)
_context: ContextVar[Any] = ContextVar("context", default=None)

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]
LambdaResponse = dict[str, Any]
"""The response of a Lambda function to API Gateway, as Chalice makes it."""


class _Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # `http://[/`, or a length of 5,000 digits
            raise ParsingError("The request target or Content-Length is invalid") from None
        # waitress joins repeated headers with a comma, but one key may have a comma too.
        key = self.headers.get("IDEMPOTENCY_KEY", "")
        if "," in key and len(_IDEMPOTENCY_KEY_LINE.findall(header_plus)) > 1:
            raise ParsingError(requests.ONE_KEY)


class _ErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Responds to requests that waitress itself rejects, in the form of our errors."""

    def execute(self) -> None:
        error = self.request.error
        status = HTTPStatus(error.code)
        response = responses.problem(status, f"{error.body.removesuffix('.')}.")
        content = response.body.encode()
        self.status = f"{error.code} {responses.name_of(status)}"
        self.response_headers.extend(_with_id(response.headers).items())
        self.set_close_on_finish()
        self.content_length = len(content)
        self.write(content)


class _OutputLock:
    """Stands in for the lock of a channel's output, which only greenlets of one thread use."""

    def __init__(self) -> None:
        self._notified: Future[None] = Future()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def acquire(self, _: bool) -> bool:
        return True

    def release(self) -> None:
        pass

    def wait(self) -> None:
        """Wait for `notify`; other greenlets run meanwhile."""
        wait(self._notified)

    def notify(self) -> None:
        self._notified.set_result(None)
        self._notified = Future()


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    parser_class = _Parser
    error_task_class = _ErrorTask
    began = 0.0
    """Wall time at which the first byte of the incoming request arrived."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbuf_lock = _OutputLock()

    def received(self, data: bytes) -> Any:
        incoming = self.request
        result = super().received(data)
        if self.request is not incoming:
            self.began = time.time()
        return result

    def service(self) -> None:
        super().service()
        if self.total_outbufs_len:  # send at once, headers and body together
            self._flush_exception(self._flush_some)

    def close(self) -> None:
        for unsent in self.outbufs:
            unsent.close()  # may be a temporary file
        super().close()


class _Listener(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """waitress on one listening socket."""

    channel_class = _Channel
    next_channel_cleanup = math.inf  # `Server.readable` does it, by the monotonic clock

    def __init__(self, wsgi: Wsgi, sock: socket.socket, **options: Any) -> None:
        info = (sock.family, sock.type, sock.proto, sock.getsockname())
        super().__init__(wsgi, _sock=sock, bind_socket=False, sockinfo=info, **options)

    def pull_trigger(self) -> None:
        """Do nothing: channels call this in the very thread that it would wake."""


class Server(_Listener):
    """waitress, bound to each address of a host and ready to `run`. Port 0 picks a free one.

    Raises OSError.
    """

    finished = False

    def __init__(self, wsgi: Wsgi, host: str, port: int) -> None:
        first, *others = bound_sockets(host, port)
        super().__init__(
            wsgi,
            first,
            host="127.0.0.1",  # unused, but waitress would look up its default
            connection_limit=MAX_CONNECTIONS,
            channel_timeout=IDLE_TIMEOUT,
            cleanup_interval=5,
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=MAX_BODY_BYTES,
            asyncore_use_poll=True,
            log_socket_errors=False,
            ident=None,
            dispatcher=Dispatcher(self._wake),
        )
        self.adj.send_bytes = SEND_BUFFER_BYTES  # deprecated as an argument
        self._wall_offset = time.time() - time.monotonic()
        self._next_maintenance = 0.0
        for sock in others:
            self._listen_also(sock)

    def _listen_also(self, sock: socket.socket) -> None:
        listener = _Listener(
            self.application, sock, map=self._map, dispatcher=self.task_dispatcher, adj=self.adj
        )
        listener.active_channels = self.active_channels  # one table: the limits apply to all

    def readable(self) -> bool:
        """Return whether to accept connections; close expired ones every few seconds."""
        steady, now = time.monotonic(), time.time()
        self._adjust_to_clock(now, now - steady)
        if steady >= self._next_maintenance:
            self._next_maintenance = steady + self.adj.cleanup_interval
            self.maintenance(now)
        return bool(super().readable())

    def _adjust_to_clock(self, now: float, wall_offset: float) -> None:
        # waitress measures wall time. A step forward would cut off requests, and a step back would
        # keep idle connections open. So a step restarts all time limits.
        if abs(wall_offset - self._wall_offset) >= CLOCK_STEP:
            self._wall_offset = wall_offset
            for channel in self.active_channels.values():
                channel.last_activity = channel.began = now

    def maintenance(self, now: float) -> None:
        """Close idle connections, as waitress does, and those whose request takes too long."""
        super().maintenance(now)
        for channel in self.active_channels.values():
            if channel.request is not None and channel.began < now - REQUEST_TIMEOUT:
                channel.will_close = True

    def run(self) -> None:
        """Serve until `finish`."""
        while not self.finished:
            self.turn()
        wasyncore.close_all(self._map)

    def _wake(self) -> None:
        self.trigger.pull_trigger()

    def turn(self) -> None:
        """Wait up to a second for I/O, then run the greenlets that can go on."""
        wasyncore.loop(self.adj.asyncore_loop_timeout, use_poll=True, map=self._map, count=1)
        self.task_dispatcher.run()

    def finish(self) -> None:
        """Finish the requests in progress, then stop serving."""
        # If some are still unfinished, `run` goes on: they would write to closed connections.
        self.finished = self.task_dispatcher.shutdown()


class _ConcurrentChalice(LocalChalice):
    """Keeps the current request for each greenlet; Chalice keeps one for the whole application."""

    @property
    def current_request(self) -> Any:
        return _request.get()

    @current_request.setter
    def current_request(self, request: Any) -> None:
        _request.set(request)

    @property
    def lambda_context(self) -> Any:
        return _context.get()

    @lambda_context.setter
    def lambda_context(self, context: Any) -> None:
        _context.set(context)


class Application:
    """The WSGI application: the views of a Chalice application and the built-in receiver.

    Without `keys` it answers to local hosts only. The receiver always does, because it prints every
    request to the terminal. It accepts webhooks without a key; with `keys`, its list needs one.
    """

    def __init__(
        self,
        app: Chalice,
        *,
        keys: ApiKeys | None = None,
        limit: RateLimiter | None = None,
        receiver: Receiver | None = None,
    ) -> None:
        app.__class__ = _ConcurrentChalice
        self._routes = app.routes
        self._matcher = RouteMatcher(list(app.routes))
        self._authorizer = ApiKeyAuthorizer(app, keys, limit)
        self._gateway = LocalGateway(app, Config())
        self._gateway._authorizer = self._authorizer  # noqa: SLF001  # it can't be passed in
        self._receiver = receiver
        self._is_local = keys is None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Handle one request, as WSGI defines it."""
        response = self._handle(environ)
        body = response["body"] or ""
        content = base64.b64decode(body) if response.get("isBase64Encoded") else body.encode()
        status = HTTPStatus(response["statusCode"])
        headers = _with_id(response["headers"]) | {"Content-Length": str(len(content))}
        start_response(f"{status.value} {responses.name_of(status)}", list(headers.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]

    def _handle(self, environ: Environ) -> LambdaResponse:
        method, path = environ["REQUEST_METHOD"], environ["REQUEST_URI"]
        receiver = self._receiver if f"{path}/".startswith(RECEIVER_PATH) else None
        if self._is_local or receiver is not None:
            refusal = _refusal(environ)
            if refusal is not None:
                return refusal.to_dict()
        headers, body = _headers(environ), environ["wsgi.input"].read()
        if receiver is not None and path.startswith(RECEIVER_PATH):
            return receiver.take(method, path, headers, body).to_dict()
        if receiver is not None and method in ("GET", "HEAD"):
            return _show_arrivals(receiver, self._authorizer, headers).to_dict()
        return self._route(method, path) or self._call_view(method, path, headers, body)

    def _route(self, method: str, path: str) -> LambdaResponse | None:
        """Return a 404 or a 405; None if there is a view."""
        try:
            allowed = self._routes[self._matcher.match_route(path).route]
        except ValueError:
            return responses.error_response(mistakes.unknown_path(path)).to_dict()
        if method in allowed:
            return None
        others = mistakes.listed([it for it in allowed if it != "HEAD"], "or")
        detail = f"{method} is not allowed here: use {others}."
        allow: responses.Headers = {"Allow": ", ".join(allowed)}
        return responses.problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, None, allow).to_dict()

    def _call_view(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> LambdaResponse:
        try:
            response: LambdaResponse = self._gateway.handle_request(method, path, headers, body)
        except errors.TimersError as error:  # raised by the authorizer
            return responses.error_response(error).to_dict()
        return response


def _with_id(headers: dict[str, Any]) -> dict[str, Any]:
    """Return a response's headers; add a request id unless a view has set one."""
    return (
        headers
        if responses.REQUEST_ID_HEADER in headers
        else {**headers, responses.REQUEST_ID_HEADER: str(uuid.uuid4())}
    )


@responses.errors_as_problems
def _show_arrivals(
    receiver: Receiver, authorizer: ApiKeyAuthorizer, headers: Mapping[str, str]
) -> Response:
    key = authorizer.admit(headers)
    tenant = DEFAULT_TENANT if key is None else key.tenant
    return receiver.show(tenant, signed_only=key is not None)


def _headers(environ: Environ) -> dict[str, str]:
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    if "CONTENT_TYPE" in environ:
        headers["content-type"] = environ["CONTENT_TYPE"]
    return headers


def _refusal(environ: Environ) -> Response | None:
    """Return the response to a request that names another host or comes from another host's page.

    Return None for other requests. This stops DNS rebinding and cross-site requests.
    """
    target, separator, rest = environ["REQUEST_URI"].partition("://")
    authorities = [environ.get("HTTP_HOST", "")]
    if separator and "/" not in target:  # absolute form: its host takes precedence over the header
        authorities.append(rest.partition("/")[0])
    if not all(map(_LOCAL_AUTHORITY.fullmatch, authorities)):
        return responses.problem(HTTPStatus.MISDIRECTED_REQUEST, _OTHER_HOST)
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and not _LOCAL_AUTHORITY.fullmatch(origin.partition("://")[2]):
        return responses.problem(HTTPStatus.FORBIDDEN, _OTHER_ORIGIN)
    return None
