"""The rules of every Store. Each implementation runs this suite as a subclass."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Barrier

import pytest
from msgspec.structs import replace

from chalicelib.core.pagination import Cursor, Page, TimerFilter, cursor_of
from chalicelib.core.retry import WORKER_LOST
from chalicelib.core.timer import (
    DEFAULT_TENANT,
    MAX_ATTEMPTS_KEPT,
    RETENTION,
    Outcome,
    Status,
    Timer,
    Wakeup,
    Webhook,
    new_timer,
    timer_id,
)
from chalicelib.service.ports import Store
from tests.support.fakes import NO_CONTENT, START, FakeStore

MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
BEGINNING = Cursor(datetime.max.replace(tzinfo=UTC), "")
REFUSED = Outcome(error="connect", detail="Connection refused", duration=0.25)


def make(
    number: int = 1,
    delay: timedelta = HOUR,
    tenant: str = DEFAULT_TENANT,
    *,
    created_at: datetime = START,
    label: str | None = None,
) -> Timer:
    """Return a new timer that is due `delay` after START; the ids are in the order of `number`."""
    id = timer_id(START, number.to_bytes(10, "big"))
    webhook = Webhook(url="https://example.com/{id}", label=label)
    return new_timer(id, tenant, webhook, START + delay, created_at)


def walk(
    store: Store,
    listing: TimerFilter = TimerFilter(),  # noqa: B008  # frozen
    limit: int = 3,
    tenant: str = DEFAULT_TENANT,
    between: Callable[[], object] = lambda: None,
) -> list[Timer]:
    """Return all timers of a list, page by page; `between` runs after each page."""
    timers: list[Timer] = []
    before: Cursor | None = None
    for _ in range(200):
        page = store.page(tenant, listing, before, limit)
        places = [before or BEGINNING, *map(cursor_of, page.timers)]
        assert places == sorted(set(places), reverse=True)
        assert len(page.timers) <= limit
        timers += page.timers
        if page.next is None:
            return timers
        assert page.next <= places[-1]
        assert page.next < places[0]
        before = page.next
        between()
    pytest.fail("The list has no end.")


def newest_first(timers: list[Timer]) -> list[Timer]:
    return sorted(timers, key=cursor_of, reverse=True)


class StoreContract:
    """Subclasses provide the fixture `store`: an empty store."""

    def test_get_returns_the_timer_as_added(self, store: Store) -> None:
        """A stored timer is read back equal, to the microsecond."""
        timer = make(delay=timedelta(days=700, microseconds=1))
        timer = replace(timer, url="https://example.com/ü?q=%20&x=☃#\U0001f680")
        assert store.add(timer)
        assert store.get(DEFAULT_TENANT, timer.id) == timer

    @pytest.mark.parametrize("text", ["a\x00b", "\x00", "\U0001f680\u2028", "null", "1e3", "'\"\\"])
    def test_keeps_any_text(self, store: Store, text: str) -> None:
        """A text is read back as it was added, after a claim and after a change."""
        timer = replace(make(), label=text, body=text, metadata={text: text})
        assert store.add(timer)
        assert store.get(DEFAULT_TENANT, timer.id) == timer
        claimed = store.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
        assert claimed == timer.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
        assert claimed is not None
        assert store.get(DEFAULT_TENANT, timer.id) == claimed
        recorded = claimed.record(Outcome(status=500, answer=text), timer.due_at, None)
        assert store.replace(recorded)
        assert store.get(DEFAULT_TENANT, timer.id) == recorded

    def test_keeps_a_long_history(self, store: Store) -> None:
        """The attempts are read back equal, with their errors and response bodies."""
        timer = make()
        store.add(timer)
        for number in range(MAX_ATTEMPTS_KEPT + 2):
            claimed = store.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
            assert claimed is not None
            outcome = Outcome(status=503, answer=f"{number} \x00é" * 100, duration=1.5)
            timer = claimed.record(outcome, claimed.due_at, claimed.due_at + SECOND)
            assert store.replace(timer)
        assert store.get(DEFAULT_TENANT, timer.id) == timer
        assert len(timer.attempts) == MAX_ATTEMPTS_KEPT

    def test_add_never_overwrites(self, store: Store) -> None:
        """An id can be added once; a second add changes nothing."""
        first, second = make(1), replace(make(1), url="https://example.com/other")
        assert store.add(first)
        assert not store.add(second)
        assert store.get(DEFAULT_TENANT, first.id) == first

    @pytest.mark.parametrize("unknown", ["", "nope", "x" * 3000, "../..", "ü", "\x00", "' OR 1=1"])
    def test_get_of_an_unknown_id_is_none(self, store: Store, unknown: str) -> None:
        """Any text may be an id; `get` returns None for an unknown one."""
        store.add(make())
        assert store.get(DEFAULT_TENANT, unknown) is None

    def test_hides_timers_of_other_tenants(self, store: Store) -> None:
        """With the wrong tenant a timer is not found, claimed, replaced or removed."""
        timer = make()
        store.add(timer)
        stranger = replace(timer, tenant="stranger")
        assert store.get("stranger", timer.id) is None
        assert store.claim(stranger.wakeup(), timer.due_at, timer.due_at + HOUR) is None
        assert not store.replace(stranger.cancel(START))
        assert not store.remove(stranger)
        assert store.get(DEFAULT_TENANT, timer.id) == timer

    def test_claims_a_due_timer(self, store: Store) -> None:
        """A claim stores and returns the result of `Timer.claim`."""
        timer = make()
        store.add(timer)
        lease_until = timer.due_at + HOUR
        claimed = store.claim(timer.wakeup(), timer.due_at, lease_until)
        assert claimed == timer.claim(timer.wakeup(), timer.due_at, lease_until)
        assert claimed is not None
        assert (claimed.status, claimed.attempt) == (Status.DELIVERING, 1)
        assert store.get(DEFAULT_TENANT, timer.id) == claimed

    def test_claims_nothing_early(self, store: Store) -> None:
        """A timer can't be claimed one microsecond before it is due."""
        timer = make()
        store.add(timer)
        early = timer.due_at - timedelta(microseconds=1)
        assert store.claim(timer.wakeup(), early, timer.due_at + HOUR) is None

    def test_a_claimed_timer_can_not_be_claimed_again(self, store: Store) -> None:
        """A claimed timer can't be claimed again, even after its lease expired."""
        timer = make()
        store.add(timer)
        assert store.claim(timer.wakeup(), timer.due_at, timer.due_at + SECOND)
        assert store.claim(timer.wakeup(), timer.due_at + HOUR, timer.due_at + 2 * HOUR) is None

    def test_claims_only_the_current_generation(self, store: Store) -> None:
        """A wake-up of an older or unknown generation claims nothing."""
        timer = make()
        store.add(timer)
        moved = timer.change(timer, timer.due_at)
        store.replace(moved)
        now, lease = timer.due_at + HOUR, timer.due_at + 2 * HOUR
        assert store.claim(timer.wakeup(), now, lease) is None
        assert store.claim(Wakeup(timer.id, timer.tenant, 3, timer.due_at), now, lease) is None
        assert store.claim(moved.wakeup(), now, lease) is not None

    @pytest.mark.parametrize("end", [Status.DELIVERED, Status.FAILED, Status.CANCELLED])
    def test_claims_nothing_final(self, store: Store, end: Status) -> None:
        """A finished timer can't be claimed with any of its generations."""
        timer = make()
        store.add(timer)
        final = self._end(store, timer, end)
        now, lease = timer.due_at + HOUR, timer.due_at + 2 * HOUR
        for generation in range(final.generation + 2):
            wakeup = Wakeup(timer.id, timer.tenant, generation, timer.due_at)
            assert store.claim(wakeup, now, lease) is None
        assert store.get(DEFAULT_TENANT, timer.id) == final

    def test_only_one_racing_worker_claims(self, store: Store) -> None:
        """Of 8 workers that claim at the same time, one succeeds."""
        gate = Barrier(8)

        def claim(timer: Timer) -> bool:
            gate.wait()
            lease_until = timer.due_at + HOUR
            return store.claim(timer.wakeup(), timer.due_at, lease_until) is not None

        with ThreadPoolExecutor(8) as workers:
            for number in range(10):
                timer = make(number)
                store.add(timer)
                assert sum(workers.map(claim, [timer] * 8)) == 1

    def test_replaces_only_the_previous_version(self, store: Store) -> None:
        """Of two changes to the same version, the second is not written."""
        timer = make()
        store.add(timer)
        first, second = timer.cancel(START), timer.change(timer, START + SECOND)
        assert store.replace(first)
        assert not store.replace(second)
        assert store.get(DEFAULT_TENANT, timer.id) == first

    def test_replaces_no_unknown_timer(self, store: Store) -> None:
        """A late write does not restore a removed timer."""
        timer = make()
        assert not store.replace(timer.cancel(START))
        assert store.get(DEFAULT_TENANT, timer.id) is None

    def test_replace_all_writes_only_previous_versions(self, store: Store) -> None:
        """`replace_all` writes and returns only the changes to stored versions."""
        stored = [make(number) for number in range(5)]
        for timer in stored:
            store.add(timer)
        store.replace(stored[2].cancel(START))
        changed = [timer.with_next_check(START + 2 * HOUR) for timer in [*stored, make(9)]]
        assert store.replace_all(changed) == [*changed[:2], *changed[3:5]]
        assert store.get(DEFAULT_TENANT, stored[4].id) == changed[4]
        assert store.replace_all([]) == []

    def test_ignores_a_worker_that_lost_its_lease(self, store: Store) -> None:
        """A worker whose timer was reclaimed records nothing."""
        timer = make()
        store.add(timer)
        zombie = store.claim(timer.wakeup(), timer.due_at, timer.due_at + SECOND)
        assert zombie is not None
        now = timer.due_at + HOUR
        reclaimed = zombie.record(WORKER_LOST, now, now)
        assert store.replace(reclaimed)
        second = store.claim(reclaimed.wakeup(), now, now + HOUR)
        assert second is not None
        assert not store.replace(zombie.record(NO_CONTENT, now, None))
        assert store.get(DEFAULT_TENANT, timer.id) == second

    def test_removes_only_an_unchanged_timer(self, store: Store) -> None:
        """A new timer is removed, unless it has changed since."""
        untouched, claimed = make(1), make(2)
        store.add(untouched)
        store.add(claimed)
        store.claim(claimed.wakeup(), claimed.due_at, claimed.due_at + HOUR)
        assert store.remove(untouched)
        assert store.remove(untouched)
        assert not store.remove(claimed)
        assert store.get(DEFAULT_TENANT, untouched.id) is None
        assert store.get(DEFAULT_TENANT, claimed.id) is not None

    def test_lists_the_overdue_oldest_first(self, store: Store) -> None:
        """`overdue` returns at most `limit` timers, longest overdue first."""
        due = [make(number, number * SECOND) for number in (3, 1, 5, 2, 4)]
        for timer in due:
            store.add(timer)
        overdue = store.overdue(START + 4 * SECOND, 10)
        assert overdue == sorted(due, key=lambda timer: timer.due_at)[:3]
        assert store.overdue(START + 4 * SECOND, 2) == overdue[:2]

    def test_lists_expired_leases_as_overdue(self, store: Store) -> None:
        """A timer that is being delivered is overdue when its lease expires."""
        timer = make()
        store.add(timer)
        lease_until = timer.due_at + HOUR
        claimed = store.claim(timer.wakeup(), timer.due_at, lease_until)
        assert store.overdue(lease_until, 10) == []
        assert store.overdue(lease_until + SECOND, 10) == [claimed]

    @pytest.mark.parametrize("end", [Status.DELIVERED, Status.FAILED, Status.CANCELLED])
    def test_finished_timers_are_not_overdue(self, store: Store, end: Status) -> None:
        """A finished timer is never overdue."""
        timer = make()
        store.add(timer)
        self._end(store, timer, end)
        assert store.overdue(START + timedelta(days=3650), 10) == []

    def test_unscheduled_timers_are_overdue_early(self, store: Store) -> None:
        """A timer that could not be scheduled is overdue until it is."""
        timer = make()
        store.add(timer)
        unarmed = timer.mark_unarmed(START)
        store.replace(unarmed)
        assert store.overdue(START + SECOND, 10) == [unarmed]
        store.replace(unarmed.mark_armed())
        assert store.overdue(START + SECOND, 10) == []

    def test_a_retry_clears_the_expiry(self, store: Store) -> None:
        """A failed timer that was retried outlives its old expiry, and can be claimed."""
        timer = make()
        store.add(timer)
        failed = self._end(store, timer, Status.FAILED)
        retried = failed.retry_now(timer.due_at + HOUR)
        assert store.replace(retried)
        later = timer.due_at + RETENTION + HOUR
        self.expire(store, later)
        assert store.get(DEFAULT_TENANT, timer.id) == retried
        assert store.claim(retried.wakeup(), later, later + HOUR) is not None

    def test_check_returns(self, store: Store) -> None:
        """A working store passes its check."""
        store.check()

    def expire(self, store: Store, now: object) -> None:
        """Delete expired timers, unless the store does so by itself."""

    @staticmethod
    def _end(store: Store, timer: Timer, end: Status) -> Timer:
        if end is Status.CANCELLED:
            final = timer.cancel(START)
        else:
            claimed = store.claim(timer.wakeup(), timer.due_at, timer.due_at + HOUR)
            assert claimed is not None
            outcome = NO_CONTENT if end is Status.DELIVERED else REFUSED
            final = claimed.record(outcome, timer.due_at, None)
        assert final.status is end
        assert store.replace(final)
        return final

    def test_replace_adds_a_timer_in_the_same_step(self, store: Store) -> None:
        """`replace` writes both timers or neither, and does not overwrite the added one."""
        timer, other = make(1), make(2)
        store.add(timer)
        changed = timer.cancel(START)
        assert store.replace(changed, other)
        assert store.get(timer.tenant, timer.id) == changed
        assert store.get(other.tenant, other.id) == other
        # Version 8 is not the stored one, so neither timer is written.
        third = make(3)
        assert not store.replace(replace(changed, version=9), third)
        assert store.get(third.tenant, third.id) is None

    def test_a_list_is_newest_first(self, store: Store) -> None:
        """Lists are sorted by creation, newest first, then by id, greatest first."""
        ages = [3, 0, 2, 2, 9, 2, 5, 0]
        added = [make(n, created_at=START - age * MICROSECOND) for n, age in enumerate(ages)]
        for timer in added:
            store.add(timer)
        assert store.page(DEFAULT_TENANT, TimerFilter(), None, 8) == Page(newest_first(added), None)

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
    def test_pages_have_the_requested_size(self, store: Store, limit: int) -> None:
        """Pages of any size list all timers once, in order."""
        added = [make(number, created_at=START + number // 3 * SECOND) for number in range(7)]
        for timer in added:
            store.add(timer)
        assert walk(store, limit=limit) == newest_first(added)

    def test_an_empty_list_has_no_next_page(self, store: Store) -> None:
        """A tenant without timers has one empty page."""
        assert store.page(DEFAULT_TENANT, TimerFilter(), None, 10) == Page([], None)

    def test_a_list_continues_from_any_cursor(self, store: Store) -> None:
        """A cursor works even if its timer is gone or never existed."""
        added = [make(number, created_at=START + number // 2 * SECOND) for number in range(6)]
        for timer in added:
            store.add(timer)
        for before in [
            cursor_of(added[3]),
            Cursor(START + SECOND, ""),
            Cursor(START + SECOND, "zzz"),
            Cursor(START + SECOND + MICROSECOND, ""),
            Cursor(datetime.min.replace(tzinfo=UTC), ""),
            Cursor(datetime.max.replace(tzinfo=UTC), "zzz"),
        ]:
            older = [timer for timer in newest_first(added) if cursor_of(timer) < before]
            assert store.page(DEFAULT_TENANT, TimerFilter(), before, 10) == Page(older, None)

    def test_a_list_shows_the_last_write(self, store: Store) -> None:
        """A list has each timer as last written, and filters by its current status."""
        scheduled, claimed = make(1), make(2)
        ends = [Status.DELIVERED, Status.FAILED, Status.CANCELLED]
        ended = [make(number) for number in range(3, 6)]
        for timer in [scheduled, claimed, *ended]:
            store.add(timer)
        delivering = store.claim(claimed.wakeup(), claimed.due_at, claimed.due_at + HOUR)
        assert delivering is not None
        final = [self._end(store, timer, end) for timer, end in zip(ended, ends, strict=True)]
        assert walk(store) == newest_first([scheduled, delivering, *final])
        for timer in [scheduled, delivering, *final]:
            assert walk(store, TimerFilter(status=timer.status)) == [timer]
        assert walk(store, TimerFilter(status=Status.RETRYING)) == []

    def test_a_label_matches_exactly(self, store: Store) -> None:
        """A filter matches the same label only: not a longer one, another case, or none."""
        labels = ["a", "A", "ab", None, "a", "ü \"'%_#", "a "]
        added = [make(number, label=label) for number, label in enumerate(labels)]
        for timer in added:
            store.add(timer)
        for label in {label for label in labels if label is not None}:
            labelled = [timer for timer in newest_first(added) if timer.label == label]
            assert walk(store, TimerFilter(label=label)) == labelled
        assert walk(store, TimerFilter(label="b")) == []

    def test_a_new_label_replaces_the_old_one(self, store: Store) -> None:
        """A timer is found by its current label only."""
        timer = make(label="old")
        store.add(timer)
        relabelled = timer.change(replace(timer, label="new"))
        store.replace(relabelled)
        assert walk(store, TimerFilter(label="old")) == []
        assert walk(store, TimerFilter(label="new")) == [relabelled]
        store.replace(relabelled.change(replace(relabelled, label=None)))
        assert walk(store, TimerFilter(label="new")) == []

    def test_since_is_inclusive_and_until_exclusive(self, store: Store) -> None:
        """A list includes `since` and excludes `until`, to the microsecond; a span may be empty."""
        added = [make(number, created_at=START + number // 2 * MICROSECOND) for number in range(8)]
        for timer in added:
            store.add(timer)
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        moments = [None, START, START + MICROSECOND, START + 3 * MICROSECOND]
        spans = [(since, until) for since in moments for until in moments]
        for since, until in [*spans, (first, first), (first, last), (last, last), (last, first)]:
            listing = TimerFilter(since=since, until=until)
            expected = [timer for timer in newest_first(added) if listing.matches(timer)]
            assert store.page(DEFAULT_TENANT, listing, None, 10) == Page(expected, None)

    def test_lists_agree_with_the_fake_store(self, store: Store) -> None:
        """All combinations of filters and page sizes give the same timers as FakeStore."""
        random, reference = Random(7), FakeStore()  # noqa: S311  # the same every time
        for number in range(40):
            created_at = START + random.randrange(20) * SECOND
            timer = make(number, created_at=created_at, label=random.choice(["a", "b", None]))
            for it in (store, reference):
                it.add(timer)
                if number % 3 == 0:
                    it.replace(timer.cancel(START))
        for _ in range(12):
            listing = TimerFilter(
                status=random.choice([None, Status.SCHEDULED, Status.CANCELLED]),
                label=random.choice([None, "a", "b"]),
                since=random.choice([None, START + random.randrange(10) * SECOND]),
                until=random.choice([None, START + random.randrange(8, 20) * SECOND]),
            )
            limit = random.randrange(2, 9)
            assert walk(store, listing, limit) == walk(reference, listing, 100), (listing, limit)

    def test_a_list_is_of_one_tenant(self, store: Store) -> None:
        """A list has only the tenant's timers, even if other tenants' names are similar."""
        tenants = ["a", "ab", "a#1", "A", "a#", "b"]
        numbers = range(4 * len(tenants))
        added = [make(number, tenant=tenants[number % len(tenants)]) for number in numbers]
        for timer in added:
            store.add(timer)
        for tenant in tenants:
            owned = [timer for timer in newest_first(added) if timer.tenant == tenant]
            assert walk(store, tenant=tenant) == owned
        assert walk(store, tenant="%") == walk(store, tenant="") == []

    def test_a_list_is_stable_between_pages(self, store: Store) -> None:
        """Timers that exist when the list begins are listed once, despite changes."""
        old = [make(number, created_at=START - number * SECOND) for number in range(10)]
        for timer in old:
            store.add(timer)

        def relabel(timer: Timer) -> None:
            store.replace(timer.change(replace(timer, label="changed")))

        changes: list[Callable[[], object]] = [
            lambda: store.claim(old[0].wakeup(), old[0].due_at, old[0].due_at + HOUR),
            lambda: self._end(store, old[3], Status.DELIVERED),
            lambda: self._end(store, old[9], Status.CANCELLED),
            lambda: relabel(old[4]),
            lambda: store.claim(old[7].wakeup(), old[7].due_at, old[7].due_at + HOUR),
            lambda: relabel(old[1]),
            lambda: self._end(store, old[8], Status.FAILED),
            lambda: relabel(old[6]),
        ]
        created: list[Timer] = []

        def between() -> None:
            number = 20 + len(created)
            created.append(make(number, created_at=START + number * SECOND))
            store.add(created[-1])
            for change in changes[:3]:
                change()
            del changes[:3]

        assert [it.id for it in walk(store, between=between)] == [it.id for it in old]
        assert not changes
        now = newest_first([*created, *old])
        assert [it.id for it in walk(store)] == [it.id for it in now]

    def test_a_list_is_stable_under_concurrent_writes(self, store: Store) -> None:
        """While threads create and deliver timers, a list has each earlier timer exactly once."""
        old = [make(number, created_at=START - number // 4 * SECOND) for number in range(30)]
        for timer in old:
            store.add(timer)

        def create() -> None:
            for number in range(100, 130):
                store.add(make(number, created_at=START + number * MICROSECOND))

        def fire() -> None:
            for timer in old:
                self._end(store, timer, Status.DELIVERED)

        with ThreadPoolExecutor(2) as threads:
            writing = [threads.submit(create), threads.submit(fire)]
            walks: list[list[str]] = []
            while not walks or not all(future.done() for future in writing):
                walks.append([timer.id for timer in walk(store, limit=11)])
            for future in writing:
                future.result()
        for seen in [*walks, [timer.id for timer in walk(store, limit=11)]]:
            assert len(seen) == len(set(seen))
            assert seen[-30:] == [timer.id for timer in newest_first(old)]
        assert len(walk(store, TimerFilter(status=Status.DELIVERED), limit=11)) == 30
