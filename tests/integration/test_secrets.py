"""Signing secrets: the stores, the cache, and a sender that can't read them."""

import logging
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from msgspec.structs import replace
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from chalicelib import runtime
from chalicelib.aws import bootstrap, credential_store
from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core.api_keys import Role
from chalicelib.core.errors import OperatorError, Unavailable
from chalicelib.core.signing import MAX_SECRETS
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import DEFAULT_TENANT, Status, Timer, Webhook, new_timer
from chalicelib.service.credentials import issue_key
from chalicelib.service.ports import Secrets
from chalicelib.webhook.secrets_cache import SECRETS_TTL, SecretsCache
from chalicelib.webhook.sender import WebhookSender
from infra.deploy import Deployment
from standalone.sqlite.credentials import credentials_in
from standalone.sqlite.schema import MIGRATIONS
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.contracts.secrets import SecretsContract, secret
from tests.support.aws import REGION, STAGE, TENANTS, Account, account
from tests.support.fakes import START, Clock, FakeScheduler, FakeSecrets, FakeStore, created
from tests.support.processes import ROOT, Arrival, Receiver, Standalone, run_timers, wait_until
from tests.support.service import Service

DATA = ROOT / "tests/compat/databases"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timers.db"


@pytest.fixture
def aws() -> Iterator[Account]:
    with account() as made:
        yield made


class TestFakeSecrets(SecretsContract):
    """The contract on the fake."""

    @pytest.fixture
    def secrets(self) -> Secrets:
        return FakeSecrets()


class TestDynamoSecrets(SecretsContract):
    """The contract on a table in moto."""

    @pytest.fixture
    def secrets(self, aws: Account) -> Secrets:
        return DynamoSecrets(aws.dynamodb, TENANTS)


class TestSecretsOfTheServer(SecretsContract):
    """The contract on the connection of the server."""

    @pytest.fixture
    def secrets(self, path: Path) -> Iterator[Secrets]:
        with closing(SqliteTimerStore(path)) as store:
            yield store.secrets


class TestSecretsOfTheCommand(SecretsContract):
    """The contract on a second connection, while the server has the database open."""

    @pytest.fixture
    def secrets(self, path: Path) -> Iterator[Secrets]:
        with closing(SqliteTimerStore(path)), credentials_in(path) as (_, secrets):
            yield secrets


# DynamoDB


def test_stored_format_stays_readable(aws: Account) -> None:
    """A deployed table holds secrets in this format, so it must stay readable."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    item: Any = {"id": {"S": "secrets#acme"}, "secrets": {"S": f'["{secret(2)}","{secret(1)}"]'}}
    for number in (1, 2):
        kept.add("acme", secret(number))
    assert aws.dynamodb.scan(TableName=TENANTS)["Items"] == [item]


def test_concurrent_changes_lose_nothing(aws: Account) -> None:
    """A change that lost the race starts over from the newer secrets."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    others = [2, 1]

    def overtake(operation: str) -> None:
        if operation == "PutItem" and others:
            number = others.pop()
            with aws.unobserved():
                kept.add("acme", secret(number))

    aws.before = overtake
    kept.add("acme", secret(3))
    assert kept.of("acme") == [secret(3), secret(2), secret(1)]


def test_concurrent_changes_keep_the_limit(aws: Account) -> None:
    """The limit holds for the stored secrets, even if a stale read had room for one more."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    for number in range(MAX_SECRETS - 1):
        kept.add("acme", secret(number))

    def overtake(operation: str) -> None:
        if operation == "PutItem":
            with aws.unobserved():
                kept.add("acme", secret(MAX_SECRETS))

    aws.before = overtake
    with pytest.raises(OperatorError, match="at most 5 secrets"):
        kept.add("acme", secret(MAX_SECRETS + 1))


def test_retiring_survives_a_lost_response(aws: Account) -> None:
    """If DynamoDB's response is lost, the repeated request finds its own write and succeeds."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    for number in range(2):
        kept.add("acme", secret(number))

    def twice(operation: str) -> None:
        if operation == "PutItem":
            with aws.unobserved():
                kept.retire("acme", secret(0))

    aws.before = twice
    kept.retire("acme", secret(0))
    assert kept.of("acme") == [secret(1)]


