"""A store that is silent: it neither answers nor fails."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, complete
from aioflow.clock import SECOND
from aioflow.commands import Command
from aioflow.store import Claim
from aioflow.testing.simloop import SimClock, SimLoop
from aioflow_memory import MemoryStore
from tests.flows import flow


class Silent(MemoryStore):
    """A store that at some instant ceases to answer those who claim."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self.loop = loop
        self.silent = asyncio.Event()
        self.asked: list[float] = []
        self.renewed = 0.0

    async def claim(self, worker: int, **arguments: Any) -> Claim:
        if self.silent.is_set():
            self.asked.append(self.loop.time())
            await self.loop.pause(1000)
        return await super().claim(worker, **arguments)

    async def renew(self, *arguments: Any) -> bool:
        self.renewed = self.loop.time()
        return await super().renew(*arguments)


class Nothing(BaseModel):
    """A Context of nothing."""


def test_steps_are_stopped_before_the_lease_is_over() -> None:
    """A worker that hears nothing stops what it runs while nobody can have taken it over yet."""
    loop = SimLoop(1)
    store = Silent(loop)
    stopped: list[float] = []

    async def long(self: object) -> Command:
        try:
            await loop.pause(3600)
        except asyncio.CancelledError:
            stopped.append(loop.time())
            raise
        return complete()

    async def main() -> None:
        clock = SimClock(loop, 1_750_000_000 * SECOND)
        engine = Engine(store, clock=clock, lease=timedelta(seconds=30), shutdown_timeout=timedelta(0))
        async with engine:
            await engine.start(flow(Nothing, long))
            await loop.pause(45)
            assert not stopped
            store.silent.set()
            await loop.pause(60)
            assert stopped

    loop.run_until_complete(main())
    loop.dispose()
    assert len(store.asked) == 1
    [at] = stopped
    assert store.asked[0] < at < store.renewed + 30
