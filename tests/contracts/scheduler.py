"""The rules of every Scheduler. Each implementation runs this suite as a subclass.

A scheduled timer's wake-up is delivered when the timer is due, at most MAX_EARLY before. It may be
delivered twice, or after the timer was unscheduled: the store decides whether it can be claimed.
"""

from abc import ABC, abstractmethod
from datetime import datetime, timedelta

import pytest

from chalicelib.core.errors import Unavailable
from chalicelib.core.timer import Wakeup
from chalicelib.service.ports import Scheduler
from tests.contracts.store import make
from tests.support.fakes import START

MAX_EARLY = timedelta(seconds=2)
"""A wake-up's earliest delivery before its time; the worker waits out the rest."""

HALF_MINUTE = timedelta(seconds=30)

FAR = timedelta(hours=2)

DELAYS = [timedelta(0), HALF_MINUTE, timedelta(minutes=15), FAR, timedelta(days=400)]


class Timeline(ABC):
    """A scheduler, its clock, and the wake-ups that it delivers."""

    scheduler: Scheduler

    @abstractmethod
    def wakeups_by(self, time: datetime) -> list[Wakeup]:
        """Move the clock to `time`; return the wake-ups delivered since the last call."""

    @abstractmethod
    def add_backlog(self) -> None:
        """Make so many timers due that the scheduler falls behind."""

    @abstractmethod
    def break_down(self) -> None:
        """Stop the scheduler from waking timers."""


def sent(wakeups: list[Wakeup]) -> set[tuple[str, int]]:
    """Return the timers and generations of wake-ups, without repetitions and hops."""
    return {(wakeup.id, wakeup.generation) for wakeup in wakeups}


class SchedulerContract:
    """Subclasses provide the fixture `timeline`: a scheduler without timers, at START."""

    @pytest.mark.parametrize("delay", DELAYS, ids=str)
    def test_wakes_a_timer_when_it_is_due(self, timeline: Timeline, delay: timedelta) -> None:
        """A timer's wake-up is delivered once the timer is due."""
        timer = make(1, delay)
        timeline.scheduler.schedule(timer)
        assert sent(timeline.wakeups_by(timer.due_at)) == {(timer.id, 1)}

    @pytest.mark.parametrize("delay", DELAYS[1:], ids=str)
    def test_wakes_no_timer_early(self, timeline: Timeline, delay: timedelta) -> None:
        """No wake-up is delivered more than MAX_EARLY before the timer is due."""
        timer = make(1, delay)
        timeline.scheduler.schedule(timer)
        assert timeline.wakeups_by(timer.due_at - MAX_EARLY) == []

    def test_a_wakeup_identifies_its_timer(self, timeline: Timeline) -> None:
        """A wake-up carries the timer's id, tenant, generation, due time and host."""
        timer = make(1, HALF_MINUTE)
        timeline.scheduler.schedule(timer)
        expected = timer.wakeup()
        for wakeup in timeline.wakeups_by(timer.due_at):
            assert (wakeup.id, wakeup.tenant) == (expected.id, expected.tenant)
            assert (wakeup.generation, wakeup.due_at) == (expected.generation, expected.due_at)
            assert wakeup.host == expected.host

    @pytest.mark.parametrize("delay", [HALF_MINUTE, FAR], ids=str)
    def test_scheduling_twice_is_harmless(self, timeline: Timeline, delay: timedelta) -> None:
        """A timer scheduled twice wakes for the same generation at the same time."""
        timer = make(1, delay)
        timeline.scheduler.schedule(timer)
        timeline.scheduler.schedule(timer)
        assert timeline.wakeups_by(timer.due_at - MAX_EARLY) == []
        assert sent(timeline.wakeups_by(timer.due_at)) == {(timer.id, 1)}

    @pytest.mark.parametrize("delay", [HALF_MINUTE, FAR], ids=str)
    def test_unscheduling_twice_is_harmless(self, timeline: Timeline, delay: timedelta) -> None:
        """Unscheduling may leave a wake-up, which the store ignores; other timers still wake."""
        timer, other = make(1, delay), make(2, delay)
        timeline.scheduler.schedule(timer)
        timeline.scheduler.schedule(other)
        timeline.scheduler.unschedule(timer)
        timeline.scheduler.unschedule(timer)
        assert sent(timeline.wakeups_by(timer.due_at)) >= {(other.id, 1)}

    def test_unscheduling_an_unknown_timer_is_harmless(self, timeline: Timeline) -> None:
        """A timer that was never scheduled can be unscheduled."""
        timeline.scheduler.unschedule(make(1, HALF_MINUTE))

    @pytest.mark.parametrize("delay", [timedelta(0), HALF_MINUTE], ids=str)
    def test_requeues_wakeups(self, timeline: Timeline, delay: timedelta) -> None:
        """A requeued wake-up is delivered when it is due, or at once if it already is."""
        wakeups = [make(number, delay).wakeup() for number in range(25)]
        timeline.scheduler.requeue(wakeups)
        assert sent(timeline.wakeups_by(START + delay)) == sent(wakeups)

    def test_requeues_nothing(self, timeline: Timeline) -> None:
        """An empty list is accepted."""
        timeline.scheduler.requeue([])
        assert timeline.wakeups_by(START) == []

    def test_is_behind_with_a_backlog(self, timeline: Timeline) -> None:
        """A scheduler is behind only while many wake-ups are due."""
        timeline.scheduler.schedule(make(1, FAR))
        assert not timeline.scheduler.is_behind()
        timeline.add_backlog()
        assert timeline.scheduler.is_behind()

    def test_check_raises_if_it_is_broken(self, timeline: Timeline) -> None:
        """`check` returns while timers wake, and raises Unavailable when they do not."""
        timeline.scheduler.check()
        timeline.break_down()
        with pytest.raises(Unavailable):
            timeline.scheduler.check()
