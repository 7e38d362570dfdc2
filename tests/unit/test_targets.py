"""The SSRF allow-list: tables of URLs and addresses that webhooks may and may not go to."""

import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chalicelib.core.errors import InvalidRequest, OperatorError
from chalicelib.core.targets import (
    LOOPBACK_TARGETS,
    Entry,
    Targets,
    is_public,
)

NO_ENTRIES = Targets()


def refusal(url: str, targets: Targets = NO_ENTRIES) -> InvalidRequest:
    """Return the error of a URL that is refused."""
    with pytest.raises(InvalidRequest) as caught:
        targets.check_url(url, "/url")
    return caught.value


# ALLOWED_TARGETS


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", []),
        (" , ,", []),
        ("internal.example", [Entry("internal.example", None, None)]),
        ("Internal.Example.:8080", [Entry("internal.example", None, 8080)]),
        ("bücher.example", [Entry("xn--bcher-kva.example", None, None)]),
        ("10.0.0.0/8", [Entry(None, ip_network("10.0.0.0/8"), None)]),
        ("10.0.0.0/8:8080", [Entry(None, ip_network("10.0.0.0/8"), 8080)]),
        ("10.1.2.3", [Entry(None, ip_network("10.1.2.3"), None)]),
        ("10.1.2.3:443", [Entry(None, ip_network("10.1.2.3"), 443)]),
        ("::1", [Entry(None, ip_network("::1"), None)]),
        ("[::1]", [Entry(None, ip_network("::1"), None)]),
        ("[::1]:9000", [Entry(None, ip_network("::1"), 9000)]),
        ("fd00::/8", [Entry(None, ip_network("fd00::/8"), None)]),
        ("[fd00::/8]:65535", [Entry(None, ip_network("fd00::/8"), 65535)]),
        (
            " a.example:1,, 10.0.0.0/8 ,",
            [Entry("a.example", None, 1), Entry(None, ip_network("10.0.0.0/8"), None)],
        ),
    ],
)
def test_parses_entries(text: str, entries: list[Entry]) -> None:
    """Entries are hosts or networks with an optional port; empty entries are ignored."""
    assert Targets.parse(text).entries == tuple(entries)


@pytest.mark.parametrize(
    "entry",
    [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.0/8:0",
        "[fd00::]/8:80",
        "[::1]:65536",
        "[::1]:http",
        "host:0",
        "host:65536",
        "host:http",
        "host:８０",
        pytest.param("host:" + "9" * 5000, id="host:999…"),
        "host:",
        ":80",
        "8080",
        "http://host",
        "host/path",
        "*.example.com",
        "two words",
        "a..b",
        "user@host",
        "☃.example",
        "a" * 64,
    ],
)
def test_rejects_invalid_entries(entry: str) -> None:
    """The error names the setting and quotes the invalid entry."""
    with pytest.raises(OperatorError) as caught:
        Targets.parse(f"localhost, {entry}")
    message = str(caught.value)
    assert "ALLOWED_TARGETS" in message
    assert repr(entry) in message
    assert "\n" not in message


@settings(deadline=None)
@given(st.text() | st.text("[]:/.,0123456789af"))
def test_any_text_is_parsed_or_raises_operator_error(text: str) -> None:
    """No value of ALLOWED_TARGETS raises another exception."""
    with suppress(OperatorError):
        Targets.parse(text)


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com:80/",
        "http://example.com:443/{id}",
        "https://{id}.example.com./",
        "https://bücher.example/",
        "http://8.8.8.8/",
        "https://[2606:4700:4700::1111]:80/",
        "https://[64:ff9b::808:808]/",
    ],
)
def test_accepts_public_urls(url: str) -> None:
    """Names and public addresses are allowed over http and https on ports 80 and 443."""
    NO_ENTRIES.check_url(url, "/url")


@pytest.mark.parametrize("url", ["", "ftp://8.8.8.8/", "http://user@8.8.8.8/", "http://[::1/"])
def test_rejects_malformed_urls(url: str) -> None:
    """The error has the pointer to the URL."""
    assert refusal(url).pointer == "/url"


