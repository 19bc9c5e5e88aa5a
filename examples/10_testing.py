"""A workflow and its tests, with aioflow's fixture `flow`: an engine in memory, on virtual time.

pytest examples/10_testing.py
python examples/10_testing.py        the same
"""

import sys
from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import complete, engine, errors, fail, get_context, goto, step, wait, workflow
from aioflow.testing import TimeMachine

# ---- the code under test


class Paid(BaseModel):
    amount: int


@workflow("tested_order")
class Order:
    class Context(BaseModel):
        price: int
        reminders: int = 0

    @step(start=True)
    async def ask(self):
        return wait.for_signal(Paid, timeout=timedelta(days=7), on_timeout=self.remind, then=self.check)

    @step
    async def remind(self):
        ctx = get_context(self.Context)
        ctx.reminders += 1
        return goto(self.ask) if ctx.reminders < 3 else fail("never paid")

    @step
    async def check(self, paid: Paid):
        return complete() if paid.amount >= get_context(self.Context).price else goto(self.ask)


async def pay(order_id: int, amount: int) -> None:
    """Stands for a request handler; in a test that uses `flow`, `aioflow.engine` is `flow`."""
    await engine.signal(Paid(amount=amount), run_id=order_id)


# ---- the tests: anyio's plugin runs them here; under pytest-asyncio, mark them with pytest.mark.asyncio instead

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_too_little_is_asked_for_again(flow: TimeMachine) -> None:
    run = await flow.start(Order, price=10)
    await pay(run.id, 5)
    await flow.settle()
    await run.refresh()
    assert (run.status, run.waiting_signal) == ("waiting", "Paid")
    await pay(run.id, 10)
    assert (await run.result()).reminders == 0


async def test_a_reminder_a_week(flow: TimeMachine) -> None:
    run = await flow.start(Order, price=10)
    await flow.advance(days=6, hours=23)
    await run.refresh()
    assert run.context.reminders == 0
    await flow.advance(hours=1)
    await run.refresh()
    assert run.context.reminders == 1


async def test_three_weeks_are_enough(flow: TimeMachine) -> None:
    run = await flow.start(Order, price=10)
    with pytest.raises(errors.RunFailed, match="never paid"):
        await run.result()  # meanwhile time jumps from timer to timer
    assert flow.now == run.created_at + timedelta(weeks=3)


async def test_a_step_alone(flow: TimeMachine) -> None:
    done = await flow.run_step(Order.remind, Order.Context(price=10, reminders=1))
    assert done.command == goto("ask")
    assert done.context.reminders == 2


@pytest.mark.parametrize(("amount", "command"), [(10, complete()), (9, goto("ask"))])
async def test_a_message_is_checked(flow: TimeMachine, amount: int, command: object) -> None:
    done = await flow.run_step(Order.check, {"price": 10}, resumed_by=Paid(amount=amount))
    assert done.command == command


if __name__ == "__main__":
    # This file has imported anyio, a pytest plugin; without -W, pytest would warn that it cannot rewrite its asserts.
    sys.exit(pytest.main(["-v", "-Wignore:Module already imported", __file__]))
