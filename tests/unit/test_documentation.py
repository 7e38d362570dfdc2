"""The documents cover all routes, settings and make targets, and the pins are consistent."""

import json
import re

from app import app
from infra import stages
from tests.support.processes import ROOT


def source(name: str) -> str:
    return (ROOT / name).read_text()


def documents() -> str:
    return "\n".join(path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def settings(name: str) -> set[str]:
    """Return the environment variables that a source file reads."""
    reads = r"""(?:environ\.get\(|_number\(environ, )['"](\w+)"""
    return set(re.findall(reads, source(name)))


def test_every_route_is_documented() -> None:
    """The documents name every route of app.py."""
    text = documents()
    for path, methods in app.routes.items():
        for method in methods.keys() - {"HEAD"}:
            shown = f"{method} {path.replace('{timer_id}', '{id}')}"
            assert re.search(rf"{re.escape(shown)}(?![\w/])", text), f"{shown} is undocumented"


def test_every_setting_is_documented() -> None:
    """The documents name every environment variable that either engine reads."""
    names = settings("standalone/settings.py") | settings("chalicelib/aws/bootstrap.py")
    assert names >= {"STAGE", "AUTH", "PORT", "RATE", "RETENTION", "ALLOWED_TARGETS"}
    assert not [name for name in names if f"`{name}`" not in documents()]


def test_every_setting_of_a_stage_is_read() -> None:
    """config.json sets only variables that the functions read."""
    config = json.loads(source(".chalice/config.json"))
    scopes = [config, *config["stages"].values()]
    names = {name for scope in scopes for name in scope["environment_variables"]}
    assert names - settings("chalicelib/aws/bootstrap.py") == {"RES_OPTIONS"}  # glibc reads it
    assert not [name for name in names if f"`{name}`" not in documents()]


def test_the_command_offers_every_stage() -> None:
    """`timers` offers the stages of config.json, without reading that file."""
    config = json.loads(source(".chalice/config.json"))
    assert set(stages.STAGES) == set(config["stages"])


def test_every_make_target_is_documented() -> None:
    """The documents name every target of the Makefile."""
    targets = re.findall(r"^(\w[\w-]*):.*##", source("Makefile"), re.MULTILINE)
    assert targets
    assert not [target for target in targets if f"make {target}" not in documents()]


def test_the_bundle_holds_no_framework() -> None:
    """Lambda provides boto3 and Chalice adds its runtime, so the bundle needs neither."""
    pins = [line.split("==")[0] for line in source("requirements.txt").splitlines()]
    assert not set(pins) & {"chalice", "boto3", "botocore"}


def test_npm_packages_are_pinned() -> None:
    """The benchmark installs the same npm packages everywhere, from any registry."""
    wanted = json.loads(source("bench/package.json"))["dependencies"]
    packages = json.loads(source("bench/package-lock.json"))["packages"]
    assert packages.pop("")["dependencies"] == wanted
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all(it["integrity"] and "resolved" not in it for it in packages.values())
