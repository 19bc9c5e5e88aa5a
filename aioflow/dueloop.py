"""Fires deadlines: sleeps until the nearest one, then fires all that are due, in batches, never early.

``DueLoop`` is the loop; its subclasses fire: waiting runs (``scheduler.py``), and planned events and starts
(``planner.py``).
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

#: Sleep no longer than this, so that a step of the machine's clock is noticed within this time.
_LONGEST_SLEEP: Micros = 2 * SECOND
BATCH = 500
_LAST_ID = 1 << 62


class DueLoop(ABC):
    """Fires deadlines of one kind.

    Args:
        store, clock: what it works with.
        timers: the heap.
        of: what the deadlines are of, as for ``Store.due``.
        what: names them in the log.

    The mutable state: the heap, the ids that are being fired, whether it waits for room to fire more, what the last scan
    found, and ``working``: whether it fires at all.
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
        self._found: frozenset[Deadline] = frozenset()
        self.working = False

    @property
    @abstractmethod
    def _room(self) -> int:
        """How many may be fired now."""

    @abstractmethod
    async def _fire(self, due: list[Deadline]) -> int:
        """Fire those that are still valid, and return their number. Those that could not be tried are put back."""

    def push(self, deadlines: Iterable[Deadline]) -> None:
        """Add deadlines that were committed."""
        for deadline in deadlines:
            if self._timers.push(deadline):
                self._again.set()

    def poke(self) -> None:
        """Look for due deadlines now, as work has begun."""
        self._again.set()

    @property
    def starved(self) -> bool:
        """Whether something is due that waits for room."""
        return self._starved and self._timers.next_at() <= self._clock.micros()

    def made_room(self) -> None:
        """Look again if the loop waits for room: there is some now."""
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
            return _LONGEST_SLEEP  # ``made_room`` ends it
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
        """Add the deadlines that the store has up to ``until``, whichever process committed them."""
        if not self.working:
            return
        room = self._room
        limit = max(room, BATCH) + len(self._firing)  # those being fired may come first, and are left out
        found = await self._store.due(START, (until, _LAST_ID), limit, self._clock.micros(), self._of)
        new = [deadline for deadline in found if deadline.run_id not in self._firing]
        if room <= 0:  # what was found before is in the heap still
            new = [deadline for deadline in new if deadline not in self._found]
        self._found = frozenset(found)
        for deadline in new:
            self._timers.push(deadline)
        if new:
            self._again.set()

    async def fire_all(self) -> int:
        """Fire everything that is due now, even without room to run it here. Returns how many were fired."""
        fired = 0
        after = START
        until = (self._clock.micros(), _LAST_ID)
        while True:
            due = await self._store.due(after, until, BATCH, self._clock.micros(), self._of)
            fired += await self._fire(due)
            if len(due) < BATCH:
                return fired
            after = due[-1][:2]
