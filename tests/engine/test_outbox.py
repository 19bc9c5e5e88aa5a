"""What a step starts and sends is committed with its transition, once, or not at all."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    Retry,
    StartOptions,
    complete,
    fail,
    get_context,
    get_run,
    goto,
    step,
    wait,
    workflow,
)
from aioflow.changes import Start
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, run_of
from tests.flows import flow
from tests.support import wait_until

AT_ONCE = Retry(max_attempts=3, base_delay=timedelta(0))


class Paid(BaseModel):
    """A message."""

    amount: int


class Empty(BaseModel):
    """A Context without fields."""


@workflow("outbox-child", default_retry=AT_ONCE)
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


@pytest.mark.parametrize("sync", [False, True])
async def test_step_starts_and_signals(make_engine: MakeEngine, sync: bool) -> None:
    """Sync and async steps start runs, which have their parent's id, and send a signal to the key of one of them."""

    def orders() -> Command:
        me = get_run()
        me.start(Child, StartOptions(key="one"), number=1)
        me.start("outbox-child", StartOptions(key="two", delay=timedelta(hours=1)), number=2)
        me.signal(Paid(amount=5), key="one")
        return goto("second")

    def in_thread(self: Any) -> Command:
        return orders()

    async def on_loop(self: Any) -> Command:
        return orders()

    order = order_of(in_thread if sync else on_loop)
    async with make_engine(order, Child) as engine:
        run = await run_of(engine, order)
        one, two = await children(engine)
        assert (one.key, one.parent_id, two.key, two.parent_id) == ("one", run.id, "two", run.id)
        assert (run.parent_id, run.status) == (None, "completed")
        assert (await one.wait(5)).data == {"number": 1, "amount": 5}
        assert (two.status, two.waiting_for) == ("waiting", "start")


@pytest.mark.parametrize("created", [False, True])
async def test_a_run_is_started_with_what_its_values_were_then(make_engine: MakeEngine, created: bool) -> None:
    """A run is started with the values at the time of the call, even if the step changes the objects later."""

    class Line(BaseModel):
        sku: str

    class Order(BaseModel):
        lines: list[Line]
        notes: dict[str, list[int]]
        tags: set[str]

    async def end(self: Any) -> Command:
        return complete()

    async def create_context(lines: list[Line], notes: dict[str, list[int]], tags: set[str]) -> Order:
        await asyncio.sleep(0)
        return Order(lines=lines, notes=notes, tags=tags)

    body = {"Context": Order, "end": step(start=True)(end)}
    if created:
        body["create_context"] = staticmethod(create_context)
    ordered: Any = workflow("ordered")(type("Ordered", (), body))

    async def first(self: Any) -> Command:
        lines, notes, tags = [Line(sku="a")], {"x": [1]}, {"new"}
        get_run().start(ordered, lines=lines, notes=notes, tags=tags)
        lines[0].sku = "b"
        lines.clear()
        notes["x"].append(2)
        tags.clear()
        return goto("second")

    order = order_of(first)
    async with make_engine(order, ordered) as engine:
        await run_of(engine, order)
        [run] = await engine.runs(workflow=ordered)
        assert run.data == {"lines": [{"sku": "a"}], "notes": {"x": [1]}, "tags": ["new"]}


async def test_failed_attempt_orders_nothing(make_engine: MakeEngine) -> None:
    """What a failed attempt started and sent is discarded, and what the successful one does is committed once."""

    async def first(self: Any) -> Command:
        get_run().start(Child)
        get_run().signal("said", key="k")
        if get_run().attempt < 3:
            raise RuntimeError("again")
        return goto("second")

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        assert (await run_of(engine, order)).status == "completed"
        assert len(await children(engine)) == 1
        assert (await engine.stats()).mailbox == 1


@pytest.mark.parametrize("how", ["raise", "no command", "unknown target", "bad context"])
async def test_step_that_fails_for_good_orders_nothing(make_engine: MakeEngine, how: str) -> None:
    """A step that fails starts and sends nothing, but one that returns fail() does."""

    async def first(self: Any) -> Any:
        get_run().start(Child)
        get_run().signal("said", key="k")
        match how:
            case "raise":
                raise RuntimeError("always")
            case "no command":
                return None
            case "unknown target":
                return goto("nowhere" + "")
            case _:
                get_context().__dict__["odd"] = object()
                return complete(odd=object())

    async def failing(self: Any) -> Command:
        get_run().start(Child)
        return fail("on purpose")

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        assert (await run_of(engine, order)).status == "failed"
        assert await children(engine) == []
        assert (await engine.stats()).mailbox == 0
    order = order_of(failing)
    async with make_engine(order, Child) as engine:
        assert (await run_of(engine, order)).error == "on purpose"
        assert len(await children(engine)) == 1


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_step_that_does_not_commit_orders_nothing(make_engine: MakeEngine, how: str) -> None:
    """A cancelled step starts and sends nothing, and one interrupted by a close does so once, when it has run again."""
    gate, inside = asyncio.Event(), []

    async def first(self: Any) -> Command:
        get_run().start(Child)
        get_run().signal("said", key="k")
        inside.append(get_run().attempt)
        if len(inside) == 1:
            await gate.wait()
        return complete()

    order = order_of(first)
    async with make_engine(order, Child, shutdown_timeout=timedelta(0)) as engine:
        run = await engine.start(order)
        await wait_until(lambda: inside)
        assert await children(engine) == []
        if how == "cancel":
            await engine.cancel(run.id)
    async with make_engine(order, Child) as engine:
        found = await engine.wait(run.id, 5)
        assert found.status == ("cancelled" if how == "cancel" else "completed")
        expected = 0 if how == "cancel" else 1
        assert (len(await children(engine)), (await engine.stats()).mailbox) == (expected, expected)


