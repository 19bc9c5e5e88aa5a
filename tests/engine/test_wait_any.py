"""Waits with several arms: the first arm that is answered decides."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    SignalReceipt,
    StartOptions,
    WorkflowRun,
    complete,
    errors,
    get_context,
    get_run,
    goto,
    on,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of, moved_on

HOUR = timedelta(hours=1)


class Paid(BaseModel):
    """A message."""

    amount: int


@workflow("any-order")
class Order:
    """Waits with four arms and a timeout."""

    class Context(BaseModel):
        by: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(
            on(Paid, then=self.ship),
            on("cancel", then=self.stop),
            on("cancel", key="late", then=self.end),
            on("poke", key="other", then=self.ask_again),
            timeout=HOUR,
            on_timeout=self.late,
        )

    @step
    async def ship(self, paid: Paid) -> Command:
        return complete(by=f"paid {paid.amount}")

    @step
    async def stop(self, why: str = "no reason") -> Command:
        return complete(by=f"stopped for {why}")

    @step
    async def ask_again(self) -> Command:
        return goto(self.ask)

    @step
    async def late(self) -> Command:
        return complete(by="late")

    @step
    async def end(self) -> Command:
        return complete(by="end")


async def parked(engine: Engine, order: Any, /, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(order, **context)
    return await run.wait(5, until="parked")


@pytest.mark.parametrize(
    ("signal", "address", "by"),
    [
        ((Paid(amount=3),), {}, "paid 3"),
        (("Paid", {"amount": 4}), {}, "paid 4"),
        (("cancel",), {}, "stopped for no reason"),
        (("cancel", {"why": "fun"}), {}, "stopped for fun"),
        (("cancel",), {"key": "late"}, "end"),
    ],
)
async def test_arm_that_is_answered_leads_on(make_engine: MakeEngine, signal: Any, address: Any, by: str) -> None:
    """Each arm leads to its own step, for a message or a name, with a key or without."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
        assert (run.waiting_signal, run.waiting_key, run.on_timeout) == ("Paid", None, "late")
        receipt = await engine.signal(*signal, **(address or {"run_id": run.id}))
        assert receipt.delivered == [run.id]
        assert (await run.wait(5)).data["by"] == by


