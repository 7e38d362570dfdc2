"""The standalone server: the whole service in one process, over SQLite and a heap."""

import sys

# First of all: older Pythons can't even parse the other modules.
if sys.version_info < (3, 11):  # noqa: UP036  # people do start it with an older one
    sys.exit("Timers needs Python 3.11 or newer; this is %d.%d." % sys.version_info[:2])  # noqa: UP031  # as above

# Windows lacks modules that the others import.
if sys.platform == "win32":
    sys.exit("Timers runs on Linux and macOS; on Windows, start it in WSL.")
