"""Listening on IPv4 and IPv6: each address of HOST, on one port, as far as the machine has it."""

import errno
import socket
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from chalicelib.core.targets import Targets
from standalone.listening import MAX_PORT_TRIES, bound_sockets
from standalone.settings import Settings
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.http import HEALTH, ask, running


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="This machine has no IPv6.")

Bind = Callable[[socket.socket, Any], None]


@pytest.fixture
def fail_ipv6(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Let binds to IPv6 addresses fail with these errors, one after the other, then succeed."""
    bind = socket.socket.bind

    def fail(errors: list[int]) -> None:
        def failing(self: socket.socket, address: Any) -> None:
            if self.family == socket.AF_INET6 and errors:
                raise OSError(errors.pop(0), "as the test wants it")
            bind(self, address)

        monkeypatch.setattr(socket.socket, "bind", failing)

    return fail


def addresses(host: str, port: int = 0) -> list[tuple[str, int]]:
    """Return the addresses and ports that a server at this host is bound to."""
    sockets = bound_sockets(host, port)
    names = [sock.getsockname()[:2] for sock in sockets]
    for sock in sockets:
        sock.close()
    return names


@needs_ipv6
@pytest.mark.parametrize("host", ["localhost", "::"])
def test_serves_ipv4_and_ipv6(tmp_path: Path, host: str) -> None:
    """HOST=localhost and HOST=:: answer on 127.0.0.1 and on ::1, on the same port."""
    settings = Settings(host, 0, tmp_path / "timers.db", Targets(), keys=host == "::")
    with running(settings, SqliteTimerStore(settings.database)) as url:
        port = urlsplit(url).port
        for address in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}"):
            for _ in range(2):
                assert ask(address, HEALTH).status == 200


@pytest.mark.parametrize("error", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
@pytest.mark.parametrize("host", ["localhost", "::"])
def test_a_machine_without_ipv6_serves_ipv4(
    fail_ipv6: Callable[[list[int]], None], host: str, error: int
) -> None:
    """Without IPv6 the server starts on IPv4 alone."""
    fail_ipv6([error])
    ((address, port),) = addresses(host)
    assert ip_address(address).version == 4
    assert port > 0


@needs_ipv6
def test_a_free_port_is_free_at_each_address(fail_ipv6: Callable[[list[int]], None]) -> None:
    """Port 0 is tried again if the port it picked is taken at another address."""
    fail_ipv6([errno.EADDRINUSE] * (MAX_PORT_TRIES - 1))
    first, second = addresses("localhost")
    assert (first[0], second[0]) == ("127.0.0.1", "::1")
    assert first[1] == second[1]


@pytest.mark.parametrize("host", ["localhost", "::1"])
@pytest.mark.parametrize("error", [errno.EADDRINUSE, errno.EACCES])
def test_a_port_that_one_address_refuses_is_an_error(
    fail_ipv6: Callable[[list[int]], None], host: str, error: int
) -> None:
    """A server never listens on a part of its addresses because of a port in use."""
    fail_ipv6([error] * MAX_PORT_TRIES)
    with pytest.raises(OSError, match="as the test wants it") as raised:
        bound_sockets(host, 0)
    assert raised.value.errno == error


@needs_ipv6
def test_a_failed_start_leaves_no_socket() -> None:
    """A port that is taken on IPv6 stays free on IPv4 after the failed start."""
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            bound_sockets("localhost", port)
        assert addresses("127.0.0.1", port) == [("127.0.0.1", port)]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0"])  # noqa: S104
def test_an_address_stands_for_itself(host: str) -> None:
    """An IPv4 address is bound alone."""
    assert [address for address, _ in addresses(host)] == [host]


@pytest.mark.parametrize("host", ["", "nowhere." + "x" * 64, "192.0.2.1"])
def test_a_host_without_an_address_here_is_an_error(host: str) -> None:
    """A name without an address, and an address of another machine, are errors."""
    with pytest.raises(OSError, match="address") as raised:
        bound_sockets(host, 0)
    assert raised.value.errno == errno.EADDRNOTAVAIL
