"""Composition root for AWS, and the place where the application finds its service."""

from chalicelib.errors import NotConfigured
from chalicelib.guard import Targets
from chalicelib.service import Service

_installed: tuple[Service, Targets] | None = None


def install(service: Service, targets: Targets) -> None:
    """Make this the service that app.py works with, and these the targets that it accepts."""
    global _installed  # noqa: PLW0603  # one application in a process, as Chalice has it
    _installed = service, targets


def service() -> Service:
    """Return the service, or raise NotConfigured."""
    return _parts()[0]


def targets() -> Targets:
    """Return which targets a timer may name, or raise NotConfigured."""
    return _parts()[1]


def _parts() -> tuple[Service, Targets]:
    if _installed is None:
        raise NotConfigured(
            "There are no AWS settings here; run `make run` to serve Timers on this machine."
        )
    return _installed
