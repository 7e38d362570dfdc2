"""Changes that requests make to webhooks, and the limits of the result. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chalicelib.core import urls
from chalicelib.core.errors import InvalidRequest
from chalicelib.core.headers import check_headers
from chalicelib.core.timer import Timer, Webhook, webhook_fields

MAX_WEBHOOK_BYTES = 64 * 1024
"""URLs, headers and body together."""

MAX_METADATA_BYTES = 4 * 1024
"""Names and values of a timer's metadata together."""

URL_FIELDS = ("url", "on_failure")
"""The fields of a webhook that hold a URL."""


class WebhookChange(Struct, frozen=True, kw_only=True):
    """The fields of `Webhook` that a request sets; the others keep their values.

    Creating a timer changes an empty webhook, so both kinds of request have the same limits.
    """

    fields: Mapping[str, Any]
    content_type: str | None = None
    """Media type of a new body; a Content-Type in the webhook's headers takes precedence."""

    def apply(self, webhook: Webhook) -> Webhook:
        """Return the changed webhook, or raise InvalidRequest if it exceeds a limit."""
        after = Webhook(**{**webhook_fields(webhook), **self.fields, **self._urls_as_sent()})
        media_type = self.content_type if "body" in self.fields else _content_type(webhook.headers)
        if after.body and media_type and _content_type(after.headers) is None:
            after = replace(after, headers={**after.headers, "Content-Type": media_type})
        _check(after)
        return after

    def _urls_as_sent(self) -> dict[str, str]:
        given = [(name, self.fields.get(name)) for name in URL_FIELDS]
        return {name: _url_as_sent(url, f"/{name}") for name, url in given if url is not None}


class Change(Struct, frozen=True, kw_only=True):
    """The change that a PATCH requests."""

    webhook: WebhookChange
    deadline: datetime | None = None
    """A new deadline restarts the timer, with all attempts ahead."""

    def apply(self, timer: Timer, _: datetime) -> Timer:
        """Return the changed timer; raise InvalidRequest or Conflict."""
        return timer.change(self.webhook.apply(timer), self.deadline)


def _url_as_sent(url: str, pointer: str) -> str:
    try:
        return urls.as_sent(url)
    except ValueError as error:
        raise InvalidRequest(str(error), pointer) from None


def _content_type(headers: Mapping[str, str]) -> str | None:
    return next((value for name, value in headers.items() if name.lower() == "content-type"), None)


def _check(webhook: Webhook) -> None:
    check_headers(webhook.headers, "/headers")
    if webhook.body and webhook.method == "GET":
        raise InvalidRequest("A GET has no body.", "/body")
    texts = [webhook.url, webhook.on_failure or "", webhook.body]
    size = _size(*texts, *webhook.headers, *webhook.headers.values())
    if size > MAX_WEBHOOK_BYTES:
        detail = f"URLs, headers and body have {size:,} bytes; the limit is {MAX_WEBHOOK_BYTES:,}."
        raise InvalidRequest(detail, "/body")
    size = _size(*webhook.metadata, *webhook.metadata.values())
    if size > MAX_METADATA_BYTES:
        detail = f"The metadata has {size:,} bytes; the limit is {MAX_METADATA_BYTES:,}."
        raise InvalidRequest(detail, "/metadata")
    if webhook.retry.initial_delay > webhook.retry.max_delay:
        detail = (
            f"`max_delay` must not be less than `initial_delay`, {webhook.retry.initial_delay}."
        )
        raise InvalidRequest(detail, "/retry/max_delay")


def _size(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)
