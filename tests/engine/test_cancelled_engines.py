"""Engines whose task is cancelled: while they are open, closing or opening."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest
from pydantic import BaseModel

from aioflow import Engine, complete, step, workflow
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.store import IdKind
from aioflow_memory import MemoryStore
from tests.engine.conftest import MakeEngine, Slow, closed, run_of
from tests.support import wait_until


@workflow("cancelled-order")
class Order:
    """Ends at once."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        return complete()


async def test_engine_in_a_cancelled_scope_closes(make_engine: MakeEngine) -> None:
    """If an anyio scope around an engine is cancelled, the engine drains: steps that end in time are committed."""
    slow = Slow()
    engine = make_engine(slow.workflow)
    with anyio.CancelScope() as scope:
        async with engine:
            run = await engine.start(slow.workflow)
            await wait_until(lambda: slow.seen)
            asyncio.get_running_loop().call_later(0.02, slow.gate.set)
            scope.cancel()
            await asyncio.Event().wait()
    assert scope.cancelled_caught
    await closed(engine)
    async with make_engine(slow.workflow) as engine:
        assert (await engine.wait(run.id, 5)).data == {"path": ["first", "second"]}
    assert [one[0] for one in slow.seen] == ["first", "second"]


async def test_engine_whose_task_is_cancelled_again_and_again_closes(make_engine: MakeEngine) -> None:
    """A task that is cancelled repeatedly, even while it closes the engine, closes it first and is then cancelled."""
    slow = Slow()
    engine = make_engine(slow.workflow)

    async def service() -> None:
        async with engine:
            await engine.start(slow.workflow)
            await asyncio.Event().wait()

    task = asyncio.ensure_future(service())
    await wait_until(lambda: slow.seen)
    for turns in range(10):
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
    assert not task.done()
    slow.gate.set()
    await asyncio.wait([task])
    assert task.cancelled()
    await closed(engine)
    assert [one[0] for one in slow.seen] == ["first"]


@pytest.mark.parametrize("how", ["task", "task again and again", "scope"])
async def test_open_that_is_cancelled_leaves_nothing(make_engine: MakeEngine, how: str) -> None:
    """Wherever an opening is cancelled, the engine is open or nothing is left, and it can be opened again."""
    engine = make_engine(Order)
    before = asyncio.all_tasks()

    async def opens(scope: anyio.CancelScope) -> None:
        with scope:
            async with engine:
                pass

    async def opened(turns: int) -> int:
        """Cancel the opening after this many turns of the loop; returns how many turns it took."""
        scope = anyio.CancelScope()
        task = asyncio.ensure_future(opens(scope))
        taken = 0
        while not task.done():
            if taken == turns or (taken > turns >= 0 and how == "task again and again"):
                _ = scope.cancel() if how == "scope" else task.cancel()
            taken += 1
            await asyncio.sleep(0)
        return taken

    whole = await opened(-1)
    for part in range(40):
        await opened(whole * part // 40)
        assert repr(engine) == "<Engine closed>"
        await wait_until(lambda: asyncio.all_tasks() == before, timeout=1, what="no task is left")
    async with engine:
        assert (await run_of(engine, Order)).status == "completed"
    await closed(engine)


class Opens(MemoryStore):
    """A store whose opening and closing wait until the test lets them go on, and whose opening may fail."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.gate, self.closing = asyncio.Event(), asyncio.Event()
        self.closed = 0

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        if self.fails:
            raise OSError("no")
        await self.gate.wait()
        return await super().reserve(kind, count, now)

    async def close(self) -> None:
        self.closing.set()
        if self.fails:
            await self.gate.wait()
        await super().close()
        self.closed += 1


async def test_scope_around_an_opening_catches_its_own() -> None:
    """An anyio scope that times out, or was cancelled before, also ends the opening of an engine."""
    store = Opens(fails=False)
    with anyio.move_on_after(0.01) as scope:
        async with Engine(store):
            pass
    assert scope.cancelled_caught
    with pytest.raises(TimeoutError), anyio.fail_after(0.01):
        async with Engine(store):
            pass
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Engine(store):
            pass
    assert scope.cancelled_caught
    assert store.closed == 3


@pytest.mark.parametrize("native", [True, False], ids=["task", "scope"])
async def test_a_failed_opening_closes_its_store_despite_cancels(native: bool) -> None:
    """If an opening fails and its task is cancelled, the store is closed before the task ends."""
    store = Opens(fails=True)
    scope = anyio.CancelScope()

    async def opens() -> None:
        with scope:
            async with Engine(store):
                pass

    task = asyncio.ensure_future(opens())
    await store.closing.wait()
    for _ in range(3):
        _ = task.cancel() if native else scope.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    store.gate.set()
    with suppress(asyncio.CancelledError, OSError):
        await task
    assert store.closed == 1
