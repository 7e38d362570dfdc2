"""`make bench-lambda` in short: what is told of each function, and what it loads; no times."""

import re

import pytest

from bench import cold_start
from bench.cold_start import FUNCTIONS, WITH, WITHOUT, Life, Measured

EVENTS = 2


@pytest.fixture(scope="module")
def measured() -> Measured:
    return cold_start.measure(1, EVENTS)


def life(measured: Measured, function: str) -> Life:
    return measured.lives[function, WITH][-1]


def test_every_function_has_its_figures(measured: Measured) -> None:
    """The section says how it was measured, and has one row for each function, full of numbers."""
    text = cold_start.section(measured, 1, EVENTS)
    assert "`make bench-lambda`: 1 cold starts of each kind, in turn, then 2 events" in text
    assert f"The zip has {measured.zip_bytes:,} bytes" in text
    rows = re.findall(r"^\| (\w+) \|(.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == ["Function", *FUNCTIONS]
    for _, cells in rows[1:]:
        spread, mean = r" \d+ · \d+ \|", r" \d+\.\d \|"
        assert re.fullmatch(f"({spread}){{4}}({mean}){{2}} \\d+ \\| \\d+ ", cells), cells


def test_what_is_measured_is_work(measured: Measured) -> None:
    """The functions do what they are for, with the .pyc as without."""
    for kind in (WITH, WITHOUT):
        answers = {name: measured.lives[name, kind][-1].answer for name in FUNCTIONS}
        assert answers["API"]["statusCode"] == 201
        (statement,) = answers["authorizer"]["policyDocument"]["Statement"]
        assert statement["Effect"] == "Allow"
        assert statement["Resource"]
        assert measured.lives["deliver", kind][-1].webhooks == 1
    assert life(measured, "fire").calls == 2
    assert life(measured, "sweep").calls == 32


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_loads_what_it_does_not_use(measured: Measured, function: str) -> None:
    """The sender and requests are for `deliver` alone; boto3, on top of botocore, and the making of
    the contract for none of these events."""
    loaded = life(measured, function).modules
    assert {"chalicelib.service.service", "botocore.client", "aws_lambda_powertools"} <= loaded
    assert not loaded & {"boto3", "s3transfer", "chalicelib.http.openapi", "sqlite3", "standalone"}
    senders = {"requests", "charset_normalizer", "chalicelib.webhook.sender"}
    assert loaded & senders == (senders if function == "deliver" else set())


def test_functions_call_the_services_they_need(measured: Measured) -> None:
    """A client takes long to make: who needs none of the Scheduler or SQS makes none."""
    assert {name: set(life(measured, name).services) for name in FUNCTIONS} == {
        "API": {"dynamodb", "sqs", "scheduler"},
        "authorizer": {"dynamodb"},
        "fire": {"dynamodb", "sqs"},
        "deliver": {"dynamodb"},
        "sweep": {"dynamodb"},
    }
