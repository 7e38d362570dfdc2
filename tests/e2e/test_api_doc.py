"""docs/api.md: its commands work as documented, and it documents the whole API."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import fields

from app import app
from chalicelib.core.representation import AttemptResource, TimerResource
from chalicelib.http.bodies import NewTimer, Query
from tests.support.processes import ROOT, TOOLS, Standalone, environment

TEXT = (ROOT / "docs/api.md").read_text()

LOGGING = (
    "curl() { command curl -sS -w '%{stderr}%{method} %{url_effective} %{http_code}\\n' \"$@\"; }"
)
"""Makes curl print each request and its status on standard error."""


def blocks(language: str) -> list[str]:
    """Return the blocks of the document in a language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def route(method: str, url: str) -> str:
    """Return the route that a request was for, as the document writes it."""
    path = re.sub(r"https?://[^/]*|\?.*", "", url)
    path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "{id}", path)
    path = re.sub(r"(?<=^/api-docs/).+|(?<=^/console/).+", "{name}", path)
    return f"{method} {path}"


@pytest.mark.e2e
def test_commands_get_the_documented_statuses(tmp_path: Path) -> None:
    """Run in a shell, each command gets its documented status; together they use every route."""
    with Standalone(tmp_path / "timers.db") as server:
        program = "\n".join(blocks("sh")).replace("http://127.0.0.1:8000", server.url)
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{LOGGING}\n{program}"],
            cwd=tmp_path,
            env=environment(TIMERS_KEY="tmr_x", PATH=TOOLS),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    asked = [line.split() for line in ended.stderr.splitlines()]
    assert ended.returncode == 0, ended.stderr
    assert [status for _, _, status in asked] == re.findall(r"# → (\d+)", program), ended.stdout
    called = {route(method, url) for method, url, _ in asked}
    assert called == {
        f"{method} {path}".replace("{timer_id}", "{id}")
        for path, methods in app.routes.items()
        for method in methods
        if method != "HEAD"
    }


def test_example_has_all_fields() -> None:
    """The example has the fields of a timer in the order of the API."""
    shown = json.loads(blocks("json")[1])
    assert list(shown) == [field.name for field in fields(TimerResource)]
    assert list(shown["attempts"][0]) == [field.name for field in fields(AttemptResource)]


@pytest.mark.parametrize("kind", [NewTimer, Query])
def test_documents_every_field_and_parameter(kind: type) -> None:
    """Each field and parameter of a request is in a table."""
    tables = "\n".join(line.partition("|")[2] for line in TEXT.splitlines() if line[:1] == "|")
    assert not [it.encode_name for it in fields(kind) if f"`{it.encode_name}`" not in tables]


def test_documents_every_error_status() -> None:
    """The table of errors lists every error status."""
    from chalicelib.http.responses import STATUS_OF_ERROR  # noqa: PLC0415

    listed = set(re.findall(r"\d{3}", "".join(re.findall(r"^\| ([\d, ]+) \|", TEXT, re.MULTILINE))))
    assert {str(status.value) for status in STATUS_OF_ERROR.values()} <= listed
