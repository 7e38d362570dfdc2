"""Answers requests to the standalone server: the views, and the built-in receiver."""

import re
from http import HTTPStatus

from chalice.app import Chalice, Response

from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.http import responses
from chalicelib.service.ports import ApiKeys
from standalone.authorizer import ApiKeyAuthorizer
from standalone.gateway import Gateway
from standalone.rate_limit import RateLimiter
from standalone.receiver import RECEIVER_PATH, Receiver
from standalone.server import HttpRequest, HttpResponse, http_response, problem

_LOCAL_AUTHORITY = re.compile(r"(127\.0\.0\.1|(?i:localhost)|\[::1])(:[0-9]{1,5})?")
"""`LOCAL_HOSTS` with an optional port. urlsplit would find ::1 in `evil[::1]`."""

_OTHER_HOST = (
    "This server answers to 127.0.0.1, ::1 and localhost only."
    " To serve other names, start it with AUTH=keys."
)
_OTHER_ORIGIN = "Web pages of other hosts may not use this server."


class Application:
    """The views of a Chalice application and the built-in receiver.

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
        self._authorizer = ApiKeyAuthorizer(keys, limit)
        self._gateway = Gateway(app, self._authorizer)
        self._receiver = receiver
        self._is_local = keys is None

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer a request."""
        receiver = self._receiver if f"{request.target}/".startswith(RECEIVER_PATH) else None
        if self._is_local or receiver is not None:
            refusal = _refusal(request)
            if refusal is not None:
                return refusal
        if receiver is None:
            return self._gateway.answer(request)
        if request.target.startswith(RECEIVER_PATH):
            headers = {name: ", ".join(values) for name, values in request.headers.items()}
            taken = receiver.take(request.method, request.target, headers, request.body)
            return http_response(taken)
        if request.method in ("GET", "HEAD"):
            return http_response(_show_arrivals(receiver, self._authorizer, request))
        return self._gateway.answer(request)


@responses.errors_as_problems
def _show_arrivals(
    receiver: Receiver, authorizer: ApiKeyAuthorizer, request: HttpRequest
) -> Response:
    key = authorizer.admit(request.headers)
    tenant = DEFAULT_TENANT if key is None else key.tenant
    return receiver.show(tenant, signed_only=key is not None)


def _refusal(request: HttpRequest) -> HttpResponse | None:
    """Return the response to a request that names another host or comes from another host's page.

    Return None for other requests. This stops DNS rebinding and cross-site requests.
    """
    target, separator, rest = request.target.partition("://")
    authorities = request.headers.get("host", [])
    if len(authorities) != 1:
        return problem(HTTPStatus.MISDIRECTED_REQUEST, _OTHER_HOST)
    if separator and "/" not in target:  # absolute form: its host takes precedence over the header
        authorities = [*authorities, rest.partition("/")[0]]
    if not all(map(_LOCAL_AUTHORITY.fullmatch, authorities)):
        return problem(HTTPStatus.MISDIRECTED_REQUEST, _OTHER_HOST)
    origins = request.headers.get("origin", [])
    if not all(_LOCAL_AUTHORITY.fullmatch(it.partition("://")[2]) for it in origins):
        return problem(HTTPStatus.FORBIDDEN, _OTHER_ORIGIN)
    return None
