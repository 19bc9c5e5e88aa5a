"""A wait that cannot end raises, although the engine looks into the store each second."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest
from pydantic import BaseModel

from aioflow import complete, step, wait, workflow
from aioflow.commands import Command
from aioflow.errors import TimeStandsStill
from aioflow.testing import TimeMachine


@workflow("tm-patient")
class Patient:
    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("never", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def test_patience_longer_than_a_second() -> None:
    """The looks of the engine's ear are no reason to be patient for ever."""
    async with TimeMachine(patience=timedelta(seconds=2)) as flow:
        run = await flow.start(Patient)
        with anyio.fail_after(10), pytest.raises(TimeStandsStill):
            await run.wait()
