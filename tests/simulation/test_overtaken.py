"""A signal holds back a timeout and then is not taken: on virtual time, where lateness shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, complete, wait
from aioflow.changes import Change, Result
from aioflow.clock import SECOND, Micros
from aioflow.commands import Command
from aioflow.store import Mail
from aioflow.testing.simloop import SimClock, SimLoop
from aioflow_memory import MemoryStore
from tests.flows import flow


class SlowMail(MemoryStore):
    """A store that answers slowly which mail there is: by then it may have expired."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self.loop = loop
        self.held_back = 0
        self.not_there = 0

    async def mail(self, run_ids: Collection[int] | None, limit: int, now: Micros, **which: Any) -> list[Mail]:
        found = await super().mail(run_ids, limit, now, **which)
        if run_ids is not None:
            await self.loop.pause(0.2)
        return found

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        results = await super().apply(changes, now)
        stale = [result for result in results if result.outcome == "stale"]
        self.held_back += sum(result.mail for result in stale)
        self.not_there += sum(not result.mail for result in stale)
        return results

    async def hint(self, now: Micros) -> int:
        """Nobody else has written, so that no scan makes up for what was missed."""
        return 0


class Nothing(BaseModel):
    """An empty Context."""


def test_a_timeout_held_back_by_a_signal_that_expires_is_not_lost() -> None:
    """If a signal that held back a timeout expires before the run takes it, the run times out at once."""
    loop = SimLoop(1)
    store = SlowMail(loop)

    async def ask(self: object) -> Command:
        await loop.pause(0.1)
        return wait.for_signal("paid", timeout=timedelta(seconds=0.05), on_timeout="end", then="end")

    async def end(self: object) -> Command:
        return complete()

    async def main() -> list[Any]:
        async with Engine(store, clock=SimClock(loop, 1_750_000_000 * SECOND)) as engine:
            run = await engine.start(flow(Nothing, ask, end))
            await engine.signal("paid", run_id=run.id, ttl=timedelta(seconds=0.2))
            await run.wait(20)
            return await engine.history(run.id)

    history = loop.run_until_complete(main())
    loop.dispose()
    assert (store.held_back, store.not_there) == (1, 1)
    parked, woken = history[1], history[2]
    assert (parked.kind, woken.kind) == ("wait", "timeout")
    assert woken.at - parked.at < timedelta(seconds=0.5)
