"""End-to-end tests of a deployment: LocalStack, `make deploy`, gateway, functions, receivers.

`make e2e` runs them. They start their own LocalStack unless AWS_ENDPOINT_URL names a running one.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import boto3
import pytest
import requests

from chalicelib.aws.credential_store import DynamoApiKeys
from chalicelib.core import api_keys, signing
from tests.e2e.localstack.stack import Stack
from tests.support.browser import ApiDocs, Console, chromium, opened
from tests.support.processes import ROOT, Arrival, Receiver, environment, wait_until

GIVEN = os.environ.get("AWS_ENDPOINT_URL")
IN_DOCKER = "The functions run in containers, which this test cannot kill."

FAR = 192
"""Seconds beyond the NEAR of stage localstack (190), so the timer gets a schedule."""

LOST = 240
"""Seconds to reclaim a lost timer: the lease, the sweep's grace and its interval."""


class Deployed:
    """A copy of the checkout, deployed to LocalStack, with its commands and API."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.endpoint = endpoint
        self.settings = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        session = boto3.Session("test", "test", region_name="us-east-1")
        self.client: Callable[[Any], Any] = lambda name: session.client(name, endpoint_url=endpoint)
        for name in ("app.py", "Makefile", "chalicelib", "standalone", "cli", ".chalice", "infra"):
            subprocess.run(["cp", "-pr", ROOT / name, folder], check=True)
        for path in [ROOT / "pyproject.toml", *ROOT.glob("requirements*.txt")]:
            subprocess.run(["cp", "-p", path, folder], check=True)
        subprocess.run(["rm", "-rf", folder / ".chalice/deployed"], check=True)

    def make(self, *arguments: str, check: bool = True) -> str:
        """Run make; return what it printed."""
        ended = subprocess.run(
            ["make", "--no-print-directory", f"VENV={Path(sys.prefix)}", *arguments],
            cwd=self.folder,
            env=environment(**self.settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )
        assert not check or ended.returncode == 0, ended.stdout
        return ended.stdout

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        """Make a request to the API; `body` is sent as JSON."""
        kind = {} if body is None else {"Content-Type": "application/json"}
        data = body if isinstance(body, str) else json.dumps(body)
        return requests.request(
            method,
            f"{self.url}{path}",
            data=None if body is None else data,
            headers=kind | headers,
            timeout=30,
        )

    def create(self, seconds: int, url: str) -> dict[str, Any]:
        answer = self.ask("POST", "/timers", {"seconds": seconds, "url": url})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def read(self, id: str) -> dict[str, Any]:
        answer = self.ask("GET", f"/timers/{id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def delivered(self, id: str, seconds: float) -> dict[str, Any]:
        """Return the timer as soon as it is delivered."""
        wait_until(lambda: self.read(id)["status"] == "delivered", seconds)
        return self.read(id)

    def schedules(self) -> list[str]:
        listed = self.client("scheduler").list_schedules(GroupName="timers-localstack")
        return [it["Name"] for it in listed["Schedules"]]


def url(output: str) -> str:
    """Return the URL in the output of `make deploy`."""
    found = re.search(r"Timers is deployed at (http\S+)", output)
    assert found, output
    return found[1]


def report(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Print a figure even if pytest captures output."""
    with capsys.disabled():
        print(f"\n{words}")  # noqa: T201


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack | None]:
    """Start LocalStack, or return None if AWS_ENDPOINT_URL is set."""
    if GIVEN:
        yield None
        return
    with Stack(tmp_path_factory.mktemp("localstack")) as running:
        yield running


