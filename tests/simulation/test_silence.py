"""A store that hangs, and one that fails now and then: a worker must not lose its lease, or must stop in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, complete
from aioflow.clock import SECOND
from aioflow.commands import Command
from aioflow.errors import StoreUnavailable
from aioflow.store import Claim
from aioflow.testing.simloop import SimClock, SimLoop
from aioflow_memory import MemoryStore
from tests.flows import flow


class Silent(MemoryStore):
    """A store that from some instant on does not answer claims."""

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


class Failing(MemoryStore):
    """A store that cannot renew leases in the first two of every ten seconds."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self.loop = loop
        self.failed: list[float] = []

    async def renew(self, *arguments: Any) -> bool:
        now = self.loop.time()
        if now > 8 and now % 10 < 2:
            self.failed.append(now)
            raise StoreUnavailable(self.name, "the connection was lost")
        return await super().renew(*arguments)


class Nothing(BaseModel):
    """An empty Context."""


def test_steps_are_stopped_before_the_lease_is_over() -> None:
    """A worker whose claims get no answer stops its steps before its lease is over."""
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


def test_a_renewal_that_fails_is_tried_again_soon() -> None:
    """A renewal that fails is repeated soon enough that the lease is kept and the running step is not stopped."""
    loop = SimLoop(1)
    store = Failing(loop)
    calls: list[float] = []

    async def long(self: object) -> Command:
        calls.append(loop.time())
        await loop.pause(100)
        return complete()

    async def main() -> None:
        clock = SimClock(loop, 1_750_000_000 * SECOND)
        async with Engine(store, clock=clock, lease=timedelta(seconds=30)) as engine:
            run = await engine.start(flow(Nothing, long))
            assert (await run.wait()).status == "completed"

    loop.run_until_complete(main())
    loop.dispose()
    assert len(calls) == 1
    assert store.failed
