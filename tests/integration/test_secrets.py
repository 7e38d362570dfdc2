"""Secrets: where they are kept, who reads them how often, and what is sent while nobody can."""

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

from chalicelib.aws import bootstrap, tenant_store
from chalicelib.aws.tenant_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core.api_keys import Role
from chalicelib.core.errors import CommandError, Unavailable
from chalicelib.core.signing import MAX_SECRETS, Secrets
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from chalicelib.core.timer import DEFAULT_TENANT, Status, Timer, Webhook, new_timer
from chalicelib.service.service import Service
from chalicelib.webhook.sender import SECRETS_TTL, SecretsCache, WebhookSender
from cli.keys import new_key
from infra.deploy import Deployment
from standalone.sqlite import MIGRATIONS, SqliteTimerStore, tenants_in
from tests.contracts.secrets import SecretsContract, secret
from tests.support.aws import REGION, STAGE, TENANTS, Account, account
from tests.support.fakes import START, Clock, FakeScheduler, FakeSecrets, FakeStore, created
from tests.support.processes import ROOT, Arrival, Receiver, Standalone, tenants, wait_until

DATA = ROOT / "tests/compat/databases"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timers.db"


@pytest.fixture
def aws() -> Iterator[Account]:
    with account() as made:
        yield made


class TestFakeSecrets(SecretsContract):
    """The contract, on the fake."""

    @pytest.fixture
    def kept(self) -> Secrets:
        return FakeSecrets()


class TestDynamoSecrets(SecretsContract):
    """The contract, on a table in moto."""

    @pytest.fixture
    def kept(self, aws: Account) -> Secrets:
        return DynamoSecrets(aws.dynamodb, TENANTS)


class TestSecretsOfTheServer(SecretsContract):
    """The contract, on the database as the server has it open."""

    @pytest.fixture
    def kept(self, path: Path) -> Iterator[Secrets]:
        with closing(SqliteTimerStore(path)) as store:
            yield store.secrets


class TestSecretsOfTheCommand(SecretsContract):
    """The contract, on a second connection while the server has the database."""

    @pytest.fixture
    def kept(self, path: Path) -> Iterator[Secrets]:
        with closing(SqliteTimerStore(path)), tenants_in(path) as (_, kept):
            yield kept


# DynamoDB


def test_what_is_stored_stays_readable(aws: Account) -> None:
    """This is how secrets lie in the table; whoever changes it must go on reading this."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    item: Any = {"id": {"S": "secrets#acme"}, "secrets": {"S": f'["{secret(2)}","{secret(1)}"]'}}
    for number in (1, 2):
        kept.add("acme", secret(number))
    assert aws.dynamodb.scan(TableName=TENANTS)["Items"] == [item]


def test_two_changes_at_once_lose_nothing(aws: Account) -> None:
    """Whoever finds that another one was faster starts over from what that one wrote."""
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


def test_five_means_five_for_two_at_once(aws: Account) -> None:
    """The limit holds for what is stored, not for what was read."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    for number in range(MAX_SECRETS - 1):
        kept.add("acme", secret(number))

    def overtake(operation: str) -> None:
        if operation == "PutItem":
            with aws.unobserved():
                kept.add("acme", secret(MAX_SECRETS))

    aws.before = overtake
    with pytest.raises(CommandError, match="5 secrets at most"):
        kept.add("acme", secret(MAX_SECRETS + 1))


def test_an_answer_that_was_lost_is_no_fault(aws: Account) -> None:
    """The client asks again and finds what it wrote itself: retired is retired, not unknown."""
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


