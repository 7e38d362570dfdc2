"""The standalone server whole: real process, real deadlines, real kill -9."""

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest
import requests

from app import app
from chalicelib.aws import bootstrap
from chalicelib.aws.bootstrap import new_id, now
from chalicelib.core import api_keys
from chalicelib.core.api_keys import Role
from chalicelib.core.errors import CommandError, Conflict
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import DEFAULT_TENANT, MAX_TIMEOUT, Outcome, Timer, Webhook, new_timer
from chalicelib.service.service import Service
from standalone import scheduler as engine_module
from standalone.bootstrap import Settings, _url, run
from standalone.scheduler import MAX_SENDERS, HeapScheduler
from standalone.server import Server, application
from standalone.sqlite.schema import MIGRATIONS
from standalone.sqlite.tenants import tenants_in
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.support.fakes import NO_CONTENT, created
from tests.support.processes import ROOT, Receiver, Standalone, environment, wait_until


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "timers.db"


def statuses(database: Path) -> dict[str, str]:
    """Return the status of each timer in a database that no process has open."""
    with closing(sqlite3.connect(database)) as db:
        return dict(db.execute("SELECT id, status FROM timers").fetchall())


@pytest.mark.e2e
def test_fires_on_time(database: Path) -> None:
    """20 timers of 1 to 3 s: none early, each once, with an empty body; the median within 50 ms of
    its deadline and all within 2 s."""
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
    """GET says the whole seconds that are left, falling, and 0 once due."""
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
def test_fires_after_a_crash_what_fell_due_meanwhile(database: Path) -> None:
    """200 timers pending, kill -9, past their deadlines a new start: 200 webhooks, each once."""
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
def test_kill_in_the_middle_of_firing_loses_nothing(database: Path) -> None:
    """kill -9 while webhooks are being sent: none is missing after the next start, and what is
    repeated, under the same id, is only what was being sent."""
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
    """Sender that only remembers."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, timer: Timer, at: datetime) -> Outcome:
        self.sent.append(timer.id)
        return NO_CONTENT


@pytest.mark.e2e
def test_cancel_and_fire_never_both_happen(database: Path) -> None:
    """500 cancels that race with the firing of their timer: a 2xx cancel, or a webhook."""
    with closing(SqliteTimerStore(database)) as store:
        engine, sender = HeapScheduler(store, now), RecordingSender()
        service = Service(store, engine, sender, clock=now, new_id=new_id, pause=time.sleep)
        engine.start(service.deliver, lambda: False)
        dice = random.Random(0)  # noqa: S311
        jitters = [dice.uniform(-0.004, 0.012) for _ in range(500)]
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
def test_stops_when_what_is_being_sent_is_finished(database: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C let a POST under way finish and record it, then end with status 0."""
    gate = threading.Event()
    with Standalone(database) as server, Receiver(hold=lambda: gate.wait(30)) as receiver:
        timer, later = server.create(0, receiver.url), server.create(3600, receiver.url)
        wait_until(lambda: receiver.arrivals)
        server.process.send_signal(number)
        wait_until(lambda: "Finishing what is being sent …" in server.lines)
        gate.set()
        assert server._wait() == 0
        assert statuses(database) == {timer["id"]: "delivered", later["id"]: "scheduled"}


@pytest.mark.e2e
def test_asked_twice_it_stops_at_once(database: Path) -> None:
    """Ctrl-C while it is stopping does not wait for what is being sent; the next start sends that
    again. A second SIGTERM changes nothing."""
    gate = threading.Event()
    with Receiver(hold=lambda: gate.wait(30)) as receiver:
        with Standalone(database) as server:
            timer = server.create(0, receiver.url)
            wait_until(lambda: receiver.arrivals)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "Finishing what is being sent …" in server.lines)
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
def test_stops_cleanly_however_often_it_is_asked(database: Path) -> None:
    """Many SIGTERMs at once, as make and a group's stop send them, stop it as one does."""
    with Standalone(database) as server:
        for _ in range(50):
            server.process.send_signal(signal.SIGTERM)
        assert server.stop() == 0
        assert "Finishing what is being sent …" in server.lines


@pytest.mark.e2e
def test_stops_cleanly_with_webhooks_to_itself(database: Path) -> None:
    """What is being sent to the built-in receiver arrives: the server stops after the senders."""
    with Standalone(database) as server:
        for _ in range(100):
            server.create(1, f"{server.url}/_receiver/x")
        wait_until(lambda: [line for line in server.lines if "webhook received" in line])
        assert server.stop() == 0
    assert set(statuses(database).values()) <= {"delivered", "scheduled"}


