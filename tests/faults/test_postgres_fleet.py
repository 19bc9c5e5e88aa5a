"""Several workers on one PostgreSQL server: killed, stopped, disconnected, with wrong clocks. Every run ends once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest

from aioflow import Engine, StartOptions, WorkflowStatus
from aioflow.model import LIVE
from tests.faults.children import ForkServer
from tests.faults.cluster import GRACE, LEASE, Cluster, Lookout
from tests.faults.fleet import ALL, Asks, Fleet, Held
from tests.postgres import PostgresServer, Schemas, with_options
from tests.support import wait_until
from tests.wire import Wire


@pytest.fixture(scope="module")
def worker_server() -> Iterator[ForkServer]:
    """The server that forks the workers."""
    fork_server = ForkServer("-m", "tests.faults.fleet")
    yield fork_server
    fork_server.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[tuple[PostgresServer, Schemas]]:
    """A PostgreSQL server of the tests' own, which they may restart and disconnect."""
    server = PostgresServer("fsync=off", "max_connections=100")
    yield server, Schemas(server.url)
    server.close()


@pytest.fixture
async def cluster(
    worker_server: ForkServer, own_server: tuple[PostgresServer, Schemas], tmp_path: Path
) -> AsyncIterator[Cluster]:
    """A store without runs, and without workers yet."""
    server, schemas = own_server
    cluster = Cluster(worker_server, server.url, schemas.fresh(), tmp_path)
    async with Engine(cluster.url, workflows=ALL, worker=False):
        await cluster.prepare()
    yield cluster
    cluster.close()


async def start(cluster: Cluster, runs: int, first: int = 0) -> None:
    """Start so many runs, from a client that executes nothing."""
    async with Engine(cluster.url, workflows=ALL, worker=False) as client:
        await asyncio.gather(
            *(client.start(Fleet, StartOptions(key=f"run-{number}")) for number in range(first, first + runs))
        )


