"""Queries: filters become SQL with every value bound."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Literal, get_args

from pydantic import JsonValue

from aioflow.clock import Micros
from aioflow.model import ARM_KINDS, Deadline, Run, Transition, WaitingFor, WorkflowStatus
from aioflow.plans import BLOCKED, EventRecord, Plan
from aioflow.store import EventQuery, Planned, PlanQuery, RunQuery, Stats
from aioflow_postgres.rows import EVENT_COLUMNS, HISTORY_COLUMNS, PLAN_COLUMNS, SELECT_RUNS
from aioflow_postgres.session import Session

_SEVERAL: Final = ("workflow", "version", "status", "step", "waiting_for", "key", "event_id")
#: Columns that can hold only these words.
_CLOSED: Final = {"status": frozenset(map(str, WorkflowStatus)), "waiting_for": frozenset(get_args(WaitingFor))}
_INT64: Final = range(-(1 << 63), 1 << 63)
#: Filters that leave few runs, each by an index of its own.
_NARROW: Final = ("key", "event_id", "parent_id", "waiting_signal", "waiting_key")
#: Up to so many runs between two times are read and sorted, rather than searched for among all in the order of ids.
_SORTED: Final = 5_000


class Nothing(Exception):
    """A filter has a value that no row can hold."""


class _Where:
    """Conditions, and the values that are bound in them."""

    def __init__(self, values: list[Any] | None = None) -> None:
        self.conditions: list[str] = []
        self.values = [] if values is None else values

    def bind(self, value: Any) -> str:
        """Bind a value, and return its placeholder. Raises Nothing if no row can hold it."""
        _check(value)
        self.values.append(value)
        return f"${len(self.values)}"

    def add(self, condition: str, value: Any) -> None:
        """Add a condition, which has ``{}`` in the value's place."""
        self.conditions.append(condition.format(self.bind(value)))

    def __str__(self) -> str:
        return f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


def _check(value: object) -> None:
    """Raise Nothing for text that no row can hold: with a NUL or a lone surrogate."""
    if isinstance(value, str):
        if "\0" in value:
            raise Nothing
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Nothing from None
    elif isinstance(value, list | tuple):
        for member in value:
            _check(member)


async def load(session: Session, run_ids: list[int]) -> list[Run]:
    """The runs of these ids."""
    ids = [run_id for run_id in run_ids if run_id in _INT64]
    return [Run._make(row) for row in await session.fetch(f"{SELECT_RUNS} WHERE id = ANY($1::bigint[])", ids)]


async def select(session: Session, query: RunQuery) -> list[Run]:
    """The runs that match, in order."""
    try:
        where = _where(query)
    except Nothing:
        return []
    if query.order == "id" and not any(getattr(query, column) for column in _NARROW):
        await _look_for_few(session, query, where)
    direction, comparison = ("DESC", "<") if query.descending else ("ASC", ">")
    if query.after is not None:
        value, run_id = (_clamped(number) for number in query.after)
        where.conditions.append(f"({query.order}, id) {comparison} ({where.bind(value)}, {where.bind(run_id)})")
    order = f"id {direction}" if query.order == "id" else f"{query.order} {direction}, id {direction}"
    sql = f"{SELECT_RUNS}{where} ORDER BY {order} LIMIT {where.bind(_clamped(query.limit))}"
    return [Run._make(row) for row in await session.fetch(sql, *where.values)]


async def _look_for_few(session: Session, query: RunQuery, where: _Where) -> None:
    """If only few runs were created between the query's bounds, add a condition that finds them by that time.

    Otherwise the server would go through all runs in the order of their ids, expecting to find enough of them soon.
    """
    created = _Where()
    _between(created, query, "created_at")
    if not created.values:
        return
    few = f"SELECT id FROM aioflow.runs{created} ORDER BY created_at"
    if not await session.fetch(f"{few} LIMIT 1 OFFSET {_SORTED}", *created.values):
        created = _Where(where.values)
        _between(created, query, "created_at")
        where.conditions.append(f"id = ANY(ARRAY(SELECT id FROM aioflow.runs{created} ORDER BY created_at))")


async def count(session: Session, query: RunQuery) -> int:
    """How many runs match."""
    try:
        where = _where(query)
    except Nothing:
        return 0
    [(number,)] = await session.fetch(f"SELECT count(*) FROM aioflow.runs{where}", *where.values)
    return int(number)


async def history(session: Session, run_id: int, after: int, limit: int) -> list[Transition]:
    """A run's transitions above a seq."""
    sql = f"SELECT {HISTORY_COLUMNS} FROM aioflow.history WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"
    rows = await session.fetch(sql, _clamped(run_id), _clamped(after), _clamped(limit))
    return [Transition._make(row) for row in rows]


