"""The simulated deployment keeps every promise; `make simulate` runs it at full size."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from chalicelib.aws import scheduler
from chalicelib.service import worker
from tools.simulation import Deployment, burst, crashing, outage, steady


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "scenario", [steady, burst, outage, crashing], ids=lambda scenario: scenario.__name__
)
def test_promises_hold(scenario: Callable[..., Deployment], seed: int) -> None:
    """None early, none lost, none sent twice without a crash, whatever the scenario."""
    scenario(400, seed=seed).check()


def test_steady_load_is_to_the_second() -> None:
    """With the Scheduler anywhere in its minute, p99 lateness is under a second."""
    late = steady(600).lateness()
    assert late[int(len(late) * 0.99)] < 1


def test_outage_drains_without_multiplying(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage each timer costs little more than one message, and the oldest go first, even
    when the queue is deep for longer than the sweep leaves a timer alone."""
    monkeypatch.setattr(scheduler, "BACKLOG_LIMIT", 50)
    monkeypatch.setattr(worker, "SWEEP_BATCH_SIZE", 50)
    monkeypatch.setattr(worker, "MAX_SWEPT", 400)
    monkeypatch.setattr(worker, "SWEEP_COOLDOWN", timedelta(seconds=60))
    world = outage(2000, rate=5.0)
    assert world.queue.sent <= 1.1 * len(world.store.timers)
    assert world.lateness()[-1] < 1200
    half = len(world.sent) // 2
    early, late = (
        sorted(timer.due_at for timer, _ in part) for part in (world.sent[:half], world.sent[half:])
    )
    assert early[half // 2] < late[half // 2]
