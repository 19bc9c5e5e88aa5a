"""The indexes that SQLite uses for queries: each costs the same among thousands of other runs and events."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aioflow.changes import Change, Emit
from aioflow.store import EventQuery, RunQuery
from aioflow.testing.conformance_samples import NOW, a_run, an_ended, an_event, starting
from aioflow_sqlite import batch, questions
from aioflow_sqlite.connection import migrate

CROWD = 20_000
#: The runs that have failed, and those of another workflow.
FAILED, OTHER = (7, 9_000, 11_000), (9_000,)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "analyzed"])
def db(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """Many runs and events, one per microsecond, without statistics and with them."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    db.execute("BEGIN")
    crowd: list[Change] = []
    for number in range(1, CROWD + 1):
        columns: dict[str, Any] = {"workflow": f"w{number // 5_000}", "key": f"k{number % 5_000}"}
        columns |= {"created_at": NOW + number, "updated_at": NOW - number}
        if number % 2_000 == 0:
            columns["parent_id"] = 1 + number % 4_000
        if number in FAILED:
            columns |= {"status": "failed", "workflow": "other" if number in OTHER else "order"}
        crowd += [starting(an_ended(number)._replace(**columns))]
        crowd += [Emit(an_event(number, entity_id=f"e{number % 5_000}", name=f"n{number % 3}"))]
    batch.apply(db, [*crowd, starting(a_run(CROWD + 1))], NOW)
    db.execute("COMMIT")
    if request.param:
        db.execute("ANALYZE")
    yield db
    db.close()


def _run(**columns: Any) -> Callable[[sqlite3.Connection], list[int]]:
    return lambda db: [run.id for run in questions.select(db, RunQuery(**columns))]


def _event(**columns: Any) -> Callable[[sqlite3.Connection], list[int]]:
    return lambda db: [event.id for event in questions.events(db, EventQuery(**columns))]


LATE = CROWD - 3
#: The queries, and what they find.
ASKED: dict[str, tuple[Callable[[sqlite3.Connection], list[int]], list[int]]] = {
    "a key": (_run(key=("k7",)), [15_007, 10_007, 5_007, 7]),
    "keys": (_run(key=("k7", "k8"), limit=3), [15_008, 15_007, 10_008]),
    "a key of a workflow": (_run(key=("k4000",), workflow=("other",)), [9_000]),
    "children": (_run(parent_id=(1,), limit=2), [20_000, 16_000]),
    "children of several": (_run(parent_id=(1, 2), limit=2), [20_000, 16_000]),
    "failed": (_run(status=("failed",)), [11_000, 9_000, 7]),
    "failed of a workflow": (_run(status=("failed",), workflow=("other",)), [9_000]),
    "failed after": (_run(status=("failed",), after=(9_000, 9_000)), [7]),
    "created after": (_run(created_after=NOW + LATE), [LATE + 3, LATE + 2, LATE + 1]),
    "created after, oldest first": (_run(created_after=NOW + LATE, descending=False, limit=2), [LATE + 1, LATE + 2]),
    "created before": (_run(created_before=NOW + 3), [CROWD + 1, 2, 1]),
    "created between": (_run(created_after=NOW + 9_000, created_before=NOW + 9_003), [9_002, 9_001]),
    "next page of these": (_run(created_after=NOW + 9_000, created_before=NOW + 9_003, after=(9_002, 9_002)), [9_001]),
    "updated before": (_run(updated_before=NOW - LATE), [LATE + 3, LATE + 2, LATE + 1]),
    "created late, updated early": (
        _run(created_after=NOW + LATE, updated_before=NOW - 5),
        [LATE + 3, LATE + 2, LATE + 1],
    ),
    "created early": (_run(created_after=NOW - 1, limit=2), [CROWD + 1, CROWD]),
    "in order of creation": (_run(order="created_at", limit=2), [CROWD, CROWD - 1]),
    "page in order of updates": (
        _run(order="updated_at", after=(NOW - 9_000, 9_000), descending=False, limit=2),
        [8_999, 8_998],
    ),
    "an entity's events": (_event(entity_id=("e7",), limit=2), [15_007, 10_007]),
    "events of several entities": (_event(entity_id=("e7", "e8"), limit=2), [15_008, 15_007]),
    "an entity's events of a name": (_event(entity_id=("e7",), name=("n1",)), [15_007, 7]),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_question_goes_by_an_index(db: sqlite3.Connection, name: str) -> None:
    """No query takes many of SQLite's steps, whether the tables have statistics or not."""
    ask, expected = ASKED[name]
    steps: list[int] = []
    db.set_progress_handler(lambda: steps.append(1), 1_000)
    try:
        found = ask(db)
    finally:
        db.set_progress_handler(None, 0)
    assert found == expected
    assert len(steps) < 25, f"{len(steps)} thousand steps"


def test_a_filter_parses_each_context_once() -> None:
    """A filter by many members parses each Context once, as large Contexts would take long otherwise."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    said: list[str] = []
    db.set_trace_callback(said.append)
    assert questions.select(db, RunQuery(data={f"k{number}": {"a": [number, 1]} for number in range(50)})) == []
    db.close()
    assert [sql.count("json_each(data)") for sql in said] == [1]
