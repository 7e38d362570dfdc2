"""The standalone server as a whole: own process, real deadlines, kill -9."""

import os
import random
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest
import requests

from chalicelib import runtime
from chalicelib.core import api_keys
from chalicelib.core.api_keys import Role
from chalicelib.core.errors import Conflict
from chalicelib.core.targets import Targets
from chalicelib.core.timer import DEFAULT_TENANT, MAX_TIMEOUT, Outcome, Timer, Webhook, new_timer
from chalicelib.runtime import new_id, now
from standalone import scheduler as engine_module
from standalone.bootstrap import Runner, _url, build_application
from standalone.greenlets import Hub
from standalone.scheduler import MAX_SENDERS, HeapScheduler
from standalone.server import Server
from standalone.settings import Settings
from standalone.sqlite.credentials import credentials_in
from standalone.sqlite.schema import MIGRATIONS
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.fakes import NO_CONTENT, created
from tests.support.http import running
from tests.support.hub import running_hub
from tests.support.processes import ROOT, Receiver, Standalone, environment, wait_until
from tests.support.service import Service

STOPPING = "Stopping: finishing the webhooks in progress …"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "timers.db"


def statuses(database: Path) -> dict[str, str]:
    """Return the status of each timer in a database that no process has open."""
    with closing(sqlite3.connect(database)) as db:
        return dict(db.execute("SELECT id, status FROM timers").fetchall())


@pytest.mark.e2e
def test_fires_on_time(database: Path) -> None:
    """20 timers of 1 to 3 s: none fires early, each fires once, with an empty body. The median
    lateness is at most 50 ms, the maximum 2 s."""
    with Standalone(database) as server, Receiver() as receiver:
        delays = [1 + number % 3 for number in range(20)]
        created = [server.create(delay, f"{receiver.url}/{{id}}") for delay in delays]
        wait_until(lambda: len(receiver.arrivals) >= 20)
        time.sleep(0.5)
        arrivals = {arrival.id: arrival for arrival in receiver.arrivals}
        assert len(receiver.arrivals) == len(arrivals) == 20
        late = []
        for timer in created:
            arrival = arrivals[timer["id"]]
            late.append((arrival.at - datetime.fromisoformat(timer["fire_at"])).total_seconds())
            assert arrival.path == f"/{timer['id']}"
            assert arrival.body == b""
            assert arrival.headers["timer-attempt"] == "1"
        assert min(late) >= 0
        assert median(late) <= 0.05
        assert max(late) <= 2
        delivered = server.read(created[0]["id"])
        assert (delivered["status"], delivered["time_left"]) == ("delivered", 0)
        assert delivered["attempts"][0]["status"] == 200
        assert not [line for line in server.lines if "Warning" in line or "Traceback" in line]


@pytest.mark.e2e
def test_counts_down(database: Path) -> None:
    """`time_left` is in whole seconds, only falls, and is 0 once the timer is due."""
    with Standalone(database) as server, Receiver() as receiver:
        timer = server.create(2, receiver.url)
        seen = [timer["time_left"]]
        end = time.monotonic() + 30
        while seen[-1] > 0 and time.monotonic() < end:
            seen.append(server.read(timer["id"])["time_left"])
        assert seen == sorted(seen, reverse=True)
        assert set(seen) <= {2, 1, 0}
        assert seen[0] > 0


@pytest.mark.e2e
def test_fires_timers_that_came_due_during_an_outage(database: Path) -> None:
    """After kill -9 and a restart past 200 deadlines, 200 webhooks arrive, each once."""
    with Receiver() as receiver:
        with Standalone(database) as server, ThreadPoolExecutor(16) as clients:
            created = list(clients.map(lambda _: server.create(4, receiver.url), range(200)))
            server.kill()
        assert receiver.arrivals == []
        last = max(datetime.fromisoformat(timer["fire_at"]) for timer in created)
        time.sleep(max(0.0, (last - now()).total_seconds()))
        with Standalone(database) as server:
            wait_until(lambda: len(receiver.arrivals) >= 200)
            wait_until(lambda: server.read(created[-1]["id"])["status"] == "delivered")
            assert server.stop() == 0
        assert Counter(receiver.ids()) == Counter(timer["id"] for timer in created)
        assert set(statuses(database).values()) == {"delivered"}


