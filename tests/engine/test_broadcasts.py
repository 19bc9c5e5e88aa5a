"""Broadcasts: signals to every run that waits for the name now, once, and to none that waits later."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict

from aioflow import Engine, StartOptions, WorkflowRun, complete, get_context, goto, on, step, wait, workflow
from aioflow.commands import Command
from aioflow.store import Mail
from aioflow_memory import MemoryStore
from tests.engine.conftest import MakeEngine, kinds_of, moved_on


@workflow("broadcasts-order")
class Order:
    """Waits for "paid" or "go", as many times as its Context says."""

    class Context(BaseModel):
        model_config = ConfigDict(extra="forbid")
        amount: int = 0
        times: int = 1

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(on("paid", key="k", then=self.took), on("go", then=self.took))

    @step
    async def took(self) -> Command:
        context = get_context(self.Context)
        context.times -= 1
        return goto(self.ask) if context.times else complete()


async def parked(engine: Engine, order: Any, options: StartOptions | None = None, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(order, options or StartOptions(), **context)
    return await run.wait(5, until="parked")


async def test_all_waiting_runs_get_a_broadcast(make_engine: MakeEngine) -> None:
    """All runs that wait for the name take a broadcast, whatever their keys, and the receipt lists them."""
    async with make_engine(Order) as engine:
        runs = [await parked(engine, Order, StartOptions(key=f"order-{i}")) for i in range(20)]
        receipt = await engine.signal("paid", {"amount": 5})
        assert (receipt.state, receipt.rejected) == ("delivered", {})
        assert receipt.delivered == sorted(run.id for run in runs)
        for run in runs:
            assert (await run.wait(5)).data == {"amount": 5, "times": 0}
        assert (await engine.stats()).mailbox == 0


async def test_large_broadcasts_are_read_a_few_at_a_time() -> None:
    """While megabytes of payloads or Contexts are read, the mail of few runs is read at once, else that of more."""
    sizes: list[int] = []

    class Read(MemoryStore):
        async def mail(self, run_ids: Collection[int] | None, *args: Any, **options: Any) -> list[Mail]:
            sizes.append(0 if run_ids is None else len(run_ids))
            return await super().mail(run_ids, *args, **options)

    @workflow("broadcasts-large")
    class Large:
        class Context(BaseModel):
            text: str = ""
            more: str = ""

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", then=self.took)

        @step
        async def took(self) -> Command:
            return complete(text="", more="")

    small, large = "x", "x" * 1_000_000
    async with Engine(Read(), workflows=[Large]) as engine:
        for count, more, text, expected in (
            (67, small, large, {20, 7}),
            (67, small, small, {7, 20, 40}),
            (1, small, small, {1}),
            (67, large, small, {20, 7}),  # not more because the one run before had little
        ):
            runs = [await (await engine.start(Large, more=more)).wait(5, until="parked") for _ in range(count)]
            sizes.clear()
            await engine.signal("paid", {"text": text})
            for run in runs:
                await run.wait(10)
            assert expected <= set(sizes)
            assert max(sizes) <= max(expected)


async def test_large_mail_is_looked_for_a_few_runs_at_a_time() -> None:
    """A worker that looks for runs with mail reads that of few with megabytes, else of as many as it can take."""
    sizes: list[tuple[int, int]] = []

    class Read(MemoryStore):
        async def mail(self, run_ids: Collection[int] | None, limit: int, *args: Any, **options: Any) -> list[Mail]:
            found = await super().mail(run_ids, limit, *args, **options)
            if run_ids is None and found:
                sizes.append((limit, len(found)))
            return found

    @workflow("broadcasts-noted")
    class Noted:
        class Context(BaseModel):
            text: str = ""

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", then=self.took)

        @step
        async def took(self) -> Command:
            return complete(text="")

    store = Read()
    for text in ("x" * 1_000_000, "x"):
        async with Engine(store, workflows=[Noted]) as engine:
            runs = [(await parked(engine, Noted)).id for _ in range(30)]
        async with Engine(store, workflows=[Order], worker=False) as client:  # without the code that could take it
            for run_id in runs:
                await client.signal("paid", {"text": text}, run_id=run_id)
        sizes.clear()
        async with Engine(store, workflows=[Noted]) as engine:
            for run_id in runs:
                await (await engine.get(run_id)).wait(10)
        assert sizes[0] == (20, 20)
        assert (max(sizes) == (20, 20)) if len(text) > 1 else (sizes[1] == (480, 10))


async def test_a_broadcast_without_waiters_is_dropped(make_engine: MakeEngine) -> None:
    """A broadcast that no run waits for is dropped: a later wait does not take it."""
    async with make_engine(Order) as engine:
        receipt = await engine.signal("paid", {"amount": 5})
        assert (receipt.state, receipt.delivered, receipt.rejected) == ("none", [], {})
        run = await parked(engine, Order)
        assert (await engine.signal("other")).state == "none"
        assert (run.status, run.data["amount"]) == ("waiting", 0)
        assert await kinds_of(engine, run) == ["start", "wait"]
        assert (await engine.stats()).mailbox == 0


async def test_a_broadcast_may_be_rejected_by_some(make_engine: MakeEngine) -> None:
    """Runs that a broadcast fits take it; the others are listed as rejected, with the reason, and wait on."""

    @workflow("broadcasts-text")
    class Text:
        class Context(BaseModel):
            amount: str = ""

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Order, Text) as engine:
        number, text = await parked(engine, Order), await parked(engine, Text)
        receipt = await engine.signal("paid", {"amount": "many"})
        assert (receipt.state, receipt.delivered, list(receipt.rejected)) == ("delivered", [text.id], [number.id])
        assert "amount" in receipt.rejected[number.id]
        assert (await text.wait(5)).data == {"amount": "many"}
        assert (await engine.get(number.id)).waiting_signal == "paid"
        receipt = await engine.signal("paid", {"amount": "few"})
        assert (receipt.state, receipt.delivered, list(receipt.rejected)) == ("rejected", [], [number.id])
        assert (await engine.signal("paid", {"amount": 1})).delivered == [number.id]


async def test_copy_dies_with_the_wait_it_was_made_for(make_engine: MakeEngine, log: list[Any]) -> None:
    """Of concurrent broadcasts a run takes only those for its current wait, and no copy is kept for a later one."""
    async with make_engine(Order) as engine:
        runs = [await parked(engine, Order, times=3) for _ in range(5)]
        receipts = await asyncio.gather(engine.signal("paid"), engine.signal("go"), engine.signal("go"))
        assert receipts[0].state == "delivered"
        for run in runs:
            await run.wait(5, until="parked")
        taken = sum([(await kinds_of(engine, run)).count("signal") for run in runs])
        assert taken == sum(len(receipt.delivered) for receipt in receipts)
        for run in runs:
            await engine.cancel(run.id)
        assert not [entry for entry in log if "expired" in entry["event"]]


async def test_each_broadcast_is_taken_once(make_engine: MakeEngine) -> None:
    """A run that waits again after each broadcast takes them one by one."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order, times=10)
        for amount in range(10):
            assert (await engine.signal("go", {"amount": amount})).delivered == [run.id]
            await moved_on(run)
            await run.wait(5, until="parked")
            assert run.data == {"amount": amount, "times": 9 - amount}
        assert run.status == "completed"


