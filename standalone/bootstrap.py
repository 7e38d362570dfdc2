"""Composition root of the standalone server: settings, start, stop."""

import gc
import logging
import os
import re
import resource
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from chalicelib.core.timer import DEFAULT_TENANT, RETENTION

try:
    from app import app
    from chalicelib.aws import bootstrap
    from chalicelib.aws.bootstrap import Dependencies, new_id, now
    from chalicelib.core import signing
    from chalicelib.core.errors import CommandError, Unavailable
    from chalicelib.core.targets import LOOPBACK_TARGETS, Targets
    from chalicelib.service.service import Service, in_threads
    from chalicelib.webhook.sender import SecretsCache, WebhookSender
    from standalone import log_lines
    from standalone.greenlets import gather, run_in_thread
    from standalone.rate_limit import DEFAULT_RATE, MAX_RATE, RateLimiter
    from standalone.receiver import RECEIVER_PATH, Receiver
    from standalone.scheduler import HeapScheduler
    from standalone.server import LOCAL_HOSTS, Server, Wsgi, application
    from standalone.sqlite.connection import DEFAULT_DATABASE
    from standalone.sqlite.timer_store import SqliteTimerStore
    from standalone.sqlite.writer import MAX_COMMIT_BATCH
except ModuleNotFoundError as missing:
    name = str(missing.name).partition(".")[0]
    sys.exit(f"{name} is missing: run `make run`, or pip install -r requirements-run.txt.")


MAX_SWEEP = timedelta(seconds=10)
"""How long one sweep may take before others that wait for the same thread have their turn."""

SECRETS_TTL = timedelta(seconds=1)
"""How long secrets are remembered, and so how long one that was retired may still sign."""

log = logging.getLogger(__name__)

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

MAX_OPEN_FILES = 4096
"""How many files this process may have open, if the system lets it."""


@dataclass(frozen=True)
class Settings:
    """What the operator decides."""

    host: str
    port: int
    database: Path
    targets: Targets
    keys: bool = False
    """Whether requests need one."""
    rate: int = 0
    """Requests a second for each key, or without keys for all together; 0 for any number."""
    retention: timedelta = RETENTION
    """How long finished timers are kept, at most `timers.RETENTION`."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """Read what the README lists as settings; raise BadSetting."""
        auth = environ.get("AUTH", "none")
        if auth not in ("none", "keys"):
            raise CommandError(f"AUTH must be none or keys, not {auth[:20]!r}.")
        keys = auth == "keys"
        host = environ.get("HOST", "127.0.0.1")
        if host not in LOCAL_HOSTS and not keys:
            raise CommandError(
                f"HOST={host} is not this machine alone, and without keys Timers serves no other:"
                " set AUTH=keys, or use 127.0.0.1, localhost or ::1."
            )
        port = _number("PORT", environ.get("PORT", "8000"), 65535)
        rate = _number("RATE", environ.get("RATE", str(DEFAULT_RATE if keys else 0)), MAX_RATE)
        most = RETENTION.days
        days = _number("RETENTION", environ.get("RETENTION", str(most)), most)
        reachable = LOOPBACK_TARGETS if host in LOCAL_HOSTS else ""
        try:
            targets = Targets.parse(environ.get("ALLOWED_TARGETS", reachable))
        except CommandError as error:
            raise CommandError(str(error)) from None
        database = Path(environ.get("TIMERS_DB", DEFAULT_DATABASE))
        return cls(host, port, database, targets, keys, rate, timedelta(days=days))

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can reach the server."""
        return self.host in LOCAL_HOSTS


def _number(name: str, text: str, limit: int) -> int:
    if not (re.fullmatch("[0-9]{1,9}", text) and int(text) <= limit):
        raise CommandError(f"{name} must be a number from 0 to {limit}, not {text[:20]!r}.")
    return int(text)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; what can't be started ends with one sentence and status 1."""
    stop = threading.Event()
    _stop_on_signals(stop)
    try:
        settings = Settings.read(os.environ)
        store = SqliteTimerStore(settings.database)
    except (CommandError, Unavailable) as error:
        sys.exit(str(error))
    try:
        server = Server(door(settings, store), settings.host, settings.port)
    except OSError as error:
        store.close()
        sys.exit(f"Port {settings.port} of {settings.host} can't be used: {error.strerror}.")
    _allow_many_files()
    gc.freeze()  # what was imported stays: looking through it took the collector 10 ms each time
    with log_lines.attached():
        try:
            run(settings, store, server, stop)
        except Unavailable as error:  # while it starts: later on it is met where it happens
            sys.exit(str(error))