INNER_HOSTS = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "0x7f000001",
    "0X7F000001",
    "0x7f.1",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "127。0。0。1",
    "１２７.0.0.1",
    "localhost",
    "LOCALHOST",
    "LocalHost.",
    "ｌｏｃａｌｈｏｓｔ",
    "foo.localhost",
    "169.254.169.254",
    "2852039166",
    "168.63.129.16",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "0.0.0.0",  # noqa: S104  # not to bind to, but to refuse
    "0",
    "0.1.2.3",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]",
    "[::ffff:8.8.8.8]",
    "[::127.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::1]",
    "[2002:7f00:1::]",
    "[2001::1]",
    "[2001:0:7f00:1::]",
    "[2001:4860::5efe:7f00:1]",
    "[2001:4860::200:5efe:7f00:1]",
    "[2001:10::1]",
    "[2001:20::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[5f00::1]",
    "[100::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
]


@pytest.mark.parametrize("host", INNER_HOSTS)
def test_rejects_inner_hosts(host: str) -> None:
    """A literal address that is not public is refused, however it is written."""
    error = refusal(f"http://{host}/hook")
    assert error.pointer == "/url"
    assert " on port 80 are not allowed." in str(error)


PRIVATE_HOSTS = [
    "10.0.0.1",
    "10.255.255.255",
    "167772161",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "[fc00::1]",
    "[FD12::1]",
]


@pytest.mark.parametrize("host", [*PRIVATE_HOSTS, "backend", "8.8.8.8", "[2606:4700::1111]"])
def test_error_names_the_setting_that_allows_the_url(host: str) -> None:
    """The setting that the error names allows exactly this host and port."""
    url = f"http://{host}:3000/hook"
    (suggested,) = re.findall(r"ALLOWED_TARGETS=(\S+) ", str(refusal(url)))
    Targets.parse(suggested).check_url(url, "/url")
    assert refusal(f"http://{host}:3001/hook", Targets.parse(suggested))


@pytest.mark.parametrize("host", sorted(set(INNER_HOSTS) - set(PRIVATE_HOSTS)))
@pytest.mark.parametrize("targets", ["", "internal.example"])
def test_no_error_tells_how_to_open_the_machine_itself(host: str, targets: str) -> None:
    """Loopback, link-local and special addresses stay closed, in every spelling."""
    assert "ALLOWED_TARGETS" not in str(refusal(f"http://{host}/", Targets.parse(targets)))


@pytest.mark.parametrize(
    ("targets", "url", "setting"),
    [
        ("", "http://backend:3000/", "ALLOWED_TARGETS=backend:3000"),
        ("", "http://10.0.0.1/", "ALLOWED_TARGETS=10.0.0.1:80"),
        ("", "https://[fd00::1]/", "ALLOWED_TARGETS=[fd00::1]:443"),
        (LOOPBACK_TARGETS, "http://10.0.0.1/", f"ALLOWED_TARGETS={LOOPBACK_TARGETS},10.0.0.1:80"),
        ("secret.example:1", "http://db:1/", "Add db:1 to ALLOWED_TARGETS."),
        ("secret.example:1", "https://[fd00::1]/", "Add [fd00::1]:443 to ALLOWED_TARGETS."),
        ("localhost:1", "http://127.0.0.1:2/", "Add 127.0.0.1:2 to ALLOWED_TARGETS."),
        ("[::1]:1", "http://localhost:2/", "Add localhost:2 to ALLOWED_TARGETS."),
        (LOOPBACK_TARGETS, "http://0.0.0.0/", "Use 127.0.0.1."),
        (LOOPBACK_TARGETS, "http://[::]:3000/", "Use 127.0.0.1."),
    ],
)
def test_error_keeps_the_other_entries(targets: str, url: str, setting: str) -> None:
    """The advice can be copied, and does not show the operator's entries."""
    error = str(refusal(url, Targets.parse(targets)))
    assert f" {setting}" in error
    assert "secret" not in error


