"""docker-compose.localstack.yml: valid, and what it sets is what `make e2e` runs with."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.e2e.localstack import stack
from tests.support.processes import ROOT, environment

TEXT = (ROOT / "docker-compose.localstack.yml").read_text()


def read(text: str) -> dict[str, Any]:
    """Return the file as `docker compose config` reads it; raise ValueError if it is not valid.

    Variables have their defaults, and what is merged in is there.
    """
    interpolated = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    loaded = yaml.safe_load(interpolated)
    return dict(PyCompose.from_yaml(yaml.safe_dump(loaded)).to_dict())


SERVICES: dict[str, Any] = read(TEXT)["services"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("condition: service_healthy", "condition: healthy"),
        ("retries: 60", "tries: 60"),
        ("interval: 2s", "interval: 2 seconds"),
        ("restart: unless-stopped", "restart: maybe"),
        ("127.0.0.1:4566:4566", "127.0.0.1:http:4566"),
        ("dockerfile_inline", "dockerfile_online"),
    ],
)
def test_mistakes_would_be_found(right: str, wrong: str) -> None:
    """The parser knows the specification, so that what passes is valid."""
    assert right in TEXT
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
        read(TEXT.replace(right, wrong))


def test_only_this_machine_can_reach_it() -> None:
    """LocalStack, which asks nobody who he is, is published on loopback only."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert [str(port).startswith("127.0.0.1:") for port in published] == [True]


def test_the_image_needs_no_account() -> None:
    """The last tag that runs without a token is the default; tag and token can be given."""
    assert SERVICES["localstack"]["image"] == "localstack/localstack:4.14.0"
    assert "image: ${LOCALSTACK_IMAGE:-" in TEXT
    assert "LOCALSTACK_AUTH_TOKEN: ${LOCALSTACK_AUTH_TOKEN:-}" in TEXT


def test_settings_are_those_of_the_e2e_run(tmp_path: Path) -> None:
    """Both read LocalStack's settings from one file; no service has another one of its own."""
    assert SERVICES["localstack"]["env_file"] == "infra/localstack/localstack.env"
    assert set(SERVICES["localstack"]["environment"]) == {"LOCALSTACK_AUTH_TOKEN"}
    for name in ("deploy", "schedule-runner"):
        assert set(SERVICES[name]["environment"]) == {"AWS_ENDPOINT_URL"}
    assert stack.settings().items() <= stack.Stack(tmp_path)._environment().items()


def test_deploys_and_fires_as_the_e2e_run_does() -> None:
    """The same commands: what compose starts is what has been tested."""
    assert SERVICES["deploy"]["command"] == "python -m infra.deploy deploy localstack"
    runner = "python -m infra.localstack.schedule_runner --stage localstack --precision "
    assert SERVICES["schedule-runner"]["command"].startswith(runner)
    e2e = (ROOT / "tests/e2e/localstack/test_localstack.py").read_text()
    assert 'make("deploy", "STAGE=localstack")' in e2e
    assert '"infra.localstack.schedule_runner", "--stage", "localstack"' in e2e


def test_receivers_on_the_host_are_reached() -> None:
    """Functions know this machine by the name that the stage allows as a target."""
    flag = "--add-host=host.docker.internal:host-gateway"
    assert stack.settings()["LAMBDA_DOCKER_FLAGS"] == flag
    assert "host.docker.internal" in (ROOT / ".chalice/config.json").read_text()


def test_the_image_holds_what_the_commands_need(tmp_path: Path) -> None:
    """What .dockerignore lets through is enough for both commands, and holds no state of ours."""
    let_through = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert not set(let_through) & {".", ".chalice", ".data", "*"}
    for path in (found for pattern in let_through for found in ROOT.glob(pattern)):
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", path, there], check=True)
    for command in ("infra.deploy", "infra.localstack.schedule_runner"):
        subprocess.run(
            [sys.executable, "-m", command, "--help"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            check=True,
        )
