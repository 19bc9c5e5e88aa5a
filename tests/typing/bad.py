"""Mistakes that type checkers must find: exactly the lines that end in ``# E``. Read by them, never run."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from pydantic import BaseModel

from aioflow import (
    Engine,
    GiveUp,
    Retry,
    RetryLater,
    StartOptions,
    WorkflowRun,
    complete,
    engine,
    fail,
    get_context,
    goto,
    sleep,
    step,
    workflow,
)
from aioflow.commands import Command
from aioflow.testing import TimeMachine


@workflow("order")
class Order:
    class Context(BaseModel):
        order_id: int
        total: Decimal = Decimal(0)

    @step(start=True)
    async def pay(self) -> Command:
        context = get_context(self.Context)
        context.totl = 3  # E
        context.total = "3"  # E
        return goto(self.ship)

    @step
    def ship(self) -> Command:
        goto(self.helper)  # E
        goto(self.shpi)  # E
        goto(self.helper())  # E
        goto(self.ship())  # E
        goto(3)  # E
        goto(self.amount)  # E
        goto(self.pay, progress="half")  # E
        sleep(5)  # E
        sleep("tomorrow")  # E
        sleep(timedelta(1), then=self.helper)  # E
        sleep(timedelta(1), then=self.amount)  # E
        sleep(timedelta(1), self.pay)  # E
        fail(ValueError("x"))  # E
        fail()  # E
        complete(1)  # E
        return goto(self.pay)

    @step
    async def awaits(self) -> Command:
        await goto(self.pay)  # E
        await sleep(timedelta(1))  # E
        return await complete()  # E

    @step  # E
    def nothing(self) -> None: ...

    @step()  # E
    def number(self) -> int:
        return 3

    @step  # E
    async def nothing_async(self) -> None: ...

    @step(title="A number")  # E
    async def number_async(self) -> int:
        return 3

    @step
    def amount(self, amount: int) -> Command:
        return complete(amount=amount)

    def helper(self) -> int:
        return 3


@workflow("created")
class Created:
    class Context(BaseModel):
        user_id: int
        email: str = ""

    @classmethod
    def create_context(cls, user_id: int, *, shout: bool = False) -> Context:
        return cls.Context(user_id=user_id, email="X" if shout else "x")

    @step(start=True)
    async def first(self) -> Command:
        return complete()


@workflow("created later")
class CreatedLater:
    class Context(BaseModel):
        order_id: int

    @classmethod
    async def create_context(cls, order_id: str) -> Context:
        return cls.Context(order_id=int(order_id))

    @step(start=True)
    def first(self) -> Command:
        return complete()


class NoContext:
    @step(start=True)
    def first(self) -> Command:
        return complete()


def keep(*values: object) -> None: ...


async def start() -> None:
    await engine.start(Order)  # E
    await engine.start(Order, order_id="x")  # E
    await engine.start(Order, order_id=1, totl=3)  # E
    await engine.start(Order, order_id=1, key="1")  # E
    await engine.start(Order, {"key": "1"}, order_id=1)  # E
    await engine.start(Created)  # E
    await engine.start(Created, user_id="x")  # E
    await engine.start(Created, user_id=1, shuot=True)  # E
    await engine.start(Created, user_id=1, email="of the Context, not of create_context")  # E
    await engine.start(CreatedLater, order_id=1)  # E
    await engine.start(CreatedLater, order_id="1", more=1)  # E
    await engine.start(NoContext)  # E
    await engine.start(3)  # E
    run = await engine.start(Order, order_id=1)
    assert run.context.totl  # E
    assert (await run.result()).totl  # E
    run.status = "failed"  # E
    wrong: WorkflowRun[Created.Context] = await engine.start(Order, order_id=1)  # E
    later: CreatedLater.Context = await run.result()  # E
    await run.wait(until="forever")  # E
    keep(wrong, later)


async def ask() -> None:
    assert (await engine.find(Order, "1")).context.totl  # E
    await engine.find(Order)  # E
    await engine.find(NoContext, "1")  # E
    await engine.find(Order, 1)  # E
    assert (await engine.runs(workflow=Order))[0].context.totl  # E
    await engine.runs(stauts="failed")  # E
    await engine.runs(created_after="yesterday")  # E
    await engine.count(limit=3)  # E
    await engine.get("1")  # E
    async for found in engine.iter_runs(workflow=Order):
        assert found.context.totl  # E


def options() -> None:
    StartOptions(reuse="x")  # E
    StartOptions(delay=5)  # E
    StartOptions(start_at="now")  # E
    StartOptions(key=1)  # E
    StartOptions("1")  # E
    Retry(max_attempts="3")  # E
    Retry(base_delay=1)  # E
    Retry(retry_on=(3,))  # E
    Retry(retry_on=("OSError",))  # E
    Retry(jitter="0")  # E
    RetryLater(5)  # E
    GiveUp()  # E
    Engine(workflows=["order"])  # E
    Engine(lease=30)  # E
    step(start="yes")  # E
    step(timeout=5)  # E
    step(retry=3)  # E
    workflow()  # E
    workflow("x", version=2)  # E
    workflow("x", default_retry=3)  # E
    get_context("Context")  # E


async def test(flow: TimeMachine) -> None:
    await flow.advance(hour=1)  # E
    await flow.advance("1h")  # E
    await flow.run_step("pay", Order.Context(order_id=1))  # E
    await flow.run_step(Order.pay, 3)  # E
    flow.now()  # E
    TimeMachine(clock=None)  # E
