"""The error of an exchange that got no response."""

import ssl

import requests

# OpenSSL's reasons for bytes that are not TLS records: most often an HTTP response in plain text.
_NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)

# OpenSSL's X509_V_ERR_… codes for a certificate whose issuer is not among the authorities.
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})

MAX_DETAIL = 200
"""Characters of an error's detail."""


class ExchangeError(requests.RequestException):
    """An exchange that got no response; `error` is its class, as in `Outcome.error`."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail.strip()[:MAX_DETAIL])
        self.error = error

    @classmethod
    def of(cls, error: Exception) -> "ExchangeError":
        """Classify any exception that an exchange may raise."""
        if isinstance(error, cls):
            return error
        if isinstance(error, ssl.SSLError):
            return cls("tls", _tls_detail(error))
        return cls("connect", describe(error))


class ConnectionEnded(ExchangeError):
    """The connection ended before the receiver sent a byte."""


def timed_out() -> ExchangeError:
    return ExchangeError("timeout", "no response in time")


def describe(error: Exception) -> str:
    """Return the operating system's words for an error, OpenSSL's, or Python's."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()  # without function, file and line
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _tls_detail(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"certificate verify failed: {error.verify_message}"
        if error.verify_code in _UNKNOWN_AUTHORITY:
            text = f"{text}. To trust its authority, add it to CA_BUNDLE"
        return text
    if error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        return "the receiver requires a client certificate: certificate required. Set CLIENT_CERT"
    if error.reason in _NOT_TLS:
        return "the port does not speak TLS; does the URL need http:// instead of https://?"
    if isinstance(error, ssl.SSLEOFError):
        return "the receiver hung up during the TLS handshake; does its port speak TLS?"
    return describe(error)
