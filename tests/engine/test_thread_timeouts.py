"""Timeouts and cancels of sync steps: their threads cannot be stopped, and keep their slots in the pool."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import Retry, complete, get_context, get_run, goto, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, kinds_of, run_of
from tests.support import wait_until


class Nothing(BaseModel):
    """A Context without fields."""


async def test_thread_that_is_too_late_is_left_alone(make_engine: MakeEngine) -> None:
    """A sync step beyond its timeout has failed and is retried, and what its thread returns later is discarded."""
    gate, late = threading.Event(), []

    @workflow("threads-late")
    class Flow:
        class Context(BaseModel):
            attempts: list[int] = []

        @step(start=True, timeout=timedelta(milliseconds=300), retry=Retry(max_attempts=2, base_delay=timedelta(0)))
        def work(self) -> Command:
            run, context = get_run(), get_context(self.Context)
            context.attempts.append(run.attempt)
            if run.attempt == 1:
                gate.wait(10)
                late.append(run.step_key)
                return goto(self.wrong)
            return complete()

        @step
        def wrong(self) -> Command:
            late.append("went on")
            return complete()

    @workflow("threads-later")
    class Quick:
        Context = Nothing

        @step(start=True)
        def end(self) -> Command:
            return complete()

    async with make_engine(Flow, Quick) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.attempt, run.data) == ("completed", 2, {"attempts": [2]})
        error = "Step 'work' of workflow 'threads-late' ran longer than its timeout of 0.3 s."
        rows = await engine.history(run.id)
        assert [(row.kind, row.attempt, row.error) for row in rows] == [
            ("start", 1, None),
            ("retry", 1, error),
            ("wake", 2, None),
            ("complete", 2, None),
        ]
        assert rows[1].duration >= timedelta(milliseconds=300)
        gate.set()
        await wait_until(lambda: late)
        # A thread that began later has ended, so the late one's result has been handled.
        assert (await run_of(engine, Quick)).status == "completed"
        assert await engine.history(run.id) == rows
        assert [key.rsplit(":", 2)[1:] for key in late] == [[str(run.id), "1"]]


async def test_slot_of_a_late_thread_is_not_used_again(make_engine: MakeEngine) -> None:
    """A thread that is beyond its timeout keeps its slot in the pool until it ends."""
    gate, entered = threading.Event(), []

    @workflow("threads-slot", default_retry=Retry(max_attempts=1))
    class Late:
        Context = Nothing

        @step(start=True, timeout=timedelta(milliseconds=300))
        def work(self) -> Command:
            entered.append("late")
            gate.wait(10)
            return complete()

    @workflow("threads-next")
    class Next:
        Context = Nothing

        @step(start=True)
        def work(self) -> Command:
            entered.append("next")
            return complete()

    @workflow("threads-async")
    class Async:
        Context = Nothing

        @step(start=True)
        async def work(self) -> Command:
            return complete()

    async with make_engine(Late, Next, Async, threads=1) as engine:
        late = await run_of(engine, Late)
        assert (late.status, late.error) == (
            "failed",
            "Step 'work' of workflow 'threads-slot' ran longer than its timeout of 0.3 s.",
        )
        run = await engine.start(Next)
        for _ in range(10):
            assert (await run_of(engine, Async)).status == "completed"
        assert entered == ["late"]
        await run.refresh()
        assert run.status == "running"
        gate.set()
        assert (await run.wait(5)).status == "completed"
        assert entered == ["late", "next"]
        assert await kinds_of(engine, late) == ["start", "fail"]
        for _ in range(3):
            assert (await run_of(engine, Next)).status == "completed"


@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_thread_that_never_began_gives_its_slot_back(make_engine: MakeEngine, way: str) -> None:
    """A sync step that is timed out or cancelled before its code runs gives its slot back."""

    @workflow("threads-never", default_retry=Retry(max_attempts=1))
    class Never:
        Context = Nothing

        @step(start=True, timeout=timedelta(microseconds=1) if way == "timeout" else None)
        def work(self) -> Command:
            return complete()

    @workflow("threads-then")
    class Then:
        Context = Nothing

        @step(start=True)
        def work(self) -> Command:
            return complete()

    async with make_engine(Never, Then, threads=1, shutdown_timeout=timedelta(0)) as engine:
        for turns in range(20):
            run = await engine.start(Never)
            if way == "cancel":
                for _ in range(turns // 2):
                    await asyncio.sleep(0)
                await engine.cancel(run.id)
            await run.wait(5)
            then = await engine.start(Then)
            assert (await then.wait(5)).status == "completed"


async def test_waiting_for_a_thread_is_no_part_of_the_timeout(make_engine: MakeEngine) -> None:
    """The timeout of a sync step begins when its code does, and does not include the wait for a free thread."""
    gate, entered = threading.Event(), []

    @workflow("threads-patient", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            taken: bool

        @step(start=True)
        async def begin(self) -> Command:
            return goto(self.take if get_context(self.Context).taken else self.work)

        @step
        def take(self) -> Command:
            entered.append(1)
            gate.wait(10)
            return complete()

        @step(timeout=timedelta(milliseconds=500))
        def work(self) -> Command:
            return complete()

    @workflow("threads-meanwhile", default_retry=Retry(max_attempts=1))
    class Meanwhile:
        Context = Nothing

        @step(start=True, timeout=timedelta(milliseconds=550))
        async def wait(self) -> Command:
            await asyncio.Event().wait()
            return complete()

    async with make_engine(Flow, Meanwhile, threads=1) as engine:
        taken = await engine.start(Flow, taken=True)
        await wait_until(lambda: entered)
        run = await engine.start(Flow, taken=False)
        assert (await run_of(engine, Meanwhile)).status == "failed"  # 0.55 s have passed
        gate.set()
        assert (await taken.wait(5)).status == "completed"
        assert ((await run.wait(5)).status, run.error) == ("completed", None)
