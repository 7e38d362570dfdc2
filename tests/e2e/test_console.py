"""The console in a real browser, with the real server."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from playwright.sync_api import APIResponse, Browser, Locator, Page, Request, Route, expect
from pytest_httpserver import HTTPServer

from tests.support.browser import Console, barriers, chromium, opened
from tests.support.processes import ROOT, Standalone, run_timers, wait_until
from tools.screenshot import PICTURE, take


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as it:
        yield it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with Standalone(tmp_path_factory.mktemp("console") / "timers.db") as running:
        yield running


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Standalone]:
    with Standalone(tmp_path / "timers.db") as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with opened(browser) as it:
        yield it


def create(server: Standalone, **fields: Any) -> str:
    """Create a timer, due in an hour by default. Return its ID."""
    body = {"url": f"{server.url}/_receiver/hello", **fields}
    if not body.keys() & {"seconds", "delay", "fire_at"}:
        body["delay"] = 3600
    response = requests.post(f"{server.url}/timers", json=body, timeout=30)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def create_batch(server: Standalone, number: int, **fields: Any) -> None:
    """Create timers that are due in an hour."""
    timer = {"hours": 1, "url": "https://example.com/", **fields}
    body = {"timers": [timer] * number}
    requests.post(f"{server.url}/timers/batch", json=body, timeout=60).raise_for_status()


def with_label(server: Standalone, label: str) -> list[dict[str, Any]]:
    """Return the timers with a label, newest first."""
    response = requests.get(f"{server.url}/timers?label={label}", timeout=30)
    return list(response.json()["timers"])


def wait_for_status(server: Standalone, id: str, status: str) -> None:
    wait_until(lambda: server.read(id)["status"] == status)


def section(page: Page, name: str) -> Locator:
    """Return the section under a heading."""
    return page.get_by_role("region", name=name, exact=True)


def form_error(page: Page) -> Locator:
    """Return the error message of the visible form."""
    return page.locator("form").get_by_role("alert")


def collect_in(found: list[Any]) -> Callable[[Any], None]:
    """Return a handler that appends to a list: Playwright does not accept a built-in method."""

    def collect(it: Any) -> None:
        found.append(it)

    return collect


def test_first_timer_from_creation_to_delivery(empty: Standalone, page: Page) -> None:
    """An empty console leads to a prefilled form. The timer counts down, and its webhook arrives
    with a valid signature."""
    console = Console(page, empty.url)
    console.press("Create your first timer")
    console.has_heading("New timer")
    console.fill(seconds="3", label="first")
    console.press("Create timer")
    console.sees("Timer created.")
    console.has_heading("first")
    time_left = page.get_by_role("timer").first
    assert re.fullmatch("00:0[123]", time_left.inner_text())
    console.sees(re.compile(r"Delivered \d+ ms late \(HTTP 204\)\."))
    expect(section(page, "Attempts").get_by_role("listitem")).to_contain_text("HTTP 204")
    console.press("Received")
    console.sees("signature valid")
    console.sees(re.compile(r"^\d+ ms after the deadline$"))
    page.locator("summary").click()
    assert "timer-attempt: 1" in page.locator("pre").inner_text()
    console.press("Overview")
    console.lists("first")
    console.sees("1 timer")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(
    ("mode", "fields", "time_left"),
    [
        ("Hours, minutes, seconds", {"hours": "1", "minutes": "30"}, 5400),
        ("Duration", {"delay": "1h30m"}, 5400),
        ("Duration", {"delay": "90"}, 90),
        ("Date and time", {"fire_at": "2027-01-31T09:00:00"}, None),
    ],
)
def test_deadline_can_be_entered_in_three_ways(
    server: Standalone,
    browser: Browser,
    mode: str,
    fields: dict[str, str],
    time_left: int | None,
    zone: str,
) -> None:
    """Only the selected fields are sent. A date and time is in the browser's time zone."""
    label = f"{mode[:4]}-{len(fields)}-{time_left}-{zone[:3]}"
    with opened(browser, zone=zone) as page:
        console = Console(page, server.url, "/new")
        for other, unused in (
            ("Duration", {"delay": "2d"}),
            ("Date and time", {"fire_at": "2028-01-01T00:00:00"}),
        ):
            page.get_by_role("radio", name=other).check()
            console.fill(**unused)
        page.get_by_role("radio", name=mode).check()
        console.fill(**fields, label=label)
        for other in ("Hours, minutes, seconds", mode):
            page.get_by_role("radio", name=other).check()
        for name, value in fields.items():
            kept = re.compile(f"^{value.removesuffix(':00')}")
            expect(page.locator(f"[name={name}]")).to_have_value(kept)
        console.press("Create timer")
        console.sees("Timer created.")
    (timer,) = with_label(server, label)
    if time_left is not None:
        assert time_left - 30 <= timer["time_left"] <= time_left
    else:
        assert timer["fire_at"] == f"2027-01-31T{'09' if zone == 'UTC' else '14'}:00:00Z"


