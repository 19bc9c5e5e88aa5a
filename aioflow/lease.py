"""A worker's lease, as far as the worker knows: until its end no other takes its runs, if the store has several workers.

The mutable state: when it was last renewed, and when that is to be done again, both on the monotonic clock.
"""

from __future__ import annotations

from aioflow.clock import Clock, Micros
from aioflow.store import Store


class Lease:
    """The lease. It counts from when it was asked for: how long the answer took does not make it longer.

    ``shared``: whether others could take the worker's runs at all.
    """

    def __init__(self, store: Store, clock: Clock, number: int, length: Micros) -> None:
        self._store = store
        self.shared = not store.exclusive
        self._clock = clock
        self._number = number
        self._length = length
        self._renewed: Micros = 0
        self._next: Micros = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time to renew it: a third of it is over."""
        return self._clock.monotonic() >= self._next

    @property
    def ends(self) -> bool:
        """Whether it may soon be over: what could not be renewed by now has to be let go."""
        return self.shared and self._clock.monotonic() - self._renewed > self._length * 2 // 3

    @property
    def is_over(self) -> bool:
        """Whether it is over, unless somebody else has renewed it for this worker."""
        return self.shared and self._clock.monotonic() - self._renewed > self._length

    async def renew(self) -> bool:
        """Renew it; False if it was over. It stays due if the store fails."""
        started = self._clock.monotonic()
        if not await self._store.renew(self._number, self._length, self._clock.micros()):
            return False
        self._renewed = started
        self._next = started + self._length // 3
        return True
