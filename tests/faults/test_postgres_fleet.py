"""Several workers on one PostgreSQL server: killed, stopped, cut off, with wrong clocks. Every run ends, and ends once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest

from aioflow import Engine, StartOptions, WorkflowStatus
from aioflow.model import LIVE
from tests.faults.children import PATIENCE, Child, Nursery
from tests.faults.fleet import ALL, Asks, Fleet, Held
from tests.postgres import PostgresServer, Schemas, with_options
from tests.support import wait_until

#: Seconds of a worker's lease, and within which after it another has to have its runs. Twice as long on a busy machine.
LEASE, GRACE = 2, 4


@pytest.fixture(scope="module")
def shipyard() -> Iterator[Nursery]:
    """The process that forks the workers."""
    nursery = Nursery("-m", "tests.faults.fleet")
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[tuple[PostgresServer, Schemas]]:
    """A server that the tests may treat badly."""
    server = PostgresServer("fsync=off", "max_connections=100")
    yield server, Schemas(server.url)
    server.close()


class Harbour:
    """A store, its workers, and what they did to the outside world."""

    def __init__(self, shipyard: Nursery, server: str, url: str, folder: Path) -> None:
        self.server = server
        self.url = url
        self.schema = url.rpartition("schema=")[2].partition("&")[0]
        self._shipyard = shipyard
        self._folder = folder
        self.workers: list[Child] = []
        self._number = 0

    def launch(self, **job: Any) -> Child:
        """Begin a worker."""
        self._number += 1
        job = {"url": self.url, "outside": with_options(self.server, options=f"-csearch_path%3D{self.schema}"), **job}
        child = Child(self._shipyard, self._number, self._shipyard.bear({**job, "folder": str(self._folder)}))
        self.workers.append(child)
        return child

    def close(self) -> None:
        """End all workers."""
        for child in self.workers:
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGCONT)
                os.kill(child.pid, signal.SIGKILL)
                child.exit_code(PATIENCE)

    async def ask(self, sql: str, *values: object) -> Any:
        """One value out of the store's tables."""
        connection = await asyncpg.connect(self.server)
        try:
            await connection.execute(f"SET search_path TO {self.schema}")
            return await connection.fetchval(sql, *values)
        finally:
            await connection.close()

    async def prepare(self) -> None:
        """Make what steps do to the outside world."""
        await self.ask("CREATE TABLE effects (step_key text, pid int)")
        await self.ask("CREATE TABLE gates (name text)")

    async def live(self) -> int:
        """How many runs have not ended."""
        return int(await self.ask("SELECT count(*) FROM runs WHERE status IN ('running', 'waiting')"))

    async def ended(self) -> bool:
        """Whether all runs have."""
        return await self.live() == 0

    async def orphans(self) -> int:
        """Running runs whose owner's lease has been over for longer than another may take to have them."""
        return int(
            await self.ask(
                "SELECT count(*) FROM runs AS r LEFT JOIN workers AS w ON w.id = r.owner "
                "WHERE r.status = 'running' AND w.until < (extract(epoch FROM clock_timestamp()) - $1) * 1000000",
                float(GRACE),
            )
        )

    async def check(self, runs: int, transitions: int) -> None:
        """Every run has ended once, with a history without gaps, and every step was begun."""
        assert await self.ask("SELECT count(*) FROM runs WHERE status = 'completed'") == runs
        assert await self.ask("SELECT count(*) FROM history WHERE kind = 'complete'") == runs
        gaps = "SELECT count(*) FROM (SELECT run_id FROM history GROUP BY 1 HAVING max(seq) <> count(*)) AS gaps"
        assert await self.ask(gaps) == 0
        committed = await self.ask("SELECT count(*) FROM history")
        errors = await self.ask("SELECT string_agg(error, ' ') FROM history")
        assert errors is None, errors
        retried = await self.ask("SELECT count(*) FROM history WHERE kind = 'retry'")
        wakes = await self.ask("SELECT count(*) FROM history WHERE kind = 'wake'")
        assert (committed, retried, wakes) == (runs * transitions, 0, runs)
        assert (
            await self.ask("SELECT count(*) FROM history AS h JOIN runs AS r ON r.id = h.run_id WHERE h.seq > r.seq")
            == 0
        )