def test_all_options_are_sent_and_shown(server: Standalone, page: Page) -> None:
    """The form covers every option of a timer, and the timer's page shows them."""
    console = Console(page, server.url, "/new")
    console.fill(
        hours="2",
        url="https://example.com/{id}",
        label="complete",
        method="PUT",
        headers="X-Order: 17\nX-Colon: a: b\n",
        body='{"any": ["JSON"]}',
        timeout="7",
        max_attempts="3",
        initial_delay="2",
        max_delay="60",
        on_failure="https://example.com/failed",
        metadata="customer: 4711\nCustomer:",
    )
    page.get_by_label("The body is JSON").check()
    console.press("Create timer")
    console.sees("Timer created.")
    (timer,) = with_label(server, "complete")
    assert timer["url"] == "https://example.com/{id}"
    assert (timer["method"], timer["body"], timer["timeout"]) == ("PUT", '{"any": ["JSON"]}', 7)
    assert timer["headers"] == {
        "X-Order": "17",
        "X-Colon": "a: b",
        "Content-Type": "application/json",
    }
    assert timer["retry"] == {"max_attempts": 3, "initial_delay": 2, "max_delay": 60}
    assert (timer["on_failure"], timer["metadata"]) == (
        "https://example.com/failed",
        {"customer": "4711", "Customer": ""},
    )
    expect(section(page, "Details").get_by_role("definition")).to_have_text(
        [re.compile("^20"), re.compile("^20"), "complete", "4711", "empty"]
    )
    for text in ("PUT https://example.com/{id}", "X-Colon: a: b", "up to 2 s", "/failed"):
        expect(section(page, "Webhook")).to_contain_text(text)


@pytest.mark.parametrize(
    ("fields", "invalid"),
    [
        ({"delay": "90x"}, "delay"),
        ({"delay": "1h", "url": "ftp://example.com/"}, "url"),
        ({"delay": "1h", "timeout": "31"}, "timeout"),
        ({"delay": "1h", "max_attempts": "0"}, "max_attempts"),
        ({"delay": "1h", "headers": "Host: x"}, "headers"),
        ({"delay": "1h", "headers": "no colon"}, "headers"),
        ({"delay": "1h", "headers": "A: 1\na: 2"}, "headers"),
        ({"delay": "1h", "metadata": "a: 1\na: 1"}, "metadata"),
        ({"delay": "1h", "body": "{"}, "body"),
        ({"hours": ""}, "hours"),
        ({"fire_at": ""}, "fire_at"),
    ],
)
def test_error_marks_and_focuses_its_field(
    server: Standalone, browser: Browser, fields: dict[str, str], invalid: str
) -> None:
    """An error keeps everything that was entered. The corrected form is accepted."""
    modes = {"hours": "Hours, minutes, seconds", "fire_at": "Date and time"}
    with opened(browser, expected="400") as page:
        console = Console(page, server.url, "/new")
        page.get_by_role("radio", name=modes.get(invalid, "Duration")).check()
        console.fill(**fields)
        if "body" in fields:
            page.get_by_label("The body is JSON").check()
        console.press("Create timer")
        expect(form_error(page)).to_contain_text(".")
        expect(page.locator(f"[name={invalid}]")).to_be_focused()
        assert page.locator("[aria-invalid=true]").get_attribute("name") == invalid
        for name, value in fields.items():
            assert page.locator(f"[name={name}]").input_value() == value
        corrections = {
            "delay": "2h",
            "hours": "2",
            "fire_at": "2027-01-31T09:00",
            "url": "https://example.com/",
            "max_attempts": "3",
        }
        console.fill(**{invalid: corrections.get(invalid, "")})
        console.press("Create timer")
        console.sees("Timer created.")


def test_resubmitting_a_form_creates_one_timer(server: Standalone, page: Page) -> None:
    """After a lost response the same form is sent with the same idempotency key."""
    console = Console(page, server.url, "/new")
    console.fill(hours="1", label="resubmitted")
    lose_next_response(page)
    console.press("Create timer")
    expect(form_error(page)).to_contain_text("did not respond")
    console.press("Create timer")
    console.has_heading("resubmitted")
    assert len(with_label(server, "resubmitted")) == 1


def test_resubmitting_a_changed_form_creates_another_timer(server: Standalone, page: Page) -> None:
    """Any change in the form makes a new idempotency key."""
    console = Console(page, server.url, "/new")
    console.fill(hours="1", label="before the change")
    lose_next_response(page)
    console.press("Create timer")
    expect(form_error(page)).to_contain_text("did not respond")
    console.fill(label="after the change")
    console.press("Create timer")
    console.has_heading("after the change")
    assert len(with_label(server, "before the change")) == 1


def lose_next_response(page: Page) -> None:
    """Let the next request for a timer reach the server, and cut off the response."""

    def cut_off(route: Route) -> None:
        route.fulfill(response=route.fetch(), body="{")

    page.route("**/timers", cut_off, times=1)


def test_cancelling_asks_for_confirmation(server: Standalone, page: Page) -> None:
    """Enter and Escape keep the timer; only the dialog's button cancels it."""
    id = create(server, label="to cancel")
    console = Console(page, server.url, f"/timers/{id}")
    dialog = page.get_by_role("dialog")
    console.press("Cancel timer")
    expect(dialog.get_by_role("button", name="Keep timer")).to_be_focused()
    page.keyboard.press("Enter")
    assert server.read(id)["status"] == "scheduled"
    console.press("Cancel timer")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    console.press("Cancel timer")
    dialog.get_by_role("button", name="Cancel timer").click()
    console.sees("The webhook will not be sent.")
    assert server.read(id)["status"] == "cancelled"
    expect(page.locator("h1")).to_be_focused()
    console.sees("Timer cancelled.")
    page.get_by_text("Timer cancelled.").wait_for(state="detached")
    assert not page.get_by_role("button", name="Fire now").is_visible()


