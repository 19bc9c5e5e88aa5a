"""max_running: the number of runs that execute at once is bounded, and the others follow."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Retry, StartOptions, action, complete, get_context, get_run, goto, sleep, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.support import wait_until

HOUR = timedelta(hours=1)


class Crowd:
    """Counts the runs that execute now, and the most that ever did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside: set[int] = set()
        self.most = 0
        self.entered: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            run_id = get_run().id
            assert run_id not in self.inside, "one run executes twice at once"
            self.inside.add(run_id)
            self.entered.append(run_id)
            self.most = max(self.most, len(self.inside))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.inside.discard(get_run().id)


async def all_completed(runs: list[Any]) -> None:
    """Check that every run completes."""
    for run in runs:
        assert (await run.wait(30)).status == "completed"


@pytest.mark.parametrize("bound", [1, 7])
async def test_burst_is_executed_a_few_at_a_time(make_engine: MakeEngine, bound: int) -> None:
    """Of 500 runs started at once, at most max_running execute at a time, and all complete, with each step run once."""
    crowd = Crowd()

    @workflow("max-burst")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def first(self) -> Command:
            with crowd:
                await asyncio.sleep(0)
                return goto(self.second)

        @step
        async def second(self) -> Command:
            with crowd:
                await asyncio.sleep(0)
                return complete()

    count = 500 if bound > 1 else 50
    async with make_engine(Flow, max_running=bound) as engine:
        runs = await asyncio.gather(*(engine.start(Flow) for _ in range(count)))
        await all_completed(runs)
        assert await engine.count(status="completed") == count
    assert crowd.most <= bound
    assert len(crowd.entered) == 2 * count
    assert len(set(crowd.entered)) == count


async def test_runs_beyond_the_bound_wait_in_the_store(make_engine: MakeEngine) -> None:
    """A run without a slot is stored as running without an owner, and is executed once a slot is free."""
    gate, crowd = asyncio.Event(), Crowd()

    @workflow("max-queue")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            with crowd:
                await gate.wait()
                return complete()

    async with make_engine(Flow, max_running=2) as engine:
        runs = [await engine.start(Flow) for _ in range(5)]
        await wait_until(lambda: len(crowd.inside) == 2)
        await engine.process_scheduled()
        assert (await engine.stats()).running_here == 2
        for run in runs:
            await run.refresh()
        assert [run.status for run in runs] == ["running"] * 5
        assert [run.row.owner is None for run in runs] == [False, False, True, True, True]
        gate.set()
        await all_completed(runs)
    assert crowd.most == 2


