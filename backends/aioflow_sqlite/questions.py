"""Queries: filters become SQL, in which every value is bound that a user can choose freely."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from pydantic import JsonValue

from aioflow.model import ARM_KINDS, Deadline, Run, WaitingFor, WorkflowStatus
from aioflow.plans import BLOCKED, EventRecord, Plan
from aioflow.store import EventQuery, Planned, PlanQuery, RunQuery, Stats
from aioflow_sqlite.rows import EVENT_COLUMNS, PLAN_COLUMNS, SELECT_RUNS

_SEVERAL: Final = ("workflow", "version", "status", "step", "waiting_for", "key", "event_id", "parent_id")
#: Columns that hold nothing but these words.
_CLOSED: Final = {"status": frozenset(map(str, WorkflowStatus)), "waiting_for": frozenset(get_args(WaitingFor))}
#: Filters that leave few runs, each by an index of its own.
_NARROW: Final = ("key", "event_id", "parent_id", "waiting_signal", "waiting_key")
#: Up to so many runs between two times are read by time and sorted, instead of searching all runs in the order of ids.
_SORTED: Final = 5_000


def select(db: sqlite3.Connection, query: RunQuery) -> list[Run]:
    """The runs that match, in order."""
    where, values = _where(query)
    direction, comparison = ("DESC", "<") if query.descending else ("ASC", ">")
    if query.after is not None:
        where.append(f"({query.order}, id) {comparison} (?, ?)")
        values += query.after
    order = f"id {direction}" if query.order == "id" else f"{query.order} {direction}, id {direction}"
    sql = f"{SELECT_RUNS}{_by_time(db, query)}{_and(where)} ORDER BY {order} LIMIT ?"
    return [Run._make(row) for row in db.execute(sql, (*values, query.limit))]


def count(db: sqlite3.Connection, query: RunQuery) -> int:
    """How many runs match."""
    where, values = _where(query)
    (number,) = db.execute(f"SELECT count(*) FROM runs{_and(where)}", values).fetchone()
    return int(number)


def due(db: sqlite3.Connection, after: tuple[int, int], until: tuple[int, int], limit: int) -> list[Deadline]:
    """Deadlines between two positions."""
    sql = (
        "SELECT wake_at, id, seq FROM runs WHERE status = 'waiting' AND wake_at IS NOT NULL "
        "AND (wake_at, id) > (?, ?) AND (wake_at, id) <= (?, ?) ORDER BY wake_at, id LIMIT ?"
    )
    return [Deadline._make(row) for row in db.execute(sql, (*after, *until, limit))]


def events(db: sqlite3.Connection, query: EventQuery) -> list[EventRecord]:
    """The events that match, in order."""
    where: list[str] = ["TRUE"]
    values: list[object] = []
    for column in ("event_id", "name", "namespace", "entity_id", "status"):
        if allowed := getattr(query, column):
            condition, bound_values = _among(column, allowed)
            where.append(condition)
            values += bound_values
    bounds = [
        ("at >", query.at_after),
        ("at <", query.at_before),
        ("id <" if query.descending else "id >", query.after),
    ]
    for comparison, bound in bounds:
        if bound is not None:
            where.append(f"{comparison} ?")
            values.append(bound)
    direction = "DESC" if query.descending else "ASC"
    sql = f"SELECT {EVENT_COLUMNS} FROM events AS e WHERE {' AND '.join(where)} ORDER BY id {direction} LIMIT ?"
    return [EventRecord._make(row) for row in db.execute(sql, (*values, query.limit))]


def plans(db: sqlite3.Connection, query: PlanQuery) -> list[Planned]:
    """Plans and their events."""
    sql = (
        f"SELECT {PLAN_COLUMNS}, {EVENT_COLUMNS} FROM plans AS p CROSS JOIN events AS e ON e.id = p.event "
        "WHERE p.id IN (SELECT value FROM json_each(?))"
    )
    ids = query.ids
    if query.blocked:
        names = "SELECT DISTINCT value FROM json_each(?)"
        blocked = f"SELECT id FROM plans WHERE due = {BLOCKED} AND workflow IN ({names}) LIMIT ?"
        ids += tuple(id_ for (id_,) in db.execute(blocked, (json.dumps(query.blocked), query.limit)))
    width = len(Plan._fields)
    rows = db.execute(sql, (json.dumps(ids),))
    return [Planned(Plan._make(row[:width]), EventRecord._make(row[width:])) for row in rows]


def due_plans(db: sqlite3.Connection, after: tuple[int, int], until: tuple[int, int], limit: int) -> list[Deadline]:
    """Plans between two positions."""
    sql = (
        "SELECT due, id, attempts FROM plans WHERE (due, id) > (?, ?) AND (due, id) <= (?, ?) ORDER BY due, id LIMIT ?"
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
    waiting = dict(db.execute("SELECT waiting_for, count(*) FROM runs WHERE status = 'waiting' GROUP BY 1").fetchall())
    overdue, oldest = db.execute(
        "SELECT count(*), min(wake_at) FROM runs WHERE status = 'waiting' AND wake_at IS NOT NULL AND wake_at <= ?",
        (now,),
    ).fetchone()
    (size,) = db.execute("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()").fetchone()
    untaken = "SELECT count(*) FROM signals WHERE taken_at IS NULL AND run_id"  # each by an index of its own
    (mailbox,) = db.execute(f"SELECT ({untaken} <> 0) + ({untaken} = 0)").fetchone()
    return Stats(runs, steps, waiting, overdue, oldest, mailbox, size, *_events_and_plans(db))


def _events_and_plans(db: sqlite3.Connection) -> tuple[dict[str, int], int, int, int]:
    """How many events there are of each status, planned starts, and how many of these have failed, and are blocked."""
    events = dict(db.execute("SELECT status, count(*) FROM events GROUP BY status"))
    (planned,) = db.execute("SELECT count(*) FROM plans WHERE workflow <> ''").fetchone()
    (put_off,) = db.execute("SELECT count(*) FROM plans WHERE error IS NOT NULL").fetchone()
    counts = f"SELECT count(*), count(error) FROM plans WHERE due = {BLOCKED}"
    blocked, with_error = db.execute(counts).fetchone()
    return events, planned, put_off - with_error, blocked


def _and(where: list[str]) -> str:
    return f" WHERE {' AND '.join(where)}" if where else ""


def _where(query: RunQuery) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    for column in _SEVERAL:
        allowed = getattr(query, column)
        if column == "waiting_for" and not ARM_KINDS.isdisjoint(allowed):
            kinds = "SELECT 1 FROM waits WHERE run_id = runs.id AND kind IN (SELECT value FROM json_each(?))"
            where.append(f"(waiting_for IN (SELECT value FROM json_each(?)) OR EXISTS ({kinds}))")
            values += [json.dumps(allowed)] * 2
        elif allowed:
            condition, bound_values = _among(column, allowed)
            where.append(condition)
            values += bound_values
    for column in ("created_at", "updated_at"):
        for condition, bound in _between(query, column):
            where.append(condition)
            values.append(bound)
    arms = [("name", query.waiting_signal), ("key", query.waiting_key)]
    if wanted := [(column, allowed) for column, allowed in arms if allowed]:
        found = " AND ".join(f"{column} IN (SELECT value FROM json_each(?))" for column, _ in wanted)
        where.append(f"id IN (SELECT run_id FROM waits WHERE {found})")
        values += [json.dumps(allowed) for _, allowed in wanted]
    if query.data:
        condition, bound_values = _held("json_each(data)", query.data, exact=False, depth=0)
        where.append(condition)
        values += bound_values
    return where, values


def _between(query: RunQuery, column: str) -> list[tuple[str, int]]:
    """The query's bounds of a time."""
    bounds = {
        "created_at": ((">", query.created_after), ("<", query.created_before)),
        "updated_at": ((">", query.updated_after), ("<", query.updated_before)),
    }
    return [(f"{column} {comparison} ?", bound) for comparison, bound in bounds[column] if bound is not None]


