"""`timers keys` and `timers secrets`, on a local database and on a stage in moto."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import NoCredentialsError

from chalicelib.aws.credential_store import DynamoApiKeys, DynamoSecrets
from chalicelib.core.api_keys import ApiKey, Role
from chalicelib.core.signing import MAX_SECRETS
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.service.credentials import authenticate, issue_key
from chalicelib.service.ports import ApiKeys, Secrets
from cli.main import ROLES, main
from infra import stages
from standalone.sqlite.timer_store import SqliteTimerStore
from tests.contracts.api_keys import KEY, TOKEN, another
from tests.contracts.secrets import secret
from tests.support.aws import REGION, STAGE, TENANTS, Account, account
from tests.support.fakes import START, FakeApiKeys, FakeSecrets
from tests.support.processes import ROOT, environment, run_timers

DATA = ROOT / "tests/compat/databases"

COMMANDS = [["keys", "add"], ["keys", "list"], ["keys", "revoke", KEY.id], ["secrets"]]


@dataclass
class Place:
    """The local database or a stage: the options that choose it, and its stores."""

    options: list[str]
    keys: ApiKeys
    secrets: Secrets
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> str:
        """Run a command, and return its output."""
        main([*arguments, *self.options])
        out, err = self.capsys.readouterr()
        assert err == ""
        return out

    def fail(self, *arguments: str) -> str:
        """Run a command that fails with status 1, and return its error message."""
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *self.options])
        assert self.capsys.readouterr() == ("", "")
        assert isinstance(ended.value.code, str)  # Python prints it, and exits with 1
        return ended.value.code


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    database = tmp_path / "timers.db"
    monkeypatch.setenv("TIMERS_DB", str(database))
    return database


@pytest.fixture
def machine(path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Place]:
    """This machine's database, opened by a server."""
    with closing(SqliteTimerStore(path)) as store:
        yield Place([], store.keys, store.secrets, capsys)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """The account of stage `test`."""
    with account() as made:
        session = SimpleNamespace(region_name=REGION, client=lambda _: made.dynamodb)
        monkeypatch.setattr(boto3, "Session", lambda: session)
        monkeypatch.setattr(stages, "STAGES", [STAGE])
        yield made


@pytest.fixture
def stage(aws: Account, capsys: pytest.CaptureFixture[str]) -> Place:
    keys, secrets = DynamoApiKeys(aws.dynamodb, TENANTS), DynamoSecrets(aws.dynamodb, TENANTS)
    return Place(["--stage", STAGE], keys, secrets, capsys)


