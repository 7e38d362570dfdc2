"""What goes to Lambda: a copy of the checkout, with its libraries, in which everything is compiled.

A function can't write where its code lies, so what comes without .pyc is compiled in every cold
start. `chalice deploy` ships chalicelib/ with all that is in it, and lays vendor/ over the rest:

    app.py, chalicelib/       as they are, chalicelib/ with its .pyc
    vendor/                   what requirements.txt names, with its .pyc
    vendor/__pycache__        … of app.py, and in vendor/chalice/ of what Chalice adds of itself
    .chalice                  the checkout's: Chalice keeps there what it has deployed

These .pyc are used whatever the dates of their sources are, for unzipping changes those. In the
checkout they would outlive the next edit, hence the copy.
"""

import compileall
import py_compile
import shutil
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import chalice.app

from chalicelib.core.errors import CommandError

PLATFORM = "manylinux2014_x86_64"
"""What the functions run on; of which Python, the one that deploys decides."""

TASK = "/var/task"
"""Where Lambda unpacks the bundle."""

UNUSED = (
    "bin",
    "**/*.pyi",
    "aws_lambda_powertools/event_handler",
    "aws_lambda_powertools/utilities/[!_j]*",  # its jmespath_utils are used by the rest
)
"""What of the libraries no function needs: with it, compiled, the bundle's 2.7 MB were 4.5."""

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def build(root: Path, folder: Path) -> None:
    """Make `folder`, which is there and empty, the project that `chalice deploy` is to ship.

    Raises Refused if the libraries can't be had.
    """
    (folder / ".chalice").symlink_to(root / ".chalice")
    shutil.copy(root / "app.py", folder)
    shutil.copytree(
        root / "chalicelib", folder / "chalicelib", ignore=shutil.ignore_patterns("__pycache__")
    )
    vendor = folder / "vendor"
    _install(root / "requirements.txt", vendor)
    for pattern in UNUSED:
        for path in vendor.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _compile(folder, vendor)


def _install(requirements: Path, vendor: Path) -> None:
    ended = subprocess.run(  # noqa: S603  # what it runs is ours
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--requirement", requirements, "--no-deps", "--target", vendor, "--no-compile"),
            *("--platform", PLATFORM, "--only-binary", ":all:"),
        ],
        check=False,
    )
    if ended.returncode:
        raise CommandError("The libraries can't be had; what pip said stands above.")


def _compile(folder: Path, vendor: Path) -> None:
    for tree, place in ((vendor, TASK), (folder / "chalicelib", f"{TASK}/chalicelib")):
        compileall.compile_dir(tree, ddir=place, quiet=1, invalidation_mode=UNCHECKED)
    framework = Path(chalice.app.__file__).parent
    for source, name in (
        (folder / "app.py", "app.py"),
        (framework / "__init__.py", "chalice/__init__.py"),
        (framework / "app.py", "chalice/app.py"),
    ):
        py_compile.compile(
            str(source),
            cache_from_source(str(vendor / name)),
            f"{TASK}/{name}",
            invalidation_mode=UNCHECKED,
        )
