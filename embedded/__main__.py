"""Composition root of the embedded engine: `python -m embedded` serves Timers on this machine."""

import logging
import os
import re
import resource
import secrets
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

try:
    from app import app
    from chalicelib import signing, timers, wiring
    from chalicelib.errors import Unavailable
    from chalicelib.guard import LOOPBACK, InvalidTargets, Targets
    from chalicelib.service import Service
    from chalicelib.webhook import WebhookSender
    from chalicelib.wiring import Parts, new_id, now
    from embedded import terminal
    from embedded.engine import Engine
    from embedded.server import LOCAL_HOSTS, Server, application
    from embedded.sqlite import DATABASE, SqliteStore, Unusable
except ModuleNotFoundError as missing:
    name = str(missing.name).partition(".")[0]
    sys.exit(f"{name} is missing: run `make run`, or pip install -r requirements-run.txt.")


UPKEEP = timedelta(seconds=10)
"""How long one sweep may take before others that wait for the same thread have their turn."""


log = logging.getLogger(__name__)

SIGNALS = {signal.SIGTERM, signal.SIGINT}

FILES = 4096
"""How many files this process may have open, if the system lets it."""


class BadSetting(Exception):
    """A setting can't be used; `str(error)` is one sentence."""


@dataclass(frozen=True)
class Settings:
    """What the operator decides."""

    host: str
    port: int
    database: Path
    targets: Targets

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """Read HOST, PORT, TIMERS_DB and ALLOWED_TARGETS; raise BadSetting."""
        host = environ.get("HOST", "127.0.0.1")
        if host not in LOCAL_HOSTS:
            raise BadSetting(
                f"HOST={host} is not this machine alone, and without keys Timers serves no other:"
                " use 127.0.0.1, localhost or ::1."
            )
        port = environ.get("PORT", "8000")
        if not (re.fullmatch("[0-9]{1,5}", port) and int(port) < 65536):
            raise BadSetting(f"PORT must be a number from 0 to 65535, not {port[:20]!r}.")
        try:
            targets = Targets.parse(environ.get("ALLOWED_TARGETS", LOOPBACK))
        except InvalidTargets as error:
            raise BadSetting(str(error)) from None
        database = Path(environ.get("TIMERS_DB", DATABASE))
        return cls(host, int(port), database, targets)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; what can't be started ends with one sentence and status 1."""
    stop = threading.Event()
    _stop_on_signals(stop)
    try:
        settings = Settings.read(os.environ)
        store = SqliteStore(settings.database)
    except (BadSetting, Unusable, Unavailable) as error:
        sys.exit(str(error))
    try:
        server = Server(application(app, now), settings.host, settings.port)
    except OSError as error:
        store.close()
        sys.exit(f"Port {settings.port} of {settings.host} can't be used: {error.strerror}.")
    _allow_many_files()
    with terminal.attached():
        try:
            run(settings, store, server, stop)
        except Unavailable as error:  # while it starts: later on it is met where it happens
            sys.exit(str(error))


def run(settings: Settings, store: SqliteStore, server: Server, stop: threading.Event) -> None:
    """Take up what an earlier process left, then fire and serve until `stop` is set."""
    # glibc's resolver is the one part of a webhook that no deadline of ours can cut short.
    os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:2")
    engine = Engine(store, now)
    entropy = secrets.token_bytes(signing.ENTROPY)
    signing.ensure(store.secrets, timers.DEFAULT_TENANT, entropy)
    sender = WebhookSender(settings.targets, secrets_of=store.secrets.of)

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise Unavailable("Timers is being stopped.")

    service = Service(store, engine, sender, clock=now, new_id=new_id, pause=pause)
    wiring.install(
        Parts(service=service, targets=settings.targets, anonymous=timers.DEFAULT_TENANT)
    )
    for timer in store.claimed():
        service.take_back(timer)
    store.replace_all([timers.postponed(timer, timer.due_at) for timer in store.postponed()])

    def upkeep() -> bool:
        return service.sweep(now() + UPKEEP) + store.purge(now()) > 0

    engine.start(service.deliver, upkeep)
    http = threading.Thread(target=_serve, args=(server, stop), name="http", daemon=True)
    http.start()
    _say(_greeting(settings.host, server.effective_port))
    stop.wait()
    broken = not http.is_alive()
    _say("Finishing what is being sent …")
    # The engine first: what it is sending may be on its way to the receiver of this very server.
    engine.stop()
    server.finish()
    store.close()
    if broken:
        sys.exit("The HTTP server broke; what it said stands above.")


def _stop_on_signals(stop: threading.Event) -> None:
    # A thread waits for them: a handler may run in the middle of anything, also of `Event.set`.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # in all threads, for they inherit it
    threading.Thread(target=_await_signals, args=(stop,), name="signals", daemon=True).start()


def _await_signals(stop: threading.Event) -> None:
    while True:
        number = signal.sigwait(SIGNALS)
        # A second Ctrl-C ends it at once. A second SIGTERM is no second wish: make, and whoever
        # stops a whole group, send one each.
        if number == signal.SIGINT and stop.is_set():
            os._exit(128 + number)
        stop.set()


def _serve(server: Server, stop: threading.Event) -> None:
    try:
        server.run()
    except Exception:
        log.exception("http broke")
    finally:
        stop.set()


def _greeting(host: str, port: int) -> str:
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    body = f'{{"seconds": 5, "url": "{url}/_receiver/hello"}}'
    return (
        f"Timers is ready at {url}. Set a timer of 5 seconds and watch it arrive here:\n"
        f"  curl {url}/timers -H 'content-type: application/json' -d '{body}'"
    )


def _say(words: str) -> None:
    # A terminal that is gone, or has no such letters, must not keep us from stopping cleanly.
    with suppress(OSError, UnicodeError):
        print(words, flush=True)


def _allow_many_files() -> None:
    # Each connection and each webhook is one; where 256 is the habit, a burst would run out.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    main()
