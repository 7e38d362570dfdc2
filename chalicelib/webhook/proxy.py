"""The HTTP proxy that webhooks go through, in networks without another way out."""

from base64 import b64encode
from typing import NamedTuple
from urllib.parse import unquote

from chalicelib.core import urls
from chalicelib.core.errors import OperatorError
from chalicelib.core.urls import Url


class Proxy(NamedTuple):
    """An HTTP proxy. It resolves the names of receivers, so their addresses can't be checked."""

    host: str
    port: int
    headers: dict[str, str]
    """The credentials, as headers of a request to the proxy."""

    @classmethod
    def parse(cls, text: str) -> "Proxy | None":
        """Parse PROXY: `http://proxy.example:3128`, with `user:password@` if it needs them.

        Returns None for an empty text. Raises OperatorError.
        """
        if not text:
            return None
        scheme, _, rest = text.partition("://")
        credentials, _, place = rest.rpartition("@")
        try:
            url = urls.parse(f"{scheme}://{place}")
        except ValueError:
            url = None
        has_port = place.rstrip("/")[-1:].isdigit() and ":" in place.rpartition("]")[2]
        if url is None or url.scheme != "http" or url.target != "/" or not has_port:
            # Not quoted: it may hold a password.
            raise OperatorError(
                "PROXY must be an http:// URL with a port, such as http://proxy.example:3128."
            )
        return cls(url.host, url.port, _headers(credentials))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def connect_request(self, url: Url) -> bytes:
        """Return the request for a tunnel to the receiver."""
        receiver = urls.authority_of(url.host, url.port)
        headers = {"Host": receiver, **self.headers}
        lines = [f"CONNECT {receiver} HTTP/1.1", *(f"{name}: {it}" for name, it in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()


def _headers(credentials: str) -> dict[str, str]:
    if not credentials:
        return {}
    token = b64encode(unquote(credentials).encode()).decode()
    return {"Proxy-Authorization": f"Basic {token}"}
