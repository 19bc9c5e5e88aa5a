"""Lets two PostgreSQL transactions meet: queued for a row's lock, or the first stopped after it has written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

import asyncpg

from aioflow.changes import Change, Post, Result
from aioflow.store import Claim
from aioflow.testing.conformance_samples import (
    KNOWN,
    LEASE,
    NOW,
    a_run,
    a_signal,
    a_waiter,
    cancelling,
    moving,
    resuming,
)
from aioflow_postgres import PostgresStore
from tests.postgres import query
from tests.support import wait_until

#: The end of the lease of a worker that claimed at NOW.
LATER = NOW + LEASE
#: A run that waits for "paid" until NOW; signal 1, which was sent later, is in its mailbox.
WAITER = a_waiter(1, owner=3, wake_at=NOW)
#: A run that worker 3 owns.
RUNNER = a_run(2, owner=3, fence=2)

Side = Callable[[PostgresStore], Awaitable[Any]]


def applying(change: Change) -> Callable[[PostgresStore], Awaitable[Result]]:
    """A side that applies one change."""

    async def apply(store: PostgresStore) -> Result:
        [result] = await store.apply([change], NOW)
        return result

    return apply


def claims_after_lease(store: PostgresStore) -> Awaitable[Claim]:
    """Worker 4 claims after worker 3's lease."""
    return store.claim(4, lease=LEASE, limit=10, known=KNOWN, held=None, now=LATER)


resumes = applying(resuming(WAITER, 1))
times_out = applying(
    moving(WAITER, kind="timeout", commit_id=73, status="running", waiting_for=None, wake_at=None, arms=None)._replace(
        unless_mail=True
    )
)
cancels_waiter = applying(cancelling(1, commit_id=71))
posts = applying(Post(a_signal(2, 1)))


@asynccontextmanager
async def holding(server: str, sql: str) -> AsyncIterator[None]:
    """Hold the locks that a statement takes for the length of a block."""
    connection = await asyncpg.connect(server)
    try:
        async with connection.transaction():
            await connection.execute(sql)
            yield
    finally:
        await connection.close()


class Told(NamedTuple):
    """The results of two sides, and whether the second waited for a lock of the first."""

    first: Any
    second: Any
    way: Literal["waits", "passes"]


#: The first transaction that writes to the table stops as long as another holds the lock; later ones do not stop.
_STOP = """
CREATE FUNCTION {schema}.stop() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_try_advisory_xact_lock(hashtext('{schema}'), 2) THEN
        PERFORM pg_advisory_xact_lock(hashtext('{schema}'), 1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER zz_stop AFTER INSERT OR UPDATE OR DELETE ON {schema}.{table}
    FOR EACH ROW EXECUTE FUNCTION {schema}.stop();
"""


class Race:
    """Brings two sides together in the order in which they are given."""

    def __init__(self, server: str, url: str) -> None:
        self._server = server
        self.schema = url.rpartition("schema=")[2]

    async def waiting(self) -> list[str]:
        """The wait events of the transactions that wait for a lock."""
        sql = (
            "SELECT wait_event FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() "
            "ORDER BY 1"
        )
        return [event for (event,) in await query(self._server, sql)]

    async def queued(self, lock: str, *sides: Callable[[], Awaitable[Any]]) -> list[Any]:
        """The results of sides that queue for a lock in this order."""
        tasks = []
        async with holding(self._server, lock.format(schema=self.schema)):
            for place, side in enumerate(sides, 1):
                tasks.append(asyncio.ensure_future(side()))

                async def waits(place: int = place) -> bool:
                    return len(await self.waiting()) == place

                await wait_until(waits, what=f"side {place} waits for the lock")
        return list(await asyncio.gather(*tasks))

    async def midway(self, table: str, first: Awaitable[Any], second: Awaitable[Any]) -> Told:
        """The results if the second side starts when the first has written to the table and has not committed yet."""
        await query_all(self._server, _STOP.format(schema=self.schema, table=table))
        async with holding(self._server, f"SELECT pg_advisory_xact_lock(hashtext('{self.schema}'), 1)"):
            one = asyncio.ensure_future(first)

            async def stopped() -> bool:
                return await self.waiting() == ["advisory"]

            await wait_until(stopped, what="the first side has written")
            two = asyncio.ensure_future(second)

            async def met() -> Literal["waits", "passes", ""]:
                if two.done():
                    return "passes"
                return "waits" if len(await self.waiting()) == 2 else ""

            way = await wait_until(met, what="the second side waits or is done")
            assert not one.done()
        return Told(await one, await two, way or "passes")


async def query_all(server: str, sql: str) -> None:
    """Run several statements."""
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
