"""The settings of the standalone server."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from chalicelib.core.errors import OperatorError
from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
from standalone.settings import Settings

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
    ({"HOST": "Localhost"}, Settings("localhost", 8000, PATH, LOCAL)),
    ({"HOST": "[::1]"}, Settings("::1", 8000, PATH, LOCAL)),
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
def test_reads_settings(environ: dict[str, str], settings: Settings) -> None:
    """Defaults depend on AUTH and on whether HOST is local."""
    assert Settings.read(environ) == settings
    assert settings.is_local is (settings.host in ("127.0.0.1", "localhost", "::1"))


ELSEWHERE = ["0.0.0.0", "::", "*", "", "127.0.0.2", "127.1", "10.0.0.1", "localhost."]  # noqa: S104


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("auth", [{}, {"AUTH": "none"}])
def test_other_hosts_require_keys(host: str, auth: dict[str, str]) -> None:
    """A HOST that is not local is refused without AUTH=keys."""
    with pytest.raises(OperatorError, match=re.escape(f"HOST={host} requires AUTH=keys.")):
        Settings.read({"HOST": host, **auth})
    assert Settings.read({"HOST": host, "AUTH": "keys"}).host == host


@pytest.mark.parametrize("auth", ["", "key", "KEYS", "None", "off", "keys ", "x" * 5000])
def test_rejects_unknown_auth(auth: str) -> None:
    """An unknown AUTH is refused; it never means none."""
    with pytest.raises(OperatorError, match=r"^AUTH must be none or keys, not '.{0,20}'.$"):
        Settings.read({"AUTH": auth})


@pytest.mark.parametrize(
    "rate", ["", "-1", "many", "1.5", "1e3", "+5", "0x10", " 5", "٣", "100001", "9" * 5000, "inf"]
)
@pytest.mark.parametrize("auth", ["none", "keys"])
def test_rejects_bad_rates(auth: str, rate: str) -> None:
    """A RATE that is not a whole number from 0 to 100,000 is refused."""
    with pytest.raises(
        OperatorError, match=r"^RATE must be a number from 0 to 100000, not '.{0,20}'"
    ):
        Settings.read({"AUTH": auth, "RATE": rate})
