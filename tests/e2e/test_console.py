"""The console in a real browser, on the real server."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from playwright.sync_api import APIResponse, Browser, Page, Request, Route, expect
from pytest_httpserver import HTTPServer

from tests.support.browser import Console, barriers, chromium, opened
from tests.support.processes import ROOT, Standalone, tenants, wait_until
from tools.screenshot import PICTURE, take

pytestmark = pytest.mark.e2e


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


def make(server: Standalone, **members: Any) -> str:
    """Make a timer, in an hour if nothing else is said; return its id."""
    wanted = {"url": f"{server.url}/_receiver/hello", **members}
    if not wanted.keys() & {"seconds", "delay", "fire_at"}:
        wanted["delay"] = 3600
    answer = requests.post(f"{server.url}/timers", json=wanted, timeout=30)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def labelled(server: Standalone, label: str) -> list[dict[str, Any]]:
    """Return the timers of a label, newest first."""
    found = requests.get(f"{server.url}/timers?label={label}", timeout=30)
    return list(found.json()["timers"])


def settled(server: Standalone, id: str, status: str) -> None:
    wait_until(lambda: server.read(id)["status"] == status)


def test_from_the_first_press_to_the_delivery(empty: Standalone, page: Page) -> None:
    """An empty console leads to a form that is filled in for a first try; its timer counts down,
    is delivered, and is seen to arrive, signed."""
    console = Console(page, empty.url)
    console.press("Make the first one")
    console.is_headed("New timer")
    console.fill(seconds="3", label="first")
    console.press("Set timer")
    console.sees("The timer is set.")
    console.is_headed("first")
    left = page.get_by_role("timer").first
    assert re.fullmatch("00:0[123]", left.inner_text())
    console.sees(re.compile(r"Delivered \d+ ms late, HTTP 204\."))
    assert page.locator(".timeline li.good").inner_text().startswith("1. ")
    console.press("Received")
    console.sees("signature valid")
    console.sees(re.compile(r"^\d+ ms after the deadline$"))
    page.locator("summary").click()
    assert "timer-attempt: 1" in page.locator("pre").inner_text()
    console.press("Overview")
    console.lists("first")
    console.sees("of the only timer")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(
    ("way", "fields", "left"),
    [
        ("Hours, minutes, seconds", {"hours": "1", "minutes": "30"}, 5400),
        ("A duration", {"delay": "1h30m"}, 5400),
        ("A duration", {"delay": "90"}, 90),
        ("A moment", {"fire_at": "2027-01-31T09:00:00"}, None),
    ],
)
def test_every_way_to_say_when(
    server: Standalone,
    browser: Browser,
    way: str,
    fields: dict[str, str],
    left: int | None,
    zone: str,
) -> None:
    """What is written in the form is what the API is asked for; a moment is meant as the reader's
    clock has it."""
    label = f"{way[2]}-{len(fields)}-{left}-{zone[:3]}"
    with opened(browser, zone=zone) as page:
        console = Console(page, server.url, "/new")
        for other, name in (("A duration", "delay"), ("A moment", "fire_at")):
            page.get_by_label(other).check()
            console.fill(**{name: "2d" if name == "delay" else "2028-01-01T00:00:00"})
        page.get_by_label(way).check()
        console.fill(**fields, label=label)
        for other in ("Hours, minutes, seconds", way):
            page.get_by_label(other).check()
        for name, value in fields.items():
            kept = re.compile(f"^{value.removesuffix(':00')}")
            expect(page.locator(f"[name={name}]")).to_have_value(kept)
        console.press("Set timer")
        console.sees("The timer is set.")
    (timer,) = labelled(server, label)
    if left is not None:
        assert left - 30 <= timer["time_left"] <= left
    else:
        assert timer["fire_at"] == f"2027-01-31T{'09' if zone == 'UTC' else '14'}:00:00Z"


def test_a_whole_webhook(server: Standalone, page: Page) -> None:
    """All that a timer can have can be said, and is shown again."""
    console = Console(page, server.url, "/new")
    console.fill(
        hours="2",
        url="https://example.com/{id}",
        label="whole",
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
    console.press("Set timer")
    console.sees("The timer is set.")
    (timer,) = labelled(server, "whole")
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
    assert page.locator(".facts dd").last.inner_text() == "empty"
    for text in ("PUT https://example.com/{id}", "X-Colon: a: b", "3 attempts", "4711", "/failed"):
        console.sees(re.compile(re.escape(text)))


@pytest.mark.parametrize(
    ("fields", "at", "says"),
    [
        ({"delay": "90x"}, "delay", None),
        ({"delay": "1h", "url": "ftp://example.com/"}, "url", None),
        ({"delay": "1h", "timeout": "31"}, "timeout", None),
        ({"delay": "1h", "max_attempts": "0"}, "max_attempts", None),
        ({"delay": "1h", "headers": "Host: x"}, "headers", None),
        ({"delay": "1h", "headers": "no colon"}, "headers", "Write “name: value”, not “no colon”."),
        ({"delay": "1h", "headers": "A: 1\na: 2"}, "headers", "“a” is given twice."),
        ({"delay": "1h", "metadata": "a: 1\na: 1"}, "metadata", "“a” is given twice."),
        ({"delay": "1h", "body": "{"}, "body", "The body is no JSON."),
        ({"hours": ""}, "hours", "Say in how long."),
        ({"fire_at": ""}, "fire_at", "Say at which moment."),
    ],
)
def test_what_is_wrong_stands_at_its_field(
    server: Standalone,
    browser: Browser,
    fields: dict[str, str],
    at: str,
    says: str | None,
) -> None:
    """What the service refuses is told in its words, the field at fault has the focus, all that
    was written is still there, and what is mended is taken."""
    with opened(browser, expected="400") as page:
        console = Console(page, server.url, "/new")
        way = {"hours": "Hours, minutes, seconds", "fire_at": "A moment"}.get(at, "A duration")
        page.get_by_label(way).check()
        console.fill(**fields)
        if "body" in fields:
            page.get_by_label("The body is JSON").check()
        console.press("Set timer")
        refusal = page.locator("#refusal")
        refusal.filter(has_text=".").wait_for()
        assert says is None or refusal.inner_text() == says
        expect(page.locator(f"[name={at}]")).to_be_focused()
        assert page.locator("[aria-invalid=true]").get_attribute("name") == at
        for name, value in fields.items():
            assert page.locator(f"[name={name}]").input_value() == value
        mended = {
            "delay": "2h",
            "hours": "2",
            "fire_at": "2027-01-31T09:00",
            "url": "https://example.com/",
            "max_attempts": "3",
        }
        console.fill(**{at: mended.get(at, "")})
        console.press("Set timer")
        console.sees("The timer is set.")


def test_a_second_press_makes_no_second_timer(server: Standalone, page: Page) -> None:
    """An answer that is lost on its way does not lead to two timers; whatever is changed in the
    form makes it another one."""
    console = Console(page, server.url, "/new")
    console.fill(hours="1", label="pressed")

    def cut_off(route: Route) -> None:
        route.fulfill(response=route.fetch(), body="{")

    page.route("**/timers", cut_off)
    console.press("Set timer")
    console.sees("The service does not answer.")
    page.unroute("**/timers")
    console.press("Set timer")
    console.is_headed("pressed")
    assert len(labelled(server, "pressed")) == 1
    console.go("/new")
    console.fill(hours="1", label="pressed")
    page.route("**/timers", cut_off)
    console.press("Set timer")
    console.sees("The service does not answer.")
    page.unroute("**/timers")
    console.fill(label="thought again")
    console.press("Set timer")
    console.is_headed("thought again")
    assert len(labelled(server, "pressed")) == 2


def test_cancel(server: Standalone, page: Page) -> None:
    """Cancelling is asked once more, can be thought better of, and then is done."""
    id = make(server, label="to cancel")
    console = Console(page, server.url, f"/timers/{id}")
    dialog = page.get_by_role("dialog")
    console.press("Cancel timer")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    assert server.read(id)["status"] == "scheduled"
    console.press("Cancel timer")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    console.press("Cancel timer")
    dialog.get_by_role("button", name="Cancel timer").click()
    console.sees("Nothing is sent.")
    assert server.read(id)["status"] == "cancelled"
    expect(page.locator("h1")).to_be_focused()
    console.sees("The timer is cancelled.")
    page.get_by_text("The timer is cancelled.").wait_for(state="detached")
    assert not page.get_by_role("button", name="Fire now").is_visible()


def test_reschedule(server: Standalone, page: Page) -> None:
    """A waiting timer gets another deadline, and nothing else changes."""
    id = make(server, label="to move", metadata={"a": "b"})
    before = server.read(id)
    console = Console(page, server.url, f"/timers/{id}")
    console.press("Reschedule")
    console.is_headed("Reschedule to move")
    expect(page.locator("h1")).to_be_focused()
    console.fill(hours="5")
    console.press("Reschedule")
    console.sees("The timer has a new deadline.")
    console.sees(re.compile("04:59:5[0-9]"))
    after = server.read(id)
    assert {it for it in after if after[it] != before[it]} == {
        "fire_at",
        "next_attempt_at",
        "time_left",
    }


def test_fire_now(server: Standalone, page: Page) -> None:
    """A waiting timer is sent at once."""
    id = make(server, label="to fire")
    console = Console(page, server.url, f"/timers/{id}")
    console.press("Fire now")
    console.sees(re.compile(r"Delivered \d+ ms late"))
    assert server.read(id)["status"] == "delivered"
    expect(page.locator(".actions")).to_have_css("display", "none")


def test_a_double_press(server: Standalone, page: Page, httpserver: HTTPServer) -> None:
    """While something is under way nothing more can be pressed, until what came of it is shown."""
    httpserver.expect_request("/hook").respond_with_data(status=404)
    id = make(server, url=httpserver.url_for("/hook"))
    console = Console(page, server.url, f"/timers/{id}")
    console.sees("scheduled")
    held: list[Route] = []
    for name in ("Fire now", "Retry"):
        page.route(f"**/timers/{id}**", lambda it: held.append(it))  # noqa: PLW0108  # a list's own can't
        page.get_by_role("button", name=name).dblclick()
        expect(page.locator(".actions button:enabled")).to_have_count(0)
        (pressed,) = (it for it in held if it.request.method == "POST")
        with page.expect_request(f"**/timers/{id}"):
            pressed.continue_()
        console.sees(re.compile("The webhook is on its way"))
        expect(page.locator(".actions button:enabled")).to_have_count(0)
        page.unroute(f"**/timers/{id}**")
        held.pop().continue_()
        held.clear()
        console.sees("Given up after")
        expect(page.get_by_role("button", name="Retry")).to_be_enabled()


def test_too_late(server: Standalone, browser: Browser) -> None:
    """What is no longer possible is told, and what is true by now is shown."""
    id = make(server)
    with opened(browser, expected="409") as page:
        console = Console(page, server.url, f"/timers/{id}")
        console.sees("Fire now")
        requests.post(f"{server.url}/timers/{id}/fire", timeout=30)
        settled(server, id, "delivered")
        page.get_by_role("button", name="Fire now").click(timeout=2000)
        console.sees(re.compile("A timer that is delivered can't be fired"))
        expect(page.locator("h1")).to_be_focused()
        console.sees(re.compile("Delivered"))


def test_retry(server: Standalone, page: Page, httpserver: HTTPServer) -> None:
    """A failed timer says why, is tried again at the press of a button, and shows both attempts."""
    httpserver.expect_request("/hook").respond_with_data("out of order", status=500)
    id = make(server, seconds=0, url=httpserver.url_for("/hook"), retry={"max_attempts": 1})
    settled(server, id, "failed")
    console = Console(page, server.url, f"/timers/{id}")
    console.sees("Given up after 1 attempt: HTTP 500.")
    console.sees("out of order")
    httpserver.clear()
    httpserver.expect_request("/hook").respond_with_data("thanks")
    console.press("Retry")
    console.sees(re.compile(r"Delivered \d+ ms late, HTTP 200\."))
    attempts = page.locator(".timeline li")
    assert [it[:2] for it in attempts.all_inner_texts()] == ["1.", "2."]
    assert attempts.evaluate_all("all => all.map(it => it.className)") == ["bad", "good"]


def test_more_attempts_than_are_kept(server: Standalone, page: Page) -> None:
    """Of many attempts the latest are shown, and that there were others."""
    id = make(server, seconds=0, url=f"{server.url}/nothing")
    console = Console(page, server.url, f"/timers/{id}")
    for _ in range(19):
        settled(server, id, "failed")
        requests.post(f"{server.url}/timers/{id}/retry", timeout=30).raise_for_status()
    settled(server, id, "failed")
    console.looks_again()
    console.sees("Given up after 20 attempts")
    expect(page.get_by_text("Earlier ones are not kept.")).to_have_count(0)
    console.press("Retry")
    console.sees("Given up after 21 attempts")
    console.sees("Earlier ones are not kept.")
    expect(page.locator(".timeline li")).to_have_count(20)


def test_a_retrying_timer(server: Standalone, page: Page) -> None:
    """While it waits for the next attempt it shows when that is, and all that were."""
    retry = {"max_attempts": 3, "initial_delay": 3600, "max_delay": 3600}
    id = make(server, seconds=0, url="http://127.0.0.1:9/", retry=retry)
    settled(server, id, "retrying")
    console = Console(page, server.url, f"/timers/{id}")
    console.sees(re.compile("connect: Connection refused. The next attempt is due at"))
    parts = page.locator(".view > *").evaluate_all("all => all.map(it => it.className)")
    assert [it for it in parts if it in ("title", "card now", "two")] == [
        "title",
        "card now",
        "two",
    ]
    first, following = page.locator(".timeline li").all_inner_texts()
    assert "connect: Connection refused in" in first
    assert following.startswith("Next ")


@pytest.mark.parametrize(
    ("status", "first", "then"),
    [
        ("scheduled", "Its webhook is sent at", "Its webhook was due at"),
        ("retrying", "The next attempt is due at", "The next attempt was due at"),
    ],
)
def test_what_falls_due(server: Standalone, page: Page, status: str, first: str, then: str) -> None:
    """A countdown goes down to nothing; what is due by then, and not yet answered for, is not
    spoken of as what is to come."""
    began = datetime(2027, 1, 1, tzinfo=UTC)
    attempt = {
        "number": 1,
        "at": "2026-12-31T23:59:00Z",
        "lateness": 0,
        "duration": 0,
        "status": 500,
    }
    timer = server.read(make(server)) | {
        "status": status,
        "next_attempt_at": f"{began + timedelta(minutes=2):%FT%TZ}",
        "attempts": [attempt] if status == "retrying" else [],
    }
    page.route("**/timers/*", lambda it: it.fulfill(json=timer))
    page.route("**/timers?*", lambda it: it.fulfill(json={"timers": [timer], "next_cursor": None}))
    page.route("**/health", lambda it: it.fulfill(json={"auth": "none", "receiver": None}))
    page.clock.install(time=began)
    console = Console(page, server.url)
    console.sees(re.compile(r"the next\s+in 0"))
    console.go(f"/timers/{timer['id']}")
    console.sees(re.compile(first))
    page.clock.pause_at(began + timedelta(minutes=1))
    page.route("**/timers/*", lambda _: None)  # from now on it hangs
    for milliseconds, big, small in ((57_500, "00:03", "in 00:03"), (3000, "due", "due")):
        page.clock.run_for(milliseconds)
        expect(page.get_by_role("timer")).to_have_text([big, small])
    expect(page.locator(".now p")).to_contain_text(then)
    console.go("/")
    page.clock.resume()
    console.sees(re.compile(r"the next\s+due"))


def test_filters_and_pages(empty: Standalone, page: Page) -> None:
    """The list is narrowed by status, label and time of creation, and leafed through, there and
    back; the address keeps it."""
    for number in range(30):
        make(empty, label=f"n{number}")
    gone = make(empty, label="gone")
    requests.delete(f"{empty.url}/timers/{gone}", timeout=30)
    console = Console(page, empty.url)
    newest = ["gone", *(f"n{number}" for number in range(29, 5, -1))]
    console.lists(*newest)
    console.press("Older")
    console.lists(*(f"n{number}" for number in range(5, -1, -1)))
    page.go_back()
    console.lists(*newest)
    console.press("Older")
    console.lists(*(f"n{number}" for number in range(5, -1, -1)))
    console.fill(status="cancelled")
    console.lists("gone")
    page.reload()
    console.lists("gone")
    expect(page.locator("#status")).to_have_value("cancelled")
    console.press("Show all")
    console.lists(*newest)
    console.fill(label="n17")
    page.keyboard.press("Tab")
    console.lists("n17")
    console.fill(status="failed")
    console.sees("No timers match.")
    console.press("Show all")
    console.lists(*newest)
    console.fill(to=f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M}")
    console.sees("No timers match.")


def test_labels_of_blanks(server: Standalone, page: Page) -> None:
    """A timer whose label can't be seen is called by its id; blanks at an end are part of a label,
    for a filter too."""
    unseen = make(server, label="\u00a0\u200b")
    console = Console(page, server.url)
    page.get_by_role("link", name=unseen, exact=True).click()
    console.is_headed(unseen)
    console.press("Reschedule")
    console.is_headed(f"Reschedule {unseen}")
    make(server, label="blank")
    make(server, label="blank ")
    for label in ("blank", "blank "):
        console.go("/")
        console.fill(label=label)
        page.keyboard.press("Enter")
        console.lists("blank")
        assert page.locator("tbody a").evaluate("it => it.textContent") == label


@pytest.mark.parametrize("width", [1200, 390])
def test_what_leads_to_the_list(server: Standalone, browser: Browser, width: int) -> None:
    """Who leafs, or follows a count, is taken to the beginning of the list, wherever that is."""
    timers = [{"hours": 1, "url": "https://example.com/", "label": "many"}] * 26
    requests.post(f"{server.url}/timers/batch", json={"timers": timers}, timeout=30)
    with opened(browser, width=width, height=700) as page:
        console = Console(page, server.url)
        heading = page.locator("h2#timers")
        for name in ("Older", "Newest", "scheduled", "Older", "Show all", "cancelled"):
            console.is_loaded()
            page.evaluate("scrollTo(0, 0)")
            page.get_by_role("link", name=name).first.click()
            expect(heading).to_be_focused()
            console.is_loaded()
            expect(heading).to_be_in_viewport()
            assert (
                width > 390 or page.evaluate("document.activeElement.getBoundingClientRect().y") < 9
            )


def test_leafing_through_what_is_filtered(server: Standalone, page: Page) -> None:
    """Older timers are those of the same filters; another filter begins with the newest again, and
    a field that is left as it was is none."""
    timers = [{"hours": 1, "url": "https://example.com/", "label": "leafed"}] * 26
    requests.post(f"{server.url}/timers/batch", json={"timers": timers}, timeout=30)
    console = Console(page, server.url, "/?label=leafed")
    console.lists(*["leafed"] * 25)
    console.press("Older")
    console.lists("leafed")
    page.locator("#from").focus()
    page.locator("#label").focus()
    expect(page).to_have_url(re.compile("label=leafed&cursor="))
    console.fill(status="cancelled")
    console.sees("No timers match.")
    expect(page).to_have_url(re.compile(r"#/\?label=leafed&status=cancelled$"))


def test_an_answer_that_was_overtaken(server: Standalone, page: Page) -> None:
    """What was asked earlier and is answered later is not shown in place of what is newer."""
    id = make(server)
    console = Console(page, server.url, f"/timers/{id}")
    console.sees("scheduled")
    held: list[tuple[Route, APIResponse]] = []
    page.route(f"**/timers/{id}", lambda it: held.append((it, it.fetch())), times=1)
    with page.expect_request(f"**/timers/{id}"):
        console.looks_again()
    console.press("Fire now")
    console.sees(re.compile("^Delivered"))
    ((earlier, answer),) = held
    with page.expect_response(f"**/timers/{id}"):
        earlier.fulfill(response=answer)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert page.locator(".now").inner_text().startswith("✓ delivered")


def test_typing_is_left_alone(server: Standalone, page: Page) -> None:
    """What is half typed in a filter stays while the list is read again."""
    make(server, delay=2, label="soon")
    console = Console(page, server.url)
    console.sees("soon")
    page.locator("#label").press_sequentially("hal")
    console.sees(re.compile("delivered"))
    page.wait_for_timeout(3000)
    expect(page.locator("#label")).to_have_value("hal")


def test_a_moment_that_is_typed(server: Standalone, page: Page) -> None:
    """A year that is typed over another is four years on its way; it counts when it stays so for a
    second, at Enter, or when the field is left."""
    began = datetime(2027, 1, 1, tzinfo=UTC)
    page.clock.install(time=began)
    console = Console(page, server.url, "/?from=2020-01-31T09:00:00Z")
    console.is_loaded()
    field = page.locator("#from")
    expect(field).to_have_value("2020-01-31T09:00")
    page.clock.pause_at(began + timedelta(minutes=1))
    ends: dict[str, Callable[[], object]] = {
        "2021": lambda: page.clock.run_for(1000),
        "2022": lambda: page.keyboard.press("Enter"),
        "2023": lambda: page.locator("#label").focus(),
    }
    for year, end in ends.items():
        before = page.url
        page.locator("#label").focus()
        field.focus()
        for key in ("ArrowRight", "ArrowRight", *year):
            page.keyboard.press(key)
        expect(field).to_have_value(f"{year}-01-31T09:00")
        page.clock.run_for(900)
        assert page.url == before
        end()
        expect(page).to_have_url(re.compile(f"from={year}-01-31T09%3A00"))
        page.clock.run_for(100)


def test_overview(empty: Standalone, page: Page) -> None:
    """It counts the newest 100 by status and says so, and shows what is due and how late it was."""
    for minutes in (1, 2, 7, 59, 61):
        make(empty, delay=minutes * 60 + 20)
    done = [make(empty, seconds=0) for _ in range(3)]
    for id in done:
        settled(empty, id, "delivered")
    failed = make(empty, seconds=0, url=f"{empty.url}/nothing")
    settled(empty, failed, "failed")
    console = Console(page, empty.url)
    console.sees("of all 9 timers")
    counts = dict(it.split("\n") for it in page.locator(".counts li").all_inner_texts())
    assert {name.split()[-1]: int(count) for name, count in counts.items()} == {
        "scheduled": 5,
        "delivering": 0,
        "retrying": 0,
        "delivered": 3,
        "failed": 1,
        "cancelled": 0,
    }
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
    console.sees(re.compile(r"worst\s+\d+ ms\s+of 3"))
    page.locator(".counts a").filter(has_text="failed").click()
    expect(page.locator("#status")).to_have_value("failed")
    requests.post(
        f"{empty.url}/timers/batch",
        json={"timers": [{"hours": 2, "url": f"{empty.url}/_receiver/x"}] * 95},
        timeout=60,
    )
    page.reload()
    console.sees("of the newest 100 timers")


SCRIPT = "<script>document.body.dataset.hit = 1</script><img src=x onerror=\"this.id='hit'\">"


def test_text_stays_text(server: Standalone, page: Page, httpserver: HTTPServer) -> None:
    """Whatever a timer's owner or a receiver writes is shown as it is, and never becomes markup."""
    httpserver.expect_request(re.compile("/.*")).respond_with_data(SCRIPT, 418)
    failed = make(
        server,
        seconds=0,
        url=httpserver.url_for("/") + SCRIPT.replace(" ", ""),
        label="<b>bold</b>",
        headers={"X-Script": SCRIPT},
        body=SCRIPT,
        metadata={SCRIPT: SCRIPT},
    )
    settled(server, failed, "failed")
    received = make(server, seconds=0, headers={"X-Script": SCRIPT}, body=SCRIPT, label="got it")
    settled(server, received, "delivered")
    console = Console(page, server.url)
    for view, where in (
        ("/", "tbody th a"),
        (f"/timers/{failed}", "h1"),
        (f"/timers/{failed}/reschedule", "h1"),
    ):
        console.go(view)
        page.locator(where).get_by_text("<b>bold</b>").wait_for()
        assert not page.locator("main b", has_text="bold").count()
    console.go(f"/timers/{failed}")
    for name in ("Body", "Headers", "Answer of attempt 1"):
        assert SCRIPT in page.get_by_label(name, exact=True).inner_text()
    console.go("/received")
    page.locator("summary").first.click()
    assert SCRIPT in page.get_by_label("Body", exact=True).first.inner_text()
    assert page.evaluate("document.body.dataset.hit ?? document.querySelector('#hit')") is None
    assert page.locator("main img").count() == 0


