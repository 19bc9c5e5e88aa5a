"""A worker's lease, as far as the worker knows: until it ends, no other worker of the store takes its runs.

The mutable state: when it was last renewed, and when it is to be renewed again, both on the monotonic clock.
"""

from __future__ import annotations

from aioflow.clock import Clock, Micros
from aioflow.store import Store


class Lease:
    """The lease. Its time counts from when the renewal was requested: a slow answer does not make it longer.

    ``shared``: whether other workers could take this one's runs at all.
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
        """Whether it may soon be over: a worker that could not renew it by now has to let its runs go."""
        return self.shared and self._clock.monotonic() - self._renewed > self._length * 2 // 3

    @property
    def is_over(self) -> bool:
        """Whether it is over, as far as this process knows."""
        return self.shared and self._clock.monotonic() - self._renewed > self._length

    async def renew(self) -> bool:
        """Renew it; False if it was over. It stays due if the store fails."""
        started = self._clock.monotonic()
        if not await self._store.renew(self._number, self._length, self._clock.micros()):
            return False
        self._renewed = started
        self._next = started + self._length // 3
        return True
