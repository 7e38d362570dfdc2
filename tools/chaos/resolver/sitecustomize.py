"""Make name resolution fail while the file named by NO_NAMES exists, as if DNS were down.

Python imports `sitecustomize` before any other code if its folder is in PYTHONPATH.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

_sign = Path(os.environ["NO_NAMES"])


def _fail(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" and arguments[0] == "localhost" and _sign.exists():
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


sys.addaudithook(_fail)
