"""Steps that cancel the engine's own tasks, or break what it needs to record a result: other runs go on."""

from __future__ import annotations

import asyncio
import weakref
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from aioflow import Retry, complete, get_context, get_run, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, closed, kinds_of, run_of
from tests.engine.test_hostile_matrix import ONCE, Nothing, Probe, household
from tests.support import wait_until

BEGUN_AGAIN = "a task of the engine ended unexpectedly, it is started again"
LOOPS = {f"aioflow {name}" for name in ("committer", "worker", "scheduler", "delivery", "listener")}


def cancel_the_engine(*, names: set[str] = LOOPS) -> int:
    """Cancel these tasks of the engine; returns how many."""
    found = [task for task in asyncio.all_tasks() if task.get_name() in names]
    return sum(task.cancel() for task in found)


def is_of_a_run(task: asyncio.Task[object]) -> bool:
    return "Pool._work" in repr(task.get_coro())


@workflow("tasks-cancels", default_retry=ONCE)
class Cancels:
    """Cancels the engine's tasks, and its own if its Context says so."""

    class Context(BaseModel):
        itself: bool
        cancelled: int = 0

    @step(start=True)
    async def begin(self) -> Command:
        context = get_context(self.Context)
        context.cancelled = cancel_the_engine()
        if context.itself:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return goto(self.then)

    @step
    async def then(self) -> Command:
        return complete()


@pytest.mark.parametrize("itself", [False, True], ids=["others", "itself, too"])
async def test_engine_tasks_that_a_step_cancels_are_restarted(
    make_engine: MakeEngine, clock: ShiftedClock, itself: bool
) -> None:
    """The engine's tasks are restarted, each with an error in the log; the step is recorded, and other runs go on."""
    await _cancels_the_engine(make_engine, clock, itself)


