"""The routes beyond making and reading one timer: changing, firing, finding, many at once."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from chalice.test import HTTPResponse
from msgspec.structs import replace

from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import DEFAULT_TENANT, RETENTION, Outcome, Status, Timer
from chalicelib.http import requests, responses
from tests.support.fakes import START
from tests.support.routes import JSON, ROUTES, URL, Api, members, refused

MINUTE = timedelta(minutes=1)


def patch(made: Api, id: str, **members: object) -> HTTPResponse:
    return made.send("PATCH", f"/timers/{id}", members)


def failed(made: Api) -> str:
    """Return the id of a timer that ended as failed."""
    id = str(made.create(0)["id"])
    made.sender.outcome = Outcome(status=410)
    made.wakeup()
    return id


def results(answer: HTTPResponse) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.body
    assert set(answer.json_body) == {"results"}
    return list(answer.json_body["results"])


@pytest.mark.parametrize(
    ("when", "fire_at"),
    [
        ({"seconds": 90}, "2026-01-31T12:01:30Z"),
        ({"delay": "2h"}, "2026-01-31T14:00:00Z"),
        ({"fire_at": "2026-02-01T00:00:00+01:00"}, "2026-01-31T23:00:00Z"),
        ({"fire_at": "2020-01-01T00:00:00Z"}, "2026-01-31T12:00:00Z"),
    ],
)
def test_new_deadline(api_on_fakes: Api, when: dict[str, object], fire_at: str) -> None:
    """PATCH takes any way to say when, from now, and the alarm is set anew."""
    id = api_on_fakes.create(60)["id"]
    answer = patch(api_on_fakes, id, **when)
    assert (answer.status_code, answer.json_body["fire_at"]) == (200, fire_at)
    assert api_on_fakes.read(id) == answer.json_body
    assert [wakeup.generation for wakeup in api_on_fakes.scheduler.wakeups] == [1, 2]
    assert [wakeup.generation for wakeup in api_on_fakes.scheduler.cleared] == [1]


def test_change_without_a_deadline(api_on_fakes: Api) -> None:
    """What is changed is changed, the moment stays, and no alarm is touched."""
    before = api_on_fakes.create(60)
    wanted = {"url": f"{URL}/2", "label": "x", "metadata": {"a": "1"}, "body": "hello"}
    answer = patch(api_on_fakes, before["id"], **wanted)
    assert answer.status_code == 200
    kind = {"headers": {"Content-Type": "text/plain; charset=utf-8"}}
    assert answer.json_body == {**before, **wanted, **kind}
    assert len(api_on_fakes.scheduler.wakeups) == 1
    api_on_fakes.clock.forward(60)
    api_on_fakes.wakeup()
    (sent,) = api_on_fakes.sender.sent
    assert (sent[0].url, sent[0].body) == (f"{URL}/2", "hello")


def test_change_with_a_deadline(api_on_fakes: Api) -> None:
    """Both at once: the new moment, and what is to be sent then."""
    id = api_on_fakes.create(60)["id"]
    answer = patch(api_on_fakes, id, seconds=90, url=f"{URL}/2", label="x").json_body
    assert (answer["time_left"], answer["url"], answer["label"]) == (90, f"{URL}/2", "x")


def test_change_while_retrying(api_on_fakes: Api) -> None:
    """A webhook that fails can be mended before its next attempt, which stays when it was."""
    id = api_on_fakes.retrying()
    before = api_on_fakes.read(id)
    answer = patch(api_on_fakes, id, url=f"{URL}/2").json_body
    assert answer == {**before, "url": f"{URL}/2"}
    moved = patch(api_on_fakes, id, seconds=5).json_body
    assert (moved["status"], moved["time_left"]) == ("scheduled", 5)


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize("status", [Status.DELIVERED, Status.FAILED, Status.CANCELLED])
def test_too_late_to_change(api_on_fakes: Api, method: str, status: Status) -> None:
    """A finished timer is neither changed nor fired: 409."""
    id = failed(api_on_fakes)
    stored = api_on_fakes.store.timers[id]
    api_on_fakes.store.timers[id] = replace(stored, status=status)
    path = f"/timers/{id}" if method == "PATCH" else f"/timers/{id}/fire"
    refused(api_on_fakes.send(method, path, {"label": "x"}), 409)


@pytest.mark.parametrize(("method", "path"), [("PATCH", ""), ("POST", "/fire")])
def test_change_while_delivering(api_on_fakes: Api, method: str, path: str) -> None:
    """While the webhook is being sent: 409, and to come again."""
    id = api_on_fakes.delivering()
    answer = api_on_fakes.send(method, f"/timers/{id}{path}", {"label": "x"})
    refused(answer, 409)
    assert answer.headers["Retry-After"] == "1"


def test_bad_change_changes_nothing(api_on_fakes: Api) -> None:
    """A PATCH is done as a whole or not at all."""
    before = api_on_fakes.create(60)
    answer = refused(patch(api_on_fakes, before["id"], label="x", url="ftp://x"), 400)
    assert answer["pointer"] == "/url"
    answer = refused(patch(api_on_fakes, before["id"], label="x", delay="x"), 400)
    assert answer["pointer"] == "/delay"
    assert api_on_fakes.read(before["id"]) == before


def test_change_of_what_is_not_there(api_on_fakes: Api) -> None:
    """No timer, no change; the body is looked at first."""
    refused(patch(api_on_fakes, "nope", label="x"), 404)
    refused(patch(api_on_fakes, "nope", label=5), 400)
    refused(api_on_fakes.ask("PATCH", "/timers/nope", b"{}", {"Content-Type": "text/x"}), 415)


@pytest.mark.parametrize("state", ["scheduled", "retrying"])
def test_fire(api_on_fakes: Api, state: str) -> None:
    """A waiting timer is due now, with all its attempts ahead: 202."""
    id = api_on_fakes.create(600)["id"] if state == "scheduled" else api_on_fakes.retrying()
    answer = api_on_fakes.ask("POST", f"/timers/{id}/fire")
    assert (answer.status_code, answer.json_body["status"]) == (202, "scheduled")
    assert answer.json_body["time_left"] == 0
    api_on_fakes.wakeup()
    assert api_on_fakes.read(id)["status"] == "delivered"


def listed(made: Api, **parameters: object) -> dict[str, Any]:
    answer = made.ask("GET", f"/timers?{urlencode(parameters)}")
    assert answer.status_code == 200, answer.body
    assert set(answer.json_body) == {"timers", "next_cursor"}
    return dict(answer.json_body)


def test_list(api_on_fakes: Api) -> None:
    """The newest come first, as they are shown one by one; at the end there is no cursor."""
    assert listed(api_on_fakes) == {"timers": [], "next_cursor": None}
    made = []
    for _ in range(5):
        made.append(api_on_fakes.create()["id"])
        api_on_fakes.clock.forward(1)
    page = listed(api_on_fakes)
    assert page["timers"] == [api_on_fakes.read(id) for id in reversed(made)]
    first = listed(api_on_fakes, limit=2)
    second = listed(api_on_fakes, limit=2, cursor=first["next_cursor"])
    third = listed(api_on_fakes, limit=2, cursor=second["next_cursor"])
    shown = [timer["id"] for page in (first, second, third) for timer in page["timers"]]
    assert shown == list(reversed(made))
    assert third["next_cursor"] is None


def test_list_of_some(api_on_fakes: Api) -> None:
    """Status, label and the time of creation narrow it down, also together."""
    old = api_on_fakes.create()["id"]
    patch(api_on_fakes, old, label="a")
    api_on_fakes.clock.forward(60)
    new = api_on_fakes.create()["id"]
    patch(api_on_fakes, new, label="a")
    api_on_fakes.ask("DELETE", f"/timers/{new}")

    def ids(**parameters: object) -> list[str]:
        return [timer["id"] for timer in listed(api_on_fakes, **parameters)["timers"]]

    assert ids(label="a") == [new, old]
    assert ids(label="b") == []
    assert ids(status="cancelled") == [new]
    assert ids(status="scheduled", label="a") == [old]
    at = (START + MINUTE).isoformat()
    assert ids(**{"from": at}) == [new]
    assert ids(to=at) == [old]
    assert ids(to=at, status="cancelled") == []


def test_list_without_the_forgotten(api_on_fakes: Api) -> None:
    """What has expired is not shown, swept away or not."""
    id = api_on_fakes.create()["id"]
    api_on_fakes.ask("DELETE", f"/timers/{id}")
    api_on_fakes.clock.now += RETENTION
    assert listed(api_on_fakes)["timers"] == []


def test_list_is_not_too_large(api_on_fakes: Api) -> None:
    """A page ends before what Lambda can answer with, and goes on where it ended."""
    body = "\x01" * 40_000  # six times as much in JSON
    made = [
        api_on_fakes.send("POST", "/timers", {"seconds": 1, "url": URL, "body": body})
        for _ in range(12)
    ]
    ids, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        answer = api_on_fakes.ask("GET", "/timers" + (f"?cursor={cursor}" if cursor else ""))
        assert len(answer.body) < responses.MAX_PAGE_BYTES + 1000
        ids += [timer["id"] for timer in answer.json_body["timers"]]
        cursor = answer.json_body["next_cursor"]
        pages += 1
    assert sorted(ids) == sorted(it.json_body["id"] for it in made)
    assert pages == 2


def test_a_timer_larger_than_a_page(api_on_fakes: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at least is shown, or the list would never go on."""
    monkeypatch.setattr(responses, "MAX_PAGE_BYTES", 10)
    for _ in range(3):
        api_on_fakes.create()
    assert len(listed(api_on_fakes)["timers"]) == 1


