"""Advanced patterns, state machine: the states of a loan application are its steps."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import pytest
from pydantic import BaseModel

from aioflow import complete, engine, get_context, goto, step, wait, workflow
from aioflow.errors import DefinitionError
from aioflow.testing import TimeMachine


@workflow("loan_application")
class LoanApplicationWorkflow:
    class Context(BaseModel):
        application_id: int
        state: str = "submitted"
        credit_score: int = 0
        income_verified: bool = False
        decision: str = ""

    @step(start=True)
    def submitted_state(self):
        ctx = get_context(self.Context)
        ctx.state = "under_review"
        return goto(self.check_credit)

    @step()
    def check_credit(self):
        ctx = get_context(self.Context)
        if ctx.credit_score > 700:
            ctx.state = "approved"
            return goto(self.approved_state)
        if ctx.credit_score > 600:
            ctx.state = "manual_review"
            return goto(self.manual_review_state)
        ctx.state = "denied"
        return goto(self.denied_state)

    @step()
    def approved_state(self):
        return complete()

    @step()
    def manual_review_state(self):
        return wait.for_signal("manual_review_complete", then=self.reviewed_state)

    @step()
    def reviewed_state(self):
        ctx = get_context(self.Context)
        ctx.state = ctx.decision
        return goto(self.approved_state if ctx.decision == "approved" else self.denied_state)

    @step()
    def denied_state(self):
        return complete()


def test_the_guides_review_would_deny() -> None:
    """Where the guide's wait for the review would lead to the state declared next, aioflow demands ``then=``."""
    with pytest.raises(DefinitionError) as caught:

        @workflow("loan_application")
        class AsWritten:
            class Context(BaseModel):
                credit_score: int = 0

            @step(start=True)
            def check_credit(self):
                ctx = get_context(self.Context)
                if ctx.credit_score > 700:
                    return goto(self.approved_state)
                if ctx.credit_score > 600:
                    return goto(self.manual_review_state)
                return goto(self.denied_state)

            @step()
            def approved_state(self):
                return complete()

            @step()
            def manual_review_state(self):
                return wait.for_signal("manual_review_complete")

            @step()
            def denied_state(self):
                return complete()

    assert caught.value.problems == (
        (
            "step 'manual_review_state' waits and would go on with 'denied_state', the next one declared, but goto() in "
            "step 'check_credit' leads there, too: whether it was meant is unclear. Say then=."
        ),
    )


@pytest.mark.parametrize(
    ("credit_score", "state", "last"), [(701, "approved", "approved_state"), (600, "denied", "denied_state")]
)
async def test_the_score_decides(flow: TimeMachine, credit_score: int, state: str, last: str) -> None:
    """A good score is approved and a bad one denied automatically."""
    run = await flow.start("loan_application", application_id=1, credit_score=credit_score)
    await run.wait()
    assert (run.status, run.current_step) == ("completed", last)
    assert run.data["state"] == state


@pytest.mark.parametrize(("decision", "last"), [("approved", "approved_state"), ("denied", "denied_state")])
async def test_a_person_decides(flow: TimeMachine, decision: str, last: str) -> None:
    """A score in between waits for the review, whose decision comes with the signal."""
    run = await flow.start(LoanApplicationWorkflow, application_id=1, credit_score=650)
    await run.wait(until="parked")
    assert (run.status, run.current_step) == ("waiting", "manual_review_state")
    assert run.context.state == "manual_review"

    await engine.signal("manual_review_complete", {"decision": decision, "income_verified": True}, run_id=run.id)
    await run.wait()
    assert (run.status, run.current_step) == ("completed", last)
    assert run.context == LoanApplicationWorkflow.Context(
        application_id=1, state=decision, credit_score=650, income_verified=True, decision=decision
    )


async def test_applications_by_their_state(flow: TimeMachine) -> None:
    """Applications can be queried by their step, and by values in the Context."""
    for application_id, credit_score in enumerate((720, 650, 680, 500)):
        await flow.start(LoanApplicationWorkflow, application_id=application_id, credit_score=credit_score)
    await flow.settle()
    assert await flow.count(step=LoanApplicationWorkflow.manual_review_state, status="waiting") == 2
    denied = await flow.runs(workflow=LoanApplicationWorkflow, data={"state": "denied"})
    assert [run.context.application_id for run in denied] == [3]
