"""The timeout of an async step: the step is cancelled, and the attempt has failed."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from aioflow import Retry, complete, get_context, get_run, goto, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, kinds_of, run_of

SHORT = timedelta(milliseconds=30)
TWICE = Retry(max_attempts=2, base_delay=timedelta(0))


async def test_step_that_takes_too_long_is_cancelled_and_tried_again(make_engine: MakeEngine) -> None:
    """A step beyond its timeout gets a CancelledError, and the next attempt has the whole timeout again."""
    seen = []

    @workflow("timeouts-retried")
    class Flow:
        class Context(BaseModel):
            changed: int = 0

        @step(start=True, timeout=SHORT, retry=TWICE)
        async def work(self) -> Command:
            run = get_run()
            get_context(self.Context).changed += 1
            if run.attempt == 2:
                return complete()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append((run.attempt, run.step_key))
                raise
            raise AssertionError

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.attempt, run.data) == ("completed", 2, {"changed": 1})
        assert [attempt for attempt, _ in seen] == [1]
        [_, retried, *_] = await engine.history(run.id)
        assert retried.error == "Step 'work' of workflow 'timeouts-retried' ran longer than its timeout of 0.03 s."
        assert retried.duration >= SHORT
        assert await kinds_of(engine, run) == ["start", "retry", "wake", "complete"]


async def test_run_whose_step_always_takes_too_long_fails(make_engine: MakeEngine) -> None:
    """Timeouts count as failed attempts, and the last one fails the run with StepTimeout and the step's traceback."""

    @workflow("timeouts-failed")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True, timeout=SHORT, retry=TWICE)
        async def work(self) -> Command:
            return await self.dawdle()

        async def dawdle(self) -> Command:
            await asyncio.Event().wait()
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.attempt) == ("failed", 3)
        assert run.error == "Step 'work' of workflow 'timeouts-failed' ran longer than its timeout of 0.03 s."
        assert "in dawdle" in run.traceback
        assert "StepTimeout" in run.traceback
        assert await kinds_of(engine, run) == ["start", "retry", "wake", "fail"]


async def test_step_within_its_timeout_does_not_notice(make_engine: MakeEngine) -> None:
    """A step that ends in time is not disturbed, and its timeout does not affect the steps after it."""

    @workflow("timeouts-within", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            rounds: int = 0

        @step(start=True, timeout=timedelta(seconds=20))
        async def work(self) -> Command:
            context = get_context(self.Context)
            context.rounds += 1
            await asyncio.sleep(0)
            return goto(self.work) if context.rounds < 10 else goto(self.outlast)

        @step
        async def outlast(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        assert (await run_of(engine, Flow)).data == {"rounds": 10}


async def test_step_that_swallows_its_timeout_has_timed_out(make_engine: MakeEngine) -> None:
    """A step that catches the cancellation of its timeout and returns has still timed out."""
    went_on = []

    @workflow("timeouts-swallowed", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            changed: bool = False

        @step(start=True, timeout=SHORT)
        async def work(self) -> Command:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                get_context(self.Context).changed = True
            return goto(self.wrong)

        @step
        async def wrong(self) -> Command:
            went_on.append(1)
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.data, went_on) == ("failed", {"changed": False}, [])
        assert run.error.endswith("ran longer than its timeout of 0.03 s.")


async def test_error_on_the_way_out_of_a_timeout_is_a_timeout(make_engine: MakeEngine) -> None:
    """A step that raises another error when its timeout cancels it has still timed out."""

    @workflow("timeouts-error", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True, timeout=SHORT)
        async def work(self) -> Command:
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("cleaning up")

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error.split(" ran ")[1]) == ("failed", "longer than its timeout of 0.03 s.")


async def test_run_goes_on_without_a_step_that_does_not_stop(make_engine: MakeEngine) -> None:
    """A step that ignores its timeout is left behind after a second: its run is retried, and other runs go on."""
    gate, entered, left = asyncio.Event(), [], []

    @workflow("timeouts-stubborn")
    class Flow:
        class Context(BaseModel):
            marks: list[int] = []

        @step(start=True, timeout=SHORT, retry=TWICE)
        async def work(self) -> Command:
            attempt = get_run().attempt
            entered.append(attempt)
            context = get_context(self.Context)
            context.marks.append(attempt)
            while attempt == 1 and not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    context.marks.append(99)
            left.append(attempt)
            return complete()

    async with make_engine(Flow, max_running=2) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.attempt, run.data) == ("completed", 2, {"marks": [2]})
        assert (entered, left) == ([1, 2], [2])
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start", "retry", "wake", "complete"]
        assert rows[1].error.endswith("ran longer than its timeout of 0.03 s.")
        gate.set()
    assert left == [2, 1]


async def test_timeouts_within_a_step_are_the_steps_own(make_engine: MakeEngine) -> None:
    """asyncio.timeout, task groups and cancelled children inside a step work as usual."""

    @workflow("timeouts-own", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            path: list[str] = []

        @step(start=True, timeout=timedelta(seconds=20))
        async def first(self) -> Command:
            context = get_context(self.Context)
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            except TimeoutError:
                context.path.append("timeout")
            child = asyncio.ensure_future(asyncio.Event().wait())
            await asyncio.sleep(0)
            child.cancel()
            try:
                await child
            except asyncio.CancelledError:
                context.path.append("child")
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.Event().wait())
                    group.create_task(self.stumble())
            except* ZeroDivisionError:
                context.path.append("group")
            return goto(self.second)

        async def stumble(self) -> float:
            return 1 / 0

        @step
        async def second(self) -> Command:
            await asyncio.sleep(0)
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error, run.data) == ("completed", None, {"path": ["timeout", "child", "group"]})
