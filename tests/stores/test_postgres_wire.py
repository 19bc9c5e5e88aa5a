"""PostgreSQL behind a wire that cuts, delays, goes silent and loses replies: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

from aioflow.changes import Change, Post, Result
from aioflow.clock import SECOND, Clock
from aioflow.committer import Committer
from aioflow.errors import StoreUnavailable
from aioflow.testing.conformance_samples import (
    NOW,
    a_run,
    a_signal,
    a_waiter,
    hopping,
    log,
    moving,
    put,
    resuming,
    row,
    starting,
)
from aioflow_postgres import PostgresStore
from tests.postgres import Schemas, query, with_options
from tests.stores.races import holding
from tests.support import wait_until
from tests.wire import Wire


@pytest.fixture
async def wire(postgres_server: Schemas) -> AsyncIterator[Wire]:
    """A wire to the tests' server."""
    if postgres_server.socket is None:
        pytest.skip("AIOFLOW_TEST_POSTGRES names a server whose socket file is not known")
    async with Wire(postgres_server.socket) as wire:
        yield wire


@pytest.fixture
async def store(wire: Wire, postgres_url: str) -> AsyncIterator[PostgresStore]:
    """A store at the end of the wire, with a timeout of one second."""
    schema = postgres_url.rpartition("schema=")[2]
    store = PostgresStore(with_options(wire.url, schema=schema, timeout=1, pool_size=3))
    await store.open(NOW)
    yield store
    wire.mend()
    await store.close()


def plain() -> list[Change]:
    """A batch that is one statement."""
    return [moving(a_run(1)), starting(a_run(3))]


def full() -> list[Change]:
    """A batch that takes locks first, and ends with COMMIT."""
    return [
        moving(a_run(1)),
        resuming(a_waiter(2), 1),
        hopping(4, commit_id=77),
        starting(a_run(3, key="k")),
        Post(a_signal(9, key="k", signal_id="s")),
    ]


@pytest.fixture
async def patient(postgres_url: str) -> AsyncIterator[PostgresStore]:
    """A store without a wire, with three connections and a timeout of some seconds."""
    store = PostgresStore(with_options(postgres_url, timeout=3, pool_size=3))
    await store.open(NOW)
    yield store
    await store.close()


async def prepare(store: PostgresStore) -> None:
    """Create the runs that the batches change, and a signal."""
    await put(store, a_run(1), a_waiter(2), a_run(4))
    assert (await store.apply([Post(a_signal(1, 2))], NOW))[0].outcome == "applied"


async def check(store: PostgresStore, results: list[Result]) -> None:
    """Check that the batch was applied, once."""
    assert {result.outcome for result in results} == {"applied"}
    assert len(await log(store, 1)) == 2
    assert len(await log(store, 3)) == 1
    if len(results) > 2:
        assert len(await log(store, 2)) == 2
        assert (await row(store, 4)).hops == 1
        assert len(await store.expire(10, NOW + 8 * 24 * 3600 * SECOND)) == 0
        assert (await store.stats(NOW)).mailbox == 1


@pytest.mark.parametrize("batch", [plain, full])
async def test_a_reply_to_commit_that_is_lost(
    wire: Wire, store: PostgresStore, batch: Callable[[], list[Change]]
) -> None:
    """If the reply to a commit is lost the outcome is unknown; the batch, offered again, was applied once."""
    await prepare(store)
    await store.load([1], NOW)
    if batch is plain:
        wire.lose_reply = 500
    else:
        wire.lose_commit = True
    with pytest.raises(StoreUnavailable):
        await store.apply(batch(), NOW)
    assert wire.lost == 1
    await check(store, await store.apply(batch(), NOW))