def test_reschedule_changes_only_the_deadline(server: Standalone, page: Page) -> None:
    """A waiting timer gets a new deadline and keeps its other fields."""
    id = create(server, label="to move", metadata={"a": "b"})
    before = server.read(id)
    console = Console(page, server.url, f"/timers/{id}")
    console.press("Reschedule")
    console.has_heading("Reschedule to move")
    expect(page.locator("h1")).to_be_focused()
    console.fill(hours="5")
    console.press("Reschedule")
    console.sees("Timer rescheduled.")
    console.sees(re.compile("04:59:5[0-9]"))
    after = server.read(id)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"fire_at", "next_attempt_at", "time_left"}


def test_fire_now_sends_the_webhook(server: Standalone, page: Page) -> None:
    """A waiting timer is delivered at once, and offers no more actions."""
    id = create(server, label="to fire")
    console = Console(page, server.url, f"/timers/{id}")
    console.press("Fire now")
    console.sees(re.compile(r"Delivered \d+ ms late"))
    assert server.read(id)["status"] == "delivered"
    expect(page.get_by_role("button")).to_have_count(0)


def test_double_click_sends_one_request(
    server: Standalone, page: Page, httpserver: HTTPServer
) -> None:
    """Buttons are disabled from a click until the page shows the result."""
    httpserver.expect_request("/hook").respond_with_data(status=404)
    id = create(server, url=httpserver.url_for("/hook"))
    console = Console(page, server.url, f"/timers/{id}")
    console.sees("scheduled")
    enabled = page.locator("main button:enabled")
    for button, message in (("Fire now", "Timer fired."), ("Retry", "Retry started.")):
        held: list[Route] = []
        page.route(f"**/timers/{id}**", collect_in(held))
        page.get_by_role("button", name=button).dblclick()
        expect(enabled.filter(visible=True)).to_have_count(0)
        (sent,) = (it for it in held if it.request.method == "POST")
        with page.expect_request(f"**/timers/{id}"):
            sent.continue_()
        console.sees(message)
        expect(enabled.filter(visible=True)).to_have_count(0)
        page.unroute(f"**/timers/{id}**")
        held.pop().continue_()
        console.sees("Failed after")
        expect(page.get_by_role("button", name="Retry")).to_be_enabled()


def test_action_that_comes_too_late_shows_the_error(server: Standalone, browser: Browser) -> None:
    """After a 409 the page shows the message and the timer's new status."""
    id = create(server)
    with opened(browser, expected="409") as page:
        console = Console(page, server.url, f"/timers/{id}")
        console.sees("Fire now")
        requests.post(f"{server.url}/timers/{id}/fire", timeout=30)
        wait_for_status(server, id, "delivered")
        page.get_by_role("button", name="Fire now").click(timeout=2000)
        expect(page.get_by_role("alert")).to_contain_text("delivered")
        expect(page.locator("h1")).to_be_focused()
        console.sees(re.compile("Delivered"))


def test_retry_sends_the_webhook_again(
    server: Standalone, page: Page, httpserver: HTTPServer
) -> None:
    """A failed timer shows the reason, and after a retry both attempts."""
    httpserver.expect_request("/hook").respond_with_data("out of order", status=500)
    id = create(server, seconds=0, url=httpserver.url_for("/hook"), retry={"max_attempts": 1})
    wait_for_status(server, id, "failed")
    console = Console(page, server.url, f"/timers/{id}")
    console.sees("Failed after 1 attempt: HTTP 500.")
    console.sees("out of order")
    httpserver.clear()
    httpserver.expect_request("/hook").respond_with_data("thanks")
    console.press("Retry")
    console.sees(re.compile(r"Delivered \d+ ms late \(HTTP 200\)\."))
    expect(section(page, "Attempts").get_by_role("listitem")).to_contain_text(
        ["HTTP 500", "HTTP 200"]
    )


def test_page_says_that_earlier_attempts_are_not_kept(server: Standalone, page: Page) -> None:
    """The service keeps the last 20 attempts."""
    id = create(server, seconds=0, url=f"{server.url}/nothing")
    console = Console(page, server.url, f"/timers/{id}")
    for _ in range(19):
        wait_for_status(server, id, "failed")
        requests.post(f"{server.url}/timers/{id}/retry", timeout=30).raise_for_status()
    wait_for_status(server, id, "failed")
    console.reload()
    console.sees("Failed after 20 attempts")
    expect(page.get_by_text("Earlier attempts are not kept.")).to_have_count(0)
    console.press("Retry")
    console.sees("Failed after 21 attempts")
    console.sees("Earlier attempts are not kept.")
    expect(section(page, "Attempts").get_by_role("listitem")).to_have_count(20)


def test_retrying_timer_shows_past_and_next_attempts(server: Standalone, page: Page) -> None:
    """The page lists the failed attempt and the time of the next one."""
    retry = {"max_attempts": 3, "initial_delay": 3600, "max_delay": 3600}
    id = create(server, seconds=0, url="http://127.0.0.1:9/", retry=retry)
    wait_for_status(server, id, "retrying")
    console = Console(page, server.url, f"/timers/{id}")
    console.sees(re.compile("connect: Connection refused. The next attempt is due at"))
    expect(section(page, "Attempts").get_by_role("listitem")).to_contain_text(
        ["connect: Connection refused", "Next"]
    )


