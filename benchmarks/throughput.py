"""Three-step runs per second, and the time of one run alone, beside what SQLite itself can commit.

    python benchmarks/throughput.py [--runs 10000] [--rounds 5] [--outstanding 2000] [--serial 300]

The public Engine with everything on: history, fences, validation, tracing, `synchronous=FULL`. A run is four committed
transitions. Each round measures, one after the other:

- tasks: empty coroutines per second with `create_task` and `gather`, 2000 at once, which tells how fast the machine
  runs Python at that time;
- raw: what plain sqlite3 commits in the same directory, in transactions of 1000 transitions (`raw.py`): in the tables
  and indexes that the SQLite store has, and in the two small tables that the bare engine has;
- bare: the bare engine of `bare.py`, with the same steps and as many runs outstanding;
- the Engine, with `--outstanding` runs at once, then one run at a time;
- the Engine again, with the garbage collector set as a program with thousands of runs at once may set it, and a library
  must not: `gc.freeze()` and `gc.set_threshold(50_000, 20, 50)`.

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
from collections import defaultdict
from pathlib import Path

import raw
from bare import BareFile
from measuring import machine, percentiles, plain_file
from three_steps import bare, many, through, times

from aioflow import Engine


async def tasks(number: int = 100_000, at_once: int = 2000) -> float:
    """Tasks per second that asyncio creates, runs and ends on this machine."""

    async def nothing() -> None:
        pass

    started = time.perf_counter()
    for _ in range(0, number, at_once):
        await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(at_once)))
    return number / (time.perf_counter() - started)


async def measure(options: argparse.Namespace) -> dict[str, object]:
    rates: dict[str, list[float]] = defaultdict(list)
    busy: list[tuple[float, float]] = []
    alone: list[float] = []
    bare_alone: list[float] = []
    runs, outstanding = options.runs, options.outstanding
    thresholds = gc.get_threshold()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds):
            # Fresh files each round: nothing is deleted in between, which would slow single commits for a while.
            path = Path(directory, str(number))
            rates["tasks"].append(await tasks())
            store_file = await raw.file_of_the_store(path.with_suffix(".raw"))
            rates["raw"].append(raw.rate(store_file, raw.in_the_store, runs))
            rates["raw, small"].append(raw.rate(plain_file(path.with_suffix(".small")), raw.in_small_tables, runs))
            least, found = await bare(BareFile(path.with_suffix(".bare")), runs, outstanding, options.serial)
            rates["bare"].append(least)
            bare_alone += found
            async with Engine(f"sqlite:///{path}.db", max_running=outstanding) as engine:
                before = time.thread_time(), time.process_time()
                rates["runs"].append(await many(engine, runs, outstanding))
                busy.append((time.thread_time() - before[0], time.process_time() - before[1]))
                alone += await times(through(engine), options.serial)
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            async with Engine(f"sqlite:///{path}-gc.db", max_running=outstanding) as engine:
                rates["runs, gc set"].append(await many(engine, runs, outstanding))
            gc.unfreeze()
            gc.set_threshold(*thresholds)
    median = {name: statistics.median(found) for name, found in rates.items()}
    per_run = {"bare": 1, "raw": 4, "raw, small": 4}
    return {
        **machine(),
        "outstanding": outstanding,
        "per second, medians": {name: round(rate) for name, rate in median.items()},
        "share of": {
            limit: {name: round(number * median[name] / median[limit], 3) for name in ("runs", "runs, gc set")}
            for limit, number in per_run.items()
        },
        "tasks_for_a_run": round(median["tasks"] / median["runs"], 1),
        "cpu_us_a_run": {
            name: round(statistics.median(seconds) / runs * 1_000_000)
            for name, seconds in zip(("event loop", "process"), zip(*busy, strict=True), strict=True)
        },
        "serial_ms": percentiles(alone),
        "bare_serial_ms": percentiles(bare_alone),
        "rounds": {name: [round(each) for each in rates[name]] for name in ("runs", "runs, gc set", "bare", "raw")},
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
