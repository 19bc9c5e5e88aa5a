"""apply(): what each change does, and what each guard keeps out."""

from __future__ import annotations

from typing import Any

import pytest

from aioflow.changes import Amend, Change, Mark, Move, Result
from aioflow.clock import SECOND
from aioflow.model import Reuse, Run
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    ENDED,
    NOW,
    a_run,
    an_ended,
    cancelling,
    do,
    hopping,
    log,
    marking,
    moving,
    put,
    row,
    starting,
)

#: Every column that a Move may change, changed.
ELSEWHERE: dict[str, Any] = {
    "status": "waiting",
    "step": "ship",
    "next_step": "review",
    "fence": 7,
    "owner": 3,
    "visit": 2,
    "failures": 4,
    "hops": 5,
    "crashes": 6,
    "marked": 1,
    "waiting_for": "retry",
    "wake_at": NOW + 9,
    "progress": 0.25,
    "data": '{"total":18}',
    "error": "no stock",
    "traceback": "Traceback (most recent call last): …",
    "updated_at": NOW + 8,
    "ended_at": NOW + 10,
}

#: status of the newest run with the key, reuse, what becomes of a Start with the same key
REUSES: list[tuple[str, Reuse, str]] = [
    ("running", "never", "exists"),
    ("running", "ended", "exists"),
    ("running", "failed", "exists"),
    ("waiting", "never", "exists"),
    ("waiting", "ended", "exists"),
    ("waiting", "failed", "exists"),
    ("completed", "never", "exists"),
    ("completed", "ended", "applied"),
    ("completed", "failed", "exists"),
    ("cancelled", "never", "exists"),
    ("cancelled", "ended", "applied"),
    ("cancelled", "failed", "exists"),
    ("failed", "never", "exists"),
    ("failed", "ended", "applied"),
    ("failed", "failed", "applied"),
]


