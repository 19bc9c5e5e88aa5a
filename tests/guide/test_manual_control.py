"""Monitoring and debugging, manual control: cancel, signal, process_scheduled."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, errors, get_context, step, wait, workflow
from aioflow.testing import TimeMachine
from tests.support import wait_until


@workflow("leave_request")
class LeaveRequestWorkflow:
    class Context(BaseModel):
        approved: bool = False

    @step(start=True)
    async def ask(self):
        return wait.for_signal("approval_received")

    @step()
    async def book(self):
        assert get_context(self.Context).approved
        return complete()


async def test_cancel_a_waiting_run(flow: TimeMachine) -> None:
    """A cancelled run has ended with the given reason, and takes no signal any more."""
    run = await flow.start(LeaveRequestWorkflow)
    await run.wait(until="parked")
    assert await flow.cancel(run.id, "left the company")
    await run.refresh()
    assert (run.status, run.error, run.ended_at) == ("cancelled", "left the company", flow.now)
    assert (await flow.signal("approval_received", {"approved": True})).state == "none"
    with pytest.raises(errors.RunEnded):
        await flow.signal("approval_received", {"approved": True}, run_id=run.id)


async def test_cancel_a_step_at_work(flow: TimeMachine) -> None:
    """An async step that executes is cancelled, and may clean up."""
    began, tidied = asyncio.Event(), asyncio.Event()

    @workflow("long_export")
    class LongExport:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def export(self):
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                tidied.set()
            return complete()

    run = await flow.start(LongExport)
    await began.wait()
    assert await flow.cancel(run.id)
    await tidied.wait()
    await run.refresh()
    assert (run.status, run.error) == ("cancelled", None)


async def test_cancel_what_has_ended(flow: TimeMachine) -> None:
    """Cancelling a run that has ended changes nothing, and returns False."""
    run = await flow.start(LeaveRequestWorkflow)
    await flow.signal("approval_received", {"approved": True}, run_id=run.id)
    await run.wait()
    assert not await flow.cancel(run.id)
    await run.refresh()
    assert run.status == "completed"


async def test_signal_wakes_all_runs_that_wait(flow: TimeMachine) -> None:
    """One signal resumes every run that waits for it."""
    runs = [await flow.start(LeaveRequestWorkflow) for _ in range(2)]
    await flow.settle()
    await flow.signal("approval_received", {"approved": True})
    for run in runs:
        assert (await run.result()).approved


async def test_process_scheduled(tmp_path: Path) -> None:
    """process_scheduled() on an engine without a worker wakes what is due, and a worker then executes it."""
    url = f"sqlite:///{tmp_path}/app.db"
    async with Engine(url, worker=False) as client:
        later = await client.start(LeaveRequestWorkflow, StartOptions(delay=timedelta(days=1)))
        run = await client.start(LeaveRequestWorkflow, StartOptions(delay=timedelta(milliseconds=1)))
        assert await wait_until(client.process_scheduled) == 1
        await run.refresh()
        assert (run.status, run.current_step) == ("running", "ask")
    async with Engine(url) as engine:
        await engine.signal("approval_received", {"approved": True}, run_id=run.id)
        assert (await engine.wait(run.id, 10)).status == "completed"
        assert (await engine.get(later.id)).waiting_for == "start"


async def test_process_scheduled_on_virtual_time(flow: TimeMachine) -> None:
    """On virtual time process_scheduled() has nothing to do, as what is due happens when time gets there."""
    run = await flow.start(LeaveRequestWorkflow, StartOptions(delay=timedelta(days=1)))
    await flow.advance(days=1)
    assert await flow.process_scheduled() == 0
    await run.refresh()
    assert run.waiting_signal == "approval_received"
