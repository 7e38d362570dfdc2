"""A real browser: headless Chromium from Debian, restricted to loopback."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.support.processes import ROOT

CHROMIUM = shutil.which("chromium")

AXE = ROOT / ".venv/node_modules/axe-core/axe.min.js"

OPTIONS = (
    "--no-sandbox",  # root cannot use the sandbox
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

ABORTED = "net::ERR_ABORTED"
"""The error of a request that ended because the page was left."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser without a page."""
    if CHROMIUM is None:
        pytest.skip("There is no Chromium (on Debian: apt-get install chromium).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser,
    width: int = 1200,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    zone: str = "UTC",
    expected: str = r"(?!)",
) -> Iterator[Page]:
    """Yield an empty page; fail at the end if the browser reported a problem.

    Problems are warnings, errors, exceptions, violations of the Content-Security-Policy, failed
    requests, and requests to hosts other than loopback, which are blocked. Problems that match the
    regular expression `expected` do not count.
    """
    problems: list[str] = []

    def guard(route: Route) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            problems.append(f"The page requested {route.request.url}.")
            route.abort()

    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=scheme, timezone_id=zone
    )
    page.route("**/*", guard)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda it: problems.append(f"{it.url}: {it.failure}"))
    page.on(
        "console",
        lambda it: problems.append(it.text) if it.type in ("warning", "error") else None,
    )
    yield page
    page.close()
    assert not [it for it in problems if ABORTED not in it and not re.search(expected, it)]


@cache
def _axe() -> str:
    if not AXE.exists():
        pytest.skip("There is no axe-core: install npm, then run make once more.")
    return AXE.read_text()


def barriers(page: Page) -> list[str]:
    """Return the serious and critical accessibility violations that axe-core finds."""
    page.evaluate(_axe())  # not as a script of the page: its policy forbids that
    violations = page.evaluate("axe.run(document)")["violations"]
    return [
        f"{it['id']}: {node['html']} ({node['failureSummary']})"
        for it in violations
        if it["impact"] in ("serious", "critical")
        for node in it["nodes"]
    ]


class ApiDocs:
    """Actions on the page /api-docs."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        page.goto(f"{url}/api-docs")
        page.wait_for_selector("#operations-Timers-create_timer")

    def operations(self) -> set[str]:
        """Return the ids of the visible operations."""
        blocks = self._page.locator(".opblock[id^=operations-]:not([id*=webhooks])")
        ids = blocks.evaluate_all("blocks => blocks.map(it => it.id)")
        return {id.split("-", 2)[2] for id in ids}

    def authorize(self, key: str) -> None:
        """Enter an API key."""
        self._page.click(".btn.authorize")
        self._page.fill(".auth-container input", key)
        self._page.click(".auth-btn-wrapper .authorize")
        self._page.click(".auth-btn-wrapper .btn-done")

    def try_out(self, id: str, status: int, body: object = None, **parameters: str) -> Any:
        """Execute an operation; return the JSON of the response that the page shows."""
        block = self._page.locator(f".opblock[id$=-{id}]")
        block.locator(".opblock-summary-control").click()
        block.locator(".try-out__btn").click()
        for name, value in parameters.items():
            block.locator(f"tr[data-param-name={name}] input").fill(value)
        if body is not None:
            block.locator("textarea.body-param__text").fill(json.dumps(body))
        block.locator(".execute").click()
        response = block.locator(".live-responses-table .response")
        status_text = response.locator(".response-col_status").inner_text()
        assert status_text.split()[0] == str(status), response.inner_text()
        result = json.loads(response.locator("pre.microlight").first.inner_text())
        block.locator(".opblock-summary-control").click()
        return result


class Console:
    """Actions on the page /console, and checks of its contents."""

    def __init__(self, page: Page, url: str, view: str = "/") -> None:
        self.page = page
        self._url = url
        page.goto(f"{url}/console#{view}")

    def go(self, view: str) -> None:
        """Open another view in the same page, as a link does."""
        self.page.evaluate("view => { location.hash = view; }", view)

    def reload(self) -> None:
        """Make the page load its data again, as when a hidden tab is shown."""
        self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    def press(self, name: str) -> None:
        """Press the button or follow the link with this name."""
        button = self.page.get_by_role("button", name=name, exact=True)
        self.page.get_by_role("link", name=name, exact=True).or_(button).first.click()

    def fill(self, **fields: str) -> None:
        """Fill in fields by name; unfold the options if a field is hidden."""
        for name, value in fields.items():
            field = self.page.locator(f"[name={name}]")
            if not field.is_visible():
                self.page.locator("summary").click()
            if name in ("method", "status"):
                field.select_option(value)
            else:
                field.fill(value)

    def sees(self, text: str | re.Pattern[str], seconds: float = 30) -> None:
        """Wait until the text is visible."""
        self.page.get_by_text(text).first.wait_for(timeout=seconds * 1000)

    def has_heading(self, text: str | re.Pattern[str]) -> None:
        """Wait until this is the page's heading."""
        expect(self.page.locator("h1:visible")).to_have_text(text)

    def lists(self, *labels: str) -> None:
        """Wait until the list has the timers with these labels, in this order."""
        expect(self.page.locator("tbody th")).to_have_text(labels)

    def is_loaded(self) -> None:
        """Wait until the view has loaded its data."""
        self.page.locator("h1:visible").wait_for()
        expect(self.page.get_by_text(re.compile("^Loading"))).to_have_count(0)

    def is_too_wide(self) -> bool:
        """Return whether the page scrolls horizontally."""
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        return bool(self.page.evaluate(wide))
