"""The simulated deployment; `make simulate` runs it at full size."""

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
def test_webhooks_are_sent_once_and_not_early(
    scenario: Callable[..., Deployment], seed: int
) -> None:
    """No webhook is early, lost, or sent twice without a crash, in any scenario."""
    scenario(400, seed=seed).check()


def test_p99_lateness_is_below_a_second() -> None:
    """In steady load p99 lateness is below a second, wherever in its minute a schedule fires."""
    late = steady(600).lateness()
    assert late[int(len(late) * 0.99)] < 1


def test_an_outage_drains_without_extra_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage each timer costs about one message, and the oldest go first.

    The queue stays deep for longer than SWEEP_COOLDOWN.
    """
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