def test_gives_up_after_too_many_races(aws: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that loses every race raises Unavailable."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    monkeypatch.setattr(kept, "_replace", lambda *_: False)
    with pytest.raises(Unavailable):
        kept.add("acme", secret(0))
    assert aws.names() == ["GetItem"] * credential_store.MAX_RACES


# SQLite


def test_server_and_commands_change_secrets_concurrently(path: Path) -> None:
    """The server adds one secret and five commands one each: the limit refuses exactly one."""

    def add(number: int) -> bool:
        with credentials_in(path) as (_, kept), suppress(OperatorError):
            kept.add("acme", secret(number))
            return True
        return False

    with closing(SqliteTimerStore(path)) as store, ThreadPoolExecutor(MAX_SECRETS) as threads:
        store.secrets.add("acme", secret(0))
        assert sorted(threads.map(add, range(1, MAX_SECRETS + 1))) == [False] + [True] * (
            MAX_SECRETS - 1
        )
        assert len(store.secrets.of("acme")) == MAX_SECRETS


def test_a_refused_change_does_not_fail_its_batch(path: Path) -> None:
    """Secrets and timers share a transaction, but a refused secret rolls back no timer."""
    with closing(SqliteTimerStore(path)) as store:
        with pytest.raises(OperatorError):
            store.secrets.retire("acme", secret(0))
        assert store.add(timer())


def test_reads_secrets_of_every_schema_version(path: Path) -> None:
    """A database of any released version keeps its secrets."""
    for version in range(2, len(MIGRATIONS) + 1):
        shutil.copy(DATA / f"timers-v{version}.db", path)
        with closing(SqliteTimerStore(path)) as store:
            assert store.secrets.of(DEFAULT_TENANT) == [secret(2), secret(1)]


def test_makes_database_files_private(path: Path) -> None:
    """Opening a database makes it and its side files readable by the owner only."""
    SqliteTimerStore(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE health SET checks = checks + 1")
        db.commit()
        beside = [path.with_name(f"timers.db-{name}") for name in ("wal", "shm")]
        copies = {file: file.read_bytes() for file in (path, *beside)}
    for file, content in copies.items():
        file.write_bytes(content)
        file.chmod(0o644)
    with closing(SqliteTimerStore(path)) as store:
        store.secrets.add("acme", secret(0))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ("timers.db", "timers.db-wal", "timers.db-shm", "timers.db.lock"), 0o600
    )


def test_refuses_a_database_that_stays_readable_by_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file can't be made private, the start fails with the reason."""
    path.touch(0o644)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(OperatorError, match="Operation not permitted"):
        SqliteTimerStore(path)


# The standalone server


def accepts(by: str, arrival: Arrival) -> bool:
    """Say whether a receiver with this secret accepts the webhook."""
    try:
        Verifier(by).verify(arrival.body, arrival.headers, json_parse=False)
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.e2e
def test_rotation_while_the_server_runs(path: Path) -> None:
    """Add a secret, then retire the first: every webhook is signed, and no log line shows one."""

    def secrets(*arguments: str) -> list[str]:
        return run_timers("secrets", *arguments, TIMERS_DB=str(path)).stdout.split()

    with Standalone(path) as server, Receiver() as receiver:
        (first,) = secrets()

        def arrival() -> Arrival:
            before = len(receiver.arrivals)
            server.create(0, receiver.url)
            wait_until(lambda: len(receiver.arrivals) > before)
            return receiver.arrivals[-1]

        assert accepts(first, arrival())
        second, other = secrets("--add", "new")
        assert other == first
        wait_until(lambda: accepts(second, arrival()))
        assert all(accepts(first, it) for it in receiver.arrivals)
        assert secrets("--retire", first) == [second]
        changed = len(receiver.arrivals)
        wait_until(lambda: not accepts(first, arrival()))
        assert all(accepts(second, it) for it in receiver.arrivals[changed:])
        assert server.stop() == 0
        assert "whsec_" not in "".join(server.lines)
    with Standalone(path):
        assert secrets() == [second]


# Deployment


class Stage(Deployment):
    """A deployment of the stage in moto."""

    def __init__(self, root: Path) -> None:
        session = boto3.Session("testing", "testing", region_name=REGION)
        super().__init__(STAGE, session, root)


def test_deployment_makes_missing_secrets(aws: Account, tmp_path: Path) -> None:
    """A deployment gives each tenant a first secret and leaves existing ones alone."""
    stage, kept = Stage(tmp_path), DynamoSecrets(aws.dynamodb, TENANTS)
    assert stage._first_key() is not None
    issue_key(DynamoApiKeys(aws.dynamodb, TENANTS), kept, "acme", Role.FULL, START)
    assert len(kept.of(DEFAULT_TENANT)) == len(kept.of("acme")) == 1
    assert kept.of("acme") != kept.of(DEFAULT_TENANT)
    before = kept.of(DEFAULT_TENANT)
    aws.dynamodb.delete_item(TableName=TENANTS, Key={"id": {"S": "secrets#acme"}})
    assert stage._first_key() is None
    assert len(kept.of("acme")) == 1
    assert kept.of(DEFAULT_TENANT) == before


# The cache and the sender


def timer(url: str = "http://127.0.0.1:1/") -> Timer:
    return new_timer("id-1", "acme", Webhook(url=url, body="ä"), START, START)


class RecordingSecrets(FakeSecrets):
    """Records the reads; raises Unavailable while `down`."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.down = False

    def of(self, tenant: str) -> list[str]:
        self.reads.append(tenant)
        if self.down:
            raise Unavailable("DynamoDB does not answer.")
        return super().of(tenant)


def test_cache_reads_secrets_once_a_minute() -> None:
    """A change is seen after SECRETS_TTL; each tenant has its own entry."""
    kept, clock = RecordingSecrets(), Clock()
    cached = SecretsCache(kept.of, clock)
    assert cached.of("acme") == []
    kept.secrets["acme"] = [secret(1)]
    clock.forward(SECRETS_TTL.total_seconds() - 0.001)
    assert cached.of("acme") == []
    assert cached.of("other") == []
    assert kept.reads == ["acme", "other"]
    clock.forward(0.001)
    assert cached.of("acme") == [secret(1)]
    assert kept.reads == ["acme", "other", "acme"]
    assert timedelta(minutes=1) == SECRETS_TTL


def test_cache_reads_again_if_the_clock_steps_back() -> None:
    """An entry with a time in the future is stale."""
    kept, clock = RecordingSecrets(), Clock()
    cached = SecretsCache(kept.of, clock)
    cached.of("acme")
    clock.forward(-3600)
    cached.of("acme")
    assert len(kept.reads) == 2


def test_cache_keeps_no_failure() -> None:
    """The next call after a failure reads again; stale secrets are never returned."""
    kept, clock = RecordingSecrets(), Clock()
    cached = SecretsCache(kept.of, clock)
    cached.of("acme")
    clock.forward(60)
    kept.down = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            cached.of("acme")
    kept.down = False
    kept.secrets["acme"] = [secret(1)]
    assert cached.of("acme") == [secret(1)]


@pytest.mark.parametrize("down", [False, True])
def test_cache_has_single_flight(down: bool) -> None:
    """Ten threads wait for one read and share its failure: ten reads would outlast the Lambda."""
    go, asked = threading.Event(), list[str]()

    def read(tenant: str) -> Sequence[str]:
        asked.append(tenant)
        assert go.wait(10)
        if down:
            raise Unavailable("DynamoDB does not answer.")
        return [secret(1)]

    cached = SecretsCache(read, Clock())
    with ThreadPoolExecutor(10) as threads:
        found = [threads.submit(cached.of, "acme") for _ in range(10)]
        threading.Timer(0.05, go.set).start()
        faults = [future.exception() for future in found]
    assert [isinstance(fault, Unavailable) for fault in faults] == [down] * 10
    assert len(asked) == 1


def test_nothing_is_sent_unsigned() -> None:
    """If the secrets can't be read, the claim is released and no attempt is recorded."""
    kept, store, clock = RecordingSecrets(), FakeStore(), Clock()
    kept.down = True
    with Receiver() as receiver:
        sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), secrets_of=kept.of)
        service = Service(
            store, FakeScheduler(), sender, clock=clock, new_id=lambda: "id-1", pause=lambda _: None
        )
        made = created(service, Webhook(url=receiver.url), tenant="acme")
        with pytest.raises(Unavailable):
            service.deliver(made.wakeup(), clock.now + timedelta(minutes=1))
        assert receiver.arrivals == []
        after = store.timers["id-1"]
        assert (after.status, after.attempt, after.attempts) == (Status.SCHEDULED, 0, ())
        kept.down = False
        service.deliver(made.wakeup(), clock.now + timedelta(minutes=1))
        assert store.timers["id-1"].status is Status.DELIVERED


