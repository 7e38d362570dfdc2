"""What can go wrong, in the words of the domain. api.py says which HTTP status each one is.

TimersError
 ├─ InvalidRequest           the request can't be understood or allowed
 │   ├─ UnsupportedMediaType
 │   └─ BodyTooLarge
 ├─ Unauthenticated          the request carries no key that counts
 ├─ Forbidden                the key is not for this
 ├─ TooManyRequests          more than the key may make in a second
 ├─ NotFound                 there is nothing at this path
 │   └─ TimerNotFound
 ├─ Conflict                 what is there already does not allow it
 │   ├─ DeliveryUnderWay     … just now: ask again shortly
 │   └─ KeyReused            the Idempotency-Key stands for another request
 └─ Unavailable              the infrastructure does not answer: nothing was decided
     ├─ AlarmRefused         … and never will as it is set up: the alarm was not set
     └─ NotConfigured
"""

from typing import ClassVar


class TimersError(Exception):
    """Base of all errors; `str(error)` is one sentence for the person who made the request."""

    retry_after: ClassVar[int | None] = None
    """Seconds after which the same request may succeed, where that is known."""


class InvalidRequest(TimersError):
    """The request can't be understood or allowed.

    `pointer` is the JSON pointer (RFC 6901) to the offending member, "" for the whole document,
    None where the fault is not in the document.
    """

    def __init__(self, detail: str, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.pointer = pointer


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as application/json."""


class BodyTooLarge(InvalidRequest):
    """The body is larger than what one timer may hold."""


class Unauthenticated(TimersError):
    """The request carries no key, or one that nobody knows."""


class Forbidden(TimersError):
    """The key is known, and does not allow what was asked."""


class TooManyRequests(TimersError):
    """There are more requests than may be made in a second; after one, some may be again."""

    retry_after = 1


class NotFound(TimersError):
    """There is nothing at this path."""

    def __init__(self, detail: str = "There is nothing at this path.") -> None:
        super().__init__(detail)


class TimerNotFound(NotFound):
    """This tenant has no timer with that id."""


class Conflict(TimersError):
    """What is there already does not allow what was asked, mostly the timer's status."""


class DeliveryUnderWay(Conflict):
    """The webhook is being sent at this moment, so the timer can't be changed."""

    retry_after = 1


class KeyReused(Conflict):
    """The Idempotency-Key was used for another request."""


class Unavailable(TimersError):
    """The store or the alarm does not answer; the same request may succeed later."""

    retry_after = 1


class ScheduleRefused(Unavailable):
    """The alarm was definitely not set, and asking again would not help (access, set-up)."""


class NotConfigured(Unavailable):
    """The application runs without a service behind it."""


class CommandError(Exception):
    """A command or a start can't go on; `str(error)` tells the operator what to do."""
