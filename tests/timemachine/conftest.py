"""Fixtures: time machines on every store that needs no server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import complete, get_context, get_run, sleep, step, workflow
from aioflow.commands import Command
from aioflow.testing import TimeMachine
from tests.engine.conftest import log  # noqa: F401 - autouse: a test in which the engine reports a bug fails

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
#: Long enough for a machine to notice that nothing happens, short enough to wait for in real time.
BRIEF = timedelta(milliseconds=50)


@workflow("machine-sleeper")
class Sleeper:
    """Sleeps so many times for so many minutes, and records when it ran."""

    class Context(BaseModel):
        minutes: float = 60
        times: int = 1
        ran_at: list[float] = []

    @step(start=True)
    async def rest(self) -> Command:
        context = get_context(self.Context)
        context.ran_at.append(get_run().now.timestamp())
        if len(context.ran_at) > context.times:
            return complete()
        return sleep(timedelta(minutes=context.minutes))


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store of the test's own."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/x.db"


@pytest.fixture
async def flow(url: str) -> AsyncIterator[TimeMachine]:
    """An open machine that knows every workflow."""
    async with TimeMachine(url, patience=BRIEF) as flow:
        yield flow


def hours_after(start: float, instants: list[Any]) -> list[float]:
    """Timestamps as hours since the start."""
    return [(instant - start) / 3600 for instant in instants]
