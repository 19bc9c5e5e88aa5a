"""SQLite's own about events: files of version 2, the query plans, and the cost of statements."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from aioflow.changes import Change, Emit, Listen, Occur, Post, Replan, Withdraw
from aioflow.clock import SECOND
from aioflow.model import Signal
from aioflow.plans import BLOCKED
from aioflow.store import EventQuery, PlanQuery
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    a_signal,
    a_waiter,
    an_event,
    an_event_waiter,
    arms,
    cancelling,
    do,
    emit,
    listen,
    mailbox,
    moving,
    outcomes,
    plans,
    post,
    put,
    resuming,
    starting,
)
from aioflow_sqlite import SQLiteStore, batch, questions
from aioflow_sqlite.connection import migrate
from tests.stores.young import analyze_young

#: How many events the file has that no query is about.
CROWD = 20_000
SECOND_COLUMNS = Signal._fields[:-1]
#: A run whose wait is over, but an event that it waits for must occur first.
LATE = an_event_waiter(6_001, "x", "ordered", ("other", "e3"), ("other", "none"), wake_at=NOW + 100 * SECOND)
#: The plans that are blocked.
GONE = tuple(range(1, 2_001))


# ---- migration


def _version_2(path: Path) -> None:
    """Create a file as version 2 left it, with waiting runs and signals for them."""
    with sqlite3.connect(path) as db:
        for name in ("0001_runs.sql", "0002_signals.sql"):
            db.executescript((files("aioflow_sqlite") / "migrations" / name).read_text(encoding="utf-8"))
        db.execute("PRAGMA application_id = 1634102391")
        db.execute("PRAGMA user_version = 2")
        for run in (a_waiter(1, ("paid", "k")), a_waiter(2)):
            marks = ", ".join("?" * len(run))
            db.execute(f"INSERT INTO runs ({', '.join(run._fields)}) VALUES ({marks})", run)
            change = starting(run)
            db.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", change.transition)
        for signal in (a_signal(1, key="k"), a_signal(2, 2)):
            marks = ", ".join("?" * len(SECOND_COLUMNS))
            db.execute(f"INSERT INTO signals ({', '.join(SECOND_COLUMNS)}) VALUES ({marks})", signal[:-1])
    db.close()


async def test_a_file_of_version_2_keeps_its_waits_and_signals(tmp_path: Path) -> None:
    """In a migrated file of version 2, runs still wait for signals and take them, and events can be used."""
    _version_2(tmp_path / "o.db")
    store = SQLiteStore(f"sqlite:///{tmp_path}/o.db")
    await store.open(NOW)
    try:
        assert await mailbox(store) == [(1, [1]), (2, [2])]
        [mail] = await store.mail([2], 9, NOW)
        assert mail.signals == [a_signal(2, 2)]
        assert (await post(store, a_signal(3)))[0].run_ids == (1, 2)
        assert (await emit(store, an_event(name="paid", entity_id="k")))[0].run_ids == ()
        first = await do(store, resuming(a_waiter(1, ("paid", "k")), 1))
        second = await do(store, resuming(a_waiter(2), 2))
        await do(store, moving(first, **_wait(an_event_waiter(1, ("paid", "k")).arms)))
        await do(store, moving(second, **_wait(arms("stop"))))
        assert await mailbox(store) == [(1, [1001])]
    finally:
        await store.close()


async def test_what_events_leave_behind(tmp_path: Path) -> None:
    """After an hour no copies, plans and waits are left; which occurrences a run has taken is kept with the run."""
    path = tmp_path / "x.db"
    store = SQLiteStore(f"sqlite:///{path}")
    await store.open(NOW)
    try:
        await listen(store, a_listener())
        for number in range(1, 21):
            await put(store, an_event_waiter(number), an_event_waiter(100 + number, ("ordered", "e1")))
        for number in range(1, 21):
            await emit(store, an_event(number))
            [plan] = await plans(store)
            assert await outcomes(store, starting(a_run(200 + number))._replace(plan=plan.id)) == ["applied"]
            taken = resuming(an_event_waiter(number), 1000 + number)
            assert await outcomes(store, taken) == ["applied"]
        later = NOW + 3_601 * SECOND
        for run_id in range(101, 121):  # their copies can be deleted once they have ended
            await store.apply([cancelling(run_id, commit_id=900 + run_id)], later)
        while (await store.stats(later)).mailbox:
            assert await store.expire(100, later)
        await store.expire(100, later)
    finally:
        await store.close()
    with sqlite3.connect(path) as db:
        count = {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("events", "runs", "signals", "plans", "waits", "seen")
        }
    db.close()
    assert count == {"events": 20, "runs": 60, "signals": 0, "plans": 0, "waits": 0, "seen": 40}


def _wait(column: str | None) -> dict[str, object]:
    return {"status": "waiting", "arms": column}


# ---- plans


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "young statistics"])
def db(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """A file with many pending and occurred events, and their planned starts, that no query is about."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    db.execute("BEGIN")
    if request.param:
        analyze_young(db)
    batch.apply(db, [Listen(("other",), (a_listener("other", event_name="other"),))], NOW)
    crowd: list[Change] = [
        Emit(an_event(number, name="other", entity_id=f"e{number}", at=NOW + number % 2 * (SECOND + number)))
        for number in range(1, CROWD + 1)
    ]
    waiters: list[Change] = [starting(an_event_waiter(number, "x", ("y", f"e{number}"))) for number in range(1, 5_001)]
    batch.apply(db, crowd, NOW)
    batch.apply(db, waiters, NOW)
    batch.apply(db, [Replan(plan, BLOCKED, "gone") for plan, _ in questions.plans(db, PlanQuery(ids=GONE))], NOW)
    batch.apply(db, [Listen(("order",), (a_listener(),))], NOW)
    mine = [Emit(an_event(CROWD + number, at=NOW + number - 2, entity_id="e1")) for number in (1, 2, 3)]
    batch.apply(db, mine, NOW)
    batch.apply(db, [starting(an_event_waiter(6_000, ("ordered", "e1"))), starting(LATE)], NOW)
    db.execute("COMMIT")
    yield db
    db.close()


