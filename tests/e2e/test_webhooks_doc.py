"""docs/webhooks.md: its verification code, and its table of headers.

The Python and Node examples run as they are printed. The Go example does not run.
"""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from chalicelib.core import signing
from tests.contracts.secrets import secret
from tests.support.processes import ROOT

PAGE = (ROOT / "docs/webhooks.md").read_text()

OLD, NEW = secret(1), secret(2)

BODY = '{"Zürich": "☃", "n": 1.0}'

RUNNERS = {
    "python": """
import json, sys
print(json.dumps([verify(s, h, b.encode()) for s, h, b in json.load(sys.stdin)]))
""",
    "js": """
const cases = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map(([s, h, b]) => verify(s, h, Buffer.from(b)))));
""",
}
"""Programs that call `verify` in each language: cases on stdin, results on stdout, as JSON."""

Case = tuple[str, dict[str, str], str]


def block(language: str) -> str:
    """Return the page's only code block in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def run(language: str, cases: list[Case]) -> list[bool]:
    """Run the code block of a language; return its result for each case."""
    commands = {"python": [sys.executable, "-c"], "js": ["node", "--input-type=commonjs", "--eval"]}
    if shutil.which(commands[language][0]) is None:
        pytest.skip(f"{commands[language][0]} is not installed, so its example was not run")
    ended = subprocess.run(
        [*commands[language], block(language) + RUNNERS[language]],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return list(json.loads(ended.stdout))


def signed(secrets: list[str], age: int = 0, body: str = BODY) -> dict[str, str]:
    """Return the headers of a webhook sent `age` seconds ago."""
    at = int(time.time()) - age
    return {
        "webhook-id": "id-1",
        "webhook-timestamp": str(at),
        "webhook-signature": signing.sign(secrets, "id-1", at, body.encode()),
    }


@pytest.mark.parametrize("language", RUNNERS)
def test_examples_accept_our_signatures(language: str) -> None:
    """They accept empty bodies, clock skew, either of two secrets and unknown versions."""
    both = signed([NEW, OLD])
    unknown = both | {"webhook-signature": f"v1a,x v2 {both['webhook-signature']}"}
    cases: list[Case] = [
        (OLD, signed([OLD]), BODY),
        (OLD, signed([OLD], body=""), ""),
        (OLD, signed([OLD], age=240), BODY),
        (OLD, signed([OLD], age=-240), BODY),
        (OLD, both, BODY),
        (NEW, both, BODY),
        (NEW, unknown, BODY),
    ]
    assert run(language, cases) == [True] * len(cases)


@pytest.mark.parametrize("language", RUNNERS)
def test_examples_reject_anything_else(language: str) -> None:
    """They reject changed bodies or ids, bad timestamps, retired secrets and bad headers."""
    good = signed([NEW])
    timestamps = ["", "now", "9" * 5000, "-1", "1e9", "²", good["webhook-timestamp"] + ".0"]
    signatures = ["", " ", "v1", "v1,", "v1,ä", good["webhook-signature"][3:], "v1,v1,"]
    cases: list[Case] = [
        (NEW, good, BODY + " "),
        (NEW, good, json.dumps(json.loads(BODY))),
        (NEW, good, ""),
        (NEW, signed([NEW], age=400), BODY),
        (NEW, signed([NEW], age=-400), BODY),
        (OLD, good, BODY),
        (NEW, good | {"webhook-id": "id-2"}, BODY),
        (NEW, {}, BODY),
        *((NEW, good | {"webhook-timestamp": it}, BODY) for it in timestamps),
        *((NEW, good | {"webhook-signature": it}, BODY) for it in signatures),
    ]
    assert run(language, cases) == [False] * len(cases)


def test_documents_every_header() -> None:
    """The table lists all headers that the sender adds."""
    sender = (ROOT / "chalicelib/webhook/sender.py").read_text()
    added = set(re.findall(r'"((?:webhook|timer)-[a-z-]+)":', sender))
    assert added == set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE))
