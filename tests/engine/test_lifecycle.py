"""Closing an engine: what happens to steps that run, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import StartOptions, complete, errors, get_context, get_run, goto, step, workflow
from aioflow.commands import Command
from aioflow.store import Store
from tests.engine.conftest import MakeEngine, Slow, closed, kinds_of, run_of
from tests.support import wait_until

HOUR = timedelta(hours=1)
SHORT = timedelta(milliseconds=30)


@workflow("lifecycle-order")
class Order:
    """A workflow that ends at once."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        return complete()


# ---- draining


async def test_close_lets_steps_end_and_begins_no_other(make_engine: MakeEngine) -> None:
    """A step that runs while the engine closes is committed, and the next step runs in the next engine."""
    slow = Slow()
    engine = make_engine(slow.workflow)
    async with engine:
        run = await engine.start(slow.workflow)
        await wait_until(lambda: slow.seen)
        closing = asyncio.ensure_future(engine.__aexit__(None, None, None))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not closing.done()
        slow.gate.set()
        await closing
    await closed(engine)
    assert [name for name, _, _ in slow.seen] == ["first"]
    async with make_engine(slow.workflow, worker=False) as client:
        run = await client.get(run.id)
        assert (run.status, run.current_step, run.row.owner) == ("running", "second", None)
        assert (run.row.crashes, run.data) == (0, {"path": ["first"]})
    async with make_engine(slow.workflow) as engine:
        run = await engine.wait(run.id, 5)
        assert (run.status, run.data) == ("completed", {"path": ["first", "second"]})
        assert await kinds_of(engine, run) == ["start", "goto", "complete"]
    [(_, _, first), (name, attempt, second)] = slow.seen
    assert (name, attempt) == ("second", 1)
    assert second.rpartition(":") == (first.rpartition(":")[0], ":", "2")


async def test_close_lets_threads_end(make_engine: MakeEngine) -> None:
    """A sync step that runs while the engine closes is committed."""
    gate, inside = threading.Event(), threading.Event()

    @workflow("lifecycle-thread")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def work(self) -> Command:
            inside.set()
            gate.wait(10)
            return complete(done=True)

    engine = make_engine(Flow)
    async with engine:
        run = await engine.start(Flow)
        await wait_until(inside.is_set)
        asyncio.get_running_loop().call_later(0.02, gate.set)
    await closed(engine)
    async with make_engine(Flow, worker=False) as client:
        assert (await client.get(run.id)).data == {"done": True}


async def test_step_that_takes_too_long_is_stopped_and_stays_as_it_was(make_engine: MakeEngine) -> None:
    """A step that runs beyond shutdown_timeout is stopped, does not count as failed, and runs again with its key."""
    slow = Slow()
    engine = make_engine(slow.workflow, shutdown_timeout=SHORT)
    async with engine:
        run = await engine.start(slow.workflow)
        await wait_until(lambda: slow.seen)
    await closed(engine)
    assert slow.seen[1:] == ["stopped"]
    async with make_engine(slow.workflow, worker=False) as client:
        after = await client.get(run.id)
        assert (after.status, after.current_step, after.row.owner, after.row.seq) == ("running", "first", None, 1)
        assert (after.data, after.attempt, after.row.crashes) == ({"path": []}, 1, 0)
        assert await kinds_of(client, run) == ["start"]
    slow.gate.set()
    async with make_engine(slow.workflow) as engine:
        assert (await engine.wait(run.id, 5)).data == {"path": ["first", "second"]}
    assert slow.seen[2] == slow.seen[0]


async def test_thread_that_takes_too_long_is_left_behind(make_engine: MakeEngine) -> None:
    """The engine closes without a thread that does not end; its result is discarded, and the step runs again."""
    gate, seen = threading.Event(), []

    @workflow("lifecycle-late-thread")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def work(self) -> Command:
            seen.append(get_run().step_key)
            if len(seen) == 1:
                gate.wait(10)
                seen.append("late")
                return complete(by="late")
            return complete(by="again")

    engine = make_engine(Flow, shutdown_timeout=SHORT)
    async with engine:
        run = await engine.start(Flow)
        await wait_until(lambda: seen)
    await closed(engine)
    async with make_engine(Flow) as engine:
        run = await engine.wait(run.id, 5)
        gate.set()
        await wait_until(lambda: "late" in seen)
        assert (await run_of(engine, Flow)).status == "completed"
        await run.refresh()
        assert (run.data, await kinds_of(engine, run)) == ({"by": "again"}, ["start", "complete"])
    assert seen[0] == seen[1]


async def test_step_that_ignores_its_cancellation_does_not_keep_the_engine(make_engine: MakeEngine) -> None:
    """The engine closes in bounded time even if a step ignores its cancellation, and the next engine runs it again."""
    gate, seen = asyncio.Event(), []

    @workflow("lifecycle-stubborn")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            seen.append(get_run().step_key)
            while len(seen) == 1:
                try:
                    await gate.wait()
                    seen.append("late")
                except asyncio.CancelledError:
                    pass
            return complete()

    loop = asyncio.get_running_loop()
    engine = make_engine(Flow, shutdown_timeout=SHORT)
    async with engine:
        run = await engine.start(Flow)
        await wait_until(lambda: seen)
        before = loop.time()
    assert loop.time() - before < 4
    assert repr(engine) == "<Engine closed>"
    seen.append("the next engine")
    async with make_engine(Flow) as engine:
        run = await engine.wait(run.id, 5)
        assert (run.status, await kinds_of(engine, run)) == ("completed", ["start", "complete"])
        gate.set()
        await wait_until(lambda: seen[-1] == "late" or len(seen) > 3)
        assert await kinds_of(engine, run) == ["start", "complete"]
    assert seen[2] == seen[0]


