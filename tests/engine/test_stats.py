"""Stats: counts of what is in the store."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import StartOptions, complete, fail, get_context, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@workflow("stats-order")
class Order:
    """Ends or parks as its Context says."""

    class Context(BaseModel):
        way: str

    @step(start=True)
    async def pay(self) -> Command:
        match get_context(self.Context).way:
            case "fail":
                return fail("declined")
            case "sleep":
                return sleep(HOUR)
            case "ship":
                return goto(self.ship)
        return complete()

    @step
    async def ship(self) -> Command:
        return sleep(2 * HOUR)


@workflow("stats-trip")
class Trip:
    """A workflow that ends at once."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def go(self) -> Command:
        return complete()


async def test_stats_count_what_is_there(make_engine: MakeEngine, clock: ShiftedClock, store_url: Any) -> None:
    """Stats count runs by workflow and status, live ones by step, waiting ones by what for, and those overdue."""
    async with make_engine(Order, Trip) as engine:
        runs = [await engine.start(Order, way=way) for way in ("complete", "fail", "sleep", "sleep", "ship")]
        runs += [await engine.start(Trip), await engine.start(Trip, StartOptions(delay=3 * HOUR))]
        for run in runs:
            await run.wait(5, until="parked")
        assert await engine.cancel(runs[2].id)
    async with make_engine(Order, Trip, worker=False) as engine:
        stats = await engine.stats()
        assert stats.runs == {
            "stats-order": {"completed": 1, "failed": 1, "cancelled": 1, "waiting": 2},
            "stats-trip": {"completed": 1, "waiting": 1},
        }
        assert stats.steps == {"stats-order": {"pay": 1, "ship": 1}, "stats-trip": {"go": 1}}
        assert stats.waiting == {"sleep": 2, "start": 1}
        assert (stats.blocked, stats.overdue, stats.lag, stats.running_here) == (0, 0, timedelta(0), 0)
        assert (stats.bytes is None) is not isinstance(store_url, str)
        clock.shift(2 * HOUR + MINUTE)
        stats = await engine.stats()
        assert stats.overdue == 2
        assert HOUR + MINUTE <= stats.lag < HOUR + 10 * MINUTE
        clock.shift(10 * HOUR)
        assert (await engine.stats()).overdue == 3
        assert await engine.process_scheduled() == 3
        stats = await engine.stats()
        assert (stats.overdue, stats.lag, stats.waiting) == (0, timedelta(0), {})
        assert stats.runs["stats-trip"] == {"completed": 1, "running": 1}


async def test_stats_of_an_empty_store_are_zero(make_engine: MakeEngine) -> None:
    """The stats of an empty store are zero or empty."""
    async with make_engine() as engine:
        stats = await engine.stats()
        assert (stats.runs, stats.steps, stats.waiting, stats.blocked, stats.overdue) == ({}, {}, {}, 0, 0)


async def test_stats_tell_what_runs_here(make_engine: MakeEngine) -> None:
    """running_here counts the runs that the queried engine executes, not those of others."""
    gate = asyncio.Event()

    @workflow("stats-gate")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def wait(self) -> Command:
            await gate.wait()
            return complete()

    async with make_engine(Flow) as engine, make_engine(Flow, worker=False) as client:
        runs = [await engine.start(Flow) for _ in range(3)]
        assert (await engine.stats()).running_here == 3
        assert (await client.stats()).running_here == 0
        gate.set()
        for run in runs:
            await run.wait(5)
        assert (await engine.stats()).running_here == 0
