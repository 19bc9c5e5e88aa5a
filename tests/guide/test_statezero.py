"""StateZero integration: a step that is called over HTTP, and an expense that is escalated when nobody calls."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import httpx
import pytest
from pydantic import BaseModel, Field

from aioflow import (
    action,
    complete,
    engine,
    errors,
    fail,
    get_context,
    goto,
    on,
    statezero_action,
    step,
    wait,
    workflow,
)
from aioflow.http import statezero
from aioflow.testing import TimeMachine


class ReviewInputSerializer(BaseModel):
    """The guide's serializer, as a pydantic model."""

    workflow_run_id: int
    reviewer_notes: str = Field(max_length=500)
    priority: Literal["low", "medium", "high"]


@workflow("expense_approval")
class ExpenseApprovalWorkflow:
    class Context(BaseModel):
        expense_id: int = 123
        reviewer_notes: str = ""
        priority: str = "medium"
        status: str = "pending"

    @step(start=True)
    def start_review(self):
        return goto(self.await_review)

    @statezero_action(name="expense_submit_review", serializer=ReviewInputSerializer)
    @step()
    def await_review(self, reviewer_notes: str, priority: str):
        """Step callable as StateZero action"""
        ctx = get_context()
        ctx.reviewer_notes = reviewer_notes
        ctx.priority = priority
        ctx.status = "reviewed"
        return complete()


@workflow("escalating_expense")
class EscalatingExpense:
    """Waits three days for a manager, and two more for a director."""

    class Context(BaseModel):
        amount: int
        decided_by: str = ""

    @step(start=True)
    def ask_manager(self):
        return wait.any(on(self.manager_decides), timeout=timedelta(days=3), on_timeout=self.ask_director)

    @action("manager_decides")
    def manager_decides(self, approved: bool):
        if not approved:
            return goto(self.ask_director)
        get_context().decided_by = "manager"
        return complete()

    @step()
    def ask_director(self):
        return wait.any(on(self.director_decides), timeout=timedelta(days=2), on_timeout=self.nobody_decides)

    @action("director_decides")
    def director_decides(self, approved: bool):
        get_context().decided_by = "director"
        return complete() if approved else fail("refused")

    @step()
    def nobody_decides(self):
        return fail("nobody decided")


@pytest.fixture
def client() -> httpx.AsyncClient:
    """A client of the endpoints, on this machine."""
    transport = httpx.ASGITransport(statezero(engine))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_the_step_is_an_endpoint(flow: TimeMachine, client: httpx.AsyncClient) -> None:
    """The guide's POST, to the path that it names, runs the step with its input."""
    run = await engine.start(ExpenseApprovalWorkflow)
    await flow.settle()
    async with client:
        body = {"workflow_run_id": run.id, "reviewer_notes": "Approved", "priority": "high"}
        answer = await client.post("/actions/expense_submit_review/", json=body)
    assert answer.json() == {
        "status": "success",
        "message": "Step await_review executed",
        "workflow_status": "completed",
        "current_step": "await_review",
    }
    await run.refresh()
    assert run.data == {"expense_id": 123, "reviewer_notes": "Approved", "priority": "high", "status": "reviewed"}


async def test_the_step_does_not_run_before_it_is_called(flow: TimeMachine) -> None:
    """The goto parks the run at the step, where it waits for the call however long it takes."""
    run = await engine.start(ExpenseApprovalWorkflow)
    await flow.advance(days=400)
    await run.refresh()
    assert (run.status, run.current_step, run.waiting_for) == ("waiting", "await_review", "action")
    assert run.waiting_signal is None


async def test_the_manager_decides_in_time(flow: TimeMachine, client: httpx.AsyncClient) -> None:
    """If the manager decides, the director's action is never open."""
    run = await engine.start(EscalatingExpense, amount=40)
    await flow.advance(days=2, hours=23)
    async with client:
        early = await client.post("/actions/director_decides", json={"workflow_run_id": run.id, "approved": True})
        assert early.json()["detail"][0]["message"].endswith("Current status: waiting")
        answer = await client.post("/actions/manager_decides", json={"workflow_run_id": run.id, "approved": True})
    assert answer.json()["workflow_status"] == "completed"
    assert (await run.result()).decided_by == "manager"


async def test_the_director_decides_when_the_manager_does_not(flow: TimeMachine) -> None:
    """After three days the manager's action is closed, and the director has two days."""
    run = await engine.start(EscalatingExpense, amount=40)
    await flow.advance(days=3)
    with pytest.raises(errors.ActionNotOpen):
        await engine.act(EscalatingExpense.manager_decides, run.id, approved=True)
    done = await engine.act(EscalatingExpense.director_decides, run.id, approved=False)
    assert (done.status, done.error, done.data["decided_by"]) == ("failed", "refused", "director")


async def test_nobody_decides(flow: TimeMachine) -> None:
    """If nobody decides, the expense has failed after five days."""
    run = await engine.start(EscalatingExpense, amount=40)
    await run.wait()
    assert (run.status, run.error) == ("failed", "nobody decided")
    assert run.ended_at == run.created_at + timedelta(days=5)
