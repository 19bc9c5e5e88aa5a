"""Machines that open, close and reopen on a store, and several machines at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel

from aioflow import Engine, complete, engine, get_run, sleep, step, workflow
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.errors import EngineClosed, StoreUnavailable, TimeStandsStill
from aioflow.model import Deadline
from aioflow.registry import registry
from aioflow.testing import TimeMachine
from aioflow_memory import MemoryStore
from tests.support import wait_until
from tests.timemachine.conftest import BRIEF, DAY, HOUR, Sleeper


@workflow("lifetime-deadlock")
class Deadlock:
    """Awaits itself."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def wait(self) -> Command:
        await engine.wait(get_run().id)
        return complete()


async def test_closing_ends_the_waits(url: str) -> None:
    """Closing a machine ends a caller's wait at once, and stops a step that awaits, whose run is not ended."""

    async def wait(run_id: int) -> None:
        with pytest.raises(EngineClosed):
            await engine.wait(run_id)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        async with TimeMachine(url) as flow:
            with engine.replaced_by(flow):
                run = await flow.start(Deadlock)
                tasks.create_task(wait(run.id))
                await flow.settle()
        if url.startswith("sqlite"):
            async with Engine(url, worker=False) as client:
                assert [row.kind for row in await client.history(run.id)] == ["start"]
            async with TimeMachine(url, workflows=[], patience=BRIEF) as flow:
                with pytest.raises(TimeStandsStill, match=r"run 1 of .* is blocked: This process knows no workflow"):
                    await flow.wait(run.id)
                assert [row.kind for row in await flow.history(run.id)] == ["start", "block"]


async def test_closing_in_the_midst_of_an_advance(url: str) -> None:
    """``advance`` and ``settle`` raise EngineClosed if the machine is closed meanwhile."""
    flow = TimeMachine(url)
    async with asyncio.timeout(5):
        async with flow:
            await flow.start(Sleeper, minutes=0.01, times=10**6)
            calls = [asyncio.create_task(flow.advance(days=1)), asyncio.create_task(flow.settle())]
            await wait_until(lambda: flow.now > datetime(2029, 1, 1, tzinfo=UTC))
        for call in calls:
            with pytest.raises(EngineClosed):
                await call


async def test_restart_begins_where_the_store_is(tmp_path: Path) -> None:
    """A machine on an existing file begins at the last transition in it, and wakes the run that sleeps there."""
    url = f"sqlite:///{tmp_path}/runs.db"
    async with TimeMachine(url) as first:
        run = await first.start(Sleeper, minutes=60, times=2)
        await first.advance(minutes=90)
    second = TimeMachine(url)
    async with second:
        assert second.now == run.created_at + HOUR
        run = await second.get(run.id)
        await run.wait()
        assert run.ended_at == second.now == run.created_at + 2 * HOUR
    async with second:
        assert second.now == run.ended_at


async def test_restart_begins_where_the_events_are(tmp_path: Path) -> None:
    """A machine on an existing file begins at the last time that an event was recorded or occurred."""
    url = f"sqlite:///{tmp_path}/events.db"
    async with TimeMachine(url) as first:
        await first.emit("early", at=first.now + HOUR)
        for each in range(600):
            await first.emit("many", {"id": each})
        await first.advance(minutes=90)
    async with TimeMachine(url) as second:
        early = (await second.events(name="early"))[0]
        assert early.occurred_at == second.now == early.recorded_at + HOUR
        await second.advance(minutes=90)
        late = await second.emit("late", at=second.now + HOUR)
    async with TimeMachine(url) as third:
        assert third.now == late.recorded_at == early.recorded_at + HOUR + timedelta(minutes=90)


async def test_restart_may_begin_elsewhere(tmp_path: Path) -> None:
    """A machine begins at ``now=`` if that is given, and what was due before wakes at once."""
    store = MemoryStore()
    async with TimeMachine(store) as first:
        run = await first.start(Sleeper)
        await first.settle()
    later = first.now + 3 * DAY
    async with TimeMachine(store, now=later) as second:
        run = await second.get(run.id)
        await run.wait()
        assert run.ended_at == second.now == later


async def test_two_machines_have_a_time_each(url: str) -> None:
    """Two machines have separate runs and times, even if a step of one awaits a run of the other."""
    async with TimeMachine() as one, TimeMachine(url) as other:

        @workflow("lifetime-far")
        class Far:
            class Context(BaseModel):
                pass

            @step(start=True)
            async def ask(self) -> Command:
                await (await other.start(Sleeper)).wait()
                return complete()

        start = one.now
        run = await one.start(Far)
        await run.wait()
        assert (one.now, other.now) == (start, start + HOUR)
        assert await other.count(workflow=Far) == 0


