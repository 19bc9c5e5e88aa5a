"""The one statement that writes runs: rows that move, rows that begin, and the history of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from aioflow.model import Run, Transition
from aioflow_postgres.database import Session
from aioflow_postgres.rows import HISTORY_COLUMNS, RUN_COLUMNS, columns, types_of, unnest

#: The guard of a row that begins: no row has such a seq, whatever a change may say.
BEGINS: Final = -1


class Row(NamedTuple):
    """A row to write. ``seq`` and ``fence`` are its guards; BEGINS for one that begins."""

    run: Run
    seq: int
    fence: int
    transition: Transition


#: Of a transition, what the run's own row does not have: all but run_id and seq.
_LOGGED: Final = Transition._fields[2:]
_NAMES: Final = (*Run._fields, "was_seq", "was_fence", *(f"of_{name}" for name in _LOGGED))
_TYPES: Final = (*types_of(Run), "bigint", "bigint", *types_of(Transition)[2:])
_OFFERED: Final = unnest(_NAMES, _TYPES, "offered")
_MUTABLE: Final = Run._fields[Run._fields.index("status") :]


def _value(column: str, table: str) -> str:
    return f"{table}.{column}{'::json' if column == 'data' else ''}"


_HISTORY: Final = ", ".join(f"o.of_{name}" for name in _LOGGED)
#: Guards are checked under the lock that the row is written with: a row that somebody else has just changed is looked at
#: once more. The rows come sorted by id, and are locked in this order. A run and row 1 of its history are there both or
#: neither, so what begins needs no join of the two, which would be planned for a few rows and take as long as all pairs.
_WRITE: Final = f"""
WITH offered AS (SELECT * FROM {_OFFERED}),
moved AS (
    UPDATE aioflow.runs AS r SET {", ".join(f"{column} = {_value(column, 'o')}" for column in _MUTABLE)}
    FROM offered AS o WHERE r.id = o.id AND r.seq = o.was_seq AND r.fence = o.was_fence AND o.was_seq <> {BEGINS}
    RETURNING o.id, o.seq, {_HISTORY}
),
begun AS (
    INSERT INTO aioflow.runs ({RUN_COLUMNS})
    SELECT {", ".join(_value(column, "o") for column in Run._fields)} FROM offered AS o WHERE o.was_seq = {BEGINS}
    ON CONFLICT (id) DO NOTHING RETURNING id
),
logged AS (
    INSERT INTO aioflow.history ({HISTORY_COLUMNS})
    SELECT * FROM moved
),
logged_as_begun AS (
    INSERT INTO aioflow.history ({HISTORY_COLUMNS})
    SELECT o.id, o.seq, {_HISTORY} FROM offered AS o WHERE o.was_seq = {BEGINS} ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT id FROM moved UNION ALL SELECT id FROM begun
"""


async def write(session: Session, rows: Sequence[Row]) -> set[int]:
    """Write the rows whose guards hold, each with its history row: the ids of those."""
    flat = [(*row.run, row.seq, row.fence, *row.transition[2:]) for row in rows]
    return {id_ for (id_,) in await session.fetch(_WRITE, *columns(flat, len(_NAMES)))}
