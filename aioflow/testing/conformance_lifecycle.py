"""open(), close(), reserve() and hint(); and that what goes in comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Final

import pytest

from aioflow.changes import Emit, Listen, Start, Withdraw
from aioflow.clock import LAST_INSTANT
from aioflow.errors import StoreUnavailable
from aioflow.model import MAX_DATA, MAX_ERROR, MAX_NAME, MAX_TRACEBACK, Run, Transition
from aioflow.store import IdKind, RunQuery, Store
from aioflow.testing.conformance_samples import (
    LEASE,
    NOW,
    SecondHandle,
    a_listener,
    a_run,
    a_signal,
    a_sleeper,
    an_event,
    claiming,
    do,
    hopping,
    log,
    moving,
    outcomes,
    post,
    put,
    row,
    starting,
)

_TEXT: Final = "'; DROP TABLE runs; -- \"`\\ %_$1?:a{} \t\r\n größe ✓ 🦀 \u202e\ufeff\u0301 \x01\x7f"

#: Rows at the ends of what a run can be, each as its Start and as its second transition.
ROWS: Final[dict[str, Run]] = {
    "plain": a_run(1),
    "full": Run(
        id=1,
        workflow="order",
        version="2.0",
        key="order-1",
        parent_id=7,
        event_id="e-1",
        created_at=NOW,
        status="waiting",
        step="pay",
        next_step="ship",
        seq=1,
        fence=3,
        owner=4,
        visit=5,
        failures=6,
        hops=8,
        crashes=9,
        marked=1,
        waiting_for="retry",
        wake_at=NOW + 1,
        arms='[["signal", "paid", "order-1", "ship", true],["action","call",null, "act", false]]',
        input='["signal", "paid", {}]',
        deadline=10**15,
        failure="{}",
        progress=0.1,
        data='{"b": 1.0, "a":[ ]}',
        error="error",
        traceback="traceback",
        updated_at=NOW + 2,
        ended_at=NOW + 3,
    ),
    "hostile": a_run(
        1,
        workflow=_TEXT,
        version=_TEXT,
        key=_TEXT,
        event_id=_TEXT,
        step=_TEXT,
        next_step=_TEXT,
        error=_TEXT,
        traceback=_TEXT,
        data='{"größe ✓ 🦀":"\\u0001 \'; -- \\ud83e\\udd80"}',
    ),
    "empty": a_run(
        1, event_id="", next_step="", data="{}", error="", traceback="", progress=0.0, wake_at=0, ended_at=0
    ),
    "large": a_run(
        2**53 - 1,
        parent_id=2**53 - 1,
        owner=2**53 - 1,
        fence=2**53 - 1,
        visit=2**31 - 1,
        failures=2**31 - 1,
        hops=2**31 - 1,
        crashes=2**31 - 1,
        progress=1.0,
        created_at=LAST_INSTANT,
        wake_at=LAST_INSTANT,
        updated_at=LAST_INSTANT,
        ended_at=LAST_INSTANT,
    ),
    "early": a_run(1, created_at=-1, wake_at=-(10**15), updated_at=-1, ended_at=-1, progress=1 / 3),
    "long": a_run(
        1,
        workflow="🦀" * MAX_NAME,
        version="🦀" * MAX_NAME,
        key="🦀" * MAX_NAME,
        step="🦀" * MAX_NAME,
        next_step="🦀" * MAX_NAME,
        error="🦀" * MAX_ERROR,
        traceback="🦀" * MAX_TRACEBACK,
        data='{"text":"' + "x" * (MAX_DATA - 11) + '"}',
    ),
}

VERBS: Final = (
    "reserve",
    "apply",
    "load",
    "select",
    "count",
    "history",
    "due",
    "mail",
    "expire",
    "claim",
    "hint",
    "stats",
)


async def _another_hint(store: Store, before: int) -> int:
    """What ``hint`` says next; a store that is told of writes may hear of them a little later."""
    hint = before
    for _ in range(50):
        if (hint := await store.hint(NOW)) != before:
            break
    return hint


class LifecycleConformance(SecondHandle):
    """A store keeps what it is given, exactly, and for as long as it is there."""

    # ---- rows

    @pytest.mark.parametrize("name", ROWS)
    async def test_a_run_comes_back_as_it_was(self, store: Store, name: str) -> None:
        """Every column of a run comes back equal and of the same type, from every verb."""
        run = ROWS[name]
        [result] = await store.apply([starting(run, commit_id=2**53 - 1)], NOW)
        [loaded] = await store.load([run.id], NOW)
        [selected] = await store.select(RunQuery(), NOW)

        for found in (result.run, loaded, selected):
            assert found == run
            assert type(found) is Run
            assert [type(value) for value in found] == [type(value) for value in run]

    @pytest.mark.parametrize("name", ROWS)
    async def test_a_moved_run_comes_back_as_it_was(self, store: Store, name: str) -> None:
        """What a Move writes comes back as exactly as what a Start writes."""
        run = ROWS[name]
        first = a_run(run.id)._replace(**{column: getattr(run, column) for column in Run._fields[:7]})
        await do(store, starting(first, commit_id=1))
        move = moving(first, commit_id=2, **{column: getattr(run, column) for column in Run._fields[7:]} | {"seq": 2})

        assert await do(store, move) == await row(store, run.id) == run._replace(seq=2)

    @pytest.mark.parametrize("error", [None, "", _TEXT, "🦀" * MAX_ERROR], ids=["none", "empty", "hostile", "long"])
    async def test_a_transition_comes_back_as_it_was(self, store: Store, error: str | None) -> None:
        """Every column of a history row comes back equal and of the same type."""
        run = a_run(2**53 - 1, step=_TEXT)
        line = Transition(run.id, 1, LAST_INSTANT, _TEXT, 2**31 - 1, "start", 2**53 - 1, error, 2**53 - 1)
        await do(store, Start(run, line))

        [found] = await log(store, run.id)
        assert found == line
        assert type(found) is Transition
        assert [type(value) for value in found] == [type(value) for value in line]

    # ---- open and close

    async def test_a_store_has_a_name(self, store: Store) -> None:
        """The name is something to print."""
        assert isinstance(store.name, str)
        assert store.name

    async def test_close_may_be_repeated(self, store: Store) -> None:
        """To close what is closed is no error, and does not keep it from being opened."""
        await put(store, a_run(1))
        await store.close()
        await store.close()
        await store.open(NOW)
        assert await row(store, 1) == a_run(1)

    async def test_a_closed_store_can_be_opened_again(self, store: Store) -> None:
        """Runs, histories, deadlines and the UUID outlive a restart."""
        await put(store, a_run(1, key="order-1"), a_sleeper(2, NOW))
        moved = await do(store, moving(a_run(1, key="order-1"), data='{"größe":1}'))
        lines = await log(store, 1)
        deadlines = await store.due((0, 0), (NOW, 9), 10, NOW)
        await store.close()
        uuid = await store.open(NOW)

        assert sorted(await store.load([1, 2], NOW)) == [moved, a_sleeper(2, NOW)]
        assert await log(store, 1) == lines
        assert await store.due((0, 0), (NOW, 9), 10, NOW) == deadlines
        [result] = await store.apply([starting(a_run(3, key="order-1"))], NOW)
        assert result.outcome == "exists"
        await store.close()
        assert await store.open(NOW) == uuid

    async def test_a_second_handle_has_the_same_uuid(self, store: Store) -> None:
        """The UUID is the store's, whoever opens it."""
        async with self.second(store) as other:
            await other.close()
            uuid = await other.open(NOW)
            assert uuid
            await store.close()
            assert await store.open(NOW) == uuid

    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store.reserve("run", 1, NOW),
            lambda store: store.apply([starting(a_run(1))], NOW),
            lambda store: store.load([1], NOW),
            lambda store: store.select(RunQuery(), NOW),
            lambda store: store.count(RunQuery(), NOW),
            lambda store: store.history(1, 0, 1, NOW),
            lambda store: store.due((0, 0), (NOW, 0), 1, NOW),
            lambda store: store.mail(None, 1, NOW),
            lambda store: store.expire(1, NOW),
            lambda store: claiming(store, 1),
            lambda store: store.hint(NOW),
            lambda store: store.stats(NOW),
        ],
        ids=VERBS,
    )
    async def test_a_closed_store_is_unavailable(
        self, store: Store, call: Callable[[Store], Awaitable[object]]
    ) -> None:
        """What cannot be done because the store is closed raises StoreUnavailable."""
        await store.close()
        with pytest.raises(StoreUnavailable):
            await call(store)
        await store.open(NOW)
        assert await store.load([1], NOW) == []

    async def test_nothing_is_renewed_in_a_closed_store(self, store: Store) -> None:
        """Who has closed the store is not told that it still has its runs; it may release them, or be told so."""
        await claiming(store, 3)
        await store.close()
        with suppress(StoreUnavailable):
            assert await store.renew(3, LEASE, NOW) is False
        with suppress(StoreUnavailable):
            await store.release(3, NOW)

    # ---- two users

    async def test_users_see_each_others_commits(self, store: Store) -> None:
        """What one handle has committed, the other sees in its next call, both ways."""
        async with self.second(store) as other:
            await put(store, a_run(1))
            assert await row(other, 1) == a_run(1)
            assert await other.count(RunQuery(), NOW) == 1

            moved = await do(other, moving(a_run(1)))
            assert await row(store, 1) == moved
            assert len(await log(store, 1)) == 2

    async def test_closing_one_handle_leaves_the_other_open(self, store: Store) -> None:
        """Users come and go without each other's leave."""
        async with self.second(store) as other:
            await put(other, a_run(1))
        assert await row(store, 1) == a_run(1)
        await do(store, moving(a_run(1)))

    async def test_hint_changes_when_another_writes(self, store: Store) -> None:
        """After another user's Start, Move, Amend, Post, Emit, Withdraw or Listen the hint is another number."""
        async with self.second(store) as other:
            seen = [await store.hint(NOW)]
            await put(other, a_run(1))
            seen.append(await _another_hint(store, seen[-1]))
            await do(other, moving(a_run(1)))
            seen.append(await _another_hint(store, seen[-1]))
            await do(other, hopping(1, commit_id=77))
            seen.append(await _another_hint(store, seen[-1]))
            await post(other, a_signal(1, key="k"))
            seen.append(await _another_hint(store, seen[-1]))
            for change in (Emit(an_event()), Withdraw("event-1"), Listen(("order",), (a_listener(),))):
                assert await outcomes(other, change) == ["applied"]
                seen.append(await _another_hint(store, seen[-1]))
        assert all(before != after for before, after in pairwise(seen))

    async def test_hint_rests_while_nobody_writes(self, store: Store) -> None:
        """Questions do not change the hint."""
        await put(store, a_run(1))
        before = await store.hint(NOW)
        await row(store, 1)
        await store.select(RunQuery(), NOW)
        await store.stats(NOW)
        assert await store.hint(NOW) == before

    # ---- reserve

    @pytest.mark.parametrize("kind", ["run", "signal", "worker"])
    async def test_reserved_blocks_are_disjoint(self, store: Store, kind: IdKind) -> None:
        """Ids are positive, below 2**53, and given once."""
        blocks = []
        for count in (1, 10, 1, 1_000, 3):
            first = await store.reserve(kind, count, NOW)
            blocks.append(range(first, first + count))
        given = set().union(*blocks)
        assert len(given) == sum(map(len, blocks))
        assert min(given) >= 1
        assert max(given) < 2**53

    async def test_kinds_of_ids_are_independent(self, store: Store) -> None:
        """Each kind begins at 1, whatever was reserved of the others."""
        assert await store.reserve("run", 1_000, NOW) == 1
        assert await store.reserve("signal", 100, NOW) == 1
        assert await store.reserve("worker", 1, NOW) == 1

    async def test_reserved_ids_outlive_a_restart(self, store: Store) -> None:
        """An id is not given again after the store was closed, used or not."""
        first = await store.reserve("run", 100, NOW)
        await store.close()
        await store.open(NOW)
        assert await store.reserve("run", 1, NOW) >= first + 100

    async def test_users_reserve_from_one_count(self, store: Store) -> None:
        """Two handles are given different ids."""
        async with self.second(store) as other:
            blocks = [range(first := await user.reserve("run", 10, NOW), first + 10) for user in (store, other, store)]
        assert len(set().union(*blocks)) == 30
