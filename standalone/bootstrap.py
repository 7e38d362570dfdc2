"""Composition root of the standalone server: builds it, starts it, stops it."""

import errno
import gc
import logging
import os
import resource
import secrets
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from ipaddress import ip_address

try:
    from app import app
    from chalicelib.core import signing
    from chalicelib.core.errors import OperatorError, Unavailable
    from chalicelib.core.timer import DEFAULT_TENANT, RETENTION, timer_id
    from chalicelib.core.urls import authority_of
    from chalicelib.runtime import Dependencies, install, now
    from chalicelib.service.commands import Commands
    from chalicelib.service.concurrency import in_threads
    from chalicelib.service.credentials import ensure_secret
    from chalicelib.service.worker import Worker
    from chalicelib.webhook.secrets_cache import SecretsCache
    from chalicelib.webhook.sender import WebhookSender
    from standalone import log_lines
    from standalone.application import Application
    from standalone.entropy import random_bytes
    from standalone.greenlets import Hub, gather, run_in_thread
    from standalone.rate_limit import RateLimiter
    from standalone.receiver import RECEIVER_PATH, Receiver
    from standalone.scheduler import HeapScheduler
    from standalone.server import Server
    from standalone.settings import Settings
    from standalone.sqlite.timer_store import SqliteTimerStore
    from standalone.sqlite.writer import MAX_COMMIT_BATCH
except ModuleNotFoundError as missing:
    package = str(missing.name).partition(".")[0]
    sys.exit(f"{package} is missing: run `make run`, or pip install -r requirements-run.txt.")


MAX_SWEEP = timedelta(seconds=10)
"""How long one sweep may take; other work waits for the same thread."""

SECRETS_TTL = timedelta(seconds=1)
"""How long signing secrets are cached: a retired one may sign for this long."""

MAX_OPEN_FILES = 4096
"""The number of open files that this process asks the system to allow."""

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

log = logging.getLogger(__name__)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C. If the start fails, print the reason and exit with 1."""
    stop = threading.Event()
    _stop_on_signals(stop)
    try:
        settings = Settings.read(os.environ)
        store = SqliteTimerStore(settings.database)
    except (OperatorError, Unavailable) as error:
        sys.exit(str(error))
    hub = Hub()
    server = _bind(settings, store, hub)
    _raise_file_limit()
    gc.freeze()  # imported objects stay: each collection took 10 ms to scan them
    with log_lines.attached():
        try:
            Runner(settings, store, hub, server, stop).run()
        except Unavailable as error:  # at start only: later ones are handled where they occur
            sys.exit(str(error))


def _bind(settings: Settings, store: SqliteTimerStore, hub: Hub) -> Server:
    try:
        return Server(build_application(settings, store), hub, settings.host, settings.port)
    except OSError as error:
        store.close()
        hint = ""
        if error.errno == errno.EADDRINUSE:
            hint = " Set PORT to another one, or stop the process that uses it."
        sys.exit(
            f"Timers can't listen on port {settings.port} of {settings.host}:"
            f" {error.strerror}.{hint}"
        )


def build_application(settings: Settings, store: SqliteTimerStore) -> Application:
    """Return the application, with the keys, rate and receiver of these settings."""
    return Application(
        app,
        keys=store.keys if settings.keys else None,
        limit=RateLimiter(settings.rate, time.monotonic_ns) if settings.rate else None,
        receiver=Receiver(now, store.secrets.of) if settings.is_local else None,
    )


class Runner:
    """Runs the HTTP server and the scheduler, both on `hub`, until `stop` is set."""

    def __init__(
        self,
        settings: Settings,
        store: SqliteTimerStore,
        hub: Hub,
        server: Server,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._store = store
        self._hub = hub
        self._server = server
        self._stop = stop
        self._scheduler = HeapScheduler(store, hub, now)
        # Writes made at the same time share a commit.
        self._concurrently = partial(gather, elsewhere=in_threads)
        self._worker = self._build_worker()
        self._has_crashed = False
        self._loop = threading.Thread(target=self._run_hub, name="hub", daemon=True)

    def run(self) -> None:
        """Recover an earlier process's timers, serve until `stop`, then finish work in progress."""
        self._install()
        self._recover()
        self._loop.start()
        self._scheduler.start(self._worker.deliver, self._upkeep)
        self._server.start()
        self._greet()
        self._stop.wait()
        if self._has_crashed:
            sys.exit("The server crashed: the log above says why.")
        self._finish()

    def _build_commands(self) -> Commands:
        return Commands(
            self._store,
            self._scheduler,
            targets=self._settings.targets,
            new_id=_new_id,
            concurrently=self._concurrently,
        )

    def _build_worker(self) -> Worker:
        return Worker(
            self._store,
            self._scheduler,
            self._build_sender(),
            clock=now,
            pause=self._pause,
            concurrently=self._concurrently,
        )

    def _build_sender(self) -> WebhookSender:
        # No deadline of ours can interrupt glibc's resolver, so it gets short timeouts of its own.
        os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:2")
        secrets_of = SecretsCache(self._store.secrets.of, now, SECRETS_TTL).of
        return WebhookSender(
            self._settings.targets,
            self._settings.tls,
            proxy=self._settings.proxy,
            secrets_of=secrets_of,
            waiting=self._hub,
        )

    def _install(self) -> None:
        install(
            Dependencies(
                commands=self._build_commands(),
                worker=self._worker,
                clock=now,
                anonymous=None if self._settings.keys else DEFAULT_TENANT,
                receiver=RECEIVER_PATH if self._settings.is_local else None,
            )
        )

    def _recover(self) -> None:
        entropy = secrets.token_bytes(signing.SECRET_ENTROPY)
        ensure_secret(self._store.secrets, DEFAULT_TENANT, entropy)
        for timer in self._store.claimed():
            self._worker.reclaim(timer)
        while postponed := self._store.requeued_by_sweep(MAX_COMMIT_BATCH):
            self._store.replace_all([timer.with_next_check(timer.due_at) for timer in postponed])

    def _pause(self, seconds: float) -> None:
        if run_in_thread(partial(self._stop.wait, seconds)):
            raise Unavailable("Timers is stopping.")

    def _upkeep(self) -> bool:
        """Sweep and purge; return whether either had something to do."""
        swept = self._worker.sweep(now() + MAX_SWEEP)
        # The store keeps every timer for RETENTION; a shorter one purges that much ahead.
        return swept + self._store.purge(now() + RETENTION - self._settings.retention) > 0

    def _run_hub(self) -> None:
        try:
            self._hub.run()
        except Exception:  # after any crash the process must stop
            log.exception("event loop crashed")
            self._has_crashed = True
            self._stop.set()

    def _greet(self) -> None:
        url = _url(self._server.host, self._server.port)
        has_keys = self._settings.keys and bool(self._store.keys.all())
        _print(_greeting(self._settings, url, has_keys))

    def _finish(self) -> None:
        _print("Stopping: finishing the webhooks in progress …")
        # The scheduler first: its webhooks may be on their way to this server's own receiver.
        self._scheduler.stop()
        self._server.finish()
        self._store.close()  # requests that are still in progress get an error
        self._hub.stop()
        self._loop.join()


