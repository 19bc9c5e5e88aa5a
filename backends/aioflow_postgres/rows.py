"""Columns, in the order of the fields of the records of ``aioflow.model`` and ``aioflow.plans``; rows as parameters.

Statements name the schema "aioflow"; ``database.Session`` replaces it by the address's own. A batch's rows go to the
server as one array a column, which ``unnest()`` turns into rows again: one statement, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias, get_args, get_type_hints

from aioflow.model import Run, Signal, Transition
from aioflow.plans import EventRecord, Listener, Plan

Record: TypeAlias = type[Run | Transition | Signal | EventRecord | Plan | Listener]


def types_of(record: Record) -> tuple[str, ...]:
    """The SQL types of a record's columns as parameters."""
    hints = get_type_hints(record)
    return tuple(_type_of(hints[field]) for field in record._fields)


def _type_of(hint: Any) -> str:
    kinds = {hint, *get_args(hint)}
    if float in kinds:
        return "double precision"
    return "bigint" if int in kinds else "text"


def named(columns: Iterable[str], table: str = "") -> str:
    """The names of columns, quoted, as one of them, "offset", is a keyword of SQL."""
    return ", ".join(f'{table}"{column}"' for column in columns)


def unnest(names: Sequence[str], types: Sequence[str], alias: str, first: int = 1) -> str:
    """SQL for rows that are passed as parameters, one array a column; the first is ``$first``."""
    arrays = ", ".join(f"${place}::{type_}[]" for place, type_ in enumerate(types, first))
    return f"unnest({arrays}) AS {alias} ({named(names)})"


def rows_of(record: Record, alias: str, first: int = 1) -> str:
    """``unnest`` for rows of a record."""
    return unnest(record._fields, types_of(record), alias, first)


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows as the arrays that ``unnest`` takes."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


RUN_COLUMNS: Final = named(Run._fields)
SELECT_RUNS: Final = f"SELECT {RUN_COLUMNS} FROM aioflow.runs"
#: Of ``events AS e``, ``plans AS p`` and ``signals AS s``.
EVENT_COLUMNS: Final = named(EventRecord._fields, "e.")
PLAN_COLUMNS: Final = named(Plan._fields, "p.")
SIGNAL_COLUMNS: Final = named(Signal._fields, "s.")
#: The columns of ``history``, whose names differ in part from the record's fields.
HISTORY_COLUMNS: Final = "run_id, seq, at, step, attempt, kind, duration, error, commit_id"