@pytest.mark.e2e
def test_kill_9_while_firing_loses_nothing(database: Path) -> None:
    """After kill -9 while webhooks are being sent, none is missing after a restart. Only those in
    progress are repeated, with the same id."""
    gate = threading.Event()
    with Receiver(hold=lambda: gate.wait(0.2)) as receiver:
        with Standalone(database) as server, ThreadPoolExecutor(16) as clients:
            created = list(clients.map(lambda _: server.create(2, receiver.url), range(200)))
            wait_until(lambda: len(receiver.arrivals) >= 100)
            server.kill()
        gate.set()
        before = set(receiver.ids())
        in_flight = {id for id, status in statuses(database).items() if status == "delivering"}
        assert in_flight
        assert len(in_flight) <= MAX_SENDERS
        with Standalone(database) as server:
            wait_until(lambda: set(receiver.ids()) == {timer["id"] for timer in created})
            wait_until(lambda: statuses_of(server, created) == {"delivered"})
            assert server.stop() == 0
        counts = Counter(receiver.ids())
        repeated = {id for id, count in counts.items() if count > 1}
        assert repeated <= in_flight
        assert before - in_flight == {id for id in before if counts[id] == 1} - in_flight
        assert set(statuses(database).values()) == {"delivered"}


def statuses_of(server: Standalone, created: list[dict[str, object]]) -> set[str]:
    return {server.read(str(timer["id"]))["status"] for timer in created}


class RecordingSender:
    """A sender that records the ids and sends nothing."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, timer: Timer, at: datetime) -> Outcome:
        self.sent.append(timer.id)
        return NO_CONTENT


@pytest.mark.e2e
def test_a_timer_is_cancelled_or_fired_never_both(database: Path) -> None:
    """In 500 races of a cancel with the firing, either the cancel succeeds or a webhook is sent."""
    with closing(SqliteTimerStore(database)) as store, running_hub() as hub:
        engine, sender = HeapScheduler(store, hub, now), RecordingSender()
        service = Service(store, engine, sender, clock=now, new_id=new_id, pause=time.sleep)
        engine.start(service.deliver, lambda: False)
        rng = random.Random(0)  # noqa: S311
        jitters = [rng.uniform(-0.004, 0.012) for _ in range(500)]
        cancelled: list[str] = []

        def race(jitter: float) -> str:
            timer = created(service, Webhook(url="https://x.test"), 0.03)
            time.sleep(max(0.0, (timer.deadline - now()).total_seconds() + jitter))
            try:
                service.cancel(DEFAULT_TENANT, timer.id)
                cancelled.append(timer.id)
            except Conflict:
                pass
            return timer.id

        with ThreadPoolExecutor(8) as clients:
            raced = set(clients.map(race, jitters))
        wait_until(lambda: not [t for t in raced if service.get("default", t).wake_at])
        engine.stop()
        assert set(cancelled) | set(sender.sent) == raced
        assert not set(cancelled) & set(sender.sent)
        assert cancelled
        assert sender.sent
        assert max(Counter(sender.sent).values()) == 1


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_finishes_webhooks_in_progress_before_it_stops(
    database: Path, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C let a webhook in progress finish, record it, then exit with 0."""
    gate = threading.Event()
    with Standalone(database) as server, Receiver(hold=lambda: gate.wait(30)) as receiver:
        timer, later = server.create(0, receiver.url), server.create(3600, receiver.url)
        wait_until(lambda: receiver.arrivals)
        server.process.send_signal(number)
        wait_until(lambda: STOPPING in server.lines)
        gate.set()
        assert server._wait() == 0
        assert statuses(database) == {timer["id"]: "delivered", later["id"]: "scheduled"}


