"""The runs of a worker that wait for a slot."""

from __future__ import annotations

from aioflow.activation import Activation
from aioflow.openings import call_of


class SlotQueue:
    """The runs that a worker owns and that wait for a slot, those that came first first.

    Above all these are called actions with a request, which only this process has: they queue up however long the queue
    is. Every other run waits in the store, and would wait there for ever while the queue does not end. So for each call
    that leaves the queue for a slot, one other run may enter it.

    The mutable state: the activations by run id, the ids of those that are such calls (``calls``), and how many others
    may be in the queue (``open_to``). The worker reads all three.

    Args:
        most: the highest number of others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.activations: dict[int, Activation] = {}
        self.calls: set[int] = set()
        self.open_to = 0

    def add(self, activation: Activation) -> None:
        """Put a run at the end."""
        run = activation.run
        self.activations[run.id] = activation
        if (call := call_of(run)) is not None and call.request:
            self.calls.add(run.id)

    def take(self) -> Activation:
        """Take the first run out, for a slot."""
        first = next(iter(self.activations))
        change = 1 if first in self.calls else -1
        activation = self.activations[first]
        self.drop(first)
        self.open_to = max(min(self.open_to + change, self._most), 0) if self.calls else 0
        return activation

    def drop(self, run_id: int) -> None:
        """Forget a run, if it is in the queue."""
        self.activations.pop(run_id, None)
        self.calls.discard(run_id)
