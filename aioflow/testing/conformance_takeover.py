"""claim() and renew() among several workers: what a death counts for, leases, and stores that have one worker."""

from __future__ import annotations

import anyio
import pytest

from aioflow.changes import Result
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    LEASE,
    NOW,
    SecondHandle,
    a_run,
    claiming,
    do,
    dying,
    ids,
    marking,
    moving,
    put,
    row,
    starting,
)


def _needs_leases(store: Store) -> None:
    if store.exclusive:
        pytest.skip("one worker has the whole store")


def _needs_exclusive(store: Store) -> None:
    if not store.exclusive:
        pytest.skip("workers share the store")


class TakeoverConformance(SecondHandle):
    """A running run has one living owner at most, and is never left to a dead one."""

    # ---- the dead

    @pytest.mark.parametrize(
        ("crashes", "marked", "counted"),
        [(0, 0, 1), (0, 1, 1), (1, 0, 2), (1, 1, 2), (2, 0, 2), (2, 1, 3), (3, 0, 3), (3, 1, 4), (6, 0, 6), (6, 1, 7)],
    )
    async def test_a_death_counts(self, store: Store, crashes: int, marked: int, counted: int) -> None:
        """Taking from the dead adds a crash: always while below two, then only if the run was marked."""
        await claiming(store, 3, limit=0)
        await put(store, a_run(1, owner=3, crashes=crashes, marked=marked))
        now = await dying(store)

        [taken] = (await claiming(store, 4, now)).runs
        assert (taken.owner, taken.crashes, taken.marked) == (4, counted, 0)
        assert taken.fence > 1
        assert await row(store, 1) == taken

    async def test_deaths_add_up(self, store: Store) -> None:
        """Owner after owner dies: two deaths count unmarked, from then on the marked ones, and a transition clears."""
        await put(store, a_run(1))
        now, seen = NOW, []
        for worker, mark in enumerate([False, False, False, True, False, True], start=1):
            [run] = (await claiming(store, worker, now)).runs
            seen.append(run.crashes)
            if mark:
                await do(store, marking(run))
            now = await dying(store, now)
        assert seen == [0, 1, 2, 2, 3, 3]

        [run] = (await claiming(store, 7, now)).runs
        assert run.crashes == 4
        await do(store, moving(run, crashes=0))
        now = await dying(store, now)
        assert [run.crashes for run in (await claiming(store, 8, now)).runs] == [1]

    async def test_a_worker_that_nobody_knows_is_dead(self, store: Store) -> None:
        """An owner that never claimed, or whose claim is gone, has no run."""
        await put(store, a_run(1, owner=99))
        [taken] = (await claiming(store, 3)).runs
        assert (taken.owner, taken.crashes) == (3, 1)

    async def test_the_dead_leave_more_than_one_can_take(self, store: Store) -> None:
        """What a claim has no room for is taken, and counted, by the next."""
        await put(store, *(a_run(number) for number in range(1, 6)))
        await claiming(store, 3)
        now = await dying(store)

        first = await claiming(store, 4, now, limit=2)
        second = await claiming(store, 4, now + 1, limit=9, held=ids(first.runs))
        assert sorted(ids(first.runs) + ids(second.runs)) == [1, 2, 3, 4, 5]
        assert {(run.owner, run.crashes) for run in first.runs + second.runs} == {(4, 1)}

    async def test_the_dead_cannot_write(self, store: Store) -> None:
        """A commit of the old owner comes too late, however late it comes."""
        await put(store, a_run(1))
        [old] = (await claiming(store, 3)).runs
        now = await dying(store)
        [new] = (await claiming(store, 4, now)).runs

        assert await store.apply([moving(old)], now) == [Result("stale", new)]
        assert await store.apply([marking(old)], now) == [Result("stale", new)]
        moved = await do(store, moving(new))
        assert await store.apply([moving(old, commit_id=99)], now) == [Result("stale", moved)]

    # ---- workers that share a store: leases

    async def test_the_livings_runs_are_their_own(self, store: Store) -> None:
        """Until a lease is over, nobody takes its owner's runs."""
        _needs_leases(store)
        await put(store, a_run(1))
        [taken] = (await claiming(store, 3)).runs
        assert (await claiming(store, 4, NOW + LEASE - 1)).runs == []
        assert await row(store, 1) == taken

    async def test_renew_extends_the_lease(self, store: Store) -> None:
        """A lease is counted from its last renewal, and no longer."""
        _needs_leases(store)
        await put(store, a_run(1))
        await claiming(store, 3)
        assert await store.renew(3, LEASE, NOW + LEASE // 2) is True
        assert (await claiming(store, 4, NOW + LEASE + 1)).runs == []
        assert await store.renew(4, 9 * LEASE, NOW + LEASE + 1) is True
        assert await store.renew(3, 9 * LEASE, NOW + LEASE + 2) is True
        assert await store.renew(3, LEASE - 2, NOW + LEASE + 2) is True
        assert (await claiming(store, 4, NOW + 2 * LEASE - 1)).runs == []
        assert ids((await claiming(store, 4, NOW + 2 * LEASE)).runs) == [1]

    async def test_claim_does_not_extend_the_lease(self, store: Store) -> None:
        """The first claim gives a lease; only renew prolongs it."""
        _needs_leases(store)
        await put(store, a_run(1))
        await claiming(store, 3)
        await claiming(store, 3, NOW + LEASE - 1, held=[1])
        assert ids((await claiming(store, 4, NOW + LEASE + 1)).runs) == [1]

    async def test_a_lease_that_is_over_is_not_renewed(self, store: Store) -> None:
        """Who renews too late is told so, nothing is done, and its runs can be taken."""
        _needs_leases(store)
        await put(store, a_run(1))
        [taken] = (await claiming(store, 3)).runs
        assert await store.renew(3, LEASE, NOW + LEASE + 1) is False
        assert await row(store, 1) == taken
        assert ids((await claiming(store, 4, NOW + LEASE + 2)).runs) == [1]
        claim = await claiming(store, 3, NOW + LEASE + 2, held=[1])
        assert (claim.runs, list(claim.gone)) == ([], [1])

    async def test_a_lease_is_over_from_the_instant_that_it_names(self, store: Store) -> None:
        """At that instant it cannot be renewed, its runs can be taken, and a claim gives a new one."""
        _needs_leases(store)
        await put(store, a_run(1))
        await claiming(store, 3)
        assert await store.renew(3, LEASE, NOW + LEASE) is False
        assert ids((await claiming(store, 4, NOW + LEASE)).runs) == [1]
        await claiming(store, 3, NOW + LEASE)
        assert await store.renew(3, LEASE, NOW + LEASE) is True

    async def test_who_is_back_keeps_what_nobody_took(self, store: Store) -> None:
        """A claim after the lease was over gives a new one, and leaves the worker's runs as they are."""
        _needs_leases(store)
        await put(store, a_run(1))
        [taken] = (await claiming(store, 3)).runs
        now = NOW + LEASE
        claim = await claiming(store, 3, now, held=[1])
        assert (claim.runs, list(claim.gone)) == ([], [])
        assert await row(store, 1) == taken
        assert (await claiming(store, 4, now + LEASE - 1)).runs == []

    async def test_only_known_workflows_are_taken(self, store: Store) -> None:
        """A worker takes the (workflow, version) pairs that it knows, as pairs, and no other."""
        _needs_leases(store)
        await put(
            store,
            a_run(1, workflow="order", version="1"),
            a_run(2, workflow="order", version="2"),
            a_run(3, workflow="refund", version="1"),
            a_run(4, workflow="refund", version="2"),
        )
        assert (await claiming(store, 3, known=[])).runs == []
        assert (await claiming(store, 3, known=[("report", "1")])).runs == []
        assert sorted(ids((await claiming(store, 3, known={("order", "1"), ("refund", "2")})).runs)) == [1, 4]

    async def test_claims_at_once_share_the_runs(self, store: Store) -> None:
        """No run is given to two workers that claim at the same time."""
        _needs_leases(store)
        await put(store, *(a_run(number) for number in range(1, 41)))
        taken: list[tuple[int, int]] = []

        async def work(user: Store, worker: int) -> None:
            held: list[int] = []
            for _ in range(10):
                held += ids((await claiming(user, worker, limit=5, held=held)).runs)
            taken.extend((run_id, worker) for run_id in held)

        async with self.second(store) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(work, store, 3)
            tasks.start_soon(work, other, 4)

        assert sorted(run_id for run_id, _ in taken) == list(range(1, 41))
        assert {(run.id, run.owner) for run in await store.load(range(1, 41), NOW)} == set(taken)

    # ---- one worker at a time

    async def test_an_exclusive_store_gives_what_nobody_knows(self, store: Store) -> None:
        """Who has the whole store takes runs of every workflow: to wait for another would be to wait for ever."""
        _needs_exclusive(store)
        await put(store, a_run(1), a_run(2, version="9"), a_run(3, workflow="gone"))
        assert sorted(ids((await claiming(store, 3, known=[])).runs)) == [1, 2, 3]

    async def test_an_exclusive_store_has_one_worker(self, store: Store) -> None:
        """While one works, another is told to wait, takes nothing, and keeps starting and asking."""
        _needs_exclusive(store)
        await put(store, a_run(1))
        [taken] = (await claiming(store, 3)).runs
        async with self.second(store) as other:
            await do(other, starting(a_run(2)))
            claim = await claiming(other, 4, NOW + 9 * LEASE)
            assert (claim.working, claim.runs) == (False, [])
            assert sorted(await other.load([1, 2], NOW)) == [taken, a_run(2)]
            assert ids((await claiming(store, 3, held=[1])).runs) == [2]

    async def test_an_exclusive_store_passes_on_at_release(self, store: Store) -> None:
        """When the worker stops, the next that claims has the store and its runs, uncounted."""
        _needs_exclusive(store)
        await put(store, a_run(1))
        await claiming(store, 3)
        async with self.second(store) as other:
            assert not (await claiming(other, 4)).working
            await store.release(3, NOW)
            claim = await claiming(other, 4)
            assert claim.working
            assert [(run.id, run.owner, run.crashes) for run in claim.runs] == [(1, 4, 0)]
            assert not (await claiming(store, 5)).working

    async def test_an_exclusive_store_passes_on_at_death(self, store: Store) -> None:
        """When the worker's handle is gone, the next that claims has the store and its runs, counted."""
        _needs_exclusive(store)
        await put(store, a_run(1))
        await claiming(store, 3)
        async with self.second(store) as other:
            assert not (await claiming(other, 4)).working
            await store.close()
            claim = await claiming(other, 4)
            assert claim.working
            assert [(run.id, run.owner, run.crashes) for run in claim.runs] == [(1, 4, 1)]

    async def test_who_waits_for_an_exclusive_store_cannot_give_it_away(self, store: Store) -> None:
        """The release of a worker that never had the store leaves it to the one that has."""
        _needs_exclusive(store)
        await claiming(store, 3)
        async with self.second(store) as other:
            await claiming(other, 4)
            await other.release(4, NOW)
            assert not (await claiming(other, 4)).working
            assert await other.renew(4, LEASE, NOW) is False
            assert await store.renew(3, LEASE, NOW) is True
