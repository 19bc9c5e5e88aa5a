"""apply() again, because the first outcome is unknown; and data that can never be stored."""

from __future__ import annotations

from typing import Any

import pytest

from aioflow.changes import Amend, Change, Emit, Move, Post, Result
from aioflow.errors import StoreRefused
from aioflow.model import Run, Transition
from aioflow.store import EventQuery, Store
from aioflow.testing.conformance_samples import (
    ENDED,
    NOW,
    SecondHandle,
    a_run,
    a_signal,
    a_transition,
    a_waiter,
    an_ended,
    an_event,
    cancelling,
    do,
    hopping,
    log,
    mailbox,
    marking,
    moving,
    put,
    row,
    starting,
)

#: What a database may be unable to hold. Every store is short of some of it; what it does hold, it holds exactly.
ODD_TEXTS = ["a\0b", "a\ud800b"]
ODD_NUMBERS = [2**63, 2**64, -(2**63) - 1, 10**40]
ODD: list[tuple[str, Any]] = [
    *((column, text) for column in ("step", "next_step", "data", "error", "traceback") for text in ODD_TEXTS),
    *((column, number) for column in ("wake_at", "ended_at") for number in ODD_NUMBERS),
]
#: The same, in columns that only a Start writes.
ODD_FROM_THE_START: list[tuple[str, Any]] = [
    *((column, text) for column in ("workflow", "version", "key", "event_id") for text in ODD_TEXTS),
    *(("parent_id", number) for number in ODD_NUMBERS),
]


