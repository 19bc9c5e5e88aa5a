"""Control flow, completion and failure: ``complete`` merges its data into the Context, ``fail`` gives the reason."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import pytest
from pydantic import BaseModel

from aioflow import complete, errors, fail, get_context, get_run, step, workflow
from aioflow.testing import TimeMachine


@workflow("validation")
class ValidationWorkflow:
    class Context(BaseModel):
        all_validations_passed: bool
        final_status: str = "open"

    @step(start=True)
    def final_step(self):
        ctx = get_context(self.Context)
        if ctx.all_validations_passed:
            return complete(final_status="approved", completion_date=get_run().now.isoformat())
        return fail("Validation failed: missing required documents")


async def test_completion_merges_the_final_data(flow: TimeMachine) -> None:
    """Data of ``complete`` is merged into declared fields, and also kept under undeclared names."""
    run = await flow.start(ValidationWorkflow, all_validations_passed=True)
    await run.wait()
    assert run.data == {
        "all_validations_passed": True,
        "final_status": "approved",
        "completion_date": "2029-01-01T00:00:00+00:00",
    }
    assert run.context.final_status == "approved"


async def test_failure_has_the_reason(flow: TimeMachine) -> None:
    """A failed run's error is exactly the reason, after one attempt, and its Context is unchanged."""
    run = await flow.start(ValidationWorkflow, all_validations_passed=False)
    await run.wait()
    assert run.status == "failed"
    assert run.error == "Validation failed: missing required documents"
    assert run.attempt == 1
    assert run.context.final_status == "open"


async def test_result_of_a_failed_run(flow: TimeMachine) -> None:
    """Asking for the result of a failed run raises an error that has the reason."""
    run = await flow.start(ValidationWorkflow, all_validations_passed=False)
    with pytest.raises(errors.RunFailed, match="Validation failed: missing required documents"):
        await run.result()
