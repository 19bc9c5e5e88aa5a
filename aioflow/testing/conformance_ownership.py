"""claim(), renew() and release(): who runs what."""

from __future__ import annotations

from aioflow.changes import Result
from aioflow.model import Run
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    ENDED,
    LEASE,
    NOW,
    a_run,
    a_sleeper,
    an_ended,
    claiming,
    do,
    dying,
    ids,
    log,
    marking,
    moving,
    put,
    row,
)


def _unowned(run: Run) -> Run:
    """The run but for what an owner's coming and going may change."""
    return run._replace(owner=None, fence=0, crashes=0, marked=0)


class OwnershipConformance:
    """A worker gets what it can run, keeps it, and lets go of it."""

    # ---- taking

    async def test_claim_takes_running_runs_without_owner(self, store: Store) -> None:
        """The worker becomes the owner, the fence rises, nothing is counted; the store has what was returned."""
        await put(store, a_run(1), a_run(2, fence=6, crashes=1, marked=1))
        claim = await claiming(store, 3)

        assert claim.working
        one, two = sorted(claim.runs)
        assert (one.owner, one.crashes, one.marked) == (3, 0, 0)
        assert (two.owner, two.crashes, two.marked) == (3, 1, 0)
        assert one.fence > 1
        assert two.fence > 6
        assert sorted(await store.load([1, 2], NOW)) == [one, two]

    async def test_claim_changes_nothing_but_the_ownership(self, store: Store) -> None:
        """Step, data, seq, times and history stay: a taking is no transition."""
        run = a_run(1, progress=0.5, failures=2, hops=3, error="once")
        await put(store, run)
        now = NOW + LEASE

        [taken] = (await claiming(store, 3, now)).runs
        assert _unowned(taken) == _unowned(run)
        assert len(await log(store, 1)) == 1

    async def test_claim_takes_no_run_that_does_not_run(self, store: Store) -> None:
        """Waiting and ended runs have no owner, also while others are taken."""
        resting = [a_sleeper(1, NOW - 1), *(an_ended(number, status) for number, status in enumerate(ENDED, start=2))]
        await put(store, *resting)
        assert (await claiming(store, 3)).runs == []
        await put(store, a_run(9))
        assert ids((await claiming(store, 3)).runs) == [9]
        assert sorted(await store.load(range(1, 5), NOW)) == resting

    async def test_claim_takes_what_it_has_room_for(self, store: Store) -> None:
        """At most ``limit`` runs are taken; the next claim takes others."""
        await put(store, *(a_run(number) for number in range(1, 8)))
        held: list[int] = []
        for expected in (3, 3, 1, 0):
            claim = await claiming(store, 3, limit=3, held=held)
            assert len(claim.runs) == expected
            held += ids(claim.runs)
        assert sorted(held) == list(range(1, 8))

    async def test_claim_takes_runs_in_order(self, store: Store) -> None:
        """Runs without an owner are taken as they were created, from ``after`` on; what is owned is told all the same."""
        await put(store, *(a_run(number, created_at=NOW - number // 3) for number in range(1, 8)))
        assert sorted(ids((await claiming(store, 3, limit=2, after=(NOW - 2, 6))).runs)) == [3, 7]
        assert sorted(ids((await claiming(store, 3, limit=2, held=[3, 7])).runs)) == [4, 6]
        assert sorted(ids((await claiming(store, 3, limit=2, held=[3, 4, 7], after=(NOW, 1))).runs)) == [2, 6]
        assert sorted(ids((await claiming(store, 3, held=[2, 3, 4, 6, 7], after=(NOW - 1, 3))).runs)) == [1, 5]

    async def test_claim_leaves_suspects(self, store: Store) -> None:
        """Without ``suspects`` runs that have crashed twice are left, those of the dead, too; and with it they come."""
        crashed = {number: a_run(number, crashes=(number - 1) % 3) for number in range(1, 7)}
        await put(store, *(crashed[number] for number in (1, 2, 3)))
        assert sorted(ids((await claiming(store, 3, suspects=False)).runs)) == [1, 2]
        assert sorted(ids((await claiming(store, 3, held=[1, 2])).runs)) == [3]
        now = await dying(store)
        await put(store, *(crashed[number] for number in (4, 5, 6)))
        taken = ids((await claiming(store, 4, now, suspects=False)).runs)
        assert set(taken) in ({1, 4, 5}, {1, 2, 4, 5})  # by its second crash run 2 is one, which a store may see first
        rest = ids((await claiming(store, 4, now, held=taken)).runs)
        assert sorted(taken + rest) == list(range(1, 7))

    async def test_claim_without_room_takes_nothing(self, store: Store) -> None:
        """With ``limit`` 0, or below it as a worker has more than it has room for, it is registered, and gets no run."""
        await put(store, a_run(1))
        for limit in (-1, 0):
            claim = await claiming(store, 3, limit=limit)
            assert (claim.working, claim.runs) == (True, [])
        assert await row(store, 1) == a_run(1)
        assert await store.renew(3, LEASE, NOW + 1) is True

    async def test_claim_of_an_empty_store(self, store: Store) -> None:
        """A worker works before there is anything to do."""
        claim = await claiming(store, 3)
        assert (claim.working, claim.runs) == (True, [])

    # ---- what the worker has

    async def test_a_lost_reply_is_given_again(self, store: Store) -> None:
        """Runs that are the worker's, but that it does not hold, are returned unchanged."""
        await put(store, a_run(1), a_run(2))
        first = sorted((await claiming(store, 3)).runs)

        again = await claiming(store, 3, NOW + 1)
        assert sorted(again.runs) == first
        assert sorted(await store.load([1, 2], NOW)) == first

        await put(store, a_run(3), a_run(4))
        assert sorted((await claiming(store, 3, NOW + 1, limit=0)).runs) == first
        more = await claiming(store, 3, NOW + 1, limit=1)
        assert len(more.runs) == 3
        assert sorted(more.runs)[:2] == first
        assert sorted((await claiming(store, 3, NOW + 1, known=[], limit=0)).runs) == sorted(more.runs)

    async def test_what_is_held_and_lost_is_gone(self, store: Store) -> None:
        """What has ended, waits or never was is gone, whatever the limit; what is owned, or taken by the claim, is not."""
        await put(store, *(a_run(number) for number in range(1, 5)))
        one, two, three, four = sorted((await claiming(store, 3)).runs)
        await do(store, moving(one, status="completed", owner=None))
        await do(store, moving(two, status="waiting", owner=None, waiting_for="sleep", wake_at=NOW))
        await do(store, moving(four, owner=None))
        claim = await claiming(store, 3, limit=0, held={1, 2, 3, 4, 77})
        assert (claim.runs, sorted(claim.gone)) == ([], [1, 2, 4, 77])
        assert list((await claiming(store, 3, limit=0, held=None)).gone) == []
        claim = await claiming(store, 3, held=[three.id, four.id])
        assert (ids(claim.runs), list(claim.gone)) == ([4], [])

    async def test_what_is_held_is_not_given_again(self, store: Store) -> None:
        """A worker is not told of the runs that it says it holds."""
        await put(store, a_run(1), a_run(2), a_run(3))
        await claiming(store, 3)
        assert ids((await claiming(store, 3, held={1, 3})).runs) == [2]
        assert (await claiming(store, 3, held=[1, 2, 3])).runs == []

    async def test_own_runs_are_not_looked_for_unless_asked(self, store: Store) -> None:
        """With ``held`` None a worker gets what it takes, and no lost reply."""
        await put(store, a_run(1))
        await claiming(store, 3)
        await put(store, a_run(2))
        assert ids((await claiming(store, 3, held=None)).runs) == [2]
        assert (await claiming(store, 3, held=None)).runs == []
        assert sorted(ids((await claiming(store, 3)).runs)) == [1, 2]

    async def test_what_was_started_for_the_worker_is_its_own(self, store: Store) -> None:
        """A run may be started in the hands of its owner, who gets it unchanged if it does not hold it."""
        await claiming(store, 3, limit=0)
        await put(store, a_run(1, owner=3), a_run(2, owner=3))
        assert (await claiming(store, 3, held=[1])).runs == [a_run(2, owner=3)]

    async def test_an_own_run_that_rests_is_not_given(self, store: Store) -> None:
        """Only running runs are given, whoever had them last."""
        await put(store, a_run(1), a_run(2))
        one, two = sorted((await claiming(store, 3)).runs)
        await do(store, moving(one, status="completed", owner=None))
        await do(store, moving(two, status="waiting", owner=None, waiting_for="sleep", wake_at=NOW))
        assert (await claiming(store, 3)).runs == []

    async def test_the_owner_commits_with_the_fence_it_was_given(self, store: Store) -> None:
        """A claimed run moves on under the claimed row's guards, and no longer under the old."""
        await put(store, a_run(1))
        [taken] = (await claiming(store, 3)).runs
        assert await store.apply([moving(a_run(1))], NOW) == [Result("stale", taken)]
        assert (await do(store, moving(taken))).owner == 3

    # ---- release

    async def test_release_frees_the_workers_runs(self, store: Store) -> None:
        """Released runs have no owner and no mark, and the next worker's taking them counts nothing."""
        await put(store, a_run(1), a_run(2, crashes=2))
        one, two = sorted((await claiming(store, 3)).runs)
        await do(store, marking(two))
        await store.release(3, NOW + 1)

        free = sorted(await store.load([1, 2], NOW))
        assert [(run.owner, run.crashes, run.marked) for run in free] == [(None, 0, 0), (None, 2, 0)]
        assert [_unowned(run) for run in free] == [_unowned(one), _unowned(two)]
        assert await store.apply([moving(one), marking(two)], NOW + 1) == [Result("stale", run) for run in free]
        assert [len(await log(store, number)) for number in (1, 2)] == [1, 1]

        taken = sorted((await claiming(store, 4, NOW + 2)).runs)
        assert [(run.owner, run.crashes) for run in taken] == [(4, 0), (4, 2)]
        assert all(new.fence > old.fence for new, old in zip(taken, [one, two], strict=True))

    async def test_release_leaves_all_else_alone(self, store: Store) -> None:
        """Others' runs, and runs that do not run, are not touched."""
        await claiming(store, 3, limit=0)
        others = [
            a_run(1),
            a_run(2, owner=99, marked=1, crashes=1),
            a_sleeper(3, NOW),
            an_ended(4),
        ]
        await put(store, *others, a_run(5, owner=3))
        await store.release(3, NOW)
        assert sorted(await store.load(range(1, 5), NOW)) == others
        assert (await row(store, 5)).owner is None

    async def test_release_ends_the_lease(self, store: Store) -> None:
        """A worker that stopped cannot renew."""
        await claiming(store, 3)
        await store.release(3, NOW + 1)
        assert await store.renew(3, LEASE, NOW + 2) is False

    async def test_release_may_be_repeated(self, store: Store) -> None:
        """To release what is released, or was never claimed, is no error."""
        await put(store, a_run(1))
        await claiming(store, 3)
        await store.release(3, NOW)
        free = await row(store, 1)
        await store.release(3, NOW)
        await store.release(99, NOW)
        assert await row(store, 1) == free
