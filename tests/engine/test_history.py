"""What is recorded of a run."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Retry, RetryLater, StartOptions, complete, fail, get_context, get_run, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, run_of
from tests.support import wait_until

HOUR = timedelta(hours=1)


@workflow("history-all", default_retry=Retry(max_attempts=2, base_delay=timedelta(0)))
class All:
    """A workflow that makes every kind of transition that a run can make by itself."""

    class Context(BaseModel):
        later: bool = True

    @step(start=True)
    async def first(self) -> Command:
        return goto(self.fails)

    @step
    async def fails(self) -> Command:
        if get_run().attempt == 1:
            raise ValueError("at first")
        return goto("sleeps")

    @step
    def sleeps(self) -> Command:
        return sleep(timedelta(0), then=self.last)

    @step
    async def last(self) -> Command:
        return fail("in the end")


async def test_history_tells_every_transition(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Each transition has a row with its time, step, attempt, kind and error, and their seq has no gaps."""
    before = clock.now()
    async with make_engine(All) as engine:
        run = await engine.start(All, StartOptions(delay=HOUR))
        clock.shift(HOUR)
        await run.wait(5)
        rows = await engine.history(run.id)
        assert [(row.seq, row.step, row.attempt, row.kind, row.error) for row in rows] == [
            (1, "first", 1, "start", None),
            (2, "first", 1, "wake", None),
            (3, "first", 1, "goto", None),
            (4, "fails", 1, "retry", "ValueError: at first"),
            (5, "fails", 2, "wake", None),
            (6, "fails", 2, "goto", None),
            (7, "sleeps", 1, "sleep", None),
            (8, "last", 1, "wake", None),
            (9, "last", 1, "fail", "in the end"),
        ]
        assert {row.run_id for row in rows} == {run.id}
        instants = [row.at for row in rows]
        assert instants == sorted(instants)
        assert before <= instants[0] == run.created_at
        assert instants[-1] == run.updated_at == run.ended_at <= clock.now()
        assert instants[1] - instants[0] >= HOUR
        assert all(at.tzinfo is UTC for at in instants)
        assert run.row.seq == 9


async def test_duration_is_that_of_the_step(make_engine: MakeEngine) -> None:
    """A step's transition has the duration of the step, and other transitions have none."""
    gate = asyncio.Event()

    @workflow("history-duration")
    class Flow:
        class Context(BaseModel):
            polls: int = 0

        @step(start=True)
        async def work(self) -> Command:
            loop = asyncio.get_running_loop()
            loop.call_later(0.03, gate.set)
            await gate.wait()
            gate.clear()
            context = get_context(self.Context)
            context.polls += 1
            return complete() if context.polls == 2 else sleep(timedelta(0))

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start", "sleep", "wake", "complete"]
        for row in rows:
            if row.kind in ("start", "wake"):
                assert row.duration == timedelta(0)
            else:
                assert timedelta(seconds=0.025) <= row.duration < timedelta(seconds=5)


async def test_duration_is_without_the_wait_for_a_thread(make_engine: MakeEngine) -> None:
    """The duration of a sync step does not include the wait for a free thread."""
    held, gate = threading.Event(), threading.Event()

    @workflow("history-thread")
    class Flow:
        class Context(BaseModel):
            hold: bool

        @step(start=True)
        def work(self) -> Command:
            held.set()
            if get_context(self.Context).hold:
                gate.wait()
            return complete()

    async with make_engine(Flow, threads=1) as engine:
        holder = await engine.start(Flow, hold=True)
        await wait_until(held.is_set)
        waiter = await engine.start(Flow, hold=False)
        asyncio.get_running_loop().call_later(0.5, gate.set)
        first, second = [(await engine.history((await run.wait(30)).id))[-1] for run in (holder, waiter)]
        assert second.duration < timedelta(seconds=0.25) < first.duration


async def test_history_is_read_in_pages(make_engine: MakeEngine) -> None:
    """``after=`` and ``limit=`` select any part of a history, in order."""
    async with make_engine(All) as engine:
        run = await run_of(engine, All)
        rows = await engine.history(run.id)
        assert [row.seq for row in rows] == list(range(1, 9))
        for limit in (1, 3, 8, 100):
            found: list[Any] = []
            while page := await engine.history(run.id, after=found[-1].seq if found else None, limit=limit):
                found += page
            assert found == rows
        assert await engine.history(run.id, after=5) == rows[5:]
        assert await engine.history(run.id, after=8) == []
        assert await engine.history(run.id, after=1000) == []


async def test_history_wants_numbers(make_engine: MakeEngine) -> None:
    """A limit out of range, and an argument that is no number, are refused."""
    async with make_engine(All, worker=False) as engine:
        run = await engine.start(All)
        with pytest.raises(ValueError, match=r"^limit must be from 1 to 10000, got 0\."):
            await engine.history(run.id, limit=0)
        with pytest.raises(TypeError, match=r"^limit takes an int, got float\."):
            await engine.history(run.id, limit=1.5)
        with pytest.raises(TypeError, match=r"^history\(after=\.\.\.\) takes a seq as an int, got str\."):
            await engine.history(run.id, after="1")


async def test_history_outlives_a_restart(make_engine: MakeEngine) -> None:
    """Another engine reads the history and goes on with it."""

    @workflow("history-restart")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            if not gate.is_set():
                raise RetryLater(HOUR)
            return complete()

    gate = asyncio.Event()
    clock = ShiftedClock()
    async with make_engine(Flow, clock=clock) as engine:
        run = await engine.start(Flow)
        await run.wait(5, until="parked")
        rows = await engine.history(run.id)
    gate.set()
    clock.shift(HOUR)
    async with make_engine(Flow, clock=clock) as engine:
        await engine.wait(run.id, 5)
        again = await engine.history(run.id)
        assert again[: len(rows)] == rows
        assert [row.kind for row in again] == ["start", "retry", "wake", "complete"]
        assert len({row.commit_id for row in again}) == 4
