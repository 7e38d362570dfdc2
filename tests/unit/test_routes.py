"""The routes that change, fire and list timers, and the bulk routes."""

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from chalice.app import Request
from chalice.test import HTTPResponse
from msgspec.structs import replace

from chalicelib import runtime
from chalicelib.core.errors import InvalidRequest, Unavailable
from chalicelib.core.timer import DEFAULT_TENANT, RETENTION, Outcome, Status, Timer
from chalicelib.http import requests, responses
from tests.support.fakes import START
from tests.support.routes import JSON, ROUTES, URL, Api, refused, timer_json

MINUTE = timedelta(minutes=1)


def patch(made: Api, id: str, **fields: object) -> HTTPResponse:
    return made.send("PATCH", f"/timers/{id}", fields)


def failed(made: Api) -> str:
    """Return the id of a timer that failed."""
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
def test_patch_sets_a_new_deadline(
    api_on_fakes: Api, when: dict[str, object], fire_at: str
) -> None:
    """PATCH takes every way to set a deadline, counted from now, and reschedules."""
    id = api_on_fakes.create(60)["id"]
    answer = patch(api_on_fakes, id, **when)
    assert (answer.status_code, answer.json_body["fire_at"]) == (200, fire_at)
    assert api_on_fakes.read(id) == answer.json_body
    assert [wakeup.generation for wakeup in api_on_fakes.scheduler.wakeups] == [1, 2]
    assert [wakeup.generation for wakeup in api_on_fakes.scheduler.unscheduled] == [1]


def test_patch_without_a_deadline_keeps_it(api_on_fakes: Api) -> None:
    """The fields change; deadline and schedule stay."""
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


def test_patch_changes_fields_and_deadline(api_on_fakes: Api) -> None:
    """One PATCH can change the webhook and the deadline."""
    id = api_on_fakes.create(60)["id"]
    answer = patch(api_on_fakes, id, seconds=90, url=f"{URL}/2", label="x").json_body
    assert (answer["time_left"], answer["url"], answer["label"]) == (90, f"{URL}/2", "x")


def test_patch_keeps_the_next_attempt(api_on_fakes: Api) -> None:
    """A failing webhook can be corrected; the time of its next attempt stays the same."""
    id = api_on_fakes.retrying()
    before = api_on_fakes.read(id)
    answer = patch(api_on_fakes, id, url=f"{URL}/2").json_body
    assert answer == {**before, "url": f"{URL}/2"}
    moved = patch(api_on_fakes, id, seconds=5).json_body
    assert (moved["status"], moved["time_left"]) == ("scheduled", 5)


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize("status", [Status.DELIVERED, Status.FAILED, Status.CANCELLED])
def test_finished_timers_conflict(api_on_fakes: Api, method: str, status: Status) -> None:
    """PATCH and fire of a finished timer are a 409."""
    id = failed(api_on_fakes)
    stored = api_on_fakes.store.timers[id]
    api_on_fakes.store.timers[id] = replace(stored, status=status)
    path = f"/timers/{id}" if method == "PATCH" else f"/timers/{id}/fire"
    refused(api_on_fakes.send(method, path, {"label": "x"}), 409)


@pytest.mark.parametrize(("method", "path"), [("PATCH", ""), ("POST", "/fire")])
def test_patch_conflicts_while_delivering(api_on_fakes: Api, method: str, path: str) -> None:
    """PATCH of a timer that is being sent is a 409 with Retry-After."""
    id = api_on_fakes.delivering()
    answer = api_on_fakes.send(method, f"/timers/{id}{path}", {"label": "x"})
    refused(answer, 409)
    assert answer.headers["Retry-After"] == "1"


def test_an_invalid_patch_changes_nothing(api_on_fakes: Api) -> None:
    """A PATCH applies as a whole or not at all."""
    before = api_on_fakes.create(60)
    answer = refused(patch(api_on_fakes, before["id"], label="x", url="ftp://x"), 400)
    assert answer["pointer"] == "/url"
    answer = refused(patch(api_on_fakes, before["id"], label="x", delay="x"), 400)
    assert answer["pointer"] == "/delay"
    assert api_on_fakes.read(before["id"]) == before


def test_patch_of_an_unknown_timer_is_404(api_on_fakes: Api) -> None:
    """An unknown timer is a 404; the body is checked first."""
    refused(patch(api_on_fakes, "nope", label="x"), 404)
    refused(patch(api_on_fakes, "nope", label=5), 400)
    refused(api_on_fakes.ask("PATCH", "/timers/nope", b"{}", {"Content-Type": "text/x"}), 415)


