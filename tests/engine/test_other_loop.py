"""An engine belongs to the event loop that opened it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, complete, step, workflow
from aioflow.commands import Command
from aioflow.errors import OtherLoop, UsageError


@workflow("other-loop")
class Charge:
    class Context(BaseModel):
        pass

    @step(start=True)
    async def charge(self) -> Command:
        return complete()


async def test_a_call_in_another_loop_does_nothing_and_says_so() -> None:
    """A call in another thread's loop is a UsageError, and starts nothing."""
    async with Engine("memory://") as engine:

        def elsewhere() -> None:
            with pytest.raises(UsageError, match=r"start\(\) was called in another event loop"):
                asyncio.run(engine.start(Charge))

        await asyncio.to_thread(elsewhere)
        assert await engine.count() == 0


async def test_closing_from_another_loop_is_refused() -> None:
    """Closing an engine in another thread's loop is a UsageError, and the engine stays open."""
    async with Engine("memory://") as engine:

        def elsewhere() -> None:
            with pytest.raises(UsageError, match="was called in another event loop"):
                asyncio.run(engine.__aexit__(None, None, None))

        await asyncio.to_thread(elsewhere)
        assert (await (await engine.start(Charge)).wait(5)).status == "completed"


async def test_iterating_in_another_loop_says_where_to_iterate() -> None:
    """The error for iterating in another loop says where to iterate, and that for ``run.refresh()`` names the call."""
    async with Engine("memory://") as engine:
        run = await engine.start(Charge)

        async def iterate(items: AsyncIterator[Any]) -> None:
            async for _ in items:
                raise AssertionError("it is not to give any")

        async def elsewhere() -> None:
            with pytest.raises(OtherLoop, match=r"'async for \.\.\. in engine\.iter_runs\(\.\.\.\)' has to run in"):
                await iterate(engine.iter_runs())
            with pytest.raises(OtherLoop, match=r"'async for \.\.\. in engine\.watch\(\.\.\.\)' has to run in"):
                await iterate(engine.watch(run.id))
            with pytest.raises(
                OtherLoop, match=r"^run\.refresh\(\) was called .*threadsafe\(run\.refresh\(\.\.\.\), loop\)"
            ):
                await run.refresh()

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
