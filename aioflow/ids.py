"""Ids that are known before anything is written, so that a change that is offered again has the same ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count

from aioflow.clock import Clock
from aioflow.store import IdKind, Store


class Ids:
    """Ids of one kind, from blocks reserved in the store. What is left of a block when the process ends is never used.

    The mutable state: the next id, the end of the block, and the reservation that is under way.
    """

    def __init__(self, store: Store, clock: Clock, kind: IdKind, block: int = 20_000) -> None:
        self._store = store
        self._clock = clock
        self._kind: IdKind = kind
        self._block = block
        self._next = self._end = 0
        self._reserving: asyncio.Event | None = None

    def at_hand(self) -> int:
        """An id that nothing else in the store has or will have; 0, which is none, if the store has to be asked."""
        taken = self._next
        if taken >= self._end:
            return 0
        self._next = taken + 1
        return taken

    async def take(self) -> int:
        """The same, however long the store takes to answer."""
        while not (taken := self.at_hand()):
            if self._reserving is not None:  # all waiters go on together; a lock would admit one per turn of the loop
                await self._reserving.wait()
                continue
            reserving = self._reserving = asyncio.Event()
            try:
                first = await self._store.reserve(self._kind, self._block, self._clock.micros())
                self._next, self._end = first, first + self._block
            finally:
                self._reserving = None
                reserving.set()
        return taken


def commit_ids(worker: int) -> Iterator[int]:
    """Ids for history rows: the worker's number, unique in the store, above 32 bits of a count."""
    return count((worker << 32) + 1)
