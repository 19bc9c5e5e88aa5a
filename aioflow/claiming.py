"""When a worker claims runs that wait in the store, and which come first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from aioflow.model import Run

#: Seconds that a slot stays free at most while runs wait in the store.
_SOON = 0.02


class Claiming:
    """When to claim, and how far claims have come.

    Claims take the runs that nobody executes by id, in rounds. A round ends with the first run beyond the highest one
    that was known when it began. So it takes each run once: neither runs with low ids that are back again and again, nor
    new ones, whose ids are ever higher, keep others from their turn.

    Each claim is a transaction, so it takes several runs, as soon as there is room for ``few``. But if all other slots
    are taken by steps that take long, there may never be: after a moment the first slot that is free is enough.

    The mutable state: whether more runs wait in the store (``backlog``), how far this round has come (``after``) and
    how far it goes (``_end``), the highest run that is known, for how many runs a claim is worth it now, and the timer
    that lowers this.

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
        self.after = 0
        self._end = self._highest = 0

    def left(self, run: Run) -> None:
        """A running run was committed that this worker does not own: perhaps nobody does."""
        if run.owner is None:
            self.backlog = True
            self._highest = max(self._highest, run.id)

    def made_room(self, *, idle: bool) -> None:
        """A slot is free; ``idle``: all are."""
        if not self.backlog:
            return
        if idle or self._room() >= self._enough:
            self.now.set()
        elif self._timer is None and self._enough > 1:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._take_any)

    def _take_any(self) -> None:
        self._timer, self._enough = None, 1
        self.made_room(idle=False)

    def claimed(self, runs: Iterable[Run], limit: int) -> None:
        """A claim of ``limit`` runs has given these."""
        if limit > 0:
            self._enough = self._few
        ids = [run.id for run in runs]
        last = max(ids, default=0)
        self._highest = max(self._highest, last)
        if len(ids) >= limit:
            self.backlog = True
        if limit > 0 and (len(ids) < limit or last > self._end):
            self.backlog = self.backlog or self.after > 0  # this round has not looked at those up to there
            self.after, self._end = 0, self._highest
        elif limit > 0:
            self.after = last
