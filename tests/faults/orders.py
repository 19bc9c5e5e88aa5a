"""A small program on a store, for faults at each of its moments: orders that are packed, paid, shipped and closed.

For each order a visit is announced, an event in the future, and its last step emits another event; both start runs.

    python -m tests.faults.orders    forks a process for each job, as program.py does

A life begins when its gate is opened, so that a tracer can attach before. What is acknowledged it notes in the journal.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from aioflow import (
    Engine,
    Event,
    StartOptions,
    complete,
    event_workflow,
    get_context,
    get_run,
    goto,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.clock import Clock
from aioflow.commands import Command
from aioflow.errors import RunEnded, StoreUnavailable
from aioflow.model import Run, Transition
from tests.faults import program
from tests.faults.images import Acknowledged
from tests.faults.program import serve
from tests.support import wait_until

T = TypeVar("T")
#: For prctl(): any process may trace this one, not only its ancestors.
PR_SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
MOMENT = timedelta(milliseconds=1)
PATH = ["take", "pack", "ship", "close"]
KINDS = ["start", "goto", "wait", "signal", "sleep", "wake", "complete"]


@workflow("crash-order")
class Order:
    """Each step appends its name to the Context."""

    class Context(BaseModel):
        number: int
        paid: int = 0
        path: list[str] = []
        load: str = ""
        events: bool = True

    @step(start=True)
    async def take(self) -> Command:
        get_context(self.Context).path.append("take")
        return goto(self.pack)

    @step
    def pack(self) -> Command:
        get_context(self.Context).path.append("pack")
        return wait.for_signal("paid", then=self.ship)

    @step
    async def ship(self) -> Command:
        get_context(self.Context).path.append("ship")
        return sleep(MOMENT, then=self.close)

    @step(thread=False)
    def close(self) -> Command:
        context = get_context(self.Context)
        context.path.append("close")
        if context.events:
            get_run().emit("crash-closed", {"id": context.number}, event_id=f"closed-{context.number}")
        return complete()


@event_workflow("crash-closed", offsets=[timedelta(0), 2 * MOMENT], name="crash-bill")
class Bill:
    """Starts when an order is closed, and again shortly after."""

    @step(start=True)
    async def send(self) -> Command:
        return complete()


@event_workflow("crash-visit", offsets=[-MOMENT, timedelta(0)], name="crash-remind")
class Remind(Bill):
    """Starts before a visit, and at its time."""


WORKFLOWS = [Order, Bill, Remind]


async def call_twice_at_most(call: Callable[[], Awaitable[T]]) -> T:
    """Call, and once more if the store was not available: what has a key or an id is not done twice."""
    try:
        return await call()
    except StoreUnavailable:
        return await call()


async def pay(engine: Engine, run_id: int, number: int) -> str:
    """Pay an order, once however often this is called, and return the receipt's state."""
    with suppress(RunEnded):
        receipt = await engine.signal("paid", {"paid": 100 + number}, run_id=run_id, signal_id=f"payment-{number}")
        return receipt.state
    return "ended"


async def visit(engine: Engine, number: int) -> Event:
    """Announce a visit, once however often this is called."""
    return await engine.emit("crash-visit", {"id": number}, at=Clock().now() + 2 * MOMENT, event_id=f"visit-{number}")


async def process(
    engine: Engine, acknowledged: Acknowledged, number: int, *, early: bool = False, load: int = 0, events: bool = True
) -> None:
    """Process an order from start to end. ``early``: pay before it waits for that. ``load``: its Context's size."""
    options = StartOptions(key=f"order-{number}")
    run = await call_twice_at_most(lambda: engine.start(Order, options, number=number, load="x" * load, events=events))
    if not early:
        await run.wait(until="parked")
    if await call_twice_at_most(lambda: pay(engine, run.id, number)) == "buffered":
        acknowledged.signals.add(f"payment-{number}")
    if events:
        await call_twice_at_most(lambda: visit(engine, number))
        acknowledged.emitted(f"visit-{number}")
    assert (await run.wait()).status == "completed"


async def go_on(database: Path, within: float = 30) -> list[str]:
    """Let an engine finish the work in a store, pay the unpaid orders, and return what is wrong with the results."""
    wrong = []
    async with Engine(f"sqlite:///{database}", workflows=WORKFLOWS) as engine, asyncio.timeout(within):
        async for run in engine.iter_runs(workflow=Order):
            if run.status != "completed":
                await pay(engine, run.id, run.data["number"])
        async for run in engine.iter_runs(workflow=Order):
            await run.wait()
            number = run.data["number"]
            expected = {
                "number": number,
                "paid": 100 + number,
                "path": PATH,
                "load": run.data["load"],
                "events": run.data["events"],
            }
            kinds = [transition.kind for transition in await engine.history(run.id)]
            if (run.status, run.data, kinds) != ("completed", expected, KINDS):
                wrong.append(f"{run!r} ends as {run.status} with {run.data} by {kinds}: {run.error}")
        return wrong + await started(engine)


async def started(engine: Engine) -> list[str]:
    """Wait until no event has anything left to start, and return what is wrong with what the events have started."""

    async def over() -> bool:
        stats = await engine.stats()
        return not stats.planned and not stats.events.get("pending")

    await wait_until(over, 30)
    wanted = Counter[tuple[str | None, str]]()
    for event in await engine.events(limit=10_000):
        wanted[event.id, "crash-remind" if event.name == "crash-visit" else "crash-bill"] = 2
    async for run in engine.iter_runs(workflow=Order):
        if run.data["events"]:
            wanted[f"closed-{run.data['number']}", "crash-bill"] += 0
    made = Counter[tuple[str | None, str]]()
    async for run in engine.iter_runs(workflow=[Bill, Remind]):
        made[run.row.event_id, run.workflow] += (await run.wait()).status == "completed"
    found = {place: made[place] for place in wanted | made}
    return [f"{event}: {count} runs of {name} for it" for (event, name), count in found.items() if count != 2]


# ---- one life


class Noted(Acknowledged):
    """Notes in the journal what is acknowledged."""

    def emitted(self, event_id: str) -> None:
        """See Acknowledged."""
        assert program.world is not None
        program.world.note("emitted", event=event_id)

    def committed(self, run: Run, transition: Transition) -> None:
        """See Instrument."""
        assert program.world is not None
        program.world.note("committed", run=run.id, seq=transition.seq, commit=transition.commit_id)


async def live(folder: str, orders: int, load: int = 0, *, events: bool = True) -> None:
    """Be one life: process so many orders, one after the other, each from start to end."""
    assert program.world is not None
    engine = Engine(f"sqlite:///{folder}/runs.db", workflows=WORKFLOWS, shutdown_timeout=timedelta(seconds=5))
    noted = Noted()
    engine.instruments.append(noted)
    async with engine:
        program.world.note("open")
        for number in range(orders):
            await process(engine, noted, number, early=number % 2 == 0, load=load, events=events)
            program.world.note("processed", number=number)
    program.world.note("closed")


def run_job(job: dict[str, Any]) -> None:
    """Be the life that the job describes, once its gate is open."""
    with suppress(AttributeError):  # only Linux has prctl()
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
    os.close(os.open(job.pop("gate"), os.O_RDONLY))
    program.enter(job["folder"], job.pop("life"))
    asyncio.run(live(**job))


if __name__ == "__main__":
    serve(run_job)
