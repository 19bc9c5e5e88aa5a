"""Typical use, which type checkers must accept, with the types that they must infer. Read by them, never run."""

# pyright: strict

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import wraps
from typing import Any, ClassVar, Literal, assert_type

from pydantic import BaseModel, Field

from aioflow import (
    Engine,
    Event,
    Failure,
    GiveUp,
    Retry,
    RetryLater,
    SignalReceipt,
    StartOptions,
    Transition,
    WorkflowRun,
    WorkflowStatus,
    action,
    complete,
    engine,
    entity_loader,
    entity_type,
    errors,
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
from aioflow.actions import OpenAction
from aioflow.commands import Command
from aioflow.testing import StepResult, TimeMachine


@workflow("order", version="2", default_retry=Retry(max_attempts=5), max_transitions=100)
class Order:
    class Context(BaseModel):
        order_id: int
        total: Decimal = Decimal(0)
        note: str | None = None

    @step(start=True)
    async def pay(self) -> Command:
        context = get_context(self.Context)
        assert_type(context, Order.Context)
        assert_type(context.total, Decimal)
        context.note = "paid"
        if context.order_id < 0:
            raise GiveUp("no such order")
        if context.order_id == 0:
            raise RetryLater(timedelta(minutes=1))
        return goto(self.ship)

    @step
    def ship(self) -> Command:
        assert_type(get_context(Order.Context), Order.Context)
        if get_run().attempt > 1:
            return goto("remind", progress=0.5)
        return sleep(timedelta(hours=1))

    @step()
    async def remind(self) -> Command:
        assert_type(get_context(), Any)
        return sleep(datetime(2030, 1, 1, tzinfo=UTC), then=self.done)

    @step(
        retry=Retry(max_attempts=2, base_delay=timedelta(0), retry_on=(OSError,), give_up_on=(ValueError,)),
        timeout=timedelta(seconds=5),
        title="Last",
        thread=False,
    )
    def done(self) -> Command:
        run = get_run()
        assert_type(run.id, int)
        assert_type(run.key, str | None)
        assert_type(run.step_key, str)
        assert_type(run.now, datetime)
        return complete(total=3) if run.key else fail("no key")

    def not_a_step(self) -> int:
        return 3


async def some_run(run: WorkflowRun) -> None:
    assert_type(run, WorkflowRun[Any])


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


@entity_type
class Customer(BaseModel):
    """The entity of an event."""

    id: int


@entity_type("visit")
@dataclass
class Visit:
    """The entity of an event, too."""

    id: str


@entity_loader(Customer)
async def load_customer(entity_id: str) -> Customer | None:
    return Customer(id=int(entity_id))


@entity_loader(Visit)
def load_visit(entity_id: str) -> Visit:
    return Visit(entity_id)


@event_workflow("visit", offsets=[timedelta(days=-1), timedelta(hours=-1)], namespace="north", timeout=timedelta(1))
class Reminder:
    class Context(BaseModel):
        event_id: str
        order_id: int = 0

    @classmethod
    async def should_run_for_event(cls, event: Event) -> bool:
        assert_type(event.id, str)
        assert_type(event.entity_id, str | None)
        assert_type(event.at, datetime)
        assert_type(event.entity, Any)
        return event.occurrence == 1

    @classmethod
    def create_context(cls, event: Event) -> Context:
        return cls.Context(event_id=event.id)

    @step(start=True)
    async def first(self) -> Command:
        get_run().emit("reminded", Visit("1"), entity_id=1, event_id="1", replace=True)
        assert_type(get_run().emit("reminded"), None)
        return complete()


@event_workflow("customer.created", offset_minutes=-1.5)
class Welcome:
    @step(start=True)
    async def first(self) -> Command:
        return complete()


class Shared(BaseModel):
    """A Context that is defined outside of its workflow."""

    name: str = Field(default="", max_length=10)


class Steps:
    """A mixin."""

    @step
    async def last(self) -> Command:
        return complete()


@workflow("assigned")
class Assigned(Steps):
    Context: ClassVar = Shared  # pyright matches an assigned class only if it is a ClassVar

    @step(start=True)
    async def first(self) -> Command:
        assert_type(get_context(self.Context).name, str)
        return goto(self.last)


class OrderWithGift(Order):
    class Context(Order.Context):
        gift: str = ""

    @step
    async def wrap(self) -> Command:
        assert_type(get_context(self.Context).gift, str)
        return goto(super().ship)


def counted(function: Callable[[Assigned], Awaitable[Command]]) -> Callable[[Assigned], Awaitable[Command]]:
    """A user's own decorator."""

    @wraps(function)
    async def wrapper(self: Assigned) -> Command:
        return await function(self)

    return wrapper


class Paid(BaseModel):
    amount: Decimal
    note: str = ""


class PaidTwice(Paid):
    second: Decimal


class Sent(BaseModel):
    by: str


@workflow("waits", timeout=timedelta(days=30), on_timeout="late", on_fail="rescue")
class Waits:
    class Context(BaseModel):
        order_id: int

    @step
    async def refund(self, failure: Failure) -> Command:
        assert_type(failure.step, str)
        assert_type(failure.error, str)
        assert_type(failure.attempts, int)
        assert_type(failure.kind, Literal["exhausted", "gave up", "invalid", "timeout"])
        return complete() if failure.kind == "gave up" else fail(failure.error)

    @step(start=True, on_fail=refund)
    async def ask(self) -> Command:
        return wait.for_signal(Paid, then=self.paid, timeout=timedelta(days=3), on_timeout=self.late)

    @step
    def paid(self, paid: Paid) -> Command:
        assert_type(paid.amount, Decimal)
        return wait.for_signal(Paid, key="order-1", then=self.paid_async)

    @step(on_fail="refund")
    async def paid_async(self, paid: Paid, note: str = "") -> Command:
        return wait.for_signal(PaidTwice, then=self.paid) if note else wait.for_signal(Sent)

    @step
    def any_of(self) -> Command:
        return wait.any(
            on(Paid, then=self.paid),
            on(PaidTwice, then=self.paid_async),
            on(Sent, key="order-1", then=self.late),
            on(Paid, then="paid"),
            on("cancel", then=self.named),
            on("stop", then=self.late),
            on("stop", key="order-1", then="late"),
            timeout=datetime(2030, 1, 1, tzinfo=UTC),
            on_timeout="late",
        )

    @step
    def named(self, amount: int, *, by: str = "") -> Command:
        arms = [on("paid", then=self.late)]
        if amount:
            return wait.any(*arms)
        return wait.for_signal("paid", then=self.named, timeout=timedelta(1), on_timeout=self.late)

    @step
    def late(self) -> Command:
        run = get_run()
        assert_type(run.timed_out, bool)
        assert_type(run.deadline, datetime | None)
        assert_type(run.failure, Failure | None)
        run.start(Order, order_id=1, total=Decimal(2))
        run.start(Order, StartOptions(key="1"), order_id=1)
        run.start(Created, user_id=1, shout=True)
        run.start(CreatedLater, StartOptions(delay=timedelta(1)), order_id="1")
        run.start("order", anything=1)
        run.signal("paid", {"amount": 3}, key="order-1", workflow=Order)
        run.signal(Paid(amount=Decimal(1)), run_id=1, signal_id="once", ttl=timedelta(days=1))
        return wait.for_signal(Paid, then="paid")

    @step
    async def rescue(self, failure: Failure | None = None) -> Command:
        return goto(self.late)


class MayReview:
    def has_permission(self, request: object, action_name: str) -> bool:
        return True


class Verdict(BaseModel):
    approved: bool
    notes: str = ""


@workflow("acts")
class Acts:
    class Context(BaseModel):
        order_id: int

    @step(start=True)
    async def ask(self) -> Command:
        if get_run().attempt > 1:
            return sleep(timedelta(days=1), then=self.review)
        return wait.any(on("paid", then=self.pay), on(self.review), timeout=timedelta(1), on_timeout=self.decide)

    @action(permissions=[MayReview])
    async def review(self, approved: bool, notes: str = Field(default="", max_length=500)) -> Command:
        return goto(self.pay) if approved else goto(self.decide)

    @action
    def pay(self, amount: Decimal) -> Command:
        return wait.for_signal("paid", then=self.decide)

    @action("decide_it", input=Verdict)
    @step(title="Decide")
    def decide(self, verdict: Verdict) -> Command:
        return goto(self.ported)

    @statezero_action(name="ported", serializer=Verdict)
    @step()
    def ported(self, approved: bool) -> Command:
        return complete()


async def act(flow: TimeMachine) -> None:
    assert_type(await engine.act(Acts.review, 1, approved=True), WorkflowRun[Acts.Context])
    await engine.act(Acts.review, 1, approved=True, notes="fine")
    await engine.act(Acts.pay, 1, amount=Decimal(1))
    await engine.act(Acts.decide, 1, approved=True, notes="fine")
    assert_type(await engine.act(Acts.ported, 1, approved=True), WorkflowRun[Acts.Context])
    assert_type(await engine.act("decide_it", 1, anything=1), WorkflowRun[Any])
    assert_type(await engine.open_actions(1), list[OpenAction])
    assert_type(
        await flow.run_step(Acts.review, Acts.Context(order_id=1), resumed_by={"approved": True}),
        StepResult[Acts.Context],
    )
    assert_type(await engine.runs(step=Acts.review, waiting_for="action"), list[WorkflowRun[Any]])
    try:
        await engine.act(Acts.review, 1, approved=True)
    except errors.ActionNotOpen as closed:
        assert_type(closed.status, str)


async def send(run: WorkflowRun[Order.Context]) -> None:
    assert_type(await engine.signal("paid"), SignalReceipt)
    assert_type(await engine.signal("paid", {"amount": 3}, run_id=run.id), SignalReceipt)
    receipt = await engine.signal(Paid(amount=Decimal(1)), key="order-1", workflow=Order, ttl=timedelta(days=1))
    assert_type(receipt.state, Literal["delivered", "buffered", "rejected", "none"])
    assert_type(receipt.delivered, list[int])
    assert_type(receipt.rejected, dict[int, str])
    if receipt.state == "buffered":
        await engine.signal("paid", key="order-1", workflow="order", signal_id="once")
    assert_type(run.waiting_signal, str | None)
    assert_type(run.waiting_key, str | None)
    assert_type(run.on_timeout, str | None)
    assert_type(run.deadline, datetime | None)
    assert_type(await engine.runs(waiting_signal="paid", waiting_key=["1", "2"]), list[WorkflowRun[Any]])
    try:
        await engine.signal("paid", run_id=run.id)
    except errors.RunEnded as ended:
        assert_type(ended.status, str)


async def start() -> None:
    run = await engine.start(Order, order_id=1, total=Decimal(2))
    assert_type(run, WorkflowRun[Order.Context])
    assert_type(run.context, Order.Context)
    assert_type(await run.result(timedelta(seconds=5)), Order.Context)
    assert_type(await run.wait(5, until="parked"), WorkflowRun[Order.Context])
    async for transition in engine.watch(run.id, after=2):
        assert_type(transition, Transition)
    assert_type(
        await engine.start(Order, StartOptions(key="1", reuse="failed"), order_id=1), WorkflowRun[Order.Context]
    )
    assert_type(await engine.start(Created, user_id=1, shout=True), WorkflowRun[Created.Context])
    assert_type(
        await engine.start(CreatedLater, StartOptions(delay=timedelta(1)), order_id="1"),
        WorkflowRun[CreatedLater.Context],
    )
    assert_type(await engine.start(Assigned, name="x"), WorkflowRun[Shared])
    assert_type(await engine.start(OrderWithGift, order_id=1, gift="x"), WorkflowRun[OrderWithGift.Context])
    assert_type(await engine.start("order", anything=1), WorkflowRun[Any])


async def ask(engine: Engine) -> None:
    assert_type((await engine.find(Order, "1")).context.total, Decimal)
    assert_type(await engine.find("order", "1"), WorkflowRun[Any])
    assert_type(await engine.get(1), WorkflowRun[Any])
    assert_type(await engine.runs(workflow=Order, status=WorkflowStatus.FAILED), list[WorkflowRun[Order.Context]])
    assert_type(await engine.runs(workflow="order", step=Order.pay, order="id"), list[WorkflowRun[Any]])
    assert_type(await engine.runs(workflow=[Order, Created], status=["failed", "running"]), list[WorkflowRun[Any]])
    assert_type(await engine.runs(), list[WorkflowRun[Any]])
    await engine.runs(status=None, key={"1", "2"}, data=None, created_after=None)
    await engine.events(name={"paid"}, status=None)
    async for found in engine.iter_runs(workflow=CreatedLater, data={"order_id": 1}):
        assert_type(found, WorkflowRun[CreatedLater.Context])
    async for other in engine.iter_runs(key="1"):
        assert_type(other, WorkflowRun[Any])
    assert_type(await engine.count(workflow=Order, created_after=datetime(2030, 1, 1, tzinfo=UTC)), int)
    assert_type(await engine.history(1), list[Transition])
    assert_type(await engine.cancel(1, "enough"), bool)
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert_type(await engine.emit("visit", Visit("1"), at=at, namespace="north", event_id="1", replace=True), Event)
    event = await engine.emit("visit", {"id": 1}, entity_id=1)
    assert_type(await engine.start(Reminder, event=event), WorkflowRun[Reminder.Context])
    assert_type(await engine.cancel_event(event.id, runs=True), bool)
    assert_type(await engine.events(name=["a", "b"], entity_id=1, status="pending", after=event), list[Event])
    assert_type(await engine.runs(workflow=Reminder, event_id=event.id), list[WorkflowRun[Reminder.Context]])


async def read(run: WorkflowRun[Order.Context]) -> None:
    assert_type(run.id, int)
    assert_type(run.key, str | None)
    assert_type(run.status, WorkflowStatus)
    assert_type(run.error, str | None)
    assert_type(run.wake_at, datetime | None)
    assert_type(run.created_at, datetime)
    assert_type(run.progress, float | None)
    assert_type(run.created, bool)
    await run.refresh()
    try:
        await run.result()
    except errors.RunFailed as failure:
        assert_type(failure.error, str | None)


async def open_it() -> None:
    async with Engine("sqlite:///x.db", workflows=[Order, Created], max_running=10) as opened:
        assert_type(opened, Engine)


def call_a_step_in_a_test() -> None:
    assert_type(Order().ship(), Command)


async def call_an_async_step_in_a_test() -> None:
    assert_type(await Order().pay(), Command)


async def test(flow: TimeMachine) -> None:
    await flow.advance(hours=23, minutes=59)
    await flow.advance(timedelta(hours=1))
    await flow.advance(flow.now)
    await flow.settle()
    result = await flow.run_step(Order.pay, Order.Context(order_id=1), key="k")
    assert_type(result, StepResult[Order.Context])
    assert_type(result.context.total, Decimal)
    assert result.command == goto("ship")
    assert_type(result.emitted, tuple[Event, ...])
    assert_type(await flow.run_step(Order.ship, {"order_id": 1}, attempt=2), StepResult[Any])
    with engine.replaced_by(flow):
        assert_type(await flow.start(Order, order_id=1), WorkflowRun[Order.Context])
    async with TimeMachine("sqlite:///x.db", workflows=[Order], now=datetime(2030, 1, 1, tzinfo=UTC)) as opened:
        assert_type(opened, TimeMachine)
