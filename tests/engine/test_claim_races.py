"""What a worker is told of its runs, when meanwhile it has gone on with them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, goto, sleep
from aioflow.changes import Change, Move, Result
from aioflow.clock import SECOND, Micros
from aioflow.commands import Command
from aioflow.errors import StoreUnavailable
from aioflow.store import Claim
from aioflow_memory import MemoryStore
from tests.flows import PATIENCE, done, ended, flow
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


class LosingRuns(MemoryStore):
    """A store that loses the reply to a goto, and has given the run to another worker when it is asked again."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []
        self.again: list[str] = []

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        results = await super().apply(changes, now)
        if not any(isinstance(change, Move) and change.transition.kind == "goto" for change in changes):
            return results
        if self.taken:
            self.again += [
                result.outcome for change, result in zip(changes, results, strict=True) if isinstance(change, Move)
            ]
            return results
        later = now + 3600 * SECOND
        known = [(run.workflow, run.version) for run in await self.load(range(10), now)]
        claim = await super().claim(99, lease=SECOND, limit=9, known=known, held=None, now=later)
        self.taken = [run.id for run in claim.runs]
        raise StoreUnavailable(self.name, "the connection was lost")


class LosingLeases(MemoryStore):
    """A store under which a worker loses its lease while a goto is being committed."""

    def __init__(self) -> None:
        super().__init__()
        self.engine: Engine | None = None
        self.lost = asyncio.Event()

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        goes_on = any(isinstance(change, Move) and change.transition.kind == "goto" for change in changes)
        if goes_on and self.engine is not None and not self.lost.is_set():
            assert self.engine._worker is not None
            self.engine._worker._lose("its lease was over")
            self.lost.set()
        return await super().apply(changes, now)


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


async def test_a_run_that_was_taken_over_is_not_gone_on_with() -> None:
    """A commit whose reply was lost tells, offered again, of a run that has another owner, and that one's fence."""
    calls: list[object] = []

    async def first(self: object) -> Command:
        return goto("second")

    async def second(self: object) -> Command:
        calls.append(self)
        return done(self)

    store = LosingRuns()
    async with Engine(store) as engine:
        run = await engine.start(flow(Calls, first, second))
        await wait_until(lambda: store.again)
        await ended(engine, flow(Calls, done))  # meanwhile the other would have gone on
    assert (store.taken, store.again) == ([run.id], ["applied"])
    assert not calls
    await store.open(0)
    [row] = await store.load([run.id], 0)
    assert (row.seq, row.step, row.owner) == (2, "second", 99)


async def test_a_worker_without_its_lease_begins_nothing() -> None:
    """What it was committing may be applied; it goes on with the run once it works again, not before."""
    working: list[bool] = []

    async def first(self: object) -> Command:
        return goto("second")

    async def second(self: object) -> Command:
        assert store.engine is not None
        assert store.engine._worker is not None
        working.append(store.engine._worker.working)
        return done(self)

    store = LosingLeases()
    async with Engine(store) as engine:
        store.engine = engine
        run = await engine.start(flow(Calls, first, second))
        assert (await run.wait(PATIENCE)).status == "completed"
    assert store.lost.is_set()
    assert working == [True]
