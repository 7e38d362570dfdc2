"""A Chalice application that can handle requests concurrently, as the standalone server does."""

from contextvars import ContextVar
from typing import Any

from chalice.app import Chalice, Request

_request: ContextVar[Request | None] = ContextVar("request", default=None)
_context: ContextVar[Any] = ContextVar("context", default=None)


class ConcurrentChalice(Chalice):
    """Keeps the current request for each greenlet or thread; Chalice keeps one for all."""

    @property
    def current_request(self) -> Request | None:
        return _request.get()

    @current_request.setter
    def current_request(self, request: Request | None) -> None:
        _request.set(request)

    @property
    def lambda_context(self) -> Any:
        return _context.get()

    @lambda_context.setter
    def lambda_context(self, context: Any) -> None:
        _context.set(context)
