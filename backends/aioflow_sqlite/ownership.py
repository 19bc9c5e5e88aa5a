"""Which worker owns which run. One process works the whole file, so any other owner of a running run is dead."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection

from aioflow.model import SUSPECT_CRASHES, Run
from aioflow.store import Claim
from aioflow_sqlite.rows import RUN_COLUMNS, SELECT_RUNS
from aioflow_sqlite.transactions import transaction

_DISOWN = f"""
UPDATE runs SET owner = NULL, fence = fence + 1, marked = 0,
    crashes = crashes + (crashes < {SUSPECT_CRASHES} OR marked)
WHERE status = 'running' AND owner IS NOT NULL AND owner <> ?
"""
#: Before all runs.
_FIRST = -(2**63), 0
#: More crashes than any run has.
_ANY = 1 << 62
_UNOWNED = "FROM runs INDEXED BY runs_unowned WHERE status = 'running' AND owner IS NULL AND (created_at, id) > (?, ?) AND crashes < ?"
_IS_ANY = f"SELECT 1 {_UNOWNED} LIMIT 1"
_TAKE = f"""
UPDATE runs SET owner = ?, fence = fence + 1, marked = 0 WHERE id IN
    (SELECT id {_UNOWNED} ORDER BY created_at, id LIMIT ?)
RETURNING {RUN_COLUMNS}
"""
_MINE = "SELECT json_group_array(id) FROM runs WHERE status = 'running' AND owner = ?"


def disown_dead(db: sqlite3.Connection, worker: int) -> None:
    """Take running runs from their former owners: this worker has the file now, so they are dead."""
    if db.execute(
        "SELECT 1 FROM runs WHERE status = 'running' AND owner IS NOT NULL AND owner <> ?", (worker,)
    ).fetchone():
        transaction(db, lambda db: db.execute(_DISOWN, (worker,)))


def take(
    db: sqlite3.Connection,
    worker: int,
    limit: int,
    held: Collection[int] | None,
    after: tuple[int, int] | None,
    *,
    suspects: bool,
) -> Claim:
    """Make the worker the owner of runs that have none, and compare those it owns with those that it holds."""
    taken: list[Run] = []
    which = (*(after or _FIRST), _ANY if suspects else SUSPECT_CRASHES)
    if limit > 0 and db.execute(_IS_ANY, which).fetchone():
        taken = transaction(db, lambda db: [Run._make(row) for row in db.execute(_TAKE, (worker, *which, limit))])
    if held is None:
        return Claim(True, taken)
    # As one value, not row by row: see batch.py on the GIL.
    (found,) = db.execute(_MINE, (worker,)).fetchone()
    mine = set(json.loads(found))
    lost = mine.difference(held, (run.id for run in taken))
    if lost:
        rows = db.execute(f"{SELECT_RUNS} WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(sorted(lost)),))
        taken += [Run._make(row) for row in rows]
    return Claim(True, taken, mine.symmetric_difference(held) - mine)


def give_back(db: sqlite3.Connection, worker: int) -> None:
    """Leave the worker's running runs without an owner; this counts no crash."""
    transaction(
        db,
        lambda db: db.execute(
            "UPDATE runs SET owner = NULL, fence = fence + 1, marked = 0 WHERE status = 'running' AND owner = ?",
            (worker,),
        ),
    )
