"""The listening sockets of the standalone server: one for each address that HOST stands for."""

import errno
import socket
from contextlib import ExitStack
from typing import Any

_ADDRESSES = {"localhost": ("127.0.0.1", "::1"), "::": ("0.0.0.0", "::")}  # noqa: S104
"""Hosts that stand for IPv4 and IPv6; the greeting names the first address."""

_NOT_HERE = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
"""Errors of an address that this machine does not have, such as any without IPv6."""

MAX_PORT_TRIES = 10
"""How many free ports are tried until one is free at each address."""

_Address = tuple[socket.AddressFamily, Any]
"""A family, and a socket address as `bind` takes it."""


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a socket bound to `port` for each address of `host` that this machine has.

    Port 0 picks one that is free at each address. Raises OSError if no address is left, or if the
    port is in use at one of them.
    """
    tries = 1 if port else MAX_PORT_TRIES
    while True:
        tries -= 1
        try:
            return _bind_all(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries:
                raise


def _bind_all(host: str, port: int) -> list[socket.socket]:
    with ExitStack() as opened:  # closes the sockets if one fails
        sockets: list[socket.socket] = []
        missing = OSError(errno.EADDRNOTAVAIL, "This host name has no address")
        for family, address in _resolve(host):
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(opened.enter_context(_bind(family, address, chosen)))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
        if not sockets:
            raise missing
        opened.pop_all()
    return sockets


def _resolve(host: str) -> list[_Address]:
    """Return each address of a host once; none if it is unknown."""
    found: dict[Any, _Address] = {}
    for name in _ADDRESSES.get(host, (host,)):
        try:
            infos = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):
            continue
        found |= {address: (family, address) for family, _, _, _, address in infos}
    return list(found.values())


def _bind(family: socket.AddressFamily, address: Any, port: int) -> socket.socket:
    with ExitStack() as opened:
        sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address[0], port, *address[2:]))
        opened.pop_all()
    return sock
