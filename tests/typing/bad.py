"""Mistakes that type checkers must find, exactly in the lines that end in ``# E``. Read by the checkers, never run."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel

from aioflow import (
    Engine,
    Event,
    Failure,
    GiveUp,
    Retry,
    RetryLater,
    StartOptions,
    WorkflowRun,
    action,
    complete,
    engine,
    entity_loader,
    entity_type,
    event_workflow,
    fail,
    get_context,
    get_run,
    goto,
    on,
    sleep,
    statezero_action,
    step,
    wait,
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


@event_workflow("visit")
class Reminder:
    class Context(BaseModel):
        event_id: str

    @classmethod
    def create_context(cls, event: Event) -> Context:
        event.name = "other"  # E
        assert event.event_id  # E
        return cls.Context(event_id=event.at)  # E

    @step(start=True)
    async def first(self) -> Command:
        get_run().emit()  # E
        get_run().emit("reminded", at="now")  # E
        await get_run().emit("reminded")  # E
        return complete()


class NoContext:
    @step(start=True)
    def first(self) -> Command:
        return complete()


class Paid(BaseModel):
    amount: int


class Sent(BaseModel):
    by: str


@workflow("waits", timeout=timedelta(days=1), on_timeout="late")
class Waits:
    class Context(BaseModel):
        order_id: int

    @step(start=True)
    async def ask(self) -> Command:
        wait.for_signal(Sent, then=self.paid)  # E
        wait.for_signal(Sent, then=self.paid_async)  # E
        wait.for_signal(Paid, then=self.more)  # E
        wait.for_signal(Paid, then=self.helper)  # E
        wait.for_signal(Paid, then=self.shpi)  # E
        wait.for_signal(Paid, then=self.late())  # E
        wait.for_signal(Paid, timeout=timedelta(1), on_timeout=self.paid)  # E
        wait.for_signal("paid", timeout=timedelta(1), on_timeout=self.paid)  # E
        wait.for_signal("paid", timeout=timedelta(1), on_timeout=self.helper)  # E
        wait.for_signal("paid", then=self.helper)  # E
        wait.for_signal("paid", timeout=5)  # E
        wait.for_signal("paid", key=5)  # E
        wait.for_signal("paid", self.late)  # E
        wait.for_signal(Paid(amount=1))  # E
        wait.for_signal(int)  # E
        wait.for_signal()  # E
        wait.any(self.late)  # E
        wait.any("paid")  # E
        wait.any(on("paid", then=self.late), timeout=timedelta(1), on_timeout=self.paid)  # E
        wait.any(on("paid", then=self.late), timeout="tomorrow", on_timeout=self.late)  # E
        wait.any(on("paid", then=self.late), then=self.late)  # E
        on("paid")  # E
        on(Paid)  # E
        on(Sent, then=self.paid)  # E
        on(Sent, then=self.paid_async)  # E
        on(Paid, then=self.more)  # E
        on(Paid, then=self.helper)  # E
        on("paid", then=self.helper)  # E
        on("paid", then=None)  # E
        on("paid", then=self.late, timeout=timedelta(1))  # E
        goto(self.paid)  # E
        sleep(timedelta(1), then=self.paid)  # E
        await wait.for_signal("paid")  # E
        await wait.any(on("paid", then=self.late))  # E
        return on("paid", then=self.late)  # E

    @step
    def paid(self, paid: Paid) -> Command:
        return complete(paid=paid.amuont)  # E

    @step
    async def paid_async(self, paid: Paid) -> Command:
        return complete()

    @step
    def more(self, paid: Paid, by: str) -> Command:
        return complete()

    @step
    def late(self) -> Command:
        run = get_run()
        run.start(Order)  # E
        run.start(Order, order_id="x")  # E
        run.start(Order, order_id=1, totl=3)  # E
        run.start(Order, order_id=1, key="1")  # E
        run.start(Order, {"key": "1"}, order_id=1)  # E
        run.start(NoContext)  # E
        run.start(3)  # E
        run.signal(3)  # E
        run.signal("paid", 3)  # E
        run.signal("paid", run_id="1")  # E
        run.signal("paid", ttl=5)  # E
        run.signal("paid", {"amount": 3}, "order-1")  # E
        run.deadline = None  # E
        return complete()

    @step  # E
    def forgets(self) -> None:
        wait.for_signal("paid", then=self.late)

    @step  # E
    async def forgets_async(self) -> None:
        wait.any(on("paid", then=self.late))

    @step(on_fail=3)  # E
    def fails(self, failure: Failure) -> Command:
        failure.attempts = 3  # E
        ends: Literal["exhausted", "timeout"] = failure.kind  # E
        keep(ends, failure.reason)  # E
        return fail(failure)  # E

    def helper(self) -> int:
        return 3


async def send() -> None:
    await engine.signal()  # E
    await engine.signal(3)  # E
    await engine.signal("paid", 3)  # E
    await engine.signal("paid", Paid(amount=1))  # E
    await engine.signal("paid", run_id="1")  # E
    await engine.signal("paid", key=1)  # E
    await engine.signal("paid", ttl=5)  # E
    await engine.signal("paid", {"amount": 3}, 1)  # E
    receipt = await engine.signal("paid", {"amount": 3})
    receipt.state = "none"  # E
    known: Literal["delivered", "buffered"] = receipt.state  # E
    keep(known, receipt.deliverd)  # E
    keep(receipt.rejected["1"])  # E
    keep((await engine.get(1)).deadlin)  # E


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
    engine.watch(run)  # E
    engine.watch(run.id, after="2")  # E
    await engine.watch(run.id)  # E
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
    workflow("x", timeout=5)  # E
    workflow("x", timeout=timedelta(1), on_timeout=3)  # E
    workflow("x", on_fail=3)  # E
    workflow("x", on_fail=Order.helper)  # E
    step(on_fail=3)  # E
    step(on_fail=Order.helper)  # E
    get_context("Context")  # E
    event_workflow()  # E
    event_workflow(Reminder)  # E
    event_workflow("x", offset_minutes="1")  # E
    event_workflow("x", offset_minutes=timedelta(1))  # E
    event_workflow("x", offsets=[1])  # E
    event_workflow("x", offsets=timedelta(1))  # E
    event_workflow("x", namespace=None)  # E
    entity_type(3)  # E
    entity_loader(3)  # E
    entity_loader(Paid)(3)  # E


async def emit() -> None:
    await engine.emit()  # E
    await engine.emit("x", at="now")  # E
    await engine.emit("x", [1])  # E
    await engine.emit("x", "1")  # E
    await engine.emit("x", Paid)  # E
    await engine.emit("x", entity_id=1.5)  # E
    await engine.emit("x", replace="yes")  # E
    await engine.emit("x", {}, "1")  # E
    await engine.cancel_event(3)  # E
    await engine.cancel_event("x", True)  # E
    await engine.events("x")  # E
    await engine.events(stauts="pending")  # E
    await engine.events(at_after="now")  # E
    await engine.start(Reminder)  # E
    await engine.start(Reminder, event="x")  # E
    await engine.start(Reminder, event_id="x")  # E


async def test(flow: TimeMachine) -> None:
    await flow.advance(hour=1)  # E
    await flow.advance("1h")  # E
    await flow.run_step("pay", Order.Context(order_id=1))  # E
    await flow.run_step(Order.pay, 3)  # E
    flow.now()  # E
    TimeMachine(clock=None)  # E


class Verdict(BaseModel):
    approved: bool
    notes: str = ""


@workflow("acts")
class Acts:
    class Context(BaseModel):
        order_id: int

    @step(start=True)
    async def ask(self) -> Command:
        on(self.ship)  # E
        on(self.review, then=self.ship)  # E
        on(self.shpi)  # E
        return wait.any(on(self.review))

    @step
    def ship(self) -> Command:
        goto(self.review(approved=True))  # E
        return goto(self.review)

    @action()
    async def review(self, approved: bool, notes: str = "") -> Command:
        return complete()

    @action("decide_it", input=Verdict)
    def decide(self, verdict: Verdict) -> Command:
        return complete()

    @statezero_action(serializer=Verdict)
    def ported(self, approved: bool) -> Command:
        return complete()

    @action(3)  # E
    def named(self) -> Command:
        return complete()

    @action()  # E
    def nothing(self) -> None: ...

    @action(input=Verdict, serializer=Verdict)  # E
    def both(self, verdict: Verdict) -> Command:
        return complete()


async def act() -> None:
    await engine.act(Acts.review, 1)  # E
    await engine.act(Acts.review, 1, aproved=True)  # E
    await engine.act(Acts.review, 1, approved="yes")  # E
    await engine.act(Acts.review, "1", approved=True)  # E
    await engine.act(Acts.decide, 1, verdict=Verdict(approved=True))  # E
    await engine.act(Acts.decide, 1, notes="fine")  # E
    await engine.act(Acts.ported, 1, approved=True, note="fine")  # E
    await engine.act(Acts.ship, 1)  # E
    await engine.act(Acts.shpi, 1)  # E
    acted = await engine.act(Acts.review, 1, approved=True)
    acted.context.order_id = "x"  # E
