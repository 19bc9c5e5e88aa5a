"""From a signal to the end of the run that waited for it, and from the start to the end of a run of one step.

    python benchmarks/latency.py [--signals 300] [--rounds 5] [--waiting 0]

The public Engine with everything on, `synchronous=FULL`, one call at a time. A run waits; its time is from the call of
`engine.signal(...)` until `run.wait()` has returned. That is a read and two commits, one after the other: the run that
takes the signal, and the end of its step. A run of one step takes two commits: its start and its end. With `--waiting`
so many other runs wait for a signal of the same name. Measured beside it, in the same directory and rounds: one commit
of plain sqlite3 (an UPDATE and an INSERT). Medians of the rounds, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from measuring import machine, percentiles, single_commits
from pydantic import BaseModel

from aioflow import Engine, complete, step, wait, workflow
from aioflow.commands import Command

AT_ONCE = 500


@workflow("order")
class Order:
    class Context(BaseModel):
        order_id: int
        amount: float = 0.0

    @step(start=True)
    async def place(self) -> Command:
        return wait.for_signal("paid", then=self.ship)

    @step
    async def ship(self) -> Command:
        return complete()


@workflow("one-step")
class OneStep:
    class Context(BaseModel):
        order_id: int

    @step(start=True)
    async def work(self) -> Command:
        return complete()


async def fill(engine: Engine, runs: int) -> None:
    """Start so many runs that wait for the signal."""
    numbers = iter(range(runs))

    async def some() -> None:
        for number in numbers:
            run = await engine.start(Order, order_id=number)
            await run.wait(until="parked")

    await asyncio.gather(*(some() for _ in range(min(runs, AT_ONCE))))


async def signalled(engine: Engine, number: int) -> float:
    """Milliseconds from signal() to the end of the run."""
    run = await engine.start(Order, order_id=number)
    await run.wait(until="parked")
    began = time.perf_counter()
    await engine.signal("paid", {"amount": 12.5}, run_id=run.id)
    await run.wait()
    took = (time.perf_counter() - began) * 1000
    assert run.status == "completed"
    return took


async def started(engine: Engine, number: int) -> float:
    """Milliseconds from start() to the end of the run."""
    began = time.perf_counter()
    run = await engine.start(OneStep, order_id=number)
    await run.wait()
    return (time.perf_counter() - began) * 1000


async def repeat(measure: Callable[[Engine, int], Awaitable[float]], engine: Engine, count: int) -> list[float]:
    """Measure one after the other; the first ten are not counted."""
    return [await measure(engine, number) for number in range(count + 10)][10:]


def medians(rounds: list[list[float]]) -> dict[str, float]:
    """The medians of the rounds' percentiles."""
    found = [percentiles(times) for times in rounds]
    return {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}


async def measure(options: argparse.Namespace) -> dict[str, object]:
    signals, starts, commits = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds):
            commits.append(single_commits(Path(directory) / f"raw-{number}.db", options.signals))
            async with Engine(f"sqlite:///{directory}/{number}.db") as engine:
                await fill(engine, options.waiting)
                signals.append(await repeat(signalled, engine, options.signals))
                starts.append(await repeat(started, engine, options.signals))
    return {
        **machine(),
        "waiting": options.waiting,
        "signal_to_completed_ms": medians(signals),
        "start_to_completed_ms": medians(starts),
        "raw_commit_ms": medians(commits),
        "rounds_signal_p50": [percentiles(times)["p50"] for times in signals],
        "rounds_start_p50": [percentiles(times)["p50"] for times in starts],
        "rounds_raw_p50": [percentiles(times)["p50"] for times in commits],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--waiting", type=int, default=0)
    json.dump(asyncio.run(measure(parser.parse_args())), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
