"""SQLite's own about signals: files of version 1, the query plans, and reads within one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from aioflow.changes import Change, Post
from aioflow.model import Run, Transition
from aioflow.store import Mail, RunQuery
from aioflow.testing.conformance_samples import (
    NOW,
    a_run,
    a_signal,
    a_sleeper,
    a_transition,
    a_waiter,
    an_ended,
    arms,
    do,
    log,
    mailbox,
    moving,
    post,
    put,
    resuming,
    starting,
)
from aioflow_sqlite import SQLiteStore, batch
from aioflow_sqlite import mailbox as box
from aioflow_sqlite.connection import migrate
from tests.stores.young import analyze_young

#: The columns of version 1.
FIRST_COLUMNS = [name for name in Run._fields if name not in {"arms", "input", "deadline", "failure"}]
OLD_RUNS = [a_run(1, owner=7), a_run(2, key="order-2"), a_sleeper(3, NOW + 5), an_ended(4, "failed", error="no")]


# ---- migration


def _version_1(path: Path) -> str:
    """Create a file as version 1 left it, with runs, and return its UUID."""
    with sqlite3.connect(path) as db:
        db.executescript((files("aioflow_sqlite") / "migrations" / "0001_runs.sql").read_text(encoding="utf-8"))
        db.execute("PRAGMA application_id = 1634102391")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO ids VALUES ('run', 5)")
        for run in OLD_RUNS:
            values = [getattr(run, name) for name in FIRST_COLUMNS]
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO runs ({', '.join(FIRST_COLUMNS)}) VALUES ({marks})", values)
            db.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", a_transition(run, kind="start"))
        (uuid,) = db.execute("SELECT uuid FROM store").fetchone()
    db.close()
    return str(uuid)


async def test_a_file_of_version_1_keeps_its_runs(tmp_path: Path) -> None:
    """In a migrated file of version 1 runs, histories, deadlines, ids and UUID are kept, and no run waits."""
    uuid = _version_1(tmp_path / "o.db")
    store = SQLiteStore(f"sqlite:///{tmp_path}/o.db")
    try:
        assert await store.open(NOW) == uuid
        assert sorted(await store.load([1, 2, 3, 4], NOW)) == OLD_RUNS
        assert await log(store, 3) == [Transition(3, 1, NOW, "pay", 1, "start", 1_500, None, 3_000_001)]
        assert [deadline.run_id for deadline in await store.due((0, 0), (NOW + 9, 0), 9, NOW)] == [3]
        assert await store.reserve("run", 1, NOW) == 5
        assert await store.reserve("signal", 1, NOW) == 1
        assert await store.count(RunQuery(waiting_signal=("paid",)), NOW) == 0
        assert (await store.stats(NOW)).mailbox == 0
    finally:
        await store.close()
    with sqlite3.connect(tmp_path / "o.db") as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] >= 2
    db.close()


async def test_a_file_of_version_1_takes_signals(tmp_path: Path) -> None:
    """In a migrated file of version 1, the old runs wait, take signals and end like new ones."""
    _version_1(tmp_path / "o.db")
    store = SQLiteStore(f"sqlite:///{tmp_path}/o.db")
    await store.open(NOW)
    try:
        waits: dict[str, Any] = {
            "status": "waiting",
            "waiting_for": "signal",
            "arms": arms(("paid", "k")),
            "owner": None,
        }
        one = await do(store, moving(OLD_RUNS[0], **waits))
        two = await do(store, moving(OLD_RUNS[1], **waits))
        await post(store, a_signal(1), a_signal(2, 1), a_signal(3, key="k"), a_signal(4, 3))
        assert await mailbox(store) == [(1, [1, 2, 3]), (2, [1, 3])]
        await do(store, resuming(one, 1, status="completed"))
        await do(store, resuming(two, 3))
        assert sorted((signal.id, signal.run_id) for signal in await store.expire(9, NOW)) == [(1, 2), (2, 1)]
        again = await store.apply([starting(a_run(9, key="order-2"))], NOW)
        assert again[0].outcome == "exists"
    finally:
        await store.close()


async def test_many_may_migrate_a_file_at_once(tmp_path: Path) -> None:
    """Ten stores that open a file of version 1 at once migrate it once."""
    uuid = _version_1(tmp_path / "o.db")
    stores = [SQLiteStore(f"sqlite:///{tmp_path}/o.db") for _ in range(10)]
    try:
        assert set(await asyncio.gather(*(store.open(NOW) for store in stores))) == {uuid}
        for store in stores:
            assert sorted(await store.load([1, 2, 3, 4], NOW)) == OLD_RUNS
    finally:
        for store in stores:
            await store.close()


# ---- reads


async def test_a_mail_is_of_one_instant(tmp_path: Path) -> None:
    """mail() reads runs and signals in one transaction, so that a commit in between does not mix with them."""
    store = SQLiteStore(f"sqlite:///{tmp_path}/o.db")
    await store.open(NOW)
    other = sqlite3.connect(tmp_path / "o.db", check_same_thread=False)
    resumed: list[str] = []

    def resume(sql: str) -> None:
        if "FROM runs" in sql and not resumed:  # between the reads of signals and rows
            resumed.append(sql)
            other.execute("UPDATE runs SET status = 'running', arms = NULL, seq = 2 WHERE id = 1")
            other.commit()

    try:
        await put(store, a_waiter(1))
        await post(store, a_signal(1, 1))
        assert store._reader is not None
        await store._reader.run(lambda db: db.set_trace_callback(resume))
        mails = await store.mail(None, 9, NOW)
        assert [(mail.run, len(mail.signals)) for mail in mails] in ([], [(a_waiter(1), 1)])
        await store._reader.run(lambda db: db.set_trace_callback(None))
        assert await mailbox(store) == ([] if resumed else [(1, [1])])
    finally:
        other.close()
        await store.close()


# ---- plans


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "young statistics"])
def crowded(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """A file with 10 000 rows that no query is about: other runs' waits, their signals, and taken ones."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    db.execute("BEGIN")
    if request.param:
        analyze_young(db)
    crowd: list[Change] = [starting(a_waiter(number, ("other", f"k{number}"))) for number in range(1, 5_001)]
    crowd += [starting(a_waiter(10_001, ("paid", "k")))]
    batch.apply(db, crowd, NOW)
    sent: list[Change] = [Post(a_signal(number, number)) for number in range(1, 5_001)]
    sent += [Post(a_signal(number, key=f"x{number}", signal_id=f"s{number}")) for number in range(5_001, 10_001)]
    batch.apply(db, sent, NOW)
    db.execute("UPDATE signals SET taken_at = ?, taken_by = 1 WHERE id % 2", (NOW,))
    batch.apply(db, [Post(a_signal(20_001, key="k")), Post(a_signal(20_002, 10_001))], NOW)
    db.execute("COMMIT")
    yield db
    db.close()


