"""Whoever waits for a slot gets one in time, whatever else keeps coming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    StartOptions,
    WorkflowRun,
    action,
    complete,
    get_context,
    get_run,
    goto,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from aioflow.discovery import find_store
from aioflow.store import Store
from aioflow.testing.conformance_samples import a_run, put
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.support import wait_until


@workflow("fair-short")
class Short:
    class Context(BaseModel):
        pass

    @step(start=True)
    async def only(self) -> Command:
        await asyncio.sleep(0)
        return complete()


@workflow("fair-pressed")
class Pressed:
    class Context(BaseModel):
        pass

    @action()
    @step(start=True)
    async def press(self) -> Command:
        await asyncio.sleep(0)
        return goto(self.press)


@workflow("fair-patient")
class Patient:
    class Context(BaseModel):
        pass

    @step(start=True)
    async def begin(self) -> Command:
        return wait.for_signal("go", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@asynccontextmanager
async def all_the_time(what: Callable[[], Awaitable[object]], callers: int) -> AsyncIterator[Callable[[], int]]:
    """So many callers do something over and over; gives how often it was done."""
    count = 0

    async def call() -> None:
        nonlocal count
        while True:
            await what()
            count += 1

    tasks = [asyncio.ensure_future(call()) for _ in range(callers)]
    try:
        await wait_until(lambda: count > 20)
        yield lambda: count
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)


async def test_new_runs_have_their_turn_beside_older_ones(make_engine: MakeEngine) -> None:
    """New and signalled runs execute while more callers than slots call actions of older runs all the time."""
    async with make_engine(Pressed, Short, Patient, max_running=2) as engine:
        pressed = [await engine.start(Pressed) for _ in range(7)]
        free = list(pressed)

        async def press() -> None:
            run = free.pop()
            await engine.act(Pressed.press, run.id)
            free.insert(0, run)

        async with all_the_time(press, 7) as count:
            before = count()
            patient = [await engine.start(Patient) for _ in range(3)]
            runs = [await engine.start(Short) for _ in range(3)]
            for run in patient:
                await engine.signal("go", run_id=run.id)
            for run in (*runs, *patient):
                assert (await run.wait(5)).status == "completed"
            assert count() > before


async def test_a_slot_is_used_while_long_steps_have_the_others(make_engine: MakeEngine) -> None:
    """If steps that take long leave only one of sixteen slots, runs that wait in the store follow each other in it."""
    gate = asyncio.Event()

    @workflow("fair-long")
    class Long:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def only(self) -> Command:
            await gate.wait()
            return complete()

    async with make_engine(Long, Short, max_running=16) as engine:
        for _ in range(15):
            await engine.start(Long)
        runs = [await engine.start(Short) for _ in range(30)]
        async with asyncio.timeout(5):
            for run in runs:
                assert (await run.wait()).status == "completed"
        gate.set()


async def test_timers_have_their_turn_beside_claims(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A due run executes while more callers than slots start runs all the time, which wait in the store for their turn."""
    async with make_engine(Short, max_running=1) as engine:
        later = [await engine.start(Short, StartOptions(delay=timedelta(hours=1))) for _ in range(3)]

        async def start() -> None:
            await (await engine.start(Short)).wait()

        async with all_the_time(start, 4) as count:
            before = count()
            clock.shift(timedelta(hours=1))
            for run in later:
                assert (await run.wait(5)).status == "completed"
            assert count() > before


async def test_clients_have_their_turn_beside_the_worker(make_engine: MakeEngine) -> None:
    """What clients start executes while more callers than slots start runs in the worker's process all the time."""
    async with make_engine(Short, max_running=2) as engine, make_engine(Short, worker=False) as client:

        async def start() -> None:
            await (await engine.start(Short)).wait()

        async with all_the_time(start, 7) as count:
            before = count()
            runs = [await client.start(Short) for _ in range(3)]
            for run in runs:
                assert (await run.wait(5)).status == "completed"
            assert count() > before


async def test_timers_of_clients_are_seen_without_a_free_slot(make_engine: MakeEngine) -> None:
    """A run that a client starts for later is woken in time, before the many that wait for the worker's slot have ended."""

    @workflow("fair-steady")
    class Steady:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def only(self) -> Command:
            await wait_until(partial(next, iter([False] * 4 + [True])))  # it takes some milliseconds
            return complete()

    async def woken(run: WorkflowRun[Any]) -> bool:
        await run.refresh()
        return run.status != "waiting"

    flows = Steady, Short
    async with make_engine(*flows, max_running=1) as engine, make_engine(*flows, worker=False) as client:
        for _ in range(500):
            await engine.start(Steady)
        runs = [await client.start(Short, StartOptions(delay=timedelta(milliseconds=1))) for _ in range(3)]
        for run in runs:
            await wait_until(partial(woken, run), 3)
        assert await engine.count(workflow=Steady, status="running") > 0