async def test_engine_tasks_are_restarted_under_a_task_factory(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """The engine's tasks are also restarted in a loop with a task factory of another library."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coroutine, **named: asyncio.Task(coroutine, loop=loop, **named))
    try:
        await _cancels_the_engine(make_engine, clock, itself=False)
    finally:
        loop.set_task_factory(None)


async def _cancels_the_engine(make_engine: MakeEngine, clock: ShiftedClock, itself: bool) -> None:
    with capture_logs() as logged:
        async with household(make_engine, clock, Cancels) as engine:
            for _ in range(2):
                run = await run_of(engine, Cancels, itself=itself)
                assert (run.status, run.error) == (("failed", "CancelledError") if itself else ("completed", None))
                if not itself:
                    assert run.data == {"itself": False, "cancelled": len(LOOPS)}
                await wait_until(lambda: {task.get_name() for task in asyncio.all_tasks()} >= LOOPS)
    told = [(entry["log_level"], entry["task"]) for entry in logged if entry["event"] == BEGUN_AGAIN]
    assert sorted(told) == sorted([("error", name) for name in LOOPS] * 2)


@workflow("tasks-cancels-all", default_retry=ONCE)
class CancelsAll:
    """Cancels every task of the engine, including those of runs."""

    class Context(BaseModel):
        cancelled: int = 0

    @step(start=True)
    async def begin(self) -> Command:
        tasks = [task for task in asyncio.all_tasks() if task.get_name() in LOOPS or is_of_a_run(task)]
        get_context(self.Context).cancelled = sum(task.cancel() for task in tasks)
        return complete()


#: Set by the step of ``Waits``, which has begun: futures of the test's event loop.
entered: list[asyncio.Future[None]] = []


@workflow("tasks-waits", default_retry=Retry(max_attempts=3, base_delay=timedelta(0), retry_on=(BaseException,)))
class Waits:
    """Retries after any error; its second step blocks in the first attempt until it is cancelled."""

    Context = Nothing

    @step(start=True)
    async def begin(self) -> Command:
        return goto(self.then)

    @step
    async def then(self) -> Command:
        if get_run().attempt == 1:
            entered[-1].set_result(None)
            await asyncio.Event().wait()
        return sleep(timedelta(0), then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def test_runs_whose_tasks_a_step_cancels_end(make_engine: MakeEngine) -> None:
    """If a step cancels the tasks of other runs, an executing one is retried, and all runs end."""
    entered.append(asyncio.Future())
    async with make_engine(CancelsAll, Waits, Probe) as engine:
        waits = await engine.start(Waits)
        await entered[-1]
        hostile = await engine.start(CancelsAll)
        others = [await engine.start(Probe) for _ in range(20)]
        assert (await hostile.wait(5)).status in {"completed", "failed"}
        for run in others:
            assert (await run.wait(10)).status in {"completed", "failed"}
        assert (await waits.wait(10)).status == "completed"
        assert await kinds_of(engine, waits) == ["start", "goto", "retry", "wake", "sleep", "wake", "complete"]
        assert (await engine.stats()).running_here == 0
    await closed(engine)


async def test_task_cancelled_before_it_begins_is_restarted(make_engine: MakeEngine) -> None:
    """A run completes even if its task is cancelled in the same turn of the loop in which it was created."""

    @workflow("tasks-early", default_retry=ONCE)
    class Early:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    cancelled: list[asyncio.Task[object]] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        if is_of_a_run(task) and len(cancelled) % 4 < 3:
            cancelled.append(task)
            task.cancel()
        elif is_of_a_run(task):
            cancelled.clear()
            spared.append(task)
        return task

    spared: list[asyncio.Task[object]] = []
    loop = asyncio.get_running_loop()
    async with make_engine(Early) as engine:
        loop.set_task_factory(factory)
        try:
            for _ in range(5):
                run = await run_of(engine, Early)
                assert run.status == "completed"
                assert await kinds_of(engine, run) == ["start", "complete"]
        finally:
            loop.set_task_factory(None)
    assert len(spared) == 5


async def test_step_that_cancels_even_the_closing_lets_the_engine_close(make_engine: MakeEngine) -> None:
    """If the last step of a closing engine cancels all its tasks, the engine closes, and can be opened again."""

    @workflow("tasks-last", default_retry=ONCE)
    class Last:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            begun.set()
            await opened.wait()
            found.append(cancel_the_engine(names={*LOOPS, "aioflow closing"}))
            return complete()

    begun, opened, found = asyncio.Event(), asyncio.Event(), list[int]()
    engine = make_engine(Last, Probe)
    async with engine:
        run = await engine.start(Last)
        await begun.wait()
        asyncio.get_running_loop().call_later(0.02, opened.set)
    await closed(engine)
    assert found == [len(LOOPS) + 1]
    async with make_engine(Last, Probe) as engine:
        again = await engine.get(run.id)
        assert (await again.wait(5)).status == "completed"
        assert (await run_of(engine, Probe)).status == "completed"


async def test_loop_that_cancels_all_its_tasks_fails_no_run(make_engine: MakeEngine) -> None:
    """If not a step but the program cancels all tasks, no run fails, and the next engine executes it."""

    @workflow("tasks-closed")
    class Flow:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            begun.append(1)
            if len(begun) == 1:
                await asyncio.Event().wait()
            return complete()

    begun: list[int] = []
    with capture_logs() as logged:
        async with make_engine(Flow) as engine:
            run = await engine.start(Flow)
            await wait_until(lambda: begun)
            found = [task for task in asyncio.all_tasks() if task.get_name() in LOOPS or is_of_a_run(task)]
            assert len(found) == len(LOOPS) + 1
            for task in found:
                task.cancel()
        await closed(engine)
    assert BEGUN_AGAIN not in {entry["event"] for entry in logged}
    async with make_engine(Flow) as engine:
        again = await engine.wait(run.id, 5)
        assert (again.status, begun) == ("completed", [1, 1])
        assert await kinds_of(engine, again) == ["start", "complete"]


# ---- what cannot be followed or recorded


@workflow("tasks-keeps", default_retry=ONCE)
class Keeps:
    """Keeps the task of its step, as a cancel button would, or as the key of a session."""

    class Context(BaseModel):
        waits: bool = False
        session: int = 0

    kept: ClassVar[dict[asyncio.Task[object], int]] = {}
    gate: ClassVar[asyncio.Event]
    began: ClassVar[asyncio.Event]

    @step(start=True)
    async def begin(self) -> Command:
        context = get_context(self.Context)
        task = asyncio.current_task()
        assert task is not None
        context.session = self.kept.setdefault(task, get_run().id)
        if context.waits:
            self.began.set()
            await self.gate.wait()
        return complete()


async def test_task_that_a_step_keeps_is_not_reused(make_engine: MakeEngine) -> None:
    """A task that a step has kept is not reused for other runs, so that cancelling it later harms none."""
    Keeps.kept.clear()
    Keeps.gate, Keeps.began = asyncio.Event(), asyncio.Event()
    async with make_engine(Keeps) as engine:
        for _ in range(3):
            first = await run_of(engine, Keeps)
            assert first.data["session"] == first.id
        waits = await engine.start(Keeps, waits=True)
        await asyncio.wait_for(Keeps.began.wait(), 5)
        running = [task for task, run_id in Keeps.kept.items() if run_id == waits.id]
        assert len(running) == 1
        for task in Keeps.kept.keys() - running:
            task.cancel()
        Keeps.gate.set()
        ended = await waits.wait(5)
        assert (ended.status, ended.data["session"]) == ("completed", ended.id)
    Keeps.kept.clear()


@workflow("tasks-notes", default_retry=ONCE)
class Notes:
    """Keeps only weak references to the tasks of its steps."""

    class Context(BaseModel):
        pass

    seen: ClassVar[list[weakref.ref[asyncio.Task[object]]]] = []

    @step(start=True)
    async def begin(self) -> Command:
        self.note()
        return goto(self.then)

    @step
    async def then(self) -> Command:
        await asyncio.sleep(0)
        self.note()
        return complete()

    def note(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.seen.append(weakref.ref(task))


async def test_task_that_no_step_keeps_is_reused(make_engine: MakeEngine) -> None:
    """The tasks of steps that are not referenced any more are reused for other runs."""
    Notes.seen.clear()
    async with make_engine(Notes) as engine:
        for _ in range(20):
            await run_of(engine, Notes)
        assert len(Notes.seen) == 40
        assert len({id(task) for task in Notes.seen}) <= 4


@workflow("tasks-tampered", default_retry=ONCE)
class Tampered:
    """Returns a command with a value that the public function would refuse."""

    Context = Nothing

    @step(start=True)
    async def begin(self) -> Command:
        command = sleep(timedelta(hours=1))
        object.__setattr__(command, "duration", "an hour")
        return command


async def test_command_that_was_tampered_with_fails_its_step(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A command that was tampered with fails its step, which is logged once, and no other run is affected."""
    with capture_logs() as logged:
        async with household(make_engine, clock, Tampered) as engine:
            run = await run_of(engine, Tampered)
            assert run.status == "failed"
            assert "TypeError" in (run.error or "")
            assert await kinds_of(engine, run) == ["start", "fail"]
    told = [entry for entry in logged if entry["event"] == "what a step returned cannot be followed"]
    assert [(entry["run_id"], entry["step"]) for entry in told] == [(run.id, "begin")]


async def test_run_that_cannot_even_fail_is_left_as_it_is(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """If a broken retry policy makes it impossible to record a failure, an error is logged and the run left alone."""
    policy = Retry(max_attempts=2)

    @workflow("tasks-ruined", default_retry=policy)
    class Ruined:
        Context = Nothing

        @step(start=True)
        async def begin(self) -> Command:
            object.__setattr__(policy, "max_attempts", "many")
            raise ValueError("of a step")

    with capture_logs() as logged:
        async with household(make_engine, clock, Ruined) as engine:
            run = await engine.start(Ruined)
            bug = "a bug in aioflow: run left as it is"
            await wait_until(lambda: [entry for entry in logged if entry["event"] == bug])
            assert (await engine.get(run.id)).status == "running"
            assert await kinds_of(engine, run) == ["start"]
            object.__setattr__(policy, "max_attempts", 1)  # the policy is valid again
            await engine.cancel(run.id)
    told = [entry for entry in logged if entry["event"] == bug]
    assert told[0]["run_id"] == run.id
    assert "TypeError" in told[0]["exception"]