@pytest.mark.parametrize(("reuse", "starts"), [("never", 1), ("ended", 2)])
async def test_successor_under_the_same_key(make_engine: MakeEngine, reuse: Any, starts: int) -> None:
    """A step that completes its run may start one with the same key, unless reuse="never"."""

    @workflow("outbox-monthly")
    class Monthly:
        class Context(BaseModel):
            month: int = 1

        @step(start=True)
        async def bill(self) -> Command:
            month = get_context(self.Context).month
            if month < 2:
                get_run().start(Monthly, StartOptions(key="customer", reuse=reuse), month=month + 1)
            return complete()

    async with make_engine(Monthly) as engine:
        first = await (await engine.start(Monthly, StartOptions(key="customer"))).wait(5)
        found = await engine.runs(workflow=Monthly, order="id")
        assert [(run.key, run.data["month"]) for run in found] == [("customer", 1), ("customer", 2)][:starts]
        for run in found:
            assert (await run.wait(5)).status == "completed"
        assert first.status == "completed"


async def test_key_that_is_taken_starts_nothing(make_engine: MakeEngine) -> None:
    """A start whose key is taken is left out, and the rest of the transition is committed."""

    async def first(self: Any) -> Command:
        get_run().start(Child, StartOptions(key="one"), number=2)
        get_run().start(Child, StartOptions(key="two"), number=3)
        return complete()

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        one = await engine.start(Child, StartOptions(key="one"), number=1)
        assert (await run_of(engine, order)).status == "completed"
        found = await children(engine)
        assert [(run.key, run.data["number"]) for run in found] == [("one", 1), ("two", 3)]
        assert found[0].id == one.id


async def test_same_key_and_same_id_twice_in_one_step(make_engine: MakeEngine) -> None:
    """Of several starts with one key, and of several signals with one signal_id, in one step, the first counts."""

    async def first(self: Any) -> Command:
        for number in range(3):
            get_run().start(Child, StartOptions(key="one", reuse="ended"), number=number)
            get_run().signal("said", {"number": number}, key="k", signal_id="same")
        return complete()

    order = order_of(first)
    async with make_engine(order, Child) as engine:
        assert (await run_of(engine, order)).status == "completed"
        assert [run.data["number"] for run in await children(engine)] == [0]
        assert (await engine.stats()).mailbox == 1


async def test_signal_to_itself(make_engine: MakeEngine) -> None:
    """A step may send a signal to its own run, which takes it when it waits."""

    @workflow("outbox-self")
    class Flow:
        class Context(BaseModel):
            path: list[int] = []

        @step(start=True)
        async def ask(self) -> Command:
            number = len(get_context(self.Context).path)
            get_run().signal("next", {"number": number}, run_id=get_run().id)
            return wait.for_signal("next", then=self.took)

        @step
        async def took(self, number: int) -> Command:
            path = get_context(self.Context).path
            path.append(number)
            return complete() if len(path) == 3 else goto(self.ask)

    async with make_engine(Flow) as engine:
        assert (await run_of(engine, Flow)).data["path"] == [0, 1, 2]


async def test_a_child_is_signalled_by_the_step_that_starts_it(make_engine: MakeEngine) -> None:
    """A signal to a workflow and key reaches the run that the same step starts with that key."""

    @workflow("outbox-waiting-child")
    class Waiting:
        class Context(BaseModel):
            number: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("go", then=self.done)

        @step
        async def done(self) -> Command:
            return complete()

    async def first(self: Any) -> Command:
        get_run().start(Waiting, StartOptions(key="child"))
        get_run().signal("go", {"number": 7}, workflow=Waiting, key="child")
        return complete()

    order = order_of(first)
    async with make_engine(order, Waiting) as engine:
        assert (await run_of(engine, order)).status == "completed"
        child = await engine.find(Waiting, "child")
        assert (await child.result(timeout=10)).number == 7


async def test_threads_of_a_step_may_order_at_once(make_engine: MakeEngine) -> None:
    """A sync step may send from several threads at once, and no signal is lost."""
    threads = 8

    @workflow("outbox-threads")
    class Threads:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self) -> Command:
            run, barrier = get_run(), threading.Barrier(threads)

            def send(number: int) -> None:
                barrier.wait()
                run.signal("s", key=f"{run.id}-{number}")

            sending = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
            for thread in sending:
                thread.start()
            for thread in sending:
                thread.join()
            return complete()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with make_engine(Threads) as engine:
            for runs in range(1, 31):
                await run_of(engine, Threads)
                assert (await engine.stats()).mailbox == threads * runs
    finally:
        sys.setswitchinterval(before)


async def test_what_a_step_started_is_not_kept_while_the_next_one_runs(make_engine: MakeEngine) -> None:
    """Once the starts of a step are committed, the run that goes on keeps none of them in memory."""
    inside, gate = asyncio.Event(), asyncio.Event()

    async def first(self: Any) -> Command:
        for number in range(3):
            get_run().start(Child, number=number)
        return goto("second")

    async def second(self: Any) -> Command:
        inside.set()
        await gate.wait()
        return complete()

    order = flow(Empty, first, second)
    async with make_engine(order, Child) as engine:
        run = await engine.start(order)
        await inside.wait()
        for child in await children(engine):
            await child.wait(5, until="parked")
        assert [each for each in gc.get_objects() if type(each) is Start and each.run.parent_id == run.id] == []
        gate.set()
        assert (await run.wait(5)).status == "completed"
