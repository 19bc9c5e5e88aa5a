"""An order waits for its payment, which is an event; another process, or a web hook, would emit it.

python examples/12_payment.py

The event "order_placed" starts a run, which reserves the goods and waits for the event "paid" or "cancelled" of its own
order. The book is paid; the piano is paid before it is reserved, which counts because it occurred since the run
started; the lamp is cancelled; the vase is never paid, so its run fails after two days. (A day takes 0.5 s.)
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import Engine, Event, WorkflowRun, complete, event_workflow, fail, get_context, goto, on, step, wait

DAY = timedelta(seconds=0.5)
piano_found = asyncio.Event()


@event_workflow("order_placed", name="paid_order")
class Order:
    class Context(BaseModel):
        entity_id: str = ""  # set by aioflow: the entity of the event that resumed the run last
        order_id: str = ""
        item: str = ""

    @classmethod
    async def create_context(cls, event: Event):
        return cls.Context(order_id=event.entity_id, item=event.entity["item"])

    @step(start=True)
    async def reserve(self):
        ctx = get_context(self.Context)
        if ctx.item == "piano":
            await piano_found.wait()  # the warehouse is slower than the customer
        print(f"{ctx.item}: reserved")
        return goto(self.wait_for_payment)

    @step
    async def wait_for_payment(self):
        order_id = get_context(self.Context).order_id
        return wait.any(
            on.event("paid", entity_id=order_id, then=self.ship),
            on.event("cancelled", entity_id=order_id, then=self.cancelled),
            timeout=2 * DAY,
            on_timeout=self.give_back,
        )

    @step
    async def ship(self, event: Event):
        print(f"{get_context(self.Context).item}: shipped, paid by {event.entity['by']}")
        return complete()

    @step
    async def cancelled(self):
        return fail("cancelled")

    @step
    async def give_back(self):
        return fail("never paid")


async def place(engine: Engine, order_id: int, item: str) -> WorkflowRun:
    """Place an order; return the run that a worker has started because of it."""
    event = await engine.emit("order_placed", {"id": order_id, "item": item}, event_id=f"order-{order_id}")
    while not (runs := await engine.runs(event_id=event.id)):  # noqa: ASYNC110 - the worker may be another process
        await asyncio.sleep(0.01)
    return runs[0]


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db") as engine:
            runs = [
                await place(engine, number, item) for number, item in enumerate(("book", "piano", "lamp", "vase"), 1)
            ]
            await engine.emit("paid", {"by": "card"}, entity_id=1, event_id="payment-1")
            await engine.emit("paid", {"by": "card"}, entity_id=1, event_id="payment-1")  # the web hook calls twice
            await engine.emit("paid", {"by": "invoice"}, entity_id=2)
            piano_found.set()
            await engine.emit("cancelled", entity_id=3)
            for run in runs:
                await run.wait()
                print(f"{run.data['item']}: {run.status}, {run.error or 'thanks'}")


if __name__ == "__main__":
    asyncio.run(main())