@pytest.mark.parametrize("state", ["scheduled", "retrying"])
def test_fire_makes_a_timer_due(api_on_fakes: Api, state: str) -> None:
    """Fire makes a waiting timer due now, with all attempts ahead: 202."""
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


def test_list_is_newest_first(api_on_fakes: Api) -> None:
    """Lists are newest first, equal to single reads, and end without a cursor."""
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


def test_list_filters_by_status_label_and_time(api_on_fakes: Api) -> None:
    """Status, label and time of creation filter, also together."""
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


def test_list_omits_expired_timers(api_on_fakes: Api) -> None:
    """Expired timers are not listed, purged or not."""
    id = api_on_fakes.create()["id"]
    api_on_fakes.ask("DELETE", f"/timers/{id}")
    api_on_fakes.clock.now += RETENTION
    assert listed(api_on_fakes)["timers"] == []


def test_pages_are_bounded_in_bytes(api_on_fakes: Api) -> None:
    """A page ends before Lambda's limit, and the next one goes on there."""
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


def test_a_page_has_at_least_one_timer(api_on_fakes: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer larger than a page is listed, so that the list goes on."""
    monkeypatch.setattr(responses, "MAX_PAGE_BYTES", 10)
    for _ in range(3):
        api_on_fakes.create()
    assert len(listed(api_on_fakes)["timers"]) == 1


def test_rejects_invalid_list_parameters(api_on_fakes: Api) -> None:
    """An invalid parameter is a 400 without a pointer."""
    for query in ("limit=0", "limit=5&limit=6", "state=failed", "cursor=x", "to=2026"):
        answer = refused(api_on_fakes.ask("GET", f"/timers?{query}"), 400)
        assert "pointer" not in answer


def test_idempotency_key_creates_once(api_on_fakes: Api) -> None:
    """The first request is a 201, its repetition a 200 with the same timer, another request a
    422."""
    header = {"Idempotency-Key": "abc"}
    body = {"seconds": 60, "url": URL}
    first = api_on_fakes.send("POST", "/timers", body, header)
    api_on_fakes.clock.forward(20)
    second = api_on_fakes.send("POST", "/timers", body, header)
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json_body == {**first.json_body, "time_left": 40}
    assert second.headers["Location"] == first.headers["Location"]
    answer = refused(api_on_fakes.send("POST", "/timers", {**body, "seconds": 61}, header), 422)
    assert "Idempotency-Key" in answer["detail"]
    assert len(api_on_fakes.store.timers) == len(api_on_fakes.scheduler.wakeups) == 1
    refused(api_on_fakes.send("POST", "/timers", body, {"Idempotency-Key": ""}), 400)


def test_a_repeated_create_of_a_cancelled_timer_is_409(api_on_fakes: Api) -> None:
    """Its timer will not fire, so a 200 would mislead. The error names the timer; batches alike."""
    body, header = {"seconds": 60, "url": URL}, {"Idempotency-Key": "abc"}
    id = api_on_fakes.send("POST", "/timers", body, header).json_body["id"]
    api_on_fakes.ask("DELETE", f"/timers/{id}")
    answer = refused(api_on_fakes.send("POST", "/timers", body, header), 409)
    assert id in answer["detail"]
    refused(api_on_fakes.send("POST", "/timers", {**body, "seconds": 61}, header), 422)
    entry = {**body, "idempotency_key": "abc"}
    (found,) = results(api_on_fakes.send("POST", "/timers/batch", {"timers": [entry]}))
    assert (found["status"], found["problem"]["detail"]) == (409, answer["detail"])


def test_batch_returns_a_result_for_each(api_on_fakes: Api) -> None:
    """Results are in order: created, existing, invalid, conflicting."""
    good = {"seconds": 60, "url": URL}
    keyed = {**good, "idempotency_key": "k"}
    made = api_on_fakes.send("POST", "/timers", good, {"Idempotency-Key": "k"}).json_body
    entries = [good, keyed, {"url": URL}, {**keyed, "seconds": 1}, {**good, "label": "x"}]
    found = results(api_on_fakes.send("POST", "/timers/batch", {"timers": entries}))
    assert [it["status"] for it in found] == [201, 200, 400, 422, 201]
    assert found[1]["timer"] == made
    assert found[2]["problem"]["pointer"] == "/timers/2"
    assert found[4]["timer"] == api_on_fakes.read(found[4]["timer"]["id"])
    assert [set(it) for it in found[1:3]] == [{"status", "id", "timer"}, {"status", "problem"}]


def test_batch_takes_a_hundred(api_on_fakes: Api) -> None:
    """A hundred timers are created; with one more, none is."""
    entries = [{"seconds": number, "url": URL} for number in range(100)]
    found = results(api_on_fakes.send("POST", "/timers/batch", {"timers": entries}))
    assert [it["timer"]["time_left"] for it in found] == list(range(100))
    answer = api_on_fakes.send("POST", "/timers/batch", {"timers": [*entries, entries[0]]})
    assert refused(answer, 400)["pointer"] == "/timers"
    assert len(api_on_fakes.store.timers) == 100
    assert results(api_on_fakes.send("POST", "/timers/batch", {"timers": []})) == []


REPEATED = [
    {"Idempotency-Key": ["a", "b"]},
    {"Idempotency-Key": ["a", "a"]},
    {"Idempotency-Key": ["a"], "idempotency-key": ["b"]},
]
"""Headers of a request with two keys, as API Gateway passes them on."""


@pytest.mark.parametrize("every", REPEATED, ids=str)
def test_two_idempotency_keys_are_400(every: dict[str, list[str]]) -> None:
    """On AWS `headers` has only one of the keys, so `multiValueHeaders` is checked."""
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        requests.timer_spec(keyed_request("b", every), START)


@pytest.mark.parametrize("every", [None, {}, {"Idempotency-Key": ["a, b"], "X": ["y", "z"]}])
def test_one_idempotency_key_may_have_a_comma(every: dict[str, list[str]] | None) -> None:
    """One header is one key, also with a comma."""
    key = requests.timer_spec(keyed_request("a, b", every), START).idempotency_key
    assert key is not None
    assert key.key == "a, b"


def keyed_request(key: str, every: dict[str, list[str]] | None) -> Request:
    """Return the request of a create as API Gateway passes it on."""
    return Request(
        {
            "multiValueQueryStringParameters": None,
            "headers": {**JSON, "Idempotency-Key": key},
            "multiValueHeaders": every,
            "pathParameters": {},
            "requestContext": {"httpMethod": "POST", "resourcePath": "/timers"},
            "body": timer_json('"seconds": 60').decode(),
            "stageVariables": None,
        }
    )


def test_batch_rejects_the_idempotency_header(api_on_fakes: Api) -> None:
    """The header can't be the key of many timers."""
    body = {"timers": [{"seconds": 60, "url": URL}]}
    answer = api_on_fakes.send("POST", "/timers/batch", body, {"Idempotency-Key": "k"})
    assert "idempotency_key" in refused(answer, 400)["detail"]
    assert not api_on_fakes.store.timers


@pytest.mark.parametrize(
    ("route", "limit"),
    [("/timers", requests.MAX_BODY_BYTES), ("/timers/batch", requests.MAX_BATCH_BYTES)],
)
def test_bodies_are_bounded(api_on_fakes: Api, route: str, limit: int) -> None:
    """Batches may be larger than single timers; beyond the limit it is a 413."""
    refused(api_on_fakes.ask("POST", route, b" " * limit, JSON), 400)
    refused(api_on_fakes.ask("POST", route, b" " * (limit + 1), JSON), 413)


def test_results_are_bounded_in_bytes(api_on_fakes: Api) -> None:
    """All timers are cancelled; later results have only the id, to stay below Lambda's limit."""
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


def test_a_crash_in_a_batch_is_one_result(
    api_on_fakes: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error fails one timer of the batch and reveals nothing."""
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


def test_cancels_many_timers(api_on_fakes: Api) -> None:
    """Each id has its result, in order; cancelling twice is no error."""
    ids = [api_on_fakes.create()["id"] for _ in range(3)]
    delivering = api_on_fakes.delivering()
    body = {"ids": [ids[2], "nope", ids[0], delivering, ids[2]]}
    found = results(api_on_fakes.send("POST", "/timers/cancel", body))
    assert [it["status"] for it in found] == [200, 404, 200, 409, 200]
    assert [it["timer"]["id"] for it in found if "timer" in it] == [ids[2], ids[0], ids[2]]
    assert [it["id"] for it in found] == body["ids"]
    assert api_on_fakes.read(ids[0])["status"] == "cancelled"
    assert api_on_fakes.read(ids[1])["status"] == "scheduled"


def test_retries_many_timers(api_on_fakes: Api) -> None:
    """Failed timers of the batch are sent again."""
    id, waiting = failed(api_on_fakes), api_on_fakes.create()["id"]
    found = results(api_on_fakes.send("POST", "/timers/retry", {"ids": [waiting, id]}))
    assert [(it["status"], it["id"]) for it in found] == [(409, waiting), (200, id)]
    assert found[1]["timer"]["status"] == "scheduled"


@pytest.mark.parametrize("path", ["/timers/cancel", "/timers/retry"])
@pytest.mark.parametrize(
    ("body", "pointer"),
    [([], ""), ({}, "/ids"), ({"ids": "x"}, "/ids"), ({"ids": [1]}, "/ids/0"),
     ({"ids": ["x"] * 101}, "/ids"), ({"ids": [], "x": 1}, "/x")],
)  # fmt: skip
def test_rejects_invalid_ids(api_on_fakes: Api, path: str, body: object, pointer: str) -> None:
    """Anything but a list of at most 100 ids is rejected as a whole."""
    assert refused(api_on_fakes.send("POST", path, body), 400)["pointer"] == pointer


def created_as_uuid(made: Api, key: str) -> str:
    """Return the id of a new timer. The fakes' own ids are no UUIDs; those of keys are."""
    body = {"seconds": 0, "url": URL}
    id = str(made.send("POST", "/timers", body, {"Idempotency-Key": key}).json_body["id"])
    assert id != id.upper()
    return id


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "", 200), ("HEAD", "", 200), ("PATCH", "", 200), ("POST", "/fire", 202),
     ("DELETE", "", 200)],
)  # fmt: skip
def test_ids_may_be_in_capitals(api_on_fakes: Api, method: str, path: str, status: int) -> None:
    """The case of a UUID means nothing; the response has it in lower case."""
    id = created_as_uuid(api_on_fakes, "a")
    answer = api_on_fakes.send(method, f"/timers/{id.upper()}{path}", {"label": "x"})
    assert (answer.status_code, answer.json_body["id"]) == (status, id)