@pytest.mark.e2e
def test_a_second_ctrl_c_stops_at_once(database: Path) -> None:
    """Ctrl-C while stopping exits at once; the next start sends the webhook in progress again.
    Further SIGTERMs change nothing."""
    gate = threading.Event()
    with Receiver(hold=lambda: gate.wait(30)) as receiver:
        with Standalone(database) as server:
            timer = server.create(0, receiver.url)
            wait_until(lambda: receiver.arrivals)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: STOPPING in server.lines)
            for _ in range(20):
                server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert server.process.poll() is None
            assert server.stop(signal.SIGINT) == 128 + signal.SIGINT
        gate.set()
        with Standalone(database) as server:
            wait_until(lambda: server.read(timer["id"])["status"] == "delivered")
    assert receiver.ids() == [timer["id"]] * 2


@pytest.mark.e2e
def test_many_sigterms_stop_cleanly(database: Path) -> None:
    """Many SIGTERMs at once act like one; make and process groups send several."""
    with Standalone(database) as server:
        for _ in range(50):
            server.process.send_signal(signal.SIGTERM)
        assert server.stop() == 0
        assert STOPPING in server.lines


@pytest.mark.e2e
def test_stops_cleanly_with_webhooks_to_itself(database: Path) -> None:
    """Webhooks to the built-in receiver still arrive: HTTP stops after the senders."""
    with Standalone(database) as server:
        for _ in range(100):
            server.create(1, f"{server.url}/_receiver/x")
        wait_until(lambda: [line for line in server.lines if "webhook received" in line])
        assert server.stop() == 0
    assert set(statuses(database).values()) <= {"delivered", "scheduled"}


@pytest.mark.e2e
def test_stops_cleanly_when_the_terminal_is_closed(database: Path) -> None:
    """A closed terminal does not prevent a clean stop."""
    gate = threading.Event()
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "standalone"],
        cwd=ROOT,
        env=environment(TIMERS_DB=str(database), PORT="0"),
        stdout=writing,
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    with os.fdopen(reading) as lines:
        url = lines.readline().split()[4].removesuffix(".")
        lines.readline()
    with Receiver(hold=lambda: gate.wait(30)) as receiver:
        body = {"seconds": 0, "url": receiver.url}
        timer = requests.post(f"{url}/timers", json=body, timeout=30).json()
        wait_until(lambda: receiver.arrivals)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        gate.set()
        assert process.wait(60) == 0
    assert statuses(database) == {timer["id"]: "delivered"}


@pytest.mark.e2e
def test_fires_postponed_timers_at_the_start(database: Path) -> None:
    """A timer whose next check a sweep postponed fires right after a restart."""
    with Receiver() as receiver:
        with closing(SqliteTimerStore(database)) as store:
            due_at = now() - timedelta(minutes=1)
            timer = new_timer(new_id(), DEFAULT_TENANT, Webhook(url=receiver.url), due_at, due_at)
            store.add(timer)
            store.replace(timer.with_next_check(now() + timedelta(minutes=5)))
        with Standalone(database):
            wait_until(lambda: receiver.arrivals)


