"""Cancels that race with steps, timers and other engines: row, history and return value always agree."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import complete, get_context, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, idle, kinds_of
from tests.support import wait_until

HOUR = timedelta(hours=1)


class Nothing(BaseModel):
    """A Context."""


@workflow("races-sleeper")
class Sleeper:
    """Sleeps."""

    Context = Nothing

    @step(start=True)
    async def rest(self) -> Command:
        return sleep(HOUR, then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@pytest.mark.parametrize("first", ["step", "cancel"])
async def test_cancel_races_a_step_that_ends(make_engine: MakeEngine, first: str) -> None:
    """If a cancel races with the end of a step, the row, the history and the returned value agree."""
    gates: dict[int, asyncio.Event] = {}

    @workflow("cancel-race")
    class Flow:
        class Context(BaseModel):
            number: int

        @step(start=True)
        async def work(self) -> Command:
            number = get_context(self.Context).number
            await gates[number].wait()
            return complete() if number % 2 else goto(self.next)

        @step
        async def next(self) -> Command:
            return sleep(HOUR) if get_context(self.Context).number % 4 else complete()

    async with make_engine(Flow) as engine:
        runs = []
        for number in range(100):
            gates[number] = asyncio.Event()
            runs.append(await engine.start(Flow, number=number))

        async def race(number: int) -> bool:
            if first == "step":
                gates[number].set()
                for _ in range(number % 10):
                    await asyncio.sleep(0)
                return await engine.cancel(runs[number].id, "race")
            cancelling = asyncio.ensure_future(engine.cancel(runs[number].id, "race"))
            for _ in range(number % 10):
                await asyncio.sleep(0)
            gates[number].set()
            return await cancelling

        told = await asyncio.gather(*map(race, range(100)))
        for run, cancelled in zip(runs, told, strict=True):
            await run.wait(5)
            rows = await engine.history(run.id)
            assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
            assert run.row.seq == len(rows)
            assert (run.status == "cancelled") is cancelled
            assert [row.kind == "cancel" for row in rows] == [False] * (len(rows) - 1) + [cancelled]
            assert rows[-1].kind == ("cancel" if cancelled else "complete")
            assert run.error == ("race" if cancelled else None)
            assert run.row.owner is None
        await wait_until(lambda: idle(engine))


async def test_cancel_races_a_timer(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Runs that are cancelled just as they are due each end once, cancelled or completed."""
    async with make_engine(Sleeper) as engine:
        runs = [await engine.start(Sleeper) for _ in range(100)]
        for run in runs:
            await run.wait(5, until="parked")

        async def cancel(number: int) -> bool:
            for _ in range(number % 12):
                await asyncio.sleep(0)
            return await engine.cancel(runs[number].id)

        clock.shift(HOUR)
        told = await asyncio.gather(*map(cancel, range(100)))
        for run, cancelled in zip(runs, told, strict=True):
            await run.wait(5)
            kinds = await kinds_of(engine, run)
            assert run.status == ("cancelled" if cancelled else "completed")
            ways: list[list[str]] = [["cancel"], ["wake", "cancel"], ["wake", "complete"]]
            assert kinds[:2] == ["start", "sleep"]
            assert kinds[2:] in (ways[:2] if cancelled else ways[2:])


# ---- from another engine


async def _cancelled_from_a_client(make_engine: MakeEngine, flow: type, begun: Callable[[], Any]) -> list[str]:
    afar = make_engine(worker=False, workflows=[])
    async with make_engine(flow, shutdown_timeout=timedelta(0)) as engine, afar as client:
        run = await engine.start(flow)
        await wait_until(begun)
        assert await client.cancel(run.id, "from afar")
        assert (await run.wait(5)).status == "cancelled"
        await wait_until(lambda: idle(engine), timeout=3, what="the step was stopped")
        await run.refresh()
        assert (run.status, run.error) == ("cancelled", "from afar")
        return await kinds_of(engine, run)


async def test_client_cancels_a_run_that_executes_elsewhere(make_engine: MakeEngine) -> None:
    """A step is stopped if another engine cancels its run, even if the step would never end."""
    inside, seen = asyncio.Event(), []

    @workflow("cancel-afar")
    class Flow:
        Context = Nothing

        @step(start=True)
        async def work(self) -> Command:
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("stopped")
            return complete()

    assert await _cancelled_from_a_client(make_engine, Flow, inside.is_set) == ["start", "cancel"]
    assert seen == ["stopped"]


async def test_step_that_ends_after_a_cancel_from_afar_is_refused(make_engine: MakeEngine) -> None:
    """A step that ends after another engine has cancelled its run commits nothing."""
    gate, inside, went_on = asyncio.Event(), asyncio.Event(), []

    @workflow("cancel-afar-ends")
    class Flow:
        Context = Nothing

        @step(start=True)
        async def work(self) -> Command:
            inside.set()
            await gate.wait()
            return goto(self.wrong)

        @step
        async def wrong(self) -> Command:
            went_on.append(1)
            return complete()

    async with make_engine(Flow) as engine, make_engine(worker=False, workflows=[]) as client:
        runs = [await engine.start(Flow) for _ in range(5)]
        await inside.wait()
        for run in runs:
            assert await client.cancel(run.id)
        gate.set()
        await wait_until(lambda: idle(engine))
        for run in runs:
            assert (await run.wait(5)).status == "cancelled"
            assert await kinds_of(engine, run) == ["start", "cancel"]
    assert went_on == []