def test_reading_secrets_counts_towards_the_timeout() -> None:
    """If the read takes over half of the timeout, nothing is sent."""

    def read(_: str) -> Sequence[str]:
        threading.Event().wait(0.2)
        return [secret(1)]

    with Receiver(hold=lambda: threading.Event().wait(1)) as receiver:
        sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), secrets_of=read)
        with pytest.raises(Unavailable, match="over half of the timeout"):
            sender.send(replace(timer(receiver.url), timeout=0.3), START)
        assert receiver.arrivals == []
        outcome = sender.send(replace(timer(receiver.url), timeout=0.5), START)
    assert outcome.error == "timeout"
    assert outcome.duration < 0.45  # reading took 0.2 s of the half second


def test_sender_on_aws_caches_and_signs() -> None:
    """The AWS bootstrap's sender reads a tenant's secrets once and signs with all of them."""
    kept = RecordingSecrets()
    for number in (1, 2):
        kept.add("acme", secret(number))
    kept.reads.clear()
    sender = bootstrap._LazySender(Targets.parse(LOOPBACK_TARGETS), kept)
    with Receiver() as receiver:
        for _ in range(3):
            assert sender.send(timer(receiver.url), runtime.now()).status == 200
    assert kept.reads == ["acme"]
    assert all(accepts(secret(n), it) for n in (1, 2) for it in receiver.arrivals)


def test_no_log_shows_a_secret(caplog: pytest.LogCaptureFixture, path: Path, aws: Account) -> None:
    """Not even at DEBUG, except in botocore's own log of requests to the table."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "botocore")  # its DEBUG log has whole requests
    kept: Any
    with closing(SqliteTimerStore(path)) as store, Receiver() as receiver:
        for kept in (store.secrets, DynamoSecrets(aws.dynamodb, TENANTS)):
            kept.add("acme", secret(1))
            with suppress(OperatorError):
                kept.retire("acme", secret(2))
            sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), secrets_of=kept.of)
            assert sender.send(timer(receiver.url), START).status == 200
    shown = secret(1).removeprefix("whsec_")[:20]
    assert shown not in caplog.text
    assert "whsec_" not in caplog.text
