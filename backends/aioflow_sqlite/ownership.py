"""Who runs what. One process has the whole file, so every running run that it does not own is ownerless."""

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
_TAKE = f"""
UPDATE runs SET owner = ?, fence = fence + 1, marked = 0 WHERE id IN
    (SELECT id FROM runs WHERE status = 'running' AND owner IS NULL ORDER BY id LIMIT ?)
RETURNING {RUN_COLUMNS}
"""
_MINE = "SELECT json_group_array(id) FROM runs WHERE status = 'running' AND owner = ?"


def disown_dead(db: sqlite3.Connection, worker: int) -> None:
    """The file is this worker's now: whoever owned a running run before is dead."""
    if db.execute(
        "SELECT 1 FROM runs WHERE status = 'running' AND owner IS NOT NULL AND owner <> ?", (worker,)
    ).fetchone():
        transaction(db, lambda db: db.execute(_DISOWN, (worker,)))


def take(db: sqlite3.Connection, worker: int, limit: int, held: Collection[int] | None) -> Claim:
    """Own what has no owner, and compare what is owned with what is held."""
    taken: list[Run] = []
    if limit > 0 and db.execute("SELECT 1 FROM runs WHERE status = 'running' AND owner IS NULL LIMIT 1").fetchone():
        taken = transaction(db, lambda db: [Run._make(row) for row in db.execute(_TAKE, (worker, limit))])
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
    """The worker's running runs have no owner any more; nobody died."""
    transaction(
        db,
        lambda db: db.execute(
            "UPDATE runs SET owner = NULL, fence = fence + 1, marked = 0 WHERE status = 'running' AND owner = ?",
            (worker,),
        ),
    )