@pytest.fixture(scope="module")
def deployed(stack: Stack | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Timers on LocalStack, with schedules as imprecise as those of EventBridge."""
    endpoint = stack.url if stack else str(GIVEN)
    made = Deployed(endpoint, tmp_path_factory.mktemp("checkout"))
    made.url = url(made.make("deploy", "STAGE=localstack"))
    runner = [sys.executable, "-m", "infra.localstack.schedule_runner", "--stage", "localstack"]
    with subprocess.Popen(
        [*runner, "--precision", "60"], cwd=made.folder, env=environment(**made.settings)
    ) as process:
        try:
            yield made
        finally:
            process.terminate()
            assert process.wait(20) == 0


class Receivers:
    """One receiver that responds at once, and one that holds its first request."""

    def __init__(self, block: ExitStack) -> None:
        host = ("host.docker.internal", "0.0.0.0") if GIVEN else ("127.0.0.1", "127.0.0.1")  # noqa: S104  # containers come by the bridge
        self.held, self.release = threading.Event(), threading.Event()
        self.quick = block.enter_context(Receiver(listen=host[1]))
        self.holding = block.enter_context(Receiver(self._hold, listen=host[1]))
        self._host = host[0]

    def url(self, receiver: Receiver, path: str = "/{id}") -> str:
        return f"http://{self._host}:{receiver.port}{path}"

    def arrivals(self, id: str) -> list[Arrival]:
        return [it for it in (*self.quick.arrivals, *self.holding.arrivals) if it.id == id]

    def _hold(self) -> None:
        if not self.held.is_set():
            self.held.set()
            self.release.wait(60)


@pytest.fixture(scope="module")
def receivers() -> Iterator[Receivers]:
    with ExitStack() as block:
        yield Receivers(block)


@pytest.fixture(scope="module", autouse=True)
def lost(stack: Stack | None, deployed: Deployed, receivers: Receivers) -> str | None:
    """Return the timer whose worker was killed while the receiver held its request.

    It runs first, because reclaiming the timer takes minutes.
    """
    if stack is None:
        return None
    timer = deployed.create(0, receivers.url(receivers.holding))
    wait_until(receivers.held.is_set, 60)
    workers = stack.processes("timers-localstack-deliver")
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    receivers.release.set()
    return str(timer["id"])


@pytest.fixture(scope="module", autouse=True)
def far(deployed: Deployed, receivers: Receivers, lost: str | None) -> dict[str, Any]:
    """Create a timer with a schedule. Its delivery also takes minutes."""
    return deployed.create(FAR, receivers.url(receivers.quick))


def test_delivers_a_timer_of_five_seconds(
    deployed: Deployed, receivers: Receivers, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timer counts down, and its signed webhook arrives at the deadline or soon after."""
    answer = deployed.ask("POST", "/timers", {"seconds": 5, "url": receivers.url(receivers.quick)})
    timer = answer.json()
    assert answer.status_code == 201
    at = urljoin(f"{deployed.url}/timers", answer.headers["Location"])
    assert at == f"{deployed.url}/timers/{timer['id']}"
    assert (timer["status"], timer["time_left"]) == ("scheduled", 5)
    time.sleep(1)
    assert 1 <= deployed.read(timer["id"])["time_left"] <= 4
    read = deployed.delivered(timer["id"], 30)
    assert read["time_left"] == 0
    (arrival,) = receivers.arrivals(timer["id"])
    late = (arrival.at - datetime.fromisoformat(timer["fire_at"])).total_seconds()
    report(f"A timer of 5 s through the gateway: {late:.2f} s late at the receiver.", capsys)
    assert 0 <= late < 10
    assert (arrival.path, arrival.body) == (f"/{timer['id']}", b"")
    assert arrival.headers["timer-attempt"] == "1"
    (secret,) = deployed.make("secrets", "STAGE=localstack").split()
    stamp = int(arrival.headers["webhook-timestamp"])
    signature = signing.sign([secret], timer["id"], stamp, arrival.body)
    assert arrival.headers["webhook-signature"] == signature
    refused = deployed.ask("DELETE", f"/timers/{timer['id']}")
    assert refused.status_code == 409


def test_retries_failures_and_sends_on_failure(deployed: Deployed, receivers: Receivers) -> None:
    """A failing webhook gets all attempts of its retry policy, then `on_failure` is called."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    body = {
        "seconds": 0,
        "url": nobody,
        "method": "PUT",
        "body": {"a": 1},
        "headers": {"Authorization": "Bearer abc"},
        "retry": {"max_attempts": 2, "initial_delay": 1},
        "on_failure": receivers.url(receivers.quick, "/failed"),
    }
    timer = deployed.ask("POST", "/timers", body).json()
    assert timer["headers"]["Authorization"] == "•••"
    wait_until(lambda: deployed.read(timer["id"])["status"] == "failed", 60)
    read = deployed.read(timer["id"])
    assert [attempt["error"] for attempt in read["attempts"]] == ["connect", "connect"]
    wait_until(lambda: [it for it in receivers.quick.arrivals if it.path == "/failed"], 60)
    (notice,) = [it for it in receivers.quick.arrivals if it.path == "/failed"]
    assert json.loads(notice.body)["timer"]["id"] == timer["id"]
    again = deployed.ask("POST", f"/timers/{timer['id']}/retry")
    assert (again.status_code, again.json()["status"]) == (202, "scheduled")


def test_cancelled_timer_is_not_sent(deployed: Deployed, receivers: Receivers) -> None:
    """A cancel deletes the schedule, and the message in the queue has no effect."""
    timer = deployed.create(4, receivers.url(receivers.quick))
    assert f"{timer['id']}.1" in deployed.schedules()
    cancelled = deployed.ask("DELETE", f"/timers/{timer['id']}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert f"{timer['id']}.1" not in deployed.schedules()
    time.sleep(8)
    assert receivers.arrivals(timer["id"]) == []
    assert deployed.read(timer["id"])["status"] == "cancelled"


def test_all_operations_work_through_the_gateway(deployed: Deployed, receivers: Receivers) -> None:
    """Idempotent create, change, fire, list, bulk create and cancel work through the gateway."""
    hook = receivers.url(receivers.quick)
    body = {"delay": "1h30m", "url": hook, "label": "e2e", "metadata": {"order": "17"}}
    once = {"Idempotency-Key": "e2e-1"}
    first, second = (deployed.ask("POST", "/timers", body, **once) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    id = first.json()["id"]
    assert second.json()["id"] == id
    assert second.headers["Location"] == first.headers["Location"]
    assert deployed.ask("POST", "/timers", {**body, "delay": 5}, **once).status_code == 422
    assert deployed.schedules().count(f"{id}.1") == 1

    changed = deployed.ask("PATCH", f"/timers/{id}", {"delay": "PT2H", "label": "e2e/2 ü"})
    assert changed.status_code == 200, changed.text
    assert 7100 < changed.json()["time_left"] <= 7200
    assert f"{id}.2" in deployed.schedules()
    assert f"{id}.1" not in deployed.schedules()
    fired = deployed.ask("POST", f"/timers/{id}/fire")
    assert fired.status_code == 202, fired.text
    assert deployed.delivered(id, 30)["metadata"] == {"order": "17"}
    assert len(receivers.arrivals(id)) == 1
    assert deployed.ask("PATCH", f"/timers/{id}", {"label": "x"}).status_code == 409

    entries = [{"hours": 1, "url": hook, "label": "many"} for _ in range(7)]
    entries[3] = {"hours": 1}
    results = deployed.ask("POST", "/timers/batch", {"timers": entries}).json()["results"]
    assert [it["status"] for it in results] == [201, 201, 201, 400, 201, 201, 201]
    assert results[3]["problem"]["pointer"] == "/timers/3/url"
    made = [it["timer"]["id"] for it in results if it["status"] == 201]

    listed: list[str] = []
    cursor = ""
    while cursor is not None:
        page = deployed.ask("GET", f"/timers?label=many&limit=4{cursor}").json()
        listed += [timer["id"] for timer in page["timers"]]
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    assert sorted(listed) == sorted(made)
    found = deployed.ask("GET", "/timers?status=delivered&label=e2e/2%20%C3%BC").json()["timers"]
    assert [timer["id"] for timer in found] == [id]
    assert deployed.ask("GET", "/timers?limit=0").status_code == 400

    results = deployed.ask("POST", "/timers/cancel", {"ids": [*made, "nobody"]}).json()["results"]
    assert [it["status"] for it in results] == [200] * 6 + [404]
    assert [it for it in deployed.schedules() if it.rpartition(".")[0] in made] == []
    results = deployed.ask("POST", "/timers/retry", {"ids": made[:1]}).json()["results"]
    assert [it["status"] for it in results] == [409]
    ids = {deployed.ask("GET", "/timers?limit=1").headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2


HOOK = "https://example.com/hook"


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ("{", 400, ""),
        ({"seconds": 5}, 400, "/url"),
        ({"url": HOOK}, 400, ""),
        ({"seconds": -1, "url": HOOK}, 400, "/seconds"),
        ({"seconds": "5", "url": HOOK}, 400, "/seconds"),
        ({"seconds": 5, "url": HOOK, "colour": 1}, 400, "/colour"),
        ({"seconds": 10**12, "url": HOOK}, 400, ""),
        ({"seconds": 5, "url": "ftp://example.com"}, 400, "/url"),
        ({"seconds": 5, "url": "http://169.254.169.254/latest"}, 400, "/url"),
        ({"seconds": 5, "url": "http://10.0.0.1/"}, 400, "/url"),
    ],
)
def test_invalid_input_is_a_problem_with_a_pointer(
    deployed: Deployed, body: Any, status: int, pointer: str
) -> None:
    """The gateway passes on the problem document of an invalid request."""
    answer = deployed.ask("POST", "/timers", body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["pointer"] == pointer


def test_unknown_timer_and_wrong_type(deployed: Deployed) -> None:
    """A missing timer is a 404, and a body without a JSON content type is a 415."""
    for answer, status in (
        (deployed.ask("GET", "/timers/nobody"), 404),
        (deployed.ask("DELETE", "/timers/nobody"), 404),
        (requests.post(f"{deployed.url}/timers", data="x", timeout=30), 415),
    ):
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_service_is_healthy(deployed: Deployed) -> None:
    """The health check passes after a deployment."""
    answer = deployed.ask("GET", "/health")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ok", "auth": "none", "receiver": None},
    )


def test_api_docs_work_below_the_stage(deployed: Deployed) -> None:
    """In a browser, the page creates, reads and cancels a timer."""
    with chromium() as browser, opened(browser) as page:
        docs = ApiDocs(page, deployed.url)
        made = docs.try_out("create_timer", 201, body={"hours": 1, "url": "https://example.com/"})
        assert docs.try_out("read_timer", 200, timer_id=made["id"])["id"] == made["id"]
        assert docs.try_out("cancel_timer", 200, timer_id=made["id"])["status"] == "cancelled"


def test_functions_log_json_and_metrics(deployed: Deployed, stack: Stack | None) -> None:
    """Functions log JSON lines with timer ids, and metrics in EMF."""
    if stack is None:
        pytest.skip("The logs of an external LocalStack are not available.")
    written = stack.logs("timers-localstack-deliver").splitlines()
    lines = [json.loads(line) for line in written if line.startswith("{")]
    delivered = [line for line in lines if line.get("message") == "webhook delivered"]
    assert delivered
    for line in delivered:
        assert line["timer"]
        assert line["tenant"] == "default"
        assert line["function_request_id"]
    metrics = [line for line in lines if "_aws" in line]
    assert {"Lateness", "Delivered"} <= set(metrics[0])
    assert metrics[0]["service"] == "timers-localstack"


@pytest.fixture(scope="module")
def dev(deployed: Deployed) -> Iterator[tuple[str, str]]:
    """Return the URL of stage dev, and the key that its first deployment printed.

    Its webhooks reach the receivers of the tests, as those of stage localstack do.
    """
    file = deployed.folder / ".chalice/config.json"
    config = json.loads(file.read_text())
    theirs, its = (config["stages"][it]["environment_variables"] for it in ("localstack", "dev"))
    its["ALLOWED_TARGETS"] = theirs["ALLOWED_TARGETS"]
    file.write_text(json.dumps(config))
    output = deployed.make("deploy", "STAGE=dev", "RATE=50")
    key = re.search(r"API key, shown only now: (tmr_\S+)", output)
    assert key, output
    yield url(output), key[1]
    deployed.make("destroy", "STAGE=dev")


def test_stage_with_keys_rejects_requests_without_one(
    deployed: Deployed, dev: tuple[str, str]
) -> None:
    """The gateway responds 401 without a key and 403 to an invalid one; /health needs none."""
    where, _ = dev
    for path, method in (("/timers", "POST"), ("/timers/x", "GET"), ("/timers/x", "DELETE")):
        for headers, status in (({}, 401), ({"Authorization": "Bearer tmr_a_b"}, 403)):
            answer = requests.request(method, f"{where}{path}", headers=headers, timeout=30)
            assert answer.status_code == status
    answer = requests.get(f"{where}/health", timeout=30)
    assert (answer.status_code, answer.json()["auth"]) == (200, "keys")


def test_handler_rejects_unauthorized_events(deployed: Deployed, dev: tuple[str, str]) -> None:
    """The handler responds 401 to an event that bypassed the authorizer."""
    event = {
        "resource": "/timers/{timer_id}",
        "path": "/timers/x",
        "httpMethod": "GET",
        "headers": {"Authorization": f"Bearer {dev[1]}"},
        "multiValueQueryStringParameters": None,
        "pathParameters": {"timer_id": "x"},
        "requestContext": {"httpMethod": "GET", "resourcePath": "/timers/{timer_id}", "path": "/"},
        "body": None,
        "stageVariables": None,
        "isBase64Encoded": False,
    }
    invoke = deployed.client("lambda").invoke
    answer = invoke(FunctionName="timers-dev", Payload=json.dumps(event))
    assert json.loads(answer["Payload"].read())["statusCode"] == 401


def set_from_console(console: Console, key: str, **fields: str) -> None:
    """Open the console with a key and create a timer."""
    console.page.get_by_label("API key").fill(key)
    console.press("Sign in")
    console.press("New timer")
    console.fill(hours="1", **fields)
    console.press("Create timer")
    console.has_heading(fields["label"])


def test_console_creates_and_cancels_timers(deployed: Deployed, dev: tuple[str, str]) -> None:
    """In a browser, the console rejects an invalid key; with a valid one it manages timers."""
    where, key = dev
    with chromium() as browser, opened(browser, expected="403") as page:
        console = Console(page, where)
        page.get_by_label("API key").fill("tmr_a_b")
        console.press("Sign in")
        console.sees("This API key is not valid.")
        set_from_console(console, key, url="https://example.com/", label="to cancel")
        console.press("Cancel timer")
        page.get_by_role("dialog").get_by_role("button", name="Cancel timer").click()
        console.sees("The webhook will not be sent.")
        assert not page.get_by_role("link", name="Received").count()
        console.press("Overview")
        console.lists("to cancel")


def test_console_reschedules_and_fires_a_timer(
    deployed: Deployed, dev: tuple[str, str], receivers: Receivers
) -> None:
    """The console reschedules a timer, fires it early, and shows its delivery."""
    where, key = dev
    with chromium() as browser, opened(browser) as page:
        console = Console(page, where)
        hook = receivers.url(receivers.quick, "/fired")
        set_from_console(console, key, url=hook, label="to fire")
        console.press("Reschedule")
        console.has_heading("Reschedule to fire")
        console.fill(hours="5")
        console.press("Reschedule")
        console.sees("Timer rescheduled.")
        console.sees(re.compile("04:5[0-9]:[0-9][0-9]"))
        console.press("Fire now")
        console.sees(re.compile(r"Delivered .+ late \(HTTP 200\)"), seconds=90)
        page.get_by_role("listitem").filter(has_text="HTTP 200").wait_for()
    assert [it.path for it in receivers.quick.arrivals].count("/fired") == 1


def test_authorizer_accepts_valid_keys_only(deployed: Deployed, dev: tuple[str, str]) -> None:
    """The deployed authorizer accepts new keys, and rejects revoked and unknown ones."""
    _, first = dev
    second = deployed.make("key", "STAGE=dev", "TENANT=acme", "ROLE=read").strip().splitlines()[-1]
    invoke = deployed.client("lambda").invoke
    arn = "arn:aws:execute-api:us-east-1:000000000000:abc/api/GET/timers"

    def asked(key: str) -> Any:
        event = {"type": "TOKEN", "authorizationToken": f"Bearer {key}", "methodArn": arn}
        answer = invoke(FunctionName="timers-dev-authorizer", Payload=json.dumps(event))
        assert "FunctionError" not in answer
        return json.loads(answer["Payload"].read())

    assert asked(first)["context"] == {"tenant": "default", "role": "full"}
    assert asked(second)["context"] == {"tenant": "acme", "role": "read"}
    id = second.split("_")[1]
    assert f"{id}  acme" in deployed.make("keys", "STAGE=dev")
    assert f"Revoked API key {id} of tenant acme." in deployed.make(
        "revoke", "STAGE=dev", f"KEY={second}"
    )
    stranger = api_keys.mint(
        "x", api_keys.Role.FULL, datetime.now(UTC), os.urandom(api_keys.KEY_ENTROPY)
    )[0]
    for unknown in (stranger, second, first[:-1], ""):
        statement = asked(unknown)["policyDocument"]["Statement"]
        assert statement[0]["Resource"] == []


def test_deploy_sets_the_throttle(deployed: Deployed, dev: tuple[str, str]) -> None:
    """The stage has the rate limit given by RATE."""
    api = deployed.client("apigateway")
    id = dev[0].split("/")[-2]
    (settings,) = api.get_stage(restApiId=id, stageName="api")["methodSettings"].values()
    assert settings["throttlingRateLimit"] == 50


def test_redeploy_keeps_the_api(deployed: Deployed, dev: tuple[str, str]) -> None:
    """A redeployment keeps the URL, also by plain `chalice deploy` or without its record."""
    where, _ = dev
    subprocess.run(
        [Path(sys.executable).with_name("chalice"), "deploy", "--stage", "dev"],
        cwd=deployed.folder,
        env=environment(**deployed.settings),
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert requests.get(f"{where}/health", timeout=30).status_code == 200
    # As after a deployment that was cut off before anything was recorded.
    (deployed.folder / ".chalice/deployed/dev.json").unlink()
    deployed.client("ssm").delete_parameter(Name="/timers/dev/deployed")
    refused = deployed.make("destroy", "STAGE=dev", check=False)
    assert "make deploy STAGE=dev" in refused
    output = deployed.make("deploy", "STAGE=dev")
    assert url(output) == where
    assert "API keys exist" in output
    kept = DynamoApiKeys(deployed.client("dynamodb"), "timers-dev-tenants").all()
    assert len(kept) == len({key.id for key in kept}) <= 2


def test_far_timer_is_on_time(
    deployed: Deployed,
    receivers: Receivers,
    far: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A webhook is on time although its schedule is only precise to a minute."""
    read = deployed.delivered(far["id"], FAR + 30)
    (attempt,) = read["attempts"]
    report(f"A timer of {FAR} s, schedules 60 s coarse: {attempt['lateness']:.2f} s late.", capsys)
    assert 0 <= attempt["lateness"] < 10
    (arrival,) = receivers.arrivals(far["id"])
    assert arrival.at >= datetime.fromisoformat(far["fire_at"])


def test_reclaims_a_timer_of_a_killed_worker(
    deployed: Deployed, receivers: Receivers, lost: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A webhook whose worker was killed is sent again, and both attempts are recorded."""
    if lost is None:
        pytest.skip(IN_DOCKER)
    read = deployed.delivered(lost, LOST)
    first, second = receivers.arrivals(lost)
    assert (first.headers["timer-attempt"], second.headers["timer-attempt"]) == ("1", "2")
    assert [attempt["error"] for attempt in read["attempts"]] == ["worker lost", None]
    again = (second.at - first.at).total_seconds()
    report(f"A webhook whose worker was killed: sent again after {again:.0f} s.", capsys)


def test_schedules_are_deleted_after_they_fire(deployed: Deployed, far: dict[str, Any]) -> None:
    """The schedule of a delivered timer is deleted."""
    wait_until(lambda: f"{far['id']}.1" not in deployed.schedules(), 30)


def test_destroy_deletes_everything(deployed: Deployed, dev: tuple[str, str]) -> None:
    """`make destroy` deletes all resources and may be repeated."""
    assert "timers-localstack is deleted." in deployed.make("destroy", "STAGE=localstack")
    functions = deployed.client("lambda").list_functions()["Functions"]
    assert [it for it in functions if it["FunctionName"].startswith("timers-localstack")] == []
    tables = deployed.client("dynamodb").list_tables()["TableNames"]
    assert [name for name in tables if name.startswith("timers-localstack")] == []
    groups = deployed.client("scheduler").list_schedule_groups()["ScheduleGroups"]
    assert "timers-localstack" not in [group["Name"] for group in groups]
    assert requests.get(f"{deployed.url}/health", timeout=30).status_code in (403, 404)
    assert "timers-localstack is not deployed here." in deployed.make("destroy", "STAGE=localstack")