def test_the_beginning_of_a_body(server: Standalone, page: Page) -> None:
    """A long body that arrived is shown as far as the service tells it, and said to go on."""
    requests.post(f"{server.url}/_receiver/long", data="long " * 1000, timeout=30)
    console = Console(page, server.url, "/received")
    page.get_by_text("/_receiver/long").first.click()
    console.sees("It begins so, and has 5000 bytes.")
    body = page.locator("details[open]").get_by_label("Body", exact=True).inner_text()
    assert body == ("long " * 1000)[:2048]


def test_keys(tmp_path: Path, browser: Browser) -> None:
    """Where keys are wanted it asks for one at once, says if it opens nothing, keeps it in the
    session's storage alone, and forgets it when told to."""
    database = tmp_path / "timers.db"
    asked: list[Request] = []
    with Standalone(database, {"AUTH": "keys"}) as server, opened(browser, expected="401") as page:
        full, read = (
            tenants("keys", "add", "--role", role, TIMERS_DB=str(database)).stdout.strip()
            for role in ("full", "read")
        )
        console = Console(page, server.url)
        console.sees("This service wants a key")
        expect(page.get_by_label("API key")).to_be_focused()
        page.on("request", lambda it: asked.append(it))  # noqa: PLW0108  # a list's own can't
        page.get_by_label("API key").fill("tmr_nothing_at_all")
        console.press("Open")
        console.sees("This key opens nothing here.")
        page.get_by_label("API key").fill(full)
        console.press("Open")
        console.sees("There are no timers yet.")
        expect(page.locator("h1")).to_be_focused()
        assert page.evaluate("Object.values(sessionStorage)") == [full]
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        assert full not in page.url
        with page.expect_request("**/health"):
            console.looks_again()
        sent = {it.url.rpartition("/")[2]: it.headers.get("authorization") for it in asked}
        assert sent["timers?limit=100"] == f"Bearer {full}"
        assert sent["health"] is None
        console.press("New timer")
        console.fill(hours="1", label="keyed")
        console.press("Set timer")
        console.sees("The timer is set.")
        console.press("Forget key")
        console.sees("This service wants a key")
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.locator(".view")).to_have_count(0)
        assert page.evaluate("Object.values(sessionStorage)") == []
        assert full not in page.content()
    with (
        Standalone(database, {"AUTH": "keys"}) as server,
        opened(browser, expected="40[13]") as page,
    ):
        console = Console(page, server.url)
        page.get_by_label("API key").fill(read)
        console.press("Open")
        console.press("keyed")
        console.press("Fire now")
        console.sees("This key may only read.")
        tenants("keys", "revoke", read, TIMERS_DB=str(database))
        console.looks_again()
        console.sees("This key opens nothing here.")


