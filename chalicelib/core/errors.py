"""Errors of the domain. `http/responses.py` maps each to an HTTP status.

TimersError
 ├─ InvalidRequest           the request is invalid or not allowed
 │   ├─ UnsupportedMediaType the body is not declared as JSON
 │   └─ BodyTooLarge
 ├─ Unauthenticated          no valid API key
 ├─ Forbidden                the API key's role does not allow the request
 ├─ TooManyRequests          rate limit exceeded
 ├─ NotFound                 nothing at this path
 │   └─ TimerNotFound        the tenant has no timer with this id
 ├─ Conflict                 the timer's status does not allow the request
 │   └─ DeliveryUnderWay     the webhook is being sent: retry shortly
 ├─ IdempotencyKeyReused     the Idempotency-Key was used for another request
 └─ Unavailable              the backend does not respond
     ├─ ScheduleRefused      the scheduler refuses the schedule for good
     └─ NotConfigured        the process is not set up for the request

OperatorError                 a command or a start failed
"""

from typing import ClassVar


class TimersError(Exception):
    """Base of all errors; `str(error)` tells the caller of the API what to do."""

    retry_after: ClassVar[int | None] = None
    """Seconds after which the same request may succeed, if known."""


class InvalidRequest(TimersError):
    """The request is invalid or not allowed.

    `pointer` is the JSON pointer (RFC 6901) to the invalid field: "" for the whole document, None
    if the fault is not in the document.
    """

    def __init__(self, detail: str, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.pointer = pointer


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as application/json."""


class BodyTooLarge(InvalidRequest):
    """The body exceeds its limit in bytes."""


class Unauthenticated(TimersError):
    """The request has no API key, or an unknown one."""


class Forbidden(TimersError):
    """The role of the API key does not allow the request."""


class TooManyRequests(TimersError):
    """Rate limit exceeded; retry after one second."""

    retry_after = 1


class NotFound(TimersError):
    """No resource has this path."""

    def __init__(
        self, detail: str = "There is nothing at this path. The page api-docs lists all paths."
    ) -> None:
        super().__init__(detail)


class TimerNotFound(NotFound):
    """The tenant has no timer with this id."""


class Conflict(TimersError):
    """The current state, usually the timer's status, does not allow the request."""


class DeliveryUnderWay(Conflict):
    """The webhook is being sent, so the timer can't be changed."""

    retry_after = 1


class IdempotencyKeyReused(TimersError):
    """The Idempotency-Key was used for another request."""


class Unavailable(TimersError):
    """The store or the scheduler does not respond; the same request may succeed later."""

    retry_after = 1


class ScheduleRefused(Unavailable):
    """The schedule was certainly not created, and a retry won't help (no access, for example)."""


class NotConfigured(Unavailable):
    """The process is not set up for the request; a setting or a resource is missing."""


class OperatorError(Exception):
    """A command or a start failed; `str(error)` tells the operator what to do."""