async def test_step_that_ends_well_when_it_is_stopped_is_committed(make_engine: MakeEngine) -> None:
    """A step that returns a command when it is cancelled at shutdown is committed."""
    inside = asyncio.Event()

    @workflow("lifecycle-graceful")
    class Flow:
        class Context(BaseModel):
            saved: bool = False

        @step(start=True)
        async def work(self) -> Command:
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                get_context(self.Context).saved = True
            return complete()

    engine = make_engine(Flow, shutdown_timeout=SHORT)
    async with engine:
        run = await engine.start(Flow)
        await inside.wait()
    await closed(engine)
    async with make_engine(Flow, worker=False) as client:
        run = await client.get(run.id)
        assert run.data == {"saved": run.status == "completed"}
        assert await kinds_of(client, run) in (["start", "complete"], ["start"])


async def test_starts_that_race_a_close_are_whole_or_refused(make_engine: MakeEngine) -> None:
    """Callers that keep starting runs do not keep an engine from closing, and each start is stored or raises."""
    engine = make_engine(Order, max_running=1)
    began: list[int] = []

    async def caller(turns: int) -> BaseException:
        for _ in range(turns):
            await asyncio.sleep(0)
        while True:
            try:
                began.append((await engine.start(Order)).id)
            except errors.AioflowError as error:
                return error

    async with engine:
        callers = [asyncio.ensure_future(caller(number)) for number in range(30)]
        await wait_until(lambda: len(began) > 50)
        before = len(began)
        closing = asyncio.ensure_future(engine.__aexit__(None, None, None))
        try:
            done, _ = await asyncio.wait([closing], timeout=5)
            assert done, "the engine has not closed within 5 s"
            assert len(began) - before < 1000, "the close went on for as long as the callers did"
            refused = await asyncio.wait_for(asyncio.gather(*callers), 5)
        finally:
            for task in callers:
                task.cancel()
            await closing
    await closed(engine)
    assert {type(error) for error in refused} <= {errors.EngineClosed, errors.StoreUnavailable}
    async with make_engine(Order, worker=False) as client:
        stored = {run.id async for run in client.iter_runs()}
        assert set(began) <= stored
        assert len(began) == len(set(began))


async def test_many_runs_outlive_a_restart_in_the_middle(make_engine: MakeEngine) -> None:
    """A hundred runs that are interrupted by a close all complete in the next engine, with each step run once."""
    steps: list[tuple[int, int]] = []

    @workflow("lifecycle-many")
    class Flow:
        class Context(BaseModel):
            at: int = 0

        @step(start=True)
        async def work(self) -> Command:
            context = get_context(self.Context)
            steps.append((get_run().id, context.at))
            context.at += 1
            await asyncio.sleep(0)
            return goto(self.work) if context.at < 10 else complete()

    async with make_engine(Flow) as engine:
        runs = await asyncio.gather(*(engine.start(Flow) for _ in range(100)))
        await wait_until(lambda: len(steps) > 300)
    assert len(steps) < 1000
    async with make_engine(Flow) as engine:
        for run in runs:
            assert (await engine.wait(run.id, 10)).data == {"at": 10}
    assert len(steps) == len(set(steps)) == 1000


# ---- nothing is left


@pytest.mark.parametrize("worker", [True, False])
async def test_nothing_is_left_after_a_close(make_engine: MakeEngine, worker: bool) -> None:
    """After a close, no task and no thread of the engine is left."""
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    engine = make_engine(Order, worker=worker)
    async with engine:
        await engine.start(Order)
        await engine.start(Order, StartOptions(delay=HOUR))
    assert asyncio.all_tasks() == tasks
    await wait_until(lambda: {one for one in threading.enumerate() if "AnyIO" not in one.name} <= threads)


async def test_error_in_the_body_comes_through(make_engine: MakeEngine) -> None:
    """An error in the body of ``async with engine`` is raised unchanged, and the engine is closed."""
    slow = Slow()
    engine = make_engine(slow.workflow, shutdown_timeout=SHORT)

    async def program() -> None:
        async with engine:
            await engine.start(slow.workflow)
            await wait_until(lambda: slow.seen)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await program()
    await closed(engine)


async def test_successor_takes_over_at_once(make_engine: MakeEngine, store_url: str | Store) -> None:
    """When a worker closes, another open worker runs its runs within seconds."""
    slow = Slow()
    first, second = make_engine(slow.workflow, shutdown_timeout=SHORT), make_engine(slow.workflow)
    async with first:
        run = await first.start(slow.workflow)
        await wait_until(lambda: slow.seen)
        async with second:
            await first.__aexit__(None, None, None)
            slow.gate.set()
            assert (await second.wait(run.id, 4)).status == "completed"
    assert slow.seen[2] == slow.seen[0]
