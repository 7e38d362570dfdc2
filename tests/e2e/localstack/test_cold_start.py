"""A short `make bench-lambda`: its report, and the modules that each function loads."""

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


def test_report_has_a_row_for_each_function(measured: Measured) -> None:
    """The section names its command and has one row of numbers for each function."""
    text = cold_start.section(measured, 1, EVENTS)
    assert "`make bench-lambda`" in text
    assert f"{measured.zip_bytes:,} bytes" in text
    rows = re.findall(r"^\| (\w+) \|(.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == ["Function", *FUNCTIONS]
    for _, cells in rows[1:]:
        spread, mean = r" \d+ · \d+ \|", r" \d+\.\d \|"
        assert re.fullmatch(f"({spread}){{4}}({mean}){{2}} \\d+ \\| \\d+ ", cells), cells


def test_measured_functions_do_their_work(measured: Measured) -> None:
    """Each measured function does its work, with and without .pyc files."""
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
def test_functions_do_not_load_unused_modules(measured: Measured, function: str) -> None:
    """Only `deliver` loads the sender and requests; no function loads boto3 or the OpenAPI code."""
    loaded = life(measured, function).modules
    assert {"chalicelib.service.worker", "botocore.client", "aws_lambda_powertools"} <= loaded
    assert not loaded & {"boto3", "s3transfer", "chalicelib.http.openapi", "sqlite3", "standalone"}
    senders = {"requests", "charset_normalizer", "chalicelib.webhook.sender"}
    assert loaded & senders == (senders if function == "deliver" else set())


def test_functions_call_only_the_services_they_need(measured: Measured) -> None:
    """A function calls only the AWS services that it needs, as creating a client is slow."""
    assert {name: set(life(measured, name).services) for name in FUNCTIONS} == {
        "API": {"dynamodb", "sqs", "scheduler"},
        "authorizer": {"dynamodb"},
        "fire": {"dynamodb", "sqs"},
        "deliver": {"dynamodb"},
        "sweep": {"dynamodb"},
    }
