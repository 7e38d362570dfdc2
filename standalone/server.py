"""HTTP for the standalone server: waitress, Chalice's own gateway, and the way to the receiver.

waitress reads requests as they come, so slow clients keep nobody waiting, and bounds what it reads.
Each is then a task in the same thread. The gateway turns it into the event that the views get on
Lambda; the door in it asks for keys, and keeps callers to their rate.
"""

import base64
import errno
import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from chalice.app import Chalice, Response
from chalice.config import Config
from chalice.local import LocalChalice, LocalGateway, LocalGatewayAuthorizer, RouteMatcher
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask

from chalicelib.core import errors
from chalicelib.core.api_keys import ApiKey
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.http import responses
from chalicelib.service.ports import ApiKeys
from chalicelib.service.tenants import authenticate
from standalone.greenlets import Dispatcher, wait
from standalone.rate_limit import RateLimiter
from standalone.receiver import RECEIVER_PATH, Receiver

MAX_CONNECTIONS = 500
"""How many may be open: each is a file, and the database and the webhooks need some as well."""

MAX_HEADER_BYTES = 10 * 1024
"""Bytes, as on API Gateway; waitress takes a time to match spaces that grows with their square."""

MAX_BODY_BYTES = 10 * 1024 * 1024
"""Bytes that are read at all, as on API Gateway; the API itself refuses far smaller bodies."""

IDLE_TIMEOUT = 30
"""Seconds after which a silent connection is closed."""

REQUEST_TIMEOUT = 30
"""Seconds within which a request must have arrived whole."""

SEND_BUFFER_BYTES = 64 * 1024
"""Bytes of an answer that are gathered before any are sent."""

CLOCK_STEP = 1
"""Seconds by which the clock has to be off at once to count as stepped."""

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
"""The names under which a server without keys answers: no web page can get at it by another one."""

_LOCAL_AUTHORITY = re.compile(r"(127\.0\.0\.1|(?i:localhost)|\[::1])(:[0-9]{1,5})?")
"""They as an authority, with a port or without. urlsplit would find ::1 in `evil[::1]`."""

_request: ContextVar[Any] = ContextVar("request", default=None)
_context: ContextVar[Any] = ContextVar("context", default=None)

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]


class _Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # `http://[/`, or a length of 5,000 digits
            raise ParsingError("The target or the length can't be understood") from None


class _ErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """What waitress itself refuses, in the form of our errors."""

    def execute(self) -> None:
        error = self.request.error
        answer = responses.problem(HTTPStatus(error.code), f"{error.body.removesuffix('.')}.")
        content = answer.body.encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.extend(_with_id(answer.headers).items())
        self.set_close_on_finish()
        self.content_length = len(content)
        self.write(content)


class _OutputLock:
    """What guards a channel's output, where all who want it are tasks of one thread."""

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
        """Wait for a `notify`, while other tasks go on."""
        wait(self._notified)

    def notify(self) -> None:
        self._notified.set_result(None)
        self._notified = Future()


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    parser_class = _Parser
    error_task_class = _ErrorTask
    began = 0.0
    """When the first of the request came that is arriving now."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbuf_lock = _OutputLock()

    def received(self, data: bytes) -> Any:
        arriving = self.request
        result = super().received(data)
        if self.request is not arriving:
            self.began = time.time()
        return result

    def service(self) -> None:
        super().service()
        if self.total_outbufs_len:  # at once, and headers and body together
            self._flush_exception(self._flush_some)

    def close(self) -> None:
        for unsent in self.outbufs:
            unsent.close()  # it may be a file
        super().close()


class Server(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """waitress, bound to an address and ready to `run`; port 0 takes a free one. Raises OSError."""

    channel_class = _Channel
    next_channel_cleanup = math.inf  # never by the wall time: see `readable`
    finished = False

    def __init__(self, wsgi: Wsgi, host: str, port: int) -> None:
        try:
            super().__init__(
                wsgi,
                host=host,
                port=port,
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
        except ValueError:
            raise OSError(errno.EADDRNOTAVAIL, "There is no address of this name") from None
        self.adj.send_bytes = SEND_BUFFER_BYTES  # as an argument it would warn of itself
        self._ahead = time.time() - time.monotonic()
        self._look_again_at = 0.0

    def pull_trigger(self) -> None:
        """Do nothing: whoever calls this runs in the thread that it would wake."""

    def readable(self) -> bool:
        """Say whether connections are taken; now and then look for those that are to be closed."""
        steady, now = time.monotonic(), time.time()
        self._follow_clock(now, now - steady)
        if steady >= self._look_again_at:
            self._look_again_at = steady + self.adj.cleanup_interval
            self.maintenance(now)
        return bool(super().readable())

    def _follow_clock(self, now: float, ahead: float) -> None:
        # waitress counts by wall time: a clock that was stepped ahead would cut off what is
        # arriving, and one that was stepped back keep what is silent. All begin anew then.
        if abs(ahead - self._ahead) >= CLOCK_STEP:
            self._ahead = ahead
            for channel in self.active_channels.values():
                channel.last_activity = channel.began = now

    def maintenance(self, now: float) -> None:
        """Close connections that are silent, as waitress does, and those that drip."""
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
        """Wait for clients and for the disk, a second at most, and do what they make possible."""
        wasyncore.loop(self.adj.asyncore_loop_timeout, use_poll=True, map=self._map, count=1)
        self.task_dispatcher.run()

    def finish(self) -> None:
        """Answer the requests that are being worked on, and no more."""
        # A request that is still at work would write into what `run` closes.
        self.finished = self.task_dispatcher.shutdown()


class ApiKeyAuthorizer(LocalGatewayAuthorizer):
    """Stands before the routes that want a key on AWS, as API Gateway does there.

    A server without keys lets everybody in: it is guarded by answering this machine alone.
    """

    def __init__(
        self, app: Chalice, keys: ApiKeys | None = None, limit: RateLimiter | None = None
    ) -> None:
        super().__init__(app)
        self._keys = keys
        self._limit = limit

    def authorize(self, _: str, lambda_event: Any, lambda_context: Any) -> Any:
        """Return event and context, with whose request it is, or raise what keeps it out."""
        route = self._route_for_event(lambda_event)
        if route is not None and route.authorizer is not None:
            key = self.admit(lambda_event["headers"])
            if key is not None:
                found = {"tenant": key.tenant, "role": key.role.value, "principalId": key.id}
                lambda_event["requestContext"]["authorizer"] = found
        return lambda_event, lambda_context

    def admit(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Take a token of who asks, and return the key, None if none is wanted.

        Raise Unauthenticated, TooManyRequests, Unavailable.
        """
        # Who shows no key that is known gets no bucket: anybody could make up a million.
        key = None if self._keys is None else _key(self._keys, headers)
        if self._limit is not None and not self._limit.take("" if key is None else key.id):
            raise errors.TooManyRequests("There are too many requests a second.")
        return key