async def test_two_machines_on_one_file(tmp_path: Path) -> None:
    """A second machine on one file is a client until the first has closed, and then takes over, at its own time."""
    url = f"sqlite:///{tmp_path}/runs.db"
    async with TimeMachine(url, patience=BRIEF) as client:
        async with TimeMachine(url) as worker:  # the first machine that opens is the worker
            pass
        assert not worker.now > client.now
        run = await client.start(Sleeper)
        await run.wait()
        assert run.status == "completed"
    async with TimeMachine(url) as worker:
        async with TimeMachine(url, patience=BRIEF) as client:
            run = await client.start(Sleeper)
            with pytest.raises(TimeoutError):
                await run.wait(60)
            assert client.now - run.created_at == timedelta(minutes=1)
            with pytest.raises(TimeStandsStill, match="another process works this store, in its own time") as caught:
                await run.wait()
            assert caught.value.stuck[0].startswith(f"run {run.id} of workflow 'machine-sleeper' ")
        await worker.settle()
        run = await worker.get(run.id)
        await run.wait()
        assert run.status == "completed"


async def test_machine_in_a_second_event_loop() -> None:
    """A machine that was closed can be opened again in another event loop."""
    flow = TimeMachine()

    async def use() -> None:
        async with flow:
            run = await flow.start(Sleeper)
            await run.wait()

    await use()
    await asyncio.to_thread(asyncio.run, use())
    assert flow.now == datetime(2029, 1, 1, 2, tzinfo=UTC)


async def test_blocked_run_goes_on_when_its_code_comes(tmp_path: Path) -> None:
    """A blocked run goes on, without a settle, as soon as a test defines its workflow."""
    url = f"sqlite:///{tmp_path}/runs.db"

    def define() -> type:
        @workflow("lifetime-late")
        class Late:
            class Context(BaseModel):
                pass

            @step(start=True)
            async def rest(self) -> Command:
                return sleep(HOUR, then=self.end)

            @step
            async def end(self) -> Command:
                return complete()

        return Late

    with registry.scope():
        async with TimeMachine(url) as flow:
            await flow.start(define())
            await flow.settle()
    with registry.scope():
        async with TimeMachine(url, patience=BRIEF) as flow:
            await flow.advance(hours=2)
            (run,) = await flow.runs(workflow="lifetime-late")
            assert run.waiting_for == "blocked"
            define()
            await run.wait()
            assert run.status == "completed"


async def test_store_that_does_not_answer_is_asked_again() -> None:
    """A wait goes on though the store fails to say what is due, and an advance raises the store's error."""

    class Moody(MemoryStore):
        moods = 0

        async def due(
            self,
            after: tuple[Micros, int],
            until: tuple[Micros, int],
            limit: int,
            now: Micros,
            of: Literal["run", "plan"] = "run",
        ) -> list[Deadline]:
            if limit == 1 and self.moods:  # a query of the machine, not of its scheduler
                self.moods -= 1
                raise StoreUnavailable(self.name, "it is moody")
            return await super().due(after, until, limit, now, of)

    store = Moody()
    async with TimeMachine(store) as flow:
        run = await flow.start(Sleeper)
        store.moods = 3
        await run.wait()
        assert (run.status, store.moods) == ("completed", 0)
        await flow.settle()
        store.moods = 1
        with pytest.raises(StoreUnavailable, match="it is moody"):
            await flow.advance(hours=1)
        await flow.advance(hours=1)
        assert flow.now == run.created_at + 2 * HOUR


async def test_steps_alone_may_wait_for_ever(url: str) -> None:
    """A step whose wait cannot end does not disturb an advance, or a wait for another run."""
    async with TimeMachine(url, patience=BRIEF) as flow:
        with engine.replaced_by(flow):
            stuck = await flow.start(Deadlock)
            await flow.settle()
            loop = asyncio.get_running_loop()
            end = loop.time() + 2 * BRIEF.total_seconds()
            await wait_until(lambda: loop.time() > end)
            await flow.advance(hours=1)
            await stuck.refresh()
            assert stuck.status == "running"
            other = await flow.start(Sleeper)
            await other.wait()
            assert flow.now == other.created_at + HOUR
