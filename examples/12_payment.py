"""An order waits for its payment, which is an event; another process, or a web hook, would emit it.

python examples/12_payment.py

The order starts when it is placed, reserves the goods, and waits for the event "paid" of its own id, or for "cancelled".
The first one is paid, the second by somebody who was faster than the warehouse: a payment that occurred since the run
started counts, too. The third is cancelled, and nobody pays the last one: its goods are given back. (A day takes 0.5 s.)
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import Engine, Event, WorkflowRun, complete, event_workflow, fail, get_context, goto, on, step, wait

DAY = timedelta(seconds=0.5)
busy = asyncio.Event()


@event_workflow("order_placed", name="paid_order")
class Order:
    class Context(BaseModel):
        entity_id: str = ""  # of the event that the run went on with last
        order_id: str = ""
        item: str = ""

    @classmethod
    async def create_context(cls, event: Event):
        return cls.Context(order_id=event.entity_id, item=event.entity["item"])

    @step(start=True)
    async def reserve(self):
        ctx = get_context(self.Context)
        if ctx.item == "piano":
            await busy.wait()  # it takes its time
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
    """The run that the order starts."""
    event = await engine.emit("order_placed", {"id": order_id, "item": item}, event_id=f"order-{order_id}")
    while not (runs := await engine.runs(event_id=event.id)):  # noqa: ASYNC110 - a worker will, maybe in another process
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
            busy.set()
            await engine.emit("cancelled", entity_id=3)
            for run in runs:
                await run.wait()
                print(f"{run.data['item']}: {run.status}, {run.error or 'thanks'}")


if __name__ == "__main__":
    asyncio.run(main())