def _plan_of(db: sqlite3.Connection, event: int, workflow: str) -> int:
    (found,) = db.execute("SELECT id FROM plans WHERE event = ? AND workflow = ?", (event, workflow)).fetchone()
    return int(found)


def _applied(*changes: Change) -> Callable[[sqlite3.Connection], object]:
    def apply(db: sqlite3.Connection) -> None:
        results = batch.apply(db, changes, NOW)
        assert [result.outcome for result in results] == ["applied"] * len(changes)

    return apply


def _of_plan(make: Callable[[int], Change], event: int, workflow: str) -> Callable[[sqlite3.Connection], object]:
    return lambda db: _applied(make(_plan_of(db, event, workflow)))(db)


def _time_out(db: sqlite3.Connection) -> None:
    [result] = batch.apply(db, [resuming(LATE)._replace(unless_mail=True)], NOW + 1_000 * SECOND)
    assert (result.outcome, len(result.plans)) == ("stale", 1)


def _replan(db: sqlite3.Connection) -> None:
    [(plan, _)] = questions.plans(db, PlanQuery(ids=(_plan_of(db, CROWD + 3, "order"),)))
    _applied(Replan(plan, NOW + 9, "no"))(db)


ASKED: dict[str, Callable[[sqlite3.Connection], object]] = {
    "emit": _applied(Emit(an_event(90_001))),
    "emit for later": _applied(Emit(an_event(90_001, at=NOW + 5))),
    "emit and replace": _applied(Emit(an_event(90_001, event_id=f"event-{CROWD + 3}"), replace=True)),
    "withdraw": _applied(Withdraw(f"event-{CROWD + 3}")),
    "occur": _of_plan(lambda plan: Occur(plan, "e"), CROWD + 3, ""),
    "start": _of_plan(lambda plan: starting(a_run(7_000))._replace(plan=plan), CROWD + 1, "order"),
    "replan": _replan,
    "listen": _applied(Listen(("order",), (a_listener(),))),
    "time out": _time_out,
    "park": _applied(starting(an_event_waiter(7_000, ("ordered", "e1"), created_at=NOW - 9))),
    "due plans": lambda db: questions.due_plans(db, (NOW, 0), (NOW + 9, 0), 9),
    "plans": lambda db: questions.plans(db, PlanQuery(ids=(1, 2, CROWD))),
    "blocked plans": lambda db: questions.plans(db, PlanQuery(blocked=("other", "none"), limit=20)),
    "an event": lambda db: questions.events(db, EventQuery(event_id=("event-9",))),
    "pages of events": lambda db: questions.events(db, EventQuery(after=9_000, limit=10)),
    "events of an entity": lambda db: questions.events(db, EventQuery(name=("ordered",), entity_id=("e1",))),
    "pending events by time": lambda db: questions.events(
        db, EventQuery(status=("pending",), at_after=NOW, at_before=NOW + 9)
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_statement_goes_by_an_index(db: sqlite3.Connection, name: str) -> None:
    """No statement scans events, plans, waits or signals, according to SQLite's query plan and its count of steps."""
    executed: list[str] = []
    steps: list[int] = []
    db.execute("BEGIN")
    db.set_trace_callback(executed.append)
    db.set_progress_handler(lambda: steps.append(1), 1_000)
    try:
        ASKED[name](db)
    finally:
        db.set_progress_handler(None, 0)
        db.set_trace_callback(None)
        db.execute("ROLLBACK")
    lines = [
        line[3]
        for sql in executed
        if not sql.startswith(("--", "BEGIN", "ROLLBACK"))
        for line in db.execute(f"EXPLAIN QUERY PLAN {sql}")
    ]
    assert lines
    for line in lines:
        assert "BLOOM FILTER" not in line, line  # it is built from the whole table
        for table in ("events", "e", "plans", "p", "waits", "w", "signals", "s", "seen", "runs", "listeners"):
            assert not f"{line} ".startswith(f"SCAN {table} "), line
    assert len(steps) < 5, f"{len(steps)} thousand steps"


def test_ten_thousand_events_of_one_instant_occur_in_batches(db: sqlite3.Connection) -> None:
    """The last of 20 batches of 500 events costs hardly more steps than the first, and every wait gets all copies."""
    db.execute("BEGIN")
    events = [an_event(number, name="x", entity_id=f"e{number}", at=NOW + 5) for number in range(50_001, 60_001)]
    for start in range(0, 10_000, 500):
        _applied(*map(Emit, events[start : start + 500]))(db)
    due = [deadline.run_id for deadline in questions.due_plans(db, (NOW + 4, 2**62), (NOW + 5, 2**62), 20_000)]
    assert len(due) == 10_000
    costs = []
    db.execute("DELETE FROM waits WHERE run_id > 3")
    for start in range(0, 10_000, 500):
        steps: list[int] = []
        db.set_progress_handler(lambda steps=steps: steps.append(1), 1_000)  # type: ignore[misc]
        _applied(*(Occur(plan, f"of {plan}") for plan in due[start : start + 500]))(db)
        db.set_progress_handler(None, 0)
        costs.append(len(steps))
    sys.stdout.write(f"thousands of steps in each batch of 500: {costs}\n")
    assert max(costs[1:]) < 2 * min(costs[1:]) + 5
    (copies,) = db.execute("SELECT count(*) FROM signals WHERE event > 50000").fetchone()
    assert copies >= 3 * 10_000
    db.execute("ROLLBACK")


def test_a_batch_without_events_asks_nothing_of_them(db: sqlite3.Connection) -> None:
    """A batch without events executes no statement about events."""
    db.execute("BEGIN")
    batch.apply(db, [starting(a_run(8_000)), starting(a_run(8_001))], NOW)
    executed: list[str] = []
    db.set_trace_callback(executed.append)
    waits = moving(a_run(8_001), status="waiting", waiting_for="signal", arms=arms(("paid", "k")))
    _applied(moving(a_run(8_000)), waits, Post(a_signal(1, key="k")))(db)
    db.set_trace_callback(None)
    db.execute("ROLLBACK")
    assert executed
    assert not [sql for sql in executed if "events" in sql or "plans" in sql or "seen" in sql]