@pytest.mark.parametrize(
    ("status", "before", "after"),
    [
        ("scheduled", "The webhook will be sent at", "The webhook was due at"),
        ("retrying", "The next attempt is due at", "The next attempt was due at"),
    ],
)
def test_countdown_ends_with_due(
    server: Standalone, page: Page, status: str, before: str, after: str
) -> None:
    """After the deadline the text changes, even if the service has not responded yet."""
    began = datetime(2027, 1, 1, tzinfo=UTC)
    attempt = {
        "number": 1,
        "at": "2026-12-31T23:59:00Z",
        "lateness": 0,
        "duration": 0,
        "status": 500,
    }
    timer = server.read(create(server)) | {
        "status": status,
        "next_attempt_at": f"{began + timedelta(minutes=2):%FT%TZ}",
        "attempts": [attempt] if status == "retrying" else [],
    }
    page.route("**/timers/*", lambda it: it.fulfill(json=timer))
    page.route("**/timers?*", lambda it: it.fulfill(json={"timers": [timer], "next_cursor": None}))
    page.route("**/health", lambda it: it.fulfill(json={"auth": "none", "receiver": None}))
    page.clock.install(time=began)
    console = Console(page, server.url)
    console.sees(re.compile(r"next\s+in 0"))
    console.go(f"/timers/{timer['id']}")
    console.sees(re.compile(before))
    page.clock.pause_at(began + timedelta(minutes=1))
    page.route("**/timers/*", lambda _: None)  # never responds
    for milliseconds, texts in ((57_500, ["00:03", "in 00:03"]), (3000, ["due", "due"])):
        page.clock.run_for(milliseconds)
        expect(page.get_by_role("timer")).to_have_text(texts)
    console.sees(re.compile(after))
    console.go("/")
    page.clock.resume()
    console.sees(re.compile(r"next\s+due"))


def test_list_has_filters_and_pages(empty: Standalone, page: Page) -> None:
    """Status, label and creation time filter the list. The URL keeps filters and page."""
    for number in range(30):
        create(empty, label=f"n{number}")
    cancelled = create(empty, label="gone")
    requests.delete(f"{empty.url}/timers/{cancelled}", timeout=30)
    console = Console(page, empty.url)
    newest = ["gone", *(f"n{number}" for number in range(29, 5, -1))]
    oldest = [f"n{number}" for number in range(5, -1, -1)]
    console.lists(*newest)
    console.press("Older")
    console.lists(*oldest)
    page.go_back()
    console.lists(*newest)
    console.press("Older")
    console.lists(*oldest)
    console.fill(status="cancelled")
    console.lists("gone")
    page.reload()
    console.lists("gone")
    expect(page.get_by_label("Status")).to_have_value("cancelled")
    console.press("Clear filters")
    console.lists(*newest)
    console.fill(label="n17")
    page.keyboard.press("Tab")
    console.lists("n17")
    console.fill(status="failed")
    console.sees("No timers match.")
    console.press("Clear filters")
    console.lists(*newest)
    console.fill(to=f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M}")
    console.sees("No timers match.")


def test_timer_with_an_invisible_label_shows_its_id(server: Standalone, page: Page) -> None:
    """Labels of only spaces and control characters cannot be clicked or read."""
    id = create(server, label="\u00a0\u200b")
    console = Console(page, server.url)
    page.get_by_role("link", name=id, exact=True).click()
    console.has_heading(id)
    console.press("Reschedule")
    console.has_heading(f"Reschedule {id}")


def test_label_filter_keeps_trailing_spaces(server: Standalone, page: Page) -> None:
    """A trailing space is part of a label."""
    console = Console(page, server.url)
    create(server, label="blank")
    create(server, label="blank ")
    for label in ("blank", "blank "):
        console.go("/")
        console.fill(label=label)
        page.keyboard.press("Enter")
        console.lists("blank")
        assert page.locator("tbody a").evaluate("it => it.textContent") == label


@pytest.mark.parametrize("width", [1200, 390])
def test_links_to_the_list_scroll_to_its_top(
    server: Standalone, browser: Browser, width: int
) -> None:
    """Page links and status counts move the focus to the list's heading."""
    create_batch(server, 26, label="many")
    with opened(browser, width=width, height=700) as page:
        console = Console(page, server.url)
        heading = page.get_by_role("heading", name="Timers", exact=True)
        for name in ("Older", "Newest", "scheduled", "Older", "Clear filters", "cancelled"):
            console.is_loaded()
            page.evaluate("scrollTo(0, 0)")
            page.get_by_role("link", name=name).first.click()
            expect(heading).to_be_focused()
            console.is_loaded()
            expect(heading).to_be_in_viewport()
            if width == 390:
                assert page.evaluate("document.activeElement.getBoundingClientRect().y") < 9


def test_pages_keep_the_filters(server: Standalone, page: Page) -> None:
    """A changed filter goes back to the first page; an unchanged field does not."""
    create_batch(server, 26, label="paged")
    console = Console(page, server.url, "/?label=paged")
    console.lists(*["paged"] * 25)
    console.press("Older")
    console.lists("paged")
    page.get_by_label("Created from").focus()
    page.get_by_label("Label").focus()
    expect(page).to_have_url(re.compile("label=paged&cursor="))
    console.fill(status="cancelled")
    console.sees("No timers match.")
    expect(page).to_have_url(re.compile(r"#/\?label=paged&status=cancelled$"))