@pytest.mark.parametrize(
    ("found", "is_advised"),
    [
        ("10.0.0.5", True),
        ("10.0.0.5, fd00::1", True),
        ("127.0.0.1", False),
        ("10.0.0.5, 169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
    ],
)
def test_a_name_is_advised_by_the_addresses_it_resolves_to(found: str, is_advised: bool) -> None:
    """The error shows the addresses, and how to allow the name if all of them are private."""
    error = NO_ENTRIES.refusal("db.example", 5432, found)
    assert found in error
    assert ("ALLOWED_TARGETS=db.example:5432 " in error) is is_advised


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "[2606:4700:4700::1111]"])
@pytest.mark.parametrize("port", [1, 22, 79, 81, 444, 8080, 65535])
def test_rejects_other_ports(host: str, port: int) -> None:
    """Ports other than 80 and 443 are refused even on public hosts; the error names the port."""
    assert f" on port {port} are not allowed." in str(refusal(f"http://{host}:{port}/"))


@settings(deadline=None)
@given(
    st.text()
    | st.text().map("http://{}".format)
    | st.text("[]:%.@/v1fx。").map("https://{}".format)
    | st.tuples(st.text(), st.text()).map("http://{0[0]}.example:{0[1]}/".format)
)
@example("http://[")
@example("http://xn--\u0660")
@example("http://\u2100.example")
def test_any_text_is_a_url_or_raises_invalid_request(url: str) -> None:
    """No text raises another exception."""
    with suppress(InvalidRequest):
        Targets.parse(LOOPBACK_TARGETS).check_url(url, "/url")


# URLs that ALLOWED_TARGETS adds


@pytest.mark.parametrize(
    ("targets", "url"),
    [
        ("internal.example", "http://internal.example:8080/"),
        ("internal.example", "http://INTERNAL.example.:22/"),
        ("INTERNAL.EXAMPLE.", "http://internal.example:8080/"),
        ("internal.example:8080", "http://internal.example:8080/"),
        ("bücher.example", "http://BÜCHER.example:8080/"),
        ("bücher.example", "http://xn--bcher-kva.example:8080/"),
        ("localhost:8080", "http://localhost:8080/"),
        ("10.0.0.0/8", "http://10.1.2.3:9000/"),
        ("10.0.0.0/8", "http://167838211:9000/"),
        ("10.0.0.0/8:9000", "http://10.1.2.3:9000/"),
        ("10.1.2.3", "http://10.1.2.3/"),
        ("127.0.0.0/8", "http://localhost:8080/"),
        ("[::1]:9000", "http://[::1]:9000/"),
        ("fd00::/8", "http://[fd12::1]:9000/"),
        ("64:ff9b::/96", "http://[64:ff9b::a00:1]:9000/"),
        (LOOPBACK_TARGETS, "http://127.0.0.1:8000/"),
        (LOOPBACK_TARGETS, "http://127.9.9.9:1/"),
        (LOOPBACK_TARGETS, "http://localhost:8000/"),
        (LOOPBACK_TARGETS, "http://[::1]:8000/"),
        # This name may resolve to an address in the network.
        ("10.0.0.0/8", "http://internal.example:8080/"),
        ("10.0.0.0/8:8080", "http://internal.example:8080/"),
    ],
)
def test_accepts_urls_that_an_entry_may_allow(targets: str, url: str) -> None:
    """The host may be written in any form."""
    Targets.parse(targets).check_url(url, "/url")


@pytest.mark.parametrize(
    ("targets", "url"),
    [
        ("internal.example", "http://other.example:8080/"),
        ("internal.example", "http://sub.internal.example:8080/"),
        ("internal.example", "http://internal.example.com:8080/"),
        ("internal.example", "http://10.0.0.1/"),
        ("internal.example:8080", "http://internal.example:8081/"),
        ("localhost:8080", "http://localhost/"),
        ("localhost:8080", "http://foo.localhost:8080/"),
        ("localhost:8080", "http://127.0.0.1:8080/"),
        ("10.0.0.0/8", "http://11.0.0.1:9000/"),
        ("10.0.0.0/8", "http://192.168.0.1/"),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/"),
        ("10.0.0.0/8", "http://[64:ff9b::10.1.2.3]/"),
        ("10.0.0.0/8:9000", "http://10.1.2.3/"),
        ("10.0.0.0/8:9000", "http://internal.example:8080/"),
        ("10.1.2.3", "http://10.1.2.4/"),
        ("[::1]:9000", "http://[::1]:9001/"),
        ("[::1]:9000", "http://[::2]:9000/"),
        ("fd00::/8", "http://[fc00::1]/"),
        (LOOPBACK_TARGETS, "http://8.8.8.8:8080/"),
        (LOOPBACK_TARGETS, "http://10.0.0.1/"),
        (LOOPBACK_TARGETS, "http://[::ffff:127.0.0.1]/"),
    ],
)
def test_an_entry_allows_nothing_else(targets: str, url: str) -> None:
    """An entry allows no other host, network or port."""
    assert "not allowed" in str(refusal(url, Targets.parse(targets)))