@pytest.mark.e2e
def test_stops_cleanly_when_nobody_reads_its_lines(database: Path) -> None:
    """A terminal that is gone keeps nothing from being finished."""
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
def test_start_takes_up_what_a_sweep_put_off(database: Path) -> None:
    """A timer that a sweep had rung for fires at once after a restart, not when it would be swept
    again."""
    with Receiver() as receiver:
        with closing(SqliteTimerStore(database)) as store:
            due_at = now() - timedelta(minutes=1)
            timer = new_timer(new_id(), DEFAULT_TENANT, Webhook(url=receiver.url), due_at, due_at)
            store.add(timer)
            store.replace(timer.with_next_check(now() + timedelta(minutes=5)))
        with Standalone(database):
            wait_until(lambda: receiver.arrivals)


def test_ends_with_an_error_when_http_breaks(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that can't go on says so by its status, for whoever starts it again."""
    monkeypatch.setattr(bootstrap, "_installed", None)
    store = SqliteTimerStore(database)
    server = Server(application(app), "127.0.0.1", 0)

    def broken() -> None:
        raise OSError("out of sockets")

    monkeypatch.setattr(server, "run", broken)
    settings = Settings("127.0.0.1", 0, database, Targets())
    with pytest.raises(SystemExit, match="HTTP server broke"):
        run(settings, store, server, threading.Event())
    server.close()


@contextmanager
def running(settings: Settings) -> Iterator[SqliteTimerStore]:
    """Give the store of a server that runs in this process."""
    store = SqliteTimerStore(settings.database)
    server = Server(application(app), settings.host, settings.port)
    stop = threading.Event()
    runner = threading.Thread(target=run, args=(settings, store, server, stop))
    runner.start()
    try:
        yield store
    finally:
        stop.set()
        runner.join()


def waiting_since(moment: datetime) -> Timer:
    return new_timer(new_id(), DEFAULT_TENANT, Webhook(url="http://10.0.0.1/"), moment, moment)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let upkeep come soon, and what is installed be gone afterwards."""
    monkeypatch.setattr(bootstrap, "_installed", None)
    monkeypatch.setattr(engine_module, "SWEEP_INTERVAL", 0.05)


@pytest.mark.usefixtures("often")
def test_upkeep_sweeps_and_purges(database: Path) -> None:
    """The running server looks after what was forgotten, and forgets what has expired."""
    long_ago = now() - timedelta(days=60)
    forgotten = waiting_since(long_ago)
    expired = waiting_since(long_ago).cancel(long_ago)
    with running(Settings("127.0.0.1", 0, database, Targets())) as store:
        store.add(forgotten)
        store.add(expired)
        wait_until(lambda: store.get(DEFAULT_TENANT, expired.id) is None)
        wait_until(lambda: not store.overdue(now(), 1))
        after = store.get(DEFAULT_TENANT, forgotten.id)
    assert after is not None
    assert str(after.failure).startswith("refused target")


@pytest.mark.usefixtures("often")
def test_retention_is_what_the_operator_says(database: Path) -> None:
    """What finished more than RETENTION ago is forgotten, what finished since then is kept."""
    settings = Settings("127.0.0.1", 0, database, Targets(), retention=timedelta(days=7))
    old, young = (now() - timedelta(days=7, hours=hours) for hours in (1, -1))
    kept = waiting_since(young).cancel(young)
    gone = waiting_since(old).cancel(old)
    with running(settings) as store:
        store.add(kept)
        store.add(gone)
        wait_until(lambda: store.get(DEFAULT_TENANT, gone.id) is None)
        assert store.get(DEFAULT_TENANT, kept.id) == kept


@pytest.mark.e2e
def test_the_curl_it_prints_works(database: Path) -> None:
    """Paste, wait, see: the printed command sets a timer, and its arrival is shown."""
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
def test_with_keys(database: Path) -> None:
    """With AUTH=keys nothing goes without a key; one that is made while the server runs opens it,
    the printed command with it sets a timer that arrives, and taken back it opens nothing."""
    with Standalone(database, {"AUTH": "keys", "RATE": "5"}) as server:
        wait_until(lambda: len(server.lines) == 2)
        assert server.lines[0].endswith(
            "Requests need a key, and there is none yet: `make key` makes one."
            " Set a timer of 5 seconds and watch it arrive here:"
        )
        asked = requests.get(f"{server.url}/timers", timeout=30)
        assert (asked.status_code, asked.headers["www-authenticate"]) == (401, "Bearer")
        assert requests.get(f"{server.url}/health", timeout=30).status_code == 200
        text, key = api_keys.mint("acme", Role.FULL, now(), os.urandom(api_keys.KEY_ENTROPY))
        with tenants_in(database) as (kept, _):
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
            with tenants_in(database) as (kept, _):
                assert kept.remove(key.id)
            assert client.get(f"{server.url}/timers", timeout=30).status_code == 401
        assert not [line for line in server.lines if text.rpartition("_")[2] in line]
    with closing(SqliteTimerStore(database)) as store:
        store.keys.add(key)
    with Standalone(database, {"AUTH": "keys", "HOST": "127.0.0.2"}) as server:
        assert server.url.startswith("http://127.0.0.2:")
        wait_until(lambda: len(server.lines) == 2)
        assert server.lines[0].endswith("Requests need a key. Set a timer of 5 seconds:")
        assert "example.com" in server.lines[1]
        header = {"Authorization": f"Bearer {text}"}
        listed = requests.get(f"{server.url}/timers", headers=header, timeout=30)
        assert [timer["status"] for timer in listed.json()["timers"]] == ["delivered"]
        assert requests.post(f"{server.url}/_receiver/x", timeout=30).status_code == 404


LOCAL = Targets.parse(LOOPBACK_TARGETS)
PATH = Path(".data/timers.db")

SETTINGS = [
    ({}, Settings("127.0.0.1", 8000, PATH, LOCAL, keys=False, rate=0)),
    ({"AUTH": "none"}, Settings("127.0.0.1", 8000, PATH, LOCAL, keys=False, rate=0)),
    ({"AUTH": "none", "RATE": "7"}, Settings("127.0.0.1", 8000, PATH, LOCAL, keys=False, rate=7)),
    ({"AUTH": "keys"}, Settings("127.0.0.1", 8000, PATH, LOCAL, keys=True, rate=500)),
    ({"AUTH": "keys", "RATE": "0"}, Settings("127.0.0.1", 8000, PATH, LOCAL, keys=True, rate=0)),
    ({"RETENTION": "30"}, Settings("127.0.0.1", 8000, PATH, LOCAL)),
    (
        {"RETENTION": "7"},
        Settings("127.0.0.1", 8000, PATH, LOCAL, retention=timedelta(days=7)),
    ),
    ({"RETENTION": "0"}, Settings("127.0.0.1", 8000, PATH, LOCAL, retention=timedelta(0))),
    ({"HOST": "localhost"}, Settings("localhost", 8000, PATH, LOCAL, keys=False, rate=0)),
    ({"HOST": "::1", "PORT": "0"}, Settings("::1", 0, PATH, LOCAL, keys=False, rate=0)),
    (
        {"HOST": "0.0.0.0", "AUTH": "keys"},  # noqa: S104
        Settings("0.0.0.0", 8000, PATH, Targets(), keys=True, rate=500),  # noqa: S104
    ),
    (
        {"HOST": "127.0.0.2", "AUTH": "keys", "RATE": "100000"},
        Settings("127.0.0.2", 8000, PATH, Targets(), keys=True, rate=100_000),
    ),
    (
        {"HOST": "::", "AUTH": "keys", "ALLOWED_TARGETS": "10.0.0.0/8"},
        Settings("::", 8000, PATH, Targets.parse("10.0.0.0/8"), keys=True, rate=500),
    ),
    (
        {"ALLOWED_TARGETS": "", "TIMERS_DB": "x.db"},
        Settings("127.0.0.1", 8000, Path("x.db"), Targets(), keys=False, rate=0),
    ),
]


@pytest.mark.parametrize(("environ", "settings"), SETTINGS)
def test_settings(environ: dict[str, str], settings: Settings) -> None:
    """What is not set has a default that is safe where the server listens."""
    assert Settings.read(environ) == settings
    assert settings.is_local is (settings.host in ("127.0.0.1", "localhost", "::1"))


ELSEWHERE = ["0.0.0.0", "::", "*", "", "127.0.0.2", "127.1", "10.0.0.1", "[::1]", "localhost."]  # noqa: S104


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("auth", [{}, {"AUTH": "none"}])
def test_no_host_but_this_machine_without_keys(host: str, auth: dict[str, str]) -> None:
    """Where others may reach the server, it does not start without keys."""
    with pytest.raises(CommandError, match="is not this machine alone") as refused:
        Settings.read({"HOST": host, **auth})
    assert str(refused.value).startswith(f"HOST={host} is")
    assert "AUTH=keys" in str(refused.value)
    assert Settings.read({"HOST": host, "AUTH": "keys"}).host == host


@pytest.mark.parametrize("auth", ["", "key", "KEYS", "None", "off", "keys ", "x" * 5000])
def test_unknown_auth(auth: str) -> None:
    """A word that is no AUTH is refused, and never taken for none."""
    with pytest.raises(CommandError, match=r"^AUTH must be none or keys, not '.{0,20}'.$"):
        Settings.read({"AUTH": auth})


@pytest.mark.parametrize(
    "rate", ["", "-1", "many", "1.5", "1e3", "+5", "0x10", " 5", "٣", "100001", "9" * 5000, "inf"]
)
@pytest.mark.parametrize("auth", ["none", "keys"])
def test_bad_rate(auth: str, rate: str) -> None:
    """A rate that is no number, or absurd, is refused."""
    with pytest.raises(
        CommandError, match=r"^RATE must be a number from 0 to 100000, not '.{0,20}'"
    ):
        Settings.read({"AUTH": auth, "RATE": rate})


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
def test_the_url_it_says_can_be_used(listening: str, shown: str) -> None:
    """Where the server listens on every address, it names one that this machine can connect to."""
    assert _url(listening, 8000) == shown


@pytest.mark.parametrize("host", ["nowhere." + "x" * 64, ""])
def test_host_without_an_address(database: Path, host: str) -> None:
    """A host that is nowhere is named, and the database is let go."""
    said = one_sentence(start(TIMERS_DB=str(database), PORT="0", HOST=host, AUTH="keys"))
    assert said == f"Port 0 of {host} can't be used: There is no address of this name."
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


def one_sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """Return what a failed start said, after making sure that it is all and that it failed."""
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
        ({"HOST": "0.0.0.0"}, "HOST=0.0.0.0 is not this machine alone"),  # noqa: S104
        ({"HOST": "example.com"}, "HOST=example.com is not this machine alone"),
        ({"AUTH": "off"}, "AUTH must be none or keys, not 'off'."),
        ({"AUTH": "keys", "RATE": "-1"}, "RATE must be a number from 0 to 100000, not '-1'."),
        ({"RETENTION": "31"}, "RETENTION must be a number from 0 to 30, not '31'."),
        ({"ALLOWED_TARGETS": "10.0.0.1/8"}, "ALLOWED_TARGETS"),
        ({"TIMERS_DB": "/dev/null/timers.db"}, "can't be written: Not a directory."),
        ({"TIMERS_DB": "/"}, "can't be written: Is a directory."),
    ],
)
def test_bad_setting_is_one_sentence(database: Path, settings: dict[str, str], words: str) -> None:
    """A setting that can't be used ends the start with one sentence and status 1."""
    assert words in one_sentence(start(**{"TIMERS_DB": str(database), "PORT": "0", **settings}))


def test_port_in_use_is_one_sentence(database: Path) -> None:
    """A taken port is named, and the database is let go."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = one_sentence(start(TIMERS_DB=str(database), PORT=port))
    assert said == f"Port {port} of 127.0.0.1 can't be used: Address already in use."
    SqliteTimerStore(database).close()


def test_database_in_use_is_one_sentence(database: Path) -> None:
    """A second process on the same file is told so."""
    with closing(SqliteTimerStore(database)):
        said = one_sentence(start(TIMERS_DB=str(database), PORT="0"))
    assert said == f"The database {database} is in use by another process."


def test_database_of_somebody_else_is_one_sentence(database: Path) -> None:
    """A SQLite file of another program is refused in words."""
    with closing(sqlite3.connect(database)) as db:
        db.execute("CREATE TABLE recipes (x)")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    assert "no such table" in one_sentence(start(TIMERS_DB=str(database), PORT="0"))


def test_database_of_a_newer_version_is_one_sentence(database: Path) -> None:
    """A file that only a newer version understands is left alone."""
    with closing(sqlite3.connect(database)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert "newer version of Timers" in one_sentence(start(TIMERS_DB=str(database), PORT="0"))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sys.version_info = (3, 10, 0, 'final', 0)", "Timers needs Python 3.11 or newer; this"),
        ("sys.modules['waitress'] = None", "waitress is missing: run `make run`, or pip install"),
    ],
)
def test_unfit_python_is_one_sentence(program: str, words: str) -> None:
    """An interpreter that is too old, or lacks what Timers needs, is told what to do."""
    run = "runpy.run_module('standalone', run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", f"import runpy, sys; {program}; {run}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert words in one_sentence(ended)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and nothing made yet."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "requirements-run.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('case "$2" in *version_info*) exit 1;; esac', "Timers needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "Python's venv module is missing: install it"),
    ],
)
def test_make_says_what_python_lacks(checkout: Path, script: str, words: str) -> None:
    """`make run` on an unfit Python says in one sentence what to install."""
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
    said = [line for line in ended.stderr.splitlines() if not line.startswith("make: ***")]
    assert ended.returncode != 0
    assert len(said) == 1
    assert words in said[0]


@pytest.mark.e2e
def test_chalice_local_points_to_make_run(tmp_path: Path) -> None:
    """Without AWS settings `chalice local` answers each request with one sentence."""
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
def test_a_host_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    """1,000 timers for a receiver that never answers and 100 for a healthy one, due together: all
    of the healthy one's arrive before the first of the others has timed out."""
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
