"""The query plans of PostgreSQL: what a query costs does not grow with rows that it is not about.

A statement is planned once per connection, perhaps while the tables are empty. The tests count pages, as counted by the
server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import asyncpg
import pytest

from aioflow.changes import Change, Emit, Listen, Occur, Post, Withdraw
from aioflow.clock import SECOND
from aioflow.model import Run
from aioflow.store import EventQuery, PlanQuery, RunQuery
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    a_signal,
    a_waiter,
    an_event,
    an_event_waiter,
    cancelling,
    moving,
    resuming,
    starting,
)
from aioflow_postgres import PostgresStore, batch, mailbox, ownership, questions
from aioflow_postgres.database import _SET, Database
from aioflow_postgres.session import Session, Statements

CROWD: Final = 20_000
#: How many pages a query may read; the tables have thousands.
FEW: Final = 250
Ask = Callable[[Session], Awaitable[Any]]

#: 20 000 runs, all ended but every tenth of the older half, which waits; their signals, most of which were taken; and
#: events. ``schema`` is the search path.
RUNS: Final = f"""
INSERT INTO runs (id, workflow, version, key, parent_id, created_at, status, step, seq, fence, visit, failures, hops,
    crashes, marked, waiting_for, arms, data, updated_at, ended_at)
SELECT id, CASE WHEN id < 5 THEN 'rare' ELSE 'order' END, '1', CASE WHEN id % 4 = 1 AND status <> 'waiting' THEN 'daily' WHEN id % 2 = 0 THEN 'k' || id END,
    CASE WHEN id % 3 = 2 THEN id - 1 END, {NOW} + id, status, 'pay', 1, 1, 1, 0, 0, 0, 0,
    CASE WHEN status = 'waiting' THEN CASE WHEN id % 20 = 5 THEN 'event' ELSE 'signal' END END,
    CASE WHEN status = 'waiting' THEN
        CASE WHEN id % 20 = 5 THEN '[["event","ordered","e' ELSE '[["signal","paid","k' END || id || '"]]' END,
    json_build_object('total', id, 'text', repeat('x', 500)), {NOW} + id, CASE WHEN status <> 'waiting' THEN {NOW} + id END
