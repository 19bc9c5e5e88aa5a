"""What a worker is told of its runs, when meanwhile it has gone on with them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, sleep
from aioflow.commands import Command
from aioflow.store import Claim
from aioflow_memory import MemoryStore
from tests.flows import PATIENCE, flow
from tests.support import wait_until


class SlowClaims(MemoryStore):
    """A store that claims in two halves, when it is told to: it waits before it looks, and before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.claims = 0
        self.answers: list[list[int]] = []
        self.asked, self.look, self.looked, self.answer = (asyncio.Event() for _ in range(4))

    async def claim(self, worker: int, **arguments: Any) -> Claim:
        self.claims += 1
        if not self.slow or arguments["held"] is None:
            return await super().claim(worker, **arguments)
        self.slow = False
        self.asked.set()
        await self.look.wait()
        claim = await super().claim(worker, **arguments)
        self.answers.append([run.id for run in claim.runs])
        self.looked.set()
        await self.answer.wait()
        return claim


class Calls(BaseModel):
    """A Context of nothing."""


async def test_a_claim_that_comes_late_does_not_repeat_a_step() -> None:
    """A run that began and parked between the store's look and its answer is not taken for one that was lost."""
    calls: list[object] = []
    go_on = asyncio.Event()

    async def first(self: object) -> Command:
        calls.append(self)
        await go_on.wait()
        return sleep(timedelta(hours=1))

    store = SlowClaims()
    async with Engine(store) as engine:
        store.slow = True
        await asyncio.wait_for(store.asked.wait(), PATIENCE)
        run = await engine.start(flow(Calls, first))
        await wait_until(lambda: calls)
        store.look.set()
        await asyncio.wait_for(store.looked.wait(), PATIENCE)
        go_on.set()
        await run.wait(PATIENCE, until="parked")
        claims = store.claims
        store.answer.set()
        await wait_until(lambda: store.claims > claims)
        assert store.answers == [[run.id]]
        assert len(calls) == 1
