"""Fuzz the real server with valid and invalid requests from its OpenAPI document.

Schemathesis generates the requests and checks the responses. `make fuzz` sends thousands of
requests and prints the counts. The same seed reproduces the requests, except for the ids and times
that the server generates.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import requests

from chalicelib.core.api_keys import Role
from chalicelib.service.credentials import issue_key
from standalone.sqlite.credentials import credentials_in
from tests.support.processes import ROOT, Standalone, environment, wait_until

HERE = Path(__file__).parent

NOTHING_BUT_LOOPBACK = str(HERE / "loopback")
"""In PYTHONPATH, it stops a process from connecting or resolving names beyond loopback."""

TENANTS = ("acme", "zeta")

LIMIT = 3600
"""Seconds after which a run is killed."""


@dataclass(frozen=True)
class Run:
    """The result of one fuzzing run."""

    passed: bool
    output: str
    """The output of Schemathesis; empty if it went to the terminal."""
    responses: dict[str, Counter[int]]
    """Counts of response statuses, by operation."""
    excused: dict[str, int]
    """Counts of expected failures, by reason."""
    fault: str
    """The first traceback in the server's log; "" if there is none."""

    def __str__(self) -> str:
        lines = [f"{'Requests':>8}  Operation and its responses"]
        for operation, statuses in self.responses.items():
            counts = ", ".join(
                f"{number} × {status}" for status, number in sorted(statuses.items())
            )
            lines.append(f"{statuses.total():>8}  {operation:<29} {counts}")
        lines.append(f"{sum(map(Counter.total, self.responses.values())):>8}  in total")
        lines += [
            "",
            f"{'Excused':>8}  Reason: a rule outside the schema, or unknown to Schemathesis",
        ]
        lines += [f"{number:>8}  {reason}" for reason, number in sorted(self.excused.items())]
        return "\n".join([*lines, "", self.fault]).rstrip()


def fuzz(folder: Path, examples: int, seed: int, *, shown: bool = False) -> Run:
    """Start the server on a new database in this folder and fuzz it.

    It gets `examples` requests for each operation, as many chains of requests, and some hundreds of
    boundary cases. `shown` sends the output of Schemathesis to the terminal.
    """
    database = folder / "timers.db"
    settings = {"AUTH": "keys", "RATE": "100000", "PYTHONPATH": NOTHING_BUT_LOOPBACK}
    with Standalone(database, settings) as server:
        ended = subprocess.run(
            _command(server.url, examples, seed),
            cwd=folder,
            env=_environment(folder, server.url, _headers(database)),
            stdout=None if shown else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        assert server.process.poll() is None, f"The server exited: {server.lines[-20:]}"
    return _run(folder, ended, server.lines)


def _command(url: str, examples: int, seed: int) -> list[str]:
    program = [sys.executable, "-m", "schemathesis.cli", "--no-color"]
    settings = ["--config-file", str(HERE / "schemathesis.toml")]
    limits = ["--max-examples", str(examples), "--seed", str(seed)]
    return [*program, *settings, "run", f"{url}/openapi.json", *limits]


def _environment(folder: Path, url: str, headers: Mapping[str, str]) -> dict[str, str]:
    tenants = folder / "tenants.json"
    tenants.write_text(json.dumps({"auth": [_named(*it) for it in headers.items()]}))
    failed = [id for header in headers.values() for id in _failed(url, header)]
    return environment(
        PYTHONPATH=f"{NOTHING_BUT_LOOPBACK}:{ROOT}",
        FUZZ_SERVER=url,
        FUZZ_TENANTS=str(tenants),
        FUZZ_FAILED=" ".join(failed),
        FUZZ_FIGURES=str(folder / "figures.json"),
    )


def _named(tenant: str, authorization: str) -> dict[str, object]:
    """Return a tenant in the format of Schemathesis' WFC file."""
    return {"name": tenant, "fixedHeaders": [{"name": "Authorization", "value": authorization}]}


def _headers(database: Path) -> dict[str, str]:
    """Return an Authorization header with a new key for each tenant."""
    with credentials_in(database) as (keys, secrets):
        now = datetime.now(UTC)
        return {
            name: f"Bearer {issue_key(keys, secrets, name, Role.FULL, now)}" for name in TENANTS
        }


def _failed(url: str, authorization: str) -> list[str]:
    """Create timers that fail, and return their ids. Generated requests rarely make any."""
    with requests.Session() as session:
        session.headers["Authorization"] = authorization
        timer = {"seconds": 0, "url": f"{url}/nothing-there"}
        made = session.post(f"{url}/timers/batch", json={"timers": [timer] * 5}, timeout=30)
        ids = [result["id"] for result in made.json()["results"]]
        failed = f"{url}/timers?status=failed"
        wait_until(lambda: len(session.get(failed, timeout=30).json()["timers"]) == len(ids))
    return ids


def _run(folder: Path, ended: "subprocess.CompletedProcess[str]", lines: Sequence[str]) -> Run:
    kept = folder / "figures.json"
    assert kept.exists(), f"Schemathesis did not start: {ended.stdout}"
    figures = json.loads(kept.read_text())
    responses: dict[str, Counter[int]] = {}
    for operation, status, number in sorted(figures["responses"]):
        responses.setdefault(operation, Counter())[status] = number
    first = next((at for at, line in enumerate(lines) if line.startswith("Traceback")), len(lines))
    fault = "\n".join(lines[first : first + 40])
    return Run(ended.returncode == 0, ended.stdout or "", responses, figures["excused"], fault)
