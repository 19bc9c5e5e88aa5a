"""Quick start, multi-step flow: each step names the next one, and gets the Context that the one before has left."""

from __future__ import annotations

from aioflow.testing import TimeMachine
from tests.guide.order_fulfillment import OrderFulfillmentWorkflow


async def test_an_order_goes_through_its_steps(flow: TimeMachine) -> None:
    """All three steps run in order, and the Context has what each of them did."""
    run = await flow.start(OrderFulfillmentWorkflow, order_id=123)
    await run.wait()
    assert run.status == "completed"
    assert run.current_step == "ship_order"
    assert run.data == {"order_id": 123, "payment_confirmed": True, "items_reserved": True, "shipped": True}
    assert [(row.kind, row.step) for row in await flow.history(run.id)] == [
        ("start", "confirm_payment"),
        ("goto", "confirm_payment"),
        ("goto", "reserve_inventory"),
        ("complete", "ship_order"),
    ]
