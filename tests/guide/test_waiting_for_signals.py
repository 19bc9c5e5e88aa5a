"""Time-based operations, waiting for signals: without a limit, with one, and sending from elsewhere."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import SignalReceipt, complete, engine, step, wait, workflow
from aioflow.errors import DefinitionError
from aioflow.testing import TimeMachine


@workflow("purchase")
class PurchaseWorkflow:
    class Context(BaseModel):
        approved: bool = False
        notes: str = ""
        status: str = "open"

    @step(start=True)
    def wait_for_approval(self):
        return wait.for_signal("manager_approval")

    @step()
    def wait_with_timeout(self):
        return wait.for_signal(
            "user_response", timeout=timedelta(days=7), on_timeout="send_final_notice", then=self.answered
        )

    @step()
    def send_final_notice(self):
        return complete(status="expired")

    @step()
    def answered(self):
        return complete(status="answered")


async def approve() -> SignalReceipt:
    """Stands for code elsewhere in the application."""
    return await engine.signal("manager_approval", {"approved": True, "notes": "Looks good"})


def test_a_wait_without_a_next_step() -> None:
    """Where no step but its on_timeout follows the guide's wait_with_timeout, aioflow demands ``then=``."""
    with pytest.raises(DefinitionError) as caught:

        @workflow("purchase")
        class AsWritten:
            class Context(BaseModel):
                status: str = "open"

            @step(start=True)
            def wait_for_approval(self):
                return wait.for_signal("manager_approval")

            @step()
            def wait_with_timeout(self):
                return wait.for_signal("user_response", timeout=timedelta(days=7), on_timeout="send_final_notice")

            @step()
            def send_final_notice(self):
                return complete(status="expired")

    assert caught.value.problems == (
        "step 'wait_with_timeout' waits, and no step is declared after it to go on with. Say then=.",
    )


async def test_waits_for_ever(flow: TimeMachine) -> None:
    """A wait without a timeout lasts until the signal is sent."""
    run = await flow.start(PurchaseWorkflow)
    await flow.advance(weeks=520)
    await run.refresh()
    assert (run.status, run.current_step) == ("waiting", "wait_for_approval")
    assert (run.waiting_for, run.waiting_signal, run.wake_at) == ("signal", "manager_approval", None)


async def test_signal_from_elsewhere(flow: TimeMachine) -> None:
    """A signal to all resumes every run that waits for it, with its payload merged into their Contexts."""
    runs = [await flow.start(PurchaseWorkflow) for _ in range(3)]
    await flow.settle()
    receipt = await approve()
    assert receipt.state == "delivered"
    assert receipt.delivered == [run.id for run in runs]
    await flow.settle()
    for run in runs:
        await run.refresh()
        assert (run.current_step, run.waiting_signal) == ("wait_with_timeout", "user_response")
        assert (run.context.approved, run.context.notes) == (True, "Looks good")


async def test_signal_to_one_run(flow: TimeMachine) -> None:
    """A signal to a run leaves the others waiting, and is kept until that run waits for it."""
    run, other = [await flow.start(PurchaseWorkflow) for _ in range(2)]
    early = await flow.signal("user_response", run_id=run.id)
    assert early.state == "buffered"
    await flow.signal("manager_approval", {"approved": True}, run_id=run.id)
    assert (await run.result()).status == "answered"
    await other.wait(until="parked")
    assert (other.status, other.context.approved) == ("waiting", False)


async def test_signal_that_nobody_waits_for(flow: TimeMachine) -> None:
    """A signal to all is not kept for runs that wait later."""
    assert (await approve()).state == "none"
    run = await flow.start(PurchaseWorkflow)
    await flow.settle()
    await run.refresh()
    assert run.waiting_signal == "manager_approval"


async def test_answered_in_time(flow: TimeMachine) -> None:
    """A run that is answered within the week does not get a final notice later."""
    run = await flow.start(PurchaseWorkflow)
    await flow.settle()
    await approve()
    await flow.advance(days=6, hours=23)
    await flow.signal("user_response", run_id=run.id)
    await flow.advance(days=7)
    await run.refresh()
    assert (run.status, run.current_step, run.context.status) == ("completed", "answered", "answered")


async def test_timeout(flow: TimeMachine) -> None:
    """Without an answer the run goes on with on_timeout a week after it began to wait."""
    run = await flow.start(PurchaseWorkflow)
    await flow.advance(days=1)
    await approve()
    await flow.settle()
    await run.refresh()
    week = run.created_at + timedelta(days=8)
    assert (run.on_timeout, run.wake_at) == ("send_final_notice", week)
    assert (await run.result()).status == "expired"
    assert flow.now == week