def test_late_response_does_not_replace_a_newer_one(server: Standalone, page: Page) -> None:
    """The response to an earlier request is ignored once a later one has arrived."""
    id = create(server)
    console = Console(page, server.url, f"/timers/{id}")
    console.sees("scheduled")
    held: list[tuple[Route, APIResponse]] = []
    page.route(f"**/timers/{id}", lambda it: held.append((it, it.fetch())), times=1)
    with page.expect_request(f"**/timers/{id}"):
        console.reload()
    console.press("Fire now")
    console.sees(re.compile("^Delivered"))
    ((earlier, response),) = held
    with page.expect_response(f"**/timers/{id}"):
        earlier.fulfill(response=response)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert page.get_by_text(re.compile("^Delivered")).is_visible()
    assert not page.get_by_text("scheduled").is_visible()


def test_reload_keeps_a_half_typed_filter(server: Standalone, page: Page) -> None:
    """Polling does not reset the filter fields."""
    create(server, delay=2, label="soon")
    console = Console(page, server.url)
    console.sees("soon")
    page.get_by_label("Label").press_sequentially("hal")
    row = page.get_by_role("row").filter(has_text="soon")
    expect(row).to_contain_text("delivered", timeout=30_000)
    expect(page.get_by_label("Label")).to_have_value("hal")


def test_date_filter_waits_until_typing_ends(server: Standalone, page: Page) -> None:
    """A typed date applies after a second's pause, on Enter, or when the field loses focus."""
    began = datetime(2027, 1, 1, tzinfo=UTC)
    page.clock.install(time=began)
    console = Console(page, server.url, "/?from=2020-01-31T09:00:00Z")
    console.is_loaded()
    field = page.get_by_label("Created from")
    expect(field).to_have_value("2020-01-31T09:00")
    page.clock.pause_at(began + timedelta(minutes=1))
    ends: dict[str, Callable[[], object]] = {
        "2021": lambda: page.clock.run_for(1000),
        "2022": lambda: page.keyboard.press("Enter"),
        "2023": lambda: page.get_by_label("Label").focus(),
    }
    for year, end in ends.items():
        before = page.url
        page.get_by_label("Label").focus()
        field.focus()
        for key in ("ArrowRight", "ArrowRight", *year):
            page.keyboard.press(key)
        expect(field).to_have_value(f"{year}-01-31T09:00")
        page.clock.run_for(900)
        assert page.url == before
        end()
        expect(page).to_have_url(re.compile(f"from={year}-01-31T09%3A00"))
        page.clock.run_for(100)


def test_overview_counts_the_newest_100_timers(empty: Standalone, page: Page) -> None:
    """It shows the timers by status, those due in the next hour, and the lateness of deliveries."""
    for minutes in (1, 2, 7, 59, 61):
        create(empty, delay=minutes * 60 + 20)
    for id in [create(empty, seconds=0) for _ in range(3)]:
        wait_for_status(empty, id, "delivered")
    failed = create(empty, seconds=0, url=f"{empty.url}/nothing")
    wait_for_status(empty, failed, "failed")
    console = Console(page, empty.url)
    console.sees("9 timers")
    counts = section(page, "Overview").get_by_role("listitem")
    expect(counts).to_have_text(
        [
            re.compile(pattern)
            for pattern in (
                *(r"scheduled\s*5$", r"delivering\s*0$", r"retrying\s*0$"),
                *(r"delivered\s*3$", r"failed\s*1$", r"cancelled\s*0$"),
            )
        ]
    )
    due, late = page.get_by_role("img").evaluate_all("all => all.map(it => it.ariaLabel)")
    assert due.startswith(
        "4 due in the next hour. 0 to 5 min: 2, 5 to 10 min: 1, 10 to 15 min: 0, "
    )
    assert due.endswith(", 55 to 60 min: 1")
    assert re.fullmatch(
        r"3 deliveries by lateness\. up to 10 ms: \d, up to 100 ms: \d, up to 1 s: \d,"
        r" up to 10 s: \d, more than 10 s: \d",
        late,
    )
    console.sees(re.compile(r"max\s+\d+ ms\s+\(of 3\)"))
    counts.get_by_role("link", name="failed").click()
    expect(page.get_by_label("Status")).to_have_value("failed")
    create_batch(empty, 95)
    page.reload()
    console.sees("Newest 100 timers only")


SCRIPT = "<script>document.body.dataset.hit = 1</script><img src=x onerror=\"this.id='hit'\">"


def test_text_is_never_rendered_as_html(
    server: Standalone, page: Page, httpserver: HTTPServer
) -> None:
    """Labels, headers, bodies, metadata and responses are shown as plain text."""
    httpserver.expect_request(re.compile("/.*")).respond_with_data(SCRIPT, 418)
    failed = create(
        server,
        seconds=0,
        url=httpserver.url_for("/") + SCRIPT.replace(" ", ""),
        label="<b>bold</b>",
        headers={"X-Script": SCRIPT},
        body=SCRIPT,
        metadata={SCRIPT: SCRIPT},
    )
    wait_for_status(server, failed, "failed")
    received = create(server, seconds=0, headers={"X-Script": SCRIPT}, body=SCRIPT, label="got it")
    wait_for_status(server, received, "delivered")
    console = Console(page, server.url)
    for view, place in (
        ("/", "tbody th a"),
        (f"/timers/{failed}", "h1"),
        (f"/timers/{failed}/reschedule", "h1"),
    ):
        console.go(view)
        page.locator(place).get_by_text("<b>bold</b>").wait_for()
        assert not page.locator("main b", has_text="bold").count()
    console.go(f"/timers/{failed}")
    for name in ("Body", "Headers", "Response to attempt 1"):
        assert SCRIPT in page.get_by_label(name, exact=True).inner_text()
    console.go("/received")
    # Webhooks of other tests may arrive meanwhile, and the latest one is on top.
    arrival = page.locator("details", has=page.locator(f'a[href$="{received}"]'))
    arrival.locator("summary").click()
    assert SCRIPT in arrival.get_by_label("Body", exact=True).inner_text()
    assert page.evaluate("document.body.dataset.hit ?? document.querySelector('#hit')") is None
    assert page.locator("main img").count() == 0


