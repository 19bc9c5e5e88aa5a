"""How soon interrupted runs continue after the process that executed them has died.

    python benchmarks/recovery.py [--runs 500 100000] [--rounds 5]

Each run is running, in its second step, and owned by a dead worker. Up to 1 000 runs, a real process is killed by
SIGKILL while all of them are in that step; for more, the rows are written by the store's own `apply`, for speed. Then a
fresh process opens the file with the public Engine. Measured there, from before `async with Engine(...)`: until the
engine is open, until the first and the last run have begun their step again, and until all have ended. Medians of the
rounds, as JSON; beside them, from the same rounds, transitions per second of plain sqlite3 in groups of 1000.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import raw
from measuring import machine, plain_file
from pydantic import BaseModel

from aioflow import Engine, complete, goto, step, workflow
from aioflow.commands import Command
from aioflow.interventions import start
from aioflow.registry import registry
from aioflow.transitions import move
from aioflow_sqlite import SQLiteStore

BATCH = 2_000
REAL = 1_000  # up to here the runs are interrupted by a real SIGKILL

began: list[float] = []
interrupting = False
all_in = asyncio.Event()


@workflow("interrupted")
class Interrupted:
    class Context(BaseModel):
        order_id: int
        customer: str = "somebody"

    @step(start=True)
    async def first(self) -> Command:
        return goto(self.second)

    @step
    async def second(self) -> Command:
        began.append(time.perf_counter())
        if interrupting:
            all_in.set()
            await asyncio.Event().wait()
        return complete()


async def be_killed(path: str, runs: int) -> None:
    """Take all runs into their second step, print that, and wait to be killed."""
    async with Engine(f"sqlite:///{path}", max_running=runs) as engine:
        for first in range(0, runs, 100):
            await asyncio.gather(*(engine.start(Interrupted, order_id=i) for i in range(first, min(first + 100, runs))))
        while len(began) < runs:
            all_in.clear()
            await all_in.wait()
        sys.stdout.write("all in\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def fill(path: str, runs: int) -> None:
    """Write the rows that a killed process leaves."""
    store = SQLiteStore(f"sqlite:///{path}")
    now = time.time_ns() // 1000
    await store.open(now)
    dead = await store.reserve("worker", 1, now)
    first = await store.reserve("run", runs, now)
    definition = registry.find(Interrupted)
    for begin in range(first, first + runs, BATCH):
        starts = [
            start(
                definition, json.dumps({"order_id": run_id, "customer": "somebody"}), run_id=run_id, key=None,
                reuse="never", due=None, owner=dead, now=now, commit_id=run_id,
            )
            for run_id in range(begin, min(begin + BATCH, first + runs))
        ]  # fmt: skip
        await store.apply(starts, now)
        moves = [
            move(change.run, "goto", 200, now, runs + change.run.id, step="second", visit=2, hops=1)
            for change in starts
        ]
        results = await store.apply(moves, now)
        assert all(result.outcome == "applied" for result in results)
    await store.close()


async def recover(path: str, runs: int) -> dict[str, float]:
    """Open the file as programs do, and wait until all runs have ended."""
    opening = time.perf_counter()
    async with Engine(f"sqlite:///{path}") as engine:
        opened = time.perf_counter()
        while len(began) < runs or await engine.count(status="completed") < runs:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        ended = time.perf_counter()
        kinds = {transition.kind for transition in await engine.history(1)}
        assert kinds == {"start", "goto", "complete"}
    assert len(began) == runs
    return {
        "open_s": opened - opening,
        "first_s": began[0] - opening,
        "last_s": began[-1] - opening,
        "ended_s": ended - opening,
    }


def interrupt(path: str, runs: int) -> None:
    """Make a file with so many interrupted runs."""
    if runs > REAL:
        asyncio.run(fill(path, runs))
        return
    arguments = [sys.executable, __file__, "--be-killed", path, "--runs", str(runs)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"all in\n"
        process.kill()


def measure(options: argparse.Namespace) -> dict[str, object]:
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        for runs in options.runs:
            rounds, limits = [], []
            for number in range(options.rounds):
                (folder := Path(directory) / f"{runs}-{number}").mkdir()
                limits.append(raw.rate(plain_file(folder / "raw.db"), raw.in_small_tables, 5_000))
                path = str(folder / "runs.db")
                interrupt(path, runs)
                arguments = [sys.executable, __file__, "--recover", path, "--runs", str(runs)]
                ran = subprocess.run(arguments, check=True, stdout=subprocess.PIPE)
                rounds.append(json.loads(ran.stdout))
            figures.append(
                {
                    "runs": runs,
                    **{name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]},
                    "rounds_last_s": [round(one["last_s"], 3) for one in rounds],
                    "raw_transitions_per_s": round(statistics.median(limits)),
                }
            )
    return {**machine(), "recovery": figures}


def main() -> None:
    global interrupting  # noqa: PLW0603 - this process is the one that is killed
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--be-killed", metavar="FILE", help="internal: be the process that is killed")
    parser.add_argument("--recover", metavar="FILE", help="internal: be the process that continues the runs")
    options = parser.parse_args()
    if options.be_killed:
        interrupting = True
        asyncio.run(be_killed(options.be_killed, options.runs[0]))
    elif options.recover:
        json.dump(asyncio.run(recover(options.recover, options.runs[0])), sys.stdout)
    else:
        json.dump(measure(options), sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
