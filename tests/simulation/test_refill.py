"""The window of timers is refilled while runs park: on virtual time, where lateness shows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel

from aioflow import Engine, complete, sleep
from aioflow.clock import SECOND, Micros
from aioflow.commands import Command
from aioflow.model import Deadline
from aioflow.testing.simloop import SimClock, SimLoop
from aioflow_memory import MemoryStore
from tests.flows import flow


class SlowDue(MemoryStore):
    """A store that answers slowly what is due in the next minutes: the answer is outdated by then."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self.loop = loop
        self.under_way = 0

    async def due(
        self,
        after: tuple[Micros, int],
        until: tuple[Micros, int],
        limit: int,
        now: Micros,
        of: Literal["run", "plan"] = "run",
    ) -> list[Deadline]:
        found = await super().due(after, until, limit, now, of)
        if of == "plan" or until[0] < now + 100 * SECOND:
            return found
        self.under_way += 1
        await self.loop.pause(0.02)
        self.under_way -= 1
        return found

    async def hint(self, now: Micros) -> int:
        """Nobody else has written, so that only the heap wakes runs in time."""
        return 0


class Nothing(BaseModel):
    """An empty Context."""


def test_what_parks_during_a_refill_is_woken_in_time() -> None:
    """A sleep that is committed between the store's read and its answer is in the heap, and not left to the scan."""
    loop = SimLoop(1)
    store = SlowDue(loop)
    under_way: list[int] = []

    async def nap(self: object) -> Command:
        under_way.append(store.under_way)
        return sleep(timedelta(seconds=5), then="end")  # longer than the first scans after opening

    async def end(self: object) -> Command:
        return complete()

    async def main() -> list[Any]:
        async with Engine(store, clock=SimClock(loop, 1_750_000_000 * SECOND)) as engine:
            while not store.under_way:
                await loop.pause(0.001)
            run = await engine.start(flow(Nothing, nap, end))
            await run.wait(20)
            return await engine.history(run.id)

    history = loop.run_until_complete(main())
    loop.dispose()
    assert under_way == [1]
    parked, woken = history[1], history[2]
    assert (parked.kind, woken.kind) == ("sleep", "wake")
    assert timedelta(seconds=5) <= woken.at - parked.at < timedelta(seconds=5, milliseconds=50)
