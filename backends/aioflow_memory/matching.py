"""Whether a run matches a RunQuery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from aioflow.clock import Micros
from aioflow.model import Run, arms_of
from aioflow.store import RunQuery

#: The filters that are columns of the same name.
_COLUMNS: Final = ("workflow", "version", "status", "step", "key", "event_id", "parent_id")


def matches(run: Run, query: RunQuery) -> bool:
    """Whether the run passes every filter; ignores order, limit and after."""
    for column in _COLUMNS:
        wanted = getattr(query, column)
        if wanted and getattr(run, column) not in wanted:
            return False
    if query.waiting_for and run.waiting_for not in query.waiting_for:
        if not any(arm.kind in query.waiting_for for arm in arms_of(run)):
            return False
    if (query.waiting_signal or query.waiting_key) and not any(
        (not query.waiting_signal or arm.name in query.waiting_signal)
        and (not query.waiting_key or arm.key in query.waiting_key)
        for arm in arms_of(run)
    ):
        return False
    return (
        _between(run.created_at, query.created_after, query.created_before)
        and _between(run.updated_at, query.updated_after, query.updated_before)
        and (not query.data or _holds(json.loads(run.data), query.data))
    )


def _between(instant: Micros, after: Micros | None, before: Micros | None) -> bool:
    return (after is None or instant > after) and (before is None or instant < before)


def _holds(found: JsonValue, wanted: JsonValue | Mapping[str, JsonValue]) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, dict) and all(
            key in found and _holds(found[key], value) for key, value in wanted.items()
        )
    return _equal(found, wanted)


def _equal(one: JsonValue, other: JsonValue) -> bool:
    """Equality of JSON values, at any depth: Python's True equals 1, but JSON's true does not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return one == other
