"""The house keeps its own rules: who imports whom, what is pinned, what the documents say."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.processes import ROOT

MAY_IMPORT = {
    "chalicelib": set[str](),
    "errors": set(),
    "timers": {"errors"},
    "retry": {"timers", "errors"},
    "views": {"timers", "guard", "errors"},
    "listing": {"timers"},
    "when": set(),
    "inputs": {"when", "listing", "timers", "errors", "guard"},
    "service": {"views", "listing", "retry", "timers", "errors"},
    "guard": {"errors"},
    "keys": {"errors"},
    "signing": set(),
    "logs": {"timers"},
    "webhook": {"timers", "errors", "guard", "signing"},
    "openapi": {"api", "inputs", "views", "timers", "errors"},
    "pages": {"openapi", "api", "errors"},
    "api": {"inputs", "service", "views", "listing", "timers", "errors", "guard", "keys"},
    "alarm": {"service", "timers", "errors"},
    "dynamodb": {"listing", "timers", "errors", "keys", "signing"},
    "functions": {"wiring", "timers", "errors", "keys"},
    "wiring": None,  # a composition root
}
"""Which modules of chalicelib each one may import."""

ENVIRONMENT_READERS = {
    "chalicelib/wiring.py",
    "embedded/__main__.py",
    "embedded/demo.py",  # hands it on to a process
    "app.py",
}

OUTER = {"chalicelib", "pages", "logs", "webhook", "alarm", "dynamodb", "functions", "wiring"}

INNER = MAY_IMPORT.keys() - OUTER
"""Modules that must not know what the adapters are made of."""


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """Return the modules of chalicelib that a file imports."""
    names = MAY_IMPORT.keys()
    imported = {name.split(".")[1] for name in imports(path) if name.startswith("chalicelib.")}
    return imported & names


def module(path: Path) -> str:
    """Return the name of the module that a file is."""
    return path.parent.name if path.stem == "__init__" else path.stem


@pytest.mark.parametrize("path", sources("chalicelib"), ids=module)
def test_imports_point_inwards(path: Path) -> None:
    """app → api, wiring → service → retry → timers → errors; adapters know the core only."""
    allowed = MAY_IMPORT[module(path)]
    assert allowed is None or ours(path) <= allowed
    assert not [name for name in imports(path) if name.split(".")[0] in ("embedded", "infra")]


@pytest.mark.parametrize("name", sorted(INNER))
def test_core_knows_no_infrastructure(name: str) -> None:
    """The core and the API's values are free of AWS, SQLite and HTTP clients."""
    roots = {name.split(".")[0] for name in imports(ROOT / "chalicelib" / f"{name}.py")}
    assert not roots & {"boto3", "botocore", "requests", "urllib3", "sqlite3"}


@pytest.mark.parametrize("path", sources("embedded"), ids=lambda path: path.stem)
def test_embedded_adapters_know_the_core_only(path: Path) -> None:
    """Only the composition root puts the parts together."""
    if path.stem != "__main__":
        assert ours(path) <= {"errors", "timers", "listing", "guard", "keys", "signing", "api"}


@pytest.mark.parametrize(
    "path", [ROOT / "app.py", *sources("chalicelib"), *sources("embedded")], ids=lambda p: p.name
)
def test_only_composition_roots_read_the_environment_and_the_clock(path: Path) -> None:
    """os.environ and the wall clock are read where the parts are put together, nowhere else."""
    if str(path.relative_to(ROOT)) not in ENVIRONMENT_READERS:
        assert not re.search(r"\bos\.environ|\bgetenv|datetime\.now|utcnow", path.read_text())


def requirements(name: str) -> dict[str, str]:
    """Return the pins of a requirements file and of those it includes."""
    pins: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("-r "):
            pins |= requirements(line[3:])
        elif line and not line.startswith("#"):
            package, _, version = line.partition("==")
            assert version, f"{line} is not pinned"
            pins[canonical(package)] = version
    return pins


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_everything_installed_is_pinned() -> None:
    """What the tests run on is what the requirements say, to the last dependency."""
    pins = requirements("requirements-dev.txt")
    installed = {canonical(dist.metadata["Name"]): dist.version for dist in distributions()}
    installed.pop("pip", None)
    assert installed == pins


