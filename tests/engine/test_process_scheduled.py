"""process_scheduled: wakes what is due, and returns how many runs that were."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import Event, StartOptions, complete, event_workflow, get_context, sleep, step, workflow
from aioflow.commands import Command
from aioflow.errors import EngineClosed
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of

HOUR = timedelta(hours=1)
ROUNDS = 100


@workflow("scheduled-order")
class Order:
    """Sleeps for as many hours as its Context says."""

    class Context(BaseModel):
        hours: int = 0

    @step(start=True)
    async def wait(self) -> Command:
        hours = get_context(self.Context).hours
        return sleep(hours * HOUR, then=self.end) if hours else complete()

    @step
    async def end(self) -> Command:
        return complete()


@event_workflow("scheduled-heard")
class Heard:
    """Completes at once."""

    @step(start=True)
    async def begin(self) -> Command:
        return complete()


async def test_it_wakes_what_is_due_and_counts(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Every run that is due is woken, and no other; a second call returns 0."""
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
    """One call wakes all runs that are due, even if they are more than a page."""
    async with make_engine(Order, worker=False) as client:
        await asyncio.gather(*(client.start(Order, StartOptions(delay=HOUR)) for _ in range(1100)))
        clock.shift(HOUR)
        assert await client.process_scheduled() == 1100
        assert await client.count(status="running") == 1100


async def test_of_many_calls_each_run_is_counted_once(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Concurrent calls, in one engine and in several, wake each run once, and their counts add up."""
    async with make_engine(Order, worker=False) as one, make_engine(Order, worker=False) as other:
        runs = await asyncio.gather(*(one.start(Order, StartOptions(delay=HOUR)) for _ in range(50)))
        clock.shift(HOUR)
        counts = await asyncio.gather(*(engine.process_scheduled() for engine in (one, other) * 4))
        assert sum(counts) == 50
        for run in runs:
            assert await kinds_of(other, run) == ["start", "wake"]


async def test_working_engine_may_be_asked_as_well(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A call in a worker, which wakes runs by itself, does no harm: each run wakes once."""
    async with make_engine(Order) as engine:
        runs = [await engine.start(Order, hours=1) for _ in range(30)]
        for run in runs:
            await run.wait(5, until="parked")
        clock.shift(HOUR)
        assert await engine.process_scheduled() <= 30
        for run in runs:
            assert (await run.wait(5)).status == "completed"
            assert await kinds_of(engine, run) == ["start", "sleep", "wake", "complete"]


async def test_calls_and_events_at_once(make_engine: MakeEngine) -> None:
    """Calls that run concurrently with events and their starts all return."""
    async with make_engine(Heard) as engine:

        async def emit() -> None:
            await engine.emit("scheduled-heard")

        for _ in range(ROUNDS):
            await asyncio.gather(*(call() for _ in range(3) for call in (emit, engine.process_scheduled)))
        assert await engine.process_scheduled() == 0
        assert await engine.count() == 3 * ROUNDS


async def test_a_call_when_the_engine_is_closed(make_engine: MakeEngine) -> None:
    """A call that is interrupted by its engine's close is EngineClosed, and its start is made by a later call."""
    asked, gate = asyncio.Event(), asyncio.Event()

    @event_workflow("scheduled-asked", name="scheduled-asks")
    class Asks:
        @classmethod
        async def should_run_for_event(cls, event: Event) -> bool:
            asked.set()
            await gate.wait()
            return True

        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    async with make_engine(Asks):
        pass
    async with make_engine(Asks, worker=False) as client:
        await client.emit("scheduled-asked")
        calling = asyncio.create_task(client.process_scheduled())
        await asyncio.wait_for(asked.wait(), 5)
    with pytest.raises(EngineClosed, match="process_scheduled"):
        await asyncio.wait_for(calling, 5)
    gate.set()
    async with make_engine(Asks, worker=False) as client:
        assert (await client.process_scheduled(), await client.count()) == (1, 1)
