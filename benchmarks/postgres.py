"""PostgreSQL: runs per second beside what the server itself can commit, signals between processes, and takeover.

    python benchmarks/postgres.py [--runs 10000] [--rounds 3] [--outstanding 2000] [--dead 10000]

It starts a server of its own from a wheel, with `fsync` on and its default settings except `shared_buffers` and
`max_wal_size`. Each round measures, one after the other: `pgbench -N` with 10 clients; raw `unnest` batches of 500
transitions (UPDATE of a run, INSERT of a history row, in one statement), two in flight; three-step runs of the bare
engine of `bare.py`, and of one worker; the same in two processes, each of which starts half of the runs and executes runs, as replicas of a web app do; and the
same started in one process, with a second worker beside it. After the rounds, once: signals from this process to runs
that another process executes, from the call of `engine.signal(...)` until `run.wait()` has returned; and the time from
the end of a dead worker's lease until another worker has claimed its 10 000 running runs. The medians are printed as
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from bare import BareServer
from measuring import machine, percentiles
from pydantic import BaseModel
from three_steps import ThreeSteps, bare, many

from aioflow import Engine, complete, step, wait, workflow

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the server of the tests
from tests.postgres import PostgresServer, Schemas

GROUP = 500
NAMES = ("pgbench -N", "raw unnest", "bare engine", "one worker", "two workers", "two workers, started in one")
LEASE = timedelta(seconds=3)


@workflow("asks")
class Asks:
    class Context(BaseModel):
        answer: int = 0

    @step(start=True)
    async def ask(self):
        return wait.for_signal("answer", then=self.done)

    @step
    async def done(self):
        return complete()


@asynccontextmanager
async def another(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run this program in another process; enter once that is ready."""
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, **pipes)
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def another_worker(url: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """A worker in another process, which starts no runs."""
    return another("--work", url)


async def replicas(url: str, runs: int, outstanding: int) -> float:
    """Runs per second of two processes together, each of which starts half of the runs and executes runs."""
    half = ("--runs", str(runs // 2), "--outstanding", str(outstanding // 2))
    async with another("--replica", url, *half) as one, another("--replica", url, *half) as other:
        began = time.perf_counter()
        for process in (one, other):
            process.stdin.write(b"go\n")  # type: ignore[union-attr]
        await asyncio.gather(*(process.stdout.readline() for process in (one, other)))  # type: ignore[union-attr]
        rate = 2 * (runs // 2) / (time.perf_counter() - began)
        await asyncio.gather(one.wait(), other.wait())  # they close, and hand back their runs
        return rate


async def work(url: str) -> None:
    async with Engine(url, lease=LEASE) as engine:
        print("works", flush=True)
        await engine.run_forever()


async def replicate(url: str, runs: int, outstanding: int) -> None:
    async with Engine(url, lease=LEASE, max_running=outstanding) as engine:
        await many(engine, 500, outstanding)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await many(engine, runs, outstanding)
        print("done", flush=True)


def pgbench(server: PostgresServer, seconds: int = 5) -> float:
    """Transactions per second of `pgbench -N`."""
    program = [str(server.bin / "pgbench"), "-h", str(server.directory), "-U", "postgres"]
    subprocess.run([*program, "-q", "-i", "-s", "5", "postgres"], check=True, capture_output=True)
    told = subprocess.run(
        [*program, "-N", "-c", "10", "-T", str(seconds), "postgres"], check=True, capture_output=True, text=True
    )
    return float(re.search(r"tps = ([\d.]+)", told.stdout).group(1))  # type: ignore[union-attr]


RAW = """
WITH o AS (SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS o (id, seq, data)),
moved AS (UPDATE raw_runs AS r SET seq = o.seq, data = o.data::json FROM o WHERE r.id = o.id AND r.seq = o.seq - 1
    RETURNING o.id, o.seq)
INSERT INTO raw_history SELECT id, seq, 'charge' FROM moved
"""


async def raw(url: str, batches: int = 40) -> float:
    """Transitions per second of batches that are one `unnest` statement each, two in flight."""
    connections = [await asyncpg.connect(url) for _ in range(2)]
    await connections[0].execute(
        "DROP TABLE IF EXISTS raw_runs, raw_history; CREATE TABLE raw_runs (id bigint PRIMARY KEY, seq bigint, data json) "
        "WITH (fillfactor = 70); CREATE TABLE raw_history (run_id bigint, seq bigint, step text, PRIMARY KEY (run_id, seq));"
        f"INSERT INTO raw_runs SELECT n, 0, '{{}}' FROM generate_series(1, {2 * GROUP}) AS n; ANALYZE raw_runs"
    )
    data = '{"order_id": 1, "customer": "somebody", "amount": 12.5, "paid": true, "items": [1, 2], "note": null}'

    async def drive(connection: Any, first: int) -> None:
        ids = list(range(first, first + GROUP))
        for seq in range(1, batches + 1):
            await connection.execute(RAW, ids, [seq] * GROUP, [data] * GROUP)

    began = time.perf_counter()
    await asyncio.gather(*(drive(connection, 1 + n * GROUP) for n, connection in enumerate(connections)))
    rate = 2 * batches * GROUP / (time.perf_counter() - began)
    for connection in connections:
        await connection.close()
    return rate


async def signals(url: str, count: int) -> list[float]:
    """Milliseconds from the signal to the end of a run that another process executes."""
    times = []
    async with another_worker(url), Engine(url, worker=False) as client:
        await (await client.start(Asks)).wait(30, until="parked")
        for _ in range(count):
            run = await client.start(Asks)
            await run.wait(30, until="parked")
            await asyncio.sleep(0.15)  # until the hints of its start have passed
            began = time.perf_counter()
            await client.signal("answer", {"answer": 42}, run_id=run.id)
            await run.wait(30)
            times.append((time.perf_counter() - began) * 1000)
    return times


async def takeover(url: str, runs: int) -> float:
    """Seconds from the end of a dead worker's lease until another worker has claimed all of its running runs."""
    async with Engine(url, worker=False) as client:
        for first in range(0, runs, 500):
            await asyncio.gather(*(client.start(ThreeSteps, order_id=n) for n in range(first, min(first + 500, runs))))
        connection = await asyncpg.connect(url.partition("&schema")[0])
        schema = url.rpartition("schema=")[2]
        now = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        await connection.execute(f"UPDATE {schema}.runs SET owner = 999999")
        lease = LEASE // timedelta(microseconds=1)
        await connection.execute(f"INSERT INTO {schema}.workers VALUES (999999, {now} + {lease})")
        died = time.perf_counter()
        async with another_worker(url):
            taken = f"SELECT count(*) FROM {schema}.runs WHERE owner = 999999"
            while await connection.fetchval(taken):  # noqa: ASYNC110 - another process claims them
                await asyncio.sleep(0.02)
        await connection.close()
    return time.perf_counter() - died - LEASE.total_seconds()


async def measure(server: PostgresServer, options: argparse.Namespace) -> dict[str, object]:
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    schemas = Schemas(server.url)
    for _ in range(options.rounds):
        found["pgbench -N"].append(await asyncio.to_thread(pgbench, server))
        found["raw unnest"].append(await raw(server.url))
        found["bare engine"].append((await bare(BareServer(server.url), options.runs, options.outstanding))[0])
        url = schemas.fresh()
        async with Engine(url, max_running=options.outstanding) as engine:
            await many(engine, 500, options.outstanding)
            found["one worker"].append(await many(engine, options.runs, options.outstanding))
        found["two workers"].append(await replicas(url, options.runs, options.outstanding))
        async with another_worker(url), Engine(url, max_running=options.outstanding // 2) as engine:
            found["two workers, started in one"].append(await many(engine, options.runs, options.outstanding))
    return {
        "machine": machine(),
        "per second, medians": {name: round(statistics.median(rates)) for name, rates in found.items()},
        "signal to completed, ms": percentiles(await signals(schemas.fresh(), 100)),
        f"{options.dead} runs of a dead worker taken over, s after its lease": round(
            await takeover(schemas.fresh(), options.dead), 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--outstanding", type=int, default=2_000)
    parser.add_argument("--dead", type=int, default=10_000)
    parser.add_argument("--work", help="internal: be the other worker, on this store")
    parser.add_argument("--replica", help="internal: be one of the two replicas, on this store")
    options = parser.parse_args()
    if options.replica:
        asyncio.run(replicate(options.replica, options.runs, options.outstanding))
        return
    if options.work:
        asyncio.run(work(options.work))
        return
    server = PostgresServer("shared_buffers=256MB", "max_wal_size=4GB", "autovacuum=on")
    try:
        print(json.dumps(asyncio.run(measure(server, options)), indent=2))
    finally:
        server.close()


if __name__ == "__main__":
    main()
