"""When a worker claims runs that wait in the store, and which come first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from aioflow.clock import Micros
from aioflow.model import Run
from aioflow.timers import START

#: Seconds that a slot stays free at most while runs wait in the store.
_SOON = 0.02


class Claiming:
    """When to claim, and how far claims have come.

    Claims take the runs that nobody executes as they were created, in rounds. A round ends with the first run that was
    created after it began. So it takes each run once: neither old runs that are back again and again nor new ones keep
    others from their turn. (Runs of dead owners come first in a claim, in an order of their own, and may end a round
    early. Runs that were created before the clock was set back may wait, while all slots stay taken, until it is that
    time again.)

    Each claim is a transaction, so it takes several runs, as soon as there is room for ``few``. But if all other slots
    are taken by steps that take long, there may never be: after a moment the first slot that is free is enough.

    The mutable state: whether more runs wait in the store (``backlog``), how far this round has come (``after``) and
    when it began, for how many runs a claim is worth it now, the timer that lowers this, and whether timers had the
    smaller half of the last room that was shared (``_odd``).

    Args:
        few: see above.
        room: for how many runs there is room.
    """

    def __init__(self, few: int, room: Callable[[], int]) -> None:
        self._few = self._enough = few
        self._room = room
        self._timer: asyncio.TimerHandle | None = None
        self.now = asyncio.Event()
        self.backlog = False
        self.after = START
        self._began: Micros = 0
        self._odd = False

    def left(self, run: Run) -> None:
        """A running run was committed that this worker does not own: perhaps nobody does."""
        self.backlog = self.backlog or run.owner is None

    def made_room(self, *, idle: bool) -> None:
        """A slot is free; ``idle``: all are."""
        if not self.backlog:
            return
        if idle or self._room() >= self._enough:
            self.now.set()
        elif self._timer is None and self._enough > 1:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._take_any)

    def share(self, *, starved: bool) -> int:
        """For how many runs to claim: all that there is room for; half of it if timers wait for room, too."""
        room = self._room()
        if not starved or room <= 0:
            return room
        self._odd = not self._odd
        return (room + self._odd) // 2

    def _take_any(self) -> None:
        self._timer, self._enough = None, 1
        self.made_room(idle=False)

    def claimed(self, runs: Collection[Run], limit: int, now: Micros) -> None:
        """A claim of ``limit`` runs, at ``now``, has given these."""
        if len(runs) >= limit:
            self.backlog = True
        if limit <= 0:
            return
        self._enough = self._few
        last = max(((run.created_at, run.id) for run in runs), default=START)
        if len(runs) < limit or last[0] > self._began:
            self.backlog = self.backlog or self.after > START  # this round has not looked at those up to there
            self.after, self._began = START, now
        else:
            self.after = last