def test_bad_list(api_on_fakes: Api) -> None:
    """What can't be meant is refused, with a sentence and no pointer."""
    for query in ("limit=0", "limit=5&limit=6", "state=failed", "cursor=x", "to=2026"):
        answer = refused(api_on_fakes.ask("GET", f"/timers?{query}"), 400)
        assert "pointer" not in answer


def test_idempotency_key(api_on_fakes: Api) -> None:
    """201 the first time, then 200 with the same timer; 409 for something else."""
    header = {"Idempotency-Key": "abc"}
    body = {"seconds": 60, "url": URL}
    first = api_on_fakes.send("POST", "/timers", body, header)
    api_on_fakes.clock.forward(20)
    second = api_on_fakes.send("POST", "/timers", body, header)
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json_body == {**first.json_body, "time_left": 40}
    assert second.headers["Location"] == first.headers["Location"]
    answer = refused(api_on_fakes.send("POST", "/timers", {**body, "seconds": 61}, header), 409)
    assert "different request" in answer["detail"]
    assert len(api_on_fakes.store.timers) == len(api_on_fakes.scheduler.wakeups) == 1
    refused(api_on_fakes.send("POST", "/timers", body, {"Idempotency-Key": ""}), 400)


def test_batch(api_on_fakes: Api) -> None:
    """Each gets its own result, in order: made, made before, refused, of another use of its key."""
    good = {"seconds": 60, "url": URL}
    keyed = {**good, "idempotency_key": "k"}
    made = api_on_fakes.send("POST", "/timers", good, {"Idempotency-Key": "k"}).json_body
    entries = [good, keyed, {"url": URL}, {**keyed, "seconds": 1}, {**good, "label": "x"}]
    found = results(api_on_fakes.send("POST", "/timers/batch", {"timers": entries}))
    assert [it["status"] for it in found] == [201, 200, 400, 409, 201]
    assert found[1]["timer"] == made
    assert found[2]["problem"]["pointer"] == "/timers/2"
    assert found[4]["timer"] == api_on_fakes.read(found[4]["timer"]["id"])
    assert [set(it) for it in found[1:3]] == [{"status", "id", "timer"}, {"status", "problem"}]


