"""The pages for people: what is served, and that a browser is content with it."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

from chalicelib.http.routes import OPERATIONS
from tests.support.browser import ApiDocs, chromium, opened
from tests.support.processes import ROOT, Standalone, tenants
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
"""SHA-256 of five files of swagger-ui-dist 5.35.0 on npm, one after the other by their names."""


def test_swagger_ui_is_the_published_one() -> None:
    """Each file is as its makers published it, licences included."""
    theirs = sorted(it for it in (FOLDER / "api-docs").iterdir() if it.name not in OURS)
    assert len(theirs) == 5
    assert sha256(b"".join(it.read_bytes() for it in theirs)).hexdigest() == SWAGGER_UI


@pytest.mark.parametrize("name", PREACT)
def test_preact_and_htm_are_the_published_ones(name: str) -> None:
    """Each file is as its makers published it, and the licences stand beside them."""
    folder = FOLDER / "console"
    assert sha256((folder / name).read_bytes()).hexdigest() == PREACT[name]
    assert "Apache License" in (folder / "LICENSE-htm").read_text()
    assert "MIT License" in (folder / "LICENSE-preact").read_text()


PARTS = {
    "/api-docs": "text/html; charset=utf-8",
    "/api-docs/api-docs.js": "text/javascript; charset=utf-8",
    "/api-docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "/api-docs/swagger-ui.css": "text/css; charset=utf-8",
    "/console": "text/html; charset=utf-8",
    "/console/console.css": "text/css; charset=utf-8",
    "/console/console.js": "text/javascript; charset=utf-8",
    "/console/preact.min.umd.js": "text/javascript; charset=utf-8",
}


@pytest.mark.parametrize("path", PARTS)
def test_parts_are_served(api_on_fakes: Api, path: str) -> None:
    """Each comes whole, to everybody, as what it is, and may load and ask nothing but its own."""
    answer = api_on_fakes.ask("GET", path, headers={"authorization": ""})
    file = FOLDER / (path.removeprefix("/") + ("" if "." in path else "/index.html"))
    assert (answer.status_code, answer.body) == (200, file.read_bytes())
    assert answer.headers["Content-Type"] == PARTS[path]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";")
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
def test_nothing_else_is_served(api_on_fakes: Api, name: str) -> None:
    """What is no part of the page is not there, wherever it lies; nor is the page, whose links are
    right at its own path alone."""
    for page in ("api-docs", "console"):
        answer = api_on_fakes.ask("GET", f"/{page}/{name}")
        assert (answer.status_code, answer.json_body["title"]) == (404, "Not Found")


@pytest.mark.parametrize("page", ["api-docs", "console"])
def test_links_are_relative(api_on_fakes: Api, page: str) -> None:
    """What the page refers to is served below its own path, whatever stands before that."""
    text = api_on_fakes.ask("GET", f"/{page}").body.decode()
    links = [link for link in re.findall(r'(?:src|href)="([^"]+)"', text) if link != "data:,"]
    assert links
    for link in links:
        assert api_on_fakes.ask("GET", f"/{link}").status_code == 200
    assert "<style" not in text
    assert not re.search(r"<script(?! src=)", text)


def test_is_not_sent_again(api_on_fakes: Api) -> None:
    """What a browser has already is a 304, until it changes."""
    path = "/api-docs/swagger-ui.css"
    tag = api_on_fakes.ask("GET", path).headers["ETag"]
    again = api_on_fakes.ask("GET", path, headers={"if-none-match": f"W/{tag}"})
    assert (again.status_code, again.body, again.headers["ETag"]) == (304, b"", tag)
    other = {"if-none-match": api_on_fakes.ask("GET", "/api-docs").headers["ETag"]}
    assert api_on_fakes.ask("GET", path, headers=other).status_code == 200


@pytest.mark.parametrize("page", ["api-docs", "console"])
def test_slash_at_the_end(api_on_fakes: Api, page: str) -> None:
    """Whoever writes one comes to the page whose links are right."""
    answer = api_on_fakes.ask("GET", f"/{page}/")
    assert (answer.status_code, answer.headers["Location"]) == (308, f"../{page}")


@pytest.mark.e2e
def test_try_it_out(tmp_path: Path) -> None:
    """In a browser the page shows all there is, and with a key its try-outs make a timer and read
    it."""
    database = tmp_path / "timers.db"
    with Standalone(database, {"AUTH": "keys"}) as server, chromium() as it, opened(it) as page:
        docs = ApiDocs(page, server.url)
        assert docs.operations() == {operation.id for operation in OPERATIONS.values()}
        docs.authorize(tenants("keys", "add", TIMERS_DB=str(database)).stdout.strip())
        url = f"{server.url}/_receiver/docs"
        made = docs.try_out("create_timer", 201, body={"minutes": 5, "url": url})
        assert (made["status"], made["url"]) == ("scheduled", url)
        assert docs.try_out("read_timer", 200, timer_id=made["id"])["id"] == made["id"]
        assert docs.try_out("list_timers", 200)["timers"][0]["id"] == made["id"]


@pytest.mark.e2e
def test_narrow(tmp_path: Path) -> None:
    """On a phone nothing has to be scrolled sideways."""
    with (
        Standalone(tmp_path / "timers.db") as server,
        chromium() as it,
        opened(it, width=390) as page,
    ):
        ApiDocs(page, server.url)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390
