"""Queries with values that no column can hold: such a number compares as a number, and such a text matches nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest

from aioflow.errors import StoreUnavailable
from aioflow.store import EventQuery, RunQuery
from aioflow.testing.conformance_samples import NOW, a_listener, a_run, a_sleeper, an_event, emit, ids, listen, put
from aioflow_postgres import PostgresStore
from aioflow_postgres.address import parse
from aioflow_postgres.database import Database
from aioflow_postgres.questions import _where
from aioflow_postgres.session import Session, Statements
from tests.postgres import Schemas, query, with_options
from tests.support import wait_until

LESS: Final = -(2**63) - 1
MORE: Final = 2**63
FIRST: Final = (LESS, LESS)
LAST: Final = (MORE, MORE)


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    """A store with three runs and two events."""
    store = PostgresStore(postgres_url)
    await store.open(NOW)
    await put(store, a_run(1), a_sleeper(2, NOW, parent_id=1), a_sleeper(3, -NOW))
    await listen(store, a_listener(), a_listener(offset=-2 * NOW))
    await emit(store, an_event(1), an_event(2, at=-NOW))
    yield store
    await store.close()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"after": FIRST}, []),
        ({"after": LAST}, [3, 2, 1]),
        ({"after": FIRST, "descending": False, "order": "created_at"}, [1, 2, 3]),
        ({"after": LAST, "descending": False, "order": "updated_at"}, []),
        ({"limit": MORE}, [3, 2, 1]),
        ({"parent_id": (LESS, MORE)}, []),
        ({"parent_id": (MORE, 1)}, [2]),
        *(({f"{column}_{side}": bound}, [3, 2, 1]) for column in ("created", "updated") for side, bound in (("after", LESS), ("before", MORE))),
        *(({f"{column}_{side}": bound}, []) for column in ("created", "updated") for side, bound in (("after", MORE), ("before", LESS))),
    ],
    ids=str,
)  # fmt: skip
async def test_runs_are_asked_for(store: PostgresStore, filters: dict[str, Any], expected: list[int]) -> None:
    """Runs are found by cursor, limit, parent and time with numbers beyond 64 bits, in the order of numbers."""
    assert ids(await store.select(RunQuery(**filters), NOW)) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"after": LESS}, []),
        ({"after": MORE, "limit": MORE}, [2, 1]),
        ({"after": LESS, "descending": False}, [1, 2]),
        ({"at_after": LESS, "at_before": MORE}, [2, 1]),
        ({"at_after": MORE}, []),
        ({"at_before": LESS}, []),
    ],
    ids=str,
)
async def test_events_are_asked_for(store: PostgresStore, filters: dict[str, Any], expected: list[int]) -> None:
    """Events are found by cursor, limit and time with numbers beyond 64 bits."""
    assert [event.id for event in await store.select(EventQuery(**filters), NOW)] == expected


async def test_runs_and_their_histories_are_asked_for(store: PostgresStore) -> None:
    """Runs and histories are read with ids, positions and limits beyond 64 bits."""
    assert sorted(ids(await store.load([LESS, 1, MORE, 3], NOW))) == [1, 3]
    assert [line.seq for line in await store.history(1, LESS, MORE, NOW)] == [1]
    assert await store.history(1, MORE, 9, NOW) == await store.history(MORE, 0, 9, NOW) == []


async def test_deadlines_are_asked_for(store: PostgresStore) -> None:
    """Deadlines are read between instants beyond 64 bits, also those before the epoch."""
    assert [deadline.run_id for deadline in await store.due(FIRST, LAST, MORE, NOW)] == [3, 2]
    assert [deadline.at for deadline in await store.due(FIRST, LAST, MORE, NOW, "plan")] == [-3 * NOW, -NOW, -NOW, NOW]
    assert await store.due(LAST, FIRST, MORE, NOW) == await store.due(LAST, FIRST, MORE, NOW, "plan") == []


@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"], ids=ascii)
@pytest.mark.parametrize("within", ["one", "several", "arm", "value", "list", "deep", "name", "deep name"])
async def test_texts_are_asked_for(store: PostgresStore, within: str, odd: str) -> None:
    """A query that has such a text anywhere finds nothing, and does not ask the server."""
    filters: dict[str, dict[str, Any]] = {
        "one": {"key": (odd,)},
        "several": {"key": ("a", odd)},
        "arm": {"waiting_signal": (odd,)},
        "value": {"data": {"total": odd}},
        "list": {"data": {"total": [odd]}},
        "deep": {"data": {"total": [{"a": odd}]}},
        "name": {"data": {odd: 17}},
        "deep name": {"data": {"total": [{odd: 17}]}},
    }
    query = RunQuery(**filters[within])
    assert (await store.select(query, NOW), await store.count(query, NOW)) == ([], 0)
    assert await store.select(EventQuery(name=("ordered", odd)), NOW) == []


def test_a_limited_number_of_statements_is_kept() -> None:
    """A limited number of statements is kept, however many different ones are made, and each is made right."""
    statements = Statements("work")
    for number in range(5_000):
        assert statements[f"SELECT {number} FROM aioflow.runs"] == f'SELECT {number} FROM "work".runs'
    assert len(statements) <= 500


async def test_equal_statuses_make_equal_statements(store: PostgresStore) -> None:
    """Filters by the same statuses, repeated or in another order, make the same statement."""
    asked: list[tuple[str, ...]] = [("running", "waiting"), ("waiting", "running", "waiting"), ("waiting", "running")]
    where = {str(_where(RunQuery(status=status))) for status in asked}
    assert where == {" WHERE status IN ('running', 'waiting')"}
    for status in asked:
        assert ids(await store.select(RunQuery(status=status), NOW)) == [3, 2, 1]


def test_a_filter_parses_each_context_once() -> None:
    """A filter by many members parses each Context once, as large Contexts would take long otherwise."""
    where = str(_where(RunQuery(data={f"k{number}": {"a": [number, 1]} for number in range(50)})))
    assert where.count("data::jsonb") == 1


async def test_slow_queries_leave_connections_for_the_runs(postgres_server: Schemas, postgres_url: str) -> None:
    """Slow queries of users leave connections for the runs, and one whose caller is cancelled is not begun."""
    events = f'"{postgres_url.rpartition("=")[2]}".events'
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass"
    store = PostgresStore(with_options(postgres_url, pool_size=4))
    await store.open(NOW)
    await put(store, a_run(1))
    holder = await asyncpg.connect(postgres_server.url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(f"LOCK TABLE {events} IN ACCESS EXCLUSIVE MODE")
    asked = [asyncio.ensure_future(store.select(EventQuery(), NOW)) for _ in range(8)]

    async def held_up() -> bool:
        [(number,)] = await query(postgres_server.url, waiting, events)
        return bool(number == 2)

    try:
        await wait_until(held_up)
        assert ids(await store.load([1], NOW)) == ids(await store.select(RunQuery(own=True), NOW)) == [1]
        assert await store.reserve("run", 1, NOW)
        asked[-1].cancel()
    finally:
        await transaction.rollback()
        await holder.close()
    *answers, left = await asyncio.gather(*asked, return_exceptions=True)
    assert answers == [[]] * 7
    assert isinstance(left, asyncio.CancelledError)
    assert (await store.stats(NOW)).events == {}
    await store.close()


async def test_a_question_that_nobody_waits_for_ends(postgres_server: Schemas, postgres_url: str) -> None:
    """A slow question whose caller has left gives its connection up soon, and the server ends it, too."""
    store = PostgresStore(with_options(postgres_url, pool_size=4, timeout=100))
    await store.open(NOW)
    database = store._open_database

    async def sleeps(session: Session) -> None:
        await session.fetch("SELECT pg_sleep(90) AS aioflow_left")

    async def asleep(number: int) -> bool:
        found = await query(
            postgres_server.url,
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%AS aioflow_left' AND pid <> pg_backend_pid()",
        )
        return bool(found[0][0] == number)

    asked = [asyncio.ensure_future(database.question(sleeps, snapshot=snapshot)) for snapshot in (False, True)]
    await wait_until(lambda: asleep(2))
    for each in asked:
        each.cancel()
    assert [type(end) for end in await asyncio.gather(*asked, return_exceptions=True)] == 2 * [asyncio.CancelledError]
    async with asyncio.timeout(20):
        assert await store.select(EventQuery(), NOW) == []
    await wait_until(lambda: asleep(0), timeout=20)
    await store.close()


async def test_what_users_still_ask_when_the_store_closes_is_refused(
    postgres_server: Schemas, postgres_url: str
) -> None:
    """Of more questions than may run at once, each ends when the store is closed: none waits for ever."""
    events = f'"{postgres_url.rpartition("=")[2]}".events'
    store = PostgresStore(with_options(postgres_url, pool_size=4))
    await store.open(NOW)
    holder = await asyncpg.connect(postgres_server.url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(f"LOCK TABLE {events} IN ACCESS EXCLUSIVE MODE")
    asked = [asyncio.ensure_future(store.select(EventQuery(), NOW)) for _ in range(8)]
    try:
        await wait_until(store._open_database._turns.locked)
        closing = asyncio.ensure_future(store.close())
        await wait_until(lambda: store._database is None)
    finally:
        await transaction.rollback()
        await holder.close()
    await closing
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(answer == [] or isinstance(answer, StoreUnavailable) for answer in answers)


async def test_a_question_does_not_wait_for_others_for_ever() -> None:
    """A question that gets no turn in the time that a question may take is given up, like one that gets no connection."""
    database = Database(parse("postgresql://ann@127.0.0.1:1/orders?pool_size=3&timeout=0.01"))
    await database._turns.acquire()

    async def ask(_: object) -> None: ...

    with pytest.raises(StoreUnavailable, match="all connections are taken"):
        await database.question(ask)
    database._turns.release()
    with pytest.raises(StoreUnavailable, match="it is not open"):
        await database.question(ask)
    assert not database._turns.locked()