def test_batch_of_a_hundred(api_on_fakes: Api) -> None:
    """A hundred are made; one more is refused before any is."""
    entries = [{"seconds": number, "url": URL} for number in range(100)]
    found = results(api_on_fakes.send("POST", "/timers/batch", {"timers": entries}))
    assert [it["timer"]["time_left"] for it in found] == list(range(100))
    answer = api_on_fakes.send("POST", "/timers/batch", {"timers": [*entries, entries[0]]})
    assert refused(answer, 400)["pointer"] == "/timers"
    assert len(api_on_fakes.store.timers) == 100
    assert results(api_on_fakes.send("POST", "/timers/batch", {"timers": []})) == []


def test_batch_with_one_key_for_all(api_on_fakes: Api) -> None:
    """A key in the header can't be that of many timers."""
    body = {"timers": [{"seconds": 60, "url": URL}]}
    answer = api_on_fakes.send("POST", "/timers/batch", body, {"Idempotency-Key": "k"})
    assert "idempotency_key" in refused(answer, 400)["detail"]
    assert not api_on_fakes.store.timers


@pytest.mark.parametrize(
    ("route", "limit"),
    [("/timers", requests.MAX_BODY_BYTES), ("/timers/batch", requests.MAX_BATCH_BYTES)],
)
def test_size_of_a_body(api_on_fakes: Api, route: str, limit: int) -> None:
    """A request for many may be larger than one for one timer; beyond that it is a 413."""
    refused(api_on_fakes.ask("POST", route, b" " * limit, JSON), 400)
    refused(api_on_fakes.ask("POST", route, b" " * (limit + 1), JSON), 413)


