"""Hostile steps that need a test of their own, run in the household of test_hostile_matrix."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import anyio
import anyio.from_thread
import pytest
from pydantic import BaseModel, model_validator

from aioflow import complete, get_context, goto, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, closed, kinds_of, run_of
from tests.engine.test_hostile_matrix import ONCE, Nothing, household
from tests.support import wait_until

SHORT = timedelta(milliseconds=50)


# ---- what a step awaits


class Garbage:
    """An awaitable that yields what no event loop accepts."""

    def __await__(self) -> Generator[object, None, None]:
        yield 42


async def test_step_that_awaits_an_invalid_awaitable_fails(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Awaiting an object that yields garbage, or a future of another loop, fails the step."""

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


async def test_scope_left_open_cancels_no_later_step(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A cancel scope that a step left open in its task cancels no later step."""

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


@pytest.mark.parametrize("timeout", [None, timedelta(seconds=0.3)], ids=["its own timeout", "a step timeout"])
async def test_step_that_was_left_behind_leaves_the_next_one_its_own(
    make_engine: MakeEngine, clock: ShiftedClock, timeout: timedelta | None
) -> None:
    """A step that ignored its timeout and ends later does not disturb its run's next step and that step's timeouts."""
    free, freed = asyncio.Event(), asyncio.Event()

    @workflow("hostile-left", default_retry=ONCE)
    class Flow:
        class Context(BaseModel):
            timed_out: bool = False

        @step(start=True, timeout=SHORT, on_fail="mend")
        async def stuck(self) -> Command:
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    pass
            freed.set()
            return complete()

        @step(timeout=timeout)
        async def mend(self) -> Command:
            free.set()
            await freed.wait()
            for _ in range(5):
                await asyncio.sleep(0)
            if timeout is not None:
                await asyncio.Event().wait()
            try:
                async with asyncio.timeout(0.1):
                    await asyncio.Event().wait()
            except TimeoutError:
                get_context(self.Context).timed_out = True
            return complete()

    async with household(make_engine, clock, Flow) as engine:
        run = await (await engine.start(Flow)).wait(10)
        assert run.status == ("completed" if timeout is None else "failed")
        if timeout is None:
            assert run.data == {"timed_out": True}
        else:
            assert (run.error or "").endswith("ran longer than its timeout of 0.3 s.")


@dataclass
class Session:
    """Two sessions of one user are equal, whatever their tokens."""

    user: str = "anonymous"
    token: str = field(default="", compare=False)


session: ContextVar[Session] = ContextVar("session")


async def test_context_variables_do_not_leak_to_other_runs(make_engine: MakeEngine) -> None:
    """ContextVars that a step or validator sets are not seen by other runs, even if the value equals the old one."""
    seen: list[str] = []

    @workflow("hostile-sets", default_retry=ONCE)
    class Sets:
        class Context(BaseModel):
            name: str = "alice"

            @model_validator(mode="after")
            def say(self) -> Any:
                if asyncio.current_task().get_name() == "aioflow steps":  # type: ignore[union-attr]
                    session.set(Session(token=f"read by {self.name}"))
                return self

        @step(start=True)
        async def begin(self) -> Command:
            session.set(Session(token="of a step"))
            return complete()

    @workflow("hostile-sees", default_retry=ONCE)
    class Sees:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            seen.append(session.get().token)
            return complete()

    session.set(Session())
    async with make_engine(Sets, Sees) as engine:
        for _ in range(3):
            assert (await run_of(engine, Sets)).status == "completed"
            assert (await run_of(engine, Sees)).status == "completed"
    assert seen == ["", "", ""]


async def test_done_callback_of_a_steps_task_is_called_when_the_step_ends(make_engine: MakeEngine) -> None:
    """A done callback that a step adds to its task is called when the step has ended, not when the engine closes."""
    called: list[str] = []

    @workflow("hostile-callback", default_retry=ONCE)
    class Flow:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lambda _: called.append("ended"))
            return complete()

    async with make_engine(Flow) as engine:
        for number in range(1, 4):
            await run_of(engine, Flow)
            await wait_until(lambda number=number: len(called) == number)


# ---- signals and the loop


async def test_interrupt_within_a_step_is_its_own_failure(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A KeyboardInterrupt that SIGINT raises inside a step is recorded as that step's failure."""

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
    """A step that sends SIGTERM to its own process is committed, and then ``run_forever`` closes the engine."""

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
    """A step that tries to close the running loop fails with asyncio's RuntimeError."""

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
    """If a step swallows every cancellation, at its timeout and at shutdown, other runs go on and the engine closes."""
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
