"""The client that docs/api.md generates from the OpenAPI document is complete and works.

The generator is openapi-python-client. It warns about parts of a document that it leaves out.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from chalicelib.core.timer import Status
from chalicelib.http import openapi
from tests.support.processes import ROOT, TOOLS, Standalone, environment, run_timers

pytestmark = pytest.mark.e2e

DOCUMENT: dict[str, Any] = json.loads(openapi.document())

SECTION = (ROOT / "docs/api.md").read_text().partition("\n## Clients\n")[2].partition("\n## ")[0]


def block(language: str, url: str) -> str:
    """Return the section's only block in a language, with this server's URL."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return str(found).replace("http://127.0.0.1:8000", url)


def run(command: list[str], folder: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(PATH=TOOLS, **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with Standalone(tmp_path_factory.mktemp("server") / "timers.db") as server:
        yield server


@pytest.fixture(scope="module")
def folder(server: Standalone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate the client by the section's commands, without warnings; return its folder."""
    folder = tmp_path_factory.mktemp("client")
    commands = 'curl() { command curl -sS "$@"; }\n' + block("sh", server.url)
    ended = run(["bash", "-euo", "pipefail", "-c", commands], folder, TIMERS=server.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"Generating {folder / 'timers_client'}\n"
    return folder


@pytest.fixture
def found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports modules of the client."""
    monkeypatch.syspath_prepend(folder)
    return lambda name: import_module(f"timers_client{name}")


def test_documented_program_works(server: Standalone, folder: Path) -> None:
    """The documented program creates, reads and cancels a timer."""
    ended = run([sys.executable, "-c", block("python", server.url)], folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    made, read, cancelled = ended.stdout.splitlines()
    id, status = made.split()
    assert status == "scheduled"
    assert read.startswith(f"TimerResource(id='{id}', status=<Status.SCHEDULED: ")
    assert cancelled.startswith(f"TimerResource(id='{id}', status=<Status.CANCELLED: ")
    timer = server.read(id)
    assert (timer["status"], timer["label"]) == ("cancelled", "invoice-17")


def test_documented_program_works_with_an_api_key(folder: Path, tmp_path: Path) -> None:
    """With AUTH=keys the program needs the documented line with a key."""
    database = tmp_path / "timers.db"
    with Standalone(database, {"AUTH": "keys"}) as server:
        key = run_timers("keys", "add", TIMERS_DB=str(database)).stdout.strip()
        program = block("python", server.url)
        without = run([sys.executable, "-c", program], folder)
        keyed = program.replace("# With a key: ", "").replace("tmr_…", key)
        ended = run([sys.executable, "-c", keyed], folder)
    assert without.stderr.startswith("Problem(title='Unauthorized', status=401, ")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Status.CANCELLED" in ended.stdout


def test_every_operation_has_a_function(found: Any) -> None:
    """The client has a function for each operation, by its tag and operationId."""
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            (tag,) = operation["tags"]
            module = found(f".api.{tag.lower()}.{operation['operationId']}")
            assert module.sync.__doc__.strip().startswith(operation["summary"])


def test_every_schema_has_a_class(found: Any) -> None:
    """The client has a class for each schema with all its fields; `type` becomes `type_`."""
    models = found(".models")
    assert {*models.Status} == {*Status}
    for name, schema in DOCUMENT["components"]["schemas"].items():
        known = {*getattr(models, name).__annotations__} - {"additional_properties"}
        assert {member.rstrip("_") for member in known} == {*schema.get("properties", ())}, name


TYPES = {
    "NewTimer": {
        "url": "str",
        "delay": "int | str | Unset",
        "fire_at": "datetime.datetime | Unset",
        "body": "Any | Unset",
        "retry": "NewRetryPolicy | Unset",
        "label": "None | str | Unset",
    },
    "TimerResource": {
        "status": "Status",
        "retry": "RetryPolicy",
        "next_attempt_at": "datetime.datetime | None",
        "attempts": "list[AttemptResource]",
    },
    "AttemptResource": {"at": "datetime.datetime", "status": "int | None"},
    "RetryPolicy": {"max_attempts": "int"},
    "Batch": {"timers": "list[BatchEntry]"},
    "TimerPage": {"timers": "list[TimerResource]", "next_cursor": "None | str"},
    "Results": {"results": "list[Result]"},
    "Result": {"timer": "TimerResource | Unset", "problem": "Problem | Unset"},
    "Failure": {"timer": "TimerResource", "last_attempt": "AttemptResource"},
}


@pytest.mark.parametrize("name", TYPES)
def test_fields_have_types(found: Any, name: str) -> None:
    """Optional, nullable and nested fields are typed as such."""
    known = getattr(found(".models"), name).__annotations__
    assert {member: known[member] for member in TYPES[name]} == TYPES[name]


def test_errors_are_problems(server: Standalone, found: Any) -> None:
    """An error response is parsed as a Problem with all its fields."""
    models = found(".models")
    create, read = found(".api.timers.create_timer"), found(".api.timers.read_timer")
    wrong = models.NewTimer(url="http://localhost/", delay="90")
    with found("").Client(base_url=server.url) as client:
        refused = create.sync_detailed(client=client, body=wrong)
        missing = read.sync_detailed("nobody", client=client)
    assert refused.status_code == refused.parsed.status == 400
    assert refused.parsed.pointer == "/delay"
    assert missing.status_code == 404
    assert missing.parsed == models.Problem(
        title="Not Found", status=404, detail=missing.parsed.detail
    )


def test_bulk_operations_work(server: Standalone, found: Any) -> None:
    """Each bulk result has a timer or a problem, and created timers are listed."""
    models, bulk = found(".models"), ".api.bulk"
    entries = [
        models.BatchEntry(url="http://localhost/", minutes=it, label="many") for it in (9, -1)
    ]
    with found("").Client(base_url=server.url) as client:
        made = found(f"{bulk}.create_timers").sync(client=client, body=models.Batch(entries))
        good, bad = made.results
        page = found(".api.timers.list_timers").sync(
            client=client, label="many", status=models.Status.SCHEDULED, from_=good.timer.created_at
        )
        ids = models.Ids([good.id])
        (cancelled,) = found(f"{bulk}.cancel_timers").sync(client=client, body=ids).results
    assert bad.problem.pointer == "/timers/1/minutes"
    assert [timer.id for timer in page.timers] == [good.id]
    assert cancelled.timer.status is models.Status.CANCELLED