async def test_unanswered_arms_lead_to_on_timeout(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """If no arm is answered in time, the run goes to on_timeout."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
        clock.shift(HOUR)
        assert (await run.wait(5)).data["by"] == "late"


async def test_first_of_two_signals_wins(make_engine: MakeEngine) -> None:
    """Of two signals sent at once the first resumes the run, and the second is buffered or refused with RunEnded."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
        first, second = await asyncio.gather(
            engine.signal("cancel", run_id=run.id), engine.signal(Paid(amount=1), run_id=run.id), return_exceptions=True
        )
        assert isinstance(first, SignalReceipt)
        assert first.state == "delivered"
        assert isinstance(second, errors.RunEnded) or second == SignalReceipt("buffered")
        assert (await run.wait(5)).data["by"] == "stopped for no reason"
        assert (await kinds_of(engine, run)).count("signal") == 1


async def test_first_that_was_buffered_wins(make_engine: MakeEngine) -> None:
    """A run that parks takes the signal that was sent first, even if it fits a later arm."""
    async with make_engine(Order) as engine:
        await engine.signal("cancel", {"why": "order"}, key="k")
        await engine.signal(Paid(amount=1), key="k")
        run = await engine.start(Order, StartOptions(key="k"))
        assert (await run.wait(5)).data["by"] == "stopped for order"


async def test_run_can_wait_for_the_same_again(make_engine: MakeEngine) -> None:
    """An arm may lead back to the wait, which is then a new one with its own deadline, and takes the next signal."""
    async with make_engine(Order) as engine:
        run = await parked(engine, Order)
        woke = run.wake_at
        for _ in range(3):
            assert (await engine.signal("poke", key="other")).delivered == [run.id]
            await moved_on(run)
            await run.wait(5, until="parked")
        assert run.wake_at is not None
        assert woke is not None
        assert run.wake_at > woke
        await engine.signal("cancel", key="late")
        assert (await run.wait(5)).data["by"] == "end"


async def test_many_arms_with_long_names(make_engine: MakeEngine) -> None:
    """A wait may have 50 arms with names and keys of 200 characters, of which each can be answered."""
    names = [f"{i:03}" + "ñ" * 197 for i in range(50)]

    @workflow("any-many")
    class Flow:
        class Context(BaseModel):
            taken: list[int] = []

        @step(start=True)
        async def ask(self) -> Command:
            return wait.any(*(on(name, key=name[::-1], then=self.again) for name in names))

        @step
        async def again(self, number: int) -> Command:
            context = get_context(self.Context)
            context.taken.append(number)
            return complete() if len(context.taken) == 3 else goto(self.ask)

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        await engine.signal(names[49], {"number": 49}, key=names[49][::-1])
        await moved_on(run)
        await run.wait(5, until="parked")
        assert [found.id for found in await engine.runs(waiting_signal=names[17])] == [run.id]
        await engine.signal(names[0], {"number": 0}, run_id=run.id)
        await moved_on(run)
        await run.wait(5, until="parked")
        assert (await engine.signal(names[25], {"number": 25})).delivered == [run.id]
        assert (await run.wait(5)).data["taken"] == [49, 0, 25]


async def test_arms_of_one_name(make_engine: MakeEngine) -> None:
    """Arms with one name are distinguished by their keys, and of several that fit the first counts."""

    @workflow("any-one-name")
    class Flow:
        class Context(BaseModel):
            by: str = ""

        @step(start=True)
        async def ask(self) -> Command:
            return wait.any(on("x", key="1", then=self.one), on("x", key="2", then=self.two), on("x", then=self.three))

        @step
        async def one(self) -> Command:
            return complete(by="one")

        @step
        async def two(self) -> Command:
            return complete(by="two")

        @step
        async def three(self) -> Command:
            return complete(by="three")

    async with make_engine(Flow) as engine:
        for address, by in (({"key": "2"}, "two"), ({"key": "own"}, "three"), ({"key": "1"}, "one"), ({}, "one")):
            run = await (await engine.start(Flow, StartOptions(key="own", reuse="ended"))).wait(5, until="parked")
            assert (await engine.signal("x", **address)).delivered == [run.id]  # type: ignore[arg-type]
            assert (await run.wait(5)).data == {"by": by}


async def test_then_and_on_timeout_may_be_one_step(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """then= and on_timeout= may name one step, which learns from timed_out which it was, also in a retry."""
    seen: list[tuple[str, int, bool]] = []

    @workflow("any-both")
    class Flow:
        class Context(BaseModel):
            name: str

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", timeout=HOUR, on_timeout=self.both, then=self.both)

        @step
        async def both(self) -> Command:
            run = get_run()
            seen.append((get_context(self.Context).name, run.attempt, run.timed_out))
            if run.attempt == 1:
                raise RuntimeError("once")
            return goto(self.end)

        @step
        async def end(self) -> Command:
            seen.append((get_context(self.Context).name, 0, get_run().timed_out))
            return complete()

    async with make_engine(Flow) as engine:
        paid = await parked(engine, Flow, name="paid")
        late = await parked(engine, Flow, name="late")
        await engine.signal("paid", run_id=paid.id)
        clock.shift(HOUR)
        for run in (paid, late):
            await moved_on(run)
            await run.wait(5, until="parked")
        clock.shift(HOUR)
        for run in (paid, late):
            await run.wait(5)
        assert sorted(seen) == [
            ("late", 0, False),
            ("late", 1, True),
            ("late", 2, True),
            ("paid", 0, False),
            ("paid", 1, False),
            ("paid", 2, False),
        ]


async def test_runs_are_found_by_what_they_wait_for(make_engine: MakeEngine) -> None:
    """waiting_signal and waiting_key match a run by any arm, and together by one and the same arm."""

    @workflow("any-found")
    class Flow:
        class Context(BaseModel):
            pairs: list[tuple[str, str | None]]

        @step(start=True)
        async def ask(self) -> Command:
            pairs = get_context(self.Context).pairs
            return wait.any(*(on(name, key=key, then=self.end) for name, key in pairs))

        @step
        async def end(self) -> Command:
            return goto("last")

        @step
        async def last(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        one = await parked(engine, Flow, pairs=[("a", "1"), ("b", "2")])
        two = await parked(engine, Flow, pairs=[("b", "1")])
        three = await parked(engine, Flow, pairs=[("c", None)])

        async def found(**filters: Any) -> set[int]:
            ids = [run.id for run in await engine.runs(**filters)]
            assert len(ids) == await engine.count(**filters) == len(set(ids))
            return set(ids)

        assert await found(waiting_signal="b") == {one.id, two.id}
        assert await found(waiting_key="1") == {one.id, two.id}
        assert await found(waiting_signal="b", waiting_key="1") == {two.id}
        assert await found(waiting_signal=["a", "c"]) == {one.id, three.id}
        assert await found(waiting_signal="d") == set()
        assert await found(waiting_for="signal", workflow=Flow) == {one.id, two.id, three.id}
        assert (one.waiting_signal, one.waiting_key) == ("a", "1")
        assert (await engine.stats()).waiting == {"signal": 3}
        await engine.signal("b", run_id=one.id)
        await one.wait(5)
        assert await found(waiting_signal="b") == {two.id}
        assert await kinds_of(engine, one) == ["start", "wait", "signal", "goto", "complete"]