class ApplyConformance:
    """One change, and several side by side."""

    # ---- Start

    async def test_start_inserts_the_run_and_its_first_history_row(self, store: Store) -> None:
        """A Start is there afterwards, run and history, as it was given."""
        change = starting(a_run(1))

        assert await store.apply([change], NOW) == [Result("applied", change.run)]
        assert await store.load([1], NOW) == [change.run]
        assert await log(store, 1) == [change.transition]

    @pytest.mark.parametrize(("status", "reuse", "outcome"), REUSES)
    async def test_start_minds_the_run_that_has_its_key(
        self, store: Store, status: str, reuse: Reuse, outcome: str
    ) -> None:
        """A taken key stands in the way as the Start's ``reuse`` says, and the result tells who has it."""
        holder = a_run(1, key="order-1", status=status)
        comer = a_run(2, key="order-1")
        await put(store, holder)

        [result] = await store.apply([starting(comer, reuse=reuse)], NOW)

        assert result == Result("applied", comer) if outcome == "applied" else Result("exists", holder)
        assert await store.load([2], NOW) == ([comer] if outcome == "applied" else [])
        assert len(await log(store, 2)) == (1 if outcome == "applied" else 0)
        assert await row(store, 1) == holder

    async def test_start_minds_the_newest_run_of_its_key_whatever_the_ids(self, store: Store) -> None:
        """The newest run of a key is the one that was started last: blocks of ids are used side by side."""
        await put(store, an_ended(20, key="order-1"))
        newest = a_run(10, key="order-1", created_at=NOW + SECOND)
        assert await store.apply([starting(newest, reuse="ended")], NOW) == [Result("applied", newest)]

        late = a_run(30, key="order-1", created_at=NOW + 2 * SECOND)
        assert await store.apply([starting(late, reuse="ended")], NOW) == [Result("exists", newest)]

    async def test_start_minds_the_status_as_it_now_stands(self, store: Store) -> None:
        """A key is free for reuse from the moment at which its run ends."""
        await put(store, a_run(1, key="order-1"))
        ended = await do(store, moving(await row(store, 1), kind="fail", status="failed"))

        assert await store.apply([starting(a_run(2, key="order-1"))], NOW) == [Result("exists", ended)]
        again = a_run(3, key="order-1")
        assert await store.apply([starting(again, reuse="failed")], NOW) == [Result("applied", again)]

    async def test_keys_are_per_workflow(self, store: Store) -> None:
        """Another workflow's run does not take the key, a run of another version does."""
        await put(store, a_run(1, key="k"), a_run(2, key="k", workflow="refund"))

        [result] = await store.apply([starting(a_run(3, key="k", version="2"))], NOW)
        assert result == Result("exists", await row(store, 1))

    async def test_runs_without_key_do_not_collide(self, store: Store) -> None:
        """No key is not a key."""
        await put(store, a_run(1), a_run(2), a_run(3))
        assert len(await store.load([1, 2, 3], NOW)) == 3

    async def test_keys_are_equal_only_if_every_character_is(self, store: Store) -> None:
        """No case folding, no trimming, no Unicode normalisation, no numbers."""
        keys = ["order", "Order", "order ", " order", "é", "e\u0301", "ß", "ss", "1", "1.0", "01", "%", "_"]
        await put(store, *(a_run(number, key=key) for number, key in enumerate(keys, start=1)))
        assert await store.load([1], NOW) == [a_run(1, key="order")]

    async def test_start_does_not_overwrite_a_run(self, store: Store) -> None:
        """A Start of an id that another commit has taken is stale."""
        await put(store, a_run(1))
        other = starting(a_run(1, workflow="refund"), commit_id=99)

        assert await store.apply([other], NOW) == [Result("stale", a_run(1))]
        assert await row(store, 1) == a_run(1)
        assert len(await log(store, 1)) == 1

    # ---- Move

    async def test_move_replaces_the_row_and_adds_a_history_row(self, store: Store) -> None:
        """After a Move the row is the one it gave, in every column that may change."""
        await put(store, a_run(1))
        change = moving(a_run(1), **ELSEWHERE)

        assert await store.apply([change], NOW) == [Result("applied", change.run)]
        assert await row(store, 1) == change.run
        assert await log(store, 1) == [starting(a_run(1)).transition, change.transition]

    async def test_move_sets_columns_back_to_none(self, store: Store) -> None:
        """A Move writes None over what was there."""
        await put(store, a_run(1))
        far = await do(store, moving(a_run(1), **ELSEWHERE))
        back = {column: getattr(a_run(1), column) for column in ELSEWHERE}

        near = await do(store, moving(far, **back))
        assert await row(store, 1) == near == a_run(1, seq=3)

    @pytest.mark.parametrize(("seq", "fence"), [(1, 1), (3, 1), (2, 0), (2, 2), (1, 2)])
    async def test_move_needs_the_seq_and_the_fence(self, store: Store, seq: int, fence: int) -> None:
        """A Move that names another seq or fence changes nothing and is told how the row stands."""
        await put(store, a_run(1))
        stands = await do(store, moving(a_run(1)))
        change = moving(stands, data='{"lost":true}')._replace(seq=seq, fence=fence)

        assert await store.apply([change], NOW) == [Result("stale", stands)]
        assert await row(store, 1) == stands
        assert len(await log(store, 1)) == 2

    async def test_move_of_no_run_is_stale(self, store: Store) -> None:
        """A Move does not make a run."""
        assert await store.apply([moving(a_run(1))], NOW) == [Result("stale", None)]
        assert await store.load([1], NOW) == []
        assert await log(store, 1) == []

    @pytest.mark.parametrize("status", ENDED)
    async def test_a_row_that_ends_is_stored_as_given(self, store: Store, status: str) -> None:
        """The store adds nothing to a row that ends, by whichever change: its own columns free it of its owner."""
        await put(store, *(a_run(number, owner=5, marked=1) for number in (1, 2)))
        columns: dict[str, Any] = {"status": status, "ended_at": NOW + 1, "data": "{}", "error": "over"}

        moved = await do(store, moving(a_run(1, owner=5, marked=1), kind="complete", **columns))
        assert await row(store, 1) == moved == a_run(1, owner=5, marked=1, seq=2, updated_at=NOW + SECOND, **columns)

        to = a_run(2, owner=5, marked=1, seq=2, **columns)
        amend = Amend(2, lambda run: (to, moving(run, kind="fail", commit_id=8).transition), commit_id=8)
        assert await do(store, amend) == await row(store, 2) == to

        started = a_run(3, owner=5, marked=1, **columns)
        await put(store, started)
        assert await row(store, 3) == started

    # ---- Mark

    async def test_mark_sets_the_mark_and_nothing_else(self, store: Store) -> None:
        """A Mark changes one column and writes no history."""
        await put(store, a_run(1, owner=5, crashes=2))
        marked = a_run(1, owner=5, crashes=2, marked=1)

        assert await store.apply([marking(a_run(1))], NOW + 9) == [Result("applied", marked)]
        assert await row(store, 1) == marked
        assert len(await log(store, 1)) == 1

    @pytest.mark.parametrize("status", ["running", "waiting"])
    async def test_mark_may_be_repeated(self, store: Store, status: str) -> None:
        """The second Mark finds what the first left, and applies, whatever the status."""
        await put(store, a_run(1, status=status))
        await do(store, marking(a_run(1)))
        assert await do(store, marking(a_run(1))) == await row(store, 1) == a_run(1, status=status, marked=1)

    @pytest.mark.parametrize(("seq", "fence"), [(1, 1), (3, 1), (2, 0), (2, 2)])
    async def test_mark_needs_the_seq_and_the_fence(self, store: Store, seq: int, fence: int) -> None:
        """A Mark that names another seq or fence marks nothing."""
        await put(store, a_run(1))
        stands = await do(store, moving(a_run(1)))

        assert await store.apply([Mark(1, seq, fence)], NOW) == [Result("stale", stands)]
        assert await row(store, 1) == stands

    async def test_mark_of_no_run_is_stale(self, store: Store) -> None:
        """A Mark does not make a run."""
        assert await store.apply([Mark(1, 1, 1)], NOW) == [Result("stale", None)]

    # ---- Amend

    async def test_amend_decides_on_the_row_as_it_stands(self, store: Store) -> None:
        """An Amend is given the whole row as the last transaction left it, and needs no guard."""
        await put(store, a_run(1))
        stands = await do(store, moving(a_run(1), **ELSEWHERE))
        seen: list[Run] = []
        cancel = cancelling(1, commit_id=77)

        def decide(run: Run) -> Any:
            seen.append(run)
            return cancel.decide(run)

        cancelled = await do(store, cancel._replace(decide=decide))
        assert seen[-1] == stands
        assert await row(store, 1) == cancelled
        assert (cancelled.status, cancelled.seq, cancelled.fence) == ("cancelled", 3, 8)
        assert [(line.seq, line.kind, line.commit_id) for line in await log(store, 1)][-1] == (3, "cancel", 77)

    async def test_amend_tells_the_history_row_that_it_wrote(self, store: Store) -> None:
        """The result of an applied Amend has both rows; other changes brought theirs."""
        await put(store, a_run(1), a_run(2))
        results = await store.apply([cancelling(1, commit_id=77), moving(a_run(2)), starting(a_run(3))], NOW)

        assert results[0].transition == (await log(store, 1))[-1]
        assert [result.transition for result in results[1:]] == [None, None]

    async def test_amend_may_leave_the_run_alone(self, store: Store) -> None:
        """An Amend that decides on nothing changes nothing, and is told how the row stands."""
        await put(store, an_ended(1))

        assert await store.apply([cancelling(1, commit_id=77)], NOW) == [Result("stale", an_ended(1))]
        assert await row(store, 1) == an_ended(1)
        assert len(await log(store, 1)) == 1

    async def test_amend_of_no_run_is_stale(self, store: Store) -> None:
        """An Amend has nothing to decide where there is no run."""
        assert await store.apply([cancelling(1, commit_id=77)], NOW) == [Result("stale", None)]
        assert await log(store, 1) == []

    async def test_an_amended_run_refuses_the_commit_that_was_under_way(self, store: Store) -> None:
        """What was decided on the row before an Amend is stale after it."""
        await put(store, a_run(1))
        cancelled = await do(store, cancelling(1, commit_id=77))
        assert await store.apply([moving(a_run(1))], NOW) == [Result("stale", cancelled)]

    # ---- a batch

    async def test_results_come_in_the_order_of_the_changes(self, store: Store) -> None:
        """The n-th result is the n-th change's, whatever the kinds and ids."""
        await put(store, a_run(3), a_run(5), a_run(7), a_run(8, key="taken"))

        results = await store.apply(
            [
                moving(a_run(7)),
                starting(a_run(2)),
                marking(a_run(5)),
                moving(a_run(4)),
                starting(a_run(9, key="taken")),
                cancelling(3, commit_id=77),
                starting(a_run(1)),
            ],
            NOW,
        )

        assert [(result.outcome, result.run and result.run.id) for result in results] == [
            ("applied", 7),
            ("applied", 2),
            ("applied", 5),
            ("stale", None),
            ("exists", 8),
            ("applied", 3),
            ("applied", 1),
        ]
        for result in results:
            assert result.run is None or result.run == await row(store, result.run.id)

    async def test_no_changes_have_no_results(self, store: Store) -> None:
        """An empty batch is nothing to do."""
        assert await store.apply([], NOW) == []

    @pytest.mark.parametrize("place", [0, 1, 2])
    async def test_a_stale_change_does_not_undo_its_neighbours(self, store: Store, place: int) -> None:
        """The good changes of a batch apply, wherever the stale and the taken ones stand."""
        await put(store, a_run(1), a_run(2, key="taken"))
        changes: list[Change] = [moving(a_run(1)), starting(a_run(3))]
        changes[place:place] = [Move(a_run(4), 1, 1, moving(a_run(4)).transition), starting(a_run(5, key="taken"))]

        outcomes = [result.outcome for result in await store.apply(changes, NOW)]
        assert outcomes == [*["applied"] * place, "stale", "exists", *["applied"] * (2 - place)]
        assert [(run.id, run.seq) for run in sorted(await store.load([1, 3, 4, 5], NOW))] == [(1, 2), (3, 1)]

    async def test_a_batch_may_be_large(self, store: Store) -> None:
        """Thousands of changes are one transaction."""
        started = [a_run(number, key=f"key-{number}") for number in range(1, 3_001)]
        results = await store.apply([starting(run) for run in started], NOW)
        assert results == [Result("applied", run) for run in started]

        moves = [moving(run) for run in started]
        assert await store.apply(moves, NOW) == [Result("applied", move.run) for move in moves]
        assert sorted(await store.load(range(1, 3_001), NOW)) == [move.run for move in moves]

    async def test_histories_have_no_gaps(self, store: Store) -> None:
        """Whatever was refused or repeated in between, a run's transitions are numbered from 1 to its seq."""
        await put(store, a_run(1))
        for _ in range(5):
            before = await row(store, 1)
            await store.apply([moving(before)], NOW)
            await store.apply([moving(before, commit_id=99)], NOW)
            await store.apply([moving(before)], NOW)
        await store.apply([hopping(1, commit_id=77)], NOW)
        await store.apply([cancelling(1, commit_id=78)], NOW)
        await store.apply([cancelling(1, commit_id=79)], NOW)

        assert [line.seq for line in await log(store, 1)] == list(range(1, 9))
        assert (await row(store, 1)).seq == 8
