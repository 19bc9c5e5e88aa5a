"""Callers that are cancelled in the middle of a call: neither the engine nor other callers are affected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio.from_thread
import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, WorkflowRun, complete, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, kinds_of, run_of

HOUR = timedelta(hours=1)


@workflow("impatient-order")
class Order:
    """A workflow that sleeps."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def rest(self) -> Command:
        return sleep(HOUR)


async def _all(engine: Engine) -> list[WorkflowRun[Any]]:
    return [run async for run in engine.iter_runs()]


CALLS: dict[str, Callable[[Engine, WorkflowRun[Any]], Awaitable[Any]]] = {
    "start": lambda engine, run: engine.start(Order),
    "start with a key": lambda engine, run: engine.start(Order, StartOptions(key="a")),
    "get": lambda engine, run: engine.get(run.id),
    "find": lambda engine, run: engine.find(Order, "first"),
    "runs": lambda engine, run: engine.runs(),
    "iter_runs": lambda engine, run: _all(engine),
    "count": lambda engine, run: engine.count(),
    "history": lambda engine, run: engine.history(run.id),
    "wait": lambda engine, run: engine.wait(run.id),
    "stats": lambda engine, run: engine.stats(),
    "process_scheduled": lambda engine, run: engine.process_scheduled(),
    "refresh": lambda engine, run: run.refresh(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_cancelled_call_does_not_affect_others(make_engine: MakeEngine, call: str) -> None:
    """A call may be cancelled at any point; other calls and all runs go on as usual."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, StartOptions(key="first"))
        await run.wait(5, until="parked")
        for turns in range(20):
            task = asyncio.ensure_future(CALLS[call](engine, run))
            beside = asyncio.ensure_future(engine.get(run.id))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await beside).id == run.id
        other = await engine.start(Order)
        await other.wait(5, until="parked")
        runs = await _all(engine)
        assert len(runs) == await engine.count() >= 2
        for each in runs:
            assert (await each.wait(5, until="parked")).waiting_for == "sleep"
            assert await kinds_of(engine, each) == ["start", "sleep"]
        assert [each.key for each in runs].count("a") <= 1


async def test_cancel_that_is_given_up_cancels_or_not(make_engine: MakeEngine) -> None:
    """A cancel whose caller is cancelled has been committed or not, and never in part."""
    async with make_engine(Order) as engine:
        for turns in range(20):
            run = await engine.start(Order)
            await run.wait(5, until="parked")
            task = asyncio.ensure_future(engine.cancel(run.id, "given up"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            again = await engine.cancel(run.id, "again")
            await run.refresh()
            assert (run.status, run.error) == ("cancelled", "again" if again else "given up")
            assert await kinds_of(engine, run) == ["start", "sleep", "cancel"]


async def test_steps_may_call_the_engine(make_engine: MakeEngine) -> None:
    """A step may start runs and wait for them: an async one directly, a sync one with anyio's from_thread."""

    @workflow("impatient-child")
    class Child:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def work(self) -> Command:
            return complete(squared=True)

    @workflow("impatient-parent")
    class Parent:
        class Context(BaseModel):
            children: list[int] = []

        @step(start=True)
        async def first(self) -> Command:
            child = await (await engine.start(Child, number=1)).wait(5)
            assert child.status == "completed"
            return goto(self.second)

        @step
        def second(self) -> Command:
            child = anyio.from_thread.run(lambda: engine.start(Child, number=2))
            child = anyio.from_thread.run(lambda: child.wait(5))
            return complete(children=[child.id])

    async with make_engine(Child, Parent, threads=2) as engine:
        run = await run_of(engine, Parent)
        assert (run.status, run.error) == ("completed", None)
        assert (await engine.get(run.data["children"][0])).data == {"number": 2, "squared": True}