@pytest.fixture
def db(crowded: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """That file, in a transaction that is rolled back."""
    crowded.execute("BEGIN")
    yield crowded
    crowded.execute("ROLLBACK")


def _plans(db: sqlite3.Connection, call: Callable[[], object]) -> list[str]:
    """The query plans of all statements that a call executes."""
    executed: list[str] = []
    db.set_trace_callback(executed.append)
    call()
    db.set_trace_callback(None)
    statements = [sql for sql in executed if not sql.startswith(("--", "BEGIN", "ROLLBACK", "COMMIT"))]
    assert statements
    return [line[3] for sql in statements for line in db.execute(f"EXPLAIN QUERY PLAN {sql}")]


#: The queries, and whether each may scan the index of signals that nobody has taken.
ASKED: dict[str, tuple[Callable[[sqlite3.Connection], object], bool]] = {
    "mail of some": (lambda db: box.mail(db, [10_001], 9, NOW), False),
    "mail of all": (lambda db: box.mail(db, None, 9, NOW), True),
    "mail of all by code": (lambda db: box.mail(db, None, 9, NOW, [("order", "1")]), True),
    "mail of all from there on": (lambda db: box.mail(db, None, 9, NOW, None, (NOW, 1)), True),
    "with_mail": (lambda db: box.with_mail(db, [10_001], NOW, by_wake_at=False), False),
    "with_mail in time": (lambda db: box.with_mail(db, [10_001], NOW, by_wake_at=True), False),
    "receivers by run": (lambda db: box.receivers(db, a_signal(20_002, 10_001), NOW), False),
    "receivers by key": (lambda db: box.receivers(db, a_signal(20_001, key="k"), NOW), False),
    "receivers of all": (lambda db: box.receivers(db, a_signal(20_003), NOW), False),
    "post to a run": (lambda db: box.post(db, a_signal(30_001, 10_001, signal_id="a"), NOW), False),
    "post to a key": (lambda db: box.post(db, a_signal(30_002, key="k", signal_id="b"), NOW), False),
    "post to all": (lambda db: box.post(db, a_signal(30_003, signal_id="c"), NOW), False),
    "post again": (lambda db: box.post(db, a_signal(30_004, key="k", signal_id="s5001"), NOW), False),
    "expire": (lambda db: box.expire(db, 9, NOW), False),
    "untaken": (lambda db: box.untaken(db, [(20_001, 10_001), (20_002, 10_001)], NOW), False),
    "take": (lambda db: box.take(db, [(20_001, 0, 10_001)], NOW), False),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_statement_goes_by_an_index(db: sqlite3.Connection, name: str) -> None:
    """No statement scans signals or waits, and only the query for all mail scans the index of untaken signals."""
    call, may_walk = ASKED[name]
    for line in _plans(db, lambda: call(db)):
        allowed = may_walk and line.startswith(
            ("SCAN s USING INDEX signals_addressed", "SCAN s USING INDEX signals_keyed")
        )
        assert "BLOOM FILTER" not in line, line  # it is built from the whole table
        tables = ("signals", "waits", "runs", "s", "w")
        assert allowed or not any(line == f"SCAN {table}" or line.startswith(f"SCAN {table} ") for table in tables), (
            line
        )


def test_asking_for_one_runs_mail_costs_the_same_among_thousands(db: sqlite3.Connection) -> None:
    """Queries for one run's mail take few of SQLite's steps among thousands of other waits and signals."""
    steps: list[int] = []
    db.set_progress_handler(lambda: steps.append(1), 1_000)
    for name in ("mail of some", "with_mail", "receivers by run", "receivers by key", "untaken", "expire"):
        ASKED[name][0](db)
    db.set_progress_handler(None, 0)
    assert len(steps) < 10
    [mail] = box.mail(db, [10_001], 9, NOW)
    assert [signal.id for signal in mail.signals] == [20_001, 20_002]


def test_mail_for_runs_that_do_not_wait_for_it_costs_no_more_among_many_waits(db: sqlite3.Connection) -> None:
    """The query for all mail goes from a signal to the waits of its run, not to all waits of its name."""
    batch.apply(db, [starting(a_waiter(number, ("paid", f"k{number}"))) for number in range(20_001, 22_001)], NOW)
    steps: list[int] = []
    db.set_progress_handler(lambda: steps.append(1), 1_000)
    mails = box.mail(db, None, 9, NOW)
    db.set_progress_handler(None, 0)
    assert [mail.run.id for mail in mails if mail.run.id < 900_000] == [10_001]
    assert len(steps) < 200, f"{len(steps)} thousand steps"


def test_expiring_does_not_read_remembered_signals(db: sqlite3.Connection) -> None:
    """Expiring reads no taken signals that are remembered by a signal_id, nor those that were taken just now."""
    db.execute("UPDATE signals SET taken_at = ?, taken_by = 1 WHERE id <= 10000", (NOW - 7_200_000_000,))
    for _ in range(10):
        box.expire(db, 1_000, NOW)
    (kept,) = db.execute("SELECT count(*) FROM signals WHERE taken_at < ?", (NOW,)).fetchone()
    steps: list[int] = []
    db.set_progress_handler(lambda: steps.append(1), 1_000)
    box.expire(db, 1_000, NOW)
    db.set_progress_handler(None, 0)
    assert kept == 5_000
    assert len(steps) < 2, f"{len(steps)} thousand steps"


def test_no_more_than_the_limit_is_forgotten_at_once(db: sqlite3.Connection) -> None:
    """One call deletes up to the limit of taken signals, whether they were remembered by a signal_id or not."""
    db.execute("UPDATE signals SET taken_at = ?, taken_by = 1 WHERE id > 4900 AND id <= 5100", (NOW - 10**13,))
    before = db.execute("SELECT count(*) FROM signals").fetchone()[0]
    for left in (150, 300, 300):
        box.expire(db, 150, NOW)
        assert before - db.execute("SELECT count(*) FROM signals").fetchone()[0] == min(left, 200)


#: Mailboxes with 1 000 signals: that of a waiting run, that of its key, and that of a key that nobody waits for.
FULL: dict[str, tuple[Callable[[sqlite3.Connection], object], object]] = {
    "mail of a run": (lambda db: _first(box.mail(db, [10_002], 9, NOW)), [30_001, 30_002]),
    "mail of a key": (lambda db: _first(box.mail(db, [10_003], 9, NOW)), [40_001, 40_002]),
    "with_mail": (lambda db: box.with_mail(db, [10_002, 10_003, 1], NOW, by_wake_at=False), {10_002, 10_003}),
    "with_mail in time": (lambda db: box.with_mail(db, [10_002, 10_003], NOW, by_wake_at=True), {10_002, 10_003}),
    "receivers of a key": (lambda db: box.receivers(db, a_signal(49_999, key="full"), NOW), (10_003,)),
    "receivers of nobody's": (lambda db: box.receivers(db, a_signal(59_999, key="nobody"), NOW), ()),
}


def _first(mails: list[Mail]) -> list[int]:
    [mail] = mails
    return [signal.id for signal in mail.signals[:2]]


@pytest.mark.parametrize("name", FULL)
def test_one_of_many_signals_costs_no_more_than_one(db: sqlite3.Connection, name: str) -> None:
    """A run's first mail, whether it has mail, and a post's receivers cost no more among 1 000 signals."""
    batch.apply(db, [starting(a_waiter(10_002)), starting(a_waiter(10_003, ("paid", "full")))], NOW)
    sent: list[Change] = [Post(a_signal(number, 10_002)) for number in range(30_001, 31_001)]
    sent += [Post(a_signal(number, key="full")) for number in range(40_001, 41_001)]
    sent += [Post(a_signal(number, key="nobody")) for number in range(50_001, 51_001)]
    batch.apply(db, sent, NOW)
    ask, expected = FULL[name]
    steps: list[int] = []
    db.set_progress_handler(lambda: steps.append(1), 1_000)
    found = ask(db)
    db.set_progress_handler(None, 0)
    assert found == expected
    assert len(steps) < 3, f"{len(steps)} thousand steps"


def test_each_of_a_broadcasts_receivers_takes_its_own_copy_alone(db: sqlite3.Connection) -> None:
    """A batch that resumes many runs of one broadcast reads only their own copies."""
    waiting = [a_waiter(number) for number in range(60_001, 61_001)]
    batch.apply(db, [starting(run) for run in waiting], NOW)
    batch.apply(db, [Post(a_signal(70_001, broadcast=1))], NOW)
    steps: list[int] = []
    db.set_progress_handler(lambda: steps.append(1), 1_000)
    results = batch.apply(db, [resuming(run, 70_001) for run in waiting[:300]], NOW)
    db.set_progress_handler(None, 0)
    assert {result.outcome for result in results} == {"applied"}
    assert len(steps) < 220, f"{len(steps)} thousand steps"
