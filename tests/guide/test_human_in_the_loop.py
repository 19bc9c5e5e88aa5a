"""Advanced patterns, human in the loop: a reviewer answers, or a manager does after three days."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import (
    SignalReceipt,
    StartOptions,
    WorkflowRun,
    complete,
    engine,
    get_context,
    goto,
    step,
    wait,
    workflow,
)
from aioflow.errors import DefinitionError
from aioflow.testing import TimeMachine

REQUESTS: list[tuple[str, int]] = []


@pytest.fixture(autouse=True)
def _no_requests() -> None:
    REQUESTS.clear()


def get_next_available_reviewer() -> str:
    return "rita"


def send_review_request_email(reviewer: str, document_id: int) -> None:
    REQUESTS.append((reviewer, document_id))


@workflow("document_approval")
class DocumentApprovalWorkflow:
    class Context(BaseModel):
        document_id: int
        reviewer_assigned: str = ""
        reviewer_notes: str = ""
        approved: bool = False

    @step(start=True)
    def assign_reviewer(self):
        ctx = get_context(self.Context)
        ctx.reviewer_assigned = get_next_available_reviewer()
        send_review_request_email(ctx.reviewer_assigned, ctx.document_id)

        return wait.for_signal("review_completed", timeout=timedelta(days=3), on_timeout="escalate_review")

    @step()
    def process_review(self):
        ctx = get_context(self.Context)
        if ctx.approved:
            return goto(self.approve_document)
        return goto(self.request_revision)

    @step()
    def escalate_review(self):
        return wait.for_signal("manager_review_completed", then=self.process_review)

    @step()
    def approve_document(self):
        return complete()

    @step()
    def request_revision(self):
        return complete()


async def submit_review(document_id: int, approved: bool, notes: str) -> SignalReceipt:
    """Stands for the review system, which knows the document and not the run."""
    return await engine.signal(
        "review_completed", {"approved": approved, "reviewer_notes": notes}, key=f"document-{document_id}"
    )


async def submitted(document_id: int) -> WorkflowRun[DocumentApprovalWorkflow.Context]:
    """A document whose review was requested."""
    run = await engine.start(
        DocumentApprovalWorkflow, StartOptions(key=f"document-{document_id}"), document_id=document_id
    )
    return await run.wait(until="parked")


def test_the_guides_manager_would_approve() -> None:
    """Where the guide's wait for the manager would lead straight to the approval, aioflow demands ``then=``."""
    with pytest.raises(DefinitionError) as caught:

        @workflow("document_approval")
        class AsWritten:
            class Context(BaseModel):
                approved: bool = False

            @step(start=True)
            def assign_reviewer(self):
                return wait.for_signal("review_completed", timeout=timedelta(days=3), on_timeout="escalate_review")

            @step()
            def process_review(self):
                if get_context(self.Context).approved:
                    return goto(self.approve_document)
                return goto(self.request_revision)

            @step()
            def escalate_review(self):
                return wait.for_signal("manager_review_completed")

            @step()
            def approve_document(self):
                return complete()

            @step()
            def request_revision(self):
                return complete()

    assert caught.value.problems == (
        (
            "step 'escalate_review' waits and would go on with 'approve_document', the next one declared, but goto() in "
            "step 'process_review' leads there, too: whether it was meant is unclear. Say then=."
        ),
    )


@pytest.mark.parametrize(("approved", "last"), [(True, "approve_document"), (False, "request_revision")])
async def test_the_reviewer_decides(flow: TimeMachine, approved: bool, last: str) -> None:
    """The reviewer is asked once, and the answer decides."""
    run = await submitted(17)
    assert REQUESTS == [("rita", 17)]
    receipt = await submit_review(17, approved, "as agreed")
    assert receipt.state == "delivered"
    await run.wait()
    assert (run.status, run.current_step) == ("completed", last)
    assert run.context == DocumentApprovalWorkflow.Context(
        document_id=17, reviewer_assigned="rita", reviewer_notes="as agreed", approved=approved
    )
    assert flow.now == run.created_at


async def test_a_review_is_of_one_document(flow: TimeMachine) -> None:
    """A review with a document's key reaches only that document's run."""
    other, run = [await submitted(document_id) for document_id in (1, 2)]
    assert (await submit_review(2, True, "")).delivered == [run.id]
    await run.wait()
    await other.refresh()
    assert (run.status, other.status) == ("completed", "waiting")


async def test_without_a_key_it_is_of_all_documents(flow: TimeMachine) -> None:
    """A review without a key, as the guide sends it, reaches every document that waits for one."""
    runs = [await submitted(document_id) for document_id in (1, 2)]
    receipt = await engine.signal("review_completed", {"approved": True, "reviewer_notes": ""})
    assert receipt.delivered == [run.id for run in runs]
    assert [(await run.result()).approved for run in runs] == [True, True]


async def test_escalation_after_three_days(flow: TimeMachine) -> None:
    """After three days without an answer the manager is asked, and the reviewer is not asked again."""
    run = await submitted(17)
    assert (run.on_timeout, run.wake_at) == ("escalate_review", run.created_at + timedelta(days=3))
    await flow.advance(days=2, hours=23, minutes=59)
    await run.refresh()
    assert run.current_step == "assign_reviewer"
    await flow.advance(minutes=1)
    await run.refresh()
    assert (run.status, run.current_step, run.waiting_signal) == (
        "waiting",
        "escalate_review",
        "manager_review_completed",
    )
    assert len(REQUESTS) == 1


@pytest.mark.parametrize(("approved", "last"), [(True, "approve_document"), (False, "request_revision")])
async def test_the_manager_decides(flow: TimeMachine, approved: bool, last: str) -> None:
    """The manager's answer is processed like the reviewer's, which is too late now."""
    run = await submitted(17)
    await flow.advance(days=3)
    assert (await submit_review(17, not approved, "sorry, was ill")).state == "buffered"
    await engine.signal("manager_review_completed", {"approved": approved}, key="document-17")
    await run.wait()
    assert (run.status, run.current_step) == ("completed", last)
    assert run.context.reviewer_notes == ""
