"""The heap of deadlines. Pure: ``now`` is an argument.

The store holds every deadline; the heap holds those up to the *edge*, which moves ahead of the present. The rule of the
refill: raise the edge first, then read from the store what lies between the old edge and the new one. A wait that is
committed meanwhile is within the new edge and is pushed, so that none is missed; duplicates are dropped when they are
popped. If there are too many, the edge is pulled in, and what lies beyond it is left to the store: the heap holds
everything up to the edge and nothing beyond, whatever happens during a refill. A deadline in the heap need not be valid
any more: check it against the row, and its seq, before firing it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from aioflow.clock import SECOND, Micros
from aioflow.model import Deadline

#: Before every possible deadline: a start that is planned before an event of long ago may have a negative one.
START: tuple[Micros, int] = (-(1 << 62), -1)
_LAST_ID = 1 << 62


class Timers:
    """The near deadlines, in order.

    The mutable state: ``_heap`` (a heap of Deadlines), ``edge`` (the last position that it covers), ``_full`` (the edge
    was pulled in), ``_stale`` (dropped deadlines that are still in the heap).

    Args:
        horizon: how far ahead of the present the edge is set, microseconds.
        limit: how many deadlines a refill reads; if the heap has more than twice as many, the edge is pulled in.
    """

    def __init__(self, horizon: Micros = 600 * SECOND, limit: int = 100_000) -> None:
        self._horizon = horizon
        self._limit = limit
        self._heap: list[Deadline] = []
        self._stale: set[Deadline] = set()
        self._full = False
        self.edge: tuple[Micros, int] = START

    def __len__(self) -> int:
        return max(len(self._heap) - len(self._stale), 0)

    def push(self, deadline: Deadline) -> bool:
        """Take in a deadline that was just committed. Returns whether it is the earliest now."""
        if deadline[:2] > self.edge:
            return False
        self._stale.discard(deadline)
        heapq.heappush(self._heap, deadline)
        if len(self._heap) > 2 * self._limit:
            self._thin()
        return bool(self._heap) and self._heap[0] is deadline

    def drop(self, deadline: Deadline) -> None:
        """Drop a deadline: its run does not wait for it any more."""
        if deadline[:2] > self.edge:
            return
        self._stale.add(deadline)
        if len(self._stale) > 1000 and 2 * len(self._stale) > len(self._heap):
            self._heap = [entry for entry in self._heap if entry not in self._stale]
            heapq.heapify(self._heap)
            self._stale.clear()

    def pop(self, now: Micros, count: int) -> list[Deadline]:
        """Up to ``count`` deadlines that are due, earliest first, none twice."""
        due: list[Deadline] = []
        heap = self._heap
        while heap and heap[0].at <= now and len(due) < count:
            entry = heapq.heappop(heap)
            while heap and heap[0] == entry:
                heapq.heappop(heap)
            if entry in self._stale:
                self._stale.discard(entry)
            else:
                due.append(entry)
        return due

    def next_at(self) -> Micros:
        """When to look again: the earliest deadline, or when the next refill is due."""
        refill = self.edge[0] if self._full else self.edge[0] - self._horizon // 2
        return min(self._heap[0].at, refill) if self._heap else refill

    def needs_refill(self, now: Micros) -> bool:
        """Whether the heap may soon lack deadlines that the store holds."""
        if self._full:  # all that it holds is due before what it lacks
            return len(self) <= self._limit // 2
        return now >= self.edge[0] - self._horizon // 2

    def raise_edge(self, now: Micros) -> tuple[tuple[Micros, int], tuple[Micros, int]]:
        """Begin a refill: set the edge, return (old, new). Read the store's deadlines between them *after* this."""
        old, self.edge = self.edge, max(self.edge, (now + self._horizon, _LAST_ID))
        self._full = False
        return old, self.edge

    def restore_edge(self, edge: tuple[Micros, int]) -> None:
        """End a refill whose read failed, so that the next one repeats it. ``edge``: the old one."""
        self._pull_in(edge)

    @property
    def limit(self) -> int:
        """How many deadlines to read in a refill."""
        return self._limit

    def refill(self, deadlines: Iterable[Deadline]) -> None:
        """End a refill with what the store had, in order; if that is ``limit`` deadlines, there may be more beyond."""
        entries = list(deadlines)
        self._heap.extend(entries)
        heapq.heapify(self._heap)
        self._pull_in(entries[-1][:2] if len(entries) >= self._limit else self.edge)

    def _pull_in(self, edge: tuple[Micros, int]) -> None:
        """Lower the edge to ``edge``, unless it is lower already, and leave deadlines beyond it to the store."""
        if edge < self.edge:
            self.edge = edge
            self._full = True
        if self._full:
            self._heap = [entry for entry in self._heap if entry[:2] <= self.edge]
            heapq.heapify(self._heap)

    def _thin(self) -> None:
        """Keep the nearest ``limit`` deadlines, and leave the rest to the store."""
        self._heap = sorted(set(self._heap) - self._stale)
        self._stale.clear()
        if len(self._heap) > self._limit:
            self._pull_in(self._heap[self._limit - 1][:2])