async def suspects(
    store_url: str | Store, clock: ShiftedClock, count: int, *, workflow: str, data: str = "{}", late: int = 0
) -> int:
    """Store so many runs at step "only" that have crashed twice, the first ``late`` past their deadline; the first's id."""
    store, now = find_store(store_url), clock.micros()
    await store.open(now)
    first = await store.reserve("run", count, now)
    suspect = a_run(first, workflow=workflow, step="only", data=data, crashes=2)
    deadlines = [now - 1] * late + [None] * (count - late)
    await put(store, *(suspect._replace(id=first + n, deadline=deadline) for n, deadline in enumerate(deadlines)))
    await store.close()
    return first


@pytest.mark.parametrize("slots", [1, 2, 5])
async def test_suspects_leave_slots_to_others(store_url: str | Store, clock: ShiftedClock, slots: int) -> None:
    """Suspects that wait for their turn to run alone take no slots; the others execute, and each suspect in its turn."""
    gates: list[asyncio.Event] = []
    turns: list[int] = []

    @workflow("fair-suspects")
    class Flow:
        class Context(BaseModel):
            waits: bool = False

        @step(start=True)
        async def only(self) -> Command:
            if get_context(self.Context).waits:
                turns.append(get_run().id)
                gates.append(gate := asyncio.Event())
                await gate.wait()
            return complete()

    first = await suspects(store_url, clock, 6, workflow="fair-suspects", data='{"waits": true}')
    async with Engine(store_url, workflows=[Flow], clock=clock, max_running=slots) as engine:
        for number in range(6):
            await wait_until(lambda number=number: len(gates) == number + 1)  # type: ignore[misc]
            if slots > 1:
                runs = await asyncio.gather(*(engine.start(Flow) for _ in range(3 * slots)))
                for run in runs:
                    assert (await run.wait(10)).status == "completed"
            assert len(gates) == number + 1
            assert (await engine.stats()).running_here == 1
            gates[-1].set()
        for run_id in range(first, first + 6):
            assert (await engine.wait(run_id, 10)).status == "completed"
    assert sorted(turns) == [*range(first, first + 6)]


async def test_a_worker_takes_in_few_suspects(store_url: str | Store, clock: ShiftedClock) -> None:
    """Of many suspects most wait in the store, where other workers can take them, and all have their turn in the end."""
    ran: list[int] = []

    @workflow("fair-many-suspects")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def only(self) -> Command:
            await gate.wait()
            ran.append(get_run().id)
            return complete()

    gate = asyncio.Event()
    first = await suspects(store_url, clock, 100, workflow="fair-many-suspects")
    async with Engine(store_url, workflows=[Flow], clock=clock, max_running=4) as engine:
        last = await engine.start(Flow)
        await wait_until(lambda: engine._worker is not None and engine._worker.running == 2)
        assert engine._worker is not None
        held = []
        for _ in range(20):
            await engine._worker.look()
            held.append(len(engine._worker.held))
        assert max(held) <= 10
        gate.set()
        for run_id in (*range(first, first + 100), last.id):
            assert (await engine.wait(run_id, 20)).status == "completed"
    assert sorted(ran) == sorted([*range(first, first + 100), last.id])


async def test_a_run_that_timed_out_is_no_suspect(store_url: str | Store, clock: ShiftedClock) -> None:
    """A suspect whose timeout is over goes to its on_timeout step as any run, and the next suspect has its turn."""
    gate, late, turns = asyncio.Event(), asyncio.Event(), list[int]()

    @workflow("fair-late-suspects", timeout=timedelta(hours=1), on_timeout="too_late")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def only(self) -> Command:
            turns.append(get_run().id)
            return complete()

        @step
        async def too_late(self) -> Command:
            late.set()
            await gate.wait()
            return complete()

    first = await suspects(store_url, clock, 2, workflow="fair-late-suspects", late=1)
    async with Engine(store_url, workflows=[Flow], clock=clock) as engine:
        await late.wait()
        assert (await engine.wait(first + 1, 10)).status == "completed"
        gate.set()
        assert (await engine.wait(first, 10)).status == "completed"
    assert turns == [first + 1]
