"""The command for keys and secrets, on this machine's database and on a stage in moto."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import NoCredentialsError

from chalicelib.aws.tenant_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core import api_keys
from chalicelib.core.api_keys import ApiKey, ApiKeys, Role
from chalicelib.core.signing import MAX_SECRETS, Secrets
from chalicelib.core.timer import DEFAULT_TENANT
from cli.keys import main, new_key
from infra import stages
from standalone.sqlite import SqliteTimerStore
from tests.contracts.api_keys import KEY, TOKEN, another
from tests.contracts.secrets import secret
from tests.support.aws import REGION, STAGE, TENANTS, Account, account
from tests.support.fakes import FakeApiKeys, FakeSecrets
from tests.support.processes import ROOT, environment, tenants

DATA = ROOT / "tests/compat/databases"


@dataclass
class Place:
    """Where the command works, and how else one sees what is kept there."""

    options: list[str]
    keys: ApiKeys
    secrets: Secrets
    said: Any

    def run(self, *arguments: str) -> str:
        """Return what the command prints."""
        main([*self.options, *arguments])
        out, err = self.said.readouterr()
        assert err == ""
        return str(out)

    def refuses(self, *arguments: str) -> str:
        """Return what the command says before it ends with status 1."""
        with pytest.raises(SystemExit) as ended:
            main([*self.options, *arguments])
        assert self.said.readouterr() == ("", "")
        assert isinstance(ended.value.code, str)  # which Python prints, and ends with 1
        return ended.value.code


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "timers.db"
    monkeypatch.setenv("TIMERS_DB", str(made))
    return made


@pytest.fixture
def machine(path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Place]:
    """This machine's database, which the server has open."""
    with closing(SqliteTimerStore(path)) as store:
        yield Place([], store.keys, store.secrets, capsys)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """The account that the command reaches as that of stage `test`."""
    with account() as made:
        session = SimpleNamespace(region_name=REGION, client=lambda _: made.dynamodb)
        monkeypatch.setattr(boto3, "Session", lambda: session)
        monkeypatch.setattr(stages, "STAGES", [STAGE])
        yield made


@pytest.fixture
def stage(aws: Account, capsys: pytest.CaptureFixture[str]) -> Place:
    kept, signed = DynamoApiKeys(aws.dynamodb, TENANTS), DynamoSecrets(aws.dynamodb, TENANTS)
    return Place(["--stage", STAGE], kept, signed, capsys)


