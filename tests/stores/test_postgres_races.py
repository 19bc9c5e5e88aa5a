"""Two transactions about one run, in both orders: the second waits for the lock of the first, then minds what it did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import permutations
from typing import Any, NamedTuple

import asyncpg
import pytest

from aioflow.changes import Change, Post, Result
from aioflow.model import Run
from aioflow.store import Claim
from aioflow.testing.conformance_samples import (
    KNOWN,
    LEASE,
    NOW,
    a_signal,
    a_waiter,
    cancelling,
    claiming,
    log,
    moving,
    post,
    put,
    resuming,
    row,
)
from aioflow_postgres import PostgresStore
from tests.postgres import Schemas, query
from tests.support import wait_until

#: The run waits for "paid" until now, and has a signal 1; the worker 3, which has run 2, is about to be dead.
WAITER = a_waiter(1, wake_at=NOW)
LATER = NOW + LEASE


class Side(NamedTuple):
    """What one side does, and what is to become of it when it comes second."""

    do: Callable[[PostgresStore], Awaitable[Any]]
    #: The run that it changes: 1 waits, 2 runs.
    run: int


def change(change: Change) -> Callable[[PostgresStore], Awaitable[Result]]:
    """Apply one change."""

    async def apply(store: PostgresStore) -> Result:
        [result] = await store.apply([change], NOW)
        return result

    return apply


def takes_it_on(store: PostgresStore) -> Awaitable[Claim]:
    """Worker 4 finds worker 3 dead."""
    return store.claim(4, lease=LEASE, limit=10, known=KNOWN, held=None, now=LATER)


def running() -> Run:
    """The run that worker 3 has."""
    return a_waiter(2, status="running", waiting_for=None, arms=None, owner=3, fence=2)


ON_WAITER = {
    "signal": Side(change(resuming(WAITER, 1, owner=9)), 1),
    "timeout": Side(
        change(
            moving(WAITER, kind="timeout", commit_id=73, status="running", waiting_for=None, wake_at=None, arms=None)
        ),
        1,
    ),
    "cancel": Side(change(cancelling(1, commit_id=71)), 1),
    "post": Side(change(Post(a_signal(2, 1))), 1),
}
ON_RUNNER = {
    "commit": Side(change(moving(running())), 2),
    "cancel": Side(change(cancelling(2, commit_id=72)), 2),
    "claim": Side(takes_it_on, 2),
}


@asynccontextmanager
async def holding(server: str, sql: str) -> AsyncIterator[None]:
    """Keep what the statement locks for the length of a block."""
    connection = await asyncpg.connect(server)
    try:
        async with connection.transaction():
            await connection.execute(sql)
            yield
    finally:
        await connection.close()


class Race:
    """Holds a row, so that both sides come to wait for it, one after the other; then lets them go."""

    def __init__(self, server: str, url: str) -> None:
        self._server = server
        self.schema = url.rpartition("schema=")[2]

    async def waiting(self) -> int:
        """How many transactions wait for a lock."""
        sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        [(number,)] = await query(self._server, sql)
        return int(number)

    async def run(self, lock: str, *sides: Callable[[], Awaitable[Any]]) -> list[Any]:
        """What becomes of the sides, in the order in which they came."""
        tasks = []
        async with holding(self._server, lock.format(schema=self.schema)):
            for place, side in enumerate(sides, 1):
                tasks.append(asyncio.ensure_future(side()))

                async def queued(place: int = place) -> bool:
                    return await self.waiting() == place

                await wait_until(queued, what=f"side {place} waits for the lock")
        return list(await asyncio.gather(*tasks))


@pytest.fixture
def race(postgres_server: Schemas, postgres_url: str) -> Race:
    """A race in the test's schema."""
    return Race(postgres_server.url, postgres_url)


