"""The runs of a worker that wait for a slot, or for their turn to run alone."""

from __future__ import annotations

from aioflow.activation import Activation
from aioflow.openings import call_of


class SlotQueue:
    """The runs that a worker owns and that wait for a slot, those that came first first.

    Above all these are called actions with a request, which only this process has: they queue up however long the queue
    is. Every other run waits in the store, and would wait there for ever while the queue does not end. So for each call
    that leaves the queue for a slot, one other run may enter it.

    A suspect, which may have killed the process, runs while no other one does. Those whose turn has not come stand in a
    line of their own, even if they will only time out: they may be as many as there are slots, and would keep all other
    runs from them for long. While the line is long, the worker claims no more of them.

    The mutable state: the activations by run id, the ids of those that are such calls (``calls``), how many others may
    be in the queue (``open_to``), the suspects that stand in line, by run id (``line``), and the one that has its turn.

    Args:
        most: the highest number of others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.activations: dict[int, Activation] = {}
        self.calls: set[int] = set()
        self.open_to = 0
        self.line: dict[int, Activation] = {}
        self._suspect: Activation | None = None

    def __len__(self) -> int:
        return len(self.activations) + len(self.line)

    def all(self) -> list[Activation]:
        """Those in the queue, and those in line."""
        return [*self.activations.values(), *self.line.values()]

    def ask_turn(self, activation: Activation) -> bool:
        """Give a suspect its turn, if no other one has it; if one has, put it in line."""
        if self._suspect is None:
            self._suspect = activation
            return True
        self.line[activation.run.id] = activation
        return False

    def turn_over(self, activation: Activation) -> None:
        """The run is no suspect any more, or has ended."""
        if self._suspect is activation:
            self._suspect = None

    def advance(self) -> None:
        """Let the first suspect in line wait for a slot, if it is its turn."""
        if self.line and self._suspect is None:
            self._suspect = self.line.pop(next(iter(self.line)))
            self.add(self._suspect)

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
        del self.activations[first]
        self.calls.discard(first)
        self.open_to = max(min(self.open_to + change, self._most), 0) if self.calls else 0
        return activation

    def drop(self, run_id: int) -> None:
        """Forget a run, if it is in the queue or in line. One that executes keeps its turn until its task has ended."""
        self.line.pop(run_id, None)
        if (dropped := self.activations.pop(run_id, None)) is not None:
            self.calls.discard(run_id)
            self.turn_over(dropped)
        if not self.calls:
            self.open_to = 0
