"""The timeout of a whole run, and what happens when it is over, on every store."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Failure,
    Retry,
    StartOptions,
    WorkflowRun,
    complete,
    get_context,
    get_run,
    goto,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of, moved_on

HOUR = timedelta(hours=1)
WAYS = ["sleep", "wait", "timed wait", "retry"]


class Trouble(Exception):
    """The error that steps raise here."""


class Parks:
    """Parks in the way that its Context says."""

    class Context(BaseModel):
        way: str
        path: list[str] = []
        deadlines: list[datetime | None] = []

    @step(start=True, retry=Retry(base_delay=10 * HOUR, max_delay=10 * HOUR))
    async def park(self) -> Command:
        context = get_context(self.Context)
        context.path.append("park")
        context.deadlines.append(get_run().deadline)
        match context.way:
            case "sleep":
                return sleep(10 * HOUR, then=self.end)
            case "wait":
                return wait.for_signal("paid", then=self.end)
            case "timed wait":
                return wait.for_signal("paid", timeout=10 * HOUR, on_timeout=self.end, then=self.end)
            case _:
                raise Trouble("for a while")

    @step
    async def end(self) -> Command:
        get_context(self.Context).path.append("end")
        return complete()

    @step
    async def late(self) -> Command:
        run, context = get_run(), get_context(self.Context)
        context.path.append("timed out" if run.timed_out else "late")
        context.deadlines.append(run.deadline)
        return sleep(10 * HOUR, then=self.end)

    @step
    async def rescue(self, failure: Failure) -> Command:
        assert get_run().failure == failure
        return complete(told=[failure.step, failure.error, failure.kind], deadline=get_run().deadline)


@workflow("run-timeout", timeout=2 * HOUR, on_timeout="late")
class Sent(Parks):
    """Goes to ``late`` at its deadline."""


@workflow("run-timeout-fails", timeout=2 * HOUR)
class Fails(Parks):
    """Fails at its deadline."""


@workflow("run-timeout-on-fail", timeout=2 * HOUR, on_fail="rescue")
class Rescued(Parks):
    """Goes to its on_fail at its deadline."""


async def parked(run: WorkflowRun[Any]) -> None:
    await run.wait(5, until="parked")
    assert run.status == "waiting", run.error


@pytest.mark.parametrize("way", WAYS)
async def test_run_out_of_time_goes_to_on_timeout_once(make_engine: MakeEngine, clock: ShiftedClock, way: str) -> None:
    """At its deadline a parked run, however it is parked, goes to on_timeout, where it has no deadline."""
    async with make_engine(Sent) as engine:
        run = await engine.start(Sent, way=way)
        await parked(run)
        assert run.deadline == run.created_at + 2 * HOUR == run.wake_at
        assert run.on_timeout == ("end" if way == "timed wait" else None)
        clock.shift(2 * HOUR)
        await moved_on(run)
        await parked(run)
        assert (run.current_step, run.deadline) == ("late", None)
        assert run.wake_at == run.updated_at + 10 * HOUR
        clock.shift(10 * HOUR)
        await run.wait(5)
        assert (run.status, run.error) == ("completed", None)
        assert run.data["path"] == [*(["park"] if way != "retry" else []), "timed out", "end"]
        assert run.context.deadlines[-1] is None
        if way != "retry":
            assert run.context.deadlines[0] == run.created_at + 2 * HOUR
        kinds = await kinds_of(engine, run)
        assert kinds[2:] == ["wake", "timeout", "sleep", "wake", "complete"]


@pytest.mark.parametrize("way", WAYS)
async def test_run_out_of_time_without_on_timeout_has_failed(
    make_engine: MakeEngine, clock: ShiftedClock, way: str
) -> None:
    """Without on_timeout, the run fails at its deadline, and the error names the step."""
    async with make_engine(Fails) as engine:
        run = await engine.start(Fails, way=way)
        await parked(run)
        clock.shift(2 * HOUR)
        await run.wait(5)
        text = f"Run {run.id} of workflow 'run-timeout-fails' was out of time at step 'park'."
        assert (run.status, run.error, run.current_step) == ("failed", text, "park")
        assert (await kinds_of(engine, run))[2:] == ["wake", "fail"]
        assert (run.waiting_for, run.wake_at) == (None, None)


@pytest.mark.parametrize("way", WAYS)
async def test_run_out_of_time_goes_to_the_on_fail_of_the_workflow(
    make_engine: MakeEngine, clock: ShiftedClock, way: str
) -> None:
    """Without on_timeout, the run goes to the workflow's on_fail at its deadline, and has no deadline there."""
    async with make_engine(Rescued) as engine:
        run = await engine.start(Rescued, way=way)
        await parked(run)
        clock.shift(2 * HOUR)
        await run.wait(5)
        text = f"Run {run.id} of workflow 'run-timeout-on-fail' was out of time at step 'park'."
        assert (run.status, run.data["told"], run.data["deadline"]) == ("completed", ["park", text, "timeout"], None)
        assert (await kinds_of(engine, run))[2:] == ["wake", "on_fail", "complete"]


@pytest.mark.parametrize("way", WAYS)
async def test_run_whose_time_is_over_while_nobody_works_goes_on_later(
    make_engine: MakeEngine, clock: ShiftedClock, way: str
) -> None:
    """If the deadline passes while no engine is open, the next one sends the run to on_timeout."""
    async with make_engine(Sent) as engine:
        run = await engine.start(Sent, way=way)
        await parked(run)
    clock.shift(100 * HOUR)
    async with make_engine(Sent) as engine:
        found = await engine.get(run.id)
        if found.current_step != "late":
            await moved_on(found)
        await parked(found)
        assert found.current_step == "late"
        assert found.context.path[-1] == "timed out"


