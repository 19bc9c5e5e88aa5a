"""The guide's ``order_fulfillment``: a module of the application, which two sections use."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from pydantic import BaseModel

from aioflow import complete, get_context, goto, step, workflow


@workflow("order_fulfillment")
class OrderFulfillmentWorkflow:
    class Context(BaseModel):
        order_id: int
        payment_confirmed: bool = False
        items_reserved: bool = False
        shipped: bool = False

    @step(start=True)
    def confirm_payment(self):
        ctx = get_context(self.Context)
        ctx.payment_confirmed = True
        return goto(self.reserve_inventory)

    @step()
    def reserve_inventory(self):
        ctx = get_context(self.Context)
        ctx.items_reserved = True
        return goto(self.ship_order)

    @step()
    def ship_order(self):
        ctx = get_context(self.Context)
        ctx.shipped = True
        return complete()