def test_exits_with_an_error_when_the_loop_crashes(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the event loop crashes, the process exits with an error, so a supervisor restarts it."""
    monkeypatch.setattr(runtime, "_installed", None)
    hub, store = Hub(), SqliteTimerStore(database)
    settings = Settings("127.0.0.1", 0, database, Targets())
    server = Server(build_application(settings, store), hub, settings.host, settings.port)
    runner = Runner(settings, store, hub, server, threading.Event())

    def broken() -> None:
        raise OSError("out of sockets")

    monkeypatch.setattr(hub.loop, "run_forever", broken)
    with pytest.raises(SystemExit, match="crashed"):
        runner.run()
    runner._scheduler.stop()
    store.close()
    for listener in server._listeners:
        listener.close()


def timer_due_at(moment: datetime) -> Timer:
    return new_timer(new_id(), DEFAULT_TENANT, Webhook(url="http://10.0.0.1/"), moment, moment)


def failure(store: SqliteTimerStore, timer: Timer) -> str:
    stored = store.get(DEFAULT_TENANT, timer.id)
    assert stored is not None
    return str(stored.failure)


@pytest.fixture
def frequent_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run upkeep every 50 ms."""
    monkeypatch.setattr(runtime, "_installed", None)
    monkeypatch.setattr(engine_module, "UPKEEP_INTERVAL", 0.05)


@pytest.mark.usefixtures("frequent_upkeep")
def test_upkeep_sweeps_and_purges(database: Path) -> None:
    """The running server fires overdue timers and deletes those past their retention."""
    long_ago = now() - timedelta(days=60)
    forgotten = timer_due_at(long_ago)
    expired = timer_due_at(long_ago).cancel(long_ago)
    store = SqliteTimerStore(database)
    with running(Settings("127.0.0.1", 0, database, Targets()), store):
        store.add(forgotten)
        store.add(expired)
        wait_until(lambda: store.get(DEFAULT_TENANT, expired.id) is None)
        wait_until(lambda: "refused target" in failure(store, forgotten))


@pytest.mark.usefixtures("frequent_upkeep")
def test_keeps_finished_timers_for_retention(database: Path) -> None:
    """A timer is deleted once it has been finished for longer than RETENTION."""
    settings = Settings("127.0.0.1", 0, database, Targets(), retention=timedelta(days=7))
    old, young = (now() - timedelta(days=7, hours=hours) for hours in (1, -1))
    kept = timer_due_at(young).cancel(young)
    gone = timer_due_at(old).cancel(old)
    store = SqliteTimerStore(database)
    with running(settings, store):
        store.add(kept)
        store.add(gone)
        wait_until(lambda: store.get(DEFAULT_TENANT, gone.id) is None)
        assert store.get(DEFAULT_TENANT, kept.id) == kept


@pytest.mark.e2e
def test_the_printed_curl_works(database: Path) -> None:
    """The printed command sets a timer, and its arrival is printed."""
    with Standalone(database) as server:
        wait_until(lambda: len(server.lines) == 2)
        command = server.lines[1]
        argv = shlex.split(command.replace('"seconds": 5', '"seconds": 0'))
        answer = subprocess.run([*argv, "-s"], capture_output=True, check=True, text=True)
        assert '"status":"scheduled"' in answer.stdout
        wait_until(lambda: [line for line in server.lines if "webhook received" in line])
        line = next(line for line in server.lines if "webhook received" in line)
        assert re.search(r"webhook received: POST /_receiver/hello, \d+ ms after its deadl", line)
        wait_until(lambda: [line for line in server.lines if "webhook delivered" in line])


@pytest.mark.e2e
def test_runs_with_keys(database: Path) -> None:
    """With AUTH=keys requests need a key. A new key works at once, also in the printed command,
    and a revoked one stops at once."""
    with Standalone(database, {"AUTH": "keys", "RATE": "5"}) as server:
        wait_until(lambda: len(server.lines) == 2)
        assert "run `make key`" in server.lines[0]
        asked = requests.get(f"{server.url}/timers", timeout=30)
        assert (asked.status_code, asked.headers["www-authenticate"]) == (401, "Bearer")
        assert requests.get(f"{server.url}/health", timeout=30).status_code == 200
        text, key = api_keys.mint("acme", Role.FULL, now(), os.urandom(api_keys.KEY_ENTROPY))
        with credentials_in(database) as (kept, _):
            kept.add(key)
        command = server.lines[1].replace('"seconds": 5', '"seconds": 0') + " -s"
        answer = subprocess.run(
            ["sh", "-c", command],
            env=environment(TIMERS_KEY=text),
            capture_output=True,
            check=True,
            text=True,
        )
        assert '"status":"scheduled"' in answer.stdout
        wait_until(lambda: [line for line in server.lines if "webhook delivered" in line])
        assert [line for line in server.lines if "webhook received: POST /_receiver/he" in line]
        with requests.Session() as client:
            client.headers["Authorization"] = f"Bearer {text}"
            many = [client.get(f"{server.url}/timers/x", timeout=30) for _ in range(100)]
            assert {answer.status_code for answer in many} == {404, 429}
            with credentials_in(database) as (kept, _):
                assert kept.remove(key.id)
            assert client.get(f"{server.url}/timers", timeout=30).status_code == 401
        assert not [line for line in server.lines if text.rpartition("_")[2] in line]
    with closing(SqliteTimerStore(database)) as store:
        store.keys.add(key)
    with Standalone(database, {"AUTH": "keys", "HOST": "127.0.0.2"}) as server:
        assert server.url.startswith("http://127.0.0.2:")
        wait_until(lambda: len(server.lines) == 2)
        assert "`make key`" not in server.lines[0]
        assert "example.com" in server.lines[1]
        header = {"Authorization": f"Bearer {text}"}
        listed = requests.get(f"{server.url}/timers", headers=header, timeout=30)
        assert [timer["status"] for timer in listed.json()["timers"]] == ["delivered"]
        assert requests.post(f"{server.url}/_receiver/x", timeout=30).status_code == 404


@pytest.mark.parametrize(
    ("listening", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("127.0.0.2", "http://127.0.0.2:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104
        ("::", "http://[::1]:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
    ],
)
def test_prints_a_url_that_can_be_used(listening: str, shown: str) -> None:
    """The printed URL can be connected to, even if the server listens on all addresses."""
    assert _url(listening, 8000) == shown


@pytest.mark.parametrize("host", ["nowhere." + "x" * 64, ""])
def test_reports_a_host_without_an_address(database: Path, host: str) -> None:
    """An unknown HOST ends the start and releases the database."""
    error = start_error(start(TIMERS_DB=str(database), PORT="0", HOST=host, AUTH="keys"))
    assert error == f"Timers can't listen on port 0 of {host}: This host name has no address."
    SqliteTimerStore(database).close()


def start(**settings: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m standalone` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "standalone"],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start_error(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a failed start; check that it is one line and the only output."""
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    sentence = ended.stderr.strip()
    assert sentence.count("\n") == 0
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"PORT": "http"}, "PORT must be a number from 0 to 65535, not 'http'."),
        ({"PORT": "65536"}, "PORT must be a number"),
        ({"PORT": "9" * 5000}, "PORT must be a number"),
        ({"HOST": "0.0.0.0"}, "HOST=0.0.0.0 requires AUTH=keys."),  # noqa: S104
        ({"HOST": "example.com"}, "HOST=example.com requires AUTH=keys."),
        ({"AUTH": "off"}, "AUTH must be none or keys, not 'off'."),
        ({"AUTH": "keys", "RATE": "-1"}, "RATE must be a number from 0 to 100000, not '-1'."),
        ({"RETENTION": "31"}, "RETENTION must be a number from 0 to 30, not '31'."),
        ({"ALLOWED_TARGETS": "10.0.0.1/8"}, "ALLOWED_TARGETS"),
        ({"TIMERS_DB": "/dev/null/timers.db"}, "can't be written: Not a directory."),
        ({"TIMERS_DB": "/"}, "can't be written: Is a directory."),
    ],
)
def test_reports_bad_settings(database: Path, settings: dict[str, str], words: str) -> None:
    """A bad setting ends the start with one line and status 1."""
    assert words in start_error(start(**{"TIMERS_DB": str(database), "PORT": "0", **settings}))


def test_reports_a_port_in_use(database: Path) -> None:
    """A port in use ends the start with a hint and releases the database."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = start_error(start(TIMERS_DB=str(database), PORT=port))
    assert error.startswith(f"Timers can't listen on port {port} of 127.0.0.1: Address already in")
    assert "Set PORT" in error
    SqliteTimerStore(database).close()


def test_reports_a_database_in_use(database: Path) -> None:
    """A second process can't open the same database."""
    with closing(SqliteTimerStore(database)):
        error = start_error(start(TIMERS_DB=str(database), PORT="0"))
    assert str(database) in error


def test_reports_a_database_of_another_program(database: Path) -> None:
    """A SQLite file of another program is refused."""
    with closing(sqlite3.connect(database)) as db:
        db.execute("CREATE TABLE recipes (x)")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    assert "no such table" in start_error(start(TIMERS_DB=str(database), PORT="0"))


def test_reports_a_database_of_a_newer_version(database: Path) -> None:
    """A database of a newer version is refused."""
    with closing(sqlite3.connect(database)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert "newer version of Timers" in start_error(start(TIMERS_DB=str(database), PORT="0"))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sys.version_info = (3, 10, 0, 'final', 0)", "Timers needs Python 3.11 or newer; this"),
        ("sys.platform = 'win32'", "Timers runs on Linux and macOS; on Windows"),
        ("sys.modules['uvloop'] = None", "uvloop is missing: run `make run`, or pip install"),
    ],
)
@pytest.mark.parametrize("command", [["standalone"], ["embedded"], ["cli", "serve"]])
def test_reports_an_unsuitable_python(command: list[str], program: str, words: str) -> None:
    """A Python that is too old, on Windows or without packages ends the start with advice."""
    run = f"runpy.run_module({command[0]!r}, run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", f"import runpy, shutil, sys; {program}; {run}", *command[1:]],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert words in start_error(ended)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and no virtual environment."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-run.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('case "$2" in *version_info*) exit 1;; esac', "Timers needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "Python's venv module is missing: install it"),
    ],
)
def test_make_reports_an_unsuitable_python(checkout: Path, script: str, words: str) -> None:
    """`make run` with an unsuitable Python says in one line what to install."""
    python = checkout / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    ended = subprocess.run(
        ["make", "run", f"PYTHON={python}"],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("make: ***")]
    assert ended.returncode != 0
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.e2e
def test_chalice_local_points_to_make_run(tmp_path: Path) -> None:
    """Without AWS settings `chalice local` answers 503 and names `make run`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    chalice = Path(sys.executable).with_name("chalice")
    process = subprocess.Popen(
        [chalice, "local", "--port", str(port)],
        cwd=ROOT,
        env=environment(AWS_DEFAULT_REGION="us-east-1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        answers: list[requests.Response] = []

        def answered() -> bool:
            try:
                answers.append(requests.get(f"http://127.0.0.1:{port}/health", timeout=5))
            except requests.ConnectionError:
                return False
            return True

        wait_until(answered)
    finally:
        process.kill()
        process.wait()
    assert answers[0].status_code == 503
    assert answers[0].headers["content-type"] == "application/problem+json"
    assert "`make run`" in answers[0].json()["detail"]


@pytest.mark.e2e
def test_a_hanging_host_delays_no_other(tmp_path: Path) -> None:
    """With 1,000 timers for a hanging receiver and 100 for a healthy one, due together, all 100
    arrive before the first request to the hanging one times out."""
    give_up = threading.Event()
    with (
        Standalone(tmp_path / "timers.db", {"ALLOWED_TARGETS": "127.0.0.0/8"}) as server,
        Receiver(lambda: give_up.wait(60)) as hanging,
        Receiver(listen="127.0.0.2") as healthy,
    ):
        at = datetime.now(UTC) + timedelta(seconds=6)
        timers_of = {
            url: [{"fire_at": at.isoformat(), "url": url}] * 100
            for url in (hanging.url, healthy.url)
        }
        try:
            for url in [hanging.url] * 10 + [healthy.url]:
                body = {"timers": timers_of[url]}
                answer = requests.post(f"{server.url}/timers/batch", json=body, timeout=30)
                assert {it["status"] for it in answer.json()["results"]} == {201}
            assert datetime.now(UTC) < at, "This machine is too slow to create them all."
            wait_until(lambda: len(hanging.arrivals) >= 16, 60)
            first = min(arrival.at for arrival in hanging.arrivals)
            wait_until(lambda: len(healthy.arrivals) == 100, 60)
        finally:
            give_up.set()
        last = max(arrival.at for arrival in healthy.arrivals)
        assert last < first + timedelta(seconds=MAX_TIMEOUT)
