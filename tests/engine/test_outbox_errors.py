"""Mistakes in what a step starts and sends: raised by the call, or a failure of the step."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    Retry,
    StartOptions,
    complete,
    errors,
    get_run,
    step,
    wait,
    workflow,
)
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.context import CurrentRun
from aioflow.store import IdKind
from aioflow_memory import MemoryStore
from tests.engine.conftest import MakeEngine, run_of
from tests.flows import flow

AT_ONCE = Retry(max_attempts=3, base_delay=timedelta(0))


class Paid(BaseModel):
    """A message."""

    amount: int


class Empty(BaseModel):
    """A Context without fields."""


@workflow("outbox-errors-child", default_retry=AT_ONCE)
class Child:
    """Waits for a message."""

    class Context(BaseModel):
        number: int = 0
        amount: int = 0

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal(Paid, then=self.end)

    @step
    async def end(self, paid: Paid) -> Command:
        return complete(amount=paid.amount)


def order_of(first: Any) -> Any:
    """A workflow with this first step, and a second one that completes the run."""

    def second(self: Any) -> Command:
        return complete()

    first.__name__ = "first"
    return flow(Empty, first, second)


async def children(engine: Engine) -> list[Any]:
    """The runs of Child, oldest first."""
    return await engine.runs(workflow=Child, order="id")


async def test_signals_without_a_receiver_are_dropped(make_engine: MakeEngine) -> None:
    """Signals to runs that have ended or do not exist, and broadcasts to none, are dropped; the step is committed."""

    async def first(self: Any) -> Command:
        get_run().signal("x", run_id=ended.id)
        get_run().signal("x", run_id=ended.id + 10_000)
        get_run().signal("x")
        get_run().signal("x", run_id=get_run().id)
        return complete()

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        ended = await engine.start(Child)
        await engine.cancel(ended.id)
        assert (await run_of(engine, order)).status == "completed"
        assert len(await engine.runs()) == 2


async def test_workflow_and_key_without_a_run_fail_the_step(make_engine: MakeEngine) -> None:
    """A signal to a workflow and key that no run has is an error of the step, which may be retried."""

    async def first(self: Any) -> Command:
        attempts.append(get_run().attempt)
        if len(attempts) == 2:
            get_run().signal(Paid(amount=1), workflow=Child, key="there")
        else:
            get_run().signal(Paid(amount=1), workflow=Child, key="none")
        return complete()

    attempts: list[int] = []
    order = order_of(first)
    async with make_engine(order, Child) as engine:
        child = await engine.start(Child, StartOptions(key="there"))
        run = await run_of(engine, order)
        assert (run.status, attempts) == ("completed", [1, 2])
        assert "with key 'none'" in str((await engine.history(run.id))[1].error)
        assert (await child.wait(5)).data["amount"] == 1


@pytest.mark.parametrize("run_id", ["1", [1], 1.5, True, 0, -1, 1 << 70, "nonsense"], ids=repr)
async def test_run_id_is_checked(make_engine: MakeEngine, run_id: Any) -> None:
    """A run_id that is no int fails the step, and one that no run can have reaches none; other runs go on as usual."""

    async def first(self: Any) -> Command:
        get_run().signal(Paid(amount=1), run_id=run_id)
        return complete()

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        child = await (await engine.start(Child)).wait(5, until="parked")
        run = await engine.start(order)
        others = await asyncio.gather(*(engine.start(Child) for _ in range(5)))
        assert (await run.wait(5)).status in ("failed", "completed")
        if not (isinstance(run_id, int) and not isinstance(run_id, bool)):
            assert run.status == "failed"
            assert "A run's id is an int" in str(run.error)
        await child.refresh()
        assert (child.status, child.row.seq) == ("waiting", 2)
        for other in others:
            assert (await other.wait(5, until="parked")).status == "waiting"


async def test_async_create_context_runs_after_the_step(make_engine: MakeEngine) -> None:
    """An async create_context of a started run is called after the step, and if it raises, the attempt has failed."""
    made: list[int] = []

    @workflow("outbox-made")
    class Made:
        class Context(BaseModel):
            number: int

        @classmethod
        async def create_context(cls, number: int) -> Context:
            made.append(number)
            if len(made) == 1:
                raise ValueError("no such number")
            return cls.Context(number=number * 2)

        @step(start=True)
        async def end(self) -> Command:
            return complete()

    async def first(self: Any) -> Command:
        get_run().signal("said", key="k")
        get_run().start(Made, number=4)
        return complete()

    order = order_of(first)
    async with make_engine(order, Made) as engine:
        run = await run_of(engine, order)
        history = await engine.history(run.id)
        assert [row.kind for row in history] == ["start", "retry", "wake", "complete"]
        assert "no such number" in str(history[1].error)
        (found,) = await engine.runs(workflow=Made)
        assert (await found.wait(5)).data == {"number": 8}
        assert (await engine.stats()).mailbox == 1


async def test_wrong_arguments_raise_in_the_step(make_engine: MakeEngine) -> None:
    """A wrong argument raises at the call, and a step that catches the error goes on with the rest."""
    caught: list[str] = []

    async def first(self: Any) -> Command:
        me: Any = get_run()
        calls: list[Any] = [
            lambda: me.start(Child, nonsense=1),
            lambda: me.start(Child, {"key": "k"}),
            lambda: me.start("nonesuch"),
            lambda: me.start(Empty),
            lambda: me.signal("x", run_id=1, key="k"),
            lambda: me.signal(Paid),
            lambda: me.signal("x", {"a": float("nan")}),
            lambda: me.signal("x", workflow=Empty, key="k"),
        ]
        for call in calls:
            try:
                call()
            except Exception as error:
                caught.append(type(error).__name__)
        me.start(Child)
        return complete()

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        assert (await run_of(engine, order)).status == "completed"
        expected = ["TypeError", "TypeError", "WorkflowUnknown", "TypeError", "TypeError", "TypeError"]
        assert caught == [*expected, "LimitExceeded", "TypeError"]
        assert len(await children(engine)) == 1


async def test_orders_after_the_return_are_refused(make_engine: MakeEngine) -> None:
    """start and signal after the step has returned are UsageErrors, and nothing is started."""
    kept: list[CurrentRun] = []

    async def first(self: Any) -> Command:
        kept.append(get_run())
        return complete()

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        run = await run_of(engine, order)
        too_late = f"Step 'first' of run {run.id} has returned"
        with pytest.raises(errors.UsageError, match=too_late):
            kept[0].start(Child)
        with pytest.raises(errors.UsageError, match=too_late):
            kept[0].signal("x", key="k")
        assert await children(engine) == []


async def test_limit_of_orders(make_engine: MakeEngine) -> None:
    """A step may start and send 1000 in all, and one more is LimitExceeded."""

    async def first(self: Any) -> Command:
        for number in range(1000):
            get_run().signal("x", {"number": number}, key="k")
        with pytest.raises(errors.LimitExceeded, match="1000 starts, signals and events"):
            get_run().start(Child)
        return complete()

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        assert (await run_of(engine, order)).status == "completed"
        assert (await engine.stats()).mailbox == 1000


class Away(MemoryStore):
    """A store that fails this many times to reserve ids of signals."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        if kind == "signal" and self.times:
            self.times -= 1
            raise errors.StoreUnavailable(self.name, "the connection was lost")
        return await super().reserve(kind, count, now)


async def test_a_store_that_is_away_is_no_failure_of_the_step() -> None:
    """If the store is unavailable when a step has returned, its run waits for it without using up an attempt."""

    async def first(self: object) -> Command:
        get_run().signal("paid", {"amount": 17}, key="order-1")
        return complete()

    store = Away(1)
    order = order_of(first)
    async with Engine(store, workflows=[order]) as engine:
        run = await (await engine.start(order)).wait(5)
        assert store.times == 0
        assert [transition.kind for transition in await engine.history(run.id)] == ["start", "complete"]
        assert (await engine.stats()).mailbox == 1
