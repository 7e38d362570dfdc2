"""The Lambda bundles of `make deploy` and of a plain `chalice deploy`."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.cold_start import package
from tests.support.processes import ROOT, environment

BIN = Path(sys.executable).parent

UNCHECKED = (1).to_bytes(4, "little")
"""The flags of a .pyc that Python uses without checking its source (PEP 552)."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the package of `make deploy`."""
    folder = tmp_path_factory.mktemp("made")
    package(folder)
    return folder


def contents(made: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(made / "deployment.zip") as zipped:
        names = zipped.namelist()
        assert len(set(names)) == len(names)
        return {name: zipped.read(name) for name in names}


def tops(names: dict[str, bytes]) -> set[str]:
    return {name.split("/")[0] for name in names}


@pytest.mark.e2e
def test_bundle_is_small_and_its_template_valid(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The zip is under 3.5 MB, without boto3 and Chalice's command line; cfn-lint passes."""
    size = (made / "deployment.zip").stat().st_size
    with capsys.disabled():
        print(f"\nThe bundle has {size:,} bytes.")  # noqa: T201
    assert size < 3_500_000
    files = contents(made)
    assert {"app.py", "chalicelib", "requests", "msgspec"} <= tops(files)
    assert not tops(files) & {
        "boto3",
        "botocore",
        "standalone",
        "cli",
        "infra",
        "tests",
        "click",
        "pip",
        "bin",
    }
    assert {name for name in files if name.startswith("chalice/") and name.endswith(".py")} == {
        "chalice/__init__.py",
        "chalice/app.py",
    }
    linted = subprocess.run(
        [BIN / "cfn-lint", made / "sam.json"], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.e2e
def test_only_the_bundle_has_unchecked_pyc_files(made: Path) -> None:
    """Every module in the bundle has a .pyc of its source that Python uses unchecked.

    In the checkout such a .pyc would hide the next edit.
    """
    files = contents(made)
    sources = [name for name in files if name.endswith(".py")]
    for name in sources:
        compiled = files[importlib.util.cache_from_source(name)]
        expected = importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(files[name])
        assert compiled[:16] == expected, name
    assert len(sources) == len([name for name in files if name.endswith(".pyc")])
    ours = [*(ROOT / "chalicelib").rglob("*.pyc"), *(ROOT / "__pycache__").glob("*.pyc")]
    assert not [path for path in ours if path.read_bytes()[4:8] == UNCHECKED]
    assert not (ROOT / "vendor").exists()


@pytest.mark.e2e
def test_chalice_packages_the_checkout(tmp_path: Path) -> None:
    """A plain `chalice deploy` works: Chalice adds the libraries itself."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("app.py", "requirements.txt"):
        shutil.copy(ROOT / name, project)
    no_caches = shutil.ignore_patterns("__pycache__", "deployments", "deployed")
    for name in ("chalicelib", ".chalice"):
        shutil.copytree(ROOT / name, project / name, ignore=no_caches)
    subprocess.run(
        [BIN / "chalice", "package", "--stage", "dev", tmp_path / "made"],
        cwd=project,
        env=environment(AWS_DEFAULT_REGION="eu-central-1"),
        capture_output=True,
        check=True,
    )
    assert {"app.py", "chalicelib", "requests", "msgspec"} <= tops(contents(tmp_path / "made"))
