"""Translates the errors of EventBridge Scheduler and SQS into the domain's."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.core.errors import ScheduleRefused, Unavailable

_THROTTLED = re.compile(r"Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|OverLimit")


@contextmanager
def translated_errors(ignore: str = "") -> Iterator[None]:
    """Raise Unavailable for a temporary error, ScheduleRefused for a permanent one.

    An error with the code `ignore` counts as success.
    """
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == ignore:
            return
        if status >= 500 or status == 429 or _THROTTLED.search(code):
            raise Unavailable(f"The timer can't be scheduled now: {code}.") from error
        raise ScheduleRefused(f"AWS refused to schedule the timer: {code}.") from error
    except BotoCoreError as error:
        raise Unavailable("The timer can't be scheduled now: AWS does not respond.") from error
