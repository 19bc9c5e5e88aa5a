"""Actions on virtual time: called in a test, escalated by a timeout, and run alone by ``run_step``."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import (
    action,
    complete,
    errors,
    get_context,
    get_run,
    goto,
    on,
    statezero_action,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from aioflow.testing import TimeMachine

DAY = timedelta(days=1)


class Verdict(BaseModel):
    """The decision of a manager or director."""

    approved: bool
    notes: str = ""


@workflow("tm-expense")
class Expense:
    """Asks a manager, and after three days a director."""

    class Context(BaseModel):
        amount: int = 0
        by: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(on(self.approve), timeout=3 * DAY, on_timeout=self.escalate)

    @action()
    async def approve(self, approved: bool, notes: str = "") -> Command:
        context = get_context(self.Context)
        context.by = notes
        if not approved:
            raise ValueError("say why")
        return complete()

    @step
    async def escalate(self) -> Command:
        return goto(self.decide)

    @statezero_action("tm_decide", serializer=Verdict)
    def decide(self, verdict: Verdict, request: object = None) -> Command:
        get_run().start(Expense, amount=1)
        return complete(by=f"{verdict.notes} {request}")


async def test_an_action_is_called_in_time_or_not(flow: TimeMachine) -> None:
    """An action is open until its wait's timeout, which then opens another action."""
    early, late = await flow.start(Expense), await flow.start(Expense)
    await flow.advance(3 * DAY - timedelta(seconds=1))
    assert (await flow.act(Expense.approve, early.id, approved=True, notes="ann")).data["by"] == "ann"
    await flow.advance(seconds=1)
    await late.refresh()
    assert (late.current_step, late.waiting_for) == ("decide", "action")
    with pytest.raises(errors.ActionNotOpen):
        await flow.act(Expense.approve, late.id, approved=True)
    done = await flow.act(Expense.decide, late.id, approved=True, notes="bob", request="r")
    assert (done.status, done.data["by"]) == ("completed", "bob r")


async def test_an_action_that_raised_keeps_its_deadline(flow: TimeMachine) -> None:
    """After a call that raised, the wait's deadline is the same as before."""
    run = await flow.start(Expense)
    await flow.advance(DAY)
    with pytest.raises(ValueError, match="say why"):
        await flow.act(Expense.approve, run.id, approved=False)
    await run.refresh()
    assert (run.wake_at, run.data["by"]) == (flow.now + 2 * DAY, "")
    await flow.advance(2 * DAY)
    assert [found.name for found in await flow.open_actions(run.id)] == ["tm_decide"]


async def test_a_wait_that_only_a_call_could_end(flow: TimeMachine) -> None:
    """Awaiting a run that only a call can resume raises, with the action's name."""
    run = await flow.start(Expense)
    await flow.advance(3 * DAY)
    flow._patience = 0
    with pytest.raises(errors.TimeStandsStill, match="waits for action 'tm_decide', at step 'decide'"):
        await run.wait()


async def test_an_action_is_run_alone(flow: TimeMachine) -> None:
    """``run_step`` takes an action's input as a mapping or model, validates it as a call would, and stores nothing."""
    ran = await flow.run_step(Expense.approve, {"amount": 3}, resumed_by={"approved": "yes", "notes": "ann"})
    assert (ran.command, ran.context.by) == (complete(), "ann")
    ran = await flow.run_step(
        Expense.decide, resumed_by={**Verdict(approved=True, notes="x").model_dump(), "request": 3}
    )
    assert ran.context.by == "x 3"
    assert [started[0] for started in ran.started] == ["tm-expense"]
    assert (await flow.run_step(Expense.decide, resumed_by=Verdict(approved=True))).context.by == " None"
    with pytest.raises(ValueError, match="say why"):
        await flow.run_step(Expense.approve, resumed_by={"approved": False})
    with pytest.raises(errors.ActionInputInvalid, match="approved: Field required"):
        await flow.run_step(Expense.approve)
    assert await flow.count() == 0