@pytest.fixture(params=["machine", "stage"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


# Keys


@pytest.mark.parametrize(
    ("options", "tenant", "role"),
    [
        ([], DEFAULT_TENANT, Role.FULL),
        (["--tenant", "acme", "--role", "read"], "acme", Role.READ),
    ],
)
def test_add_prints_only_a_working_key(
    place: Place, options: list[str], tenant: str, role: Role
) -> None:
    """Scripts can capture the key. It has its tenant and role, and the tenant a signing secret."""
    printed = place.run("keys", "add", *options)
    assert re.fullmatch(r"tmr_[a-z2-7]{10}_[a-z2-7]{52}\n", printed)
    found = authenticate(place.keys, f"Bearer {printed.strip()}")
    assert found is not None
    assert (found.tenant, found.role) == (tenant, role)
    assert len(place.secrets.of(tenant)) == 1
    assert place.run("keys", "add", *options) != printed


def test_roles_are_those_of_the_core() -> None:
    """The command line repeats the roles so that it need not load msgspec."""
    assert {role.value for role in Role} == set(ROLES)


def test_another_key_keeps_the_secret(place: Place) -> None:
    """A tenant's second key does not create another signing secret."""
    place.run("keys", "add", "--tenant=acme")
    before = place.secrets.of("acme")
    place.run("keys", "add", "--tenant=acme")
    assert place.secrets.of("acme") == before
    assert place.secrets.of(DEFAULT_TENANT) == []


def test_a_tenant_gets_its_secret_before_its_key() -> None:
    """A crash in between leaves a secret without a key, never a key without a secret."""
    secrets = FakeSecrets()

    class Keys(FakeApiKeys):
        def add(self, key: ApiKey) -> None:
            assert len(secrets.of(key.tenant)) == 1
            super().add(key)

    keys = Keys()
    text = issue_key(keys, secrets, "acme", Role.READ, START)
    assert authenticate(keys, f"Bearer {text}") == keys.all()[0]


def test_list_shows_keys_in_columns(place: Place) -> None:
    """Keys are listed oldest first by id, tenant, role and creation time in UTC."""
    for key in (another(90, "a-tenant-of-some-length"), another(1), KEY):
        place.keys.add(key)
    assert place.run("keys", "list") == (
        "id          tenant                   role  created (UTC)\n"
        "aaaaaaaaaa  default                  full  2026-01-31 12:00:00\n"
        "aaaaaaaaae  acme                     read  2026-01-31 12:00:01\n"
        "aaaaaaaali  a-tenant-of-some-length  read  2026-01-31 12:01:30\n"
    )


def test_list_shows_no_secret_part(place: Place) -> None:
    """A list shows no key's secret part or hash."""
    printed = place.run("keys", "add").strip()
    listed = place.run("keys", "list")
    (key,) = place.keys.all()
    assert key.id in listed
    assert printed.rpartition("_")[2] not in listed
    assert key.hash not in listed


def test_list_without_keys_says_how_to_create_one(machine: Place, stage: Place) -> None:
    """The hint is the make command for the same place."""
    assert "`make key`" in machine.run("keys", "list")
    assert "`make key STAGE=test`" in stage.run("keys", "list")


@pytest.mark.parametrize("name", [KEY.id, f"tmr_{KEY.id}", TOKEN])
def test_revoke_takes_an_id_or_a_whole_key(place: Place, name: str) -> None:
    """Revoke names the key's id and tenant, repeats no secret, and keeps other keys."""
    place.keys.add(KEY)
    place.keys.add(another(1))
    output = place.run("keys", "revoke", name)
    assert KEY.id in output
    assert "default" in output
    assert TOKEN not in output
    assert place.keys.all() == [another(1)]
    assert authenticate(place.keys, f"Bearer {TOKEN}") is None


def test_revoke_fails_for_an_unknown_key(machine: Place, stage: Place) -> None:
    """A mistyped or revoked key fails, so nobody believes that it was disabled just now."""
    for place, command in ((machine, "make keys`"), (stage, "make keys STAGE=test`")):
        place.keys.add(KEY)
        place.keys.add(another(1))
        place.run("keys", "revoke", KEY.id)
        for name in (KEY.id, TOKEN, another(2).id, "acme", "tmr_", "", "x" * 3000):
            assert command in place.fail("keys", "revoke", name)
        assert place.keys.all() == [another(1)]


# Secrets


def test_secrets_are_printed_added_and_retired(place: Place) -> None:
    """The command prints the tenant's secrets after the change, newest first."""
    (first,) = place.run("secrets", "--tenant=acme", "--add=new").split()
    second, other = place.run("secrets", "--tenant=acme", "--add=new").split()
    assert (other, second != first) == (first, True)
    assert place.run("secrets", "--tenant=acme", f"--retire={first}") == f"{second}\n"
    both = place.run("secrets", "--tenant=acme", f"--add={secret(1)}")
    assert both == f"{secret(1)}\n{second}\n"
    assert place.run("secrets", "--tenant=acme") == both
    assert place.run("secrets", "--add=new").strip() == place.secrets.of(DEFAULT_TENANT)[0]
    assert place.secrets.of("acme") == both.split()


def test_secrets_rejects_impossible_changes(place: Place) -> None:
    """The secrets stay as they are if the change would leave none, too many or a broken one."""
    place.fail("secrets", "--tenant=acme")
    place.secrets.add("acme", secret(0))
    for change in ("--add=whsec_x", f"--retire={secret(0)}"):
        place.fail("secrets", "--tenant=acme", change)
    place.fail("secrets", "--tenant=acme", "--add=new", f"--retire={secret(1)}")
    assert place.secrets.of("acme") == [secret(0)]
    for number in range(1, MAX_SECRETS):
        place.secrets.add("acme", secret(number))
    place.fail("secrets", "--tenant=acme", "--add=new")
    assert len(place.secrets.of("acme")) == MAX_SECRETS


# Failures


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["keys"], "COMMAND"),
        (["keys", "list", "--stage=nowhere"], "choose from"),
        (["keys", "add", "--role=root"], "choose from"),
        (["keys", "revoke"], "KEY"),
    ],
)
def test_usage_errors_exit_with_2(machine: Place, arguments: list[str], reason: str) -> None:
    """The message names the missing or wrong argument."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert reason in machine.capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "-x", "Acme", "a" * 64])
@pytest.mark.parametrize("command", [["keys", "add"], ["secrets"]])
def test_rejects_invalid_tenant_names(machine: Place, command: list[str], name: str) -> None:
    """The error lists the characters that a tenant name may have."""
    assert "a-z, 0-9" in machine.fail(*command, f"--tenant={name}")
    assert machine.keys.all() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_rejects_an_unusable_database(
    path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """A missing, outdated or damaged database is reported and stays as it is."""
    place = Place([], FakeApiKeys(), FakeSecrets(), capsys)
    assert str(path) in place.fail(*command)
    assert not path.exists()
    shutil.copy(DATA / "timers-v1.db", path)
    before = path.read_bytes()
    assert "schema 1" in place.fail(*command)
    assert path.read_bytes() == before
    path.write_text("no database " * 1000)
    assert "file is not a database" in place.fail(*command)


@pytest.mark.parametrize(
    ("options", "reason"), [([], "make run"), (["--stage=dev"], "AWS_DEFAULT_REGION")]
)
def test_failures_exit_with_1(path: Path, options: list[str], reason: str) -> None:
    """A failure prints one line to stderr, and nothing to stdout."""
    ended = run_timers(
        "keys", "add", *options, HOME="/nonexistent", TIMERS_DB=str(path), AWS_DEFAULT_REGION=""
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert reason in ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_rejects_a_stage_that_is_not_deployed(
    aws: Account, stage: Place, command: list[str]
) -> None:
    """The error names the command that deploys the stage, not AWS's missing table."""
    aws.dynamodb.delete_table(TableName=TENANTS)
    assert "`make deploy STAGE=test`" in stage.fail(*command)


