"""Where steps run: async ones on the loop, sync ones in a bounded pool of threads."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

from pydantic import BaseModel

from aioflow import Retry, complete, get_context, get_run, goto, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, run_of
from tests.support import wait_until


class Nothing(BaseModel):
    """A Context without fields."""


class Crowd:
    """Counts the threads that are inside now, and the most that ever were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = self.most = self.entered = 0

    def enter(self) -> None:
        with self._lock:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1


async def test_sync_steps_run_in_threads(make_engine: MakeEngine) -> None:
    """An async step runs on the loop, a sync one in a thread, and a sync one with thread=False on the loop."""
    threads: dict[str, int] = {}

    @workflow("threads-where")
    class Flow:
        class Context(BaseModel):
            path: list[str] = []

        def note(self) -> None:
            run = get_run()
            threads[run.step] = threading.get_ident()
            get_context(self.Context).path.append(run.step)

        @step(start=True)
        async def on_the_loop(self) -> Command:
            self.note()
            return goto(self.in_a_thread)

        @step
        def in_a_thread(self) -> Command:
            self.note()
            return goto(self.in_a_thread_too)

        @step(thread=True)
        def in_a_thread_too(self) -> Command:
            self.note()
            return goto(self.on_the_loop_too)

        @step(thread=False)
        def on_the_loop_too(self) -> Command:
            self.note()
            asyncio.get_running_loop()
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert run.status == "completed"
        assert run.data == {"path": ["on_the_loop", "in_a_thread", "in_a_thread_too", "on_the_loop_too"]}
    here = threading.get_ident()
    assert {name: ident == here for name, ident in threads.items()} == {
        "on_the_loop": True,
        "in_a_thread": False,
        "in_a_thread_too": False,
        "on_the_loop_too": True,
    }


async def test_loop_goes_on_while_a_thread_works(make_engine: MakeEngine) -> None:
    """A sync step that blocks its thread does not hold up other runs."""
    gate = threading.Event()

    @workflow("threads-blocking")
    class Flow:
        Context = Nothing

        @step(start=True)
        def block(self) -> Command:
            gate.wait(10)
            return complete()

    @workflow("threads-quick")
    class Quick:
        Context = Nothing

        @step(start=True)
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow, Quick) as engine:
        run = await engine.start(Flow)
        for _ in range(10):
            assert (await run_of(engine, Quick)).status == "completed"
        gate.set()
        assert (await run.wait(5)).status == "completed"


async def test_no_more_threads_than_there_may_be(make_engine: MakeEngine) -> None:
    """Sync steps of many runs execute at most as many at a time as the engine has threads, and all complete."""
    gate, crowd = threading.Event(), Crowd()

    @workflow("threads-bound")
    class Flow:
        Context = Nothing

        @step(start=True)
        def work(self) -> Command:
            crowd.enter()
            gate.wait(10)
            crowd.leave()
            return complete()

    async with make_engine(Flow, threads=3) as engine:
        runs = [await engine.start(Flow) for _ in range(12)]
        await wait_until(lambda: crowd.inside == 3)
        assert (await engine.stats()).running_here == 12
        gate.set()
        for run in runs:
            assert (await run.wait(5)).status == "completed"
    assert (crowd.entered, crowd.most) == (12, 3)


async def test_async_steps_need_no_thread(make_engine: MakeEngine) -> None:
    """While every thread is taken, async steps and those with thread=False go on."""
    gate, crowd = threading.Event(), Crowd()

    @workflow("threads-taken")
    class Taken:
        Context = Nothing

        @step(start=True)
        def work(self) -> Command:
            crowd.enter()
            gate.wait(10)
            return complete()

    @workflow("threads-free")
    class Free:
        Context = Nothing

        @step(start=True)
        async def first(self) -> Command:
            return goto(self.second)

        @step(thread=False)
        def second(self) -> Command:
            return complete()

    async with make_engine(Taken, Free, threads=1) as engine:
        taken = await engine.start(Taken)
        await wait_until(lambda: crowd.inside)
        assert (await run_of(engine, Free)).status == "completed"
        gate.set()
        await taken.wait(5)


async def test_every_slot_comes_back(make_engine: MakeEngine) -> None:
    """However sync steps end (completed, failed, timed out, cancelled), all their slots come back."""
    gate, crowd = threading.Event(), Crowd()

    @workflow("threads-ways", default_retry=Retry(max_attempts=1))
    class Ways:
        class Context(BaseModel):
            way: str

        @step(start=True)
        async def begin(self) -> Command:
            return goto(get_context(self.Context).way)

        @step
        def well(self) -> Command:
            return complete()

        @step
        def badly(self) -> Command:
            raise SystemExit

        @step(timeout=timedelta(milliseconds=20))
        def late(self) -> Command:
            crowd.enter()
            gate.wait(10)
            crowd.leave()
            return complete()

        @step
        def blocked(self) -> Command:
            crowd.enter()
            gate.wait(10)
            crowd.leave()
            return complete()

    async with make_engine(Ways, threads=2) as engine:
        for _ in range(3):
            gate.clear()
            stuck = [await engine.start(Ways, way=way) for way in ("late", "blocked", "blocked", "late", "well")]
            await wait_until(lambda: crowd.inside == 2)
            for run in stuck:
                await engine.cancel(run.id)
            gate.set()
            for way, status in (("well", "completed"), ("badly", "failed")) * 3:
                assert (await run_of(engine, Ways, way=way)).status == status
            await wait_until(lambda: crowd.inside == 0)
        assert crowd.most == 2


async def test_threads_are_used_again_and_end_with_the_engine(make_engine: MakeEngine) -> None:
    """Successive steps reuse one thread, and after the engine has closed, no thread is left."""
    gate, crowd = threading.Event(), Crowd()
    used: set[threading.Thread] = set()

    @workflow("threads-again")
    class Flow:
        Context = Nothing

        @step(start=True)
        def work(self) -> Command:
            used.add(threading.current_thread())
            crowd.enter()
            gate.wait(10)
            return complete()

    async with make_engine(Flow, threads=5, shutdown_timeout=timedelta(seconds=5)) as engine:
        gate.set()
        for _ in range(10):
            await run_of(engine, Flow)
        assert len(used) == 1
        gate.clear()
        for _ in range(20):
            await engine.start(Flow)
        await wait_until(lambda: crowd.inside == 15)
        gate.set()
        assert len(used) == 5
    await wait_until(lambda: not any(thread.is_alive() for thread in used))
