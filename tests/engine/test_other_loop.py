"""An engine belongs to the event loop that opened it."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel

from aioflow import Engine, complete, step, workflow
from aioflow.commands import Command
from aioflow.errors import UsageError


@workflow("other-loop")
class Charge:
    class Context(BaseModel):
        pass

    @step(start=True)
    async def charge(self) -> Command:
        return complete()


async def test_a_call_in_another_loop_does_nothing_and_says_so() -> None:
    """From another thread's loop nothing is started, and the error says how to call it."""
    async with Engine("memory://") as engine:

        def elsewhere() -> None:
            with pytest.raises(UsageError, match=r"start\(\) was called in another event loop"):
                asyncio.run(engine.start(Charge))

        await asyncio.to_thread(elsewhere)
        assert await engine.count() == 0


async def test_it_is_not_closed_from_another_loop() -> None:
    """An engine goes on when somebody closes it in another thread's loop, who hears that it is not his."""
    async with Engine("memory://") as engine:

        def elsewhere() -> None:
            with pytest.raises(UsageError, match="was called in another event loop"):
                asyncio.run(engine.__aexit__(None, None, None))

        await asyncio.to_thread(elsewhere)
        assert (await (await engine.start(Charge)).wait(5)).status == "completed"
