"""A real browser: Debian's Chromium without a window, which asks loopback alone."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, sync_playwright

CHROMIUM = shutil.which("chromium")

OPTIONS = (
    "--no-sandbox",  # which root can't have
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[Page]:
    """Yield an empty page; fail at the end if the browser complained of anything.

    That is: messages of warning or error, exceptions, refusals by the Content-Security-Policy,
    requests that failed, and requests to other hosts than loopback, which are not let out.
    """
    if CHROMIUM is None:
        pytest.skip("There is no Chromium (on Debian: apt-get install chromium).")
    complaints: list[str] = []

    def guard(route: Route) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            complaints.append(f"It asks for {route.request.url}.")
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.route("**/*", guard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda it: complaints.append(f"{it.url}: {it.failure}"))
        page.on(
            "console",
            lambda it: complaints.append(it.text) if it.type in ("warning", "error") else None,
        )
        yield page
        browser.close()
    assert not complaints


class ApiDocs:
    """The page /api-docs, opened: a person's hands on it."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        page.goto(f"{url}/api-docs")
        page.wait_for_selector("#operations-Timers-create_timer")

    def operations(self) -> set[str]:
        """Return the ids of the operations that are to be seen."""
        blocks = self._page.locator(".opblock[id^=operations-]:not([id*=webhooks])")
        ids = blocks.evaluate_all("found => found.map(it => it.id)")
        return {id.split("-", 2)[2] for id in ids}

    def authorize(self, key: str) -> None:
        """Give an API key."""
        self._page.click(".btn.authorize")
        self._page.fill(".auth-container input", key)
        self._page.click(".auth-btn-wrapper .authorize")
        self._page.click(".auth-btn-wrapper .btn-done")

    def try_out(self, id: str, status: int, body: object = None, **parameters: str) -> Any:
        """Execute an operation, and return the JSON that it shows as the answer."""
        block = self._page.locator(f".opblock[id$=-{id}]")
        block.locator(".opblock-summary-control").click()
        block.locator(".try-out__btn").click()
        for name, value in parameters.items():
            block.locator(f"tr[data-param-name={name}] input").fill(value)
        if body is not None:
            block.locator("textarea.body-param__text").fill(json.dumps(body))
        block.locator(".execute").click()
        answer = block.locator(".live-responses-table .response")
        found = answer.locator(".response-col_status").inner_text()
        assert found.split()[0] == str(status), answer.inner_text()
        shown = json.loads(answer.locator("pre.microlight").first.inner_text())
        block.locator(".opblock-summary-control").click()
        return shown