def test_attempt_shows_where_a_redirect_points(
    server: Standalone, page: Page, httpserver: HTTPServer
) -> None:
    """The owner sees why the receiver did not get the webhook."""
    away = {"Location": "https://new.example/hook"}
    httpserver.expect_request("/moved").respond_with_data(status=308, headers=away)
    id = create(server, seconds=0, url=httpserver.url_for("/moved"))
    wait_for_status(server, id, "failed")
    console = Console(page, server.url)
    console.go(f"/timers/{id}")
    console.sees(re.compile("https://new.example/hook"))


def test_long_received_body_is_shown_in_part(server: Standalone, page: Page) -> None:
    """The page shows the first 2048 bytes and the full size."""
    requests.post(f"{server.url}/_receiver/long", data="long " * 1000, timeout=30)
    console = Console(page, server.url, "/received")
    page.get_by_text("/_receiver/long").first.click()
    console.sees("The first 2048 of 5000 bytes:")
    body = page.locator("details[open]").get_by_label("Body", exact=True).inner_text()
    assert body == ("long " * 1000)[:2048]


class Keyed(NamedTuple):
    """A server that requires API keys."""

    server: Standalone
    database: Path

    def key(self, role: str = "full") -> str:
        """Return a new API key."""
        return self.run("add", "--role", role)

    def run(self, *arguments: str) -> str:
        return run_timers("keys", *arguments, TIMERS_DB=str(self.database)).stdout.strip()

    def create(self, key: str, **fields: Any) -> str:
        """Create a timer that is due in an hour. Return its ID."""
        body = {"url": f"{self.server.url}/_receiver/hello", "hours": 1, **fields}
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.server.url}/timers"
        response = requests.post(url, json=body, headers=headers, timeout=30)
        return str(response.json()["id"])

    def sign_in(self, page: Page, key: str) -> None:
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    database = tmp_path_factory.mktemp("keyed") / "timers.db"
    with Standalone(database, {"AUTH": "keys"}) as running:
        yield Keyed(running, database)


def test_api_key_is_kept_in_session_storage(keyed: Keyed, browser: Browser) -> None:
    """The key is sent with API requests only. Signing out removes it."""
    key = keyed.key()
    sent: list[Request] = []
    with opened(browser, expected="401") as page:
        console = Console(page, keyed.server.url)
        console.sees("This service requires an API key")
        expect(page.get_by_label("API key")).to_be_focused()
        page.on("request", collect_in(sent))
        keyed.sign_in(page, key)
        console.has_heading("Overview")
        expect(page.locator("h1")).to_be_focused()
        assert page.evaluate("Object.values(sessionStorage)") == [key]
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        assert key not in page.url
        with page.expect_request("**/health"):
            console.reload()
        headers = {it.url.rpartition("/")[2]: it.headers.get("authorization") for it in sent}
        assert headers["timers?limit=100"] == f"Bearer {key}"
        assert headers["health"] is None
        console.press("Sign out")
        console.sees("This service requires an API key")
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.get_by_role("heading", name="Overview")).to_have_count(0)
        assert page.evaluate("Object.values(sessionStorage)") == []
        assert key not in page.content()


def test_read_only_key_shows_the_services_error(keyed: Keyed, browser: Browser) -> None:
    """A 403 of a read-only key is an error message, not a request to sign in."""
    key = keyed.key("read")
    id = keyed.create(keyed.key(), label="read-only")
    with opened(browser, expected="403") as page:
        console = Console(page, keyed.server.url, f"/timers/{id}")
        keyed.sign_in(page, key)
        console.press("Fire now")
        expect(page.get_by_role("alert")).to_contain_text("key")
        console.has_heading("read-only")


def test_revoked_key_keeps_the_entered_form(keyed: Keyed, browser: Browser) -> None:
    """The page asks for a new key, stops polling until then, and keeps what was entered."""
    first, second = keyed.key(), keyed.key()
    id = keyed.create(first, label="moved")
    with opened(browser, expected="401") as page:
        page.clock.install()
        console = Console(page, keyed.server.url, f"/timers/{id}/reschedule")
        field = page.get_by_label("API key")
        field.fill(first)
        console.press("Sign in")
        console.has_heading("Reschedule moved")
        console.fill(hours="7")
        keyed.run("revoke", first)
        console.press("Reschedule")
        console.sees("This API key is not valid.")
        expect(field).to_be_focused()
        assert not page.get_by_text("Reschedule moved").is_visible()
        with page.expect_response(f"**/timers/{id}"):
            console.reload()
        urls: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.clock.run_for(60_000)
        assert not [url for url in urls if id in url]
        field.fill(second)
        console.press("Sign in")
        console.has_heading("Reschedule moved")
        assert page.locator("[name=hours]").input_value() == "7"
        expect(form_error(page)).to_have_count(0)
        console.press("Reschedule")
        console.sees("Timer rescheduled.")