def test_results_are_not_too_large(api_on_fakes: Api) -> None:
    """All are cancelled, and what Lambda could not answer with is left out: ids are there."""
    body = "\x01" * 40_000  # six times as much in JSON
    made = [
        api_on_fakes.send("POST", "/timers", {"seconds": 9, "url": URL, "body": body})
        for _ in range(30)
    ]
    ids = [it.json_body["id"] for it in made]
    answer = api_on_fakes.send("POST", "/timers/cancel", {"ids": ids})
    assert [(it["status"], it["id"]) for it in results(answer)] == [(200, id) for id in ids]
    assert len(answer.body) < responses.MAX_PAGE_BYTES + 300_000
    assert {timer.status for timer in api_on_fakes.store.timers.values()} == {Status.CANCELLED}


def test_a_fault_of_ours_in_a_batch(api_on_fakes: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks one of many leaves the others their results, and gives nothing away."""
    real, calls = api_on_fakes.store.add, []

    def add(timer: Timer) -> bool:
        calls.append(timer)
        if len(calls) == 2:
            raise KeyError("secret")
        return real(timer)

    monkeypatch.setattr(api_on_fakes.store, "add", add)
    body = {"timers": [{"seconds": 60, "url": URL}] * 3}
    answer = api_on_fakes.send("POST", "/timers/batch", body)
    assert [it["status"] for it in results(answer)] == [201, 500, 201]
    assert b"secret" not in answer.body


def test_cancel_many(api_on_fakes: Api) -> None:
    """Each id gets its result, in order; cancelling twice is no error."""
    ids = [api_on_fakes.create()["id"] for _ in range(3)]
    delivering = api_on_fakes.delivering()
    body = {"ids": [ids[2], "nope", ids[0], delivering, ids[2]]}
    found = results(api_on_fakes.send("POST", "/timers/cancel", body))
    assert [it["status"] for it in found] == [200, 404, 200, 409, 200]
    assert [it["timer"]["id"] for it in found if "timer" in it] == [ids[2], ids[0], ids[2]]
    assert api_on_fakes.read(ids[0])["status"] == "cancelled"
    assert api_on_fakes.read(ids[1])["status"] == "scheduled"


def test_retry_many(api_on_fakes: Api) -> None:
    """Those that have failed are sent again."""
    id, waiting = failed(api_on_fakes), api_on_fakes.create()["id"]
    found = results(api_on_fakes.send("POST", "/timers/retry", {"ids": [waiting, id]}))
    assert [it["status"] for it in found] == [409, 200]
    assert found[1]["timer"]["status"] == "scheduled"


@pytest.mark.parametrize("path", ["/timers/cancel", "/timers/retry"])
@pytest.mark.parametrize(
    ("body", "pointer"),
    [([], ""), ({}, "/ids"), ({"ids": "x"}, "/ids"), ({"ids": [1]}, "/ids/0"),
     ({"ids": ["x"] * 101}, "/ids"), ({"ids": [], "x": 1}, "/x")],
)  # fmt: skip
def test_no_ids(api_on_fakes: Api, path: str, body: object, pointer: str) -> None:
    """What is no list of at most 100 ids is refused as a whole."""
    assert refused(api_on_fakes.send("POST", path, body), 400)["pointer"] == pointer


def test_every_answer_has_its_own_id(api_on_fakes: Api) -> None:
    """Success or error, each request can be found in the logs."""
    answers = [
        api_on_fakes.ask(method, path, body, JSON)
        for method, path in ROUTES
        for body in (b"", b"{", members('"seconds": 1'))
    ]
    ids = [answer.headers[responses.REQUEST_ID_HEADER] for answer in answers]
    assert len({id for id in ids if id}) == len(answers)


def test_arming_fails_after_a_change(api_on_fakes: Api) -> None:
    """A new deadline that is stored counts; its alarm is left to the sweep."""
    id = api_on_fakes.create(60)["id"]
    api_on_fakes.scheduler.failure = Unavailable("throttled")
    assert patch(api_on_fakes, id, seconds=5).status_code == 200
    assert not api_on_fakes.service.get(DEFAULT_TENANT, id).armed


def test_metadata_is_not_sent_but_told(api_on_fakes: Api) -> None:
    """A label and metadata stay with the timer, and are in what on_failure gets."""
    body = {"seconds": 0, "url": URL, "label": "x", "metadata": {"order": "17"}, "on_failure": URL}
    id = api_on_fakes.send("POST", "/timers", body).json_body["id"]
    api_on_fakes.sender.outcome = Outcome(status=410)
    api_on_fakes.wakeup()
    (notice,) = [timer for timer in api_on_fakes.store.timers.values() if timer.id != id]
    told = json.loads(notice.body)["timer"]
    assert (told["label"], told["metadata"]) == ("x", {"order": "17"})
    assert (notice.label, notice.metadata) == (None, {})
