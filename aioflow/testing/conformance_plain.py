"""Batches of runs that start or go on and nothing else, which stores may write by a shorter way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from aioflow.changes import Change, Move
from aioflow.errors import StoreRefused
from aioflow.model import Run
from aioflow.store import Store
from aioflow.testing.conformance_samples import NOW, a_run, log, moving, put, row, starting

#: What some rows of such a batch have, and most do not.
SELDOM: dict[str, Any] = {
    "next_step": "ship",
    "status": "waiting",
    "waiting_for": "sleep",
    "wake_at": NOW + 1,
    "failure": "{}",
    "progress": 0.5,
    "error": 'ValueError: it\'s "odd", \\ and {so on}\n',
    "traceback": "line\n\x1fline",
    "ended_at": NOW,
    "owner": 9,
}
#: Texts that some way of writing many rows might take for its own.
ODD = (
    "",
    " ",
    "\x1f",
    "a\x1fb",
    "NULL",
    "None",
    "null",
    "{}",
    "{1,2}",
    '"',
    "'",
    "\\",
    "\\N",
    ",",
    "1\n2",
    "\x01",
    "\u2028",
    "Ω",
)


async def check(store: Store, runs: Sequence[Run]) -> None:
    """All of these are in the store as they are here, each after its whole history."""
    found = {run.id: run for run in await store.load([run.id for run in runs], NOW)}
    assert found == {run.id: run for run in runs}
    for run in (runs[0], runs[len(runs) // 2], runs[-1]):
        assert [transition.seq for transition in await log(store, run.id)] == list(range(1, run.seq + 1))


class PlainConformance:
    """See the module's text."""

    @pytest.mark.parametrize("number", [1, 2, 3, 700, 1000])
    async def test_runs_begin_and_go_on_together(self, store: Store, number: int) -> None:
        """However many there are, in one batch those that begin and those that go on."""
        old = [a_run(run_id) for run_id in range(1, number + 1)]
        await store.apply([starting(run) for run in old], NOW)
        moves = [moving(run) for run in old]
        new = [a_run(run_id) for run_id in range(number + 1, 2 * number + 1)]
        batch: list[Change] = [change for pair in zip(moves, map(starting, new), strict=True) for change in pair]
        results = await store.apply(batch, NOW)
        assert {result.outcome for result in results} == {"applied"}
        await check(store, [*(move.run for move in moves), *new])

    @pytest.mark.parametrize("number", [1, 20, 1000])
    async def test_some_have_what_most_have_not(self, store: Store, number: int) -> None:
        """Every column comes through, whichever of the batch's rows has it, and is empty again when it is taken away."""
        runs = [a_run(run_id) for run_id in range(1, number + 1)]
        names = list(SELDOM)
        await store.apply([starting(run) for run in runs], NOW)
        for turn in range(len(names)):
            moves = [
                moving(run, **{**dict.fromkeys(names), "status": "running", **_some(names, run.id + turn)})
                for run in runs
            ]
            results = await store.apply(moves, NOW)
            assert {result.outcome for result in results} == {"applied"}
            runs = [move.run for move in moves]
            await check(store, runs)
            if number > 20 and turn > 1:
                break

    @pytest.mark.parametrize("where", [0, 499, 799, 999])
    @pytest.mark.parametrize("guard", ["seq", "fence"])
    @pytest.mark.parametrize("wake_at", [None, NOW + 1])
    async def test_one_that_is_stale_is_left_out(
        self, store: Store, where: int, guard: str, wake_at: int | None
    ) -> None:
        """Of a thousand, one whose guard does not hold changes nothing, and all others are applied."""
        runs = [a_run(run_id) for run_id in range(1, 1001)]
        await store.apply([starting(run) for run in runs], NOW)
        moves = [moving(run, wake_at=wake_at) for run in runs]
        old = moves[where]
        seq, fence = (old.seq + 1, old.fence) if guard == "seq" else (old.seq, old.fence + 1)
        to = old.run._replace(seq=seq + 1, fence=fence)
        moves[where] = Move(to, seq, fence, old.transition._replace(seq=to.seq))
        results = await store.apply(moves, NOW)
        assert [place for place, result in enumerate(results) if result.outcome != "applied"] == [where]
        assert results[where].run == runs[where]
        stand = [move.run for move in moves]
        stand[where] = runs[where]
        await check(store, stand)

    @pytest.mark.parametrize("number", [1, 3])
    @pytest.mark.parametrize("odd", ODD, ids=ascii)
    async def test_odd_texts_come_through(self, store: Store, odd: str, number: int) -> None:
        """In every column that holds a text, of one row and of all."""
        runs = [a_run(run_id, workflow=odd, version=odd, step=odd) for run_id in range(1, number + 1)]
        await store.apply([starting(run) for run in runs], NOW)
        moves = [moving(run, step=odd) for run in runs]
        moves[-1] = moving(runs[-1], step=odd, error=odd, traceback=odd)
        await store.apply(moves, NOW)
        await check(store, [move.run for move in moves])
        assert [transition.step for transition in await log(store, 1)] == [odd, odd]

    @pytest.mark.parametrize(
        ("column", "odd"),
        [("step", "\ud800"), ("data", '{"a":"\ud800"}'), ("step", "a\0b"), ("hops", 2**10_000)],
        ids=ascii,
    )
    async def test_what_is_refused_leaves_nothing_behind(self, store: Store, column: str, odd: Any) -> None:
        """Be it the first that a store is given: every other verb does what it does at any other time."""
        with suppress(StoreRefused):
            await store.apply([starting(a_run(1, **{column: odd}))], NOW)
        assert (await store.stats(NOW)).mailbox == 0
        assert await store.mail(None, 9, NOW) == []
        assert await store.expire(9, NOW) == []
        await put(store, a_run(2))
        await check(store, [a_run(2)])

    @pytest.mark.parametrize("where", ["run", "transition"])
    async def test_long_errors_come_through(self, store: Store, where: str) -> None:
        """A thousand runs that fail or try again at once, with tracebacks or errors of some kilobytes."""
        runs = [a_run(run_id) for run_id in range(1, 1001)]
        await store.apply([starting(run) for run in runs], NOW)
        if where == "run":
            moves = [moving(run, kind="fail", status="failed", error=f"{run.id}", traceback="x" * 3000) for run in runs]
        else:
            moves = [moving(run, kind="retry") for run in runs]
            moves = [move._replace(transition=move.transition._replace(error="Ω" * 2000)) for move in moves]
        await store.apply(moves, NOW)
        await check(store, [move.run for move in moves])
        assert (await log(store, 1000))[-1].error == moves[-1].transition.error

    @pytest.mark.parametrize("number", [1, 40])
    async def test_much_data_comes_through(self, store: Store, number: int) -> None:
        """A megabyte and a half in one batch, of one run or of many."""
        runs = [a_run(run_id, data=f'{{"text":"{"x" * (1_500_000 // number)}"}}') for run_id in range(1, number + 1)]
        await put(store, *runs)
        moves = [moving(run) for run in runs]
        await store.apply(moves, NOW)
        await check(store, [move.run for move in moves])
        assert await row(store, 1) == moves[0].run


def _some(names: Sequence[str], number: int) -> dict[str, Any]:
    """One of the seldom columns, or two, or none."""
    chosen = {names[number % len(names)], names[number // 3 % len(names)]} if number % 4 else set()
    return {name: SELDOM[name] for name in chosen}