@pytest.fixture
async def stores(postgres_url: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    """The store twice, as two processes have it, with the runs 1 and 2."""
    one, two = PostgresStore(postgres_url), PostgresStore(postgres_url)
    await one.open(NOW)
    await two.open(NOW)
    await claiming(one, 3)
    await put(one, WAITER, running()._replace(owner=3))
    await post(one, a_signal(1, 1, sent_at=NOW))
    yield one, two
    await one.close()
    await two.close()


@pytest.mark.parametrize(("first", "second"), list(permutations(ON_WAITER, 2)))
async def test_of_two_that_end_a_wait_one_does(
    race: Race, stores: tuple[PostgresStore, PostgresStore], first: str, second: str
) -> None:
    """In both orders the first applies, and the second is stale; but a cancel goes by status, and a Post ends no wait."""
    one, two = (ON_WAITER[name].do for name in (first, second))
    lock = "SELECT 1 FROM {schema}.runs WHERE id = 1 FOR UPDATE"
    told = await race.run(lock, lambda: one(stores[0]), lambda: two(stores[1]))
    outcomes = [result.outcome for result in told]
    stands = await row(stores[0], 1)
    assert outcomes[0] == "applied"
    if "post" not in {first, second}:
        # A cancel is by status alone: it also takes a run that the other has resumed.
        assert outcomes[1] == ("applied" if second == "cancel" else "stale")
    elif first == "cancel":
        assert outcomes[1] == "stale"
    else:
        assert outcomes[1] == "applied"
    moves = [outcome for name, outcome in zip((first, second), outcomes, strict=True) if name != "post"]
    assert stands.seq == 1 + moves.count("applied")
    assert [line.seq for line in await log(stores[0], 1)] == list(range(1, stands.seq + 1))
    if "cancel" in {first, second}:
        assert stands.status == "cancelled"


@pytest.mark.parametrize(("first", "second"), list(permutations(ON_RUNNER, 2)))
async def test_commit_cancel_and_claim_mind_each_other(
    race: Race, stores: tuple[PostgresStore, PostgresStore], first: str, second: str
) -> None:
    """Whoever comes second finds the fence, the status or the owner that the first has left."""
    one, two = (ON_RUNNER[name].do for name in (first, second))
    if "claim" in {first, second}:  # a claim passes over rows that are locked: it is done in its turn
        told = [await one(stores[0]), await two(stores[1])]
    else:
        lock = "SELECT 1 FROM {schema}.runs WHERE id = 2 FOR UPDATE"
        told = await race.run(lock, lambda: one(stores[0]), lambda: two(stores[1]))
    stands = await row(stores[0], 2)
    match first, second:
        case "commit", "cancel":
            assert [told[0].outcome, told[1].outcome, stands.status, stands.seq] == [
                "applied",
                "applied",
                "cancelled",
                3,
            ]
        case "cancel", "commit":
            assert [told[0].outcome, told[1].outcome, stands.status, stands.seq] == ["applied", "stale", "cancelled", 2]
        case "claim", "commit":
            assert [run.id for run in told[0].runs] == [2]
            assert (told[1].outcome, stands.owner, stands.fence, stands.seq) == ("stale", 4, 3, 1)
        case "claim", "cancel":
            assert (told[1].outcome, stands.status, stands.owner) == ("applied", "cancelled", None)
        case "commit", "claim":
            assert (told[0].outcome, stands.owner, stands.seq, stands.crashes) == ("applied", 4, 2, 1)
        case _:
            assert (told[0].outcome, told[1].runs, stands.status) == ("applied", [], "cancelled")


async def test_a_claim_passes_over_a_run_that_is_being_changed(
    race: Race, stores: tuple[PostgresStore, PostgresStore], postgres_server: Schemas
) -> None:
    """It does not wait: the run is found again a second later."""
    async with holding(postgres_server.url, f"SELECT 1 FROM {race.schema}.runs WHERE id = 2 FOR UPDATE"):
        assert (await takes_it_on(stores[1])).runs == []
    assert [run.id for run in (await takes_it_on(stores[1])).runs] == [2]


@pytest.mark.parametrize("renewal_first", [True, False])
async def test_of_a_renewal_and_a_claim_the_first_decides(
    race: Race, stores: tuple[PostgresStore, PostgresStore], *, renewal_first: bool
) -> None:
    """A lease that is just being renewed is not over; one that has cost its worker a run cannot be renewed any more."""
    renew = lambda: stores[0].renew(3, LEASE, LATER - 1)  # noqa: E731
    sides = [renew, lambda: takes_it_on(stores[1])]
    told = await race.run(
        "SELECT 1 FROM {schema}.workers WHERE id = 3 FOR UPDATE", *(sides if renewal_first else sides[::-1])
    )
    if renewal_first:
        assert (told[0], told[1].runs) == (True, [])
    else:
        assert ([run.id for run in told[0].runs], told[1]) == ([2], False)
