"""Transport: one bounded HTTP exchange with a receiver, as an adapter of requests.

An exchange ends by its deadline and reads a bounded number of bytes. Redirects are not followed,
and the environment's proxy settings are ignored. A connection may be kept open briefly for the
next webhook to the same receiver.
"""

import re
import ssl
import time
from collections import defaultdict
from contextlib import suppress
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from chalicelib.core import urls
from chalicelib.core.headers import HEADER_NAME_PATTERN, HEADER_VALUE_PATTERN
from chalicelib.core.targets import Targets
from chalicelib.core.urls import Url
from chalicelib.webhook.connection import Connection, connect
from chalicelib.webhook.errors import ConnectionEnded, ExchangeError
from chalicelib.webhook.proxy import Proxy
from chalicelib.webhook.response import ResponseParser
from chalicelib.webhook.waiting import WaitStrategy

MAX_BODY_KEPT = 1024
"""Bytes of a response's body that are kept."""

BODY_TIMEOUT = 2.0
"""Seconds to wait for the rest of a response once its status is known."""

KEEPALIVE_SECONDS = 0.5
"""Seconds for which an idle connection stays open.

Long enough within a burst; no common server closes an idle connection that early.
"""

MAX_CONNECTION_AGE = 10.0
"""Seconds after which a connection is not reused, because the name may resolve differently."""

MAX_IDLE_CONNECTIONS = 512
"""Idle connections in all."""


_is_name = lru_cache(1024)(re.compile(HEADER_NAME_PATTERN).fullmatch)
_is_value = re.compile(HEADER_VALUE_PATTERN).fullmatch


class Transport(BaseAdapter):
    """Exchanges requests and responses with the receivers that `targets` allows."""

    def __init__(
        self,
        targets: Targets,
        tls: ssl.SSLContext,
        waiting: WaitStrategy,
        proxy: Proxy | None = None,
    ) -> None:
        super().__init__()
        self._targets = targets
        self._tls = tls
        self._waiting = waiting
        self._proxy = proxy
        self._idle = _IdleConnections(waiting)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002  # a parameter of every adapter, like those below
        timeout: Any = None,
        verify: Any = True,  # noqa: ARG002
        cert: Any = None,  # noqa: ARG002
        proxies: Any = None,  # noqa: ARG002
    ) -> requests.Response:
        """Send one request and return its response, within `timeout` seconds in all.

        The response has at most MAX_BODY_KEPT bytes of the body. The parameters besides `request`
        and `timeout` have no effect. Raises ExchangeError.
        """
        try:
            return self._exchange(request, time.monotonic() + timeout)
        except ExchangeError:
            raise  # not from itself: that would be a reference cycle
        except Exception as error:  # sockets and TLS raise many kinds
            raise ExchangeError.of(error) from error

    def close(self) -> None:
        """Close all idle connections."""
        self._idle.close()

    def _exchange(self, request: requests.PreparedRequest, ends_at: float) -> requests.Response:
        url = _parsed(request)
        # A receiver that does not read the body would take it for the next request.
        is_last = bool(request.body) or not self._waiting.keeps_connections
        message = self._encoded(request, url, is_last=is_last)
        if connection := self._idle.take(url):
            connection.begin(ends_at)
            with suppress(ConnectionEnded):
                return self._exchange_on(connection, url, message, is_last=is_last)
            # Most likely the receiver closed the connection before this webhook arrived. If not, it
            # gets the webhook twice, as after any fault, and can recognize it by its id.
        connection = self._connect(url, ends_at)
        return self._exchange_on(connection, url, message, is_last=is_last)

    def _exchange_on(
        self, connection: Connection, url: Url, message: bytes, *, is_last: bool
    ) -> requests.Response:
        response, is_kept = ResponseParser(MAX_BODY_KEPT), False
        try:
            _send_and_receive(connection, message, response)
            if self._is_refused_by_proxy(response, url):
                raise _proxy_error(response)
            is_kept = not is_last and response.is_reusable and self._idle.put(url, connection)
        finally:
            if not is_kept:
                connection.close()
        return _Response(response)

    def _connect(self, url: Url, ends_at: float) -> Connection:
        if self._proxy is None:
            connection = connect(url.host, url.port, self._targets, ends_at, self._waiting)
        else:
            self._check_unresolved(url)
            connection = self._connect_to(self._proxy, ends_at)
        try:
            if url.scheme == "https":
                self._secure(connection, url, ends_at)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_to(self, proxy: Proxy, ends_at: float) -> Connection:
        try:
            return connect(proxy.host, proxy.port, None, ends_at, self._waiting)
        except ExchangeError as error:
            kind = error.error if error.error == "timeout" else "connect"
            raise ExchangeError(kind, f"the proxy {proxy}: {error}") from error

    def _check_unresolved(self, url: Url) -> None:
        # The proxy resolves names, so only what a URL shows can be checked.
        if not self._targets.allows_unresolved(url.host, url.port):
            raise ExchangeError("refused target", self._targets.refusal(url.host, url.port))

    def _secure(self, connection: Connection, url: Url, ends_at: float) -> None:
        if self._proxy is not None:
            response = ResponseParser(max_body=0)
            _send_and_receive(connection, self._proxy.connect_request(url), response)
            if response.status != HTTPStatus.OK:
                raise _proxy_error(response)
            connection.begin(ends_at)
        connection.start_tls(self._tls, url.host)

    def _is_passed_on(self, url: Url) -> bool:
        """Return whether the proxy itself gets the request: https goes through a tunnel."""
        return self._proxy is not None and url.scheme == "http"

    def _is_refused_by_proxy(self, response: ResponseParser, url: Url) -> bool:
        # In a tunnel, it would be a response of the receiver.
        is_refused = response.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        return is_refused and self._is_passed_on(url)

    def _encoded(self, request: requests.PreparedRequest, url: Url, *, is_last: bool) -> bytes:
        target, headers = url.target, {"Host": url.host_header, **request.headers}
        if is_last:
            headers["Connection"] = "close"
        if self._proxy is not None and self._is_passed_on(url):
            target = f"http://{url.host_header}{target}"
            headers |= self._proxy.headers
        lines = [f"{request.method} {target} HTTP/1.1", *map(_line, headers.items()), "", ""]
        body = request.body or b""
        return "\r\n".join(lines).encode("latin-1") + (
            body.encode() if isinstance(body, str) else body
        )


