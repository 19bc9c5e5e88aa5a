"""Waiting for events: without an entity, as in the guide, and for that of one's own order."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from aioflow import Event, complete, get_context, goto, step, wait_for_event, workflow
from aioflow.testing import TimeMachine


class PaymentContext(BaseModel):
    order_id: int = 0
    event_id: str = ""
    event_name: str = ""
    entity_id: str = ""
    amount: float = 0
    status: str = "open"


@workflow("awaits_any_payment")
class AnyPaymentWorkflow:
    Context = PaymentContext

    @step(start=True)
    def wait_for_payment(self):
        return wait_for_event("guide_payment_received", timeout=timedelta(hours=48), on_timeout="cancel_order")

    @step()
    def cancel_order(self):
        return complete(status="cancelled")

    @step()
    def process_payment(self):
        assert get_context(self.Context).event_name == "guide_payment_received"
        return goto(self.fulfill_order)

    @step()
    def fulfill_order(self):
        return complete(status="fulfilled")


@workflow("awaits_own_payment")
class OwnPaymentWorkflow:
    Context = PaymentContext

    @step(start=True)
    def wait_for_payment(self):
        return wait_for_event(
            "guide_payment_received",
            entity_id=get_context(self.Context).order_id,
            timeout=timedelta(hours=48),
            on_timeout="cancel_order",
            then=self.process_payment,
        )

    @step()
    def process_payment(self, event: Event):
        return complete(status="paid", amount=event.entity["amount"])

    @step()
    def cancel_order(self):
        return complete(status="cancelled")


async def test_the_event_goes_into_the_context(flow: TimeMachine) -> None:
    """The wait goes on with the next step that is not its on_timeout, and the Context has the event's ids."""
    run = await flow.start(AnyPaymentWorkflow)
    await flow.advance(hours=47)
    event = await flow.emit("guide_payment_received", {"id": 17, "amount": 5.5})
    context = await run.result()
    assert context.status == "fulfilled"
    assert (context.event_id, context.event_name, context.entity_id) == (event.id, "guide_payment_received", "17")
    assert context.amount == 0  # only the ids are copied into the Context


async def test_no_event_in_time(flow: TimeMachine) -> None:
    """After 48 hours the run goes on with on_timeout, and a later event does not reach it."""
    run = await flow.start(AnyPaymentWorkflow)
    assert (await run.result()).status == "cancelled"
    assert flow.now == run.created_at + timedelta(hours=48)
    late = await flow.emit("guide_payment_received", {"id": 17})
    await flow.settle()
    await run.refresh()
    assert (late.status, run.status, run.context.event_id) == ("occurred", "completed", "")


async def test_an_earlier_event_does_not_count(flow: TimeMachine) -> None:
    """Without an entity_id only events that occur while the run waits resume it, whatever entity they have."""
    await flow.emit("guide_payment_received", {"id": 17})
    run = await flow.start(AnyPaymentWorkflow)
    await flow.settle()
    await run.refresh()
    assert (run.status, run.waiting_for, run.waiting_signal) == ("waiting", "event", None)
    await flow.emit("guide_payment_received", {"id": 18})
    assert (await run.result()).entity_id == "18"


async def test_each_waits_for_its_own_order(flow: TimeMachine) -> None:
    """With an entity_id other orders' payments do not resume the run, and the step gets the event."""
    mine, other = [await flow.start(OwnPaymentWorkflow, order_id=number) for number in (17, 18)]
    await flow.emit("guide_payment_received", {"id": 17, "amount": 5.5})
    context = await mine.result()
    assert (context.status, context.amount, context.entity_id) == ("paid", 5.5, "17")
    await flow.settle()  # the other run has parked by then
    await other.refresh()
    assert other.status == "waiting"
    assert (await other.result()).status == "cancelled"


async def test_a_payment_that_is_announced(flow: TimeMachine) -> None:
    """An event with a time in the future ends the wait at that time, not before."""
    run = await flow.start(OwnPaymentWorkflow, order_id=17)
    at = flow.now + timedelta(hours=24)
    announced = await flow.emit("guide_payment_received", {"id": 17, "amount": 1}, at=at)
    assert announced.status == "pending"
    await flow.advance(hours=23, minutes=59)
    await run.refresh()
    assert run.status == "waiting"
    assert (await run.result()).status == "paid"
    assert flow.now == at