class Keyed(NamedTuple):
    """A server that wants keys."""

    server: Standalone
    database: Path

    def key(self, role: str = "full") -> str:
        """Return a new key."""
        return self.run("add", "--role", role)

    def run(self, *arguments: str) -> str:
        return tenants("keys", *arguments, TIMERS_DB=str(self.database)).stdout.strip()

    def make(self, key: str, **members: Any) -> str:
        """Make a timer that is due in an hour; return its id."""
        body = {"url": f"{self.server.url}/_receiver/hello", "hours": 1, **members}
        headers = {"Authorization": f"Bearer {key}"}
        answer = requests.post(f"{self.server.url}/timers", json=body, headers=headers, timeout=30)
        return str(answer.json()["id"])


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    database = tmp_path_factory.mktemp("keyed") / "timers.db"
    with Standalone(database, {"AUTH": "keys"}) as running:
        yield Keyed(running, database)


def test_a_key_that_stops_counting(keyed: Keyed, browser: Browser) -> None:
    """Nothing that was filled in is lost when the key must be given anew; nothing is asked with the
    old one meanwhile, and the field for it has the focus."""
    first, second = keyed.key(), keyed.key()
    id = keyed.make(first, label="moved")
    with opened(browser, expected="401") as page:
        page.clock.install()
        console = Console(page, keyed.server.url, f"/timers/{id}/reschedule")
        field = page.get_by_label("API key")
        field.fill(first)
        console.press("Open")
        console.is_headed("Reschedule moved")
        console.fill(hours="7")
        keyed.run("revoke", first)
        console.press("Reschedule")
        console.sees("This key opens nothing here.")
        expect(field).to_be_focused()
        assert not page.get_by_text("Reschedule moved").is_visible()
        with page.expect_response(f"**/timers/{id}"):
            console.looks_again()
        asked: list[str] = []
        page.on("request", lambda it: asked.append(it.url.rpartition("/")[2]))
        page.clock.run_for(60_000)
        assert id not in asked
        field.fill(second)
        console.press("Open")
        console.is_headed("Reschedule moved")
        assert page.locator("[name=hours]").input_value() == "7"
        expect(page.locator("#refusal")).to_have_text("")
        console.press("Reschedule")
        console.sees("The timer has a new deadline.")


