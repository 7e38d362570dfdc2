"""`timers serve` and the former `python -m embedded`."""

import pytest

from tests.support.processes import run_module


@pytest.mark.parametrize(("option", "setting"), [("--port", "PORT"), ("--host", "HOST")])
def test_options_override_the_environment(option: str, setting: str) -> None:
    """An option is validated like the environment variable that it replaces."""
    failed = run_module("cli", "serve", option, "192.0.2.1", HOST="127.0.0.1", PORT="0")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert setting in failed.stderr
    assert "192.0.2.1" in failed.stderr


def test_embedded_names_its_successor() -> None:
    """The former command still starts the server, after a line with the new command."""
    failed = run_module("embedded", PORT="x")
    assert failed.returncode == 1
    notice, error = failed.stderr.splitlines()
    assert "timers serve" in notice
    assert "PORT" in error
