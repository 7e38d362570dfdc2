"""Block all name lookups and connections beyond loopback.

Python imports `sitecustomize` before any other code if its folder is in PYTHONPATH.
"""

import socket
import sys
from ipaddress import ip_address
from typing import Any


def _stay(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not _is_here(host):
        raise socket.gaierror(socket.EAI_NONAME, "Tests may use loopback only")


def _is_here(host: object) -> bool:
    try:
        return host in (None, "localhost") or ip_address(str(host)).is_loopback
    except ValueError:
        return False


sys.addaudithook(_stay)