def test_what_npm_installs_is_pinned() -> None:
    """The peer that is measured is the same everywhere, to the last dependency and byte, from
    whichever registry somebody has."""
    wanted = json.loads(source("bench/package.json"))["dependencies"]
    packages = json.loads(source("bench/package-lock.json"))["packages"]
    assert packages.pop("")["dependencies"] == wanted
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all(it["integrity"] and "resolved" not in it for it in packages.values())


def test_bundle_holds_no_framework() -> None:
    """chalice and boto3 are on Lambda anyway; in the bundle they would only be weight."""
    assert not set(requirements("requirements.txt")) & {"chalice", "boto3", "botocore"}
    first = (ROOT / "requirements.txt").read_text().splitlines()[:2]
    assert all(line.startswith("#") for line in first)


def test_nothing_touches_aws_at_import() -> None:
    """Importing the application loads no AWS library and makes no client; nor does it load what
    only some requests need. Every cold start would pay for it."""
    late = ("boto", "requests", "urllib3", "aws_lambda_powertools", "chalicelib.openapi")
    program = f"import sys, app; print([m for m in sys.modules if m.startswith({late})])"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


FIRST_READING = """
import sys
import msgspec
from chalicelib import inputs, timers

for kind in {kinds}:
    called = set()
    sys.setprofile(lambda frame, *_: called.add(frame.f_code.co_name))
    try:
        msgspec.json.decode(b"{{}}", type=kind)
    except msgspec.ValidationError:
        pass
    sys.setprofile(None)
    assert "get_class_annotations" not in called, kind
"""


def test_types_are_ready_before_there_are_threads() -> None:
    """msgspec looks at a type when it first reads one; two threads that do so at once crash it."""
    requests = ["NewTimer", "TimerChange", "BatchEntry", "Batch", "Ids", "Query"]
    kinds = [f"inputs.{name}" for name in requests] + ["timers.Timer", "timers.Ring"]
    program = FIRST_READING.format(kinds=", ".join(kinds))
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def documents() -> str:
    return "\n".join(path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_every_route_is_documented() -> None:
    """What app.py serves, the documents name."""
    routes = re.findall(r'@app\.route\("([^"]+)", methods=\["(\w+)"\]', source("app.py"))
    assert routes
    text = documents()
    for path, method in routes:
        shown = path.replace("{timer_id}", "{id}")
        assert f"{method} {shown}" in text, f"{method} {shown} is documented nowhere"


def test_every_setting_is_documented() -> None:
    """What the composition roots read from the environment, the documents name."""
    roots = source("embedded/__main__.py") + source("chalicelib/wiring.py")
    names = set(re.findall(r"""environ\.get\(['"](\w+)""", roots))
    assert names >= {"HOST", "STAGE", "AUTH"}
    assert not [name for name in names if f"`{name}`" not in documents()]


def test_every_setting_of_a_stage_is_read() -> None:
    """config.json sets nothing that nobody looks at, and nothing that is documented nowhere."""
    stages = json.loads(source(".chalice/config.json"))["stages"].values()
    names = {name for stage in stages for name in stage["environment_variables"]}
    read = set(re.findall(r"""environ\.get\(['"](\w+)""", source("chalicelib/wiring.py")))
    assert names - read == {"RES_OPTIONS"}  # glibc reads it
    assert not [name for name in names if f"`{name}`" not in documents()]


def test_every_make_target_is_documented() -> None:
    """What the Makefile offers, CONTRIBUTING or the README names."""
    targets = re.findall(r"^(\w[\w-]*):.*##", source("Makefile"), re.MULTILINE)
    assert targets
    assert not [target for target in targets if f"make {target}" not in documents()]


def source(name: str) -> str:
    return (ROOT / name).read_text()
