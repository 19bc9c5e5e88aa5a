"""A store that is unavailable or silent for a while: calls and steps wait for it as long as they may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, errors, get_run, step, wait, workflow
from aioflow.client import PATIENCE
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.model import Run
from aioflow.store import IdKind, RunQuery
from aioflow_memory import MemoryStore
from tests.engine.conftest import kinds_of, run_of
from tests.faulty import QuickClock
from tests.support import wait_until


class Away(MemoryStore):
    """A store that is unavailable for reads and for reserving ids.

    Attributes:
        times: how many calls fail; -1 for all.
        silent: they never answer, instead of raising.
        asked: how many calls have failed.
    """

    def __init__(self) -> None:
        super().__init__("away://")
        self.times, self.silent, self.asked = 0, False, 0

    async def _there(self) -> None:
        if not self.times:
            return
        self.times -= 1
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        raise errors.StoreUnavailable(self.name, "nobody is at home")

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        await self._there()
        return await super().reserve(kind, count, now)

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        if self.silent:
            await self._there()
        return await super().load(run_ids, now)

    async def select(self, query: RunQuery, now: Micros) -> list[Run]:
        await self._there()
        return await super().select(query, now)


@workflow("down-child")
class Child:
    """Waits for a number."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("number", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


def parent_of(store: Away, times: int, attempts: list[int]) -> type:
    """A workflow that starts a child and sends a number; after its step this many calls of the store fail."""

    @workflow("down-parent")
    class Parent:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def begin(self) -> Command:
            attempts.append(get_run().attempt)
            store.times = times
            get_run().start(Child)
            get_run().signal("number", {"number": 7}, key="somebody")
            return complete()

    return Parent


async def test_step_that_starts_and_sends_waits_for_the_store() -> None:
    """While no ids can be reserved, the step's run waits; then all is committed, and the step has run once."""
    store, attempts = Away(), list[int]()
    parent = parent_of(store, 3, attempts)
    async with Engine(store, workflows=[parent, Child]) as engine:
        run = await run_of(engine, parent)
        assert store.asked == 3
        assert (run.status, run.error, attempts) == ("completed", None, [1])
        assert await kinds_of(engine, run) == ["start", "complete"]
        assert await engine.count(workflow="down-child") == 1
        assert (await engine.stats()).mailbox == 1


async def test_engine_closes_while_a_step_waits_for_the_store() -> None:
    """A step that waits for ids is stopped when the engine closes, and its run goes on in the next engine."""
    store, attempts = Away(), list[int]()
    parent = parent_of(store, -1, attempts)
    async with Engine(store, workflows=[parent, Child], shutdown_timeout=timedelta(milliseconds=50)) as engine:
        run = await engine.start(parent)
        await wait_until(lambda: store.asked > 1)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 3
    store.times = 0
    async with Engine(store, workflows=[parent_of(store, 0, attempts), Child]) as engine:
        assert (await engine.wait(run.id, 5)).status == "completed"
    assert attempts == [1, 1]


CALLS: dict[str, Callable[[Engine], Awaitable[Any]]] = {
    "start": lambda engine: engine.start(Child),
    "signal": lambda engine: engine.signal("number", {"number": 7}, key="somebody"),
    "signal to a workflow's key": lambda engine: engine.signal("number", key="known", workflow=Child),
}


@pytest.mark.parametrize("call", CALLS)
async def test_calls_wait_for_the_store_and_then_go_well(call: str) -> None:
    """A call during which the store is available again in time succeeds."""
    store, clock = Away(), QuickClock()
    async with Engine(store, workflows=[Child], worker=False, clock=clock) as engine:
        await _known(engine)
        store.times = 5
        await CALLS[call](engine)
        assert (store.asked, store.times) == (5, 0)


@pytest.mark.parametrize("call", CALLS)
async def test_calls_give_up_when_their_patience_is_over(call: str) -> None:
    """A call on a store that stays unavailable raises after about 15 s."""
    store, clock = Away(), QuickClock()
    async with Engine(store, workflows=[Child], worker=False, clock=clock) as engine:
        await _known(engine)
        store.times = -1
        began = clock.passed
        with pytest.raises(errors.StoreUnavailable, match="nobody is at home"):
            await CALLS[call](engine)
        assert clock.passed - began > PATIENCE - 2_000_000
        assert 15 <= store.asked <= 40
        store.times = 0


async def test_silent_store_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call on a store that never answers raises when its patience is over."""
    monkeypatch.setattr("aioflow.client.PATIENCE", 100_000)
    monkeypatch.setattr("aioflow.sending.PATIENCE", 100_000)
    store = Away()
    async with Engine(store, workflows=[Child], worker=False) as engine:
        known = await _known(engine)
        store.times, store.silent = -1, True
        for call in (CALLS["signal"], lambda engine: engine.signal("number", run_id=known)):
            asked = store.asked
            with pytest.raises(errors.StoreUnavailable, match=r"away:// is not available: it does not answer\.$"):
                await call(engine)
            assert store.asked > asked
        store.times = 0


async def _known(engine: Engine) -> int:
    """Start a run with a key, and use up the first block of run ids; returns the run's id."""
    run = await engine.start(Child, StartOptions(key="known"))
    assert engine._parts is not None
    ids = engine._parts.office.run_ids
    ids._next = ids._end
    return run.id