def _proxy_error(response: ResponseParser) -> ExchangeError:
    return ExchangeError("connect", f"the proxy responded HTTP {response.status}")


class _IdleConnections:
    """Connections that wait for another exchange. For one thread."""

    def __init__(self, waiting: WaitStrategy) -> None:
        self._waiting = waiting
        self._number = 0
        self._by_origin: defaultdict[tuple[str, str, int], list[Connection]] = defaultdict(list)

    def take(self, url: Url) -> Connection | None:
        """Return the connection to this origin that was used last, or None."""
        while connections := self._by_origin.get(_origin(url)):
            connection = connections[-1]
            self._remove(url, connection)
            if connection.is_idle:
                return connection
            connection.close()
        return None

    def put(self, url: Url, connection: Connection) -> bool:
        """Keep a connection open for a while; return False if it can't be kept."""
        now = time.monotonic()
        if now > connection.connected_at + MAX_CONNECTION_AGE:
            return False
        if self._number >= MAX_IDLE_CONNECTIONS:
            return False
        connection.idle_since = now
        self._number += 1
        self._by_origin[_origin(url)].append(connection)
        self._waiting.call_later(KEEPALIVE_SECONDS, partial(self._expire, url, connection, now))
        return True

    def close(self) -> None:
        """Close all of them."""
        for connections in self._by_origin.values():
            for connection in connections:
                connection.close()
        self._by_origin.clear()
        self._number = 0

    def _expire(self, url: Url, connection: Connection, idle_since: float) -> None:
        if connection.idle_since == idle_since:
            self._remove(url, connection)
            connection.close()

    def _remove(self, url: Url, connection: Connection) -> None:
        connection.idle_since = None
        self._number -= 1
        connections = self._by_origin[_origin(url)]
        connections.remove(connection)
        if not connections:
            del self._by_origin[_origin(url)]


def _origin(url: Url) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port


def _send_and_receive(connection: Connection, message: bytes, response: ResponseParser) -> None:
    """Send a request and read its response. Raises if no final status arrives."""
    try:
        _send(connection, message, response)
        _receive(connection, response)
    except OSError as error:
        with suppress(ExchangeError):
            response.end()
        if response.status is not None:
            return
        if connection.is_untouched and isinstance(error, ConnectionError | ssl.SSLError):
            failure = ExchangeError.of(error)
            raise ConnectionEnded(failure.error, str(failure)) from error
        raise
    if response.status is None:
        if connection.is_untouched:
            detail = "the receiver closed the connection without a response"
            raise ConnectionEnded("connect", detail)
        raise ExchangeError("connect", "the receiver closed the connection within the response")


def _send(connection: Connection, message: bytes, response: ResponseParser) -> None:
    """Send a request, until all is sent or the receiver does not want the rest."""
    try:
        connection.queue(message)
        while not (connection.flush() or _is_unwanted(response)):
            connection.wait_to_flush(may_read=not response.is_finished)
            _receive_early(connection, response)
    except ConnectionError:
        pass  # a response may have arrived before; otherwise reading fails, too


def _is_unwanted(response: ResponseParser) -> bool:
    """Return whether the receiver has refused the request or hung up.

    After an early 2xx it may still read the body.
    """
    if response.status is None:
        return response.is_finished
    return not 200 <= response.status < 300


def _receive_early(connection: Connection, response: ResponseParser) -> None:
    while not response.is_finished and (data := connection.receive_now()) is not None:
        response.feed(data)


def _receive(connection: Connection, response: ResponseParser) -> None:
    while not response.is_finished:
        if response.status is not None:
            connection.end_within(BODY_TIMEOUT)
        response.feed(connection.receive())


class _Response(requests.Response):
    """A response as requests has it, with the status, headers and content."""

    def __init__(self, response: ResponseParser) -> None:
        # Not super().__init__(): its cookie jar would take longer than all the rest.
        self.status_code = response.status or 0
        self.headers = CaseInsensitiveDict()
        for name, value in response.headers:
            before = self.headers.get(name)
            self.headers[name] = value if before is None else f"{before}, {value}"
        self._content = response.body
        self._content_consumed = True


def _parsed(request: requests.PreparedRequest) -> Url:
    try:
        return urls.parse(str(request.url))
    except ValueError as error:
        raise ExchangeError("refused target", str(error)) from None


def _line(header: tuple[str, str]) -> str:
    name, value = header
    # Timers of early versions may have others. They fail for good, and the error does not quote
    # them: they may be secrets.
    if not _is_name(name) or not _is_value(value):
        raise ExchangeError("refused target", "a header is not valid")
    return f"{name}: {value}"
