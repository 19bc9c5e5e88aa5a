"""The end of an engine, and its beginning: what becomes of steps that run, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

import aioflow
from aioflow import Engine, StartOptions, complete, errors, get_context, get_run, goto, step, workflow
from aioflow.commands import Command
from aioflow.store import Store
from tests.engine.conftest import MakeEngine, kinds_of, run_of
from tests.support import wait_until

HOUR = timedelta(hours=1)
SHORT = timedelta(milliseconds=30)


@workflow("lifecycle-order")
class Order:
    """Ends at once."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        return complete()


class Slow:
    """A workflow of two steps, the first of which waits until the test lets it go on."""

    def __init__(self) -> None:
        self.gate = gate = asyncio.Event()
        self.seen = seen = []

        @workflow("lifecycle-slow")
        class Flow:
            class Context(BaseModel):
                path: list[str] = []

            @step(start=True)
            async def first(self) -> Command:
                seen.append(("first", get_run().attempt, get_run().step_key))
                get_context(self.Context).path.append("first")
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    seen.append("stopped")
                    raise
                return goto(self.second)

            @step
            async def second(self) -> Command:
                seen.append(("second", get_run().attempt, get_run().step_key))
                get_context(self.Context).path.append("second")
                return complete()

        self.workflow = Flow


async def closed(engine: Engine) -> None:
    """Nothing of the engine is left: no task, and no thread but those of the pool."""
    assert repr(engine).startswith("<Engine closed")
    await wait_until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("aioflow")])
    await wait_until(lambda: not [one for one in threading.enumerate() if "connection" in one.name])


# ---- draining


async def test_close_lets_steps_end_and_begins_no_other(make_engine: MakeEngine) -> None:
    """A step that runs while the engine closes ends and commits; the next is left to the next engine."""
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
    """A sync step that runs while the engine closes ends and commits."""
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
    """Beyond shutdown_timeout a step is stopped; that is no failure: it runs again, with the same key and Context."""
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
    """The engine closes without a thread that does not end; what it returns is dropped, and the step runs again."""
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
    """The engine closes in bounded time without a step that will not stop, whose run the next engine carries on."""
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
    """A step that is told to stop at shutdown and returns a command instead has ended."""
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
    """Callers that go on starting runs do not keep an engine from closing; each start is in the store, or an error."""
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
    """A hundred runs that are cut off by a close, wherever they are, all complete, each step once."""
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
    """After a close there is no task and no thread of the engine."""
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    engine = make_engine(Order, worker=worker)
    async with engine:
        await engine.start(Order)
        await engine.start(Order, StartOptions(delay=HOUR))
    assert asyncio.all_tasks() == tasks
    await wait_until(lambda: {one for one in threading.enumerate() if "AnyIO" not in one.name} <= threads)


async def test_error_in_the_body_comes_through(make_engine: MakeEngine) -> None:
    """A program that crashes inside ``async with engine`` sees its own error, and the engine is closed."""
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


async def test_engine_in_a_cancelled_scope_closes(make_engine: MakeEngine) -> None:
    """An anyio scope that is cancelled around an engine lets it drain: steps that end in time are committed."""
    slow = Slow()
    engine = make_engine(slow.workflow)
    with anyio.CancelScope() as scope:
        async with engine:
            run = await engine.start(slow.workflow)
            await wait_until(lambda: slow.seen)
            asyncio.get_running_loop().call_later(0.02, slow.gate.set)
            scope.cancel()
            await asyncio.Event().wait()
    assert scope.cancelled_caught
    await closed(engine)
    async with make_engine(slow.workflow) as engine:
        assert (await engine.wait(run.id, 5)).data == {"path": ["first", "second"]}
    assert [one[0] for one in slow.seen] == ["first", "second"]


async def test_engine_whose_task_is_cancelled_again_and_again_closes(make_engine: MakeEngine) -> None:
    """A task that is cancelled, also while it closes the engine, closes it to the end and is cancelled then."""
    slow = Slow()
    engine = make_engine(slow.workflow)

    async def service() -> None:
        async with engine:
            await engine.start(slow.workflow)
            await asyncio.Event().wait()

    task = asyncio.ensure_future(service())
    await wait_until(lambda: slow.seen)
    for turns in range(10):
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
    assert not task.done()
    slow.gate.set()
    await asyncio.wait([task])
    assert task.cancelled()
    await closed(engine)
    assert [one[0] for one in slow.seen] == ["first"]


