"""Monitoring and debugging, testing workflows: the guide's test, with the fixture ``flow`` in place of an executor."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import timedelta

import pytest

from aioflow import complete, engine, fail, get_context, goto, step, wait, workflow
from aioflow.testing import TimeMachine
from tests.guide.order_fulfillment import OrderFulfillmentWorkflow


@workflow("paid_order_fulfillment")
class PaidOrderFulfillmentWorkflow(OrderFulfillmentWorkflow):
    """The order that the guide's test assumes: its first step waits for the payment."""

    @step(start=True)
    def confirm_payment(self):
        return wait.for_signal(
            "payment_confirmed", timeout=timedelta(days=2), on_timeout=self.cancel_order, then=self.paid
        )

    @step()
    def paid(self):
        get_context(self.Context).payment_confirmed = True
        return goto(self.reserve_inventory)

    @step()
    def cancel_order(self):
        return fail("never paid")


async def test_order_workflow(flow: TimeMachine) -> None:
    """An order waits at its first step, gets a signal, and completes."""
    run = await flow.start("paid_order_fulfillment", order_id=123)

    assert run.status == "running"
    assert run.current_step == "confirm_payment"

    await flow.signal("payment_confirmed", run_id=run.id)
    await flow.settle()

    await run.refresh()
    assert run.status == "completed"
    assert run.data == {"order_id": 123, "payment_confirmed": True, "items_reserved": True, "shipped": True}


async def test_order_that_does_not_wait(flow: TimeMachine) -> None:
    """The guide's own order waits for no signal, and one that is sent reaches nobody."""
    run = await flow.start("order_fulfillment", order_id=123)
    assert (run.status, run.current_step) == ("running", "confirm_payment")
    assert (await flow.signal("payment_confirmed")).state == "none"
    await flow.settle()
    await run.refresh()
    assert run.status == "completed"


async def test_time_is_the_tests(flow: TimeMachine) -> None:
    """Two days without a payment pass at once."""
    run = await flow.start("paid_order_fulfillment", order_id=123)
    await flow.advance(days=2)
    await run.refresh()
    assert (run.status, run.error) == ("failed", "never paid")


async def test_the_applications_engine(flow: TimeMachine) -> None:
    """In a test ``aioflow.engine`` is the test's machine, so that the application's code needs no change."""
    run = await engine.start("order_fulfillment", order_id=123)
    await run.wait()
    assert await flow.get(run.id) == run


@pytest.mark.parametrize("attempt", [1, 2])
async def test_each_test_has_its_own_store(flow: TimeMachine, attempt: int) -> None:
    """A test sees nothing of another test's runs."""
    assert await flow.count() == 0
    await flow.start("order_fulfillment", order_id=123)


async def test_one_step(flow: TimeMachine) -> None:
    """``run_step`` runs a step without a run; for an inherited one, ``workflow=`` names the workflow."""
    done = await flow.run_step(PaidOrderFulfillmentWorkflow.paid, {"order_id": 123})
    assert done.command == goto("reserve_inventory")
    assert done.context.payment_confirmed

    done = await flow.run_step(
        PaidOrderFulfillmentWorkflow.ship_order, {"order_id": 123}, workflow=PaidOrderFulfillmentWorkflow
    )
    assert done.command == complete()
    assert done.context.shipped
