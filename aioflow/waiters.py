"""Callers that wait for a run to end, to park, or to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal, TypeAlias

from aioflow.model import LIVE, Run, WorkflowStatus

Until: TypeAlias = Literal["ended", "parked"]
#: What a waiter waits for: or, as a number, that the run has more transitions than so many, or has ended.
Goal: TypeAlias = Until | int


class Waiters:
    """Who waits for which run.

    The mutable state: run id -> futures with what they wait for, and why there will be no more. All waiters of a process share one query when the
    run may have been changed by another process.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, dict[asyncio.Future[Run], Goal]] = {}
        self._failed: Exception | None = None

    @property
    def run_ids(self) -> list[int]:
        """The runs that somebody waits for."""
        return list(self._waiting)

    def add(self, run_id: int, until: Goal) -> asyncio.Future[Run]:
        """A future of the run as it got there. Whoever adds it removes it in the end.

        Raises:
            The error that ``fail`` was given.
        """
        if self._failed is not None:
            raise self._failed
        future: asyncio.Future[Run] = asyncio.Future(loop=self._loop)
        self._waiting.setdefault(run_id, {})[future] = until
        return future

    def tell(self, run: Run) -> None:
        """The run was committed like this."""
        entries = self._waiting.get(run.id)
        if entries is None:
            return
        for future, until in entries.items():  # whoever hears of it goes on in a later turn of the loop
            if reached(run, until) and not future.done():
                future.set_result(run)

    def tell_all(self, runs: Iterable[Run]) -> None:
        """These runs were read like this."""
        for run in runs:
            self.tell(run)

    def fail(self, error: Exception) -> None:
        """Nobody will tell any more, neither those who wait nor those who come."""
        self._failed = error
        for entries in list(self._waiting.values()):
            for future in list(entries):
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # who has not come to await it hears of the end elsewhere: it is not to be printed

    def remove(self, run_id: int, future: asyncio.Future[Run]) -> None:
        """Nobody listens to this future any more."""
        entries = self._waiting.get(run_id)
        if entries is not None:
            entries.pop(future, None)
            if not entries:
                del self._waiting[run_id]


def reached(run: Run, until: Goal) -> bool:
    """Whether the run is where its waiter wants it."""
    if isinstance(until, int):
        return run.status not in LIVE or run.seq > until
    return run.status not in LIVE or (until == "parked" and run.status == WorkflowStatus.WAITING)