def test_a_browser_that_keeps_nothing(server: Standalone, keyed: Keyed, browser: Browser) -> None:
    """Where session storage is forbidden the page works without a key, and says why with one it
    can't."""
    forbidden = """Object.defineProperty(window, "sessionStorage", {
        get() { throw new DOMException("Forbidden", "SecurityError"); },
    });"""
    with opened(browser) as page:
        page.add_init_script(forbidden)
        Console(page, server.url).is_headed("Overview")
        console = Console(page, keyed.server.url)
        page.get_by_label("API key").fill(keyed.key())
        console.press("Open")
        console.sees("This browser lets the page keep nothing, and so no key.")


@pytest.mark.parametrize("key", ["clé-€", "two words", "tmr_nothing_at_all"])
def test_a_key_that_is_none(keyed: Keyed, browser: Browser, key: str) -> None:
    """What is no key of this service, or could be none of any, opens nothing; the field for it has
    the focus."""
    with opened(browser, expected="401") as page:
        console = Console(page, keyed.server.url)
        page.get_by_label("API key").fill(key)
        console.press("Open")
        console.sees("This key opens nothing here.")
        expect(page.get_by_label("API key")).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_dialog_before_the_door(keyed: Keyed, browser: Browser) -> None:
    """A question that is open when the key stops counting is not in the way of a new key; what the
    view shows is read again with that."""
    first, second = keyed.key(), keyed.key()
    id = keyed.make(first, label="asked")
    with opened(browser, expected="401") as page:
        console = Console(page, keyed.server.url, f"/timers/{id}")
        page.get_by_label("API key").fill(first)
        console.press("Open")
        console.press("Cancel timer")
        keyed.run("revoke", first)
        console.looks_again()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(second)
        requests.post(
            f"{keyed.server.url}/timers/{id}/fire",
            headers={"Authorization": f"Bearer {second}"},
            timeout=30,
        )
        page.keyboard.press("Enter")
        console.is_headed("asked")
        console.sees(re.compile(r"Delivered \d+ ms late"))