def test_an_endless_race_is_unavailable(aws: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and says so."""
    kept = DynamoSecrets(aws.dynamodb, TENANTS)
    monkeypatch.setattr(kept, "_replace", lambda *_: False)
    with pytest.raises(Unavailable, match="at once"):
        kept.add("acme", secret(0))
    assert aws.names() == ["GetItem"] * tenant_store.MAX_RACES


# SQLite


def test_server_and_command_at_once_lose_nothing(path: Path) -> None:
    """Five connections add a secret each, and the server one as well: all but one are there."""

    def add(number: int) -> bool:
        with tenants_in(path) as (_, kept), suppress(CommandError):
            kept.add("acme", secret(number))
            return True
        return False

    with closing(SqliteTimerStore(path)) as store, ThreadPoolExecutor(MAX_SECRETS) as threads:
        store.secrets.add("acme", secret(0))
        assert sorted(threads.map(add, range(1, MAX_SECRETS + 1))) == [False] + [True] * (
            MAX_SECRETS - 1
        )
        assert len(store.secrets.of("acme")) == MAX_SECRETS


def test_a_refused_change_fails_alone(path: Path) -> None:
    """It shares its transaction with timers, and takes none of them down."""
    with closing(SqliteTimerStore(path)) as store:
        with pytest.raises(CommandError):
            store.secrets.retire("acme", secret(0))
        assert store.add(timer())


def test_secrets_of_every_version_are_understood(path: Path) -> None:
    """What a released version has stored still signs."""
    for version in range(2, len(MIGRATIONS) + 1):
        shutil.copy(DATA / f"timers-v{version}.db", path)
        with closing(SqliteTimerStore(path)) as store:
            assert store.secrets.of(DEFAULT_TENANT) == [secret(2), secret(1)]


def test_files_that_were_open_to_all_are_closed(path: Path) -> None:
    """A database that was copied with everybody's rights is its owner's again once it is used,
    and so is what lies beside it."""
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


def test_a_database_that_stays_open_to_others_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it can't be made private, no secret goes in; one sentence says why."""
    path.touch(0o644)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(CommandError, match="Operation not permitted"):
        SqliteTimerStore(path)


# The running server


def accepts(by: str, arrival: Arrival) -> bool:
    """Say whether a receiver that knows this secret takes what arrived."""
    try:
        Verifier(by).verify(arrival.body, arrival.headers, json_parse=False)
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.e2e
def test_rotation_while_the_server_runs(path: Path) -> None:
    """The first start makes a secret. One more: soon both sign. The old one retired: soon it counts
    no more. At no moment does none sign. A restart changes nothing, and no line shows a secret."""

    def secrets(*arguments: str) -> list[str]:
        return tenants("secrets", *arguments, TIMERS_DB=str(path)).stdout.split()

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


# The stage


class Stage(Deployment):
    """A deployment of the stage that moto has."""

    def __init__(self, root: Path) -> None:
        session = boto3.Session("testing", "testing", region_name=REGION)
        super().__init__(STAGE, session, root)


def test_first_deployment_makes_a_secret(aws: Account, tmp_path: Path) -> None:
    """Tenant default has one then, and so have tenants whose keys are older than signing; later
    deployments leave them alone."""
    stage, kept = Stage(tmp_path), DynamoSecrets(aws.dynamodb, TENANTS)
    assert stage._first_key() is not None
    new_key(DynamoApiKeys(aws.dynamodb, TENANTS), kept, "acme", Role.FULL)
    assert len(kept.of(DEFAULT_TENANT)) == len(kept.of("acme")) == 1
    assert kept.of("acme") != kept.of(DEFAULT_TENANT)
    before = kept.of(DEFAULT_TENANT)
    aws.dynamodb.delete_item(TableName=TENANTS, Key={"id": {"S": "secrets#acme"}})
    assert stage._first_key() is None
    assert len(kept.of("acme")) == 1
    assert kept.of(DEFAULT_TENANT) == before


# The sender


def timer(url: str = "http://127.0.0.1:1/") -> Timer:
    return new_timer("id-1", "acme", Webhook(url=url, body="ä"), START, START)


class Counting(FakeSecrets):
    """Counts how often it is asked; `down` for no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.down = False

    def of(self, tenant: str) -> list[str]:
        self.asked.append(tenant)
        if self.down:
            raise Unavailable("DynamoDB does not answer.")
        return super().of(tenant)


def test_secrets_are_read_once_a_minute() -> None:
    """Within a minute nobody asks again; after it a change is seen; each tenant on its own."""
    counting, clock = Counting(), Clock()
    remembered = SecretsCache(counting.of, clock)
    assert remembered.of("acme") == []
    counting.secrets["acme"] = [secret(1)]
    clock.forward(SECRETS_TTL.total_seconds() - 0.001)
    assert remembered.of("acme") == []
    assert remembered.of("other") == []
    assert counting.asked == ["acme", "other"]
    clock.forward(0.001)
    assert remembered.of("acme") == [secret(1)]
    assert counting.asked == ["acme", "other", "acme"]
    assert timedelta(minutes=1) == SECRETS_TTL


def test_a_clock_that_steps_back_keeps_nothing_longer() -> None:
    """What seems to be read in the future is read again."""
    counting, clock = Counting(), Clock()
    remembered = SecretsCache(counting.of, clock)
    remembered.of("acme")
    clock.forward(-3600)
    remembered.of("acme")
    assert len(counting.asked) == 2


def test_a_failure_is_not_remembered() -> None:
    """As soon as the table answers again there are secrets; older ones do not stand in."""
    counting, clock = Counting(), Clock()
    remembered = SecretsCache(counting.of, clock)
    remembered.of("acme")
    clock.forward(60)
    counting.down = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            remembered.of("acme")
    counting.down = False
    counting.secrets["acme"] = [secret(1)]
    assert remembered.of("acme") == [secret(1)]


@pytest.mark.parametrize("down", [False, True])
def test_a_batch_asks_once(down: bool) -> None:
    """Ten threads that need the same secrets wait for one reading, and share its failure: one
    after another they would outlast the function."""
    go, asked = threading.Event(), list[str]()

    def read(tenant: str) -> Sequence[str]:
        asked.append(tenant)
        assert go.wait(10)
        if down:
            raise Unavailable("DynamoDB does not answer.")
        return [secret(1)]

    remembered = SecretsCache(read, Clock())
    with ThreadPoolExecutor(10) as threads:
        found = [threads.submit(remembered.of, "acme") for _ in range(10)]
        threading.Timer(0.05, go.set).start()
        faults = [future.exception() for future in found]
    assert [isinstance(fault, Unavailable) for fault in faults] == [down] * 10
    assert len(asked) == 1


def test_nothing_is_sent_unsigned() -> None:
    """If the secrets can't be read, the receiver is not even connected to, and the attempt is none
    of its failures: nothing is recorded, and the claim is released for the next ring."""
    counting, store, clock = Counting(), FakeStore(), Clock()
    counting.down = True
    with Receiver() as receiver:
        sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), secrets_of=counting.of)
        service = Service(
            store, FakeScheduler(), sender, clock=clock, new_id=lambda: "id-1", pause=lambda _: None
        )
        made = created(service, Webhook(url=receiver.url), tenant="acme")
        with pytest.raises(Unavailable):
            service.deliver(made.wakeup(), clock.now + timedelta(minutes=1))
        assert receiver.arrivals == []
        after = store.timers["id-1"]
        assert (after.status, after.attempt, after.attempts) == (Status.SCHEDULED, 0, ())
        counting.down = False
        service.deliver(made.wakeup(), clock.now + timedelta(minutes=1))
        assert store.timers["id-1"].status is Status.DELIVERED


def test_a_reading_that_takes_long_is_not_the_receivers_fault() -> None:
    """It comes out of the time for the attempt, which must end as promised; if that is too little
    then, it is not begun."""

    def read(_: str) -> Sequence[str]:
        threading.Event().wait(0.2)
        return [secret(1)]

    with Receiver(hold=lambda: threading.Event().wait(1)) as receiver:
        sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), secrets_of=read)
        with pytest.raises(Unavailable, match="no time"):
            sender.send(replace(timer(receiver.url), timeout=0.3), START)
        assert receiver.arrivals == []
        outcome = sender.send(replace(timer(receiver.url), timeout=0.5), START)
    assert outcome.error == "timeout"
    assert outcome.duration < 0.45  # of the half second 0.2 were gone


def test_functions_remember_and_sign() -> None:
    """What the composition root for AWS makes reads the secrets of a tenant once, and signs with
    them all."""
    counting = Counting()
    for number in (1, 2):
        counting.add("acme", secret(number))
    counting.asked.clear()
    sender = bootstrap._Sender(Targets.parse(LOOPBACK_TARGETS), counting)
    with Receiver() as receiver:
        for _ in range(3):
            assert sender.send(timer(receiver.url), bootstrap.now()).status == 200
    assert counting.asked == ["acme"]
    assert all(accepts(secret(n), it) for n in (1, 2) for it in receiver.arrivals)


def test_no_log_shows_a_secret(caplog: pytest.LogCaptureFixture, path: Path, aws: Account) -> None:
    """Neither ours nor the libraries', however much they tell, but for what goes to the table."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "botocore")  # its DEBUG, which nobody turns on, writes requests
    kept: Any
    with closing(SqliteTimerStore(path)) as store, Receiver() as receiver:
        for kept in (store.secrets, DynamoSecrets(aws.dynamodb, TENANTS)):
            kept.add("acme", secret(1))
            with suppress(CommandError):
                kept.retire("acme", secret(2))
            sender = WebhookSender(Targets.parse(LOOPBACK_TARGETS), secrets_of=kept.of)
            assert sender.send(timer(receiver.url), START).status == 200
    shown = secret(1).removeprefix("whsec_")[:20]
    assert shown not in caplog.text
    assert "whsec_" not in caplog.text
