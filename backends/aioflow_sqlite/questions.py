"""Reading: filters become SQL with every value bound."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from aioflow.model import Deadline, Run
from aioflow.store import RunQuery, Stats
from aioflow_sqlite.batch import SELECT_RUNS

_SEVERAL = ("workflow", "version", "status", "step", "waiting_for", "key", "event_id", "parent_id")


def select(db: sqlite3.Connection, query: RunQuery) -> list[Run]:
    """The runs that match, in order."""
    where, values = _where(query)
    direction, comparison = ("DESC", "<") if query.descending else ("ASC", ">")
    if query.after is not None:
        where.append(f"({query.order}, id) {comparison} (?, ?)")
        values += query.after
    order = f"id {direction}" if query.order == "id" else f"{query.order} {direction}, id {direction}"
    sql = f"{SELECT_RUNS}{_and(where)} ORDER BY {order} LIMIT ?"
    return [Run._make(row) for row in db.execute(sql, (*values, query.limit))]


def count(db: sqlite3.Connection, query: RunQuery) -> int:
    """How many runs match."""
    where, values = _where(query)
    (number,) = db.execute(f"SELECT count(*) FROM runs{_and(where)}", values).fetchone()
    return int(number)


def due(db: sqlite3.Connection, after: tuple[int, int], until: tuple[int, int], limit: int) -> list[Deadline]:
    """Deadlines between two positions."""
    sql = (
        "SELECT wake_at, id, seq FROM runs WHERE wake_at IS NOT NULL "
        "AND (wake_at, id) > (?, ?) AND (wake_at, id) <= (?, ?) ORDER BY wake_at, id LIMIT ?"
    )
    return [Deadline._make(row) for row in db.execute(sql, (*after, *until, limit))]


def stats(db: sqlite3.Connection, now: int) -> Stats:
    """Counts of what is there."""
    runs: dict[str, dict[str, int]] = {}
    for workflow, status, number in db.execute("SELECT workflow, status, count(*) FROM runs GROUP BY 1, 2"):
        runs.setdefault(workflow, {})[status] = number
    steps: dict[str, dict[str, int]] = {}
    live = "SELECT workflow, step, count(*) FROM runs WHERE status IN ('running', 'waiting') GROUP BY 1, 2"
    for workflow, step, number in db.execute(live):
        steps.setdefault(workflow, {})[step] = number
    waiting = dict(
        db.execute("SELECT waiting_for, count(*) FROM runs WHERE waiting_for IS NOT NULL GROUP BY 1").fetchall()
    )
    overdue, oldest = db.execute(
        "SELECT count(*), min(wake_at) FROM runs WHERE wake_at IS NOT NULL AND wake_at <= ?", (now,)
    ).fetchone()
    (size,) = db.execute("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()").fetchone()
    return Stats(runs, steps, waiting, overdue, oldest, size)


def _and(where: list[str]) -> str:
    return f" WHERE {' AND '.join(where)}" if where else ""


def _where(query: RunQuery) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    for column in _SEVERAL:
        allowed = getattr(query, column)
        if len(allowed) == 1:
            where.append(f"{column} = ?")
            values.append(allowed[0])
        elif allowed:
            where.append(f"{column} IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(allowed))
    for column, comparison, bound in (
        ("created_at", ">", query.created_after),
        ("created_at", "<", query.created_before),
        ("updated_at", ">", query.updated_after),
        ("updated_at", "<", query.updated_before),
    ):
        if bound is not None:
            where.append(f"{column} {comparison} ?")
            values.append(bound)
    for condition, bound_values in _data_conditions(query.data, "$"):
        where.append(condition)
        values += bound_values
    return where, values


def _data_conditions(wanted: Mapping[str, JsonValue], path: str) -> Iterator[tuple[str, list[Any]]]:
    """What each key of a data filter means. Paths are bound like values; a key is quoted as a JSON string in them."""
    for key, value in wanted.items():
        # SQLite before 3.45 does not unescape a quoted key: what needs escapes is looked up by comparing keys.
        yield from _value_conditions(value, f"{path}.{json.dumps(key, ensure_ascii=False)}")


def _value_conditions(value: JsonValue, path: str) -> Iterator[tuple[str, list[Any]]]:
    match value:
        case None:
            yield "json_type(data, ?) = 'null'", [path]
        case bool():
            yield "json_type(data, ?) = ?", [path, "true" if value else "false"]
        case int() | float():
            yield "(json_type(data, ?) IN ('integer', 'real') AND json_extract(data, ?) = ?)", [path, path, value]
        case str():
            yield "(json_type(data, ?) = 'text' AND json_extract(data, ?) = ?)", [path, path, value]
        case list():
            yield "(json_type(data, ?) = 'array' AND json_array_length(data, ?) = ?)", [path, path, len(value)]
            for i, item in enumerate(value):
                yield from _value_conditions(item, f"{path}[{i}]")
        case _:
            yield "json_type(data, ?) = 'object'", [path]
            yield from _data_conditions(value, path)