def test_blocked_session_storage_is_reported(
    server: Standalone, keyed: Keyed, browser: Browser
) -> None:
    """Without session storage the console works only with a service that requires no key."""
    blocked = """Object.defineProperty(window, "sessionStorage", {
        get() { throw new DOMException("Blocked", "SecurityError"); },
    });"""
    with opened(browser) as page:
        page.add_init_script(blocked)
        Console(page, server.url).has_heading("Overview")
        console = Console(page, keyed.server.url)
        page.get_by_label("API key").fill(keyed.key())
        console.press("Sign in")
        console.sees(re.compile("blocks session storage"))


@pytest.mark.parametrize("key", ["clé-€", "two words", "tmr_nothing_at_all"])
def test_invalid_key_is_rejected(keyed: Keyed, browser: Browser, key: str) -> None:
    """An unknown key, or one that cannot be sent in a header, is not stored."""
    with opened(browser, expected="401") as page:
        console = Console(page, keyed.server.url)
        page.get_by_label("API key").fill(key)
        console.press("Sign in")
        console.sees("This API key is not valid.")
        expect(page.get_by_label("API key")).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0


def test_revoked_key_closes_an_open_dialog(keyed: Keyed, browser: Browser) -> None:
    """The dialog does not block the API key form. The view reloads after signing in."""
    first, second = keyed.key(), keyed.key()
    id = keyed.create(first, label="dialog")
    with opened(browser, expected="401") as page:
        console = Console(page, keyed.server.url, f"/timers/{id}")
        page.get_by_label("API key").fill(first)
        console.press("Sign in")
        console.press("Cancel timer")
        keyed.run("revoke", first)
        console.reload()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(second)
        requests.post(
            f"{keyed.server.url}/timers/{id}/fire",
            headers={"Authorization": f"Bearer {second}"},
            timeout=30,
        )
        page.keyboard.press("Enter")
        console.has_heading("dialog")
        console.sees(re.compile(r"Delivered \d+ ms late"))


def test_unreachable_service_keeps_the_last_data(empty: Standalone, browser: Browser) -> None:
    """The page warns about old data until the service responds again."""
    id = create(empty, label="kept")
    with opened(browser, expected="ERR_CONNECTION_REFUSED|ERR_EMPTY|ERR_FAILED") as page:
        console = Console(page, empty.url, f"/timers/{id}")
        console.sees("scheduled")
        page.route("**/timers/*", lambda route: route.abort())
        console.reload()
        console.sees("The service did not respond. This data may be out of date.")
        console.sees("kept")
        page.unroute("**/timers/*")
        console.press("Try again")
        page.get_by_role("alert").filter(has_text="respond").wait_for(state="detached")


def test_failed_health_check_is_shown_until_it_passes(server: Standalone, browser: Browser) -> None:
    """The rest of the page keeps working."""
    create(server, label="still there")
    note = "The disk is full."
    with opened(browser, expected="503") as page:
        console = Console(page, server.url)
        console.sees("still there")
        page.get_by_label("Label").press_sequentially("hal")
        page.route("**/health", lambda it: it.fulfill(status=503, json={"detail": note}))
        console.reload()
        console.sees(re.compile(note))
        assert page.get_by_text("still there").is_visible()
        expect(page.get_by_label("Label")).to_have_value("hal")
        page.unroute("**/health")
        console.reload()
        page.get_by_text(note).wait_for(state="detached")


def test_loading_message_is_shown_until_the_first_response(server: Standalone, page: Page) -> None:
    """A slow service leaves no blank page."""
    waiting: list[Route] = []
    page.route("**/health", collect_in(waiting))
    console = Console(page, server.url)
    console.sees("Loading the console…")
    waiting[0].continue_()
    console.has_heading("Overview")
    expect(page.get_by_text("Loading the console…")).to_have_count(0)


def test_malformed_urls_do_not_break_the_page(server: Standalone, browser: Browser) -> None:
    """A cut-off escape is an unknown timer; other unknown paths show the overview."""
    with opened(browser, expected="404") as page:
        console = Console(page, server.url, "/timers/%E2%82")
        expect(page.get_by_role("alert")).to_be_visible()
        for view in ("/nothing/at/all", "/timers/.", "/timers/%2E%2E", "/timers/../reschedule"):
            console.go("/new")
            console.has_heading("New timer")
            console.go(view)
            console.has_heading("Overview")


def test_unknown_timer_shows_an_error(server: Standalone, browser: Browser) -> None:
    """The page shows the message of the 404."""
    with opened(browser, expected="404") as page:
        Console(page, server.url, "/timers/nobody")
        expect(page.get_by_role("alert")).to_contain_text("no timer")