@pytest.fixture(params=["machine", "stage"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


# Keys


def test_a_new_key_is_all_that_is_printed(place: Place) -> None:
    """So that a script can take it; it opens for that tenant and role, and its tenant's webhooks
    are signed."""
    for options, tenant, role in (
        ([], DEFAULT_TENANT, Role.FULL),
        (["--tenant", "acme", "--role", "read"], "acme", Role.READ),
    ):
        printed = place.run("add", *options)
        assert re.fullmatch(r"tmr_[a-z2-7]{10}_[a-z2-7]{52}\n", printed)
        found = api_keys.find(place.keys, f"Bearer {printed.strip()}")
        assert found is not None
        assert (found.tenant, found.role) == (tenant, role)
        assert len(place.secrets.of(tenant)) == 1
    assert place.run("add") != place.run("add")


def test_another_key_makes_no_other_secret(place: Place) -> None:
    """Keys and secrets are changed independently."""
    place.run("add", "--tenant=acme")
    before = place.secrets.of("acme")
    place.run("add", "--tenant=acme")
    assert place.secrets.of("acme") == before
    assert place.secrets.of(DEFAULT_TENANT) == []


def test_whoever_has_a_key_has_a_secret() -> None:
    """Cut off in between, it leaves a secret that nobody misses, and no key without one."""
    signed = FakeSecrets()

    class Last(FakeApiKeys):
        def add(self, key: ApiKey) -> None:
            assert len(signed.of(key.tenant)) == 1
            super().add(key)

    kept = Last()
    text = new_key(kept, signed, "acme", Role.READ)
    assert api_keys.find(kept, f"Bearer {text}") == kept.all()[0]


def test_keys_are_listed_for_people(place: Place) -> None:
    """Oldest first, one below the other, moments in UTC; of the key only the id."""
    for key in (another(90, "a-tenant-of-some-length"), another(1), KEY):
        place.keys.add(key)
    assert place.run("list") == (
        "id          tenant                   role  created (UTC)\n"
        "aaaaaaaaaa  default                  full  2026-01-31 12:00:00\n"
        "aaaaaaaaae  acme                     read  2026-01-31 12:00:01\n"
        "aaaaaaaali  a-tenant-of-some-length  read  2026-01-31 12:01:30\n"
    )


def test_no_key_ever_appears_in_a_list(place: Place) -> None:
    """Neither the part that is secret, nor what it is compared with."""
    printed = place.run("add").strip()
    listed = place.run("list")
    (kept,) = place.keys.all()
    assert kept.id in listed
    assert printed.rpartition("_")[2] not in listed
    assert kept.hash not in listed


def test_without_a_key_it_says_so(machine: Place, stage: Place) -> None:
    """And how to make one there."""
    assert machine.run("list") == "There is no key: `make key` makes one.\n"
    assert stage.run("list") == "There is no key: `make key STAGE=test` makes one.\n"


@pytest.mark.parametrize("name", [KEY.id, f"tmr_{KEY.id}", TOKEN])
def test_a_key_is_revoked_by_its_id_or_as_a_whole(place: Place, name: str) -> None:
    """It says whose it was, and repeats nothing that is secret; the others stay."""
    place.keys.add(KEY)
    place.keys.add(another(1))
    assert place.run("revoke", name) == f"Revoked key {KEY.id} of tenant default.\n"
    assert place.keys.all() == [another(1)]
    assert api_keys.find(place.keys, f"Bearer {TOKEN}") is None


def test_what_is_no_key_is_not_revoked(machine: Place, stage: Place) -> None:
    """Revoked already, mistyped, nothing at all: whoever thinks it is safe now has to hear it."""
    for place, keys_there in ((machine, "make keys"), (stage, "make keys STAGE=test")):
        place.keys.add(KEY)
        place.keys.add(another(1))
        place.run("revoke", KEY.id)
        for name in (KEY.id, TOKEN, another(2).id, "acme", "tmr_", "", "x" * 3000):
            said = place.refuses("revoke", name)
            assert said == f"There is no such key: `{keys_there}` lists those there are."
        assert place.keys.all() == [another(1)]


# Secrets


def test_secrets_are_printed_added_and_retired(place: Place) -> None:
    """Newest first, for one tenant, as they are after the change."""
    (first,) = place.run("secrets", "--tenant=acme", "--add=new").split()
    second, other = place.run("secrets", "--tenant=acme", "--add=new").split()
    assert (other, second != first) == (first, True)
    assert place.run("secrets", "--tenant=acme", f"--retire={first}") == f"{second}\n"
    both = place.run("secrets", "--tenant=acme", f"--add={secret(1)}")
    assert both == f"{secret(1)}\n{second}\n"
    assert place.run("secrets", "--tenant=acme") == both
    assert place.run("secrets", "--add=new").strip() == place.secrets.of(DEFAULT_TENANT)[0]
    assert place.secrets.of("acme") == both.split()


def test_secrets_that_can_not_be_changed_so_stay(place: Place) -> None:
    """One sentence says why: no tenant of that name, the last one, one too many, a slip."""

    def says(*options: str) -> str:
        return place.refuses("secrets", "--tenant=acme", *options)

    assert says() == "Tenant acme has no secret: ADD=new makes one."
    place.secrets.add("acme", secret(0))
    assert says("--add=new", f"--retire={secret(1)}") == "The tenant has no such secret."
    assert says("--add=whsec_x") == "A secret is whsec_ and the base64 of 24 to 64 bytes."
    last = says(f"--retire={secret(0)}")
    assert last == "It is the tenant's only secret: add another one first."
    assert place.secrets.of("acme") == [secret(0)]
    for number in range(1, MAX_SECRETS):
        place.secrets.add("acme", secret(number))
    assert says("--add=new") == "A tenant has 5 secrets at most: retire one first."


# What is wrong


def test_it_is_used_as_it_is_meant(machine: Place) -> None:
    """No command, no such stage, tenant or role: argparse says what there is, and ends with 2."""
    for arguments, words in (
        ([], "required: command"),
        (["--stage=nowhere", "list"], "choose from"),
        (["add", "--role=root"], "choose from"),
        (["revoke"], "required: ID"),
        *((["add", f"--tenant={name}"], "a-z, 0-9") for name in ("", "-x", "Acme", "a" * 64)),
        (["secrets", "--tenant=A"], "a-z, 0-9"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert words in machine.said.readouterr().err
    assert machine.keys.all() == []


@pytest.mark.parametrize("command", [["add"], ["list"], ["revoke", KEY.id], ["secrets"]])
def test_a_database_that_can_not_be_used_is_said(
    path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """None there, one of another version, something else: it is left as it is."""
    place = Place([], FakeApiKeys(), FakeSecrets(), capsys)
    assert place.refuses(*command) == f"There is no database {path} yet: `make run` makes it."
    assert not path.exists()
    shutil.copy(DATA / "timers-v1.db", path)
    before = path.read_bytes()
    assert "is of another version of Timers (schema 1): start this" in place.refuses(*command)
    assert path.read_bytes() == before
    path.write_text("no database " * 1000)
    assert "file is not a database" in place.refuses(*command)


def test_errors_end_the_command(path: Path) -> None:
    """Status 1, one sentence, nothing on the output that a script reads."""
    for options in ([], ["--stage=dev"]):
        ended = tenants(
            *options, "add", HOME="/nonexistent", TIMERS_DB=str(path), AWS_DEFAULT_REGION=""
        )
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
        assert ("AWS_DEFAULT_REGION" if options else "make run") in ended.stderr


def test_a_stage_that_is_not_there_is_said(aws: Account, stage: Place) -> None:
    """What AWS says of a missing table helps nobody."""
    aws.dynamodb.delete_table(TableName=TENANTS)
    for command in (["add"], ["list"], ["revoke", KEY.id], ["secrets"]):
        assert stage.refuses(*command) == (
            "There is no timers-test in this account and region: `make deploy STAGE=test` makes it."
        )


@pytest.mark.parametrize("name", [STAGE, "localstack"])
def test_what_aws_says_is_told(
    aws: Account, stage: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The operator needs the cause, which answers of the API leave out; and to know whether it is
    LocalStack that does not run."""
    monkeypatch.setattr(stages, "STAGES", [name])
    for variable in stages.ON_LOCALSTACK:
        monkeypatch.setenv(variable, "x")

    def fail(operation: str) -> None:
        raise NoCredentialsError

    aws.before = fail
    stage.options = ["--stage", name]
    hint = " Is it running? `make localstack` starts it." if name == "localstack" else ""
    assert stage.refuses("list") == f"Unable to locate credentials{hint}"


def test_this_machine_needs_nothing_of_aws(path: Path) -> None:
    """Without a stage the command runs on what `make run` installs, and loads no more than that."""
    SqliteTimerStore(path).close()
    program = (
        "import sys; from cli.keys import main; [main([it]) for it in ('add', 'list')];"
        " print([m for m in sys.modules if m.startswith(('boto', 'chalicelib.aws'))])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(TIMERS_DB=str(path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "[]"


# make


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run make without doing what it would do."""
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (["key"], "add"),
        (["key", "TENANT=acme", "ROLE=read"], 'add --tenant "acme" --role "read"'),
        (["keys"], "list"),
        (["revoke", "KEY=x"], 'revoke "x"'),
        (["secrets"], "secrets"),
        (
            ["secrets", "TENANT=acme", "ADD=new", "RETIRE=whsec_x"],
            'secrets --tenant "acme" --add "new" --retire "whsec_x"',
        ),
    ],
    ids=lambda it: it if isinstance(it, str) else " ".join(it),
)
def test_make_calls_the_command(tmp_path: Path, target: list[str], wanted: str) -> None:
    """One target for both: this machine's database, or with STAGE a stage in an account, which
    takes what deploying takes."""
    for stage, options, installed in (
        ([], "", "run.done"),
        (["STAGE=dev"], " --stage dev", "deploy.done"),
    ):
        lines = make(*target, *stage, f"VENV={tmp_path}").stdout.splitlines()
        assert " ".join(lines[-1].split()) == (
            f"{tmp_path}/bin/python -m cli.keys{options} {wanted}"
        )
        assert [line for line in lines if line.startswith(f"touch {tmp_path}/{installed}")]


def test_make_revoke_wants_a_key(tmp_path: Path) -> None:
    """It says so before it installs anything."""
    ended = subprocess.run(
        ["make", "revoke", f"VENV={tmp_path}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert list(tmp_path.iterdir()) == []
    assert ended.stderr.splitlines()[0] == (
        "Say which key: make revoke KEY=…; make keys lists them"
    )


def test_make_prints_nothing_beside_the_key(tmp_path: Path) -> None:
    """What has to be installed first is told on the other output: KEY=$(make key) works."""
    lines = make("key", f"VENV={tmp_path}").stdout.splitlines()
    told = [line for line in lines if line.startswith("echo")]
    assert told
    assert all(line.endswith(">&2") for line in told)
