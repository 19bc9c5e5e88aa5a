"""Engines whose task is cancelled: while they are open, while they close, and while they open."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from pydantic import BaseModel

from aioflow import complete, step, workflow
from aioflow.commands import Command
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
    """An anyio scope that is cancelled around an engine lets it drain: steps that end in time are committed."""
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
    """A task that is cancelled, also while it closes the engine, closes it to the end and is cancelled then."""
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
    """Wherever an opening is cancelled, it opens or leaves nothing behind, and the engine can be opened again."""
    engine = make_engine(Order)
    before = asyncio.all_tasks()

    async def opens(scope: anyio.CancelScope) -> None:
        with scope:
            async with engine:
                pass

    async def opened(turns: int) -> int:
        """Cancel the opening after so many turns of the loop; how many turns it took in all."""
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
