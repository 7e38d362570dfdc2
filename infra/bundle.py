"""Builds the Lambda bundle: a copy of the checkout with its libraries, all compiled.

A function can't write to its code's folder, so a module without a .pyc is compiled again in every
cold start. `chalice deploy` ships chalicelib/ whole, and merges vendor/ into the bundle's root:

    app.py, chalicelib/       copied; chalicelib/ gets its .pyc files
    vendor/                   the libraries in requirements.txt, with their .pyc files
    vendor/__pycache__        the .pyc of app.py; vendor/chalice/ has those of Chalice's own modules
    .chalice                  a link to the checkout's: Chalice stores its state there

Python uses these .pyc files without comparing dates, because unzipping changes the dates. In the
checkout such files would hide later edits, so the bundle is built from a copy.
"""

import compileall
import py_compile
import shutil
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import chalice.app

from chalicelib.core.errors import OperatorError

PLATFORM = "manylinux2014_x86_64"
"""The functions' platform. Their Python version is that of the deploying machine."""

TASK = "/var/task"
"""The folder into which Lambda unpacks the bundle."""

UNUSED = (
    "bin",
    "**/*.py[ix]",
    "**/*.pxd",
    "aws_lambda_powertools/event_handler",
    "aws_lambda_powertools/utilities/[!_j]*",  # Powertools itself needs jmespath_utils
    "urllib3/contrib/emscripten",  # for Python in browsers
)
"""Parts of the libraries that no function needs. Leaving them out saves 1.8 MB of 4.5."""

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def build(root: Path, folder: Path) -> None:
    """Fill the empty `folder` with the project that `chalice deploy` ships.

    Raises OperatorError if pip can't install the libraries.
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
    finished = subprocess.run(  # noqa: S603  # the command is fixed
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--requirement", requirements, "--no-deps", "--target", vendor, "--no-compile"),
            *("--platform", PLATFORM, "--only-binary", ":all:"),
        ],
        check=False,
    )
    if finished.returncode:
        raise OperatorError(
            "pip could not install the libraries of the bundle; its output is above."
        )


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
