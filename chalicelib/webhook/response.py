"""The response to a request, parsed as its bytes arrive. No sockets.

The status line decides the outcome. Faults after it only end the reading.
"""

from http import HTTPStatus
from typing import Any

import httptools

from chalicelib.webhook.errors import ExchangeError

_WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)

MAX_QUOTE = 100
"""Bytes that the error quotes from a response that is not HTTP."""


class ResponseParser:
    """Parses one final response. Interim ones (1xx) are skipped, except 101, which is final."""

    def __init__(self, max_body: int) -> None:
        """Keep at most `max_body` bytes of the body."""
        self.status: int | None = None
        """The final status, once its line has arrived."""
        self.headers: list[tuple[str, str]] = []
        """Names and values that have arrived, in order, decoded as Latin-1."""
        self.body = b""
        """The beginning of the body, as it was sent: not decompressed."""
        self.is_finished = False
        """Whether no more bytes are needed, or none can be understood."""
        self._max_body = max_body
        self._beginning = b""
        self._ends_line = False
        self._has_head = False
        self._is_complete = False
        self._is_doubtful = False
        self._parser: Any = httptools.HttpResponseParser(self)
        # Some receivers end lines with LF alone, fold headers, or pad the sizes of chunks.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_keep_alive=True,  # an interim response may say `Connection: close`
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )

    @property
    def is_reusable(self) -> bool:
        """Whether the connection may carry another exchange.

        True if the response ended beyond doubt, and nothing followed it.
        """
        return self._is_complete and not self._is_doubtful

    def feed(self, data: bytes) -> None:
        """Parse the next bytes; b"" is the end of the stream.

        Raises ExchangeError if no status is known and the bytes are not HTTP.
        """
        if not data:
            self.end()
            return
        self._ends_line = data.endswith(b"\n")
        if self.status is None:
            self._beginning += data[: MAX_QUOTE - len(self._beginning)]
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.is_finished = self._is_doubtful = True
            if not isinstance(error, httptools.HttpParserInvalidStatusError):
                self._note_status()  # of a line without a reason phrase
            if self.status is None:
                raise ExchangeError("connect", f"not valid HTTP: {self._first_line()}") from None
        finally:
            if self.is_finished:
                self._parser = None  # ends the reference cycle, so nothing is left to the collector

    def end(self) -> None:
        """Parse the end of the stream. Raises ExchangeError as `feed` does."""
        if self.is_finished:
            return
        if self._ends_line and not self._has_head:
            self.feed(b"\r\n")  # completes the last header
        elif self._beginning and self.status is None:
            self.feed(b"\r\n\r\n")  # completes a status line that ends after its number
        self.is_finished = self._is_doubtful = True
        self._parser = None

    def _first_line(self) -> str:
        return self._beginning.strip().partition(b"\n")[0].decode("latin-1")

    def _note_status(self) -> None:
        # The parser skips `on_status` if the line has no reason phrase.
        status = self._parser.get_status_code()
        is_final = status >= HTTPStatus.OK or status == HTTPStatus.SWITCHING_PROTOCOLS
        if self.status is None and is_final:
            self.status = status

    # The parser calls these:

    def on_message_begin(self) -> None:
        if self.status is None:
            self.headers = []  # an interim response had the earlier ones
        else:
            self._is_doubtful = True

    def on_status(self, _: bytes) -> None:
        self._note_status()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._note_status()
        if not self._has_head:
            self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._note_status()
        self._has_head = self.status is not None
        self.is_finished |= self._has_head and self._max_body == 0

    def on_body(self, data: bytes) -> None:
        if self._is_complete:
            return  # the body of another response
        room = self._max_body - len(self.body)
        self.body += data[:room]
        self._is_doubtful |= len(data) > room
        self.is_finished |= len(data) >= room

    def on_message_complete(self) -> None:
        if self.status is None or self._is_complete:
            return
        self.is_finished = self._is_complete = True
        if not self._parser.should_keep_alive() or self._declares_forbidden_body():
            self._is_doubtful = True

    def _declares_forbidden_body(self) -> bool:
        if self.status not in _WITHOUT_BODY:
            return False
        headers = {name.lower(): value for name, value in self.headers}
        return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
