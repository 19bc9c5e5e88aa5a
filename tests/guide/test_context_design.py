"""State and Context, design: required fields, defaults, amounts, and values that runs do not share."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from aioflow import complete, errors, get_context, goto, step, workflow
from aioflow.testing import TimeMachine


class OrderContext(BaseModel):
    # Required fields
    order_id: int
    customer_email: str

    # Optional fields with defaults
    payment_method: str = ""
    total_amount: Decimal = Decimal("0.00")
    shipping_address: dict[str, Any] = {}

    # Workflow state tracking
    steps_completed: list[str] = []
    retry_count: int = 0
    last_error: str = ""

    # External system IDs
    payment_processor_id: str = ""
    shipping_tracking_id: str = ""


@workflow("order_with_context")
class OrderWorkflow:
    Context: ClassVar = OrderContext  # pyright requires ClassVar

    @step(start=True)
    def price(self):
        ctx = get_context(self.Context)
        ctx.total_amount += Decimal("19.90")
        ctx.shipping_address["city"] = "Portland"
        ctx.steps_completed.append("priced")
        return goto(self.add_tax)

    @step()
    def add_tax(self):
        ctx = get_context(self.Context)
        ctx.total_amount *= Decimal("1.10")
        ctx.steps_completed.append("taxed")
        return complete()


async def test_required_fields(flow: TimeMachine) -> None:
    """Without a required field nothing is started, and the error names the field."""
    with pytest.raises(errors.ContextInvalid, match="customer_email"):
        await flow.start("order_with_context", order_id=1)
    assert await flow.count() == 0


async def test_defaults(flow: TimeMachine) -> None:
    """A new run has all defaults."""
    run = await flow.start(OrderWorkflow, order_id=1, customer_email="a@example.com")
    assert run.context == OrderContext(order_id=1, customer_email="a@example.com")


async def test_an_amount_stays_exact(flow: TimeMachine) -> None:
    """A Decimal keeps its digits in the next step and at the end, and is a string in ``data``."""
    run = await flow.start(OrderWorkflow, order_id=1, customer_email="a@example.com")
    assert run.data["total_amount"] == "0.00"
    await run.wait()
    assert run.data["total_amount"] == "21.8900"
    assert run.context.total_amount == Decimal("21.89")


async def test_each_run_has_its_own(flow: TimeMachine) -> None:
    """Default dicts and lists are not shared between runs."""
    runs = [await flow.start(OrderWorkflow, order_id=n, customer_email="a@example.com") for n in (1, 2)]
    for run in runs:
        context = await run.result()
        assert context.shipping_address == {"city": "Portland"}
        assert context.steps_completed == ["priced", "taxed"]
    assert OrderContext(order_id=3, customer_email="").steps_completed == []
