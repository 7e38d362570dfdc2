"""The pages for people: their files as they lie here, read only when asked for."""

from hashlib import sha256
from pathlib import Path

from chalice.app import Request, Response

from chalicelib.core.errors import NotFound
from chalicelib.http.responses import Headers

_FOLDER = Path(__file__).parents[1] / "web"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
"""Of what is served; licences lie beside it."""

_HEADERS: Headers = {
    # What is not the page's own is neither loaded nor asked, and nobody frames it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page(name: str, request: Request | None) -> Response:
    """Return a page, under the path that its links are relative to."""
    if request is not None and request.context["path"].endswith("/"):
        return Response(body="", status_code=308, headers={"Location": f"../{name}"})
    return _file(name, "index.html", request)


def part(page: str, name: str, request: Request | None) -> Response:
    """Return a file that a page refers to, which a page itself is not; raise NotFound."""
    if name.endswith(".html"):
        raise NotFound
    return _file(page, name, request)


def _file(page: str, name: str, request: Request | None) -> Response:
    """Return a file of a page, or that it is still what the browser has; raise NotFound."""
    found = {it.name: it for it in (_FOLDER / page).iterdir() if it.suffix in _TYPES}.get(name)
    if found is None:
        raise NotFound
    content = found.read_bytes()
    tag = f'"{sha256(content).hexdigest()}"'
    headers: Headers = {**_HEADERS, "Content-Type": _TYPES[found.suffix], "ETag": tag}
    if request is not None and tag in request.headers.get("if-none-match", ""):
        return Response(body="", status_code=304, headers=headers)
    return Response(body=content.decode(), status_code=200, headers=headers)


def contract() -> Response:
    """Return the OpenAPI document."""
    from chalicelib.http import openapi  # noqa: PLC0415  # cold starts of all functions would pay for it

    headers: Headers = {"Content-Type": "application/json", "Cache-Control": "no-cache"}
    return Response(body=openapi.document(), status_code=200, headers=headers)
