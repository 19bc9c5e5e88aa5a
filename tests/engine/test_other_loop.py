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