def test_a_service_that_does_not_answer(empty: Standalone, browser: Browser) -> None:
    """While it is away the page says so and keeps what it has; once it is back, so is the page."""
    id = make(empty, label="kept")
    with opened(browser, expected="ERR_CONNECTION_REFUSED|ERR_EMPTY|ERR_FAILED") as page:
        console = Console(page, empty.url, f"/timers/{id}")
        console.sees("scheduled")
        page.route("**/timers/*", lambda route: route.abort())
        console.looks_again()
        console.sees("The service does not answer. What stands here may be old.")
        console.sees("kept")
        page.unroute("**/timers/*")
        console.press("Try again")
        page.get_by_role("alert").filter(has_text="answer").wait_for(state="detached")


def test_the_service_is_unwell(server: Standalone, browser: Browser) -> None:
    """That all is not well is seen when it begins, and no longer than until it is mended."""
    make(server, label="still there")
    note = "All is not well: The disk is full."
    with opened(browser, expected="503") as page:
        console = Console(page, server.url)
        console.sees("still there")
        page.locator("#label").press_sequentially("hal")
        page.route("**/health", lambda it: it.fulfill(status=503, json={"detail": note[17:]}))
        console.looks_again()
        console.sees(note)
        assert page.get_by_text("still there").is_visible()
        expect(page.locator("#label")).to_have_value("hal")
        page.unroute("**/health")
        console.looks_again()
        page.get_by_text(note).wait_for(state="detached")


