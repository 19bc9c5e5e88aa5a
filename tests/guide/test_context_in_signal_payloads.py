"""State and Context, signal payloads: their keys can be read as if the Context had declared them."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from aioflow import SignalReceipt, complete, engine, get_context, step, wait, workflow
from aioflow.testing import TimeMachine

NOON = datetime(2029, 1, 1, 12, tzinfo=UTC)


@workflow("form")
class FormWorkflow:
    class Context(BaseModel):
        user_name: str = ""

    @step(start=True)
    def wait_for_user_input(self):
        return wait.for_signal("user_submitted_form")

    @step()
    def process_user_input(self):
        ctx = get_context()  # without the class, as type checkers do not know form_data
        ctx.user_name = ctx.form_data["name"]
        ctx.submission_time += " UTC"
        return complete()


@workflow("form_with_parameters")
class FormParametersWorkflow:
    class Context(BaseModel):
        submitted: datetime | None = None

    @step(start=True)
    def wait_for_user_input(self):
        return wait.for_signal("user_submitted_form")

    @step()
    def process_user_input(self, form_data: dict[str, str], submission_time: datetime):
        get_context(self.Context).submitted = submission_time
        return complete(user_name=form_data["name"])


@workflow("strict_form")
class StrictFormWorkflow:
    class Context(BaseModel):
        model_config = ConfigDict(extra="forbid")
        age: int = 0

    @step(start=True)
    def wait_for_user_input(self):
        return wait.for_signal("user_submitted_form")

    @step()
    def process_user_input(self):
        return complete()


async def submit(**more: Any) -> SignalReceipt:
    """Stands for a form's handler."""
    return await engine.signal(
        "user_submitted_form",
        {"form_data": {"name": "John", "phone": "555-1234"}, "submission_time": NOON.isoformat(), **more},
    )


async def test_undeclared_keys_are_attributes(flow: TimeMachine) -> None:
    """A payload's undeclared keys can be read and assigned as attributes, and are kept with the run."""
    run = await flow.start(FormWorkflow)
    await run.wait(until="parked")
    assert (await submit()).delivered == [run.id]
    await run.wait()
    assert run.status == "completed"
    assert run.data == {
        "user_name": "John",
        "form_data": {"name": "John", "phone": "555-1234"},
        "submission_time": "2029-01-01T12:00:00+00:00 UTC",
    }


async def test_keys_as_parameters(flow: TimeMachine) -> None:
    """A step that declares the keys as parameters gets them converted to their types."""
    run = await flow.start(FormParametersWorkflow)
    await run.wait(until="parked")
    await submit()
    context = await run.result()
    assert context.submitted == NOON
    assert context.model_extra is not None
    assert context.model_extra["user_name"] == "John"


@pytest.mark.parametrize("payload", [{"age": "old"}, {"form_data": {}}])
async def test_payload_that_does_not_fit(flow: TimeMachine, payload: dict[str, Any]) -> None:
    """A payload with a wrong value, or with a key that the Context forbids, is rejected, and the run waits on."""
    run = await flow.start(StrictFormWorkflow)
    await run.wait(until="parked")
    receipt = await engine.signal("user_submitted_form", payload)
    assert receipt.state == "rejected"
    assert next(iter(payload)) in receipt.rejected[run.id]
    await run.refresh()
    assert (run.status, run.context.age) == ("waiting", 0)
    await engine.signal("user_submitted_form", {"age": 42})
    assert (await run.result()).age == 42