@pytest.mark.parametrize("batch", [plain, full])
async def test_a_connection_that_is_cut_in_the_middle_of_a_transaction(
    wire: Wire, store: PostgresStore, postgres_server: Schemas, postgres_url: str, batch: Callable[[], list[Change]]
) -> None:
    """If the connection is cut in a transaction the store is unavailable; the batch, offered again, applies once."""
    await prepare(store)
    schema = postgres_url.rpartition("schema=")[2]
    waiting = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{schema}%'"
    async with holding(postgres_server.url, f"SELECT 1 FROM {schema}.runs WHERE id = 1 FOR UPDATE"):
        applying = asyncio.ensure_future(store.apply(batch(), NOW))
        await wait_until(lambda: _first(postgres_server.url, waiting))
        wire.cut()
        with pytest.raises(StoreUnavailable):
            await applying
    await check(store, await store.apply(batch(), NOW))


async def test_a_committer_hears_the_truth_over_a_bad_wire(wire: Wire, store: PostgresStore, rng: Any) -> None:
    """Over a wire that cuts, hangs, delays and loses replies, every change is applied once, and reported so."""
    committer = Committer(store, Clock(), lambda applied: None, in_flight=store.in_flight)
    committer.start()
    await put(store, *(a_run(number) for number in range(1, 21)))
    runs = {number: a_run(number) for number in range(1, 21)}
    ways = ["cut", "lose reply", "silent", "deaf", "hang", "slow"]
    faults = ["cut", *rng.choices(ways, k=19)]  # first a cut while all are under way, which certainly hits one

    async def drive(number: int) -> None:
        for _ in range(12):
            move = moving(runs[number])
            assert (await committer.commit(move)).outcome == "applied"
            runs[number] = move.run

    driving = asyncio.gather(*(drive(number) for number in runs))
    for number, fault in enumerate(faults, 1):
        wire.fail(fault)
        await asyncio.wait({driving}, timeout=0.1 if number < len(faults) else 1.5)
        wire.mend()
        if driving.done():
            break
    wire.lose_reply = None
    await asyncio.wait_for(driving, 30)
    await committer.stop(5 * SECOND)
    assert wire.cuts + wire.lost > 0
    for number in runs:
        assert [line.seq for line in await log(store, number)] == list(range(1, 14))


@pytest.mark.parametrize("batch", [plain, full])
@pytest.mark.parametrize("way", ["silent", "deaf", "hang"])
async def test_a_half_open_connection_is_dropped(
    wire: Wire, store: PostgresStore, way: str, batch: Callable[[], list[Change]]
) -> None:
    """A half-open connection is dropped after the timeout, and the batch, offered again, is applied once on another."""
    await prepare(store)
    wire.fail(way)
    with pytest.raises(StoreUnavailable):
        await store.apply(batch(), NOW)
    assert wire.swallowed > 0
    wire.mend()
    await check(store, await store.apply(batch(), NOW))


async def test_a_connection_that_hangs_while_it_is_set_up_is_dropped(wire: Wire, store: PostgresStore) -> None:
    """A connection that hangs while it is set up is dropped after the timeout, and another one is made."""
    await prepare(store)
    wire.hang_at = b"plan_cache_mode"
    both = asyncio.gather(store.load([1], NOW), store.apply(plain(), NOW), return_exceptions=True)
    told = await asyncio.wait_for(both, 10)
    assert any(isinstance(error, StoreUnavailable) for error in told), told
    assert wire.swallowed > 0
    wire.mend()
    with suppress(StoreUnavailable):  # the old connection may not have noticed yet that it is dead
        await store.apply(plain(), NOW)
    await check(store, await store.apply(plain(), NOW))


@pytest.mark.parametrize("way", ["silent", "deaf", "hang"])
async def test_a_store_opens_no_half_open_connection(wire: Wire, postgres_url: str, way: str) -> None:
    """A server that accepts a connection and sends nothing is unavailable after the timeout; later it can be opened."""
    wire.fail(way)
    schema = postgres_url.rpartition("schema=")[2]
    store = PostgresStore(with_options(wire.url, schema=schema, timeout=0.5))
    with pytest.raises(StoreUnavailable):
        await store.open(NOW)
    assert wire.swallowed > 0
    wire.mend()
    await store.open(NOW)
    await store.close()


