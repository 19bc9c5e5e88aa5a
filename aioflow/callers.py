"""Callers of actions: what nobody but this process knows of a call, and who waits for what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from aioflow.model import Run, Transition
from aioflow.openings import call_of


class Outcome(NamedTuple):
    """What came of a call.

    ``run``: the row that the action's step committed, or a later one; ``transition``: what it did, None where that was
    written by another process; ``error``: what the step raised here.
    """

    run: Run
    transition: Transition | None
    error: BaseException | None


class Caller:
    """One who calls an action.

    The mutable state: the seq that the call has claimed the run with, and what the step raised.
    """

    __slots__ = ("error", "future", "request", "seq")

    def __init__(self, request: object, future: asyncio.Future[Outcome]) -> None:
        self.request = request
        self.future = future
        self.seq = 0
        self.error: BaseException | None = None

    def tell(self, run: Run, transition: Transition | None) -> None:
        """The run went on like this."""
        if not self.future.done():
            self.future.set_result(Outcome(run, transition, self.error))


class Callers:
    """All callers of this process.

    The mutable state: the callers by call (``by_call``: whoever tells of much looks whether there is one), those whose call
    has claimed its run by run, and why there will be no more.
    """

    def __init__(self) -> None:
        self.by_call: dict[int, Caller] = {}
        self._by_run: dict[int, list[Caller]] = {}
        self._failed: Exception | None = None

    @property
    def run_ids(self) -> Iterable[int]:
        """The runs that somebody has called an action of."""
        return self._by_run.keys()

    @contextmanager
    def calling(self, run_id: int, call: int, request: object) -> Iterator[Caller]:
        """Be told what comes of a call that is about to be committed.

        Raises:
            The error that ``fail`` was given.
        """
        if self._failed is not None:
            raise self._failed
        caller = self.by_call[call] = Caller(request, asyncio.get_running_loop().create_future())
        try:
            yield caller
        finally:
            del self.by_call[call]
            if left := [other for other in self._by_run.pop(run_id, ()) if other is not caller]:
                self._by_run[run_id] = left

    def committed(self, run: Run, transition: Transition) -> None:
        """A transition was committed here."""
        if transition.kind == "action":
            if (caller := self.by_call.get(transition.commit_id)) is not None:
                caller.seq = transition.seq
                self._by_run.setdefault(run.id, []).append(caller)
            return
        for caller in self._by_run.get(run.id, ()):
            if transition.seq == caller.seq + 1:
                caller.tell(run, transition)

    def read(self, runs: Iterable[Run]) -> None:
        """These runs were read like this: others may have written them."""
        for run in runs:
            for caller in self._by_run.get(run.id, ()):
                if run.seq > caller.seq:
                    caller.tell(run, None)

    def request_of(self, run: Run) -> object:
        """The request that called the action which the run goes on with; None if that was not in this process."""
        caller = self._of(run)
        return None if caller is None else caller.request

    def raised(self, run: Run, error: BaseException) -> None:
        """The step of this run has raised, which is about to be committed."""
        if (caller := self._of(run)) is not None:
            caller.error = error

    def _of(self, run: Run) -> Caller | None:
        call = call_of(run)
        return None if call is None else self.by_call.get(call.id)

    def fail(self, error: Exception) -> None:
        """Nobody will tell any more, neither those who wait nor those who come."""
        self._failed = error
        for caller in self.by_call.values():
            if not caller.future.done():
                caller.future.set_exception(error)
                caller.future.exception()  # for whoever waits; he may have left
