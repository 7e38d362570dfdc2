"""docker-compose.localstack.yml is valid, and agrees with `make e2e`."""

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
    """Return the file as `docker compose config` does; raise ValueError if it is invalid.

    Variables have their defaults, and merge keys are resolved.
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
def test_rejects_an_invalid_compose_file(right: str, wrong: str) -> None:
    """The parser checks the Compose specification."""
    assert right in TEXT
    with pytest.raises(ValueError):  # noqa: PT011  # any message
        read(TEXT.replace(right, wrong))


def test_localstack_listens_on_loopback_only() -> None:
    """LocalStack accepts requests from anyone, so its port is published on loopback."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert [str(port).startswith("127.0.0.1:") for port in published] == [True]


def test_the_image_needs_no_account() -> None:
    """The default image is the last that runs without a token. Both can be overridden."""
    assert SERVICES["localstack"]["image"] == "localstack/localstack:4.14.0"
    assert "image: ${LOCALSTACK_IMAGE:-" in TEXT
    assert "LOCALSTACK_AUTH_TOKEN: ${LOCALSTACK_AUTH_TOKEN:-}" in TEXT


def test_settings_equal_those_of_the_e2e_tests(tmp_path: Path) -> None:
    """Both read LocalStack's settings from one file, and no service overrides them."""
    assert SERVICES["localstack"]["env_file"] == "infra/localstack/localstack.env"
    assert set(SERVICES["localstack"]["environment"]) == {"LOCALSTACK_AUTH_TOKEN"}
    for name in ("deploy", "schedule-runner"):
        assert set(SERVICES[name]["environment"]) == {"AWS_ENDPOINT_URL"}
    assert stack.settings().items() <= stack.Stack(tmp_path)._environment().items()


def test_commands_equal_those_of_the_e2e_tests() -> None:
    """Compose starts the commands that the e2e tests run."""
    assert SERVICES["deploy"]["command"] == "python -m cli deploy localstack"
    runner = "python -m infra.localstack.schedule_runner --stage localstack --precision "
    assert SERVICES["schedule-runner"]["command"].startswith(runner)
    e2e = (ROOT / "tests/e2e/localstack/test_localstack.py").read_text()
    assert 'make("deploy", "STAGE=localstack")' in e2e
    assert '"infra.localstack.schedule_runner", "--stage", "localstack"' in e2e


def test_functions_reach_receivers_on_the_host() -> None:
    """The stage allows the name by which functions reach this machine as a target."""
    flag = "--add-host=host.docker.internal:host-gateway"
    assert stack.settings()["LAMBDA_DOCKER_FLAGS"] == flag
    assert "host.docker.internal" in (ROOT / ".chalice/config.json").read_text()


def test_the_image_holds_the_files_of_its_commands(tmp_path: Path) -> None:
    """Both commands run on the files that .dockerignore admits, and these hold no local state."""
    admitted = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert not set(admitted) & {".", ".chalice", ".data", "*"}
    for path in (found for pattern in admitted for found in ROOT.glob(pattern)):
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", path, there], check=True)
    for program in (
        "import infra.deploy, cli.deploy",
        "import infra.localstack.schedule_runner",
    ):
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            check=True,
        )
