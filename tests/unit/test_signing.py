"""Signatures, verified by the standardwebhooks library."""

import time
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from chalicelib.core import signing
from chalicelib.core.errors import OperatorError
from chalicelib.core.signing import MAX_SECRETS
from chalicelib.service import credentials
from tests.contracts.secrets import secret
from tests.support.fakes import FakeSecrets

SAMPLE = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""The secret of the specification's example, which its libraries are tested with."""

ENTROPY = st.binary(min_size=24, max_size=64)
IDS = st.from_regex(r"[0-9a-f-]{1,36}", fullmatch=True)
BODIES = st.text(st.characters(exclude_categories=["Cs"])).map(str.encode)


def verifies(by: str, signature: str, id: str, timestamp: int, body: bytes) -> bool:
    """Say whether a receiver with this secret accepts the webhook."""
    headers = {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }
    try:
        Webhook(by).verify(body, headers, json_parse=False)
    except WebhookVerificationError:
        return False
    return True


def test_equals_the_example_of_the_specification() -> None:
    """The signature equals the published one, and the library's."""
    id, timestamp, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, '{"test": 2432232314}'
    signature = signing.sign([SAMPLE], id, timestamp, body.encode())
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    moment = datetime.fromtimestamp(timestamp, UTC)
    assert signature == Webhook(SAMPLE).sign(id, moment, body)


@given(entropy=ENTROPY, id=IDS, body=BODIES)
def test_a_signature_verifies(entropy: bytes, id: str, body: bytes) -> None:
    """A signature verifies with any secret, id and body."""
    made, now = signing.new_secret(entropy), int(time.time())
    assert verifies(made, signing.sign([made], id, now, body), id, now, body)


@given(
    numbers=st.lists(st.integers(0, 255), min_size=1, max_size=MAX_SECRETS, unique=True),
    body=BODIES,
)
def test_each_of_several_secrets_verifies(numbers: Sequence[int], body: bytes) -> None:
    """There is one signature for each secret, in order; a receiver needs only one."""
    now = int(time.time())
    several = [secret(number) for number in numbers]
    signature = signing.sign(several, "id-1", now, body)
    assert all(verifies(one, signature, "id-1", now, body) for one in several)
    assert signature.split(" ") == [signing.sign([one], "id-1", now, body) for one in several]


@given(
    steps=st.lists(st.tuples(st.sampled_from(["add", "retire"]), st.integers(0, 7)), max_size=30)
)
def test_only_current_secrets_verify(steps: Sequence[tuple[str, int]]) -> None:
    """After any sequence of adding and retiring, a retired secret verifies nothing."""
    kept, now, valid = FakeSecrets(), int(time.time()), set[int]()
    for step, number in steps:
        try:
            getattr(kept, step)("acme", secret(number))
        except OperatorError:
            continue
        valid = valid | {number} if step == "add" else valid - {number}
    signature = signing.sign(kept.of("acme"), "id-1", now, b"{}")
    for number in range(8 if valid else 0):
        assert verifies(secret(number), signature, "id-1", now, b"{}") is (number in valid)
    assert bool(signature) is bool(valid)


@given(body=BODIES, place=st.integers(0), bit=st.integers(0, 7))
def test_a_changed_body_fails(body: bytes, place: int, bit: int) -> None:
    """A single changed bit invalidates the signature."""
    now = int(time.time())
    signature = signing.sign([SAMPLE], "id-1", now, body + b"{}")
    changed = bytearray(body + b"{}")
    changed[place % len(changed)] ^= 1 << bit
    try:
        changed.decode()
    except UnicodeDecodeError:
        return  # the library accepts valid UTF-8 only
    assert not verifies(SAMPLE, signature, "id-1", now, bytes(changed))


def test_a_changed_id_timestamp_or_secret_fails() -> None:
    """The signature covers id and timestamp, so an old webhook can't be replayed as a new one."""
    now = int(time.time())
    signature = signing.sign([SAMPLE], "id-1", now, b"{}")
    assert verifies(SAMPLE, signature, "id-1", now, b"{}")
    assert not verifies(SAMPLE, signature, "id-2", now, b"{}")
    assert not verifies(SAMPLE, signature, "id-1", now + 1, b"{}")
    assert not verifies(SAMPLE, signature, "id-1", now, b"{} ")
    other = "B" if signature[3] == "A" else "A"
    assert not verifies(SAMPLE, signature[:3] + other + signature[4:], "id-1", now, b"{}")
    assert not verifies(secret(1), signature, "id-1", now, b"{}")
    old = now - 400
    assert not verifies(SAMPLE, signing.sign([SAMPLE], "id-1", old, b"{}"), "id-1", old, b"{}")


@given(entropy=ENTROPY)
def test_parses_a_secret(entropy: bytes) -> None:
    """Missing padding and surrounding whitespace make no difference."""
    made = signing.new_secret(entropy)
    assert made == f"whsec_{b64encode(entropy).decode()}"
    for text in (made, made.rstrip("="), f" {made}\n"):
        assert signing.parse_secret(text) == made


def encoded(size: int) -> str:
    return f"whsec_{b64encode(bytes(size)).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        encoded(23),
        encoded(65),
        encoded(32).removeprefix("whsec_"),
        encoded(32).replace("whsec_", "WHSEC_"),
        f"whsec_{encoded(32)}",
        encoded(32)[:-4] + "A",
        encoded(32)[:-4] + "A-_A",
        encoded(32).replace("AA", "=A", 1),
        encoded(32).replace("AA", "A A", 1),
        encoded(32).replace("A", "ä"),
        encoded(32).replace("A", "Ａ"),
    ],
)
def test_rejects_invalid_secrets(text: str) -> None:
    """The error states the format and does not quote the text, because it may be a secret."""
    with pytest.raises(OperatorError) as refused:
        signing.parse_secret(text)
    expected = "A secret is whsec_ followed by the base64 of 24 to 64 bytes."
    assert str(refused.value) == expected


def test_a_secret_uses_every_random_byte() -> None:
    """Two secrets differ if any byte of their entropy differs."""
    made = {
        signing.new_secret(bytes(n) + b"\1" + bytes(31 - n)) for n in range(signing.SECRET_ENTROPY)
    }
    assert len(made) == signing.SECRET_ENTROPY == 32


def test_adds_and_retires_in_one_command() -> None:
    """Adding comes before retiring, so even a single secret can be replaced."""
    kept = FakeSecrets()
    with pytest.raises(OperatorError, match="Tenant acme has no secret"):
        credentials.change_secrets(kept, "acme", bytes(32), add=None, retire=None)
    assert credentials.change_secrets(kept, "acme", bytes(32), add="new", retire=None) == [
        secret(0)
    ]
    given = secret(1).rstrip("=")
    assert credentials.change_secrets(kept, "acme", bytes(32), add=given, retire=secret(0)) == [
        secret(1)
    ]
    assert credentials.change_secrets(kept, "acme", bytes(32), add=None, retire=None) == [secret(1)]
