"""Fifty runs that share their batches with whatever goes wrong, and the checks that they must pass in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, WorkflowRun, complete, get_context, goto, step, workflow
from aioflow.commands import Command
from aioflow.model import Transition
from tests.support import wait_until

SIZE = 50


class Crowd:
    """Runs that commit one transition after the other for as long as the test lets them.

    The mutable state: the runs, how many steps have begun, and whether the runs are to end.
    """

    def __init__(self) -> None:
        self.runs: list[WorkflowRun[Any]] = []
        self.steps = 0
        self.over = False
        crowd = self

        @workflow("hostile-crowd", max_transitions=1_000_000)
        class Walker:
            class Context(BaseModel):
                number: int
                turns: int = 0

            @step(start=True)
            async def turn(self) -> Command:
                crowd.steps += 1
                get_context(self.Context).turns += 1
                await asyncio.sleep(0)
                return complete() if crowd.over else goto(self.turn)

        self.workflow = Walker

    async def start(self, engine: Engine) -> None:
        """Start all runs, and wait until they make transitions."""
        starts = (engine.start(self.workflow, number=number) for number in range(SIZE))
        self.runs = list(await asyncio.gather(*starts))
        await self.moves_on()

    async def moves_on(self, timeout: float = 5) -> None:
        """Wait until so many steps have begun that each run can have made a transition."""
        before = self.steps
        await wait_until(lambda: self.steps >= before + 2 * SIZE, timeout, "the other runs go on")

    async def ends(self, engine: Engine) -> None:
        """Let all runs complete, and check that each step was committed once and in order."""
        self.over = True
        turns = 0
        for run in self.runs:
            ended = await engine.wait(run.id, 10)
            turns += ended.context.turns
            assert (ended.status, ended.error, ended.data["number"]) == ("completed", None, run.data["number"])
            await whole(engine, ended)
        assert turns == self.steps, "without a restart each step ran once"


async def whole(engine: Engine, run: WorkflowRun[Any]) -> None:
    """Check that the run's history has no gaps, ends at the row's seq, and has a transition for each turn."""
    rows: list[Transition] = []
    while page := await engine.history(run.id, after=rows[-1].seq if rows else None, limit=10_000):
        rows += page
    assert [row.seq for row in rows] == list(range(1, run.row.seq + 1))
    if "turns" in run.data:
        assert run.data["turns"] == sum(row.kind in ("goto", "complete") for row in rows)


@asynccontextmanager
async def crowded(engine: Engine) -> AsyncIterator[Crowd]:
    """A crowd on an open engine, which must make transitions and complete whatever happens in the block."""
    crowd = Crowd()
    await crowd.start(engine)
    try:
        yield crowd
        await crowd.moves_on()
        await crowd.ends(engine)
    finally:
        crowd.over = True
