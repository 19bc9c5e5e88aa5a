"""When a worker claims runs that wait in the store, and which come first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aioflow.model import Run


class Claiming:
    """When to claim, and how far claims have come.

    Claims take the runs that nobody executes by id, in rounds. A round ends with the first run beyond the highest one
    that was known when it began. So it takes each run once: neither runs with low ids that are back again and again, nor
    new ones, whose ids are ever higher, keep others from their turn.

    The mutable state: whether more runs wait in the store (``backlog``), how far this round has come (``after``) and
    how far it goes (``_end``), and the highest run that is known.

    Args:
        few: for how many runs at least it is worth to claim at once, as each claim is a transaction.
    """

    def __init__(self, few: int) -> None:
        self.few = few
        self.now = asyncio.Event()
        self.backlog = False
        self.after = 0
        self._end = self._highest = 0

    def left(self, run: Run) -> None:
        """A running run was committed that this worker does not own: perhaps nobody does."""
        if run.owner is None:
            self.backlog = True
            self._highest = max(self._highest, run.id)

    def made_room(self, room: int, *, idle: bool) -> None:
        """There is room for so many runs, or even nothing else to do."""
        if self.backlog and (room >= self.few or idle):
            self.now.set()

    def claimed(self, runs: Iterable[Run], limit: int) -> None:
        """A claim of ``limit`` runs has given these."""
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
