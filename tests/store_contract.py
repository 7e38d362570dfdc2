"""What every Store promises. Each implementation runs this suite as a subclass."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from msgspec.structs import replace

from chalicelib import timers
from chalicelib.retry import WORKER_LOST
from chalicelib.service import Store
from chalicelib.timers import DEFAULT_TENANT, Outcome, Ring, Status, Timer, Webhook
from tests.fakes import NO_CONTENT, START

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
REFUSED = Outcome(error="connect", detail="Connection refused", duration=0.25)


def make(number: int = 1, delay: timedelta = HOUR, tenant: str = DEFAULT_TENANT) -> Timer:
    """Return a new timer that is due `delay` after START."""
    id = timers.timer_id(START, number.to_bytes(10, "big"))
    return timers.new(id, tenant, Webhook(url="https://example.com/{id}"), START + delay, START)


def rung(timer: Timer) -> Ring:
    return timers.ring(timer)


class StoreContract:
    """Subclasses give the fixture `store`: an empty store."""

    def test_keeps_all_of_a_timer(self, store: Store) -> None:
        """What was stored comes back equal, to the microsecond."""
        timer = make(delay=timedelta(days=700, microseconds=1))
        timer = replace(timer, url="https://example.com/ü?q=%20&x=☃#\U0001f680")
        assert store.add(timer)
        assert store.get(DEFAULT_TENANT, timer.id) == timer

    def test_keeps_a_long_history(self, store: Store) -> None:
        """The attempt log comes back equal, errors and answers included."""
        timer = make()
        store.add(timer)
        for number in range(timers.ATTEMPTS_KEPT + 2):
            claimed = store.claim(rung(timer), timer.due_at, timer.due_at + HOUR)
            assert claimed is not None
            outcome = Outcome(status=503, answer=f"{number} \x00é" * 100, duration=1.5)
            timer = timers.record(claimed, outcome, claimed.due_at, claimed.due_at + SECOND)
            assert store.replace(timer)
        assert store.get(DEFAULT_TENANT, timer.id) == timer
        assert len(timer.attempts) == timers.ATTEMPTS_KEPT

    def test_never_overwrites_with_add(self, store: Store) -> None:
        """An id can be added once; the second add changes nothing."""
        first, second = make(1), replace(make(1), url="https://example.com/other")
        assert store.add(first)
        assert not store.add(second)
        assert store.get(DEFAULT_TENANT, first.id) == first

    @pytest.mark.parametrize("unknown", ["", "nope", "x" * 3000, "../..", "ü", "\x00", "' OR 1=1"])
    def test_knows_no_other_timers(self, store: Store, unknown: str) -> None:
        """Any text may be asked for; what is not there is None."""
        store.add(make())
        assert store.get(DEFAULT_TENANT, unknown) is None

    def test_hides_timers_of_other_tenants(self, store: Store) -> None:
        """With the wrong tenant a timer is not found, claimed, replaced or removed."""
        timer = make()
        store.add(timer)
        stranger = replace(timer, tenant="stranger")
        assert store.get("stranger", timer.id) is None
        assert store.claim(rung(stranger), timer.due_at, timer.due_at + HOUR) is None
        assert not store.replace(timers.cancel(stranger, START))
        assert not store.remove(stranger)
        assert store.get(DEFAULT_TENANT, timer.id) == timer

    def test_claims_what_is_due(self, store: Store) -> None:
        """A claim is exactly `timers.claim`, and stored."""
        timer = make()
        store.add(timer)
        lease_until = timer.due_at + HOUR
        claimed = store.claim(rung(timer), timer.due_at, lease_until)
        assert claimed == timers.claim(timer, rung(timer), timer.due_at, lease_until)
        assert claimed is not None
        assert (claimed.status, claimed.attempt) == (Status.DELIVERING, 1)
        assert store.get(DEFAULT_TENANT, timer.id) == claimed

    def test_claims_nothing_early(self, store: Store) -> None:
        """One microsecond before it is due a timer can't be claimed."""
        timer = make()
        store.add(timer)
        early = timer.due_at - timedelta(microseconds=1)
        assert store.claim(rung(timer), early, timer.due_at + HOUR) is None

    def test_claims_once(self, store: Store) -> None:
        """A claimed timer can't be claimed again, lease or no lease."""
        timer = make()
        store.add(timer)
        assert store.claim(rung(timer), timer.due_at, timer.due_at + SECOND)
        assert store.claim(rung(timer), timer.due_at + HOUR, timer.due_at + 2 * HOUR) is None

    def test_claims_for_the_present_generation_only(self, store: Store) -> None:
        """An alarm of an older or unknown generation claims nothing."""
        timer = make()
        store.add(timer)
        moved = timers.reschedule(timer, timer.due_at)
        store.replace(moved)
        now, lease = timer.due_at + HOUR, timer.due_at + 2 * HOUR
        assert store.claim(rung(timer), now, lease) is None
        assert store.claim(Ring(timer.id, timer.tenant, 3, timer.due_at), now, lease) is None
        assert store.claim(rung(moved), now, lease) is not None

    @pytest.mark.parametrize("end", [Status.DELIVERED, Status.FAILED, Status.CANCELLED])
    def test_claims_nothing_final(self, store: Store, end: Status) -> None:
        """A finished timer can't be claimed by any generation it had."""
        timer = make()
        store.add(timer)
        final = self._end(store, timer, end)
        now, lease = timer.due_at + HOUR, timer.due_at + 2 * HOUR
        for generation in range(final.generation + 2):
            ring = Ring(timer.id, timer.tenant, generation, timer.due_at)
            assert store.claim(ring, now, lease) is None
        assert store.get(DEFAULT_TENANT, timer.id) == final

    def test_claims_one_of_racing_workers(self, store: Store) -> None:
        """Of 8 workers that ring at the same moment, one gets the claim, each time."""
        gate = Barrier(8)

        def claim(timer: Timer) -> bool:
            gate.wait()
            lease_until = timer.due_at + HOUR
            return store.claim(rung(timer), timer.due_at, lease_until) is not None

        with ThreadPoolExecutor(8) as workers:
            for number in range(10):
                timer = make(number)
                store.add(timer)
                assert sum(workers.map(claim, [timer] * 8)) == 1

    def test_replaces_only_the_version_before(self, store: Store) -> None:
        """Of two changes decided on the same state, the second does nothing."""
        timer = make()
        store.add(timer)
        first, second = timers.cancel(timer, START), timers.reschedule(timer, START + SECOND)
        assert store.replace(first)
        assert not store.replace(second)
        assert store.get(DEFAULT_TENANT, timer.id) == first

    def test_replaces_nothing_unknown(self, store: Store) -> None:
        """A timer that is not there is not brought back by a late write."""
        timer = make()
        assert not store.replace(timers.cancel(timer, START))
        assert store.get(DEFAULT_TENANT, timer.id) is None

    def test_replaces_many_like_one(self, store: Store) -> None:
        """Of many changes those are written, and named, that were decided on what is stored."""
        stored = [make(number) for number in range(5)]
        for timer in stored:
            store.add(timer)
        store.replace(timers.cancel(stored[2], START))
        changed = [timers.postponed(timer, START + 2 * HOUR) for timer in [*stored, make(9)]]
        assert store.replace_all(changed) == [*changed[:2], *changed[3:5]]
        assert store.get(DEFAULT_TENANT, stored[4].id) == changed[4]
        assert store.replace_all([]) == []

    def test_ignores_a_worker_that_lost_its_lease(self, store: Store) -> None:
        """A zombie's record changes nothing once its claim was taken back."""
        timer = make()
        store.add(timer)
        zombie = store.claim(rung(timer), timer.due_at, timer.due_at + SECOND)
        assert zombie is not None
        now = timer.due_at + HOUR
        taken = timers.record(zombie, WORKER_LOST, now, now)
        assert store.replace(taken)
        second = store.claim(rung(taken), now, now + HOUR)
        assert second is not None
        assert not store.replace(timers.record(zombie, NO_CONTENT, now, None))
        assert store.get(DEFAULT_TENANT, timer.id) == second

    def test_removes_only_what_nothing_happened_to(self, store: Store) -> None:
        """A creation is taken back whole, or not at all once the timer has moved on."""
        untouched, claimed = make(1), make(2)
        store.add(untouched)
        store.add(claimed)
        store.claim(rung(claimed), claimed.due_at, claimed.due_at + HOUR)
        assert store.remove(untouched)
        assert store.remove(untouched)
        assert not store.remove(claimed)
        assert store.get(DEFAULT_TENANT, untouched.id) is None
        assert store.get(DEFAULT_TENANT, claimed.id) is not None

    def test_lists_the_overdue_oldest_first(self, store: Store) -> None:
        """The sweep gets what has `wake_at` before its moment, longest overdue first, so many."""
        due = [make(number, number * SECOND) for number in (3, 1, 5, 2, 4)]
        for timer in due:
            store.add(timer)
        found = store.overdue(START + 4 * SECOND, 10)
        assert found == sorted(due, key=lambda timer: timer.due_at)[:3]
        assert store.overdue(START + 4 * SECOND, 2) == found[:2]

    def test_lists_expired_leases_as_overdue(self, store: Store) -> None:
        """While delivering, it is the end of the lease that the sweep looks at."""
        timer = make()
        store.add(timer)
        lease_until = timer.due_at + HOUR
        claimed = store.claim(rung(timer), timer.due_at, lease_until)
        assert store.overdue(lease_until, 10) == []
        assert store.overdue(lease_until + SECOND, 10) == [claimed]

    @pytest.mark.parametrize("end", [Status.DELIVERED, Status.FAILED, Status.CANCELLED])
    def test_lists_nothing_final(self, store: Store, end: Status) -> None:
        """What is finished is never overdue."""
        timer = make()
        store.add(timer)
        self._end(store, timer, end)
        assert store.overdue(START + timedelta(days=3650), 10) == []

    def test_lists_unarmed_timers_early(self, store: Store) -> None:
        """A timer whose alarm could not be set shows up long before it is due, until it is."""
        timer = make()
        store.add(timer)
        unarmed = timers.unarmed(timer, START)
        store.replace(unarmed)
        assert store.overdue(START + SECOND, 10) == [unarmed]
        store.replace(timers.armed(unarmed))
        assert store.overdue(START + SECOND, 10) == []

    def test_forgets_the_expiry_on_a_redrive(self, store: Store) -> None:
        """Fail, redrive, pass the old expiry: the timer is there and can be claimed."""
        timer = make()
        store.add(timer)
        failed = self._end(store, timer, Status.FAILED)
        redriven = timers.redrive(failed, timer.due_at + HOUR)
        assert store.replace(redriven)
        later = timer.due_at + timers.RETENTION + HOUR
        self.expire(store, later)
        assert store.get(DEFAULT_TENANT, timer.id) == redriven
        assert store.claim(rung(redriven), later, later + HOUR) is not None

    def test_says_that_it_works(self, store: Store) -> None:
        """A store that works passes its check."""
        store.check()

    def expire(self, store: Store, now: object) -> None:
        """Delete what has expired, where the store does that when told."""

    @staticmethod
    def _end(store: Store, timer: Timer, end: Status) -> Timer:
        if end is Status.CANCELLED:
            final = timers.cancel(timer, START)
        else:
            claimed = store.claim(rung(timer), timer.due_at, timer.due_at + HOUR)
            assert claimed is not None
            outcome = NO_CONTENT if end is Status.DELIVERED else REFUSED
            final = timers.record(claimed, outcome, timer.due_at, None)
        assert final.status is end
        assert store.replace(final)
        return final

    def test_a_timer_is_added_in_the_same_step(self, store: Store) -> None:
        """Both writes are there, or neither is; what exists already is left alone."""
        timer, other = make(1), make(2)
        store.add(timer)
        changed = timers.cancel(timer, START)
        assert store.replace(changed, other)
        assert store.get(timer.tenant, timer.id) == changed
        assert store.get(other.tenant, other.id) == other
        # The version is not the one before any more: nothing of this may happen.
        third = make(3)
        assert not store.replace(replace(changed, version=9), third)
        assert store.get(third.tenant, third.id) is None