async def test_listener_notices_a_server_that_is_gone(
    wire: Wire, store: PostgresStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listening connection whose server does not answer any more is replaced, and hints arrive again."""
    monkeypatch.setattr("aioflow_postgres.ear._PING", 1_000)
    await store.close()
    await store.open(NOW)
    ear = store._ear
    assert ear is not None
    await wait_until(lambda: ear.listening)
    wire.hang()
    await wait_until(lambda: not ear.listening)
    assert (wire.cuts, wire.swallowed > 0) == (0, True)
    wire.mend()
    await wait_until(lambda: ear.listening, timeout=10)
    seen = await store.hint(NOW)
    other = PostgresStore(postgres_url)
    await other.open(NOW)
    await put(other, a_run(1))
    await other.close()

    async def heard() -> bool:
        return await store.hint(NOW) != seen

    await wait_until(heard)


async def test_listener_notices_a_half_open_connection(wire: Wire, store: PostgresStore, postgres_url: str) -> None:
    """Hints that are lost while the listening connection is down are made up for: a new one counts as a hint."""
    seen = await store.hint(NOW)
    wire.silent = True
    wire.cut()
    await wait_until(lambda: store._ear is not None and not store._ear.listening)
    other = PostgresStore(postgres_url)
    await other.open(NOW)
    await put(other, a_run(1))
    await other.close()
    wire.silent = False

    async def heard() -> bool:
        return await store.hint(NOW) != seen

    await wait_until(heard, timeout=10)


async def test_listener_checks_its_connection(
    patient: PostgresStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listening connection without traffic is checked by ``SELECT 1``, and goes on listening."""
    monkeypatch.setattr("aioflow_postgres.ear._PING", 1_000)
    await patient.close()
    await patient.open(NOW)
    ear = patient._ear
    assert ear is not None
    await wait_until(lambda: ear.listening)
    asked: list[str] = []
    ear._connection.add_query_logger(lambda record: asked.append(record.query))
    await wait_until(lambda: len(asked) > 3)
    assert set(asked) == {"SELECT 1"}
    seen = await patient.hint(NOW)
    other = PostgresStore(postgres_url)
    await other.open(NOW)
    await put(other, a_run(1))
    await other.close()

    async def heard() -> bool:
        return await patient.hint(NOW) != seen

    await wait_until(heard)
    assert ear.listening


async def test_a_pool_that_is_exhausted_says_so(
    patient: PostgresStore, postgres_server: Schemas, postgres_url: str
) -> None:
    """A call that gets no connection in time is an error that says so, and the calls that have one succeed."""
    await put(patient, a_run(1))
    connection = await asyncpg.connect(postgres_server.url)
    schema = postgres_url.rpartition("schema=")[2]
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"LOCK TABLE {schema}.runs")
    blocked = [asyncio.create_task(patient.load([1], NOW)) for _ in range(3)]
    waiting = f"SELECT count(*) >= 3 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{schema}%'"
    await wait_until(lambda: _first(postgres_server.url, waiting))
    with pytest.raises(StoreUnavailable, match=r"it does not answer in time, or all connections are taken"):
        await patient.reserve("run", 1, NOW)
    await transaction.rollback()
    await connection.close()
    assert await asyncio.gather(*blocked) == [[a_run(1)]] * 3
    assert await patient.reserve("run", 1, NOW) == 1


async def _first(url: str, sql: str) -> object:
    [(value,)] = await query(url, sql)
    return value


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
async def test_a_cancelled_call_spoils_no_later_transaction(
    patient: PostgresStore, postgres_server: Schemas, postgres_url: str, turns: int
) -> None:
    """After a call that was cancelled at any point, later commits are visible to other connections."""
    store = patient
    await put(store, a_run(1))
    for number in range(10):
        task = asyncio.create_task(store.apply([hopping(1, commit_id=500 + number)], NOW))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        [result] = await store.apply([hopping(1, commit_id=500 + number)], NOW)
        assert result.outcome == "applied"
        schema = postgres_url.rpartition("schema=")[2]
        [(hops,)] = await query(postgres_server.url, f"SELECT hops FROM {schema}.runs WHERE id = 1")
        assert hops == number + 1
