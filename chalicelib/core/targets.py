"""SSRF allow-list: the URLs and addresses that webhooks may go to. Pure: no name resolution.

Webhooks may go to public addresses, by http or https on ports 80 and 443, and to the entries of
`ALLOWED_TARGETS`. Without this rule, users could reach the service's own network and, on Lambda,
the runtime API with its credentials.
"""

import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from chalicelib.core import urls
from chalicelib.core.errors import InvalidRequest, OperatorError

LOOPBACK_TARGETS = "localhost,127.0.0.0/8,::1"
"""The default `ALLOWED_TARGETS` of a service that only its own machine can reach."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PUBLIC_PORTS = frozenset(urls.DEFAULT_PORTS.values())

# Networks that are not public, although `is_global` of some Python versions says they are.
_NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16",  # Azure's platform services, reachable only from its virtual machines
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "224.0.0.0/4",  # multicast
        "2001::/23",  # IETF protocol assignments, Teredo among them: embeds IPv4 addresses
        "2002::/16",  # 6to4: embeds IPv4 addresses
        "3fff::/20",  # documentation
    )
)
_PRIVATE = tuple(
    ip_network(network)
    for network in ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
"""The networks of operators. Errors advise to open an address only here, or a public one."""
_METADATA = (IPv4Address("100.100.100.200"), IPv6Address("fd00:ec2::254"))
"""Addresses within `_PRIVATE` where clouds hand out credentials."""
_LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_UNICAST_IPV6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_PORT = re.compile(r"[0-9]{1,5}")
_ISATAP = (0x00005EFE, 0x02005EFE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `ALLOWED_TARGETS`: a host name or a network, on one port or on all."""

    host: str | None
    network: Network | None
    port: int | None

    def matches(self, host: str, address: Address | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return self.host == host


@dataclass(frozen=True, slots=True)
class Targets:
    """The allow-list: the public internet and `entries`."""

    entries: tuple[Entry, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Targets":
        """Parse `ALLOWED_TARGETS`: hosts or CIDRs with an optional `:port`, separated by commas.

        IPv6 with a port needs brackets: `[fd00::/8]:8080`. Raises OperatorError.
        """
        return cls(tuple(_entry(part.strip()) for part in text.split(",") if part.strip()))

    def check_url(self, url: str, pointer: str) -> None:
        """Raise InvalidRequest if this URL can never be allowed, whatever its host resolves to.

        `{id}` may be in it. `pointer` is the JSON pointer to the URL in the request.
        """
        try:
            parts = urls.parse(urls.with_any_id(url))
        except ValueError as error:
            raise InvalidRequest(str(error), pointer) from None
        if not self.may_allow(parts.host, parts.port):
            raise InvalidRequest(self.refusal(parts.host, parts.port), pointer)

    def refusal(self, host: str, port: int, found: str = "") -> str:
        """Return the error for a host, a name or an address, and what to do about it.

        `found` has the addresses that a name resolves to: "10.0.0.5, 10.0.0.6".
        """
        reason = f": it resolves to {found}" if found not in ("", host) else ""
        error = f"Webhooks to {host} on port {port} are not allowed{reason}."
        return f"{error} {self._advice(host, port, found)}".rstrip()

    def _advice(self, host: str, port: int, found: str = "") -> str:
        """Return how to reach or allow a host; empty if it should stay refused.

        It never shows the operator's entries: tenants read it too.
        """
        literal = _literal(host)
        addresses = [literal] if literal else [_address(it) for it in found.split(", ") if it]
        if any(it.is_unspecified for it in addresses):
            return "Use 127.0.0.1." if self.may_allow("127.0.0.1", port) else ""
        if not all(map(self._is_advisable, addresses)):
            return ""
        entry = urls.authority_of(host, port)
        if self.entries and self != Targets.parse(LOOPBACK_TARGETS):
            return f"Add {entry} to ALLOWED_TARGETS."
        kept = f"{LOOPBACK_TARGETS}," if self.entries else ""
        return f"Set ALLOWED_TARGETS={kept}{entry} to allow them."

    @property
    def _allows_loopback(self) -> bool:
        return any(
            entry.matches("localhost", it, entry.port or 0)
            for entry in self.entries
            for it in _LOOPBACK
        )

    def _is_advisable(self, address: Address) -> bool:
        """Return whether an operator may want to allow this address."""
        if address.is_loopback:
            return self._allows_loopback
        is_private = any(address in network for network in _PRIVATE)
        return is_public(address) or (is_private and address not in _METADATA)

    def may_allow(self, host: str, port: int) -> bool:
        """Return whether this host is allowed for some address that it may resolve to."""
        if self.allows_unresolved(host, port):
            return True
        return _literal(host) is None and any(
            entry.network is not None for entry in self.entries if entry.port in (None, port)
        )

    def allows_unresolved(self, host: str, port: int) -> bool:
        """Return whether webhooks may go to this host if nobody here knows its addresses."""
        address = _literal(host)
        if address is not None:
            return self.allows(host, address, port)
        return port in _PUBLIC_PORTS or any(
            entry.matches(host, None, port) for entry in self.entries
        )

    def allows(self, host: str, address: Address, port: int) -> bool:
        """Return whether webhooks may go to this host at `address`, which it resolves to."""
        if any(entry.matches(host, address, port) for entry in self.entries):
            return True
        return port in _PUBLIC_PORTS and is_public(address)


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet, not in a private or special network.

    NAT64 sends `64:ff9b::/96` on to the IPv4 address inside it, so that address decides.
    """
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if not address.is_global or any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, IPv4Address):
        return True
    # All other prefixes are special; most of them embed an IPv4 address.
    return address in _UNICAST_IPV6 and (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP


@lru_cache(1024)  # called for each create and each webhook
def _literal(host: str) -> Address | None:
    """Return the address that a host stands for without name resolution, or None."""
    if host == "localhost" or host.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        # 127.1, 0x7f000001, 2130706433 look like names, but resolvers read them as addresses.
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _address(text: str) -> Address:
    return ip_address(text.partition("%")[0])


def _entry(text: str) -> Entry:
    try:
        return Entry(None, ip_network(text.removeprefix("[").removesuffix("]")), None)
    except ValueError:
        host, _, port = text.rpartition(":")
    if not _PORT.fullmatch(port):
        host, port = text, ""
    if not (port == "" or 0 < int(port) < 65536) or not host:
        raise OperatorError(
            f"ALLOWED_TARGETS has an entry without a valid host and port: {text!r}."
        )
    number = int(port) if port else None
    try:
        return Entry(None, ip_network(host.removeprefix("[").removesuffix("]")), number)
    except ValueError as error:
        name = urls.ascii_name(host)
        if name is None:
            raise OperatorError(
                f"ALLOWED_TARGETS has an invalid entry {text!r}: {error}."
            ) from None
    return Entry(name, None, number)
