"""Fire what is due: look at the nearest deadline, sleep until it, hand over what has come due, in batches, never early.

``DueLoop`` is the loop; what fires is its subclasses' business: runs that wait (``scheduler.py``), and what is planned
because of events (``planner.py``).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

from aioflow import telemetry
from aioflow.clock import SECOND, Clock, Micros
from aioflow.model import Deadline
from aioflow.store import Store
from aioflow.timers import START, Timers

#: Sleep no longer than this: a step of the machine's clock is noticed that soon.
_LONGEST_SLEEP: Micros = 2 * SECOND
BATCH = 500
_LAST_ID = 1 << 62


class DueLoop(ABC):
    """Fires deadlines of one kind.

    Args:
        store, clock: what it works with.
        timers: the heap.
        of: what the deadlines are of, as ``Store.due`` has it.
        what: names them in the log.

    The mutable state: the heap, what is being fired, whether it lacks room to fire more, and whether it works at all.
    """

    def __init__(self, store: Store, clock: Clock, timers: Timers, of: Literal["run", "plan"], what: str) -> None:
        self._store = store
        self._clock = clock
        self._timers = timers
        self._of: Literal["run", "plan"] = of
        self._what = what
        self._firing: set[int] = set()
        self._again = asyncio.Event()
        self._starved = False
        self.working = False

    @property
    @abstractmethod
    def _room(self) -> int:
        """How many may be fired now."""

    @abstractmethod
    async def _fire(self, due: list[Deadline]) -> int:
        """Fire these if they still stand: how many did. What could not be tried is put back."""

    def push(self, deadlines: Iterable[Deadline]) -> None:
        """These were committed."""
        for deadline in deadlines:
            if self._timers.push(deadline):
                self._again.set()

    def poke(self) -> None:
        """Work has begun: look."""
        self._again.set()

    def made_room(self) -> None:
        """There is room again."""
        if self._starved:
            self._again.set()

    async def run(self) -> None:
        """Fire what is due, until cancelled."""
        while True:
            self._again.clear()
            try:
                pause = await self._turn()
            except Exception as error:  # noqa: BLE001 - nothing may end the timers
                telemetry.trouble(f"{self._what} cannot be fired, will try again", error)
                await self._clock.sleep(SECOND // 2)
                continue
            if pause > 0:
                await self._clock.wait(self._again, pause)

    async def _turn(self) -> Micros:
        if not self.working:
            return _LONGEST_SLEEP
        now = self._clock.micros()
        if self._timers.needs_refill(now):
            await self._refill(now)
        room = min(self._room, BATCH)
        self._starved = room <= 0
        if self._starved:
            return _LONGEST_SLEEP  # ended as soon as there is room
        due = self._timers.pop(now, room)
        if due:
            await self._fire(due)
            return 0
        return min(self._timers.next_at() - self._clock.micros(), _LONGEST_SLEEP)

    async def _refill(self, now: Micros) -> None:
        old, new = self._timers.raise_edge(now)
        try:
            self._timers.refill(await self._store.due(old, new, self._timers.limit, now, self._of))
        except BaseException:
            self._timers.restore_edge(old)
            raise

    async def scan(self, until: Micros) -> None:
        """Take in what the store says is due by ``until``, whoever committed it."""
        room = self._room
        if not self.working or room <= 0:
            return
        limit = max(room, BATCH) + len(self._firing)  # these may be the first of all, for long
        found = await self._store.due(START, (until, _LAST_ID), limit, self._clock.micros(), self._of)
        new = [deadline for deadline in found if deadline.run_id not in self._firing]
        for deadline in new:
            self._timers.push(deadline)
        if new:
            self._again.set()

    async def fire_all(self) -> int:
        """Fire everything that is due now, whoever is to run it. How many that were."""
        fired = 0
        after = START
        until = (self._clock.micros(), _LAST_ID)
        while True:
            due = await self._store.due(after, until, BATCH, self._clock.micros(), self._of)
            fired += await self._fire(due)
            if len(due) < BATCH:
                return fired
            after = due[-1][:2]