@pytest.mark.parametrize("native", [True, False], ids=["task", "scope"])
async def test_open_that_is_cancelled_leaves_nothing(make_engine: MakeEngine, native: bool) -> None:
    """Wherever an opening is cancelled, it opens or leaves nothing behind, and the engine can be opened again."""
    engine = make_engine(Order)
    before = asyncio.all_tasks()

    async def opens(scope: anyio.CancelScope) -> None:
        with scope:
            async with engine:
                pass

    async def opened(turns: int) -> int:
        """Cancel the opening after so many turns of the loop; how many turns it took in all."""
        scope = anyio.CancelScope()
        task = asyncio.ensure_future(opens(scope))
        taken = 0
        while not task.done():
            if taken == turns:
                _ = task.cancel() if native else scope.cancel()
            taken += 1
            await asyncio.sleep(0)
        return taken

    whole = await opened(-1)
    for part in range(40):
        await opened(whole * part // 40)
        assert repr(engine) == "<Engine closed>"
        await wait_until(lambda: asyncio.all_tasks() == before, timeout=1, what="no task is left")
    async with engine:
        assert (await run_of(engine, Order)).status == "completed"
    await closed(engine)


# ---- ways to open


async def test_lifespan_opens_and_closes_the_engine(make_engine: MakeEngine) -> None:
    """Engine.lifespan is an ASGI lifespan: called with the app, the engine works inside, and is closed after."""
    engine = make_engine(Order)
    for app in (object(), None):
        async with engine.lifespan(app) as state:
            assert state is None
            assert (await run_of(engine, Order)).status == "completed"
        await closed(engine)
    with pytest.raises(ZeroDivisionError):
        async with engine.lifespan(app):
            _ = 1 / 0
    await closed(engine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
async def test_run_forever_works_until_it_is_told_to_end(
    make_engine: MakeEngine, number: signal.Signals, is_open: bool
) -> None:
    """run_forever executes runs until SIGTERM or SIGINT, then closes what it opened; the old handlers are back."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    engine = make_engine(Order)
    if is_open:
        await engine.__aenter__()
    service = asyncio.ensure_future(engine.run_forever())
    await wait_until(lambda: signal.getsignal(number) not in handlers)
    async with make_engine(Order, worker=False) as client:
        run = await client.start(Order)
        assert (await run.wait(5)).status == "completed"
    os.kill(os.getpid(), number)
    async with asyncio.timeout(5):
        await service
    if is_open:
        assert await engine.count() == 1
        await engine.__aexit__(None, None, None)
    await closed(engine)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


async def test_engine_without_arguments_reads_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    """Engine() looks for AIOFLOW_DATABASE_URL when it is opened, not when it is made."""
    engine = Engine()
    for name in ("one", "two"):
        monkeypatch.setenv("AIOFLOW_DATABASE_URL", f"sqlite:///{tmp_path}/{name}.db")
        async with engine:
            assert repr(engine) == f"<Engine open on sqlite:///{tmp_path}/{name}.db>"
            assert await engine.count() == 0
            await engine.start(Order)
        assert (tmp_path / f"{name}.db").exists()
    monkeypatch.setenv("AIOFLOW_DATABASE_URL", "nosuch://host")
    with pytest.raises(errors.BackendUnknown, match=r"No backend is installed for nosuch:// URLs"):
        await engine.__aenter__()


async def test_engine_without_a_url_makes_a_file_here(tmp_path: Path, monkeypatch: Any) -> None:
    """Without argument and environment the store is aioflow.db in the working directory, also for aioflow.engine."""
    monkeypatch.delenv("AIOFLOW_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    async with Engine() as engine:
        run = await run_of(engine, Order)
    assert (tmp_path / "aioflow.db").exists()
    async with aioflow.engine:
        assert await aioflow.engine.get(run.id) == run


async def test_relative_path_has_three_slashes(tmp_path: Path, monkeypatch: Any) -> None:
    """Three slashes name a file below the working directory, four one anywhere: here, the same one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    async with Engine("sqlite:///data/my runs.db") as engine:
        run = await run_of(engine, Order)
    async with Engine(f"sqlite:///{tmp_path}/data/my runs.db", worker=False) as engine:
        assert await engine.get(run.id) == run
    assert (tmp_path / "data" / "my runs.db").exists()


@pytest.mark.parametrize("url", ["memory://", "sqlite://"])
async def test_store_in_memory_is_its_engines_own(url: str) -> None:
    """Each engine on memory://, or on sqlite:// without a file, has its own runs."""
    async with Engine(url) as one, Engine(url) as other:
        assert (await run_of(one, Order)).status == "completed"
        assert (await one.count(), await other.count()) == (1, 0)


async def test_successor_takes_over_at_once(make_engine: MakeEngine, store_url: str | Store) -> None:
    """When a worker closes, another that is open beside it carries its runs on within seconds."""
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
