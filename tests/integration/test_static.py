"""The files of the console and the API docs, and the API docs in a browser."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

from chalicelib.http.routes import OPERATIONS
from tests.support.browser import ApiDocs, chromium, opened
from tests.support.processes import ROOT, Standalone, run_timers
from tests.support.routes import Api

FOLDER = ROOT / "chalicelib/web"

OURS = {"index.html", "api-docs.js"}

PREACT = {
    "preact.min.umd.js": "aa558e32247d4ccea18c5addbb0311bc1771bf39734185be01dc0c3c4cf3fd6d",
    "hooks.umd.js": "5c29238e5dc99df306d7f7fff038591a397cfcfabb59f81fbdef43d670aa0566",
    "htm.umd.js": "7a31776e04bd4afde0d4308177d26f377716fcf7e4bd70be590746d6aa594f08",
}
"""SHA-256 of the files of preact 10.29.8 and htm 3.1.1 on npm."""

SWAGGER_UI = "e11acb65a119204821e9a8c154c9dd13e3f87fae708aee0e652875cb7a2d32a5"
"""SHA-256 of the five files of swagger-ui-dist 5.35.0 on npm, concatenated in name order."""


def test_swagger_ui_is_unmodified() -> None:
    """The vendored files, with their licences, match the npm package."""
    vendored = sorted(it for it in (FOLDER / "api-docs").iterdir() if it.name not in OURS)
    assert len(vendored) == 5
    assert sha256(b"".join(it.read_bytes() for it in vendored)).hexdigest() == SWAGGER_UI


@pytest.mark.parametrize("name", PREACT)
def test_preact_and_htm_are_unmodified(name: str) -> None:
    """The vendored files match the npm packages, and their licences are included."""
    folder = FOLDER / "console"
    assert sha256((folder / name).read_bytes()).hexdigest() == PREACT[name]
    assert "Apache License" in (folder / "LICENSE-htm").read_text()
    assert "MIT License" in (folder / "LICENSE-preact").read_text()


FILES = {
    "/api-docs": "text/html; charset=utf-8",
    "/api-docs/api-docs.js": "text/javascript; charset=utf-8",
    "/api-docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "/api-docs/swagger-ui.css": "text/css; charset=utf-8",
    "/console": "text/html; charset=utf-8",
    "/console/console.css": "text/css; charset=utf-8",
    "/console/console.js": "text/javascript; charset=utf-8",
    "/console/preact.min.umd.js": "text/javascript; charset=utf-8",
}


@pytest.mark.parametrize("path", FILES)
def test_files_are_public(api_on_fakes: Api, path: str) -> None:
    """They need no API key, and their Content-Security-Policy allows only their own origin."""
    response = api_on_fakes.ask("GET", path, headers={"authorization": ""})
    file = FOLDER / (path.removeprefix("/") + ("" if "." in path else "/index.html"))
    assert (response.status_code, response.body) == (200, file.read_bytes())
    assert response.headers["Content-Type"] == FILES[path]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(
        part.strip().split(" ", 1)
        for part in response.headers["Content-Security-Policy"].split(";")
    )
    assert policy.pop("img-src") == "'self' data:"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"


@pytest.mark.parametrize(
    "name",
    [
        *("nothing", "LICENSE", "LICENSE-htm", "index", "index.html"),
        *("..", "%2e%2e", "..%2f__init__.py", "%00", "."),
    ],
)
def test_other_files_are_not_found(api_on_fakes: Api, name: str) -> None:
    """Licences, files elsewhere, and `index.html` under its own name are 404."""
    for page in ("api-docs", "console"):
        response = api_on_fakes.ask("GET", f"/{page}/{name}")
        assert (response.status_code, response.json_body["title"]) == (404, "Not Found")


@pytest.mark.parametrize("page", ["api-docs", "console"])
def test_links_are_relative(api_on_fakes: Api, page: str) -> None:
    """A page works below any path prefix, and has no inline scripts or styles."""
    text = api_on_fakes.ask("GET", f"/{page}").body.decode()
    links = [link for link in re.findall(r'(?:src|href)="([^"]+)"', text) if link != "data:,"]
    assert links
    for link in links:
        assert api_on_fakes.ask("GET", f"/{link}").status_code == 200
    assert "<style" not in text
    assert not re.search(r"<script(?! src=)", text)


def test_unchanged_file_is_not_modified(api_on_fakes: Api) -> None:
    """A matching ETag is a 304; another ETag is a 200."""
    path = "/api-docs/swagger-ui.css"
    tag = api_on_fakes.ask("GET", path).headers["ETag"]
    response = api_on_fakes.ask("GET", path, headers={"if-none-match": f"W/{tag}"})
    assert (response.status_code, response.body, response.headers["ETag"]) == (304, b"", tag)
    other = {"if-none-match": api_on_fakes.ask("GET", "/api-docs").headers["ETag"]}
    assert api_on_fakes.ask("GET", path, headers=other).status_code == 200


@pytest.mark.parametrize("page", ["api-docs", "console"])
def test_trailing_slash_redirects(api_on_fakes: Api, page: str) -> None:
    """The relative links work only without the slash."""
    response = api_on_fakes.ask("GET", f"/{page}/")
    assert (response.status_code, response.headers["Location"]) == (308, f"../{page}")


def test_api_docs_send_requests(tmp_path: Path) -> None:
    """The page lists every operation. With an API key, "Try it out" creates and reads a timer."""
    database = tmp_path / "timers.db"
    with Standalone(database, {"AUTH": "keys"}) as server, chromium() as it, opened(it) as page:
        docs = ApiDocs(page, server.url)
        assert docs.operations() == {operation.id for operation in OPERATIONS.values()}
        docs.authorize(run_timers("keys", "add", TIMERS_DB=str(database)).stdout.strip())
        url = f"{server.url}/_receiver/docs"
        timer = docs.try_out("create_timer", 201, body={"minutes": 5, "url": url})
        assert (timer["status"], timer["url"]) == ("scheduled", url)
        assert docs.try_out("read_timer", 200, timer_id=timer["id"])["id"] == timer["id"]
        assert docs.try_out("list_timers", 200)["timers"][0]["id"] == timer["id"]


def test_api_docs_fit_a_phone(tmp_path: Path) -> None:
    """A width of 390 pixels needs no horizontal scrolling."""
    with (
        Standalone(tmp_path / "timers.db") as server,
        chromium() as it,
        opened(it, width=390) as page,
    ):
        ApiDocs(page, server.url)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