def _new_id() -> str:
    return timer_id(now(), random_bytes(10))


def _stop_on_signals(stop: threading.Event) -> None:
    # A thread waits for them: a handler could interrupt anything, even `Event.set`.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # all later threads inherit it
    threading.Thread(target=_await_signals, args=(stop,), name="signals", daemon=True).start()


def _await_signals(stop: threading.Event) -> None:
    while True:
        number = signal.sigwait(STOP_SIGNALS)
        # A second Ctrl-C exits at once. A second SIGTERM does not: make and its shell each pass
        # one on.
        if number == signal.SIGINT and stop.is_set():
            os._exit(128 + number)
        stop.set()


def _greeting(settings: Settings, url: str, has_keys: bool) -> str:
    notes, header = "", ""
    if settings.keys:
        missing = "" if has_keys else ", and there is none yet: run `make key`"
        notes = f" Requests need an API key{missing}."
        header = ' -H "authorization: Bearer $TIMERS_KEY"'
    target, watch = "https://example.com/hook", ""
    if settings.is_local and settings.proxy is None:  # a proxy can't reach this machine
        target, watch = f"{url}/_receiver/hello", " and watch it arrive here"
    body = f'{{"seconds": 5, "url": "{target}"}}'
    return (
        f"Timers is ready at {url}. The console is at {url}/console.{_listens_on(settings)}{notes}"
        f" Set a timer for 5 seconds{watch}:\n"
        f"  curl {url}/timers{header} -H 'content-type: application/json' -d '{body}'"
    )


def _listens_on(settings: Settings) -> str:
    if settings.host not in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return ""
    return " It listens on all addresses, without TLS."


def _url(host: str, port: int) -> str:
    """Return the URL of a listening address; a wildcard address becomes loopback."""
    address = ip_address(host)
    if address.is_unspecified:
        address = ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{authority_of(str(address), port)}"


def _print(text: str) -> None:
    # A closed terminal, or one that can't show these characters, must not prevent a clean stop.
    with suppress(OSError, UnicodeError):
        print(text, flush=True)


def _raise_file_limit() -> None:
    # Each connection and each webhook is a file. Some systems allow 256: too few for a burst.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
