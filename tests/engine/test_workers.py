"""Several workers on one store: which of them runs what, and who takes over what another leaves."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, action, complete, get_context, get_run, goto, sleep, step, wait, workflow
from aioflow.clock import Clock
from aioflow.commands import Command
from tests.support import wait_until

shared = pytest.mark.parametrize("store_url", ["memory", "postgres"], indirect=True)


def versioned(version: str, ran: list[tuple[str, int]]) -> type:
    """A workflow that waits, in this version."""

    @workflow("versioned", version=version)
    class Versioned:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def begin(self) -> Command:
            ran.append((version, get_run().id))
            return wait.for_signal("go", then=self.end)

        @step
        async def end(self) -> Command:
            ran.append((version, get_run().id))
            return complete()

    return Versioned


@shared
async def test_two_versions_of_the_code_work_side_by_side(store_url: Any) -> None:
    """Each worker runs the runs of the version that it knows, whoever starts and signals them."""
    ran: list[tuple[str, int]] = []
    old, new = versioned("1", ran), versioned("2", ran)
    async with Engine(store_url, workflows=[old]) as one, Engine(store_url, workflows=[new]) as two:
        runs = [await engine.start(flow) for engine, flow in ((one, old), (two, new)) for _ in range(5)]
        for run in runs:
            await run.wait(10, until="parked")
        for run in runs:
            await (two if run.version == "1" else one).signal("go", run_id=run.id)
        for run in runs:
            await run.wait(10)
            assert run.status == "completed"
        assert sorted(ran) == sorted(2 * [(run.version, run.id) for run in runs])


@workflow("napping")
class Napping:
    """Sleeps for a moment."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def begin(self) -> Command:
        return sleep(timedelta(seconds=0.3), then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@shared
async def test_a_client_wakes_what_its_code_cannot_take(store_url: Any) -> None:
    """process_scheduled of a client that does not know the workflow wakes the run, and leaves it to workers that do."""
    async with (
        Engine(store_url, workflows=[Napping], worker=False) as starting,
        Engine(store_url, workflows=[versioned("1", [])], worker=False) as client,
    ):
        run = await starting.start(Napping, StartOptions(delay=timedelta(milliseconds=1)))

        async def woken() -> bool:
            return await client.process_scheduled() == 1

        await wait_until(woken)
        await run.refresh()
        assert (run.status, run.row.owner) == ("running", None)


@shared
async def test_a_worker_leaves_to_others_what_its_code_cannot_take(store_url: Any) -> None:
    """A run that is due is woken by the worker that knows its workflow, and not blocked by the one that does not."""
    async with (
        Engine(store_url, workflows=[Napping]) as one,
        Engine(store_url, workflows=[versioned("1", [])]) as other,
    ):
        runs = [await one.start(Napping) for _ in range(30)]
        for run in runs:
            assert (await run.wait(10)).status == "completed"
            assert [transition.kind for transition in await other.history(run.id)] == [
                "start",
                "sleep",
                "wake",
                "complete",
            ]


def gated(gates: dict[str, asyncio.Event], begun: list[int]) -> type:
    """A workflow whose step waits for a gate."""

    @workflow("gated")
    class Gated:
        class Context(BaseModel):
            gate: str = "gate"

        @step(start=True)
        async def hold(self) -> Command:
            begun.append(get_run().id)
            await gates[get_context(self.Context).gate].wait()
            return complete()

    return Gated


@shared
async def test_new_runs_spread_over_workers_with_free_slots(store_url: Any) -> None:
    """Runs for which the starting worker has no slot are begun by another worker at once."""
    gates, begun = {"gate": asyncio.Event()}, list[int]()
    flow = gated(gates, begun)
    async with (
        Engine(store_url, workflows=[flow], max_running=2) as small,
        Engine(store_url, workflows=[flow], max_running=10) as large,
    ):
        runs = [await small.start(flow) for _ in range(8)]
        await wait_until(lambda: len(begun) == 8)
        assert ((await small.stats()).running_here, (await large.stats()).running_here) == (2, 6)
        gates["gate"].set()
        for run in runs:
            await run.wait(10)
            assert (run.status, run.row.crashes) == ("completed", 0)
    assert sorted(begun) == sorted(run.id for run in runs)


@shared
async def test_a_call_with_a_request_waits_for_a_slot_of_its_own_worker(store_url: Any) -> None:
    """A call with a request waits for a slot of its own worker, even if another worker has room."""
    gate, holds = asyncio.Event(), asyncio.Event()

    @workflow("asked")
    class Asked:
        class Context(BaseModel):
            hold: bool = False
            by: str = ""

        @step(start=True)
        async def begin(self) -> Command:
            if get_context(self.Context).hold:
                holds.set()
                await gate.wait()
            return goto(self.review)

        @action()
        async def review(self, request: str) -> Command:
            return complete(by=request)

    async with Engine(store_url, workflows=[Asked], max_running=1) as full, Engine(store_url, workflows=[Asked]):
        run = await (await full.start(Asked)).wait(10, until="parked")
        await full.start(Asked, hold=True)
        await holds.wait()
        call = asyncio.create_task(full.act(Asked.review, run.id, request="mine"))
        for _ in range(5):  # the other worker takes the runs that it may
            await (await full.start(Asked)).wait(10, until="parked")
        assert not call.done()
        gate.set()
        assert (await call).context.by == "mine"


@shared
async def test_a_worker_that_drains_gives_its_runs_back_at_once(store_url: Any) -> None:
    """A worker that closes gives its runs back at once, whatever its lease, and they do not count as crashed."""
    gates, begun = {"gate": asyncio.Event()}, list[int]()
    flow = gated(gates, begun)
    lease = timedelta(hours=1)
    async with Engine(store_url, workflows=[flow], lease=lease) as other:
        async with Engine(store_url, workflows=[flow], lease=lease, shutdown_timeout=timedelta(0)) as first:
            runs = [await first.start(flow) for _ in range(5)]
            await wait_until(lambda: len(begun) == 5)
        await wait_until(lambda: len(begun) == 10)
        gates["gate"].set()
        for run in runs:
            ended = await other.wait(run.id, 10)
            assert (ended.status, ended.row.crashes, ended.attempt) == ("completed", 0, 1)


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
async def test_the_clock_is_the_stores(store_url: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose machine's clock is a day ahead uses the server's time."""

    right = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + 86_400 * 1_000_000_000)
    seen = list[float]()

    @workflow("what-time-is-it")
    class Asks:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            seen.append(get_run().now.timestamp())
            return complete()

    async with Engine(store_url, workflows=[Asks]) as engine:
        run = await engine.start(Asks)
        await run.wait(10)
        there = Clock().now() - timedelta(days=1)
        assert abs(run.created_at - there) < timedelta(seconds=30)
        assert abs(seen[0] - there.timestamp()) < 30
