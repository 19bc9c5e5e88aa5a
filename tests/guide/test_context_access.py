"""State and Context, access and updates: what a step reads, changes, and leaves to the next."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from aioflow import complete, get_context, goto, step, workflow
from aioflow.errors import UndeclaredField
from aioflow.testing import TimeMachine

ADDRESS = {"street": "123 Main St", "city": "Portland", "state": "OR"}


@workflow("context_updates")
class ContextUpdatesWorkflow:
    class Context(BaseModel):
        order_id: int
        payment_method: str = ""
        shipping_address: dict[str, str] = {}
        steps_completed: list[str] = []
        seen: list[Any] = []

    @step(start=True)
    def update_context_example(self):
        ctx = get_context(self.Context)

        # Read
        order_id = ctx.order_id
        current_steps = list(ctx.steps_completed)
        ctx.seen += [order_id, current_steps]

        # Update
        ctx.payment_method = "credit_card"
        ctx.steps_completed.append("payment_processed")
        ctx.shipping_address = {"street": "123 Main St", "city": "Portland", "state": "OR"}

        return goto(self.next_step)

    @step()
    def next_step(self):
        ctx = get_context(self.Context)
        ctx.seen += [ctx.payment_method, list(ctx.steps_completed), ctx.shipping_address["city"]]
        ctx.shipping_address["zip"] = "97201"
        return complete()

    @step()
    def misspelt(self):
        ctx = get_context()
        ctx.payment_methd = "credit_card"
        return complete()

    @step()
    def wrong(self):
        ctx = get_context()
        ctx.payment_method = None
        return complete()


async def test_changes_are_kept(flow: TimeMachine) -> None:
    """What a step assigns, appends or puts into a dict is there in the next step, and at the end."""
    run = await flow.start(ContextUpdatesWorkflow, order_id=5)
    context = await run.result()
    assert context.seen == [5, [], "credit_card", ["payment_processed"], "Portland"]
    assert context.shipping_address == ADDRESS | {"zip": "97201"}
    assert context.steps_completed == ["payment_processed"]


async def test_misspelt_field(flow: TimeMachine) -> None:
    """Assigning a name that the Context does not declare raises at that line, and lists the fields."""
    with pytest.raises(UndeclaredField, match=r"'payment_methd'.*order_id, payment_method"):
        await flow.run_step(ContextUpdatesWorkflow.misspelt, {"order_id": 5})


async def test_value_of_the_wrong_type(flow: TimeMachine) -> None:
    """Assigning a value of a wrong type raises at that line."""
    with pytest.raises(ValidationError, match="payment_method"):
        await flow.run_step(ContextUpdatesWorkflow.wrong, {"order_id": 5})


async def test_a_callers_copy(flow: TimeMachine) -> None:
    """A caller's run object shows the run as it was, until it is refreshed."""
    run = await flow.start(ContextUpdatesWorkflow, order_id=5)
    await flow.settle()
    assert run.context.payment_method == ""
    await run.refresh()
    assert run.context.payment_method == "credit_card"
