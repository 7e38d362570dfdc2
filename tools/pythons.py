"""`python -m tools.pythons`: run the unit tests on every other supported Python of this machine."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

ENVIRONMENTS = ROOT / ".pythons"
"""One virtual environment for each version."""

VERSION = re.compile(r"Programming Language :: Python :: (3\.[0-9]+)")


def supported() -> list[str]:
    """Return the versions that pyproject.toml names, oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [found[1] for it in project["classifiers"] if (found := VERSION.fullmatch(it))]


def find(version: str) -> Path | None:
    """Return an interpreter of this version, on PATH or of pyenv, or None."""
    return next((python for python in _candidates(version) if _is(python, version)), None)


def passes(version: str, python: Path) -> bool:
    """Install the tests' libraries for this interpreter; return whether the unit tests pass."""
    environment = ENVIRONMENTS / version
    own = environment / "bin/python"
    print(f"Installing the libraries for Python {version} …", file=sys.stderr)  # noqa: T201
    subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(own), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "-r", "requirements-dev.txt"], cwd=ROOT, check=True)
    tests = ["tests/unit", "-m", "not e2e", "-n", "2", "--dist", "loadfile"]
    return subprocess.run([own, "-m", "pytest", *tests], cwd=ROOT, check=False).returncode == 0


def main() -> None:
    """Name the versions that passed and those that this machine lacks; fail if any failed."""
    here = "{}.{}".format(*sys.version_info)
    found = {version: find(version) for version in supported() if version != here}
    results = {version: passes(version, python) for version, python in found.items() if python}
    _report("The unit tests passed", [it for it, passed in results.items() if passed])
    _report("Not on this machine", [it for it, python in found.items() if not python])
    if failed := [it for it, passed in results.items() if not passed]:
        sys.exit(f"The unit tests failed: Python {', '.join(failed)}.")


def _candidates(version: str) -> Iterator[Path]:
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path).resolve()  # a link would mislead its environment
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from pyenv.glob(f"versions/{version}.*/bin/python")


def _is(python: Path, version: str) -> bool:
    # pyenv puts a command on PATH for each version, and most of them refuse to run.
    code = "import sys, venv; print('{}.{}'.format(*sys.version_info))"
    ended = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return ended.stdout.strip() == version


def _report(text: str, versions: list[str]) -> None:
    if versions:
        print(f"{text}: Python {', '.join(versions)}.")  # noqa: T201


if __name__ == "__main__":
    main()
