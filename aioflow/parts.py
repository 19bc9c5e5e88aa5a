"""The parts of an open engine, and how it notices what other processes write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aioflow.callers import Callers
from aioflow.clock import SECOND, Clock, Micros
from aioflow.committer import Committer
from aioflow.delivery import Delivery
from aioflow.errors import StoreError
from aioflow.ids import Ids
from aioflow.outbox import Office
from aioflow.planner import Planner
from aioflow.registry import Registry
from aioflow.scheduler import Scheduler
from aioflow.slots import Slots
from aioflow.store import Store
from aioflow.telemetry import trouble
from aioflow.waiters import Waiters

_LISTEN: Micros = SECOND // 10
_SHORT: Micros = SECOND // 500
_BUSY: Micros = SECOND // 40


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an open engine."""

    loop: asyncio.AbstractEventLoop
    store: Store
    clock: Clock
    registry: Registry
    committer: Committer
    scheduler: Scheduler
    planner: Planner
    slots: Slots
    waiters: Waiters
    callers: Callers
    office: Office
    delivery: Delivery
    signal_ids: Ids
    commit_ids: Iterator[int]
    running: Callable[[], int]

    async def listen(self, foreign: Callable[[], None]) -> None:
        """Notice what other processes write, and tell the waiters of this process; until cancelled."""
        seen: int | None = None  # None: what was written before, or while nobody listened, counts as new
        look_again = self.clock.monotonic()
        pause = _SHORT if self.store.pushes_hints else _LISTEN
        while True:
            await self.clock.sleep(pause)
            try:
                asked = self.clock.monotonic()
                hint = await self.store.hint(self.clock.micros())
                changed, seen = hint != seen, hint
                if self.store.pushes_hints:  # a single hint is followed at once, many in a row are followed together
                    in_a_row = changed and self.clock.monotonic() - asked < pause
                    pause = min(2 * pause, _BUSY) if in_a_row else _SHORT
                if changed:
                    foreign()
                if changed or self.clock.monotonic() >= look_again:
                    look_again = self.clock.monotonic() + SECOND
                    # Changes to runs that execute here are told by their commits, unless another process made them.
                    awaited = dict.fromkeys([*self.waiters.run_ids, *self.callers.run_ids])
                    looked_for = [run for run in awaited if changed or not self.slots.drives(run)]
                    if looked_for:
                        found = await self.store.load(looked_for, self.clock.micros())
                        self.waiters.tell_all(found)
                        self.callers.read(found)
            except Exception as error:  # noqa: BLE001 - no error may end the listening
                if not isinstance(error, StoreError):
                    trouble("other processes' writes cannot be noticed, will try again", error)