def _by_time(db: sqlite3.Connection, query: RunQuery) -> str:
    """The clause that names the index of a time, if its bounds leave few runs; else "".

    SQLite would scan the runs in the order of their ids, as it expects to find enough of them soon.
    """
    if query.order != "id" or any(getattr(query, column) for column in _NARROW):
        return ""
    for column, index in (("created_at", "runs_created"), ("updated_at", "runs_updated")):
        if bounds := _between(query, column):
            where = [condition for condition, _ in bounds]
            sql = f"SELECT 1 FROM runs INDEXED BY {index}{_and(where)} LIMIT 1 OFFSET {_SORTED}"
            if db.execute(sql, [bound for _, bound in bounds]).fetchone() is None:
                return f" INDEXED BY {index}"
    return ""


def _among(column: str, allowed: Sequence[str | int]) -> tuple[str, list[Any]]:
    """The condition that a column has one of these values, and what is bound in it."""
    if _CLOSED.get(column, frozenset()).issuperset(allowed):
        # Literals, not bound values: so SQLite can use the partial indexes on these columns.
        words = [repr(str(word)) for word in allowed]
        return f"{column} = {words[0]}" if len(words) == 1 else f"{column} IN ({', '.join(words)})", []
    if len(allowed) == 1:
        return f"{column} = ?", [allowed[0]]
    return f"{column} IN (SELECT value FROM json_each(?))", [json.dumps(allowed)]


