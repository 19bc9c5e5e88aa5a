"""How SQLite writes plain batches: by one statement, with as few columns as do, or like any other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aioflow.changes import Move, Result, Start
from aioflow.clock import SECOND
from aioflow.model import Run, Transition
from aioflow.testing.conformance_samples import NOW, a_run, log, moving, row, starting
from aioflow_sqlite import SQLiteStore

OWNER = 7
#: Columns that name the row, or make the batch one of another kind.
GIVEN = {"id", "run_id", "seq", "fence", "key", "arms"}
#: Columns that never change.
FIXED = {"workflow", "version", "parent_id", "event_id", "created_at"}
NUMBERS = {"parent_id", "owner", "wake_at", "deadline", "progress", "ended_at"}
DIFFERENT = [
    (kind, record, name)
    for kind in ("start", "goto", "complete")
    for record in (Run, Transition)
    for name in record._fields
    if name not in GIVEN and (kind == "start" or name not in FIXED)
]


class Traced:
    """A store in a file, and the statements that it executes."""

    def __init__(self, store: SQLiteStore) -> None:
        self.store = store
        self.statements: list[str] = []

    def __contains__(self, text: str) -> bool:
        return any(text in statement for statement in self.statements)


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    """A traced store, open."""
    store = SQLiteStore(f"sqlite:///{tmp_path}/runs.db")
    await store.open(NOW)
    traced = Traced(store)
    assert store._writer is not None
    await store._writer.run(lambda db: db.set_trace_callback(traced.statements.append))
    yield traced
    await store._writer.run(lambda db: db.set_trace_callback(None))
    await store.close()


def of_kind(kind: str) -> Start | Move:
    """A start, or a move from the row of one, as an engine makes them."""
    before = a_run(1, owner=OWNER)
    if kind == "start":
        return starting(before)
    now = NOW + SECOND
    if kind == "goto":
        move = moving(before, step="pack", visit=2, hops=1, data='"packed"')
    else:
        ended: dict[str, Any] = {"status": "completed", "owner": None, "failures": 2, "ended_at": now}
        move = moving(before, kind="complete", **ended)
        move = move._replace(transition=move.transition._replace(attempt=3))
    return move


def another(name: str, value: object) -> object:
    """Another value for a column."""
    if isinstance(value, int):
        return value + 3
    return 3 if value is None and name in NUMBERS else '"another"'


async def check(store: SQLiteStore, change: Start | Move) -> None:
    """Apply a change, and compare all columns of the run and of its transition with those of the change."""
    if isinstance(change, Move):
        await store.apply([starting(a_run(1, owner=OWNER))], NOW)
    [result] = await store.apply([change], NOW)
    assert (result.outcome, result.run) == ("applied", change.run)
    assert await row(store, 1) == change.run
    assert (await log(store, 1))[-1] == change.transition


@pytest.mark.parametrize(("text", "is_plain"), [("x" * 3000, True), ("x" * 8000, False), ("Ω" * 3000, False)])
async def test_a_large_batch_needs_no_temporary_file(traced: Traced, text: str, *, is_plain: bool) -> None:
    """A batch is written by one statement only if its size in bytes fits into the statement's cache."""
    await traced.store.apply([starting(a_run(number, data=f'"{text}"')) for number in range(1, 101)], NOW)
    assert ("INSERT INTO temp." in traced) == is_plain


@pytest.mark.parametrize("kind", ["start", "goto", "complete"])
async def test_columns_that_follow_from_others_are_not_bound(traced: Traced, kind: str) -> None:
    """A start, a goto and a completion, as an engine makes them, are written with the fewest columns, and wholly."""
    await check(traced.store, of_kind(kind))
    assert "INSERT INTO temp.lean" in traced
    assert "INSERT INTO temp.bare" not in traced


@pytest.mark.parametrize(("kind", "record", "name"), DIFFERENT)
async def test_a_column_with_another_value_is_written(traced: Traced, kind: str, record: type, name: str) -> None:
    """Whatever column of a run or its transition has another value than usual, the store has that value."""
    change = of_kind(kind)
    if record is Run:
        run = change.run
        change = change._replace(run=run._replace(**{name: another(name, getattr(run, name))}))
    else:
        line = change.transition
        change = change._replace(transition=line._replace(**{name: another(name, getattr(line, name))}))
    await check(traced.store, change)


@pytest.mark.parametrize("before", [{"status": "waiting", "owner": None, "wake_at": NOW}, {"owner": 8}, {"wake_at": 1}])
async def test_a_goto_of_a_row_that_is_not_as_usual_is_applied(traced: Traced, before: dict[str, Any]) -> None:
    """A goto whose row was waiting, or had another owner, changes these columns, too."""
    await traced.store.apply([starting(a_run(1, **{"owner": OWNER, **before}))], NOW)
    await traced.store.apply([starting(a_run(2, owner=OWNER))], NOW)
    moves = [moving(a_run(number, owner=OWNER), visit=2, hops=1) for number in (1, 2)]
    assert [result.run for result in await traced.store.apply(moves, NOW)] == [move.run for move in moves]
    assert [await row(traced.store, number) for number in (1, 2)] == [move.run for move in moves]


@pytest.mark.parametrize("kind", ["goto", "complete"])
async def test_a_move_with_an_old_fence_is_stale(traced: Traced, kind: str) -> None:
    """A run that was lost and came back to its owner refuses what that offered before: the fence alone tells."""
    now = a_run(1, owner=OWNER, fence=3)
    await traced.store.apply([starting(now)], NOW)
    change = of_kind(kind)
    assert isinstance(change, Move)
    assert (change.seq, change.fence) == (now.seq, 1)
    assert await traced.store.apply([change], NOW) == [Result("stale", now)]
    assert await row(traced.store, 1) == now