@pytest.mark.parametrize(
    ("targets", "host", "address", "port", "allowed"),
    [
        ("", "example.com", "8.8.8.8", 80, True),
        ("", "example.com", "8.8.8.8", 443, True),
        ("", "example.com", "8.8.8.8", 8080, False),
        ("", "example.com", "10.0.0.1", 443, False),
        ("", "example.com", "2606:4700::1", 443, True),
        ("", "example.com", "::1", 443, False),
        ("a.example", "a.example", "10.0.0.1", 8080, True),
        ("a.example", "b.example", "10.0.0.1", 8080, False),
        ("a.example", "b.example", "8.8.8.8", 8080, False),
        ("a.example:8080", "a.example", "10.0.0.1", 8080, True),
        ("a.example:8080", "a.example", "10.0.0.1", 80, False),
        ("10.0.0.0/8", "a.example", "10.0.0.1", 8080, True),
        ("10.0.0.0/8", "a.example", "11.0.0.1", 8080, False),
        ("10.0.0.0/8", "a.example", "192.168.0.1", 80, False),
        ("10.0.0.0/8:8080", "a.example", "10.0.0.1", 8080, True),
        ("10.0.0.0/8:8080", "a.example", "10.0.0.1", 443, False),
        ("fd00::/8", "a.example", "fd00::1", 8080, True),
        ("fd00::/8", "a.example", "fc00::1", 8080, False),
        ("0.0.0.0/0", "a.example", "::1", 80, False),
    ],
)
def test_allows_by_host_or_address(
    targets: str, host: str, address: str, port: int, allowed: bool
) -> None:
    """An attempt is allowed by an entry for its host or its address, on that entry's port."""
    assert Targets.parse(targets).allows(host, ip_address(address), port) is allowed


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "223.255.255.255",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2003::1",
        "2606:4700::1",
        "2a00:1450:4001:800::200e",
        "64:ff9b::8.8.8.8",
        "64:ff9b::172.32.0.0",
    ],
)
def test_public_addresses(address: str) -> None:
    """Addresses just outside special networks are public."""
    assert is_public(ip_address(address))


INNER_NETWORKS = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]


def inside(network: IPv4Network) -> st.SearchStrategy[int]:
    first, last = int(network.network_address), int(network.broadcast_address)
    return st.integers(first, last) | st.sampled_from((first, last))


@settings(deadline=None)
@given(st.sampled_from(INNER_NETWORKS).flatmap(inside))
def test_inner_addresses_are_not_public(number: int) -> None:
    """Private, loopback, link-local, multicast and reserved networks are not public."""
    assert not is_public(IPv4Address(number))


def prefixed(prefix: str, shift: int = 0) -> Callable[[int], IPv6Address]:
    return lambda number: IPv6Address(int(IPv6Address(prefix)) | number << shift)


EMBEDDED = {
    "mapped": prefixed("::ffff:0:0"),
    "compatible": prefixed("::"),
    "translated": prefixed("::ffff:0:0:0"),
    "nat64": prefixed("64:ff9b::"),
    "local nat64": prefixed("64:ff9b:1::"),
    "6to4": prefixed("2002::", shift=80),
    "teredo server": prefixed("2001::", shift=64),
    "teredo client": lambda number: prefixed("2001:0:808:808::")(number ^ 0xFFFFFFFF),
    "isatap": prefixed("2001:4860:1:2:0:5efe::"),
    "isatap, unique": prefixed("2a00:1450:1:2:200:5efe::"),
}


@pytest.mark.parametrize("form", EMBEDDED)
@settings(deadline=None)
@given(number=st.sampled_from(INNER_NETWORKS).flatmap(inside))
def test_embedded_inner_addresses_are_not_public(form: str, number: int) -> None:
    """An IPv6 address that embeds an inner IPv4 address is not public."""
    assert not is_public(EMBEDDED[form](number))
