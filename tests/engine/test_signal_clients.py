"""Signals between engines: clients send, workers deliver, code comes and goes, and runs are cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, WorkflowRun, complete, get_context, goto, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, kinds_of
from tests.support import wait_until

NAME = "clients-order"


def release(body: Any, version: str = "1") -> type:
    """The workflow as one release of the code defines it."""

    @workflow(NAME, version=version)
    class Order(body):  # type: ignore[misc]
        pass

    return Order


class First:
    """The code with which the runs start."""

    class Context(BaseModel):
        amount: int = 0

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", key="shared", then=self.ship)

    @step
    async def ship(self) -> Command:
        return complete(by="first")


class Renamed:
    """A release in which the step after the wait is gone."""

    Context = First.Context

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", key="shared", then=self.deliver)

    @step
    async def deliver(self) -> Command:
        return complete(by="renamed")


class Changed(First):
    """A release whose Context does not accept what is stored."""

    class Context(BaseModel):
        amount: int = 0
        size: int


@workflow("clients-other")
class Other:
    """The only workflow that some clients know."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def end(self) -> Command:
        return complete()


async def parked(engine: Engine, order: Any, options: StartOptions | None = None, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(order, options or StartOptions(), **context)
    return await run.wait(5, until="parked")


async def test_client_sends_and_worker_goes_on(make_engine: MakeEngine) -> None:
    """A client that knows the workflow delivers its signal itself, and the run goes on in a worker."""
    order: Any = release(First)
    async with make_engine(order) as engine, make_engine(order, worker=False) as client:
        run = await parked(engine, order)
        receipt = await client.signal("paid", {"amount": 5}, run_id=run.id)
        assert receipt.state == "delivered" or (await engine.get(run.id)).status != "waiting"
        assert (await client.wait(run.id, 5)).data == {"amount": 5, "by": "first"}


async def test_client_delivers_while_nobody_works(make_engine: MakeEngine) -> None:
    """If no worker is open, a client's delivery is committed, and the run goes on once a worker opens."""
    order: Any = release(First)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
    async with make_engine(order, worker=False) as client:
        assert (await client.signal("paid", {"amount": 5}, run_id=run.id)).delivered == [run.id]
        assert (await client.get(run.id)).status == "running"
        assert (await client.signal("paid", {"amount": 6}, run_id=run.id)).state == "buffered"
    async with make_engine(order) as engine:
        assert (await engine.wait(run.id, 5)).data == {"amount": 5, "by": "first"}


@pytest.mark.parametrize("address", ["run", "key"])
async def test_client_that_does_not_know_the_code(make_engine: MakeEngine, address: str) -> None:
    """A client that does not know the workflow leaves the signal to a worker that does."""
    order: Any = release(First)
    where: dict[str, Any] = {"key": "shared"}
    async with make_engine(order) as engine, make_engine(Other, worker=False) as client:
        run = await parked(engine, order)
        if address == "run":
            where = {"run_id": run.id}
        receipt = await client.signal("paid", {"amount": 5}, **where)
        assert (receipt.state, receipt.delivered, receipt.rejected) == ("buffered", [], {})
        assert (await engine.wait(run.id, 5)).data == {"amount": 5, "by": "first"}


async def test_client_that_does_not_know_the_code_cannot_reject(make_engine: MakeEngine) -> None:
    """A signal from such a client that does not validate is rejected by the worker, and the run waits on."""
    order: Any = release(First)
    async with make_engine(order) as engine, make_engine(Other, worker=False) as client:
        run = await parked(engine, order)
        assert (await client.signal("paid", {"amount": "x"}, run_id=run.id)).state == "buffered"

        async def rejected() -> bool:
            return await kinds_of(engine, run) == ["start", "wait", "reject"]

        await wait_until(rejected)
        assert (await engine.get(run.id)).waiting_signal == "paid"


async def test_version_that_is_not_there(make_engine: MakeEngine) -> None:
    """A signal to a run of an unknown version is kept, and taken once the version is known again."""
    order, other = release(First), release(First, "2")
    async with make_engine(order) as engine:
        run = await parked(engine, order)
    async with make_engine(other) as engine:
        receipt = await engine.signal("paid", {"amount": 5}, run_id=run.id)
        assert receipt.state == "buffered"
        assert (await engine.get(run.id)).waiting_for == "signal"
    async with make_engine(order) as engine:
        assert (await engine.wait(run.id, 5)).data == {"amount": 5, "by": "first"}


async def test_code_that_comes_back_while_the_engine_runs(make_engine: MakeEngine) -> None:
    """Once code that accepts the run is defined again, a running engine delivers the buffered signal."""
    order: Any = release(First)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
    release(Changed)
    async with make_engine() as engine:
        assert (await engine.signal("paid", {"amount": 5}, run_id=run.id)).state == "buffered"
        release(First)
        assert (await engine.wait(run.id, 5)).data == {"amount": 5, "by": "first"}


async def test_step_that_is_gone(make_engine: MakeEngine) -> None:
    """A signal to a run whose next step is gone is taken, and the run is blocked until the step is back."""
    order: Any = release(First)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
    renamed = release(Renamed)
    async with make_engine(renamed) as engine:
        await engine.signal("paid", {"amount": 5}, run_id=run.id)

        async def blocked() -> bool:
            return (await engine.get(run.id)).waiting_for == "blocked"

        await wait_until(blocked)
        assert (await engine.signal("paid", {"amount": 6}, run_id=run.id)).state == "buffered"
    order = release(First)
    async with make_engine(order) as engine:
        assert (await engine.wait(run.id, 5)).data == {"amount": 5, "by": "first"}


async def test_context_that_does_not_fit_any_more(make_engine: MakeEngine) -> None:
    """A signal to a run whose Context the code cannot read is kept, neither taken nor rejected, until the code can."""
    order: Any = release(First)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
    async with make_engine(release(Changed)) as engine:
        receipt = await engine.signal("paid", {"amount": "x"}, run_id=run.id)
        assert receipt.state == "buffered"
        assert (await engine.signal("paid", {"amount": 5}, run_id=run.id)).state == "buffered"
        assert await kinds_of(engine, run) == ["start", "wait"]
    order = release(First)
    async with make_engine(order) as engine:
        assert (await engine.wait(run.id, 5)).data == {"amount": 5, "by": "first"}
        assert await kinds_of(engine, run) == ["start", "wait", "reject", "signal", "complete"]


@pytest.mark.parametrize("code", ["gone", "cannot read"])
async def test_undeliverable_mail_does_not_hold_up_others(make_engine: MakeEngine, code: str) -> None:
    """Even if 600 runs have mail that no code can take, another run gets its own."""
    order: Any = release(First)
    async with make_engine(order) as engine:
        old = await asyncio.gather(*(engine.start(order) for _ in range(600)))
        await asyncio.gather(*(run.wait(20, until="parked") for run in old))
    async with make_engine(Other, worker=False) as client:
        await asyncio.gather(*(client.signal("paid", {"amount": 5}, run_id=run.id) for run in old))
    new: Any = release(Changed, "2" if code == "gone" else "1")
    async with make_engine(new) as engine, make_engine(Other, worker=False) as client:
        run = await parked(engine, new, size=1)
        assert (await client.signal("paid", {"amount": 5}, run_id=run.id)).state == "buffered"
        assert (await engine.wait(run.id, 20)).status == "completed"
        assert await engine.count(status="completed") == 1


async def test_cancel_while_waiting(make_engine: MakeEngine, log: list[Any]) -> None:
    """A run that was cancelled while it waited takes no more signals, and another one with the same key takes them."""
    order: Any = release(First)
    async with make_engine(order) as engine:
        one, two = await parked(engine, order), await parked(engine, order)
        await engine.signal("later", run_id=one.id)
        assert await engine.cancel(one.id, "enough")
        assert (await engine.signal("paid", key="shared")).delivered == [two.id]
        await one.refresh()
        assert (one.status, one.waiting_for, one.waiting_signal, one.wake_at) == ("cancelled", None, None, None)
        assert await kinds_of(engine, one) == ["start", "wait", "cancel"]
        assert await engine.count(waiting_signal="paid") == 0
    async with make_engine(order) as engine:
        stats = await engine.stats()
        assert (stats.mailbox, stats.expired_signals) == (0, 1)
    assert [entry["signal"] for entry in log if "expired" in entry["event"]] == ["later"]


async def test_cancel_against_signal(make_engine: MakeEngine) -> None:
    """If a cancel and a signal race, the run ends cancelled or takes the signal, as both callers are told."""
    order: Any = release(First)
    async with make_engine(order) as engine:
        for _ in range(10):
            run = await parked(engine, order)
            sent, cancelled = await asyncio.gather(
                engine.signal("paid", run_id=run.id), engine.cancel(run.id), return_exceptions=True
            )
            assert isinstance(cancelled, bool)
            await run.wait(5)
            assert run.status == ("cancelled" if cancelled else "completed")
            kinds = await kinds_of(engine, run)
            assert kinds.count("signal") == (getattr(sent, "state", "") == "delivered")


async def test_several_senders_one_taker_each(make_engine: MakeEngine) -> None:
    """Three engines that send and deliver to the same runs concurrently deliver each signal once."""

    @workflow("clients-loop")
    class Loop:
        class Context(BaseModel):
            taken: list[int] = []

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("number", key="shared", then=self.took)

        @step
        async def took(self, number: int) -> Command:
            taken = get_context(self.Context).taken
            if number < 0:
                return complete()
            taken.append(number)
            return goto(self.ask)

    async with (
        make_engine(Loop) as engine,
        make_engine(Loop, worker=False) as one,
        make_engine(Loop, worker=False) as two,
    ):
        runs = [await parked(engine, Loop) for _ in range(4)]
        senders = (engine, one, two)
        await asyncio.gather(
            *(senders[number % 3].signal("number", {"number": number}, key="shared") for number in range(90))
        )

        async def drained() -> bool:
            return (await engine.stats()).mailbox == 0

        await wait_until(drained, 15)
        for run in runs:
            await engine.signal("number", {"number": -1}, run_id=run.id)
        taken = [number for run in runs for number in (await run.wait(10)).data["taken"]]  # type: ignore[union-attr]
        assert sorted(taken) == list(range(90))  # type: ignore[type-var]
