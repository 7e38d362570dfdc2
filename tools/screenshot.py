"""`python -m tools.screenshot`: make the README's screenshot of the console."""

from pathlib import Path
from tempfile import TemporaryDirectory

import requests
from playwright.sync_api import Browser

from tests.support.browser import Console, chromium, opened
from tests.support.processes import ROOT, Standalone, wait_until

PICTURE = ROOT / "docs/console.png"


def take(path: Path, folder: Path, browser: Browser) -> None:
    """Start a server with some timers and save a screenshot of the console to `path`."""
    with Standalone(folder / "timers.db") as server, opened(browser, 1120, 700) as page:
        _fill(server)
        console = Console(page, server.url)
        console.sees("reminder-58")
        console.is_loaded()
        page.screenshot(path=path, animations="disabled")


def _fill(server: Standalone) -> None:
    here = f"{server.url}/_receiver/"
    retry = {"max_attempts": 5, "initial_delay": 3600}
    orders: list[dict[str, object]] = [
        {"seconds": 0, "url": f"{here}orders/{{id}}", "label": f"order-{number}"}
        for number in range(4700, 4731)
    ]
    reminders: list[dict[str, object]] = [
        {"minutes": it, "url": "https://example.com/hook/{id}", "label": f"reminder-{it}"}
        for it in (3, 4, 11, 17, 18, 19, 33, 42, 58)
    ]
    others: list[dict[str, object]] = [
        {"seconds": 0, "url": f"{server.url}/nothing-there", "label": "misspelled"},
        {"seconds": 0, "url": "http://127.0.0.1:9/", "retry": retry, "label": "out-of-order"},
    ]
    _make(server, [*orders, *reminders[:-2], *others, orders[0], *reminders[-2:]])
    wait_until(lambda: _number(server, "delivered") == len(orders) + 1)
    wait_until(lambda: _number(server, "failed") + _number(server, "retrying") == len(others))


def _make(server: Standalone, timers: list[dict[str, object]]) -> None:
    for timer in timers:
        requests.post(f"{server.url}/timers", json=timer, timeout=30).raise_for_status()


def _number(server: Standalone, status: str) -> int:
    found = requests.get(f"{server.url}/timers?status={status}&limit=100", timeout=30)
    return len(found.json()["timers"])


if __name__ == "__main__":
    with TemporaryDirectory() as scratch, chromium() as it:
        take(PICTURE, Path(scratch), it)