def _held(
    each: str, wanted: Mapping[str, JsonValue] | list[JsonValue], *, exact: bool, depth: int
) -> tuple[str, list[Any]]:
    """The condition that a JSON value, opened by ``each``, has these members. Keys are bound, never part of a path.

    It is opened once for all of them: to read 1 MiB two hundred times would take seconds for each run.
    """
    members = dict(enumerate(wanted) if isinstance(wanted, list) else wanted)
    name = f"e{depth}"
    found: list[str] = []
    values: list[Any] = []
    for key, value in members.items():
        condition, bound_values = _equal(name, value, exact=exact, depth=depth + 1)
        found.append(f"{name}.key = ? AND {condition}")
        values += [key, *bound_values]
    if not found:
        return "TRUE", []
    if len(found) == 1:
        return f"EXISTS (SELECT 1 FROM {each} AS {name} WHERE {found[0]})", values
    known = f"{name}.key IN (SELECT value FROM json_each(?)) AND ({' OR '.join(found)})"
    sql = f"(SELECT count(DISTINCT {name}.key) FROM {each} AS {name} WHERE {known}) = ?"
    return sql, [json.dumps([*members]), *values, len(found)]


def _equal(name: str, value: JsonValue, *, exact: bool, depth: int) -> tuple[str, list[Any]]:
    """The condition that a member has this value; of a mapping outside of lists, that it has at least its members."""
    match value:
        case None:
            return f"{name}.type = 'null'", []
        case bool():
            return f"{name}.type = ?", ["true" if value else "false"]
        case int() | float():
            return f"{name}.type IN ('integer', 'real') AND {name}.value = ?", [value]
        case str():
            return f"{name}.type = 'text' AND {name}.value = ?", [value]
    conditions = [f"{name}.type = '{'array' if isinstance(value, list) else 'object'}'"]
    values: list[Any] = []
    each = f"json_each({name}.value)"
    exact = exact or isinstance(value, list)
    if exact:
        conditions.append(f"(SELECT count(*) FROM {each}) = ?")
        values.append(len(value))
    condition, bound_values = _held(each, value, exact=exact, depth=depth)
    return " AND ".join([*conditions, condition]), [*values, *bound_values]
