"""Rows of runs, read by name: their columns in the order of ``aioflow.model.Run``."""

from __future__ import annotations

import sqlite3
from typing import Final

from aioflow.model import Run

RUN_COLUMNS: Final = ", ".join(Run._fields)
SELECT_RUNS: Final = f"SELECT {RUN_COLUMNS} FROM runs"


def row_of(db: sqlite3.Connection, run_id: int) -> Run | None:
    """One run, if it is there."""
    row = db.execute(f"{SELECT_RUNS} WHERE id = ?", (run_id,)).fetchone()
    return None if row is None else Run._make(row)
