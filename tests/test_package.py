"""What `chalice package` makes of the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.processes import ROOT, environment

BIN = Path(sys.executable).parent


@pytest.mark.e2e
def test_bundle_is_small_and_its_template_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The zip is under 3 MB, holds neither AWS's libraries nor Chalice's command line, and the
    template of it passes cfn-lint."""
    project, made = tmp_path / "project", tmp_path / "made"
    project.mkdir()
    for name in ("app.py", "requirements.txt"):
        shutil.copy(ROOT / name, project)
    no_caches = shutil.ignore_patterns("__pycache__", "deployments", "deployed")
    for name in ("chalicelib", ".chalice"):
        shutil.copytree(ROOT / name, project / name, ignore=no_caches)
    subprocess.run(
        [BIN / "chalice", "package", "--stage", "dev", made],
        cwd=project,
        env=environment(AWS_DEFAULT_REGION="eu-central-1"),
        capture_output=True,
        check=True,
    )
    bundle = made / "deployment.zip"
    with capsys.disabled():
        print(f"\nThe bundle has {bundle.stat().st_size:,} bytes.")  # noqa: T201
    assert bundle.stat().st_size < 3_000_000
    names = zipfile.ZipFile(bundle).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"app.py", "chalicelib", "requests", "msgspec"} <= tops
    assert not tops & {"boto3", "botocore", "embedded", "tests", "click", "pip"}
    assert {name for name in names if name.startswith("chalice/")} == {
        "chalice/__init__.py",
        "chalice/app.py",
    }
    linted = subprocess.run(
        [BIN / "cfn-lint", made / "sam.json"], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")