@pytest.fixture
async def harbour(
    shipyard: Nursery, own_server: tuple[PostgresServer, Schemas], tmp_path: Path
) -> AsyncIterator[Harbour]:
    """A store without runs, and without workers yet."""
    server, schemas = own_server
    harbour = Harbour(shipyard, server.url, schemas.fresh(), tmp_path)
    async with Engine(harbour.url, workflows=ALL, worker=False):
        await harbour.prepare()
    yield harbour
    harbour.close()


async def start(harbour: Harbour, runs: int, first: int = 0) -> None:
    """Start so many, from a process that executes nothing."""
    async with Engine(harbour.url, workflows=ALL, worker=False) as client:
        for number in range(first, first + runs):
            await client.start(Fleet, StartOptions(key=f"run-{number}"))


async def test_workers_that_are_killed_lose_and_double_nothing(harbour: Harbour, rng: Random) -> None:
    """Four workers, 2 000 runs, one of them killed each second: every run ends once, taken over within its time."""
    for _ in range(4):
        harbour.launch(lease=LEASE, max_running=50)
    kills, interrupted = 0, 0
    async with Engine(harbour.url, workflows=ALL, worker=False) as client:
        for number in range(2_000):
            await client.start(Fleet, StartOptions(key=f"run-{number}"))
            if number % 200 == 199:
                victim = rng.choice([child for child in harbour.workers if child.exit_code() is None])
                await victim.kill()
                kills += 1
                interrupted += await harbour.ask("SELECT count(*) FROM runs WHERE status = 'running'")
                harbour.launch(lease=LEASE, max_running=50)
                assert await harbour.orphans() == 0
    deadline = time.monotonic() + 60

    async def done() -> bool:
        assert await harbour.orphans() == 0
        return await harbour.live() == 0

    await wait_until(done, timeout=max(deadline - time.monotonic(), 1), what="all runs have ended")
    assert kills == 10
    assert interrupted > 0
    await harbour.check(2_000, 5)
    taken = "SELECT count(*) FROM (SELECT step_key FROM effects GROUP BY 1 HAVING count(DISTINCT pid) > 1) AS twice"
    assert await harbour.ask(taken) > 0, "no step was interrupted by a kill"
    assert await harbour.ask("SELECT count(DISTINCT step_key) FROM effects") == 6_000


async def test_a_stopped_worker_writes_nothing_when_it_goes_on(harbour: Harbour) -> None:
    """SIGSTOP past the lease: another has its run by then; after SIGCONT its commit is refused, and its step stopped."""
    stopped = harbour.launch(lease=LEASE)
    async with Engine(harbour.url, workflows=ALL, worker=False) as client:
        run = await client.start(Held, name="gate")
        await wait_until(lambda: harbour.ask("SELECT count(*) FROM effects"), timeout=20)
        stopped.send(signal.SIGSTOP)
        other = harbour.launch(lease=LEASE)
        await wait_until(
            lambda: harbour.ask("SELECT count(*) FROM effects WHERE pid = $1", other.pid), timeout=LEASE + GRACE + 4
        )
        await run.refresh()
        assert (run.row.fence, run.row.crashes) == (3, 1)
        # Both would go through the gate at the same moment; the first to commit is the one that is not stopped.
        stopped.send(signal.SIGCONT)
        await harbour.ask("INSERT INTO gates VALUES ('gate')")
        await run.wait(20)
        await wait_until(lambda: harbour.ask("SELECT count(*) = 1 FROM runs WHERE status = 'completed'"), timeout=20)
        assert [row.kind for row in await client.history(run.id)] == ["start", "complete"]
        assert await harbour.ask("SELECT count(DISTINCT step_key) FROM effects") == 1
        assert await harbour.ask("SELECT count(*) FROM effects") == 2
        # It works again, with a lease of its own.
        other.send(signal.SIGTERM)
        assert await other.ended() == 0
        again = await client.start(Fleet)
        assert (await again.wait(20)).status == WorkflowStatus.COMPLETED


