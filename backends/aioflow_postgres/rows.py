"""Rows: columns in the order of the records of ``aioflow.model`` and ``aioflow.plans``, and many of them as parameters.

Statements name the schema "aioflow"; ``database.Session`` puts the address's own in its place. A batch's rows go to the
server as one array a column, which ``unnest()`` makes rows of again: one statement, however many they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias, get_args, get_type_hints

from aioflow.model import Run, Signal, Transition
from aioflow.plans import EventRecord, Listener, Plan

Record: TypeAlias = type[Run | Transition | Signal | EventRecord | Plan | Listener]


def types_of(record: Record) -> tuple[str, ...]:
    """The columns' types on the way to the server."""
    hints = get_type_hints(record)
    return tuple(_type_of(hints[field]) for field in record._fields)


def _type_of(hint: Any) -> str:
    kinds = {hint, *get_args(hint)}
    if float in kinds:
        return "double precision"
    return "bigint" if int in kinds else "text"


def named(columns: Iterable[str], table: str = "") -> str:
    """Names of columns; one of them, "offset", is a word of SQL."""
    return ", ".join(f'{table}"{column}"' for column in columns)


def unnest(names: Sequence[str], types: Sequence[str], alias: str, first: int = 1) -> str:
    """Rows out of parameters, the first of which is ``$first``: one array a column."""
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
#: The columns of ``history``, whose names are not those of the record's fields everywhere.
HISTORY_COLUMNS: Final = "run_id, seq, at, step, attempt, kind, duration, error, commit_id"