async def test_woken_runs_mind_the_bound(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Runs that are due at one instant, after sleeps, retries and delays, execute at most max_running at a time."""
    crowd = Crowd()

    @workflow("max-woken", default_retry=Retry(max_attempts=2, base_delay=HOUR, max_delay=HOUR))
    class Flow:
        class Context(BaseModel):
            way: str

        @step(start=True)
        async def begin(self) -> Command:
            way = get_context(self.Context).way
            if way == "retry" and get_run().attempt == 1:
                raise ValueError("again")
            return sleep(HOUR, then=self.work) if way == "sleep" else goto(self.work)

        @step
        async def work(self) -> Command:
            with crowd:
                await asyncio.sleep(0)
                return complete()

    async with make_engine(Flow, max_running=4) as engine:
        runs = []
        for way in ("sleep", "retry", "start") * 33:
            options = StartOptions(delay=HOUR) if way == "start" else StartOptions()
            runs.append(await engine.start(Flow, options, way=way))
        for run in runs:
            await run.wait(10, until="parked")
        clock.shift(2 * HOUR)
        await all_completed(runs)
    assert crowd.most <= 4
    assert len(crowd.entered) == 99


async def test_bound_holds_for_runs_of_a_predecessor(make_engine: MakeEngine) -> None:
    """Runs that an engine finds in its store when it opens execute at most max_running at a time."""
    crowd = Crowd()

    @workflow("max-found")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def work(self) -> Command:
            with crowd:
                return complete()

    async with make_engine(Flow, worker=False) as engine:
        runs = await asyncio.gather(*(engine.start(Flow) for _ in range(100)))
    async with make_engine(Flow, max_running=3) as engine:
        for run in runs:
            assert (await engine.wait(run.id, 30)).status == "completed"
    assert crowd.most <= 3
    assert len(crowd.entered) == 100


async def test_bound_holds_when_callers_of_start_give_up(make_engine: MakeEngine) -> None:
    """A start whose caller is cancelled takes at most one slot, whether its run was committed or not."""
    gate, crowd = asyncio.Event(), Crowd()

    @workflow("max-given-up")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            with crowd:
                await gate.wait()
                return complete()

    async with make_engine(Flow, max_running=2) as engine:
        await engine.start(Flow)
        for turns in range(30):
            task = asyncio.ensure_future(engine.start(Flow))
            for _ in range(turns % 6):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        last = await engine.start(Flow)
        await wait_until(lambda: len(crowd.inside) >= 2)
        await engine.process_scheduled()
        gate.set()
        await last.wait(10)
        for run in await engine.runs():
            assert (await run.wait(10)).status == "completed"
    assert crowd.most == 2


async def test_slots_of_wakes_whose_caller_gave_up_come_back(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """If process_scheduled is cancelled, the engine gets all its slots back."""
    gate, crowd = asyncio.Event(), Crowd()

    @workflow("max-wakes")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            with crowd:
                await gate.wait()
                return complete()

    gate.set()
    async with make_engine(Flow, max_running=5, shutdown_timeout=timedelta(0)) as engine:
        for turns in (1, 2, 1, 2):
            runs = [await engine.start(Flow, StartOptions(delay=HOUR)) for _ in range(4)]
            task = asyncio.ensure_future(engine.process_scheduled())
            clock.shift(HOUR)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await all_completed(runs)
        gate.clear()
        runs = [await engine.start(Flow) for _ in range(6)]
        await wait_until(lambda: len(crowd.inside) == 5, timeout=2, what="five runs execute at once")
        gate.set()
        await all_completed(runs)
    assert crowd.most == 5


async def test_calls_that_wait_for_slots_leave_some_to_others(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Due, signalled and new runs execute, too, while more callers than slots call actions with a request all the time."""
    crowd = Crowd()

    @workflow("max-pressed")
    class Pressed:
        class Context(BaseModel):
            pass

        @action()
        @step(start=True)
        async def press(self, request: object) -> Command:
            with crowd:
                await asyncio.sleep(0)
                return goto(self.press)

    @workflow("max-patient")
    class Patient:
        class Context(BaseModel):
            way: str

        @step(start=True)
        async def begin(self) -> Command:
            way = get_context(self.Context).way
            return sleep(HOUR, then=self.end) if way == "sleep" else wait.for_signal("go", then=self.end)

        @step
        async def end(self) -> Command:
            with crowd:
                return complete()

    @workflow("max-new")
    class New:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def only(self) -> Command:
            with crowd:
                return complete()

    async with make_engine(Pressed, Patient, New, max_running=2) as engine:
        runs = [await engine.start(Patient, way=way) for way in ("sleep", "signal") * 5]
        for run in runs:
            await run.wait(10, until="parked")
        calls = 0

        async def press() -> None:
            nonlocal calls
            pressed = await engine.start(Pressed)
            while True:
                await engine.act(Pressed.press, pressed.id, request="a request")
                calls += 1

        callers = [asyncio.ensure_future(press()) for _ in range(9)]
        await wait_until(lambda: calls > 100)
        clock.shift(HOUR)
        for run in runs[1::2]:
            await engine.signal("go", run_id=run.id)
        runs += [await engine.start(New) for _ in range(5)]
        before = calls
        await all_completed(runs)
        assert calls > before
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    assert crowd.most == 2