async def test_a_worker_that_drains_leaves_nothing_waiting_for_its_lease(harbour: Harbour) -> None:
    """After SIGTERM another has the runs at once, uncounted, though the lease was to last for minutes."""
    first = harbour.launch(lease=300, shutdown=0.2)
    async with Engine(harbour.url, workflows=ALL, worker=False) as client:
        runs = [await client.start(Held, name="gate") for _ in range(5)]
        await wait_until(lambda: harbour.ask("SELECT count(*) = 5 FROM effects"), timeout=20)
        second = harbour.launch(lease=300)
        await wait_until(lambda: harbour.ask("SELECT count(*) = 2 FROM workers"), timeout=20)
        first.send(signal.SIGTERM)
        assert await first.ended() == 0
        await wait_until(
            lambda: harbour.ask("SELECT count(*) = 5 FROM effects WHERE pid = $1", second.pid), timeout=LEASE + GRACE
        )
        await harbour.ask("INSERT INTO gates VALUES ('gate')")
        for run in runs:
            await run.wait(20)
            assert (run.status, run.row.crashes) == (WorkflowStatus.COMPLETED, 0)


async def test_machines_whose_clocks_are_an_hour_apart_agree(harbour: Harbour) -> None:
    """All go by the server's clock: nobody's lease is over before its time, and nothing is early or an hour late."""
    for off in (-3_600, 3_600, 0):
        harbour.launch(lease=LEASE, off=off, max_running=20)
    await start(harbour, 200)
    await wait_until(harbour.ended, timeout=60)
    await harbour.check(200, 5)
    assert await harbour.ask("SELECT count(DISTINCT pid) FROM effects") == 3, "not all of them worked"
    assert await harbour.ask("SELECT max(crashes) FROM runs") == 0
    skewed = "SELECT max(abs(at / 1000000.0 - extract(epoch FROM clock_timestamp()))) < 300 FROM history"
    assert await harbour.ask(skewed)
    early = (
        "SELECT min(b.at - a.at) FROM history AS a JOIN history AS b ON b.run_id = a.run_id AND b.seq = a.seq + 1 "
        "WHERE a.kind = 'sleep'"
    )
    assert await harbour.ask(early) >= 50_000


async def test_a_server_that_is_restarted_under_load_costs_nothing(
    harbour: Harbour, own_server: tuple[PostgresServer, Schemas]
) -> None:
    """PostgreSQL stops immediately, as in a crash, and comes back: every run ends, once, soon after."""
    for _ in range(2):
        harbour.launch(lease=LEASE, max_running=50)
    await start(harbour, 300)
    restarts = 0
    for _ in range(3):
        before = await harbour.ask("SELECT pg_postmaster_start_time()")
        own_server[0].control("restart", "-m", "immediate")
        restarts += await harbour.ask("SELECT pg_postmaster_start_time()") > before
    assert restarts == 3
    await wait_until(harbour.ended, timeout=30)
    await harbour.check(300, 5)


async def test_connections_that_are_terminated_at_random_cost_nothing(harbour: Harbour) -> None:
    """pg_terminate_backend on whichever connection, again and again: every run ends, once."""
    for _ in range(2):
        harbour.launch(lease=LEASE, max_running=50)
    terminated = runs = 0
    victims = (
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.3"
    )
    while terminated < 30:
        await start(harbour, 50, first=runs)
        runs += 50
        for _ in range(3):
            terminated += await harbour.ask(victims)
    await wait_until(harbour.ended, timeout=60)
    await harbour.check(runs, 5)


async def test_signals_reach_runs_whoever_has_them(harbour: Harbour) -> None:
    """A client's signal ends a run that waits in another process, with hints and without them."""
    harbour.launch(lease=LEASE)
    async with Engine(harbour.url, workflows=ALL, worker=False) as client:
        for deaf in (False, True):
            runs = [await client.start(Asks) for _ in range(10)]
            for run in runs:
                await run.wait(20, until="parked")
            if deaf:  # who listens is cut off just before: the hint is lost
                await harbour.ask(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' OR query = ''"
                )
            for run in runs:
                await client.signal("answer", {"answer": 42}, run_id=run.id)
            for run in runs:
                assert (await run.wait(20)).data == {"answer": 42}
                assert run.status not in LIVE
