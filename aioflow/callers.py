"""Callers of actions: who waits for the outcome of a call, and what of it only this process knows (request, error)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from aioflow.model import Run, Transition
from aioflow.openings import call_of


class Outcome(NamedTuple):
    """The outcome of a call.

    ``run``: the row after the step's transition, or a later one. ``transition``: the step's transition, None if another
    process wrote it. ``error``: what the step raised in this process.
    """

    run: Run
    transition: Transition | None
    error: BaseException | None


class Caller:
    """A pending call of an action.

    The mutable state: the seq of the transition that claimed the run for the call, and what the step raised.
    """

    __slots__ = ("error", "future", "request", "seq")

    def __init__(self, request: object, future: asyncio.Future[Outcome]) -> None:
        self.request = request
        self.future = future
        self.seq = 0
        self.error: BaseException | None = None

    def tell(self, run: Run, transition: Transition | None) -> None:
        """Resolve the call: the run has gone on to this row."""
        if not self.future.done():
            self.future.set_result(Outcome(run, transition, self.error))


class Callers:
    """All callers of this process.

    The mutable state: the callers by the commit id of their call (``by_call``, public: a busy engine skips
    ``committed`` if it is empty), those whose call has claimed its run by run id, and the error given to ``fail``.
    """

    def __init__(self) -> None:
        self.by_call: dict[int, Caller] = {}
        self._by_run: dict[int, list[Caller]] = {}
        self._failed: Exception | None = None

    @property
    def run_ids(self) -> Iterable[int]:
        """The runs that a pending call has claimed."""
        return self._by_run.keys()

    @contextmanager
    def calling(self, run_id: int, call: int, request: object) -> Iterator[Caller]:
        """Register the caller of a call that is about to be committed; ``call``: the commit id of its claim.

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
        """A transition was committed by this process."""
        if transition.kind == "action":
            if (caller := self.by_call.get(transition.commit_id)) is not None:
                caller.seq = transition.seq
                self._by_run.setdefault(run.id, []).append(caller)
            return
        for caller in self._by_run.get(run.id, ()):
            if transition.seq == caller.seq + 1:
                caller.tell(run, transition)

    def read(self, runs: Iterable[Run]) -> None:
        """Take in rows as read from the store, which other processes may have written."""
        for run in runs:
            for caller in self._by_run.get(run.id, ()):
                if run.seq > caller.seq:
                    caller.tell(run, None)

    def request_of(self, run: Run) -> object:
        """The request of the call that the run is executing; None if it was made in another process, or had none."""
        caller = self._of(run)
        return None if caller is None else caller.request

    def raised(self, run: Run, error: BaseException) -> None:
        """The run's step has raised; its transition is about to be committed."""
        if (caller := self._of(run)) is not None:
            caller.error = error

    def _of(self, run: Run) -> Caller | None:
        call = call_of(run)
        return None if call is None else self.by_call.get(call.id)

    def fail(self, error: Exception) -> None:
        """Fail all pending calls, and every later one, with this error."""
        self._failed = error
        for caller in self.by_call.values():
            if not caller.future.done():
                caller.future.set_exception(error)
                caller.future.exception()  # the caller may have left: asyncio must not log it as never retrieved
