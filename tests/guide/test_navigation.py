"""Control flow, navigation between steps: ``goto`` depending on the Context."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import pytest
from pydantic import BaseModel

from aioflow import complete, get_context, goto, step, workflow
from aioflow.errors import DefinitionError
from aioflow.testing import TimeMachine


@workflow("order_processing")
class OrderProcessingWorkflow:
    class Context(BaseModel):
        order_total: int
        approved_by: str = ""

    @step(start=True)
    def process_order(self):
        ctx = get_context(self.Context)
        if ctx.order_total > 1000:
            return goto(self.require_approval)
        return goto(self.fulfill_immediately)

    @step()
    def require_approval(self):
        get_context(self.Context).approved_by = "manager"
        return goto(self.fulfill_immediately)

    @step()
    def fulfill_immediately(self):
        return complete()


@pytest.mark.parametrize(
    ("order_total", "approved_by", "steps"),
    [
        (1000, "", ["process_order", "fulfill_immediately"]),
        (1001, "manager", ["process_order", "require_approval", "fulfill_immediately"]),
    ],
)
async def test_the_total_decides(flow: TimeMachine, order_total: int, approved_by: str, steps: list[str]) -> None:
    """Only a large order goes through the approval."""
    run = await flow.start(OrderProcessingWorkflow, order_total=order_total)
    assert (await run.result()).approved_by == approved_by
    assert [row.step for row in await flow.history(run.id) if row.kind != "start"] == steps


def test_a_step_that_does_not_exist() -> None:
    """A goto to a step that does not exist is an error when the class is defined."""
    with pytest.raises(DefinitionError) as caught:

        @workflow("order_processing_misspelt")
        class Misspelt:
            class Context(BaseModel):
                order_total: int

            @step(start=True)
            def process_order(self):
                return goto("fulfil_immediately")

            @step()
            def fulfill_immediately(self):
                return complete()

    assert caught.value.problems == (
        (
            "step 'process_order': goto() names 'fulfil_immediately', which is no step of this class "
            "(steps: process_order, fulfill_immediately)."
        ),
    )