@pytest.mark.parametrize("name", [STAGE, "localstack"])
def test_aws_errors_are_shown(
    aws: Account, stage: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The operator sees the AWS error, and on LocalStack the command that starts it."""
    monkeypatch.setattr(stages, "STAGES", [name])
    for variable in stages.ON_LOCALSTACK:
        monkeypatch.setenv(variable, "x")

    def fail(operation: str) -> None:
        raise NoCredentialsError

    aws.before = fail
    stage.options = ["--stage", name]
    message = stage.fail("keys", "list")
    assert message.startswith("Unable to locate credentials")
    assert ("make localstack" in message) == (name == "localstack")


def test_the_local_database_needs_no_aws_library(path: Path) -> None:
    """Without a stage, the commands don't load boto3 or our AWS adapters."""
    SqliteTimerStore(path).close()
    program = (
        "import sys; from cli.main import main; [main(['keys', it]) for it in ('add', 'list')];"
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


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in ("serve", "demo", "keys", "secrets",
     "deploy", "destroy")), *(["keys", name, "--help"] for name in ("add", "list", "revoke"))],
    ids=" ".join,
)  # fmt: skip
def test_help_loads_only_the_parser(arguments: list[str]) -> None:
    """Help and version load no server, no msgspec and no boto3, so they appear at once."""
    program = (
        "import sys\nfrom cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as ended: print(ended.code, [m for m in sys.modules"
        " if m.startswith(('boto', 'msgspec', 'standalone', 'requests'))])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "0 []"


# make


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Print the commands of a target without running them."""
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("target", "command"),
    [
        (["key"], "keys add"),
        (["key", "TENANT=acme", "ROLE=read"], 'keys add --tenant "acme" --role "read"'),
        (["key", "STAGE=dev"], 'keys add --stage "dev"'),
        (["keys"], "keys list"),
        (["revoke", "KEY=x", "STAGE=dev"], 'keys revoke --stage "dev" "x"'),
        (["secrets"], "secrets"),
        (
            ["secrets", "TENANT=acme", "ADD=new", "RETIRE=whsec_x"],
            'secrets --tenant "acme" --add "new" --retire "whsec_x"',
        ),
        (["deploy", "STAGE=dev", "RATE=5"], 'deploy dev --rate "5"'),
        (["destroy", "STAGE=dev"], "destroy dev"),
    ],
    ids=lambda it: it if isinstance(it, str) else " ".join(it),
)
def test_make_calls_the_command(tmp_path: Path, target: list[str], command: str) -> None:
    """Variables become options. A stage needs the libraries for deployments."""
    lines = make(*target, f"VENV={tmp_path}").stdout.splitlines()
    assert " ".join(lines[-1].split()) == f"{tmp_path}/bin/python -m cli {command}"
    installed = "deploy.done" if "STAGE=dev" in target else "run.done"
    assert [line for line in lines if line.startswith(f"touch {tmp_path}/{installed}")]


@pytest.mark.parametrize(("target", "variable"), [("revoke", "KEY="), ("deploy", "STAGE=")])
def test_make_asks_for_missing_variables(tmp_path: Path, target: str, variable: str) -> None:
    """A missing variable fails before anything is installed."""
    ended = subprocess.run(
        ["make", target, f"VENV={tmp_path}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert list(tmp_path.iterdir()) == []
    assert variable in ended.stderr


def test_make_key_prints_only_the_key(tmp_path: Path) -> None:
    """Progress goes to stderr, so `KEY=$(make key)` works even when make installs first."""
    lines = make("key", f"VENV={tmp_path}").stdout.splitlines()
    progress = [line for line in lines if line.startswith("echo")]
    assert progress
    assert all(line.endswith(">&2") for line in progress)
