"""The root, and the pages for browsers: the files in chalicelib/web, read at each request."""

from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

import msgspec
from chalice.app import Request, Response

from chalicelib.core.errors import NotFound
from chalicelib.http.responses import Headers, reference_below

_WEB = Path(__file__).parents[1] / "web"

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
"""Only these types are served, so the licences in the same folders are not."""

_PATHS = {
    "timers": "timers",
    "health": "health",
    "openapi": "openapi.json",
    "api_docs": "api-docs",
    "console": "console",
}
"""The paths that `GET /` names, by their purpose."""

_HEADERS: Headers = {
    # A page can contact only its own host, and can't be framed.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def root(request: Request) -> Response:
    """Redirect a browser to the console: 302. Tell other clients the paths: 200."""
    headers: Headers = {"Vary": "Accept"}
    if "text/html" in request.headers.get("accept", ""):
        headers["Location"] = reference_below(request, "console")
        return Response(body="", status_code=HTTPStatus.FOUND, headers=headers)
    paths = {name: reference_below(request, path) for name, path in _PATHS.items()}
    headers["Content-Type"] = "application/json"
    return Response(body=msgspec.json.encode(paths).decode(), headers=headers)


def page(name: str, request: Request) -> Response:
    """Return a page; redirect from a path with a trailing slash, which would break its links."""
    if request.context["path"].endswith("/"):
        return Response(body="", status_code=308, headers={"Location": f"../{name}"})
    return _read(name, "index.html", request)


def file(page: str, name: str, request: Request) -> Response:
    """Return a file that a page refers to; raise NotFound."""
    if name.endswith(".html"):
        raise NotFound
    return _read(page, name, request)


def contract() -> Response:
    """Return the OpenAPI document."""
    from chalicelib.http import openapi  # noqa: PLC0415  # would slow every cold start

    headers: Headers = {"Content-Type": "application/json", "Cache-Control": "no-cache"}
    return Response(body=openapi.document(), status_code=200, headers=headers)


def _read(page: str, name: str, request: Request) -> Response:
    """Return a file: 200, or 304 if the browser has it; raise NotFound."""
    files = {path.name: path for path in (_WEB / page).iterdir() if path.suffix in _MEDIA_TYPES}
    if name not in files:
        raise NotFound
    content = files[name].read_bytes()
    tag = f'"{sha256(content).hexdigest()}"'
    headers: Headers = {**_HEADERS, "Content-Type": _MEDIA_TYPES[files[name].suffix], "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(body="", status_code=304, headers=headers)
    return Response(body=content.decode(), status_code=200, headers=headers)
