"""Monitoring and debugging, status checking: one run, failed runs, waiting runs."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import Retry, WorkflowStatus, complete, errors, fail, get_context, sleep, step, wait, workflow
from aioflow.testing import TimeMachine

HOUR = timedelta(hours=1)


@workflow("parcel", default_retry=Retry(max_attempts=1))
class ParcelWorkflow:
    class Context(BaseModel):
        parcel_id: int
        way: str

    @step(start=True)
    def collect(self):
        ctx = get_context(self.Context)
        if ctx.way == "lost":
            return fail(f"parcel {ctx.parcel_id} is lost")
        if ctx.way == "crash":
            raise OSError("no such address")
        if ctx.way == "slow":
            return sleep(HOUR, then=self.deliver)
        if ctx.way == "customs":
            return wait.for_signal("cleared", timeout=24 * HOUR, on_timeout=self.send_back, then=self.deliver)
        if ctx.way == "pick-up":
            return wait.for_signal("picked_up", then=self.deliver)
        return complete()

    @step()
    def deliver(self):
        return complete()

    @step()
    def send_back(self):
        return fail("sent back")


@pytest.fixture
async def ids(flow: TimeMachine) -> dict[str, int]:
    """The ids of runs that have ended, or wait, in different ways."""
    ways = ("straight", "lost", "crash", "slow", "customs", "pick-up")
    ids = {way: (await flow.start(ParcelWorkflow, parcel_id=n, way=way)).id for n, way in enumerate(ways)}
    await flow.settle()
    return ids


async def test_one_run(flow: TimeMachine, ids: dict[str, int]) -> None:
    """A run that is loaded by its id has its status, step and Context."""
    run = await flow.get(ids["slow"])
    assert run.status == WorkflowStatus.WAITING
    assert f"Status: {run.status}" == "Status: waiting"
    assert run.current_step == "collect"
    assert run.data == {"parcel_id": 3, "way": "slow"}


async def test_a_run_that_is_not_there(flow: TimeMachine, ids: dict[str, int]) -> None:
    """An unknown id raises an error, rather than returning None."""
    with pytest.raises(errors.RunNotFound, match="There is no run 999999"):
        await flow.get(999_999)


async def test_failed_runs(flow: TimeMachine, ids: dict[str, int]) -> None:
    """Failed runs are found by status, and have their workflow and error, and after an exception the traceback."""
    failed = await flow.runs(status=WorkflowStatus.FAILED, order="id")
    assert [(run.id, run.name, run.error) for run in failed] == [
        (ids["lost"], "parcel", "parcel 1 is lost"),
        (ids["crash"], "parcel", "OSError: no such address"),
    ]
    assert failed[0].traceback is None
    assert failed[1].traceback is not None
    assert 'raise OSError("no such address")' in failed[1].traceback


async def test_waiting_runs(flow: TimeMachine, ids: dict[str, int]) -> None:
    """Waiting runs show the signal that they wait for, and when they will wake."""
    found = {}
    for run in await flow.runs(status=WorkflowStatus.WAITING):
        found[run.id] = (run.waiting_for, run.waiting_signal, run.wake_at)
    assert found == {
        ids["slow"]: ("sleep", None, flow.now + HOUR),
        ids["customs"]: ("signal", "cleared", flow.now + 24 * HOUR),
        ids["pick-up"]: ("signal", "picked_up", None),
    }


async def test_runs_that_wait_for_a_signal(flow: TimeMachine, ids: dict[str, int]) -> None:
    """Runs that wait for a certain signal, or for any signal, can be queried."""
    assert [run.id for run in await flow.runs(waiting_signal="cleared")] == [ids["customs"]]
    assert await flow.count(waiting_for="signal") == 2


async def test_all_at_a_glance(flow: TimeMachine, ids: dict[str, int]) -> None:
    """One call returns the numbers of runs by workflow and status, and of waiting runs by what they wait for."""
    stats = await flow.stats()
    assert stats.runs == {"parcel": {"completed": 1, "failed": 2, "waiting": 3}}
    assert stats.waiting == {"sleep": 1, "signal": 2}


async def test_what_has_happened_to_a_run(flow: TimeMachine, ids: dict[str, int]) -> None:
    """The history shows each transition with its time and step."""
    await flow.advance(hours=24)
    history = await flow.history(ids["customs"])
    assert [(row.kind, row.step) for row in history] == [
        ("start", "collect"),
        ("wait", "collect"),
        ("timeout", "send_back"),
        ("fail", "send_back"),
    ]
    assert [row.at - history[0].at for row in history] == [0 * HOUR, 0 * HOUR, 24 * HOUR, 24 * HOUR]
    assert history[-1].error == "sent back"
