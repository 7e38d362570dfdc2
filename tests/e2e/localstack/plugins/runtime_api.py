"""Lambda's Runtime API: where the process of a function asks for its events and leaves its answers.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple


class Answer(NamedTuple):
    """What a function returned, or the document of its error: JSON."""

    document: bytes
    is_error: bool


@dataclass(frozen=True)
class Invocation:
    """An event with what the API's headers say of it, and what comes of it."""

    headers: dict[str, str]
    event: bytes
    answer: Future[Answer] = field(default_factory=Future)


class RuntimeApi(ThreadingHTTPServer):
    """Serves one process, on a free loopback port.

    `initialized` is an empty answer once the process asks for an event, or the error that kept it
    from doing so.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.initialized: Future[Answer] = Future()
        self.next: SimpleQueue[Invocation | None] = SimpleQueue()
        self.current: Invocation | None = None
        Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a process that is killed breaks its connections off."""

    def close(self) -> None:
        """Serve no more; a request that still waits for an event gets none."""
        self.next.put(None)
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RuntimeApi

    def do_GET(self) -> None:
        """Give the next event, as soon as there is one."""
        if not self.server.initialized.done():
            self.server.initialized.set_result(Answer(b"", is_error=False))
        self.server.current = self.server.next.get()
        if self.server.current:
            self._send(200, self.server.current.event, self.server.current.headers)

    def do_POST(self) -> None:
        """Take the answer to the current event, or the error of the start."""
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
