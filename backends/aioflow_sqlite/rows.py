"""The columns of rows, by name, in the order of the fields of aioflow's records."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from aioflow.model import Run, Transition
from aioflow.plans import EventRecord, Plan
from aioflow_sqlite.writing import placeholders

RUN_COLUMNS: Final = ", ".join(Run._fields)
#: Of runs and of history.
NULLABLE: Final = frozenset(
    [
        "key",
        "parent_id",
        "event_id",
        "next_step",
        "owner",
        "waiting_for",
        "wake_at",
        "arms",
        "input",
        "deadline",
        "failure",
        "progress",
        "error",
        "traceback",
        "ended_at",
    ]
)
WRITE_HISTORY: Final = (
    "INSERT INTO history VALUES ",
    placeholders(Transition._fields, NULLABLE),
    " ON CONFLICT DO NOTHING",
)
SELECT_RUNS: Final = f"SELECT {RUN_COLUMNS} FROM runs"


def named(columns: Sequence[str], table: str = "") -> str:
    """Names of columns, quoted: one of them, "offset", is an SQL keyword."""
    return ", ".join(f'{table}"{column}"' for column in columns)


#: Of ``events AS e`` and ``plans AS p``.
EVENT_COLUMNS: Final = named(EventRecord._fields, "e.")
PLAN_COLUMNS: Final = named(Plan._fields, "p.")


def row_of(db: sqlite3.Connection, run_id: int) -> Run | None:
    """One run, if it is there."""
    row = db.execute(f"{SELECT_RUNS} WHERE id = ?", (run_id,)).fetchone()
    return None if row is None else Run._make(row)