def test_bulk_ids_may_be_in_capitals(api_on_fakes: Api) -> None:
    """The routes of failed timers and the bulk routes find ids in capitals too."""
    one, other = (created_as_uuid(api_on_fakes, key) for key in "ab")
    for id in (one, other):
        stored = api_on_fakes.store.timers[id]
        api_on_fakes.store.timers[id] = replace(stored, status=Status.FAILED)
    assert api_on_fakes.ask("POST", f"/timers/{one.upper()}/retry").json_body["id"] == one
    ids = [other.upper(), other.upper().replace("-", "")]
    answer = api_on_fakes.send("POST", "/timers/retry", {"ids": ids})
    assert [(it["status"], it.get("id")) for it in results(answer)] == [(200, other), (404, ids[1])]
    answer = api_on_fakes.send("POST", "/timers/cancel", {"ids": [one.title(), other.upper()]})
    assert [(it["status"], it["id"]) for it in results(answer)] == [(200, one), (200, other)]


def test_every_response_has_a_request_id(api_on_fakes: Api) -> None:
    """Each response, also an error, can be found in the logs."""
    answers = [
        api_on_fakes.ask(method, path, body, JSON)
        for method, path in ROUTES
        for body in (b"", b"{", timer_json('"seconds": 1'))
    ]
    ids = [answer.headers[responses.REQUEST_ID_HEADER] for answer in answers]
    assert len({id for id in ids if id}) == len(answers)


