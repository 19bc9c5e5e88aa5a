"""What a waiting run costs while it waits: memory, threads, tasks, start-up time, disk.

    python benchmarks/waiting.py [--rounds 3] [--slow]

Files are filled with 1 000 and 100 000 runs (`--slow`: 1 000 000 as well) that wait for a signal, sleep 30 days, or
sleep a few minutes, which is within the horizon of the timers. For speed, the store's own `apply` writes the rows and
the history that the engine would write, in large batches. Then a fresh process opens the file with the public Engine,
as programs do, starts one run of one step, and waits for its end. Measured there:

- start-up: from before `async with Engine(...)` until that one run has ended; also for a file without runs.
- bytes per run: resident memory (/proc/self/statm) two seconds later, less that of a process on a file without runs.
- threads and asyncio tasks, less those of a process on a file without runs.

Medians of the rounds, as JSON. The bytes of file per run include two history rows and the indexes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measuring import machine
from pydantic import BaseModel

from aioflow import Engine, complete, step, wait, workflow
from aioflow.changes import Change, Start
from aioflow.commands import Command
from aioflow.interventions import start
from aioflow.model import Arm, Run
from aioflow.registry import registry
from aioflow.transitions import move
from aioflow_sqlite import SQLiteStore

BATCH = 2_000
SECOND = 1_000_000
DAY = 24 * 3600 * SECOND
KINDS = ("signal", "sleep of 30 days", "sleep within the horizon")


@workflow("patient")
class Patient:
    class Context(BaseModel):
        order_id: int
        customer: str = "somebody"

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@workflow("one-step")
class OneStep:
    class Context(BaseModel):
        order_id: int

    @step(start=True)
    async def work(self) -> Command:
        return complete()


# ---- filling the file


def parked(run: Run, kind: str, now: int, due: int) -> Change:
    """The transition of the run's first step, which parks it."""
    arms = json.dumps([Arm("signal", "paid", None, "end", False)])
    wait = {"waiting_for": "signal", "arms": arms} if kind == "signal" else {"waiting_for": "sleep", "wake_at": due}
    next_step = None if kind == "signal" else "end"
    command = "wait" if kind == "signal" else "sleep"
    return move(run, command, 200, now, run.id << 1, status="waiting", owner=None, next_step=next_step, **wait)  # type: ignore[arg-type]


async def fill(path: str, kind: str, runs: int) -> None:
    """Apply so many waiting runs to the store. Those within the horizon are due in 4 to 8 minutes."""
    store = SQLiteStore(f"sqlite:///{path}")
    began = time.time_ns() // 1000
    await store.open(began)
    definition = registry.find(Patient)
    first = await store.reserve("run", runs, began)
    for begin in range(0, runs, BATCH):
        ids = range(first + begin, first + min(begin + BATCH, runs))
        now = time.time_ns() // 1000
        starts: list[Start] = [
            start(
                definition, json.dumps({"order_id": run_id, "customer": "somebody"}), run_id=run_id, key=None,
                reuse="never", due=None, owner=None, now=now, commit_id=run_id,
            )
            for run_id in ids
        ]  # fmt: skip
        await store.apply(starts, now)
        dues = {
            run_id: now + 30 * DAY if kind == KINDS[1] else began + (240 + 240 * run_id // (first + runs)) * SECOND
            for run_id in ids
        }
        results = await store.apply([parked(change.run, kind, now, dues[change.run.id]) for change in starts], now)
        assert all(result.outcome == "applied" for result in results)
    await store.close()


# ---- the process that measures itself


def resident() -> int:
    """Bytes of resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def observe(path: str) -> dict[str, float]:
    """Open the file as programs do, and measure this process."""
    began = time.perf_counter()
    async with Engine(f"sqlite:///{path}") as engine:
        opened = time.perf_counter() - began
        run = await engine.start(OneStep, order_id=1)
        await run.wait()
        took = time.perf_counter() - began
        await asyncio.sleep(2)
        gc.collect()
        return {
            "open_s": opened,
            "start_up_s": took,
            "bytes": resident(),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "file": sum(file.stat().st_size for file in Path(path).parent.glob("runs.db*")),
        }


def in_a_fresh_process(path: str) -> dict[str, float]:
    """``observe`` in a process that has done nothing else."""
    ran = subprocess.run([sys.executable, __file__, "--observe", path], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


# ---- all of it


def measure(options: argparse.Namespace) -> dict[str, object]:
    counts = options.runs or [1_000, 100_000, *([1_000_000] if options.slow else [])]
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        idle = []
        for number in range(options.rounds):
            (folder := Path(directory) / f"idle-{number}").mkdir()
            in_a_fresh_process(str(folder / "runs.db"))  # creates the file
            idle.append(in_a_fresh_process(str(folder / "runs.db")))
        nothing = {name: statistics.median(one[name] for one in idle) for name in idle[0]}
        for kind in KINDS:
            for runs in counts:
                (folder := Path(directory) / f"{runs}-{KINDS.index(kind)}").mkdir()
                asyncio.run(fill(str(folder / "runs.db"), kind, runs))
                rounds = [in_a_fresh_process(str(folder / "runs.db")) for _ in range(options.rounds)]
                found = {name: statistics.median(one[name] for one in rounds) for name in nothing}
                figures.append(
                    {
                        "waiting_for": kind,
                        "runs": runs,
                        "bytes_per_run": round((found["bytes"] - nothing["bytes"]) / runs, 1),
                        "more_mb": round((found["bytes"] - nothing["bytes"]) / 1e6, 2),
                        "more_threads": found["threads"] - nothing["threads"],
                        "more_tasks": found["tasks"] - nothing["tasks"],
                        "open_s": round(found["open_s"], 3),
                        "start_up_s": round(found["start_up_s"], 3),
                        "rounds_start_up_s": [round(one["start_up_s"], 3) for one in rounds],
                        "file_bytes_per_run": round((found["file"] - nothing["file"]) / runs),
                        "file_mb": round(found["file"] / 1e6, 1),
                    }
                )
    return {
        **machine(),
        "idle": {
            "mb": round(nothing["bytes"] / 1e6, 1),
            "threads": nothing["threads"],
            "tasks": nothing["tasks"],
            "start_up_s": round(nothing["start_up_s"], 3),
        },
        "waiting": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow", action="store_true", help="1 000 000 runs as well")
    parser.add_argument("--runs", type=int, nargs="+", help="numbers of runs, instead of 1 000 and 100 000")
    parser.add_argument("--observe", metavar="FILE", help="internal: open the file and measure this process")
    options = parser.parse_args()
    found = asyncio.run(observe(options.observe)) if options.observe else measure(options)
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
