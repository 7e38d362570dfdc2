"""TLS towards receivers: the authorities that are trusted, and our own certificate."""

import ssl

import certifi

from chalicelib.core.errors import OperatorError
from chalicelib.webhook.errors import describe

_CIPHERS = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!eNULL:!SHA1:!AESCCM"
"""Python's default without Diffie-Hellman in finite fields: there the receiver chooses the numbers,
and 10,000 bits block the thread for a second."""

MAX_RECORD_BYTES = 16 * 1024
"""Bytes in one record of TLS."""


def client_context(ca_bundle: str = "", client_cert: str = "") -> ssl.SSLContext:
    """Return a context that trusts certifi's authorities.

    `ca_bundle` is the path of a PEM file with more of them. `client_cert` is the path of a PEM file
    with a certificate and its key, for receivers that require one. Raises OperatorError.
    """
    context = ssl.create_default_context(cafile=certifi.where())
    # One rule for all versions of Python. 3.13 is strict about RFC 5280, which many private
    # authorities are not, and trusts an intermediate certificate in the bundle by itself.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_ciphers(_CIPHERS)
    try:
        setting = f"CA_BUNDLE={ca_bundle} must be a PEM file with certificates"
        if ca_bundle:
            context.load_verify_locations(ca_bundle)
        setting = f"CLIENT_CERT={client_cert} must be a PEM file with a certificate and its key"
        if client_cert:
            context.load_cert_chain(client_cert, password=_no_password)
            context.post_handshake_auth = True  # some receivers ask only for some paths
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = "one of them is missing" if "PEM lib" in str(error) else describe(error)
        raise OperatorError(f"{setting}: {reason}.") from None
    return context


class Tls:
    """TLS of one connection, without its socket.

    Received bytes stay readable after a failed send: a receiver may respond and hang up before it
    has read the request. An SSLSocket often reads nothing more then.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._arrived = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._to_send, server_hostname=host)

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def encrypted(self, data: bytes) -> bytes:
        """Return what is to be sent: `data`, after messages of TLS itself."""
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left) :]
        return self._to_send.read()

    def put(self, received: bytes) -> None:
        """Take bytes from the network; b"" is the end of the stream."""
        if received:
            self._arrived.write(received)
        else:
            self._arrived.write_eof()

    def take(self) -> bytes | None:
        """Return decrypted bytes, None if none are complete; b"" is the end of the stream."""
        try:
            return self._tls.read(MAX_RECORD_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLEOFError:  # many receivers hang up without a close_notify
            return b""


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    raise ValueError("the key is encrypted")