async def test_time_of_a_delayed_run_counts_from_its_start(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """The timeout of a delayed run counts from the end of its delay."""
    async with make_engine(Sent) as engine:
        run = await engine.start(Sent, StartOptions(delay=5 * HOUR), way="sleep")
        assert (run.waiting_for, run.wake_at, run.deadline) == (
            "start",
            run.created_at + 5 * HOUR,
            run.created_at + 7 * HOUR,
        )
        clock.shift(5 * HOUR)
        await moved_on(run)
        await parked(run)
        assert (run.current_step, run.waiting_for, run.wake_at) == ("park", "sleep", run.deadline)
        clock.shift(2 * HOUR)
        await moved_on(run)
        await parked(run)
        assert run.current_step == "late"


async def test_running_step_ends_before_the_run_is_sent_on(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A step that runs at the deadline ends, but the next one does not begin."""
    gate, inside = asyncio.Event(), asyncio.Event()
    seen = []

    @workflow("run-timeout-running", timeout=HOUR, on_timeout="late")
    class Flow:
        class Context(BaseModel):
            finish: bool

        @step(start=True)
        async def work(self) -> Command:
            inside.set()
            await gate.wait()
            seen.append("work")
            return complete() if get_context(self.Context).finish else goto(self.more)

        @step
        async def more(self) -> Command:
            seen.append("more")
            return complete()

        @step
        async def late(self) -> Command:
            seen.append("late")
            assert get_run().timed_out
            return goto(self.after)

        @step
        async def after(self) -> Command:
            assert not get_run().timed_out
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow, finish=False)
        await inside.wait()
        clock.shift(2 * HOUR)
        gate.set()
        await run.wait(5)
        assert (run.status, seen) == ("completed", ["work", "late"])
        assert await kinds_of(engine, run) == ["start", "goto", "timeout", "goto", "complete"]
        gate.clear()
        inside.clear()
        run = await engine.start(Flow, finish=True)
        await inside.wait()
        clock.shift(2 * HOUR)
        gate.set()
        await run.wait(5)
        assert (run.status, await kinds_of(engine, run)) == ("completed", ["start", "complete"])


async def test_step_that_fails_out_of_time_is_not_tried_again(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """An attempt that fails after the deadline is not retried: the run goes to on_timeout."""
    gate, inside = asyncio.Event(), asyncio.Event()
    seen = []

    @workflow("run-timeout-retry", timeout=HOUR, on_timeout="late")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True, retry=Retry(base_delay=timedelta(0)))
        async def work(self) -> Command:
            seen.append("work")
            inside.set()
            await gate.wait()
            raise Trouble

        @step
        async def late(self) -> Command:
            seen.append("late")
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await inside.wait()
        clock.shift(2 * HOUR)
        gate.set()
        await run.wait(5)
        assert (run.status, seen) == ("completed", ["work", "late"])


async def test_signal_before_the_deadline_resumes_the_run(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A signal that came before the deadline resumes the run."""
    async with make_engine(Sent) as engine:
        run = await engine.start(Sent, way="wait")
        await parked(run)
        clock.shift(HOUR)
        receipt = await engine.signal("paid", run_id=run.id)
        assert receipt.state == "delivered"
        await run.wait(5)
        assert (run.status, run.data["path"]) == ("completed", ["park", "end"])


async def test_wait_that_ends_first_goes_to_its_own_on_timeout(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A wait that times out before the deadline goes to its own on_timeout, and the run's deadline stays."""

    @workflow("run-timeout-longer", timeout=3 * HOUR, on_timeout="late")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", timeout=HOUR, on_timeout=self.remind, then=self.end)

        @step
        async def remind(self) -> Command:
            assert get_run().timed_out
            assert get_run().deadline is not None
            return wait.for_signal("paid", then=self.end)

        @step
        async def end(self) -> Command:
            return complete(late=False)

        @step
        async def late(self) -> Command:
            return complete(late=True)

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await parked(run)
        assert (run.on_timeout, run.wake_at) == ("remind", run.updated_at + HOUR)
        clock.shift(HOUR)
        await moved_on(run)
        await parked(run)
        assert (run.current_step, run.on_timeout, run.wake_at) == ("remind", None, run.deadline)
        clock.shift(2 * HOUR)
        await run.wait(5)
        assert (run.status, run.data) == ("completed", {"late": True})


async def test_cancelled_run_has_no_timeout(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A run that was cancelled before its deadline stays cancelled."""
    async with make_engine(Sent) as engine:
        run = await engine.start(Sent, way="wait")
        await parked(run)
        assert await engine.cancel(run.id, "enough")
        clock.shift(10 * HOUR)
        assert await engine.process_scheduled() == 0
        await run.refresh()
        assert (run.status, run.error, run.wake_at) == ("cancelled", "enough", None)


async def test_run_without_a_timeout_has_no_deadline(make_engine: MakeEngine) -> None:
    """A run of a workflow without a timeout has no deadline."""

    @workflow("run-timeout-none")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            assert get_run().deadline is None
            assert get_run().failure is None
            return wait.for_signal("paid", then=self.ask)

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await parked(run)
        assert (run.deadline, run.wake_at) == (None, None)
