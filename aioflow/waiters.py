"""Callers that wait for a run to end, to park, or to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal, TypeAlias

from aioflow.model import LIVE, Run, WorkflowStatus

Until: TypeAlias = Literal["ended", "parked"]
#: What a waiter waits for; a number: that the run's seq is above it, or the run has ended.
Goal: TypeAlias = Until | int


class Waiters:
    """The callers of this process that wait for runs. They share one query when another process may have changed a run.

    The mutable state: run id -> futures and what they wait for; and the error that ended all waiting, once one did.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, dict[asyncio.Future[Run], Goal]] = {}
        self._failed: Exception | None = None

    @property
    def run_ids(self) -> list[int]:
        """The runs that callers wait for."""
        return list(self._waiting)

    def add(self, run_id: int, until: Goal) -> asyncio.Future[Run]:
        """A future that gets the run once it is there. The caller must ``remove`` it in the end.

        Raises:
            The error that ``fail`` was given.
        """
        if self._failed is not None:
            raise self._failed
        future: asyncio.Future[Run] = asyncio.Future(loop=self._loop)
        self._waiting.setdefault(run_id, {})[future] = until
        return future

    def tell(self, run: Run) -> None:
        """A run was committed, or read, with this row: resolve the futures of those that waited for that."""
        entries = self._waiting.get(run.id)
        if entries is None:
            return
        ended = run.status not in LIVE
        for future in entries:  # their waiters go on, and remove them, in a later turn of the loop
            if (ended or ((until := entries[future]) != "ended" and reached(run, until))) and not future.done():
                future.set_result(run)

    def tell_all(self, runs: Iterable[Run]) -> None:
        """``tell`` for each of the runs."""
        for run in runs:
            self.tell(run)

    def fail(self, error: Exception) -> None:
        """End all waiting: raise the error to those that wait, and to those that would add themselves later."""
        self._failed = error
        for entries in list(self._waiting.values()):
            for future in list(entries):
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # marks it as retrieved, so that asyncio does not log one that nobody awaits yet

    def remove(self, run_id: int, future: asyncio.Future[Run]) -> None:
        """Forget a future that is not awaited any more."""
        entries = self._waiting.get(run_id)
        if entries is not None:
            entries.pop(future, None)
            if not entries:
                del self._waiting[run_id]


def reached(run: Run, until: Goal) -> bool:
    """Whether the run has reached what its waiter waits for."""
    if isinstance(until, int):
        return run.status not in LIVE or run.seq > until
    return run.status not in LIVE or (until == "parked" and run.status == WorkflowStatus.WAITING)
