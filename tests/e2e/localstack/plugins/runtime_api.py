"""Lambda's Runtime API: a function's process fetches events here and posts its results.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple


class Answer(NamedTuple):
    """A function's result or its error, as a JSON document."""

    document: bytes
    is_error: bool


@dataclass(frozen=True)
class Invocation:
    """An event, the headers sent with it, and its future result."""

    headers: dict[str, str]
    event: bytes
    answer: Future[Answer] = field(default_factory=Future)


class RuntimeApi(ThreadingHTTPServer):
    """Serves one process on a free loopback port.

    `initialized` is an empty result once the process asks for an event, or the error of its start.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.initialized: Future[Answer] = Future()
        self.next: SimpleQueue[Invocation | None] = SimpleQueue()
        self.current: Invocation | None = None
        Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: a killed process breaks its connections."""

    def close(self) -> None:
        """Stop serving; a pending request for an event ends without one."""
        self.next.put(None)
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RuntimeApi

    def do_GET(self) -> None:
        """Wait for the next event and send it."""
        if not self.server.initialized.done():
            self.server.initialized.set_result(Answer(b"", is_error=False))
        self.server.current = self.server.next.get()
        if self.server.current:
            self._send(200, self.server.current.event, self.server.current.headers)

    def do_POST(self) -> None:
        """Receive the result of the current event, or the error of the start."""
        document = self.rfile.read(int(self.headers["Content-Length"]))
        current = self.server.current
        (current.answer if current else self.server.initialized).set_result(
            Answer(document, is_error=self.path.endswith("/error"))
        )
        self._send(202, b"{}", {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")  # awslambdaric crashes without it
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