async def due(session: Session, after: tuple[Micros, int], until: tuple[Micros, int], limit: int) -> list[Deadline]:
    """Deadlines of waiting runs between two positions."""
    sql = (
        "SELECT wake_at, id, seq FROM aioflow.runs WHERE status = 'waiting' AND wake_at IS NOT NULL "
        "AND (wake_at, id) > ($1, $2) AND (wake_at, id) <= ($3, $4) ORDER BY wake_at, id LIMIT $5"
    )
    return [Deadline._make(row) for row in await session.fetch(sql, *map(_clamped, (*after, *until, limit)))]


async def due_plans(
    session: Session, after: tuple[Micros, int], until: tuple[Micros, int], limit: int
) -> list[Deadline]:
    """Deadlines of plans between two positions."""
    sql = (
        "SELECT due, id, attempts FROM aioflow.plans "
        "WHERE (due, id) > ($1, $2) AND (due, id) <= ($3, $4) ORDER BY due, id LIMIT $5"
    )
    return [Deadline._make(row) for row in await session.fetch(sql, *map(_clamped, (*after, *until, limit)))]


async def events(session: Session, query: EventQuery) -> list[EventRecord]:
    """The events that match, in order."""
    where = _Where()
    try:
        for column in ("event_id", "name", "namespace", "entity_id", "status"):
            if allowed := getattr(query, column):
                where.conditions.append(f"{column} {_among(where, column, allowed)}")
    except Nothing:
        return []
    bounds = [
        ("at > {}", query.at_after),
        ("at < {}", query.at_before),
        ("id < {}" if query.descending else "id > {}", query.after),
    ]
    for condition, bound in bounds:
        if bound is not None:
            where.add(condition, _clamped(bound))
    direction = "DESC" if query.descending else "ASC"
    limit = where.bind(_clamped(query.limit))
    sql = f"SELECT {EVENT_COLUMNS} FROM aioflow.events AS e{where} ORDER BY id {direction} LIMIT {limit}"
    return [EventRecord._make(row) for row in await session.fetch(sql, *where.values)]


async def plans(session: Session, query: PlanQuery) -> list[Planned]:
    """Plans and their events."""
    sql = (
        f"SELECT {PLAN_COLUMNS}, {EVENT_COLUMNS} FROM aioflow.plans AS p JOIN aioflow.events AS e ON e.id = p.event "
        "WHERE p.id = ANY($1::bigint[])"
    )
    width = len(Plan._fields)
    ids = list(query.ids)
    if query.blocked:
        blocked = f"SELECT id FROM aioflow.plans WHERE due = {BLOCKED} AND workflow = ANY($1::text[]) LIMIT $2"
        ids += [id_ for (id_,) in await session.fetch(blocked, list(query.blocked), query.limit)]
    rows = [tuple(row) for row in await session.fetch(sql, ids)]
    return [Planned(Plan._make(row[:width]), EventRecord._make(row[width:])) for row in rows]


async def stats(session: Session, now: Micros) -> Stats:
    """Counts of what is there; most of them read whole tables."""
    await session.execute("SET LOCAL enable_seqscan TO on")
    runs: dict[str, dict[str, int]] = {}
    for workflow, status, number in await session.fetch(
        "SELECT workflow, status, count(*) FROM aioflow.runs GROUP BY 1, 2"
    ):
        runs.setdefault(workflow, {})[status] = number
    steps: dict[str, dict[str, int]] = {}
    of_status = "SELECT workflow, step FROM aioflow.runs WHERE status"  # each by an index of its own
    live = f"{of_status} = 'running' UNION ALL {of_status} = 'waiting'"
    counts = f"SELECT workflow, step, count(*) FROM ({live}) AS live GROUP BY 1, 2"
    for workflow, step, number in await session.fetch(counts):
        steps.setdefault(workflow, {})[step] = number
    waits = (
        "SELECT waiting_for, count(*) FROM aioflow.runs WHERE status = 'waiting' AND waiting_for IS NOT NULL GROUP BY 1"
    )
    waiting = dict([tuple(row) for row in await session.fetch(waits)])
    [(overdue, oldest)] = await session.fetch(
        "SELECT count(*), min(wake_at) FROM aioflow.runs "
        "WHERE status = 'waiting' AND wake_at IS NOT NULL AND wake_at <= $1",
        now,
    )
    untaken = "SELECT count(*) FROM aioflow.signals WHERE taken_at IS NULL AND run_id"  # each by an index of its own
    [(mailbox,)] = await session.fetch(f"SELECT ({untaken} <> 0) + ({untaken} = 0)")
    tables = "runs", "history", "waits", "signals", "events", "replaced", "plans", "seen"
    place = "SELECT relnamespace FROM pg_class WHERE oid = (SELECT tableoid FROM aioflow.store LIMIT 1)"
    sizes = "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
    [(size,)] = await session.fetch(f"{sizes} WHERE relnamespace = ({place}) AND relname = ANY($1::text[])", tables)
    told = dict([tuple(row) for row in await session.fetch("SELECT status, count(*) FROM aioflow.events GROUP BY 1")])
    starts = (
        f"SELECT count(*), count(*) FILTER (WHERE error IS NOT NULL AND due <> {BLOCKED}), "
        f"count(*) FILTER (WHERE due = {BLOCKED}) FROM aioflow.plans WHERE workflow <> ''"
    )
    [(planned, failing, blocked)] = await session.fetch(starts)
    return Stats(runs, steps, waiting, overdue, oldest, mailbox, size, told, planned, failing, blocked)


