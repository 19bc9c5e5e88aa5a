"""Event-triggered workflows: started when an event occurs, an hour before it, and half an hour after it."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel

from aioflow import complete, entity_type, event_workflow, get_context, get_run, step
from aioflow.testing import TimeMachine


@entity_type
@dataclass
class GuideOrder:
    id: int
    customer: str
    draft: bool = False


@event_workflow("guide_order_placed")
class OrderProcessingWorkflow:
    class Context(BaseModel):
        order_id: int
        customer: str
        processed: bool = False

    @classmethod
    def should_run_for_event(cls, event):
        return not event.entity.draft

    @classmethod
    def create_context(cls, event=None):
        order = event.entity
        assert isinstance(order, GuideOrder)
        return cls.Context(order_id=order.id, customer=order.customer)

    @step(start=True)
    def process_new_order(self):
        get_context(self.Context).processed = True
        return complete()


@event_workflow("guide_appointment_due", offset_minutes=-60)
class PreAppointmentReminder:
    class Context(BaseModel):
        entity_id: str
        sent_at: datetime | None = None

    @step(start=True)
    def send_reminder(self):
        return complete(sent_at=get_run().now)


@event_workflow("guide_meeting_ended", offset_minutes=30)
class PostMeetingFollowup:
    @step(start=True)
    def send_followup(self):
        return complete()


async def test_an_order_starts_its_workflow(flow: TimeMachine) -> None:
    """create_context makes the Context from the entity, an object of its own class, and the run has the event's id."""
    event = await flow.emit("guide_order_placed", GuideOrder(17, "Ann"))
    await flow.settle()
    (run,) = await flow.runs(workflow=OrderProcessingWorkflow)
    assert (run.workflow, run.status, run.event_id) == ("event:OrderProcessingWorkflow", "completed", event.id)
    assert run.data == {"order_id": 17, "customer": "Ann", "processed": True}


async def test_emitted_twice_is_one_run(flow: TimeMachine) -> None:
    """An event that is emitted twice with one event_id is recorded once, and starts one run."""
    for customer in ("Ann", "Bob"):
        event = await flow.emit("guide_order_placed", GuideOrder(17, customer), event_id="order-17")
        assert event.entity.customer == "Ann"
    await flow.settle()
    (run,) = await flow.runs(event_id="order-17")
    assert run.data["customer"] == "Ann"


async def test_an_event_that_it_does_not_run_for(flow: TimeMachine) -> None:
    """If should_run_for_event returns false, no run is made."""
    await flow.emit("guide_order_placed", GuideOrder(18, "Eve", draft=True), event_id="draft")
    await flow.settle()
    assert await flow.runs(event_id="draft") == []


async def test_a_reminder_an_hour_before(flow: TimeMachine) -> None:
    """A negative offset starts the run that long before the event's time, and not a minute earlier."""
    at = flow.now + timedelta(hours=24)
    event = await flow.emit("guide_appointment_due", {"id": "a1"}, at=at)
    await flow.advance(hours=22, minutes=59)
    assert await flow.runs(event_id=event.id) == []
    await flow.advance(minutes=1)
    (run,) = await flow.runs(event_id=event.id)
    assert (run.created_at, run.context.sent_at) == (at - timedelta(hours=1), at - timedelta(hours=1))
    assert run.context.entity_id == "a1"
    (pending,) = await flow.events(event_id=event.id)
    assert pending.status == "pending"  # the appointment itself is still to come


async def test_an_appointment_within_the_hour(flow: TimeMachine) -> None:
    """If the reminder's time is past when the event is emitted, it is sent at once."""
    event = await flow.emit("guide_appointment_due", entity_id="a2", at=flow.now + timedelta(minutes=10))
    await flow.settle()
    (run,) = await flow.runs(event_id=event.id)
    assert (run.status, run.context.sent_at) == ("completed", event.recorded_at)


async def test_an_appointment_that_is_moved(flow: TimeMachine) -> None:
    """A reminder is sent once for the new time if the event was moved before it, and again if it was moved after it."""
    day = timedelta(days=1)
    first = flow.now + day
    for at in (first, first + day):
        event = await flow.emit("guide_appointment_due", entity_id="a3", at=at, event_id="moved", replace=True)
    assert event.occurrence == 2
    await flow.advance(hours=47)
    for_second = first + day - timedelta(hours=1)
    assert [run.created_at for run in await flow.runs(event_id="moved")] == [for_second]
    third = flow.now + day
    await flow.emit("guide_appointment_due", entity_id="a3", at=third, event_id="moved", replace=True)
    await flow.advance(days=2)
    reminded = [run.created_at for run in await flow.runs(event_id="moved", order="id")]
    assert reminded == [for_second, third - timedelta(hours=1)]


async def test_an_appointment_that_is_cancelled(flow: TimeMachine) -> None:
    """The reminder of a cancelled event is not sent."""
    await flow.emit("guide_appointment_due", entity_id="a4", at=flow.now + timedelta(days=1), event_id="off")
    await flow.advance(hours=12)
    assert await flow.cancel_event("off")
    await flow.advance(days=2)
    assert await flow.runs(event_id="off") == []
    assert [event.status for event in await flow.events(event_id="off")] == ["cancelled"]


async def test_half_an_hour_after(flow: TimeMachine) -> None:
    """A positive offset starts the run that long after the event; a workflow without a Context gets its ids."""
    event = await flow.emit("guide_meeting_ended", {"id": 5})
    await flow.advance(minutes=29)
    assert await flow.runs(event_id=event.id) == []
    await flow.advance(minutes=1)
    (run,) = await flow.runs(event_id=event.id)
    assert (run.created_at, run.status) == (event.at + timedelta(minutes=30), "completed")
    assert run.data == {"event_id": event.id, "event_name": "guide_meeting_ended", "entity_id": "5"}
