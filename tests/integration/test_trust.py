"""Trust and the way out: CA_BUNDLE, CLIENT_CERT and PROXY."""

import base64
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from chalicelib.aws import bootstrap
from chalicelib.core.errors import NotConfigured, OperatorError
from chalicelib.core.retry import is_transient
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import Webhook, new_timer
from chalicelib.webhook.proxy import Proxy
from chalicelib.webhook.sender import WebhookSender
from chalicelib.webhook.tls import client_context
from standalone.settings import Settings
from tests.support.fakes import START, FakeSecrets
from tests.support.receivers import (
    NO_CONTENT,
    RECEIVER_TIMEOUT,
    FakeResolver,
    Recording,
    closing,
    post,
    post_to,
    read_head,
    receiver,
    server_context,
)

TARGETS = Targets.parse(LOOPBACK_TARGETS)


def pem(path: Path, *blobs: trustme.Blob) -> str:
    for blob in blobs:
        blob.write_to_path(str(path), append=True)
    return str(path)


def trusting(ca_bundle: str = "", client_cert: str = "") -> WebhookSender:
    return WebhookSender(TARGETS, client_context(ca_bundle, client_cert))


# CA_BUNDLE


def test_ca_bundle_adds_authorities(
    authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    """A receiver with a certificate of a private authority gets its webhooks."""
    bundle = pem(tmp_path / "ca.pem", authority.cert_pem)
    assert post_to(trusting(bundle), closing(NO_CONTENT), tls=tls).status == 204


def test_unknown_authority_error_names_the_setting(tls: ssl.SSLContext) -> None:
    """The error says how to trust the authority."""
    outcome = post_to(trusting(), closing(NO_CONTENT), tls=tls)
    assert outcome.error == "tls"
    assert "CA_BUNDLE" in outcome.detail


def test_an_intermediate_may_be_trusted_by_itself(authority: trustme.CA, tmp_path: Path) -> None:
    """The bundle need not hold the root, on any version of Python."""
    intermediate = authority.create_child_ca()
    bundle = pem(tmp_path / "ca.pem", intermediate.cert_pem)
    context = server_context(intermediate, "127.0.0.1")
    assert post_to(trusting(bundle), closing(NO_CONTENT), tls=context).status == 204


def test_authorities_need_not_follow_rfc_5280_strictly() -> None:
    """Python 3.13 checks strictly by default; many private authorities would fail."""
    assert not client_context().verify_flags & ssl.VERIFY_X509_STRICT


# CLIENT_CERT


def asking(authority: trustme.CA) -> ssl.SSLContext:
    """Return a receiver's side of TLS that requires a client certificate."""
    context = server_context(authority, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return context


def test_client_certificate_is_presented(authority: trustme.CA, tmp_path: Path) -> None:
    """A receiver that requires a client certificate gets it."""
    bundle = pem(tmp_path / "ca.pem", authority.cert_pem)
    cert = authority.issue_cert("timers.example")
    client = pem(tmp_path / "client.pem", cert.private_key_pem, *cert.cert_chain_pems)
    sender = trusting(bundle, client)
    assert post_to(sender, closing(NO_CONTENT), tls=asking(authority)).status == 204


def test_missing_client_certificate_is_a_tls_error(authority: trustme.CA, tmp_path: Path) -> None:
    """The error quotes the receiver's alert."""
    bundle = pem(tmp_path / "ca.pem", authority.cert_pem)
    outcome = post_to(trusting(bundle), closing(NO_CONTENT), tls=asking(authority))
    assert outcome.error == "tls"
    assert "certificate required" in outcome.detail


def test_client_certificate_may_be_asked_for_later(authority: trustme.CA, tmp_path: Path) -> None:
    """TLS 1.3: some receivers ask once they have read the path."""
    bundle = pem(tmp_path / "ca.pem", authority.cert_pem)
    cert = authority.issue_cert("timers.example")
    client = pem(tmp_path / "client.pem", cert.private_key_pem, *cert.cert_chain_pems)
    context = asking(authority)
    context.post_handshake_auth = True  # so not in the handshake
    seen = []

    def handle(conn: socket.socket) -> None:
        assert isinstance(conn, ssl.SSLSocket)
        read_head(conn)
        conn.verify_client_post_handshake()
        conn.do_handshake()
        conn.settimeout(0.1)
        end = time.monotonic() + RECEIVER_TIMEOUT
        while not conn.getpeercert() and time.monotonic() < end:
            with suppress(TimeoutError):
                conn.recv(1)  # reads the certificate; no other bytes come
        seen.append(conn.getpeercert())
        conn.sendall(NO_CONTENT)

    assert post_to(trusting(bundle, client), handle, tls=context).status == 204
    assert seen[0]


def test_receivers_choose_no_diffie_hellman_group() -> None:
    """A group of 10,000 bits would keep the thread busy for a second."""
    names = [cipher["name"] for cipher in client_context().get_ciphers()]
    assert names
    assert not [name for name in names if name.startswith("DHE")]


# Errors of settings


@pytest.mark.parametrize("setting", ["CA_BUNDLE", "CLIENT_CERT"])
@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_unusable_file_is_an_error_at_the_start(
    setting: str, content: str | None, tmp_path: Path
) -> None:
    """The error names the setting and the file."""
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OperatorError, match=f"{setting}={path}"):
        Settings.read({setting: str(path)})


def test_encrypted_key_is_an_error_at_the_start(authority: trustme.CA, tmp_path: Path) -> None:
    """OpenSSL does not ask for a password on the terminal."""
    cert = authority.issue_cert("timers.example")
    key = load_pem_private_key(cert.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    client = pem(tmp_path / "client.pem", *cert.cert_chain_pems, trustme.Blob(encrypted))
    with pytest.raises(OperatorError, match="encrypted"):
        Settings.read({"CLIENT_CERT": client})


@pytest.mark.parametrize(
    "text",
    [
        "proxy:3128",
        "https://proxy:3128",
        "socks5://proxy",
        "http://",
        "http://a/b",
        "http://a:0",
        "http://proxy",
        "x",
    ],
)
def test_invalid_proxy_is_an_error_at_the_start(text: str) -> None:
    """The error does not quote the value, which may hold a password."""
    with pytest.raises(OperatorError, match="PROXY") as error:
        Settings.read({"PROXY": text})
    assert text not in str(error.value).replace(
        "an http:// URL with a port, such as http://proxy.example:3128", ""
    )


@pytest.mark.parametrize("setting", ["CA_BUNDLE", "CLIENT_CERT", "PROXY"])
def test_unusable_setting_on_aws_fails_no_timer(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent, so the attempt does not count: the timer waits for a better deployment."""
    monkeypatch.setenv(setting, "/nowhere.pem")
    sender = bootstrap._LazySender(TARGETS, FakeSecrets())
    timer = new_timer("id-1", "default", Webhook(url="http://127.0.0.1:9/"), START, START)
    with pytest.raises(NotConfigured, match=setting):
        sender.send(timer, START)


# PROXY


class Tunnel:
    """A proxy that answers CONNECT, and is the receiver behind itself."""

    def __init__(self, tls: ssl.SSLContext, answer: bytes = b"HTTP/1.1 200 Connected\r\n\r\n"):
        self.tls, self.answer = tls, answer
        self.asked: list[str] = []
        self.receiver = Recording()

    def __call__(self, conn: socket.socket) -> None:
        self.asked = read_head(conn).decode().split("\r\n")
        conn.sendall(self.answer)
        if b"200" in self.answer:
            with self.tls.wrap_socket(conn, server_side=True) as wrapped:
                self.receiver(wrapped)


def through(
    port: int, ca_bundle: str = "", credentials: str = "", targets: str = ""
) -> WebhookSender:
    """Return a sender that uses the proxy on this port."""
    proxy = Proxy.parse(f"http://{credentials}127.0.0.1:{port}")
    return WebhookSender(Targets.parse(targets), client_context(ca_bundle), proxy=proxy)


def test_https_goes_through_a_tunnel(
    authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path, resolver: FakeResolver
) -> None:
    """The proxy sees the receiver's name and port; the certificate is checked for that name."""
    tunnel = Tunnel(tls)
    bundle = pem(tmp_path / "ca.pem", authority.cert_pem)
    with receiver(tunnel) as running:
        sender = through(running.port, bundle, "me:p%40ss@")
        outcome = post(sender, "https://receiver.example/hook", body="hello")
    assert outcome.status == 204
    token = base64.b64encode(b"me:p@ss").decode()
    assert tunnel.asked[:3] == [
        "CONNECT receiver.example:443 HTTP/1.1",
        "Host: receiver.example:443",
        f"Proxy-Authorization: Basic {token}",
    ]
    assert tunnel.receiver.heads[0].startswith(b"POST /hook HTTP/1.1\r\nHost: receiver.example\r\n")
    assert b"Proxy-Authorization" not in tunnel.receiver.heads[0]
    assert tunnel.receiver.bodies == [b"hello"]
    assert resolver.lookups == []


def test_certificate_is_checked_within_the_tunnel(
    authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    """A proxy can't impersonate a receiver."""
    bundle = pem(tmp_path / "ca.pem", authority.cert_pem)
    with receiver(Tunnel(tls)) as running:
        outcome = post(through(running.port, bundle), "https://other.example/")
    assert outcome.error == "tls"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 Who\r\n\r\n", b"HTTP/1.1 503 No\r\n\r\nsorry"])
def test_refused_tunnel_is_a_connect_error(answer: bytes, tls: ssl.SSLContext) -> None:
    """The proxy's status is in the detail; it is no status of the receiver."""
    with receiver(Tunnel(tls, answer)) as running:
        outcome = post(through(running.port), "https://receiver.example/")
    assert (outcome.status, outcome.error) == (None, "connect")
    assert answer[9:12].decode() in outcome.detail


def test_http_is_passed_on_by_the_proxy(resolver: FakeResolver) -> None:
    """The request line has the whole URL, and nobody here resolves its name."""
    recording = Recording()
    with receiver(recording) as running:
        outcome = post(through(running.port, credentials="me:x@"), "http://receiver.example/a?b")
    assert outcome.status == 204
    lines = recording.heads[0].decode().split("\r\n")
    assert lines[:2] == ["POST http://receiver.example/a?b HTTP/1.1", "Host: receiver.example"]
    assert "Proxy-Authorization: Basic bWU6eA==" in lines
    assert resolver.lookups == []


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/", "http://127.0.0.1/", "https://[::1]/", "http://localhost/",
        "http://2130706433/", "https://169.254.169.254/", "http://receiver.example:3000/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("targets", ["", "172.16.0.0/12,other.example"])
def test_proxy_is_not_asked_for_forbidden_targets(url: str, targets: str) -> None:
    """Addresses and ports in the URL are checked. Networks allow no names: nobody resolves them."""
    with receiver(closing(NO_CONTENT)) as running:
        outcome = post(through(running.port, targets=targets), url)
        assert running.connections == 0
    assert outcome.error == "refused target"


@pytest.mark.parametrize("targets", ["receiver.example", "receiver.example:3000"])
def test_proxy_is_asked_for_allowed_names(targets: str) -> None:
    """An entry with the name allows its ports."""
    with receiver(closing(NO_CONTENT)) as running:
        sender = through(running.port, targets=targets)
        assert post(sender, "http://receiver.example:3000/").status == 204


def test_proxy_that_wants_a_password_fails_no_timer() -> None:
    """A 407 is no answer of the receiver, so the attempt is retried."""
    with receiver(closing(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n")) as running:
        outcome = post(through(running.port), "http://receiver.example/")
    assert is_transient(outcome)
    assert "407" in outcome.detail


def test_unreachable_proxy_is_named_without_its_password() -> None:
    """The error says that it is the proxy that can't be reached."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        outcome = post(through(port, credentials="me:secret@"), "https://receiver.example/")
    assert outcome.error == "connect"
    assert f"proxy 127.0.0.1:{port}" in outcome.detail
    assert "secret" not in outcome.detail
