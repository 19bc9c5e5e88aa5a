"""Three-step runs per second, and the time of one run alone, beside what SQLite itself can commit.

    python benchmarks/throughput.py [--runs 10000] [--rounds 5] [--outstanding 2000] [--serial 300]

The public Engine with everything on: history, fences, validation, tracing, `synchronous=FULL`. A run is four committed
transitions. Each round measures, one after the other:

- tasks: empty coroutines per second with `create_task` and `gather`, 2000 at once, which tells how fast the machine
  runs Python at that time;
- raw: a plain sqlite3 loop in the same directory, in groups of 1000 transitions (UPDATE of a run, INSERT of a history
  row), each group one transaction;
- bare: the bare engine of `bare.py`, with the same steps and as many runs outstanding;
- the Engine, with `--outstanding` runs at once, then one run at a time;
- the Engine again, with the garbage collector set as a program with thousands of runs at once may set it, and a library
  must not: `gc.freeze()` and `gc.set_threshold(10_000, 20, 50)`.

The medians of the rounds are printed as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bare import BareFile
from measuring import machine, percentiles, plain_file
from three_steps import ThreeSteps, bare, many, through, times

from aioflow import Engine

GROUP = 1000


def raw(directory: Path, transitions: int) -> float:
    """Transitions per second of plain sqlite3, in groups."""
    db = plain_file(directory / "raw.db")
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
    found = transitions / (time.perf_counter() - started)
    db.close()
    return found


async def tasks(number: int = 100_000, at_once: int = 2000) -> float:
    """Tasks per second that asyncio creates, runs and ends on this machine."""

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
    bare_rates: list[float] = []
    busy: list[tuple[float, float]] = []
    alone: list[float] = []
    bare_alone: list[float] = []
    runs, outstanding = options.runs, options.outstanding
    thresholds = gc.get_threshold()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds):
            pace.append(await tasks())
            limits.append(raw(Path(directory), max(4 * runs // GROUP, 1) * GROUP))
            least, found = await bare(BareFile(Path(directory, f"{number}-bare.db")), runs, outstanding, options.serial)
            bare_rates.append(least)
            bare_alone += found
            # A fresh file each round: nothing is deleted in between, which would slow single commits for a while.
            async with Engine(f"sqlite:///{directory}/{number}.db", max_running=outstanding) as engine:
                before = time.thread_time(), time.process_time()
                rates.append(await many(engine, runs, outstanding))
                busy.append((time.thread_time() - before[0], time.process_time() - before[1]))
                alone += await times(through(engine), options.serial)
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 20, 50)
            async with Engine(f"sqlite:///{directory}/{number}-gc.db", max_running=outstanding) as engine:
                tuned.append(await many(engine, runs, outstanding))
            gc.unfreeze()
            gc.set_threshold(*thresholds)
    runs_per_s, raw_per_s, bare_per_s = map(statistics.median, (rates, limits, bare_rates))
    return {
        **machine(),
        "outstanding": outstanding,
        "runs_per_s": round(runs_per_s),
        "runs_per_s_with_gc_set": round(statistics.median(tuned)),
        "bare_runs_per_s": round(bare_per_s),
        "share_of_bare": round(runs_per_s / bare_per_s, 3),
        "transitions_per_s": round(4 * runs_per_s),
        "raw_transitions_per_s": round(raw_per_s),
        "share_of_raw": round(4 * runs_per_s / raw_per_s, 3),
        "tasks_per_s": round(statistics.median(pace)),
        "tasks_for_a_run": round(statistics.median(pace) / runs_per_s, 1),
        "cpu_us_a_run": {
            name: round(statistics.median(seconds) / runs * 1_000_000)
            for name, seconds in zip(("event loop", "process"), zip(*busy, strict=True), strict=True)
        },
        "serial_ms": percentiles(alone),
        "bare_serial_ms": percentiles(bare_alone),
        "rounds": [round(each) for each in rates],
        "rounds_with_gc_set": [round(each) for each in tuned],
        "rounds_bare": [round(each) for each in bare_rates],
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
