"""Many events that are due at one instant: they are processed in batches, and other runs go on meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, Event, complete, event_workflow, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.support import wait_until

HOUR = timedelta(hours=1)
EVENTS = 2_000


@workflow("many-asked")
class Asked:
    """Waits for a signal."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("many-answer", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def test_many_events_due_at_one_instant_do_not_hold_up_others(
    make_engine: MakeEngine, clock: ShiftedClock
) -> None:
    """Starts are made a few at a time, signals are handled in between, and each event makes each start exactly once."""
    begun: Counter[str] = Counter()
    under_way = most = 0
    some = asyncio.Event()

    @event_workflow("many-due", offsets=[timedelta(0), timedelta(microseconds=1)])
    class Due:
        class Context(BaseModel):
            pass

        @classmethod
        async def create_context(cls, event: Event) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            begun[event.id] += 1
            if begun.total() > EVENTS // 10:
                some.set()
            return cls.Context()

        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    async with make_engine(Asked, Due) as engine:
        asked = [await engine.start(Asked) for _ in range(5)]
        for run in asked:
            await run.wait(5, until="parked")
        at = clock.now() + HOUR
        await asyncio.gather(*(engine.emit("many-due", at=at, event_id=f"e{n}") for n in range(EVENTS)))
        assert (await engine.stats()).events == {"pending": EVENTS}
        clock.shift(HOUR + timedelta(seconds=1))
        await some.wait()
        for run in asked:
            await engine.signal("many-answer", run_id=run.id)
            assert (await run.wait(5)).status == "completed"
        made_meanwhile = begun.total()

        async def all_ended() -> bool:
            return await engine.count(workflow=Due, status="completed") == 2 * EVENTS

        await wait_until(all_ended, 60, what="all runs")
        stats = await engine.stats()
        assert (stats.planned, stats.events) == (0, {"occurred": EVENTS})
        assert await engine.count(workflow=Due) == 2 * EVENTS
    assert made_meanwhile < 2 * EVENTS
    assert most <= EVENTS // 10
    assert begun == Counter({f"e{n}": 2 for n in range(EVENTS)})


async def test_events_of_next_month_are_rows_alone(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Only events within the horizon are in memory, with two entries each, and all runs start in time."""

    @event_workflow("many-later", name="many-later")
    class Later:
        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    def in_memory(engine: Engine) -> int:
        assert engine._parts is not None
        return len(engine._parts.planner._timers)

    async with make_engine(Later) as engine:
        month = clock.now() + timedelta(days=30)
        await asyncio.gather(*(engine.emit("many-later", at=month) for _ in range(300)))
        assert in_memory(engine) == 0
        soon = clock.now() + timedelta(minutes=4)
        await asyncio.gather(*(engine.emit("many-later", at=soon) for _ in range(100)))
        assert in_memory(engine) == 200
    async with make_engine(Later) as engine:
        await wait_until(lambda: in_memory(engine) == 200)
        for moment, count in ((soon, 100), (month, 400)):
            clock.shift(moment - clock.now())

            async def all_ended(count: int = count) -> bool:
                return await engine.count(status="completed") == count

            await wait_until(all_ended, 30)
            await wait_until(lambda: in_memory(engine) == 0)
        assert (await engine.stats()).events == {"occurred": 400}
