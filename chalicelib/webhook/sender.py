"""WebhookSender: one signed attempt to send a webhook, as an Outcome.

Each attempt is signed with all secrets of its tenant. If they can't be read, nothing is sent. The
transport bounds the exchange in time and bytes and connects to checked addresses only.
"""

import ssl
import time
from collections.abc import Sequence
from datetime import datetime

import requests
from msgspec.structs import replace

from chalicelib.core import signing
from chalicelib.core.errors import Unavailable
from chalicelib.core.targets import Targets
from chalicelib.core.timer import Outcome, Timer
from chalicelib.webhook.errors import ExchangeError
from chalicelib.webhook.proxy import Proxy
from chalicelib.webhook.retry_after import seconds_to_wait
from chalicelib.webhook.secrets_cache import SecretsOf
from chalicelib.webhook.tls import client_context
from chalicelib.webhook.transport import Transport
from chalicelib.webhook.waiting import BlockingWait, WaitStrategy

USER_AGENT = "Timers/1"

MAX_LOCATION_KEPT = 500
"""Characters of a redirect's Location that an Outcome keeps."""


def _no_secrets(_: str) -> Sequence[str]:
    return ()


class WebhookSender:
    """Sends webhooks to the targets that `targets` allows, signed with the secrets of their tenant.

    `tls` replaces the default context. `waiting` says how the sender waits for sockets and names;
    by default it blocks its thread.
    """

    def __init__(
        self,
        targets: Targets,
        tls: ssl.SSLContext | None = None,
        *,
        proxy: Proxy | None = None,
        secrets_of: SecretsOf = _no_secrets,
        waiting: WaitStrategy = BlockingWait(),  # noqa: B008  # it has no state
    ) -> None:
        self._transport = Transport(targets, tls or client_context(), waiting, proxy)
        self._secrets_of = secrets_of

    def send(self, timer: Timer, at: datetime) -> Outcome:
        """Make one attempt at `at`, within `timer.timeout` seconds. A failure is an Outcome too.

        Raises Unavailable, before anything is sent, if the secrets can't be read in time.
        """
        called = time.monotonic()
        secrets = self._secrets_of(timer.tenant)
        began = time.monotonic()
        left = timer.timeout - (began - called)
        if left < timer.timeout / 2:
            raise Unavailable(
                "Reading the signing secrets took over half of the timeout; nothing was sent."
            )
        try:
            outcome = self._exchange(timer, at, secrets, left)
        except Exception as error:
            # A receiver can make the standard library raise anything: RecursionError, for example.
            outcome = _failed(error)
        return replace(outcome, duration=round(time.monotonic() - began, 6))

    def _exchange(
        self, timer: Timer, at: datetime, secrets: Sequence[str], timeout: float
    ) -> Outcome:
        body = timer.body.encode()
        headers = _headers(timer, at) | _signature(timer, at, secrets, body)
        # A Session would look for proxies, cookies and redirects.
        response = self._transport.send(
            _prepared(timer.method, timer.target, headers, body), timeout=timeout
        )
        return Outcome(
            status=response.status_code,
            answer=response.content.decode(errors="replace"),
            retry_after=seconds_to_wait(response.headers.get("Retry-After"), at),
            location=_location(response),
        )


def _failed(error: Exception) -> Outcome:
    # A function: a frame of the traceback that holds the error would be a reference cycle.
    failure = ExchangeError.of(error)
    return Outcome(error=failure.error, detail=str(failure))


def _prepared(
    method: str, url: str, headers: dict[str, str], body: bytes
) -> requests.PreparedRequest:
    """Prepare a request as it is: without cookies, authentication and hooks."""
    request = requests.PreparedRequest()
    request.prepare_method(method)
    request.url = url
    # A plain dict is faster, and no two of these names differ in case alone.
    request.headers = headers  # type: ignore[assignment]
    request.prepare_body(body, None)
    return request


def _location(response: requests.Response) -> str | None:
    if not 300 <= response.status_code < 400:
        return None
    location = response.headers.get("Location")
    if location is None:
        return None
    # Most receivers send UTF-8, which was decoded as Latin-1.
    return location.encode("latin-1").decode(errors="replace")[:MAX_LOCATION_KEPT]


def _headers(timer: Timer, at: datetime) -> dict[str, str]:
    ours = {
        "webhook-id": timer.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "timer-attempt": str(timer.attempt),
        "timer-scheduled-at": timer.deadline.isoformat().replace("+00:00", "Z"),
        "User-Agent": USER_AGENT,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
    }
    # The owner may replace Accept and User-Agent; the API rejects the other names.
    custom = {name.lower() for name in timer.headers}
    return timer.headers | {n: value for n, value in ours.items() if n.lower() not in custom}


def _signature(timer: Timer, at: datetime, secrets: Sequence[str], body: bytes) -> dict[str, str]:
    if not secrets:
        return {}
    return {"webhook-signature": signing.sign(secrets, timer.id, int(at.timestamp()), body)}