def _key(keys: ApiKeys, headers: Mapping[str, str]) -> ApiKey:
    # Looked up for each request, so that a key that is taken back opens nothing from then on.
    key = authenticate(keys, headers.get("authorization", ""))
    if key is None:
        raise errors.Unauthenticated("Send an API key that counts: `Authorization: Bearer tmr_…`.")
    return key


class _SideBySide(LocalChalice):
    """Keeps a request and its context for each task, where Chalice has one of each."""

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


def application(
    app: Chalice,
    *,
    keys: ApiKeys | None = None,
    limit: RateLimiter | None = None,
    receiver: Receiver | None = None,
) -> Wsgi:
    """Return the WSGI application of a Chalice application and of the built-in receiver.

    Without `keys` it is for this machine alone. The receiver, which writes into the terminal
    whatever it gets, always is; it takes webhooks without a key, but shows them to none without.
    """
    app.__class__ = _SideBySide
    gateway = LocalGateway(app, Config())
    door = gateway._authorizer = ApiKeyAuthorizer(app, keys, limit)  # noqa: SLF001  # it has no seam for that
    routes = RouteMatcher(list(app.routes))

    def handle(environ: Environ) -> dict[str, Any]:
        method, path = environ["REQUEST_METHOD"], environ["REQUEST_URI"]
        is_received = receiver is not None and f"{path}/".startswith(RECEIVER_PATH)
        refusal = _refusal(environ) if keys is None or is_received else None
        if refusal is not None:
            return refusal.to_dict()
        headers, body = _headers(environ), environ["wsgi.input"].read()
        if receiver is not None and path.startswith(RECEIVER_PATH):
            return receiver.take(method, path, headers, body).to_dict()
        if receiver is not None and is_received and method == "GET":
            return _arrivals(receiver, door, headers).to_dict()
        try:
            allowed = app.routes[routes.match_route(path).route]
        except ValueError:
            return responses.error_response(errors.NotFound()).to_dict()
        if method not in allowed:
            detail = f"{method} is not possible here."
            allow: responses.Headers = {"Allow": ", ".join(allowed)}
            return responses.problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, None, allow).to_dict()
        return enter(method, path, headers, body)

    def enter(method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        try:
            response: dict[str, Any] = gateway.handle_request(method, path, headers, body)
        except errors.TimersError as error:
            return responses.error_response(error).to_dict()
        return response

    def wsgi(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        response = handle(environ)
        body = response["body"] or ""
        content = base64.b64decode(body) if response.get("isBase64Encoded") else body.encode()
        status = HTTPStatus(response["statusCode"])
        headers = _with_id(response["headers"]) | {"Content-Length": str(len(content))}
        start_response(f"{status.value} {status.phrase}", list(headers.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]

    return wsgi


def _with_id(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers of an answer, with an id of its request if no view gave it one."""
    return (
        headers
        if responses.REQUEST_ID_HEADER in headers
        else {**headers, responses.REQUEST_ID_HEADER: str(uuid.uuid4())}
    )


@responses.errors_as_problems
def _arrivals(receiver: Receiver, door: ApiKeyAuthorizer, headers: Mapping[str, str]) -> Response:
    key = door.admit(headers)
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
    target, found, rest = environ["REQUEST_URI"].partition("://")
    asked = [environ.get("HTTP_HOST", "")]
    if found and "/" not in target:  # the absolute form, whose host overrules the header
        asked.append(rest.partition("/")[0])
    if not all(map(_LOCAL_AUTHORITY.fullmatch, asked)):
        detail = f"This server answers to {', '.join(sorted(LOCAL_HOSTS))} only."
        return responses.problem(HTTPStatus.MISDIRECTED_REQUEST, detail)
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and not _LOCAL_AUTHORITY.fullmatch(origin.partition("://")[2]):
        return responses.problem(HTTPStatus.FORBIDDEN, "Web pages of other hosts may not use this.")
    return None
