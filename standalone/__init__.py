"""The standalone server: the same application over SQLite and a heap, in one process."""

import sys

# Before anything that an older Python could not even read.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("Timers needs Python 3.11 or newer; this is %d.%d." % sys.version_info[:2])  # noqa: UP031