def door(settings: Settings, store: SqliteTimerStore) -> Wsgi:
    """Return the application as the settings let people in."""
    return application(
        app,
        keys=store.keys if settings.keys else None,
        limit=RateLimiter(settings.rate, time.monotonic_ns) if settings.rate else None,
        receiver=Receiver(now, store.secrets.of) if settings.is_local else None,
    )


def run(settings: Settings, store: SqliteTimerStore, server: Server, stop: threading.Event) -> None:
    """Take up what an earlier process left, then fire and serve until `stop` is set."""
    # glibc's resolver is the one part of a webhook that no deadline of ours can cut short.
    os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:2")
    engine = HeapScheduler(store, now)
    entropy = secrets.token_bytes(signing.SECRET_ENTROPY)
    signing.ensure_secret(store.secrets, DEFAULT_TENANT, entropy)
    secrets_of = SecretsCache(store.secrets.of, now, SECRETS_TTL).of
    sender = WebhookSender(settings.targets, secrets_of=secrets_of, waiting=engine.loop)

    def pause(seconds: float) -> None:
        if run_in_thread(partial(stop.wait, seconds)):
            raise Unavailable("Timers is being stopped.")

    service = Service(
        store,
        engine,
        sender,
        clock=now,
        new_id=new_id,
        pause=pause,
        # What is written at the same time shares a commit.
        side_by_side=partial(gather, elsewhere=in_threads),
    )
    anonymous = None if settings.keys else DEFAULT_TENANT
    receiver = RECEIVER_PATH if settings.is_local else None
    bootstrap.install(
        Dependencies(
            service=service, targets=settings.targets, anonymous=anonymous, receiver=receiver
        )
    )
    for timer in store.claimed():
        service.reclaim(timer)
    while put_off := store.requeued_by_sweep(MAX_COMMIT_BATCH):
        store.replace_all([timer.with_next_check(timer.due_at) for timer in put_off])

    def upkeep() -> bool:
        swept = service.sweep(now() + MAX_SWEEP)
        # As they are stored, all have the longest retention.
        return swept + store.purge(now() + RETENTION - settings.retention) > 0

    engine.start(service.deliver, upkeep)
    http = threading.Thread(target=_serve, args=(server, stop), name="http", daemon=True)
    http.start()
    has_keys = settings.keys and bool(store.keys.all())
    _say(_greeting(settings, _url(server.effective_host, server.effective_port), has_keys))
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
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # in all threads, for they inherit it
    threading.Thread(target=_await_signals, args=(stop,), name="signals", daemon=True).start()


def _await_signals(stop: threading.Event) -> None:
    while True:
        number = signal.sigwait(STOP_SIGNALS)
        # A second Ctrl-C ends it at once. A second SIGTERM is no second wish: make, and whoever
        # stops a whole group, send one each.
        if number == signal.SIGINT and stop.is_set():
            os._exit(128 + number)
        stop.set()


def _serve(server: Server, stop: threading.Event) -> None:
    try:
        server.run()
    except Exception:
        log.exception("http server crashed")
    finally:
        stop.set()


def _greeting(settings: Settings, url: str, has_keys: bool) -> str:
    wanted = key = ""
    if settings.keys:
        wanted = " Requests need a key"
        wanted += "." if has_keys else ", and there is none yet: `make key` makes one."
        key = ' -H "authorization: Bearer $TIMERS_KEY"'
    to, then = "https://example.com/hook", ""
    if settings.is_local:
        to, then = f"{url}/_receiver/hello", " and watch it arrive here"
    body = f'{{"seconds": 5, "url": "{to}"}}'
    return (
        f"Timers is ready at {url}.{wanted} Set a timer of 5 seconds{then}:\n"
        f"  curl {url}/timers{key} -H 'content-type: application/json' -d '{body}'"
    )


def _url(host: str, port: int) -> str:
    address = ip_address(host)
    if address.is_unspecified:  # where it listens, but nobody can connect to it
        address = ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def _say(words: str) -> None:
    # A terminal that is gone, or has no such letters, must not keep us from stopping cleanly.
    with suppress(OSError, UnicodeError):
        print(words, flush=True)


def _allow_many_files() -> None:
    # Each connection and each webhook is one; where 256 is the habit, a burst would run out.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