def _clamped(number: int) -> int:
    """The nearest number that a column can hold, for comparisons: their outcome is the same."""
    return max(_INT64.start, min(number, _INT64.stop - 1))


def _where(query: RunQuery) -> _Where:
    where = _Where()
    for column in _SEVERAL:
        if not (allowed := getattr(query, column)):
            continue
        these = _among(where, column, allowed)
        if column == "waiting_for" and not ARM_KINDS.isdisjoint(allowed):
            kinds = f"SELECT 1 FROM aioflow.waits WHERE run_id = runs.id AND kind {these}"
            where.conditions.append(f"(waiting_for {these} OR EXISTS ({kinds}))")
        else:
            where.conditions.append(f"{column} {these}")
    if query.waiting_for:
        where.conditions.append("status = 'waiting'")  # implied, but makes the planner use the partial index
    if len(parents := [number for number in query.parent_id if number in _INT64]) == 1:
        where.add("parent_id = {}", parents[0])
    elif query.parent_id:
        where.add("parent_id = ANY({}::bigint[])", parents)
    _between(where, query, "created_at")
    _between(where, query, "updated_at")
    arms = [("name", query.waiting_signal), ("key", query.waiting_key)]
    if wanted := [(column, allowed) for column, allowed in arms if allowed]:
        found = " AND ".join(f"{column} = ANY({where.bind(list(allowed))}::text[])" for column, allowed in wanted)
        # An array, so that these few runs are looked up; a join might go through all runs in the order of ids.
        where.conditions.append(f"id = ANY(ARRAY(SELECT run_id FROM aioflow.waits WHERE {found}))")
    if leaves := list(_leaves(query.data, [])):
        held = " AND ".join(condition for path, value in leaves for condition in _held(where, path, value))
        # Parsed once for all of them; without OFFSET it would be parsed for each.
        where.conditions.append(f"EXISTS (SELECT 1 FROM (SELECT data::jsonb AS doc OFFSET 0) AS d WHERE {held})")
    return where


def _between(where: _Where, query: RunQuery, column: Literal["created_at", "updated_at"]) -> None:
    """Add the query's bounds of a time."""
    after, before = (
        (query.created_after, query.created_before)
        if column == "created_at"
        else (query.updated_after, query.updated_before)
    )
    for comparison, bound in ((">", after), ("<", before)):
        if bound is not None:
            where.add(f"{column} {comparison} {{}}", _clamped(bound))


def _among(where: _Where, column: str, allowed: Collection[str]) -> str:
    if _CLOSED.get(column, frozenset()).issuperset(allowed):
        # As literals: only then can a generic plan use an index on runs with this status, or that wait for this.
        return f"IN ({', '.join(map(repr, sorted(set(map(str, allowed)))))})"
    if len(allowed) == 1:
        return f"= {where.bind(*allowed)}::text"
    return f"= ANY({where.bind(list(allowed))}::text[])"


def _leaves(wanted: Mapping[str, JsonValue], path: list[str]) -> Iterator[tuple[list[str], JsonValue]]:
    """The paths and values that the filter ``data`` wants; mappings are descended into, all else is to be equal."""
    for key, value in wanted.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, [*path, key])
        else:
            yield [*path, key], value


def _held(where: _Where, path: list[str], value: JsonValue) -> Iterator[str]:
    """Conditions that the Context, ``doc``, has this value at this path, which leads only through objects, not lists."""
    for depth in range(1, len(path)):
        yield f"jsonb_typeof(doc #> {where.bind(path[:depth])}::text[]) = 'object'"
    found = f"(doc #> {where.bind(path)}::text[])"
    if value == {}:
        yield f"jsonb_typeof{found} = 'object'"
    else:
        _check_json(value)
        yield f"{found} = {where.bind(json.dumps(value, ensure_ascii=False))}::text::jsonb"


def _check_json(value: JsonValue) -> None:
    if isinstance(value, dict):
        _check(list(value))
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            _check_json(member)
    _check(value)
