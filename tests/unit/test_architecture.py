"""The rules of the architecture: which room imports which, and what a cold start loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

MAY_IMPORT = {
    "chalicelib.core": "",
    "chalicelib.service": "chalicelib.core",
    "chalicelib.webhook": "chalicelib.core chalicelib.service",
    "chalicelib.http": "chalicelib chalicelib.core chalicelib.service",
    "chalicelib.runtime": "chalicelib.core chalicelib.service chalicelib.aws",
    "chalicelib.aws": "chalicelib.core chalicelib.service chalicelib.webhook chalicelib.runtime",
    "standalone": "app chalicelib.core chalicelib.service chalicelib.webhook chalicelib.http"
    " chalicelib.runtime",
}
"""The rooms that each room may import, besides itself. app.py, cli and infra may import all."""

COMPOSITION_ROOTS = {
    "chalicelib/aws/bootstrap.py",
    "chalicelib/runtime.py",
    "standalone/bootstrap.py",
}
"""They read the environment and the clock."""

URL_PARSERS = {"urllib.parse.urlsplit", "urllib.parse.urlparse", "urllib3.util.parse_url"}

INFRASTRUCTURE = {"boto3", "botocore", "requests", "urllib3", "sqlite3", "chalice"}

SOURCES = [
    path for room in ("chalicelib", "standalone") for path in sorted((ROOT / room).rglob("*.py"))
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    """Return the room of a dotted name: `chalicelib.core.timer` is in `chalicelib.core`."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "chalicelib" else 1]).removesuffix(".__version__")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_inwards(path: Path) -> None:
    """core ← service ← webhook, http, aws, standalone ← app.py, cli."""
    own = room(name(path).removesuffix(".py").replace("/", "."))
    rooms = {*MAY_IMPORT, "chalicelib", "app", "cli", "infra"}
    ours = {room(it) for it in imports(path)} & rooms
    assert ours <= {own, *MAY_IMPORT.get(own, "").split()}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_the_core_imports_no_infrastructure(path: Path) -> None:
    """The core and the service are free of AWS, SQLite, HTTP clients and frameworks."""
    if path.parent.name in ("core", "service"):
        assert not {it.split(".")[0] for it in imports(path)} & INFRASTRUCTURE


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_one_module_parses_urls(path: Path) -> None:
    """Two parsers may find two hosts in a URL: one that is checked and one that is connected to."""
    assert not imports(path) & URL_PARSERS


@pytest.mark.parametrize("path", ["core/targets.py", "webhook/transport.py"])
def test_the_check_and_the_sender_use_that_module(path: str) -> None:
    """The allow-list and the transport call `urls.parse`."""
    source = (ROOT / "chalicelib" / path).read_text()
    assert "chalicelib.core.urls" in imports(ROOT / "chalicelib" / path)
    assert "urls.parse(" in source


@pytest.mark.parametrize("path", [ROOT / "app.py", *SOURCES], ids=name)
def test_only_composition_roots_read_the_environment_and_the_clock(path: Path) -> None:
    """Other modules are given their settings and their clock."""
    if name(path) not in COMPOSITION_ROOTS:
        assert not re.search(r"\bos\.environ|\bgetenv|datetime\.now|utcnow", path.read_text())


def test_a_cold_start_loads_no_aws_library() -> None:
    """Importing the application loads no AWS library, and nothing that only some requests need."""
    late = ("boto", "requests", "urllib3", "aws_lambda_powertools", "chalicelib.http.openapi")
    program = f"import sys, app; print([m for m in sys.modules if m.startswith({late})])"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


FIRST_DECODING = """
import sys
import msgspec
from chalicelib.core import timer
from chalicelib.http import bodies

for type in {types}:
    called = set()
    sys.setprofile(lambda frame, *_: called.add(frame.f_code.co_name))
    try:
        msgspec.json.decode(b"{{}}", type=type)
    except msgspec.ValidationError:
        pass
    sys.setprofile(None)
    assert "get_class_annotations" not in called, type
"""


def test_types_are_inspected_before_there_are_threads() -> None:
    """msgspec inspects a type when it first decodes one; two threads at once crash the process."""
    names = ["NewTimer", "TimerChange", "BatchEntry", "Batch", "Ids", "Query"]
    types = [f"bodies.{name}" for name in names] + ["timer.Timer", "timer.Wakeup"]
    program = FIRST_DECODING.format(types=", ".join(types))
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