class OffersConformance(SecondHandle):
    """Whatever was done, to offer it again does nothing more."""

    @pytest.mark.parametrize("live", [a_run(2, key="k"), a_waiter(2, key="k")], ids=["running", "waiting"])
    async def test_a_live_run_has_the_key_whatever_the_clocks_said(self, store: Store, live: Run) -> None:
        """It stands in the way also when one that has ended was started by a clock that was ahead."""
        await put(store, an_ended(1, key="k", created_at=NOW + 9))
        await do(store, starting(live, reuse="ended"))
        [result] = await store.apply([starting(a_run(3, key="k", created_at=NOW + 10), reuse="ended")], NOW)
        assert result == Result("exists", live)

    @pytest.mark.parametrize(("first", "second"), [("failed", "completed"), ("completed", "failed")])
    async def test_of_runs_of_one_instant_the_highest_id_is_the_newest(
        self, store: Store, first: str, second: str
    ) -> None:
        """Of two that have ended, a Start minds the one with the higher id, whichever was started first."""
        await put(store, an_ended(2, second, key="k"))
        await do(store, starting(an_ended(1, first, key="k"), reuse="ended"))
        [result] = await store.apply([starting(a_run(3, key="k"), reuse="failed")], NOW)
        assert result.run == (a_run(3, key="k") if second == "failed" else an_ended(2, second, key="k"))

    # ---- Start

    @pytest.mark.parametrize("key", [None, "order-1"])
    async def test_a_start_may_be_offered_again(self, store: Store, key: str | None) -> None:
        """A Start that was applied is "applied" again, and does not find its own run in its way."""
        change = starting(a_run(1, key=key))
        for _ in range(3):
            assert await store.apply([change], NOW) == [Result("applied", change.run)]
        assert await log(store, 1) == [change.transition]

    @pytest.mark.parametrize("status", ["waiting", *ENDED])
    async def test_a_start_may_be_offered_again_after_the_run_moved_on(self, store: Store, status: str) -> None:
        """The result is the row as it now stands, and the run is not set back."""
        change = starting(a_run(1, key="order-1"))
        await do(store, change)
        stands = await do(store, moving(change.run, status=status))

        assert await store.apply([change], NOW) == [Result("applied", stands)]
        assert await row(store, 1) == stands
        assert len(await log(store, 1)) == 2

    async def test_a_start_may_be_offered_again_after_its_key_was_reused(self, store: Store) -> None:
        """A newer run of the key does not make the older one's Start unapplied."""
        change = starting(an_ended(1, key="order-1"), reuse="ended")
        await do(store, change)
        await do(store, starting(a_run(2, key="order-1"), reuse="ended"))

        assert await store.apply([change], NOW) == [Result("applied", change.run)]

    async def test_a_start_that_found_its_key_taken_finds_it_again(self, store: Store) -> None:
        """A Start that did not apply is judged anew when it is offered again."""
        await put(store, a_run(1, key="order-1"))
        change = starting(a_run(2, key="order-1"), reuse="ended")
        assert await store.apply([change], NOW) == [Result("exists", a_run(1, key="order-1"))]
        assert await store.apply([change], NOW) == [Result("exists", a_run(1, key="order-1"))]

        await do(store, moving(a_run(1, key="order-1"), status="completed"))
        assert await store.apply([change], NOW) == [Result("applied", change.run)]

    # ---- Move

    async def test_a_move_may_be_offered_again(self, store: Store) -> None:
        """A Move that was applied is "applied" again, once in the history."""
        await put(store, a_run(1))
        change = moving(a_run(1))
        for _ in range(3):
            assert await store.apply([change], NOW) == [Result("applied", change.run)]
        assert await log(store, 1) == [starting(a_run(1)).transition, change.transition]

    @pytest.mark.parametrize("after", ["moved", "cancelled", "marked", "claimed"])
    async def test_a_move_may_be_offered_again_after_the_run_changed(self, store: Store, after: str) -> None:
        """Whoever changed the run since, the Move had been applied: the row as it now stands is the result."""
        await put(store, a_run(1))
        change = moving(a_run(1))
        moved = await do(store, change)
        match after:
            case "moved":
                await do(store, moving(await do(store, moving(moved))))
            case "cancelled":
                await do(store, cancelling(1, commit_id=77))
            case "marked":
                await do(store, marking(moved))
            case "claimed":
                await store.claim(5, lease=10, limit=1, known=[("order", "1")], held=[], now=NOW)
        stands = await row(store, 1)
        lines = await log(store, 1)
        assert stands != moved

        assert await store.apply([change], NOW) == [Result("applied", stands)]
        assert await row(store, 1) == stands
        assert await log(store, 1) == lines

    @pytest.mark.parametrize("guarded", [False, True])
    async def test_a_move_is_known_by_its_commit_id_alone(self, store: Store, *, guarded: bool) -> None:
        """The same Move by somebody else is not the same offer."""
        await put(store, a_run(1))
        moved = await do(store, moving(a_run(1), commit_id=10))
        change = moving(a_run(1), commit_id=11)._replace(unless_mail=guarded)
        assert await store.apply([change], NOW) == [Result("stale", moved)]

    @pytest.mark.parametrize("guarded", [False, True])
    async def test_a_move_is_looked_for_in_its_own_history_row(self, store: Store, *, guarded: bool) -> None:
        """A commit_id that wrote another row of the history does not make a Move applied."""
        await put(store, a_run(1))
        moved = await do(store, moving(a_run(1), commit_id=10))
        moved = await do(store, moving(moved, commit_id=11))
        change = moving(a_run(1, seq=1), commit_id=11)._replace(unless_mail=guarded)
        assert await store.apply([change], NOW) == [Result("stale", moved)]

    @pytest.mark.parametrize("guarded", [False, True])
    async def test_a_move_is_looked_for_in_its_own_run(self, store: Store, *, guarded: bool) -> None:
        """A commit_id in another run's history does not make a Move applied."""
        await put(store, a_run(1), a_run(2))
        here = await do(store, moving(a_run(1), commit_id=10))
        elsewhere = await do(store, moving(a_run(2), commit_id=11))
        changes = [moving(a_run(number), commit_id=10)._replace(unless_mail=guarded) for number in (1, 2)]
        assert await store.apply(changes, NOW) == [Result("applied", here), Result("stale", elsewhere)]

    # ---- Mark, Amend

    async def test_a_mark_does_not_outlive_its_moment(self, store: Store) -> None:
        """A Mark that is offered again after the run moved on is stale, and marks nothing."""
        await put(store, a_run(1))
        marked = await do(store, marking(a_run(1)))
        moved = await do(store, moving(marked, marked=0))
        assert await store.apply([marking(a_run(1))], NOW) == [Result("stale", moved)]

    async def test_an_amend_may_be_offered_again(self, store: Store) -> None:
        """An Amend that was applied does not decide a second time, though it could."""
        await put(store, a_run(1))
        hopped = await do(store, hopping(1, commit_id=77))
        assert await do(store, hopping(1, commit_id=77)) == hopped
        moved = await do(store, moving(hopped))
        assert await do(store, hopping(1, commit_id=77)) == moved
        cancelled = await do(store, cancelling(1, commit_id=78))

        assert await do(store, hopping(1, commit_id=77)) == cancelled
        assert await do(store, cancelling(1, commit_id=78)) == cancelled
        assert (cancelled.hops, cancelled.seq) == (1, 4)
        assert await row(store, 1) == cancelled
        assert [line.seq for line in await log(store, 1)] == [1, 2, 3, 4]

    async def test_an_amend_offered_again_tells_the_history_row_that_it_wrote(self, store: Store) -> None:
        """The result has the first offer's history row, wherever the history stands."""
        await put(store, a_run(1))
        [first] = await store.apply([hopping(1, commit_id=77)], NOW)
        moved = await do(store, moving(await row(store, 1)))
        assert await store.apply([hopping(1, commit_id=77)], NOW) == [Result("applied", moved, first.transition)]
        assert first.transition == (await log(store, 1))[1]

    # ---- batches

    async def test_a_batch_may_be_offered_again(self, store: Store) -> None:
        """What applied is applied, what was refused is refused, and nothing is done twice."""
        await put(store, a_run(1), a_run(2), a_run(3), a_run(4, key="taken"))
        batch: list[Change] = [
            starting(a_run(6)),
            moving(a_run(1)),
            marking(a_run(2)),
            hopping(3, commit_id=77),
            starting(a_run(7, key="taken")),
            moving(a_run(8)),
        ]
        first = await store.apply(batch, NOW)
        runs = sorted(await store.load(range(1, 10), NOW))
        lines = [await log(store, number) for number in range(1, 10)]

        assert [result.outcome for result in first] == [*["applied"] * 4, "exists", "stale"]
        assert await store.apply(batch, NOW) == first
        assert sorted(await store.load(range(1, 10), NOW)) == runs
        assert [await log(store, number) for number in range(1, 10)] == lines

    async def test_a_batch_may_be_offered_again_after_a_restart(self, store: Store) -> None:
        """What tells that a change was applied is stored with it."""
        await put(store, a_run(1), a_run(2))
        batch: list[Change] = [starting(a_run(3)), moving(a_run(1)), hopping(2, commit_id=77)]
        first = await store.apply(batch, NOW)
        await store.close()
        await store.open(NOW)
        assert await store.apply(batch, NOW) == first

    async def test_a_batch_may_be_offered_again_by_another_handle(self, store: Store) -> None:
        """Whoever offers the changes again is told that they were applied."""
        await put(store, a_run(1), a_run(2))
        batch: list[Change] = [starting(a_run(3)), moving(a_run(1)), hopping(2, commit_id=77)]
        first = await store.apply(batch, NOW)
        async with self.second(store) as other:
            assert await other.apply(batch, NOW) == first

    # ---- data that cannot be stored

    @pytest.mark.parametrize(
        ("kind", "column", "value"),
        [
            *(("start", *odd) for odd in ODD + ODD_FROM_THE_START),
            *(("move", *odd) for odd in ODD),
            *(("amend", *odd) for odd in ODD),
        ],
        ids=ascii,
    )
    async def test_a_row_is_stored_exactly_or_refused_with_its_whole_batch(
        self, store: Store, kind: str, column: str, value: Any
    ) -> None:
        """A value is never bent to fit: it comes back as it was, or the batch has not happened."""
        before = [a_run(1), a_run(2)]
        await put(store, *before)
        odd: dict[str, Any] = {column: value}
        to = a_run(2, seq=2, **odd)
        changes: dict[str, Change] = {
            "start": starting(a_run(3, **odd)),
            "move": moving(a_run(2), **odd),
            "amend": Amend(2, lambda run: (to, a_transition(to, kind="goto", commit_id=7)), commit_id=7),
        }
        batch = [moving(a_run(1)), changes[kind], starting(a_run(4))]

        try:
            results = await store.apply(batch, NOW)
        except StoreRefused:
            assert sorted(await store.load(range(1, 5), NOW)) == before
            assert [len(await log(store, number)) for number in range(1, 5)] == [1, 1, 0, 0]
        else:
            assert [result.outcome for result in results] == ["applied"] * 3
            assert results[1].run is not None
            assert getattr(await row(store, results[1].run.id), column) == value

    async def test_an_integer_of_ten_thousand_bits_is_refused(self, store: Store) -> None:
        """No store holds every integer, and what can never be stored is refused as such."""
        with pytest.raises(StoreRefused):
            await store.apply([starting(a_run(1, parent_id=2**10_000))], NOW)
        assert await store.load([1], NOW) == []

    @pytest.mark.parametrize("error", ODD_TEXTS, ids=ascii)
    async def test_a_history_row_is_stored_exactly_or_refused(self, store: Store, error: str) -> None:
        """A history row that cannot be stored takes its run's row, and its batch, with it."""
        await put(store, a_run(1))
        change = moving(a_run(1))
        odd = change._replace(transition=change.transition._replace(error=error))

        try:
            await store.apply([starting(a_run(2)), odd], NOW)
        except StoreRefused:
            assert await store.load([1, 2], NOW) == [a_run(1)]
            assert await log(store, 2) == []
        else:
            assert (await log(store, 1))[-1] == odd.transition

    async def test_the_rest_of_a_refused_batch_can_still_be_applied(self, store: Store) -> None:
        """After a refusal the same changes without the refused one apply, with the same ids."""
        await put(store, a_run(1))
        good: list[Change] = [moving(a_run(1)), starting(a_run(2, key="order-2"))]
        with pytest.raises(StoreRefused):
            await store.apply([*good, starting(a_run(3, parent_id=2**10_000))], NOW)
        assert await store.load([1, 2, 3], NOW) == [a_run(1)]
        assert [len(await log(store, number)) for number in (1, 2, 3)] == [1, 0, 0]

        assert [result.outcome for result in await store.apply(good, NOW)] == ["applied", "applied"]
        assert [len(await log(store, number)) for number in (1, 2, 3)] == [2, 1, 0]

    async def test_a_decision_that_cannot_be_stored_is_refused(self, store: Store) -> None:
        """What an Amend decides is held to the same."""
        await put(store, a_run(1), a_run(2))

        def decide(run: Run) -> tuple[Run, Transition]:
            to = run._replace(seq=2, wake_at=2**10_000)
            return to, a_transition(to, kind="goto", commit_id=77)

        with pytest.raises(StoreRefused):
            await store.apply([moving(a_run(1)), Amend(2, decide, 77)], NOW)
        assert sorted(await store.load([1, 2], NOW)) == [a_run(1), a_run(2)]

    async def test_what_a_decision_raises_undoes_the_batch(self, store: Store) -> None:
        """The caller is raised that very error, nothing was changed, and without it the batch can be applied."""
        await put(store, a_run(1), a_run(2), a_waiter(3))
        good: list[Change] = [moving(a_run(1)), starting(a_run(4, key="k")), Post(a_signal(1)), Emit(an_event())]

        def decide(run: Run) -> tuple[Run, Transition]:
            raise LookupError(run.id)

        with pytest.raises(LookupError, match="2"):
            await store.apply([*good, Amend(2, decide, 77)], NOW)
        assert sorted(await store.load(range(5), NOW)) == [a_run(1), a_run(2), a_waiter(3)]
        assert [len(await log(store, number)) for number in (1, 2, 4)] == [1, 1, 0]
        assert await mailbox(store) == []
        assert await store.select(EventQuery(), NOW) == []
        assert [result.outcome for result in await store.apply(good, NOW)] == ["applied"] * 4

    async def test_a_stale_offer_does_not_become_a_gap(self, store: Store) -> None:
        """A Move whose guard fails leaves no history row behind that a later one would meet."""
        await put(store, a_run(1))
        change = Move(a_run(1, seq=5), 4, 1, a_transition(a_run(1, seq=5), kind="goto"))
        assert await store.apply([change], NOW) == [Result("stale", a_run(1))]
        assert [line.seq for line in await log(store, 1)] == [1]
