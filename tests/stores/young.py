"""Statistics of a SQLite file from when it was small: ANALYZE was run, and then the file has grown."""

from __future__ import annotations

import sqlite3

from aioflow.changes import Change, Emit, Listen, Post
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    a_signal,
    a_sleeper,
    a_waiter,
    an_ended,
    an_event,
    an_event_waiter,
    resuming,
    starting,
)
from aioflow_sqlite import batch, mailbox

#: The first id of the rows of that time.
FIRST = 900_000


def analyze_young(db: sqlite3.Connection) -> None:
    """Write some twenty rows into each table, and run ANALYZE."""
    numbers = range(FIRST, FIRST + 20)
    batch.apply(db, [Listen(("young",), (a_listener("young", event_name="young"),))], NOW)
    runs = [a_waiter(number, "young", ("young", f"young{number}")) for number in numbers[::2]]
    runs += [an_event_waiter(number, ("young", f"young{number}"), key=f"young{number}") for number in numbers[1::2]]
    runs += [an_ended(number + 100, status, parent_id=FIRST) for number, status in zip(numbers, ("failed", "completed") * 10, strict=True)]  # fmt: skip
    runs += [a_run(FIRST + 200), a_sleeper(FIRST + 201, NOW)]
    changes: list[Change] = [starting(run) for run in runs]
    changes += [Post(a_signal(number, number, signal_id=f"young{number}", name="young")) for number in numbers]
    changes += [Post(a_signal(number + 100, key="nobody", name="young", expires_at=NOW + 9)) for number in numbers]
    changes += [
        Emit(an_event(number, name="young", entity_id=f"young{number}", at=NOW + number % 2)) for number in numbers
    ]
    batch.apply(db, changes, NOW)
    batch.apply(db, [resuming(runs[0], FIRST), resuming(runs[10], FIRST + 1_001)], NOW)
    mailbox.take(db, [(number, number, number) for number in numbers[2::4]], NOW)
    mailbox.take(db, [(number, 0, None) for number in range(FIRST + 105, FIRST + 110)], NOW)
    db.execute("ANALYZE")