def test_patch_succeeds_if_the_scheduler_is_down(api_on_fakes: Api) -> None:
    """The stored deadline counts; scheduling is left to the sweep."""
    id = api_on_fakes.create(60)["id"]
    api_on_fakes.scheduler.failure = Unavailable("throttled")
    assert patch(api_on_fakes, id, seconds=5).status_code == 200
    assert not api_on_fakes.service.get(DEFAULT_TENANT, id).armed


def test_metadata_is_in_the_failure_notice(api_on_fakes: Api) -> None:
    """Label and metadata are not sent, but are in the notice to on_failure."""
    body = {"seconds": 0, "url": URL, "label": "x", "metadata": {"order": "17"}, "on_failure": URL}
    id = api_on_fakes.send("POST", "/timers", body).json_body["id"]
    api_on_fakes.sender.outcome = Outcome(status=410)
    api_on_fakes.wakeup()
    (notice,) = [timer for timer in api_on_fakes.store.timers.values() if timer.id != id]
    told = json.loads(notice.body)["timer"]
    assert (told["label"], told["metadata"]) == ("x", {"order": "17"})
    assert (notice.label, notice.metadata) == (None, {})


def test_a_request_reads_the_clock_once(api_on_fakes: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request happens at one time: the deadline counts from `created_at` exactly."""
    reads: list[datetime] = []

    def clock() -> datetime:
        reads.append(START + timedelta(seconds=len(reads)))
        return reads[-1]

    dependencies = api_on_fakes.service.dependencies(keys=api_on_fakes.keys)
    monkeypatch.setattr(runtime, "_installed", dataclasses.replace(dependencies, clock=clock))
    timer = api_on_fakes.create(60)
    assert len(reads) == 1
    assert timer["time_left"] == 60
