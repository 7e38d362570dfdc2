"""`python -m tools.pythons` finds the interpreters of this machine."""

from pathlib import Path

import pytest

from tools import pythons


def interpreter(path: Path, script: str) -> Path:
    """Write a program that stands in for an interpreter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no interpreter: PATH is its folder bin, and pyenv its folder pyenv."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


def test_finds_an_interpreter_on_path(machine: Path) -> None:
    """An interpreter on PATH is found, behind its links."""
    python = interpreter(machine / "opt/python3.14", "echo 3.14")
    (machine / "bin").mkdir()
    (machine / "bin/python3.14").symlink_to(python)
    assert pythons.find("3.14") == python


def test_finds_an_interpreter_of_pyenv_behind_its_shim(machine: Path) -> None:
    """A shim of pyenv that refuses to run is passed over."""
    interpreter(machine / "bin/python3.13", "exit 127")
    python = interpreter(machine / "pyenv/versions/3.13.0/bin/python", "echo 3.13")
    assert pythons.find("3.13") == python


@pytest.mark.parametrize("script", ["echo 3.12", "exit 1"])
def test_another_version_is_no_match(machine: Path, script: str) -> None:
    """A command that is not of the version, or does not run, is not found."""
    interpreter(machine / "bin/python3.14", script)
    assert pythons.find("3.14") is None


def test_names_the_supported_versions() -> None:
    """The versions are those that pyproject.toml names, in order."""
    assert pythons.supported()[0] == "3.11"
    assert len(pythons.supported()) == len(set(pythons.supported())) >= 4
