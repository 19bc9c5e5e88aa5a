"""Timeouts of waits: when they end, and which signals before and after are taken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from aioflow import Engine, StartOptions, WorkflowRun, complete, get_context, get_run, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of
from tests.support import wait_until

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@workflow("timeouts-order")
class Order:
    """Waits an hour for "paid", and then without a timeout for "last"."""

    class Context(BaseModel):
        model_config = ConfigDict(extra="forbid")
        amount: int = 0
        path: list[str] = []

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", timeout=HOUR, on_timeout=self.late, then=self.ship)

    @step
    async def late(self) -> Command:
        get_context(self.Context).path.append(f"late {get_run().timed_out}")
        return wait.for_signal("last", then=self.end)

    @step
    async def ship(self) -> Command:
        get_context(self.Context).path.append(f"ship {get_run().timed_out}")
        return wait.for_signal("last", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def parked(engine: Engine, order: Any, options: StartOptions | None = None, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(order, options or StartOptions(), **context)
    return await run.wait(5, until="parked")


async def waits_for(engine: Engine, run: WorkflowRun[Any], signal: str) -> WorkflowRun[Any]:
    """Wait until the run waits for this signal; returns the run."""

    async def found() -> bool:
        await run.refresh()
        return run.waiting_signal == signal

    await wait_until(found)
    return run


async def test_run_goes_on_when_the_time_is_over(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A wait times out exactly at its deadline, and goes to on_timeout, where ``timed_out`` is true."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
        clock.shift(HOUR - MINUTE)
        assert await engine.process_scheduled() == 0
        clock.shift(MINUTE)
        await engine.process_scheduled()
        await waits_for(engine, run, "last")
        assert run.data["path"] == ["late True"]
        assert await kinds_of(engine, run) == ["start", "wait", "timeout", "wait"]
        assert [(row.step, row.attempt) for row in (await engine.history(run.id))[2:]] == [("late", 1), ("late", 1)]


async def test_signal_in_time_ends_the_timeout(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A wait that a signal has resumed does not time out later, nor does the next wait."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
        await engine.signal("paid", run_id=run.id)
        await waits_for(engine, run, "last")
        clock.shift(2 * HOUR)
        assert await engine.process_scheduled() == 0
        await engine.signal("last", run_id=run.id)
        assert (await run.wait(5)).data["path"] == ["ship False"]


@pytest.mark.parametrize(
    "timeout",
    [timedelta(0), datetime(2020, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)],
    ids=["nothing", "2020", "year 1"],
)
@pytest.mark.parametrize("sent", [False, True])
async def test_time_that_is_over_already(make_engine: MakeEngine, timeout: Any, sent: bool) -> None:
    """A wait whose timeout is zero or in the past times out at once, unless a signal is there already."""

    @workflow("timeouts-past")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", timeout=timeout, on_timeout=self.end, then=self.end)

        @step
        async def end(self) -> Command:
            return complete(late=get_run().timed_out)

    async with make_engine(Flow) as engine:
        if sent:
            await engine.signal("paid", key="k")
        run = await engine.start(Flow, StartOptions(key="k"))
        assert (await run.wait(5)).data == {"late": not sent}


@pytest.mark.parametrize("address", ["run", "key"])
async def test_signal_that_came_in_time_is_taken_after_it(
    make_engine: MakeEngine, clock: ShiftedClock, address: str
) -> None:
    """A signal sent before the deadline, while no worker was open, is taken by a worker that opens after it."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order, StartOptions(key="k"))
    async with make_engine(worker=False, workflows=[Other]) as client:
        clock.shift(HOUR - MINUTE)
        receipt = await client.signal(
            "paid", {"amount": 5}, **({"run_id": run.id} if address == "run" else {"key": "k"})
        )
        assert receipt.state == "buffered"
    clock.shift(HOUR)
    async with make_engine(Order) as engine:
        found = await waits_for(engine, await engine.get(run.id), "last")
        assert found.data == {"amount": 5, "path": ["ship False"]}


@workflow("timeouts-other")
class Other:
    """The only workflow that the client knows."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def end(self) -> Command:
        return complete()


@pytest.mark.parametrize("knows", [Order, Other])
@pytest.mark.parametrize("address", ["run", "key"])
async def test_signal_that_came_too_late_is_not_taken(
    make_engine: MakeEngine, clock: ShiftedClock, knows: type, address: str
) -> None:
    """A signal sent after the deadline does not resume the wait, even if no worker was open, and stays buffered."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order, StartOptions(key="k"))
    clock.shift(HOUR + MINUTE)
    async with make_engine(worker=False, workflows=[knows]) as client:
        receipt = await client.signal(
            "paid", {"amount": 5}, **({"run_id": run.id} if address == "run" else {"key": "k"})
        )
        assert receipt.state == "buffered"
    async with make_engine(Order) as engine:
        found = await waits_for(engine, await engine.get(run.id), "last")
        assert found.data == {"amount": 0, "path": ["late True"]}
        assert (await engine.stats()).mailbox == 1


async def test_worker_that_comes_late_fires_the_timeout(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Without a signal, a worker that opens after the deadline times the wait out."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
    clock.shift(2 * HOUR)
    async with make_engine(Order) as engine:
        found = await waits_for(engine, await engine.get(run.id), "last")
        assert found.data["path"] == ["late True"]


async def test_one_signal_for_two_that_are_due(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Of two runs that are due, one takes the signal that came in time for both, and the other times out."""
    async with make_engine(Keyed) as engine:
        runs = [await parked(engine, Keyed) for _ in range(2)]
    async with make_engine(worker=False, workflows=[Other]) as client:
        assert (await client.signal("paid", key="shared")).state == "buffered"
    clock.shift(2 * HOUR)
    async with make_engine(Keyed) as engine:
        ended = [(await engine.wait(run.id, 8)).data["late"] for run in runs]
        assert sorted(map(bool, ended)) == [False, True]


@workflow("timeouts-keyed")
class Keyed:
    """Waits with a key that all its runs share."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", key="shared", timeout=HOUR, on_timeout=self.end, then=self.end)

    @step
    async def end(self) -> Command:
        return complete(late=get_run().timed_out)


async def test_signal_that_does_not_fit_does_not_hold_up_the_timeout(
    make_engine: MakeEngine, clock: ShiftedClock
) -> None:
    """A buffered signal that does not validate is removed and recorded, and the wait still times out."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
    async with make_engine(worker=False, workflows=[Other]) as client:
        await client.signal("paid", {"amount": "SECRET"}, run_id=run.id)
    clock.shift(2 * HOUR)
    async with make_engine(Order) as engine:
        found = await waits_for(engine, await engine.get(run.id), "last")
        assert found.data == {"amount": 0, "path": ["late True"]}
        assert await kinds_of(engine, found) == ["start", "wait", "reject", "timeout", "wait"]
        assert (await engine.stats()).mailbox == 0


async def test_rejection_keeps_the_deadline(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A signal that is rejected when a worker looks at it does not end the wait or change its deadline."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
        woke = run.wake_at
    async with make_engine(worker=False, workflows=[Other]) as client:
        await client.signal("paid", {"amount": "x"}, run_id=run.id)
    clock.shift(MINUTE)
    async with make_engine(Order) as engine:

        async def rejected() -> bool:
            return "reject" in await kinds_of(engine, run)

        await wait_until(rejected)
        found = await engine.get(run.id)
        assert (found.status, found.waiting_signal, found.wake_at) == ("waiting", "paid", woke)
        clock.shift(HOUR)
        await waits_for(engine, found, "last")
        assert found.data["path"] == ["late True"]
