"""Time-based operations, sleep: the step that sleeps runs again, until it returns something else."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from aioflow import complete, get_context, get_run, goto, sleep, step, workflow
from aioflow.testing import TimeMachine


@workflow("reminders")
class ReminderWorkflow:
    class Context(BaseModel):
        reminders_sent: int = 0
        sent_at: list[datetime] = []
        escalated: bool = False

    @step(start=True)
    def send_reminder(self):
        ctx = get_context(self.Context)
        ctx.reminders_sent += 1
        ctx.sent_at.append(get_run().now)

        if ctx.reminders_sent < 3:
            return sleep(timedelta(hours=24))
        return goto(self.escalate)

    @step()
    def escalate(self):
        return complete(escalated=True)


@workflow("newsletter")
class NewsletterWorkflow:
    class Context(BaseModel):
        send_at: datetime
        sent: bool = False

    @step(start=True)
    async def schedule(self):
        return sleep(get_context(self.Context).send_at, then=self.send)

    @step()
    async def send(self):
        return complete(sent=True)


async def test_three_reminders_a_day_apart(flow: TimeMachine) -> None:
    """Reminders are sent at once and after each of two days, and the third one escalates without another day."""
    run = await flow.start(ReminderWorkflow)
    context = await run.result()
    assert context.escalated
    assert context.sent_at == [run.created_at + timedelta(days=days) for days in range(3)]
    assert flow.now == run.created_at + timedelta(days=2)


async def test_between_two_reminders(flow: TimeMachine) -> None:
    """A day is 24 hours to the minute, and a sleeping run shows when it will wake."""
    run = await flow.start(ReminderWorkflow)
    await flow.advance(hours=23, minutes=59)
    await run.refresh()
    assert (run.status, run.waiting_for, run.current_step) == ("waiting", "sleep", "send_reminder")
    assert run.wake_at == run.created_at + timedelta(hours=24)
    assert run.context.reminders_sent == 1

    await flow.advance(minutes=1)
    await run.refresh()
    assert run.status == "waiting"
    assert run.context.reminders_sent == 2


async def test_until_a_date_and_then_elsewhere(flow: TimeMachine) -> None:
    """With a datetime the run sleeps until then, and with ``then=`` another step follows."""
    send_at = datetime(2029, 3, 1, 9, tzinfo=UTC)
    run = await flow.start(NewsletterWorkflow, send_at=send_at)
    await run.wait()
    assert (run.current_step, run.context.sent) == ("send", True)
    assert run.ended_at == send_at