async def test_broadcast_with_an_id_is_sent_once(make_engine: MakeEngine) -> None:
    """A broadcast with a signal_id is sent once: a second call sends nothing and gives the first receipt."""
    async with make_engine(Order) as engine:
        one = await parked(engine, Order)
        first = await engine.signal("paid", signal_id="once")
        assert first.delivered == [one.id]
        two = await parked(engine, Order)
        second = await engine.signal("paid", signal_id="once")
        assert (second.state, second.delivered) == ("delivered", [one.id])
        assert (await engine.get(two.id)).status == "waiting"
        assert (await engine.signal("nobody", signal_id="lone")).state == "none"
        assert (await engine.signal("nobody", signal_id="lone")).state == "none"


async def test_client_broadcasts(make_engine: MakeEngine) -> None:
    """A broadcast from a client reaches the runs of a worker, even if the client does not know their workflow."""
    async with make_engine(Order) as engine:
        for workflows in ([Order], [Other]):
            runs = [await parked(engine, Order) for _ in range(3)]
            async with make_engine(worker=False, workflows=workflows) as client:
                receipt = await client.signal("go", {"amount": 5})
                assert receipt.state in ("delivered", "buffered")  # the worker may be faster
                assert set(receipt.delivered) <= {run.id for run in runs}
            for run in runs:
                assert (await run.wait(5)).data["amount"] == 5


@workflow("broadcasts-other")
class Other:
    """The only workflow that the client knows."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def end(self) -> Command:
        return complete()
