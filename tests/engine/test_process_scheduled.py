"""process_scheduled: wakes what is due, and says how many that were."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from aioflow import StartOptions, complete, get_context, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of

HOUR = timedelta(hours=1)


@workflow("scheduled-order")
class Order:
    """Sleeps for so many hours."""

    class Context(BaseModel):
        hours: int = 0

    @step(start=True)
    async def wait(self) -> Command:
        hours = get_context(self.Context).hours
        return sleep(hours * HOUR, then=self.end) if hours else complete()

    @step
    async def end(self) -> Command:
        return complete()


async def test_it_wakes_what_is_due_and_counts(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Every run that is due is woken, none that is not; a second call finds nothing."""
    async with make_engine(Order) as engine:
        runs = [await engine.start(Order, hours=hours) for hours in (1, 1, 2, 3)]
        for run in runs:
            await run.wait(5, until="parked")
    async with make_engine(Order, worker=False) as client:
        assert await client.process_scheduled() == 0
        for woken in (2, 1, 1, 0):
            clock.shift(HOUR)
            assert await client.process_scheduled() == woken
            assert await client.process_scheduled() == 0
        for run in runs:
            await (found := await client.get(run.id)).refresh()
            assert (found.status, found.current_step, found.row.owner) == ("running", "end", None)
            assert await kinds_of(client, run) == ["start", "sleep", "wake"]
    async with make_engine(Order) as engine:
        for run in runs:
            assert (await engine.wait(run.id, 5)).status == "completed"


async def test_it_wakes_more_than_a_page(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """However many are due, one call wakes them all."""
    async with make_engine(Order, worker=False) as client:
        await asyncio.gather(*(client.start(Order, StartOptions(delay=HOUR)) for _ in range(1100)))
        clock.shift(HOUR)
        assert await client.process_scheduled() == 1100
        assert await client.count(status="running") == 1100


async def test_of_many_calls_each_run_is_counted_once(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Calls at the same time, in one engine and in several, wake each run once between them."""
    async with make_engine(Order, worker=False) as one, make_engine(Order, worker=False) as other:
        runs = await asyncio.gather(*(one.start(Order, StartOptions(delay=HOUR)) for _ in range(50)))
        clock.shift(HOUR)
        counts = await asyncio.gather(*(engine.process_scheduled() for engine in (one, other) * 4))
        assert sum(counts) == 50
        for run in runs:
            assert await kinds_of(other, run) == ["start", "wake"]


async def test_working_engine_may_be_asked_as_well(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """In an engine that works, and wakes runs by itself, the call does no harm."""
    async with make_engine(Order) as engine:
        runs = [await engine.start(Order, hours=1) for _ in range(30)]
        for run in runs:
            await run.wait(5, until="parked")
        clock.shift(HOUR)
        assert await engine.process_scheduled() <= 30
        for run in runs:
            assert (await run.wait(5)).status == "completed"
            assert await kinds_of(engine, run) == ["start", "sleep", "wake", "complete"]