FROM (SELECT id, CASE WHEN id % 5 = 0 AND id <= {CROWD // 2} THEN 'waiting' WHEN id IN (7, 9, 9001) THEN 'failed' ELSE 'completed' END
    AS status FROM generate_series(1::bigint, {CROWD}) AS id) AS crowd
"""
SIGNALS: Final = f"""
INSERT INTO signals (id, run_id, name, key, payload, message, broadcast, signal_id, sent_at, taken_at, taken_by)
SELECT id, CASE WHEN id % 2 = 0 THEN id ELSE 0 END, CASE WHEN id % 2 = 0 THEN 'other' ELSE 'paid' END,
    CASE WHEN id % 2 = 1 THEN 'x' || id END, '{{}}', 0, 0, CASE WHEN id % 3 = 0 THEN 's' || id END, {NOW},
    CASE WHEN id % 3 = 0 THEN {NOW - 7_200 * SECOND} WHEN id % 3 = 1 THEN {NOW} END, CASE WHEN id % 3 < 2 THEN 1 END
FROM generate_series(1::bigint, {CROWD}) AS id
"""
EVENTS: Final = f"""
INSERT INTO events (id, event_id, name, namespace, entity_id, at, occurrence, status, mail_id, recorded_at, occurred_at)
SELECT id, 'event-' || id, CASE WHEN id % 2 = 0 THEN 'ordered' ELSE 'n' || id % 3 END, '*', 'e' || id % 5000, {NOW} + id - 15000, 1,
    CASE WHEN id > 15000 THEN 'pending' ELSE 'occurred' END, 100000 + id, {NOW}, CASE WHEN id <= 15000 THEN {NOW} + id - 15000 END
FROM generate_series(1::bigint, {CROWD}) AS id;
INSERT INTO plans SELECT id, at, id, 1, '', 0, 0, NULL FROM events WHERE status = 'pending';
INSERT INTO seen SELECT id, 100000 + id % 5000 FROM generate_series(1::bigint, {CROWD}) AS id
"""


def _runs(**columns: Any) -> Ask:
    return lambda session: questions.select(session, RunQuery(**columns))


def _events(**columns: Any) -> Ask:
    return lambda session: questions.events(session, EventQuery(**columns))


class _One(Database):
    """A database on one session, whose transaction the test rolls back."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def ask(self, operation: Any) -> Any:
        return await operation(self._session)

    say = transact = ask


def _apply(*changes: Change, now: int = NOW) -> Ask:
    return lambda session: batch.apply(_One(session), changes, now)


def _of_run(run_id: int, change: Callable[[Run], Change]) -> Ask:
    async def ask(session: Session) -> object:
        found = await questions.load(session, [run_id])
        return await batch.apply(_One(session), list(map(change, found)), NOW) if found else None

    return ask


def _claim(worker: int, held: Sequence[int] | None, now: int) -> Ask:
    return lambda session: ownership.claim(
        _One(session), worker, lease=SECOND, limit=100, known=[("order", "1")], held=held, now=now
    )


ASKED: Final[dict[str, Ask]] = {
    "runs of a key": _runs(key=("k8",)),
    "the run of a key": _runs(key=("k8",), workflow=("order",), order="created_at", limit=1),
    "children": _runs(parent_id=(7,)),
    "failed": _runs(status=("failed",)),
    "failed of a workflow": _runs(status=("failed",), workflow=("order",)),
    "cancelled": _runs(status=("cancelled",)),
    "waiting": _runs(status=("waiting",), limit=20),
    "waiting for a signal": _runs(waiting_for=("signal",), limit=20),
    "of a workflow that has few": _runs(workflow=("rare",)),
    "of a workflow that has none": _runs(workflow=("none",)),
    "waiting for a rare signal": _runs(waiting_signal=("rare",)),
    "waiting with a key": _runs(waiting_key=("k10",)),
    "to be sent to": _runs(waiting_signal=("paid",), waiting_key=("k10",), order="updated_at", limit=1),
    "in order of creation": _runs(order="created_at", limit=20),
    "a page in order of creation": _runs(order="created_at", after=(NOW + 9_000, 9_000), limit=20),
    "created between": _runs(created_after=NOW + 9_000, created_before=NOW + 9_005),
    "created lately": _runs(created_after=NOW + CROWD - 5),
    "created early": _runs(created_before=NOW + 5),
    "events of an entity": _events(entity_id=("e7",)),
    "events of an entity and a name": _events(entity_id=("e7",), name=("n1",)),
    "plans that are blocked": lambda session: questions.plans(session, PlanQuery(blocked=("order",))),
    "mail of some": lambda session: mailbox.mail(session, [10, 20], 9, NOW),
    "who has mail": lambda session: mailbox.with_mail(session, [10, 20], NOW),
    "who has mail in time": lambda session: mailbox.in_time(session, [10, 20], NOW),
    "receivers by run": lambda session: mailbox.receivers(session, [a_signal(90_001, 10)], NOW),
    "receivers by key": lambda session: mailbox.receivers(session, [a_signal(90_001, key="k10")], NOW),
    "receivers of all": lambda session: mailbox.receivers(session, [a_signal(90_001)], NOW),
    "forget": lambda session: mailbox.expire(session, 10, NOW, 10),
    "claim": _claim(1, None, NOW),
    "claim and compare": _claim(1, [7], NOW),
    "start": _apply(starting(a_run(90_001))),
    "start with a key": _apply(starting(a_run(90_001, key="k8"))),
    "start with a key of thousands": _apply(starting(a_run(90_001, key="daily"), reuse="ended")),
    "start and wait": _apply(starting(a_waiter(90_001, ("paid", "k")))),
    "start and wait for an event": _apply(starting(an_event_waiter(90_001, ("ordered", "e7"), created_at=NOW))),
    "time out": _of_run(10, lambda run: resuming(run)._replace(unless_mail=True)),
    "complete": _of_run(10, lambda run: moving(run, status="completed", arms=None, waiting_for=None, ended_at=NOW)),
    "cancel": _apply(cancelling(10, commit_id=99)),
    "post to a run": _apply(Post(a_signal(90_001, 10, signal_id="a"))),
    "post to a key": _apply(Post(a_signal(90_001, key="k10"))),
    "post again": _apply(Post(a_signal(90_001, key="k10", signal_id="s3"))),
    "emit": _apply(Emit(an_event(90_001, entity_id="e5"))),
    "emit for later": _apply(Emit(an_event(90_001, at=NOW + 5))),
    "withdraw": _apply(Withdraw("event-19999")),
    "occur": _apply(Occur(19_999, "e")),
    "listen": _apply(Listen(("order",), (a_listener(),))),
}  # fmt: skip

PAGES: Final = """
SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'i')
"""


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[Any]:
    """A connection to an empty store, with the store's settings, on which no autovacuum collects statistics."""
    store = PostgresStore(postgres_url)
    await store.open(NOW)
    await store.close()
    url, _, schema = postgres_url.partition("&schema=" if "&schema=" in postgres_url else "?schema=")
    connection = await asyncpg.connect(url, statement_cache_size=500, max_cached_statement_lifetime=0)
    await connection.execute(f"SET search_path TO {schema}; {_SET}")
    for table in ("runs", "waits", "signals", "events", "plans", "seen"):
        await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    yield connection
    await connection.close()


async def _costs(connection: Any) -> dict[str, int]:
    """The pages that each query reads; its writes are rolled back."""
    session = Session(connection, Statements(await connection.fetchval("SELECT current_schema()")))
    costs = {}
    for name, ask in ASKED.items():
        transaction = connection.transaction()
        await transaction.start()
        before = await connection.fetchval(PAGES)
        await ask(session)
        costs[name] = await connection.fetchval(PAGES) - before
        await transaction.rollback()
    return costs


@pytest.mark.parametrize("known", ["when they were empty", "not at all", "by ANALYZE"])
async def test_a_statement_goes_by_an_index(connection: Any, known: str) -> None:
    """Whatever statistics its plan was made with, each statement reads few pages among thousands."""
    if known == "when they were empty":
        await _costs(connection)
    for sql in (RUNS, SIGNALS, EVENTS):
        await connection.execute(sql)
    if known == "by ANALYZE":
        await connection.execute("ANALYZE runs, waits, signals, events, plans, seen")
    costs = await _costs(connection)
    assert {name: pages for name, pages in costs.items() if pages > FEW} == {}, costs


async def test_expiring_does_not_read_remembered_signals(connection: Any) -> None:
    """Expiring reads no taken signals that are remembered by a signal_id, nor those that were taken just now."""
    await connection.execute(SIGNALS)
    session = Session(connection, Statements(await connection.fetchval("SELECT current_schema()")))
    kept = "SELECT count(*) FROM signals WHERE taken_at < $1"
    assert await connection.fetchval(kept, NOW) > 6_000
    await connection.execute("UPDATE signals SET signal_id = NULL WHERE taken_at < $1 AND id % 2 = 0", NOW)
    for _ in range(4):
        await mailbox.expire(session, 1_000, NOW, 1_000)
    left = await connection.fetchval(kept, NOW)
    async with connection.transaction():
        before = await connection.fetchval(PAGES)
        await mailbox.expire(session, 1_000, NOW, 1_000)
        pages = await connection.fetchval(PAGES) - before
    assert left == await connection.fetchval(kept, NOW) == await connection.fetchval(f"{kept} AND signal_id > ''", NOW)
    assert pages < FEW


async def test_no_more_than_the_limit_is_forgotten_at_once(connection: Any) -> None:
    """One call deletes up to the limit of taken signals, whether they were remembered by a signal_id or not."""
    await connection.execute(SIGNALS)
    await connection.execute("UPDATE signals SET taken_at = 1 WHERE id < 100 AND id % 3 = 0")
    await connection.execute("UPDATE signals SET taken_at = 1 WHERE id < 100 AND id % 3 = 1")
    session = Session(connection, Statements(await connection.fetchval("SELECT current_schema()")))
    for left in (26, 0, 0):
        await mailbox.expire(session, 9, NOW, 40)
        assert await connection.fetchval("SELECT count(*) FROM signals WHERE taken_at = 1") == left


async def test_a_claim_does_not_read_runs_that_others_have_taken(connection: Any) -> None:
    """A claim does not read thousands of runs that had no owner and have one now, though there was no vacuum."""
    await connection.execute(RUNS)
    waited = "UPDATE runs SET status = 'running', waiting_for = NULL, arms = NULL WHERE status = 'waiting'"
    await connection.execute(waited)
    await connection.execute("ANALYZE runs")
    await connection.execute("UPDATE runs SET owner = 1 WHERE status = 'running'")
    session = Session(connection, Statements(await connection.fetchval("SELECT current_schema()")))
    pages = []
    for _ in range(2):
        async with connection.transaction():
            before = await connection.fetchval(PAGES)
            await _claim(1, None, NOW)(session)
            pages.append(await connection.fetchval(PAGES) - before)
    assert pages[-1] < 50, pages
