"""Several users of one store at once, and calls that are cancelled half-way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioflow.changes import Change, Result
from aioflow.model import Run
from aioflow.store import RunQuery, Store
from aioflow.testing.conformance_samples import (
    NOW,
    SecondHandle,
    a_run,
    claiming,
    hopping,
    ids,
    log,
    moving,
    put,
    row,
    starting,
)

#: A call is cancelled after so many turns of the event loop.
TURNS = [0, 1, 2, 3, 5, 8, 13, 21, 34]


async def _cut_short(call: Callable[[], Awaitable[object]], turns: int) -> None:
    """Make the call and cancel it after ``turns`` turns of the event loop."""

    async def run() -> None:
        await call()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(turns):
            await checkpoint()
        tasks.cancel_scope.cancel()


class ConcurrencyConformance(SecondHandle):
    """Guards hold under the lock that the change is written with; a cancelled call harms nobody."""

    async def test_of_two_moves_at_once_one_applies(self, store: Store) -> None:
        """A row's guards let one of two users through who commit at the same time."""
        numbers = range(1, 21)
        await put(store, *(a_run(number) for number in numbers))
        results: dict[str, list[Result]] = {"one": [], "two": []}

        async def offer(user: Store, name: str, first: int) -> None:
            for number in numbers:
                move = moving(a_run(number), commit_id=first + number, step=name)
                results[name].extend(await user.apply([move], NOW))

        async with self.second(store) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(offer, store, "one", 100)
            tasks.start_soon(offer, other, "two", 200)

        for number, one, two in zip(numbers, results["one"], results["two"], strict=True):
            assert {one.outcome, two.outcome} == {"applied", "stale"}
            winner = "one" if one.outcome == "applied" else "two"
            stands = await row(store, number)
            assert (stands.seq, stands.step) == (2, winner)
            assert one.run == two.run == stands
            assert len(await log(store, number)) == 2

    async def test_of_two_starts_at_once_one_has_the_key(self, store: Store) -> None:
        """A key is given to one of two users who start at the same time."""
        results: list[Result] = []

        async def offer(user: Store, first: int) -> None:
            for number in range(20):
                results.extend(await user.apply([starting(a_run(first + number, key=f"order-{number}"))], NOW))

        async with self.second(store) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(offer, store, 100)
            tasks.start_soon(offer, other, 200)

        assert sorted(result.outcome for result in results) == ["applied"] * 20 + ["exists"] * 20
        assert len(await store.load(range(100, 300), NOW)) == 20

    async def test_amends_at_once_lose_nothing(self, store: Store) -> None:
        """Each of many Amends decides on what the one before it left."""
        await put(store, a_run(1))

        async def amend(user: Store, first: int) -> None:
            for commit_id in range(first, first + 20):
                [result] = await user.apply([hopping(1, commit_id=commit_id)], NOW)
                assert result.outcome == "applied"

        async with self.second(store) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(amend, store, 100)
            tasks.start_soon(amend, other, 200)

        assert ((await row(store, 1)).hops, len(await log(store, 1))) == (40, 41)

    async def test_batches_at_once_do_not_lock_each_other_out(self, store: Store) -> None:
        """Two users whose batches are about the same runs in opposite orders both get their answers."""
        await put(store, *(a_run(number) for number in range(1, 51)))

        async def amend(user: Store, order: int, first: int) -> None:
            for turn in range(5):
                batch = [hopping(number, commit_id=first + turn) for number in range(1, 51)][::order]
                assert {result.outcome for result in await user.apply(batch, NOW)} == {"applied"}

        async with self.second(store) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(amend, store, 1, 100)
            tasks.start_soon(amend, other, -1, 200)

        assert {run.hops for run in await store.load(range(1, 51), NOW)} == {10}

    async def test_blocks_reserved_at_once_are_disjoint(self, store: Store) -> None:
        """No id is given to two users who reserve at the same time."""
        blocks: list[range] = []

        async def reserve(user: Store) -> None:
            for count in range(1, 21):
                first = await user.reserve("run", count, NOW)
                blocks.append(range(first, first + count))

        async with self.second(store) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(reserve, store)
            tasks.start_soon(reserve, other)

        assert len(set().union(*blocks)) == sum(map(len, blocks)) == 420

    async def test_calls_at_once_on_one_handle_are_transactions_of_their_own(self, store: Store) -> None:
        """One handle's user may make many calls at once; each is answered, and none undoes another's."""
        numbers = range(1, 41)

        async def live(number: int) -> None:
            await store.apply([starting(a_run(number, workflow=f"w{number}"))], NOW)
            await store.apply([moving(a_run(number, workflow=f"w{number}"))], NOW)
            [found] = await store.select(RunQuery(workflow=(f"w{number}",)), NOW)
            assert (found.id, found.seq) == (number, 2)

        async with anyio.create_task_group() as tasks:
            for number in numbers:
                tasks.start_soon(live, number)

        assert sorted(ids(await store.load(numbers, NOW))) == list(numbers)

    @pytest.mark.parametrize("turns", TURNS)
    async def test_a_cancelled_batch_is_done_wholly_or_not_at_all(self, store: Store, turns: int) -> None:
        """After a cancelled apply the same changes, offered again, apply once and leave no trace of the first offer."""
        await put(store, a_run(1), a_run(2))
        batch: list[Change] = [
            moving(a_run(1)),
            hopping(2, commit_id=77),
            *(starting(a_run(number, key=f"k{number}")) for number in range(3, 50)),
        ]
        await _cut_short(lambda: store.apply(batch, NOW), turns)
        seqs = [run.seq for run in sorted(await store.load(range(1, 50), NOW))]
        assert seqs in ([1, 1], [2, 2, *[1] * 47])

        assert {result.outcome for result in await store.apply(batch, NOW)} == {"applied"}
        assert (await row(store, 2)).hops == 1
        for number in range(1, 50):
            assert [line.seq for line in await log(store, number)] == ([1, 2] if number < 3 else [1])

    @pytest.mark.parametrize("turns", TURNS)
    async def test_a_cancelled_claim_loses_no_run(self, store: Store, turns: int) -> None:
        """Whether a cancelled claim took the runs or not, the next one has them all, or whoever asks again."""
        await put(store, *(a_run(number) for number in range(1, 21)))
        await _cut_short(lambda: claiming(store, 1), turns)

        runs: list[Run] = []
        with anyio.fail_after(10):
            while len(runs) < 20:  # a server may hold their rows until it has heard that the first was cancelled
                claim = await claiming(store, 1, held=ids(runs))
                assert claim.working
                runs += claim.runs
        assert sorted(ids(runs)) == list(range(1, 21))
        assert {(run.owner, run.crashes) for run in runs} == {(1, 0)}

    @pytest.mark.parametrize("turns", TURNS)
    async def test_a_store_survives_cancelled_questions(self, store: Store, turns: int) -> None:
        """A question that is cancelled leaves the store usable, for questions and for changes."""
        await put(store, a_run(1))
        questions: list[Callable[[], Awaitable[object]]] = [
            lambda: store.load([1], NOW),
            lambda: store.select(RunQuery(), NOW),
            lambda: store.count(RunQuery(), NOW),
            lambda: store.history(1, 0, 10, NOW),
            lambda: store.due((0, 0), (NOW, 0), 10, NOW),
            lambda: store.mail(None, 10, NOW),
            lambda: store.expire(10, NOW),
            lambda: store.reserve("run", 1, NOW),
            lambda: store.hint(NOW),
            lambda: store.stats(NOW),
        ]
        for question in questions:
            await _cut_short(question, turns)

        assert await store.select(RunQuery(), NOW) == [a_run(1)]
        assert await store.apply([moving(a_run(1))], NOW) == [Result("applied", await row(store, 1))]
