"""Hostile steps that need more than a line to tell: each with the household around it, for whom nothing has happened."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Generator
from datetime import timedelta

import anyio
import anyio.from_thread
import pytest
from pydantic import BaseModel

from aioflow import complete, get_context, goto, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, closed, kinds_of, run_of
from tests.engine.test_hostile_matrix import ONCE, Nothing, household
from tests.support import wait_until

SHORT = timedelta(milliseconds=50)


# ---- what a step awaits, returns and leaves


class Garbage:
    """Awaits what no event loop knows."""

    def __await__(self) -> Generator[object, None, None]:
        yield 42


async def test_step_that_awaits_what_nobody_can_wait_for_fails(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """An awaitable that yields garbage, and a future of another loop, fail the step at that line."""

    @workflow("hostile-awaits", default_retry=ONCE)
    class Flow:
        class Context(BaseModel):
            garbage: bool

        @step(start=True)
        async def begin(self) -> Command:
            if get_context(self.Context).garbage:
                await Garbage()
            other = asyncio.new_event_loop()
            try:
                await other.create_future()
            finally:
                other.close()
            return complete()

    async with household(make_engine, clock, Flow) as engine:
        run = await run_of(engine, Flow, garbage=True)
        assert (run.status, run.error) == ("failed", "RuntimeError: Task got bad yield: 42")
        run = await run_of(engine, Flow, garbage=False)
        assert run.status == "failed"
        assert "attached to a different loop" in (run.error or "")


# ---- tasks


async def test_scope_that_a_step_left_open_cancels_nobody(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A deadline that a step left behind in its task hits no later step, neither of its run nor of others."""

    @workflow("hostile-scope", default_retry=ONCE)
    class Flow:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            anyio.move_on_after(0.01).__enter__()
            return goto(self.then)

        @step
        async def then(self) -> Command:
            loop = asyncio.get_running_loop()
            later = loop.create_future()
            loop.call_later(0.03, later.set_result, None)
            await later
            return complete()

    async with household(make_engine, clock, Flow) as engine:
        run = await run_of(engine, Flow)
        assert await kinds_of(engine, run) == ["start", "goto", "complete"]


# ---- signals and the loop


async def test_interrupt_within_a_step_is_its_own_failure(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A KeyboardInterrupt that Python itself raises while a step computes is recorded as any other."""

    @workflow("hostile-interrupted", default_retry=ONCE)
    class Flow:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            signal.raise_signal(signal.SIGINT)
            return complete()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        async with household(make_engine, clock, Flow) as engine:
            run = await run_of(engine, Flow)
            assert (run.status, run.error) == ("failed", "KeyboardInterrupt")
            assert "in begin" in (run.traceback or "")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["coroutine", "thread", "loop"])
async def test_step_can_end_the_service(make_engine: MakeEngine, where: str) -> None:
    """A step that sends its own process SIGTERM ends and commits; then ``run_forever`` closes the engine."""

    @workflow("hostile-ends")
    class Flow:
        class Context(BaseModel):
            where: str

        @step(start=True)
        async def begin(self) -> Command:
            return goto(get_context(self.Context).where)

        @step
        async def coroutine(self) -> Command:
            signal.raise_signal(signal.SIGTERM)
            return complete()

        @step
        def thread(self) -> Command:
            signal.raise_signal(signal.SIGTERM)
            return complete()

        @step(thread=False)
        def loop(self) -> Command:
            signal.raise_signal(signal.SIGTERM)
            return complete()

    engine = make_engine(Flow)
    service = asyncio.get_running_loop().create_task(engine.run_forever())
    await wait_until(lambda: repr(engine).startswith("<Engine open"))
    await wait_until(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    run = await engine.start(Flow, where=where)
    await asyncio.wait_for(service, 5)
    await closed(engine)
    async with make_engine(Flow, worker=False) as engine:
        again = await engine.get(run.id)
        assert (again.status, await kinds_of(engine, again)) == ("completed", ["start", "goto", "complete"])


async def test_step_that_closes_the_loop_fails(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """asyncio refuses to close a loop that runs, and that is the step's error."""

    @workflow("hostile-closes-loop", default_retry=ONCE)
    class Flow:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            asyncio.get_running_loop().close()
            return complete()

    async with household(make_engine, clock, Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error) == ("failed", "RuntimeError: Cannot close a running event loop")


async def test_step_that_swallows_everything_costs_its_slot_alone(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Beside a step that swallows every cancellation, beyond its timeout and at the shutdown, all others go on."""
    gate, inside, swallowed = asyncio.Event(), asyncio.Event(), []

    @workflow("hostile-stubborn", default_retry=ONCE)
    class Flow:
        Context = Nothing

        @step(start=True, timeout=SHORT)
        async def begin(self) -> Command:
            inside.set()
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    assert task is not None
                    task.uncancel()
                    swallowed.append(1)
            return complete()

    try:
        async with household(make_engine, clock, Flow, shutdown_timeout=SHORT) as engine:
            run = await run_of(engine, Flow)
            assert run.status == "failed"
            assert (run.error or "").endswith("ran longer than its timeout of 0.05 s.")
            assert swallowed
    finally:
        gate.set()
