"""Changes that wait to be committed, in batches, and the keys that no two changes of one batch may share."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, assert_never

from aioflow.changes import Amend, Change, Emit, Listen, Mark, Move, Occur, Post, Replan, Result, Start, Withdraw
from aioflow.clock import Micros


class Pending(Protocol):
    """A change that waits to be committed, and what hears of its outcome; it may wait for one change at a time.

    The attributes are set by ``Committer.offer``. ``run_id``: what the change is sorted by; ``until``: when it is given
    up if the store does not take it, None: never; ``answered``: whether it was told the outcome.
    """

    answered: bool
    change: Change
    run_id: int
    until: Micros | None

    @property
    def listens(self) -> bool:
        """Whether somebody still waits for the outcome."""
        ...

    def told(self, outcome: Result | Exception) -> None:
        """Take the change's result, or the error that it failed with; called once for a change. It must not raise."""
        ...


def tell(pending: Pending, outcome: Result | Exception) -> None:
    """Have it told the outcome, once; the change is not offered again."""
    if not pending.answered:
        pending.answered = True
        pending.told(outcome)


def is_impatient(pending: Pending) -> bool:
    """Whether somebody still waits for the outcome, and for a limited time."""
    return pending.until is not None and pending.listens


class Batch:
    """At most one change per run, per start key, per signal_id, per event and per plan.

    ``addresses``: the (run id, key) pairs that its signals are sent to. ``size``: characters of data, see ``changes.size_of``.
    """

    __slots__ = ("addresses", "keys", "pending", "size")

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self.size = 0
        self.keys: set[Hashable] = set()
        self.addresses: set[Hashable] = set()


class Lane:
    """The batch that the store is committing, sorted; ``keys``: what no concurrent batch may have. Empty when idle.

    Nor may a concurrent batch have signals to the same ``addresses``: they would be taken in the order in which the
    batches commit. ``parts``: what of it is not answered yet: all of it or, once the store has refused it, what is
    offered apart.
    """

    __slots__ = ("addresses", "ended", "keys", "parts")

    def __init__(self) -> None:
        self.parts: list[list[Pending]] = []
        self.keys: set[Hashable] = set()
        self.addresses: set[Hashable] = set()
        self.ended = False

    def bars(self, batch: Batch) -> bool:
        """Whether the batch has to wait until this lane's batch is committed."""
        return not (self.keys.isdisjoint(batch.keys) and self.addresses.isdisjoint(batch.addresses))


def keys_of(change: Change) -> tuple[int, tuple[Hashable, ...]]:
    """The run id that a change is sorted by, and its keys: no two changes of one batch may share one."""
    if isinstance(change, Move):
        run_id = change.run.id
        return run_id, (run_id, *(key for part in change.also for key in keys_of(part)[1]))
    if isinstance(change, Start):
        run = change.run
        keys: tuple[Hashable, ...] = (run.id,) if run.key is None else (run.id, (run.workflow, run.key))
        return run.id, (*keys, ("plan", change.plan)) if change.plan else keys
    if isinstance(change, Post):
        signal = change.signal
        keys = (("signal", signal.id), ("signal_id", signal.signal_id)) if signal.signal_id else ()
        return signal.run_id, keys
    if isinstance(change, Mark | Amend):
        return change.run_id, (change.run_id,)
    return _keys_of_event(change)


def addresses_of(change: Change) -> list[Hashable]:
    """The addresses of the signals that a change sends."""
    if isinstance(change, Post):
        return [(change.signal.run_id, change.signal.key)]
    return [address for part in change.also for address in addresses_of(part)] if isinstance(change, Move) else []


def _keys_of_event(change: Emit | Occur | Withdraw | Replan | Listen) -> tuple[int, tuple[Hashable, ...]]:
    match change:
        case Emit(event):
            return 0, (("event", event.event_id),)
        case Occur(plan, event_id):
            return 0, (("event", event_id), ("plan", plan))
        case Withdraw(event_id):
            return 0, (("event", event_id),)
        case Replan(plan):
            return 0, (("plan", plan.id),)
        case Listen():
            return -1, ("listen",)  # sorted first: these listeners get the events of the same batch
        case _:
            assert_never(change)
