"""The engines under test: each runs in its own processes behind HTTP, as users run it."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

import requests

ROOT = Path(__file__).parent.parent

BENCH_FOLDER = ROOT / ".bench"
"""Folder for the peers that `make bench` installs, and for the engines' data."""

MODULES = BENCH_FOLDER / "node_modules"

PEERS = ROOT / "bench" / "peers"

START_SECONDS = 120.0
"""Seconds within which an engine must be ready."""


class Engine:
    """One engine with its data in `folder`; runs between `start` and `kill`."""

    name: ClassVar[str]
    durability: ClassVar[str]
    """How an engine stores a timer before it answers 201."""
    skips: ClassVar[frozenset[str]] = frozenset()
    """The measures that it does not take part in."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self._settings = settings or {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run here, or None."""
        return None

    @classmethod
    def version(cls) -> str:
        """Return its components and their versions."""
        raise NotImplementedError

    def start(self) -> None:
        """Run it, and return once it responds over HTTP."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.launch()
            self._wait(self.is_ready)
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start its processes."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Say whether it responds."""
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=10).ok
        except requests.ConnectionError:
            return False

    def timer(self, moment: str, url: str) -> tuple[str, dict[str, str]]:
        """Return the path and the JSON of the POST for a timer due at an RFC 3339 moment."""
        return "/timers", {"fire_at": moment, "url": url}

    def sync_each_write(self) -> None:
        """Make it sync before each response, unless it always does."""

    def run(self, *command: str | Path, **settings: str) -> None:
        """Start one process with these settings only; it may start others."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its session id finds its child processes
            )
        self._processes.append(process)

    def kill(self) -> None:
        """Kill -9 all processes and wait until they are gone."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def memory(self) -> int:
        """Return the bytes of all its processes; pages that several share count once."""
        sessions = {process.pid for process in self._processes}
        return sum(_memory(pid) for pid in _processes() if _session(pid) in sessions)

    def _wait(self, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + START_SECONDS
        while not ready():
            ended = [process.args for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > end:
                log = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} did not start: {log}")
            time.sleep(0.01)


class Timers(Engine):
    """`python -m standalone` with its defaults."""

    name = "Timers"
    durability = "fsync before the response"

    @classmethod
    def version(cls) -> str:
        return f"this checkout on Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}"

    @property
    def database(self) -> Path:
        """The database file."""
        return self.folder / "timers.db"

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        return self._processes[0].pid

    def launch(self) -> None:
        settings = {"TIMERS_DB": str(self.database), "PORT": str(self.port), **self._settings}
        self.run(sys.executable, "-m", "standalone", **settings)


class OnRedis(Engine):
    """An engine that keeps its timers in a Redis of its own."""

    durability = "fsync every second"

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("redis-server") is None:
            return "redis-server is not installed (on Debian: apt-get install redis-server)"
        return None

    def launch(self) -> None:
        self.redis = free_port()
        self.run(
            *("redis-server", "--port", str(self.redis), "--bind", "127.0.0.1"),
            *("--dir", str(self.folder), "--save", ""),  # no snapshots beside the log
            *("--appendonly", "yes", "--appendfsync", "everysec"),
        )
        self._wait(lambda: self.ask_redis("PING") == b"+PONG")

    def sync_each_write(self) -> None:
        if self.ask_redis("CONFIG SET appendfsync always") != b"+OK":
            raise RuntimeError("Redis does not sync each write.")

    def ask_redis(self, command: str) -> bytes:
        """Return the first line of Redis's response; empty if Redis does not listen."""
        try:
            with socket.create_connection(("127.0.0.1", self.redis), 10) as connection:
                connection.sendall(f"{command}\r\n".encode())
                return connection.recv(1000).split(b"\r\n")[0]
        except ConnectionError:
            return b""


class CeleryOnRedis(OnRedis):
    """Celery's worker with 64 threads; gunicorn with as many for the WSGI app in front."""

    name = "Celery + Redis"
    skips = frozenset({"mixed"})  # it can do a thousand a second of either, not of both

    @classmethod
    def version(cls) -> str:
        parts = ("celery", "redis", "gunicorn")
        return f"{', '.join(f'{part} {version(part)}' for part in parts)}; {_redis()}"

    def launch(self) -> None:
        super().launch()
        bin = Path(sys.executable).parent
        settings = {"REDIS_URL": f"redis://127.0.0.1:{self.redis}/0", "PYTHONPATH": str(PEERS)}
        worker = ("--pool", "threads", "--concurrency", "64", "--loglevel", "warning")
        self.run(bin / "celery", "-A", "celery_app", "worker", *worker, **settings)
        front = ("--workers", "2", "--threads", "32", "--bind", f"127.0.0.1:{self.port}")
        self.run(bin / "gunicorn", *front, "celery_app:application", **settings)


class OnNode(OnRedis):
    """An engine from npm, which a script in `bench/peers/` starts."""

    modules: ClassVar[tuple[str, ...]]
    """Its modules from npm; the first is the engine."""

    @classmethod
    def missing(cls) -> str | None:
        if not (MODULES / cls.modules[0]).exists():
            return f"npm could not install {cls.modules[0]}"
        return super().missing()

    @classmethod
    def version(cls) -> str:
        parts = {
            name: json.loads((MODULES / name / "package.json").read_text())["version"]
            for name in cls.modules
        }
        named = ", ".join(f"{name} {number}" for name, number in parts.items())
        return f"{named} on Node {_output('node', '--version')}; {_redis()}"

    def run_script(self, *arguments: str) -> None:
        """Start its script with the ports of Redis and of HTTP."""
        script = PEERS / f"{self.modules[0]}.js"
        ports = (str(self.redis), str(self.port))
        self.run("node", script, *arguments, *ports, NODE_PATH=str(MODULES))


class BullMq(OnNode):
    """BullMQ's worker with 64 jobs at once; Node's own HTTP server in front."""

    name = "BullMQ"
    modules = ("bullmq", "ioredis")

    def launch(self) -> None:
        super().launch()
        self.run_script("worker")
        self.run_script("front")


class Quirrel(OnNode):
    """Quirrel's own server: its HTTP API and its worker, in one process."""

    name = "Quirrel"
    modules = ("quirrel",)
    skips = frozenset({"mixed"})  # it can do a thousand a second of either, not of both

    def launch(self) -> None:
        super().launch()
        self.run_script()

    def timer(self, moment: str, url: str) -> tuple[str, dict[str, str]]:
        return f"/queues/{quote(url, safe='')}", {"runAt": moment}


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _redis() -> str:
    return f"Redis {_output('redis-server', '--version').split('v=')[1].split()[0]}"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _memory(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(rollup.split("Pss:")[1].split()[0])
