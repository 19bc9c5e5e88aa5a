"""Three-step runs, the same for the Engine and for a bare engine, with many outstanding or one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from bare import BareEngine, BareFile, BareServer
from pydantic import BaseModel

from aioflow import Engine, complete, get_context, goto, step, workflow


@workflow("three-steps")
class ThreeSteps:
    class Context(BaseModel):
        order_id: int
        customer: str = "somebody"
        amount: float = 12.5
        paid: bool = False
        items: list[int] = []
        note: str | None = None

    @step(start=True)
    async def reserve(self):
        get_context(self.Context).items = [1, 2]
        return goto(self.charge)

    @step
    async def charge(self):
        get_context(self.Context).paid = True
        return goto(self.ship)

    @step
    async def ship(self):
        get_context(self.Context).note = "shipped"
        return complete()


async def _reserve(context: ThreeSteps.Context) -> str:
    context.items = [1, 2]
    return "charge"


async def _charge(context: ThreeSteps.Context) -> str:
    context.paid = True
    return "ship"


async def _ship(context: ThreeSteps.Context) -> str:
    context.note = "shipped"
    return ""


_BARE_STEPS: Final = {"reserve": _reserve, "charge": _charge, "ship": _ship}


async def rate(one: Callable[[int], Awaitable[object]], runs: int, outstanding: int) -> float:
    """Runs per second with so many outstanding at once: ``one`` starts a run and waits for it."""
    numbers = iter(range(runs))

    async def one_after_the_other() -> None:
        for number in numbers:
            await one(number)

    started = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(outstanding)))
    return runs / (time.perf_counter() - started)


async def times(one: Callable[[int], Awaitable[object]], runs: int) -> list[float]:
    """Milliseconds from the start to the end of a run, one run at a time."""
    found = []
    for number in range(runs):
        started = time.perf_counter()
        await one(number)
        found.append((time.perf_counter() - started) * 1000)
    return found


def through(engine: Engine) -> Callable[[int], Awaitable[object]]:
    """A function that starts one run of the engine and waits for its end, whichever process executes it."""

    async def one(number: int) -> None:
        run = await engine.start(ThreeSteps, order_id=number)
        await run.wait()

    return one


async def many(engine: Engine, runs: int, outstanding: int) -> float:
    """Runs per second of an engine."""
    return await rate(through(engine), runs, outstanding)


async def bare(store: BareFile | BareServer, runs: int, outstanding: int, serial: int = 0) -> tuple[float, list[float]]:
    """Of a bare engine: runs per second, and the milliseconds of each run alone."""
    async with BareEngine(store, ThreeSteps.Context, _BARE_STEPS, outstanding) as engine:

        async def one(number: int) -> None:
            run = await engine.start(order_id=number)
            await run.done

        return await rate(one, runs, outstanding), await times(one, serial)
