"""Python imports this by its name, where its folder is in PYTHONPATH, before any other code.

While there is a file as NO_NAMES says, no name can be resolved, as if no name server answered.
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