def views(server: Standalone) -> list[str]:
    """Return the path of every view, with long text in each."""
    failing = {"url": "http://127.0.0.1:9/", "retry": {"max_attempts": 2, "initial_delay": 3600}}
    retrying = create(server, seconds=0, label="r" * 64, headers={"X-A": "b" * 200}, **failing)
    wait_for_status(server, retrying, "retrying")
    done = create(server, seconds=0, label="done", body="x" * 300, metadata={"k" * 99: "v" * 99})
    wait_for_status(server, done, "delivered")
    ids = (retrying, done)
    return [
        "/",
        "/new",
        "/received",
        *(f"/timers/{it}" for it in ids),
        f"/timers/{retrying}/reschedule",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_views_are_accessible(server: Standalone, browser: Browser, scheme: Any) -> None:
    """axe-core finds no serious problem in any view, light or dark, wide or narrow."""
    found: dict[str, list[str]] = {}
    for width in (1200, 390):
        with opened(browser, width=width, scheme=scheme) as page:
            console = Console(page, server.url)
            for view in views(server):
                console.go(view)
                console.is_loaded()
                if view in ("/new", "/received"):
                    page.locator("summary").first.click()
                found[f"{view} {width}"] = barriers(page)
    assert not {view: it for view, it in found.items() if it}


def test_api_key_form_is_accessible(keyed: Keyed, browser: Browser) -> None:
    """axe-core finds no serious problem."""
    with opened(browser) as page:
        Console(page, keyed.server.url).sees("This service requires an API key")
        assert not barriers(page)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screens_need_no_horizontal_scrolling(
    server: Standalone, browser: Browser, width: int
) -> None:
    """Long words wrap in every view."""
    with opened(browser, width=width, height=700) as page:
        console = Console(page, server.url)
        for view in views(server):
            console.go(view)
            console.is_loaded()
            for summary in page.locator("summary").all()[:3]:
                summary.click()
            assert not console.is_too_wide(), view


def test_timer_can_be_created_with_the_keyboard(server: Standalone, page: Page) -> None:
    """Each new view sets the window's title and moves the focus to its heading."""
    console = Console(page, server.url)
    console.has_heading("Overview")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.get_by_role("link", name="New timer").focus()
    page.keyboard.press("Enter")
    console.has_heading("New timer")
    expect(page.locator("h1")).to_be_focused()
    assert page.title() == "New timer · Timers"
    for text in ("", "2", "", ""):  # mode, hours, minutes, seconds
        page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    console.sees("Timer created.")
    console.has_heading(re.compile("[0-9a-f-]{36}"))
    expect(page.locator("h1")).to_be_focused()


@pytest.mark.parametrize(
    ("responses", "offset"),
    [
        ([(0, 0, 0)], 0),
        ([(0, 1900, 0)], 0),
        ([(3_600_000, 2001, 0)], 0),
        ([(3_600_000, 1000, 0)], 3_600_000),
        ([(3_600_000, 1000, 0), (0, 2001, 0)], 3_600_000),
        ([(3_600_000, 0, 1000)], 3_600_500),
        ([(-3_600_000, 0, 0)], -3_599_500),
        ([(-3_600_000, 0, 0), (0, 1900, 0)], 0),
    ],
)
def test_clock_is_read_from_the_date_header(
    server: Standalone, page: Page, responses: list[tuple[int, int, int]], offset: int
) -> None:
    """The offset is measured at the middle of a round trip of at most 2 seconds.

    A response is: its date, when its headers arrive, and how much later its body does. All values
    are in milliseconds after the request.
    """
    page.goto(f"{server.url}/console/api.js")
    program = """async (responses) => {
        const { request, now } = await import(location.href);
        let time = 1e12;
        Date.now = () => time;
        for (const [date, headersAfter, bodyAfter] of responses) {
            window.fetch = async () => {
                const headers = { Date: new Date(time + date).toUTCString() };
                time += headersAfter;
                const response = new Response("", { headers });
                response.json = async () => { time += bodyAfter; };
                return response;
            };
            time = 1e12;
            await request("GET", "timers");
        }
        return now() - time;
    }"""
    assert page.evaluate(program, responses) == offset


def test_time_left_is_counted_by_the_services_clock(server: Standalone, page: Page) -> None:
    """A wrong clock in the browser does not matter."""

    def an_hour_behind(route: Route) -> None:
        response = route.fetch()
        date = parsedate_to_datetime(response.headers["date"]) - timedelta(hours=1)
        headers = {**response.headers, "date": format_datetime(date)}
        route.fulfill(response=response, headers=headers)

    page.route("**/timers/*", an_hour_behind)
    page.route("**/health", an_hour_behind)
    Console(page, server.url, f"/timers/{create(server)}")
    expect(page.get_by_role("timer").first).to_have_text(re.compile("^0(1:59|2:00):"))


FORMATS: dict[str, list[tuple[Any, Any]]] = {
    "countdown": [
        (0, "00:00"),
        (-5000, "00:00"),
        (1, "00:01"),
        (59_001, "01:00"),
        (3_599_000, "59:59"),
        (3_600_000, "01:00:00"),
        (90_061_000, "1 d 01:01:01"),
    ],
    "duration": [
        (0.0021, "2 ms"),
        (-0.5, "-500 ms"),
        (0.9999, "1 s"),
        (1.26, "1.3 s"),
        (30, "30 s"),
        (59.99, "1 min"),
        (125, "2 min 5 s"),
        (43_200, "12 h"),
        (12_000, "3 h 20 min"),
    ],
    "parseLines": [("a: b\n\n c : d: e ", {"a": "b", "c": "d: e"}), ("", {})],
}


@pytest.mark.parametrize("function", FORMATS)
def test_values_are_formatted_for_people(server: Standalone, page: Page, function: str) -> None:
    """Durations are short, and a countdown is rounded up."""
    page.goto(f"{server.url}/console")
    program = """async ([name, values]) => {
        const format = await import(new URL("console/format.js", location.href));
        return values.map((value) => format[name](value));
    }"""
    values, texts = zip(*FORMATS[function], strict=True)
    assert page.evaluate(program, [function, values]) == list(texts)


def test_readme_shows_a_small_screenshot(tmp_path: Path, browser: Browser) -> None:
    """`make screenshot` works, and its PNG is below 150 KB."""
    take(tmp_path / "console.png", tmp_path, browser)
    for path in (tmp_path / "console.png", PICTURE):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150_000
    beginning = (ROOT / "README.md").read_text()[:1000]
    assert f"]({PICTURE.relative_to(ROOT)})" in beginning
