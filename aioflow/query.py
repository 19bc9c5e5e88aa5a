"""The filters of ``runs``, ``iter_runs``, ``count`` and ``events``: checks them, and makes them a query of the port."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, get_args

from pydantic import JsonValue

from aioflow.canon import id_text
from aioflow.clock import Micros, to_micros
from aioflow.errors import LimitExceeded
from aioflow.model import CHARACTERS, MAX_DATA, MAX_NAME, WaitingFor, WorkflowStatus, check_id, check_name, misfit
from aioflow.plans import EventStatus
from aioflow.registry import workflow_name
from aioflow.run import WorkflowRun
from aioflow.shapes import RunFilters
from aioflow.store import EventQuery, RunQuery

_ORDERS: dict[str, tuple[Literal["id", "created_at", "updated_at"], bool]] = {
    "id": ("id", False),
    "-id": ("id", True),
    "created_at": ("created_at", False),
    "-created_at": ("created_at", True),
    "updated_at": ("updated_at", False),
    "-updated_at": ("updated_at", True),
}


#: How many values the filter ``data`` may have, and how deep: databases limit the length of a statement.
_MOST_VALUES = 200
_DEEPEST = 8
#: The integers that every database has.
_INTEGERS = range(-(1 << 63), 1 << 63)
#: A filter by a status that nothing has, so that nothing matches.
_NOTHING = ("",)


def run_query(call: str, filters: Mapping[str, Any], **rest: Any) -> RunQuery:
    """The query for the filters that a call was given, once they are checked.

    Args:
        call: its name, for errors.
        filters: by name; see ``Engine.runs``.
        rest: ``workflow``, ``order``, ``limit`` and ``after``, as far as the call takes them.

    Raises:
        TypeError, ValueError, LimitExceeded: an unknown filter, or a value of the wrong type or out of its range.
    """
    unknown = [name for name in filters if name not in RunFilters.__annotations__]
    if unknown:
        known = ", ".join(["workflow", *RunFilters.__annotations__])
        raise TypeError(f"{call}() has no filter {', '.join(map(repr, unknown))} (filters: {known}).")
    return _read(**filters, **rest)


def _read(
    *,
    workflow: object = None,
    status: object = None,
    step: object = None,
    waiting_for: object = None,
    waiting_signal: object = None,
    waiting_key: object = None,
    key: object = None,
    event_id: object = None,
    data: Mapping[str, JsonValue] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    updated_after: datetime | None = None,
    updated_before: datetime | None = None,
    order: str = "-id",
    limit: int = 100,
    after: WorkflowRun[Any] | int | None = None,
) -> RunQuery:
    if order not in _ORDERS:
        raise ValueError(f"runs(order=...) takes one of {', '.join(_ORDERS)}; got {order!r:.{MAX_NAME}}.")
    column, descending = _ORDERS[order]
    check_limit(limit)
    if data is not None and not isinstance(data, Mapping):
        raise TypeError(f"runs(data=...) takes a mapping of Context fields, got {type(data).__name__}.")
    _check_data(data or {})
    several = (workflow, status, step, waiting_for, waiting_signal, waiting_key, key, event_id)
    workflows, statuses, steps, waiting, signals, keys_waited, keys, event_ids = lists = [*map(_listed, several)]
    nothing = _NOTHING if [] in lists else ()
    return RunQuery(
        workflow=tuple(map(workflow_name, workflows or ())),
        status=nothing or tuple(map(_status, statuses or ())),
        step=_names("step", steps),
        waiting_for=tuple(map(_waiting_for, _names("waiting_for", waiting))),
        waiting_signal=_names("waiting_signal", signals),
        waiting_key=_names("waiting_key", keys_waited),
        key=_names("key", keys),
        event_id=_names("event_id", event_ids),
        data=dict(data or {}),
        created_after=_instant("runs(created_after=...)", created_after),
        created_before=_instant("runs(created_before=...)", created_before),
        updated_after=_instant("runs(updated_after=...)", updated_after),
        updated_before=_instant("runs(updated_before=...)", updated_before),
        order=column,
        descending=descending,
        limit=limit,
        after=None if after is None else _position(after, column),
    )


def event_query(
    *,
    event_id: object,
    name: object,
    namespace: object,
    entity_id: object,
    status: object,
    at_after: datetime | None,
    at_before: datetime | None,
    order: str,
    limit: int,
) -> EventQuery:
    """The query for the filters that ``events`` was given. Raises TypeError, ValueError, LimitExceeded, as it does."""
    if order not in ("id", "-id"):
        raise ValueError(f"events(order=...) takes 'id' or '-id', got {order!r:.{MAX_NAME}}.")
    check_limit(limit)
    ids, names, spaces, entities, statuses = lists = [*map(_listed, (event_id, name, namespace, entity_id, status))]
    nothing = _NOTHING if [] in lists else ()
    return EventQuery(
        event_id=_texts("event_id", ids),
        name=_texts("name", names),
        namespace=_texts("namespace", spaces),
        entity_id=tuple(id_text("events(entity_id=...)", item) for item in entities or ()),
        status=nothing or tuple(map(_event_status, statuses or ())),
        at_after=_instant("events(at_after=...)", at_after),
        at_before=_instant("events(at_before=...)", at_before),
        descending=order == "-id",
        limit=limit,
    )


def _instant(what: str, value: object) -> Micros | None:
    if value is not None and not isinstance(value, datetime):
        raise TypeError(f"{what} takes an aware datetime, got {type(value).__name__}.")
    return None if value is None else to_micros(value, what)


def _status(value: object) -> str:
    if value not in set(WorkflowStatus):
        advice = " Blocked runs wait: runs(waiting_for='blocked')." if value == "blocked" else ""
        raise ValueError(
            f"runs(status=...) takes one of {', '.join(WorkflowStatus)}; got {value!r:.{MAX_NAME}}.{advice}"
        )
    return str(value)


def _waiting_for(value: str) -> str:
    if value not in get_args(WaitingFor):
        raise ValueError(
            f"runs(waiting_for=...) takes one of {', '.join(get_args(WaitingFor))}; got {value!r:.{MAX_NAME}}."
        )
    return value


def _event_status(value: object) -> str:
    if value not in set(EventStatus):
        raise ValueError(f"events(status=...) takes one of {', '.join(EventStatus)}; got {value!r:.{MAX_NAME}}.")
    return str(value)


def _texts(filter_: str, values: list[Any] | None) -> tuple[str, ...]:
    found = []
    for item in values or ():
        if not isinstance(item, str):
            raise TypeError(f"events({filter_}=...) takes a string or several, got {type(item).__name__}.")
        found.append(check_name(f"events({filter_}=...)", item) if item else item)
    return tuple(found)


def _check_data(data: Mapping[str, Any]) -> None:
    """Raise TypeError or LimitExceeded unless a stored Context can hold the values, and a store can search for them."""
    todo: list[tuple[str, object, int]] = [("data", data, 0)]
    count = -1
    while todo:
        path, value, depth = todo.pop()
        count += 1
        if depth > _DEEPEST:
            raise LimitExceeded("runs(data=...)", f"depth {_DEEPEST}", f"deeper at {path[:MAX_NAME]}")
        if count > _MOST_VALUES:
            raise LimitExceeded("runs(data=...)", f"{_MOST_VALUES} values", "it has more")
        match value:
            case list():
                todo += [(f"{path}[{i}]", item, depth + 1) for i, item in enumerate(value[: _MOST_VALUES + 1])]
            case Mapping():
                for key, item in value.items():
                    if not isinstance(key, str):
                        raise TypeError(f"runs(data=...) takes names as keys, got {type(key).__name__} in {path}.")
                    if key:
                        check_name(f"runs(data=...): a key in {path[:MAX_NAME]}", key)
                    todo.append((f"{path}.{key}", item, depth + 1))
            case _:
                _check_value(value, path[:MAX_NAME])


def _check_value(value: object, path: str) -> None:
    found = None
    match value:
        case None | bool():
            return
        case int():
            limit, found = "64-bit integers", None if value in _INTEGERS else "a larger one"
        case float():
            limit, found = "the numbers that JSON has", None if math.isfinite(value) else str(value)
        case str() if len(value) > MAX_DATA:
            limit, found = f"{MAX_DATA} characters", f"{len(value)}"
        case str():
            limit, found = CHARACTERS, misfit(value)
        case _:
            raise TypeError(
                f"runs(data=...) takes values as JSON has them, got {type(value).__name__} at {path}. "
                "Write what WorkflowRun.data shows: a datetime is a string there."
            )
    if found is not None:
        raise LimitExceeded("runs(data=...)", limit, f"{found} at {path}")


def _listed(value: object) -> list[Any] | None:
    """The values of a filter; None if the filter is not set. An empty list matches nothing."""
    if value is None:
        return None
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | type):
        return list(value)
    return [value]


def _names(filter_: str, values: list[Any] | None) -> tuple[str, ...]:
    found = []
    for item in values or ():
        name = item if isinstance(item, str) else getattr(item, "__name__", None)  # a step may be given as a method
        if not isinstance(name, str):
            raise TypeError(f"runs({filter_}=...) takes a string or several, got {type(item).__name__}.")
        found.append(check_name(f"runs({filter_}=...)", name) if name else name)
    return tuple(found)


def _position(after: WorkflowRun[Any] | int, column: str) -> tuple[int, int]:
    if isinstance(after, WorkflowRun):
        row = after.row
        return getattr(row, column), row.id
    if column != "id":
        raise TypeError("runs(after=...) takes the last WorkflowRun of the page before when the order is not by id.")
    return check_id(after), after


def check_limit(limit: object) -> None:
    """Raise TypeError or ValueError unless the limit is a number of rows that a page may have."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit takes an int, got {type(limit).__name__}.")
    if not 1 <= limit <= 10_000:
        raise ValueError(f"limit must be from 1 to 10000, got {limit}. Page with after=.")
