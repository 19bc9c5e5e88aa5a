"""The one statement that writes runs: updates rows, inserts new ones, and adds the history rows of both.

In most batches half of the columns are NULL; those are not sent. Numbers go as the text of an array, and texts joined
by a separator: asyncpg checks the type of each element of a list, which takes longer than all else it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from aioflow.model import Run, Transition
from aioflow_postgres.rows import HISTORY_COLUMNS, named, types_of
from aioflow_postgres.session import Session

#: The guard of a new row: no stored row has this seq.
BEGINS: Final = -1


class Row(NamedTuple):
    """A row to write. ``seq`` and ``fence`` are its guards; BEGINS for a new row."""

    run: Run
    seq: int
    fence: int
    transition: Transition


#: Separates texts that do not contain it. JSON never does, as it escapes it.
_BETWEEN: Final = "\x1f"
_RUN_TYPES: Final = dict(zip(Run._fields, types_of(Run), strict=True))
#: The columns of a transition that the run's own row does not have: all but run_id and seq.
_OWN: Final = Transition._fields[2:]
_OWN_TYPES: Final = dict(zip(_OWN, types_of(Transition)[2:], strict=True))
_MUTABLE: Final = Run._fields[Run._fields.index("status") :]
#: The columns that are NULL in most runs that go from step to step, or end.
_SELDOM: Final = (
    *("key", "parent_id", "event_id", "next_step", "waiting_for", "wake_at", "arms", "input", "deadline", "failure"),
    *("progress", "error", "traceback"),
)
_seldom: Callable[[Run], tuple[object, ...]] = itemgetter(*map(Run._fields.index, _SELDOM))
_NOTHING: Final = (None,) * len(_SELDOM)


class _Shape:
    """A variant of the statement, with some of the columns; all others are NULL.

    Args:
        lacks: the columns of runs that are NULL.
        own: the columns of transitions that are not.
        plain: whether texts are sent joined by ``_BETWEEN``, and not as an array.
    """

    def __init__(self, lacks: Sequence[str], own: Sequence[str], *, plain: bool) -> None:
        self.plain = plain
        has = [name for name in Run._fields if name not in lacks]
        self.types = [
            *(_RUN_TYPES[name] for name in has),
            *("bigint", "bigint"),
            *(_OWN_TYPES[name] for name in own),
        ]
        self._of_run: Callable[[Run], tuple[Any, ...]] = itemgetter(*map(Run._fields.index, has))
        self._of_transition: Callable[[Transition], tuple[Any, ...]] = itemgetter(*map(Transition._fields.index, own))
        names = [*has, "was_seq", "was_fence", *(f"of_{name}" for name in own)]
        self.sql = _statement(has, own, self._offered(names))

    def _offered(self, names: Sequence[str]) -> str:
        arrays = []
        for place, type_ in enumerate(self.types, 1):
            if type_ == "bigint":
                arrays.append(f"${place}::text::bigint[]")
            elif type_ == "text" and self.plain:
                arrays.append(f"string_to_array(${place}::text, chr({ord(_BETWEEN)}))")
            else:
                arrays.append(f"${place}::{type_}[]")
        return f"unnest({', '.join(arrays)}) AS offered ({named(names)})"

    def values(self, rows: Sequence[Row]) -> list[Any] | None:
        """The statement's parameters; None if a text of these rows cannot be sent ``plain``."""
        flat = [(*self._of_run(row.run), row.seq, row.fence, *self._of_transition(row.transition)) for row in rows]
        values: list[Any] = []
        for type_, column in zip(self.types, zip(*flat, strict=True), strict=True):
            if type_ == "bigint":
                values.append(f"{{{str(column)[1:-1].rstrip(',')}}}".replace("None", "NULL"))
            elif type_ == "text" and self.plain:
                text = _BETWEEN.join(column)
                if not text or text.count(_BETWEEN) != len(rows) - 1:
                    return None
                values.append(text)
            else:
                values.append(column)
        return values


def _statement(has: Sequence[str], own: Sequence[str], offered: str) -> str:
    """The SQL that writes the offered rows.

    Guards are checked under the lock with which the row is written: a row that another transaction has just changed is
    checked again. The rows come sorted by id, and are locked in this order. A run and row 1 of its history exist both
    or neither, so new rows need no join of the two, which would be planned for a few rows and take as long as all
    pairs.
    """

    def value(column: str) -> str:
        return f"o.{column}{'::json' if column == 'data' else ''}" if column in has else "NULL"

    history = ", ".join(f"o.of_{name}" if name in own else "NULL" for name in _OWN)
    return f"""
WITH offered AS (SELECT * FROM {offered}),
moved AS (
    UPDATE aioflow.runs AS r SET {", ".join(f"{column} = {value(column)}" for column in _MUTABLE)}
    FROM offered AS o WHERE r.id = o.id AND r.seq = o.was_seq AND r.fence = o.was_fence AND o.was_seq <> {BEGINS}
    RETURNING o.id, o.seq, {history}
),
begun AS (
    INSERT INTO aioflow.runs ({named(has)})
    SELECT {", ".join(map(value, has))} FROM offered AS o WHERE o.was_seq = {BEGINS}
    ON CONFLICT (id) DO NOTHING RETURNING id
),
logged AS (
    INSERT INTO aioflow.history ({HISTORY_COLUMNS})
    SELECT * FROM moved
),
logged_as_begun AS (
    INSERT INTO aioflow.history ({HISTORY_COLUMNS})
    SELECT o.id, o.seq, {history} FROM offered AS o WHERE o.was_seq = {BEGINS} ON CONFLICT (run_id, seq) DO NOTHING
)
SELECT id FROM moved UNION ALL SELECT id FROM begun
"""


_FULL: Final = _Shape((), _OWN, plain=False)
_BARE: Final = _Shape(_SELDOM, [name for name in _OWN if name != "error"], plain=True)


async def write(session: Session, rows: Sequence[Row]) -> set[int]:
    """Write the rows whose guards hold, each with its history row. Returns the ids of those runs."""
    bare = all(row.transition.error is None and _seldom(row.run) == _NOTHING for row in rows)
    shape = _BARE
    values = _BARE.values(rows) if bare else None
    if values is None:
        shape = _FULL
        values = _FULL.values(rows)
        assert values is not None  # it sends no texts plain
    return {id_ for (id_,) in await session.fetch(shape.sql, *values)}
