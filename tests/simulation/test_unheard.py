"""The reply that tells which runs wait for an event is lost: on virtual time, where lateness shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, complete, wait_for_event
from aioflow.changes import Change, Occur, Result
from aioflow.clock import SECOND, Micros
from aioflow.commands import Command
from aioflow.errors import StoreUnavailable
from aioflow.testing.simloop import SimClock, SimLoop
from aioflow_memory import MemoryStore
from tests.flows import flow


class Forgetful(MemoryStore):
    """A store of one process that loses the reply to the change by which an event occurs."""

    lost = 0
    stale = 0

    @property
    def exclusive(self) -> bool:
        return True

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        results = await super().apply(changes, now)
        for change, result in zip(changes, results, strict=True):
            if isinstance(change, Occur) and result.outcome == "applied":
                self.lost += 1
                raise StoreUnavailable("forgetful://", "the connection was lost")
            self.stale += isinstance(change, Occur)
        return results

    async def hint(self, now: Micros) -> int:
        """Nobody else has written."""
        return 0


class Nothing(BaseModel):
    """An empty Context."""


def test_a_waiting_run_receives_an_event_whose_reply_was_lost() -> None:
    """A run that waits for an event receives it at once though the reply that named the run was lost."""
    loop = SimLoop(1)
    store = Forgetful()
    clock = SimClock(loop, 1_750_000_000 * SECOND)

    async def ask(self: object) -> Command:
        return wait_for_event("paid", then="end")

    async def end(self: object) -> Command:
        return complete()

    async def main() -> list[Any]:
        async with Engine(store, clock=clock) as engine:
            run = await engine.start(flow(Nothing, ask, end))
            await engine.emit("paid", at=clock.now() + timedelta(seconds=5))
            await run.wait(20)
            return await engine.history(run.id)

    history = loop.run_until_complete(main())
    loop.dispose()
    assert (store.lost, store.stale) == (1, 1)
    assert [row.kind for row in history] == ["start", "wait", "event", "complete"]
    assert history[2].at - history[1].at < timedelta(seconds=6)