def test_a_service_that_hangs(server: Standalone, page: Page) -> None:
    """Until the first answer the page says that it waits."""
    waiting: list[Route] = []
    page.route("**/health", lambda it: waiting.append(it))  # noqa: PLW0108  # a list's own can't
    console = Console(page, server.url)
    console.sees("Loading the console …")
    waiting[0].continue_()
    console.is_headed("Overview")
    expect(page.get_by_text("Loading the console …")).to_have_count(0)


def test_an_address_that_is_none(server: Standalone, browser: Browser) -> None:
    """A link that was cut off in the middle of a letter leads to a page that says what is wrong."""
    with opened(browser, expected="404") as page:
        console = Console(page, server.url, "/timers/%E2%82")
        console.sees("There is no timer with this id.")
        for view in ("/nothing/at/all", "/timers/.", "/timers/%2E%2E", "/timers/../reschedule"):
            console.go("/new")
            console.is_headed("New timer")
            console.go(view)
            console.is_headed("Overview")


def test_an_unknown_timer(server: Standalone, browser: Browser) -> None:
    """Who follows a link to a timer that is gone is told so."""
    with opened(browser, expected="404") as page:
        console = Console(page, server.url, "/timers/nobody")
        console.sees("There is no timer with this id.")


def views(server: Standalone) -> list[str]:
    """Return the addresses of all views, with something to see in each."""
    failing = {"url": "http://127.0.0.1:9/", "retry": {"max_attempts": 2, "initial_delay": 3600}}
    retrying = make(server, seconds=0, label="r" * 64, headers={"X-A": "b" * 200}, **failing)
    settled(server, retrying, "retrying")
    done = make(server, seconds=0, label="done", body="x" * 300, metadata={"k" * 99: "v" * 99})
    settled(server, done, "delivered")
    ids = (retrying, done)
    return [
        "/",
        "/new",
        "/received",
        *(f"/timers/{it}" for it in ids),
        f"/timers/{retrying}/reschedule",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barriers(server: Standalone, browser: Browser, scheme: Any) -> None:
    """axe-core finds nothing serious in any view, light or dark, wide or narrow."""
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


def test_no_barriers_at_the_door(tmp_path: Path, browser: Browser) -> None:
    """Nor in the form that asks for a key, or in an empty list."""
    with Standalone(tmp_path / "timers.db", {"AUTH": "keys"}) as server, opened(browser) as page:
        Console(page, server.url).sees("This service wants a key")
        assert not barriers(page)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_on_a_phone(server: Standalone, browser: Browser, width: int) -> None:
    """Nothing has to be scrolled sideways, whatever long words there are."""
    with opened(browser, width=width, height=700) as page:
        console = Console(page, server.url)
        for view in views(server):
            console.go(view)
            console.is_loaded()
            for summary in page.locator("summary").all()[:3]:
                summary.click()
            assert not console.is_too_wide(), view


def test_with_the_keyboard_alone(server: Standalone, page: Page) -> None:
    """A timer is made without a mouse; a new view has the focus on its heading and names the
    window."""
    console = Console(page, server.url)
    console.sees("Overview")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.get_by_role("link", name="New timer").focus()
    page.keyboard.press("Enter")
    console.is_headed("New timer")
    expect(page.locator("h1")).to_be_focused()
    assert page.title() == "New timer · Timers"
    for text in ("", "2", "", ""):  # how to say when, hours, minutes, seconds
        page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    console.sees("The timer is set.")
    console.is_headed(re.compile("[0-9a-f-]{36}"))
    expect(page.locator("h1")).to_be_focused()


def test_the_clock_of_the_service(server: Standalone, page: Page) -> None:
    """It is read from the answer's head, half the way back, if that was quick; how long the body
    takes does not matter. All in milliseconds."""
    page.goto(f"{server.url}/console/service.js")
    program = """async ([date, way, reading]) => {
        const { ask, now } = await import(location.href);
        const asked = 1e12;
        let time = asked;
        Date.now = () => time;
        window.fetch = async () => {
            time += way;
            const headers = { Date: new Date(asked + date).toUTCString() };
            const answer = new Response("", { headers });
            answer.json = async () => { time += reading; };
            return answer;
        };
        await ask("GET", "timers");
        return now() - time;
    }"""
    for date, way, reading, ahead in (
        (0, 0, 0, 0),
        (3_600_000, 2001, 0, 0),
        (3_600_000, 1000, 0, 3_600_000),
        (0, 2001, 0, 3_600_000),
        (3_600_000, 0, 1000, 3_600_500),
        (-3_600_000, 0, 0, -3_599_500),
        (0, 1900, 0, 0),
    ):
        assert page.evaluate(program, [date, way, reading]) == ahead


def test_a_clock_that_is_wrong(server: Standalone, page: Page) -> None:
    """What is left is counted by the service's clock, whatever the browser's says."""

    def an_hour_behind(route: Route) -> None:
        answer = route.fetch()
        date = parsedate_to_datetime(answer.headers["date"]) - timedelta(hours=1)
        route.fulfill(response=answer, headers={**answer.headers, "date": format_datetime(date)})

    page.route("**/timers/*", an_hour_behind)
    page.route("**/health", an_hour_behind)
    Console(page, server.url, f"/timers/{make(server)}")
    expect(page.get_by_role("timer").first).to_have_text(re.compile("^0(1:59|2:00):"))


def test_words(server: Standalone, page: Page) -> None:
    """Lengths of time are read at a glance, and nothing that is left is rounded down to nothing."""
    page.goto(f"{server.url}/console")
    program = """async ([name, values]) => {
        const words = await import(new URL("console/words.js", location.href));
        return values.map((value) => words[name](value));
    }"""
    for name, wanted in WORDS.items():
        assert page.evaluate(program, [name, [it for it, _ in wanted]]) == [it for _, it in wanted]


WORDS: dict[str, list[tuple[Any, Any]]] = {
    "countdown": [
        (0, "00:00"),
        (-5000, "00:00"),
        (1, "00:01"),
        (59_001, "01:00"),
        (3_599_000, "59:59"),
        (3_600_000, "01:00:00"),
        (90_061_000, "1 d 01:01:01"),
    ],
    "seconds": [
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
    "members": [("a: b\n\n c : d: e ", {"a": "b", "c": "d: e"}), ("", {})],
}


def test_the_picture_in_the_readme(tmp_path: Path, browser: Browser) -> None:
    """`make screenshot` makes it of the page as it is; it is small, and the README begins so."""
    take(tmp_path / "console.png", tmp_path, browser)
    for path in (tmp_path / "console.png", PICTURE):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150_000
    beginning = (ROOT / "README.md").read_text()[:1000]
    assert f"![The console]({PICTURE.relative_to(ROOT)})" in beginning