async def test_workers_that_are_killed_lose_and_double_nothing(cluster: Cluster, rng: Random) -> None:
    """With a worker killed each second, 2 000 runs or more end once each, and none waits too long for a takeover."""
    for _ in range(4):
        cluster.launch(lease=LEASE, max_running=50)
    kills, started, lookout = 0, 0, Lookout(cluster)
    next_kill = time.monotonic() + 1
    began = asyncio.Event()
    interrupted = (
        "SELECT count(*) FROM (SELECT step_key FROM effects GROUP BY 1 HAVING count(DISTINCT pid) > 1) AS twice"
    )

    async def kill_each_second() -> None:
        nonlocal kills, next_kill

        async def due() -> bool:
            await lookout.look()
            return time.monotonic() >= next_kill

        while not began.is_set() or await cluster.live():
            await wait_until(due)
            next_kill = time.monotonic() + 1
            await rng.choice([child for child in cluster.workers if child.exit_code() is None]).kill()
            kills += 1
            cluster.launch(lease=LEASE, max_running=50)

    async def start_all() -> None:
        nonlocal started
        async with Engine(cluster.url, workflows=ALL, worker=False) as client:
            # On a slow machine the workers may be idle whenever one is killed: then more runs are needed.
            while started < 2_000 or not await cluster.ask(interrupted):
                numbers = range(started, started + 100)
                await asyncio.gather(*(client.start(Fleet, StartOptions(key=f"run-{number}")) for number in numbers))
                started += 100
                wanted = min(started // 200, 9)
                # A run to be taken over must not have to wait until a worker has room for it.
                await wait_until(lambda wanted=wanted: kills >= wanted and lookout.live < 200, timeout=30)
        began.set()

    await asyncio.wait_for(asyncio.gather(kill_each_second(), start_all()), timeout=90)
    assert kills >= 9
    assert len(lookout.owners) > 4
    assert lookout.longest <= GRACE + lookout.lag, f"a run was taken over {lookout.longest:.1f} s after the lease"
    await cluster.check(started, 5)
    assert await cluster.ask(interrupted) > 0
    assert await cluster.ask("SELECT count(DISTINCT step_key) FROM effects") == 3 * started


async def test_a_stopped_worker_writes_nothing_when_it_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """A worker that SIGSTOP holds past its lease loses its run, and its commit after SIGCONT is refused."""
    stopped, lookout = cluster.launch(lease=LEASE, stops=True), Lookout(cluster)
    async with Engine(cluster.url, workflows=ALL, worker=False) as client:
        run = await client.start(Held, name="gate")
        await wait_until(stopped.is_stopped, timeout=20)
        other = cluster.launch(lease=LEASE)

        async def taken_over() -> bool:
            await lookout.look()
            return bool(await cluster.ask("SELECT count(*) FROM effects WHERE pid = $1", other.pid))

        await wait_until(taken_over, timeout=20)
        assert lookout.longest <= GRACE + lookout.lag
        await run.refresh()
        assert (run.row.fence, run.row.crashes) == (3, 1)
        stopped.send(signal.SIGCONT)
        await wait_until(lambda: "transition refused" in (tmp_path / "log").read_text(), timeout=20)
        assert [row.kind for row in await client.history(run.id)] == ["start"]
        await cluster.ask("INSERT INTO gates VALUES ('gate')")
        await run.wait(20)
        assert [row.kind for row in await client.history(run.id)] == ["start", "complete"]
        assert await cluster.ask("SELECT count(DISTINCT step_key) FROM effects") == 1
        assert await cluster.ask("SELECT count(*) FROM effects") == 2
        # The stopped worker works again, with a new lease.
        other.send(signal.SIGTERM)
        assert await other.ended() == 0
        again = await client.start(Fleet)
        assert (await again.wait(20)).status == WorkflowStatus.COMPLETED


async def test_a_worker_that_drains_leaves_nothing_waiting_for_its_lease(cluster: Cluster) -> None:
    """After SIGTERM another worker has the runs at once, with no crash counted, though the lease lasts for minutes."""
    first = cluster.launch(lease=300, shutdown=0.2)
    async with Engine(cluster.url, workflows=ALL, worker=False) as client:
        runs = [await client.start(Held, name="gate") for _ in range(5)]
        await wait_until(lambda: cluster.ask("SELECT count(*) = 5 FROM effects"), timeout=20)
        second = cluster.launch(lease=300)
        await wait_until(cluster.has(2), timeout=20)
        first.send(signal.SIGTERM)
        assert await first.ended() == 0
        await wait_until(
            lambda: cluster.ask("SELECT count(*) = 5 FROM effects WHERE pid = $1", second.pid), timeout=LEASE + GRACE
        )
        await cluster.ask("INSERT INTO gates VALUES ('gate')")
        for run in runs:
            await run.wait(20)
            assert (run.status, run.row.crashes) == (WorkflowStatus.COMPLETED, 0)


async def test_machines_whose_clocks_are_an_hour_apart_agree(cluster: Cluster) -> None:
    """Workers with wrong clocks go by the server's: no lease ends early, and no transition is early or an hour late."""
    for off in (-3_600, 3_600, 0):
        cluster.launch(lease=LEASE, off=off, max_running=20)
    await start(cluster, 200)
    await wait_until(cluster.ended, timeout=60)
    await cluster.check(200, 5)
    assert await cluster.ask("SELECT count(DISTINCT pid) FROM effects") == 3, "not all of them worked"
    assert await cluster.ask("SELECT max(crashes) FROM runs") == 0
    skewed = "SELECT max(abs(at / 1000000.0 - extract(epoch FROM clock_timestamp()))) < 300 FROM history"
    assert await cluster.ask(skewed)
    early = (
        "SELECT min(b.at - a.at) FROM history AS a JOIN history AS b ON b.run_id = a.run_id AND b.seq = a.seq + 1 "
        "WHERE a.kind = 'sleep'"
    )
    assert await cluster.ask(early) >= 50_000


async def test_a_server_that_is_restarted_under_load_costs_nothing(
    cluster: Cluster, own_server: tuple[PostgresServer, Schemas]
) -> None:
    """PostgreSQL is restarted three times in immediate mode under load, and every run ends once, within ten seconds."""
    for _ in range(2):
        cluster.launch(lease=LEASE, max_running=50)
    await wait_until(cluster.has(2), timeout=20)
    restarts = under_load = 0
    for number in range(3):
        await start(cluster, 100, first=100 * number)
        before = await cluster.ask("SELECT pg_postmaster_start_time()")
        under_load += await cluster.live() > 0
        own_server[0].control("restart", "-m", "immediate")
        restarts += await cluster.ask("SELECT pg_postmaster_start_time()") > before
    assert (restarts, under_load) == (3, 3)
    await wait_until(cluster.ended, timeout=10)
    await cluster.check(300, 5)


async def test_connections_that_are_terminated_at_random_cost_nothing(cluster: Cluster) -> None:
    """Random connections are ended by pg_terminate_backend again and again, and every run ends once."""
    for _ in range(2):
        cluster.launch(lease=LEASE, max_running=50)
    await wait_until(cluster.has(2), timeout=20)
    terminated = runs = 0
    victims = (
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.3"
    )
    while terminated < 30:
        await start(cluster, 50, first=runs)
        runs += 50
        for _ in range(3):
            terminated += await cluster.ask(victims)
    await wait_until(cluster.ended, timeout=60)
    await cluster.check(runs, 5)


async def test_a_wire_that_fails_in_every_way_costs_nothing(
    cluster: Cluster, own_server: tuple[PostgresServer, Schemas], rng: Random
) -> None:
    """Connections are cut, slow, half-open on either side, and lose replies to COMMIT, and every run ends once."""
    faults = ["cut", "slow", "silent", "deaf", "hang", "lose reply", "lose commit"] * 2
    rng.shuffle(faults)
    async with Wire(own_server[0].socket) as wire:
        for _ in range(2):
            cluster.launch(url=with_options(wire.url, schema=cluster.schema, timeout=1), lease=LEASE, max_running=50)
        await wait_until(cluster.has(2), timeout=20)
        for number, fault in enumerate(faults):
            await start(cluster, 30, first=30 * number)
            before = wire.faults
            wire.fail(fault)

            def struck(before: int = before, fault: str = fault) -> bool:
                if fault == "cut" and wire.faults == before:  # there was no connection at that moment
                    wire.fail(fault)
                return wire.faults > before

            await wait_until(struck, timeout=30, what=fault)
            wire.mend()
        await wait_until(cluster.ended, timeout=20)
    await cluster.check(30 * len(faults), 5)


async def test_signals_reach_runs_in_any_process(cluster: Cluster, own_server: tuple[PostgresServer, Schemas]) -> None:
    """A client's signal ends a run that waits in another process, with hints and without them."""
    async with (
        Wire(own_server[0].socket) as wire,
        Engine(cluster.url, workflows=ALL, worker=False) as client,
    ):
        cluster.launch(url=with_options(cluster.url, listen=wire.url), lease=LEASE)
        for deaf in (False, True):
            runs = [await client.start(Asks) for _ in range(10)]
            for run in runs:
                await run.wait(20, until="parked")
            wire.deaf, swallowed = deaf, wire.swallowed
            for run in runs:
                await client.signal("answer", {"answer": 42}, run_id=run.id)
            for run in runs:
                assert (await run.wait(20)).data == {"answer": 42}
                assert run.status not in LIVE
            assert (wire.swallowed > swallowed) == deaf  # the hints
        wire.mend()
