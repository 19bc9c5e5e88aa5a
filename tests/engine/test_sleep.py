"""Sleeping: for how long, and which step comes next."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import complete, get_context, get_run, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of, moved_on, run_of

HOUR = timedelta(hours=1)


async def test_sleep_runs_the_same_step_again(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A step that sleeps without then= runs again after each sleep, as a visit of its own."""
    keys = []

    @workflow("steps-reminder")
    class Flow:
        class Context(BaseModel):
            reminders: int = 0

        @step(start=True)
        async def remind(self) -> Command:
            keys.append(get_run().step_key)
            context = get_context(self.Context)
            context.reminders += 1
            return complete() if context.reminders == 3 else sleep(HOUR)

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        for reminders in (1, 2):
            await run.wait(5, until="parked")
            assert (run.status, run.waiting_for, run.current_step) == ("waiting", "sleep", "remind")
            assert run.wake_at == run.updated_at + HOUR
            assert run.data == {"reminders": reminders}
            clock.shift(HOUR)
            await moved_on(run)
        await run.wait(5)
        assert (run.status, run.data) == ("completed", {"reminders": 3})
        assert len(set(keys)) == 3
        assert await kinds_of(engine, run) == ["start", "sleep", "wake", "sleep", "wake", "complete"]


async def test_sleep_then_goes_on_with_another_step(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """With then=, another step comes next, and the sleeping one stays the current step until then."""

    @workflow("steps-then")
    class Flow:
        class Context(BaseModel):
            path: list[str] = []

        @step(start=True)
        async def ask(self) -> Command:
            get_context(self.Context).path.append("ask")
            return sleep(HOUR, then=self.escalate)

        @step
        async def escalate(self) -> Command:
            get_context(self.Context).path.append("escalate")
            return sleep(HOUR, then="end")

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await run.wait(5, until="parked")
        assert (run.current_step, run.data) == ("ask", {"path": ["ask"]})
        clock.shift(HOUR)
        await moved_on(run)
        await run.wait(5, until="parked")
        assert (run.current_step, run.data) == ("escalate", {"path": ["ask", "escalate"]})
        clock.shift(HOUR)
        await run.wait(5)
        assert (run.status, run.current_step) == ("completed", "end")
        assert [(row.kind, row.step) for row in await engine.history(run.id)] == [
            ("start", "ask"),
            ("sleep", "ask"),
            ("wake", "escalate"),
            ("sleep", "escalate"),
            ("wake", "end"),
            ("complete", "end"),
        ]


async def test_sleep_until_an_instant(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A run may sleep until an aware datetime in any time zone."""
    at = (clock.now() + timedelta(days=100)).astimezone()

    @workflow("steps-until")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def wait(self) -> Command:
            return sleep(at, then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await run.wait(5, until="parked")
        assert (run.wake_at, run.wake_at.tzinfo) == (at, UTC)
        clock.shift(timedelta(days=100))
        assert (await run.wait(5)).status == "completed"


@pytest.mark.parametrize(
    "until",
    [timedelta(0), datetime(2020, 1, 1, tzinfo=UTC), datetime(1969, 7, 20, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)],
    ids=["nothing", "2020", "1969", "year 1"],
)
async def test_sleep_until_what_is_past_goes_on_at_once(make_engine: MakeEngine, until: Any) -> None:
    """A sleep of zero, or until an instant in the past, however long ago, ends at once."""

    @workflow("steps-past")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def wait(self) -> Command:
            return sleep(until, then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert await kinds_of(engine, run) == ["start", "sleep", "wake", "complete"]


@pytest.mark.parametrize("year", [1, 1969, 2020])
async def test_sleep_that_is_over_outlives_a_restart(make_engine: MakeEngine, year: int) -> None:
    """A run whose sleep was over when its engine closed goes on in the next engine, however long ago that was."""
    gate, inside = asyncio.Event(), asyncio.Event()

    @workflow("steps-past-restart")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def wait(self) -> Command:
            inside.set()
            await gate.wait()
            return sleep(datetime(year, 1, 2, tzinfo=UTC), then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    engine = make_engine(Flow)
    async with engine:
        run = await engine.start(Flow)
        await inside.wait()
        closing = asyncio.ensure_future(engine.__aexit__(None, None, None))
        await asyncio.sleep(0)
        gate.set()
        await closing
    async with make_engine(Flow) as engine:
        assert (await engine.wait(run.id, 2)).status == "completed"
