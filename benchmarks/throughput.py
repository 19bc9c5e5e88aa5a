"""Three-step runs per second, and the time of one run alone, beside what SQLite itself can commit.

    python benchmarks/throughput.py [--runs 10000] [--rounds 5] [--outstanding 2000] [--serial 300]

The public Engine with everything on: history, fences, validation, tracing, `synchronous=FULL`. A run is four committed
transitions. Every other round runs with the garbage collector set as a program with thousands of runs at once may set
it (a library must not): `gc.freeze()` and `gc.set_threshold(10_000, 20, 50)`. The raw rate is a plain sqlite3 loop in the same directory: groups of 1000 transitions (UPDATE of a run,
INSERT of a history row), each group one transaction. How fast the machine runs Python just then tell the tasks per second: bare coroutines by
`create_task` and `gather`, 2000 at once. Rounds of all three alternate; the medians are printed as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel

from aioflow import Engine, complete, get_context, goto, step, workflow

GROUP = 1000


@workflow("three-steps")
class ThreeSteps:
    class Context(BaseModel):
        order_id: int
        customer: str = "somebody"
        amount: float = 12.5
        paid: bool = False
        items: list[int] = []
        note: str | None = None

    @step(start=True)
    async def reserve(self):
        get_context(self.Context).items = [1, 2]
        return goto(self.charge)

    @step
    async def charge(self):
        get_context(self.Context).paid = True
        return goto(self.ship)

    @step
    async def ship(self):
        get_context(self.Context).note = "shipped"
        return complete()


async def many(engine: Engine, runs: int, outstanding: int) -> float:
    """Runs per second with so many outstanding at once."""
    numbers = iter(range(runs))

    async def one_after_the_other() -> None:
        for number in numbers:
            run = await engine.start(ThreeSteps, order_id=number)
            await run.wait()

    started = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(outstanding)))
    return runs / (time.perf_counter() - started)


async def alone(engine: Engine, runs: int) -> list[float]:
    """Milliseconds from start() to the end, one run at a time."""
    times = []
    for number in range(runs):
        started = time.perf_counter()
        run = await engine.start(ThreeSteps, order_id=number)
        await run.wait()
        times.append((time.perf_counter() - started) * 1000)
    return times


def raw(directory: Path, transitions: int) -> float:
    """Transitions per second of plain sqlite3, in groups."""
    path = directory / "raw.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(
        "CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, step TEXT, seq INTEGER, at INTEGER, data TEXT)"
    )
    db.execute(
        "CREATE TABLE IF NOT EXISTS history (run_id INTEGER, seq INTEGER, at INTEGER, step TEXT,"
        " PRIMARY KEY (run_id, seq)) WITHOUT ROWID"
    )
    data = ThreeSteps.Context(order_id=1).model_dump_json()
    db.executemany("INSERT OR IGNORE INTO runs VALUES (?, 'reserve', 0, 0, ?)", [(i, data) for i in range(GROUP)])
    (seq,) = db.execute("SELECT coalesce(max(seq), 0) FROM history").fetchone()
    started = time.perf_counter()
    for _ in range(transitions // GROUP):
        seq += 1
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "UPDATE runs SET step = ?, seq = ?, at = ?, data = ? WHERE id = ?",
            [("charge", seq, seq, data, i) for i in range(GROUP)],
        )
        db.executemany("INSERT INTO history VALUES (?, ?, ?, ?)", [(i, seq, seq, "charge") for i in range(GROUP)])
        db.execute("COMMIT")
    rate = transitions / (time.perf_counter() - started)
    db.close()
    return rate


async def tasks(number: int = 100_000, at_once: int = 2000) -> float:
    """Tasks per second that this machine's asyncio makes, runs and ends."""

    async def nothing() -> None:
        pass

    started = time.perf_counter()
    for _ in range(0, number, at_once):
        await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(at_once)))
    return number / (time.perf_counter() - started)


async def measure(options: argparse.Namespace) -> dict[str, object]:
    rates: list[float] = []
    tuned: list[float] = []
    limits: list[float] = []
    pace: list[float] = []
    busy: list[tuple[float, float]] = []
    times: list[float] = []
    thresholds = gc.get_threshold()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds):
            pace.append(await tasks())
            limits.append(raw(Path(directory), 4 * options.runs // GROUP * GROUP))
            # A fresh file each round: nothing is deleted in between, which would slow single commits for a while.
            async with Engine(f"sqlite:///{directory}/{number}.db", max_running=options.outstanding) as engine:
                before = time.thread_time(), time.process_time()
                rates.append(await many(engine, options.runs, options.outstanding))
                busy.append((time.thread_time() - before[0], time.process_time() - before[1]))
                times += await alone(engine, options.serial)
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 20, 50)
            async with Engine(f"sqlite:///{directory}/{number}-gc.db", max_running=options.outstanding) as engine:
                tuned.append(await many(engine, options.runs, options.outstanding))
            gc.unfreeze()
            gc.set_threshold(*thresholds)
    times.sort()
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        "outstanding": options.outstanding,
        "runs_per_s": round(statistics.median(rates)),
        "runs_per_s_with_gc_set": round(statistics.median(tuned)),
        "transitions_per_s": round(4 * statistics.median(rates)),
        "raw_transitions_per_s": round(statistics.median(limits)),
        "tasks_per_s": round(statistics.median(pace)),
        "tasks_for_a_run": round(statistics.median(pace) / statistics.median(rates), 1),
        "cpu_us_a_run": {
            name: round(statistics.median(seconds) / options.runs * 1_000_000)
            for name, seconds in zip(("event loop", "process"), zip(*busy, strict=True), strict=True)
        },
        "share_of_raw": round(4 * statistics.median(rates) / statistics.median(limits), 3),
        "serial_ms_p50": round(times[len(times) // 2], 3),
        "serial_ms_p99": round(times[len(times) * 99 // 100], 3),
        "rounds": [round(rate) for rate in rates],
        "rounds_with_gc_set": [round(rate) for rate in tuned],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--outstanding", type=int, default=2_000)
    parser.add_argument("--serial", type=int, default=300)
    json.dump(asyncio.run(measure(parser.parse_args())), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
