"""The tables: runs and their histories, and the indexes on them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from typing import Final, NamedTuple

from aioflow.errors import StoreRefused
from aioflow.model import Deadline, Run, Signal, Transition, WorkflowStatus
from aioflow.plans import EventRecord, Listener, Plan
from aioflow_memory.events import Events
from aioflow_memory.mailbox import Mailbox

_INT64: Final = range(-(2**63), 2**63)


class Write(NamedTuple):
    """What a change does to a run: enough to do it and to undo it. A Mark has no history row."""

    was: Run | None
    run: Run
    transition: Transition | None


class Rows:
    """All rows of a store.

    The mutable state is the attributes; ``keyed``, ``running``, ``deadlines`` and the mailbox's waits are derived
    from ``runs`` and change in ``replace`` alone.

    Args:
        store: the store's name, for the messages of errors.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self.runs: dict[int, Run] = {}
        #: run id -> its transitions; that of seq n is at index n - 1
        self.history: dict[int, list[Transition]] = {}
        #: (workflow, key) -> run ids as they were inserted, the newest last
        self.keyed: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self.running: set[int] = set()
        #: of waiting runs, sorted
        self.deadlines: list[Deadline] = []
        self.mailbox = Mailbox()
        self.events = Events(self.mailbox, self.check_storable)

    def write(self, write: Write) -> None:
        """Write a row and its history row.

        Raises:
            StoreRefused: a database could not hold the rows, or the history row does not follow the last one.
        """
        was, run, transition = write
        if transition is not None:
            self.check_storable(run.id, run)
            self.check_storable(run.id, transition)
            rows = self.history.get(run.id, [])
            if not (transition.run_id == run.id and transition.seq == run.seq == len(rows) + 1):
                raise StoreRefused(
                    self._store,
                    f"run {run.id} as of {run.seq}, with transition {transition.seq} of run {transition.run_id}, "
                    f"for a run of {len(rows)} transitions",
                )
            self.history.setdefault(run.id, []).append(transition)
        self.replace(was, run)

    def undo(self, write: Write) -> None:
        """Undo the last write of a run."""
        was, run, transition = write
        self.replace(run, was)
        if transition is not None:
            self.history[run.id].pop()
        if was is None:
            del self.history[run.id]

    def replace(self, was: Run | None, run: Run | None) -> None:
        """Replace the row ``was`` by ``run``; None means no row."""
        if was is not None:
            del self.runs[was.id]
            self.running.discard(was.id)
            if (deadline := _deadline(was)) is not None:
                del self.deadlines[bisect_left(self.deadlines, deadline)]
        if run is not None:
            self.runs[run.id] = run
            if run.status == WorkflowStatus.RUNNING:
                self.running.add(run.id)
            if (deadline := _deadline(run)) is not None:
                insort(self.deadlines, deadline)
        if was is None and run is not None and run.key is not None:
            self.keyed[run.workflow, run.key].append(run.id)
        elif run is None and was is not None and was.key is not None:
            self.keyed[was.workflow, was.key].remove(was.id)
        self.mailbox.follow(was, run)

    def check_storable(self, id_: int, row: Run | Transition | Signal | EventRecord | Plan | Listener) -> None:
        """Raise StoreRefused for what databases refuse, so that tests on this store find it."""
        of_run = isinstance(row, Run | Transition | Signal)
        what = f"{'run' if of_run else 'event'} {id_}"
        values: tuple[object, ...] = row
        for column, value in zip(row._fields, values, strict=True):
            if isinstance(value, str):
                if "\0" in value:
                    raise StoreRefused(self._store, f"a NUL in {column} of {what}")
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise StoreRefused(self._store, f"a lone surrogate in {column} of {what}") from error
            elif isinstance(value, int) and value not in _INT64:
                raise StoreRefused(self._store, f"{column} of {what} is beyond 64 bits")


def _deadline(run: Run) -> Deadline | None:
    if run.status != WorkflowStatus.WAITING or run.wake_at is None:
        return None
    return Deadline(run.wake_at, run.id, run.seq)
