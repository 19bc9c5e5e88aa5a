"""Start, query, wait, cancel: every call that works from any process, whether or not it executes runs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from pydantic import BaseModel

from aioflow import interventions
from aioflow.changes import Amend, Result
from aioflow.clock import SECOND, UNLIMITED, Micros, seconds_of
from aioflow.definition import WorkflowDefinition
from aioflow.errors import EngineClosed, OtherLoop, RunNotFound
from aioflow.model import Run, StartOptions, Transition, check_id, check_name
from aioflow.parts import Parts
from aioflow.query import check_limit
from aioflow.registry import Registry, workflow_name
from aioflow.run import WorkflowRun
from aioflow.store import RunQuery
from aioflow.waiters import Until, reached

#: How long a call keeps offering a change to a store that does not take it, before it raises.
PATIENCE: Micros = 15 * SECOND


@dataclass(frozen=True, slots=True)
class Stats:
    """What is in the store.

    Attributes:
        runs: workflow -> status -> number of runs.
        steps: workflow -> step -> number of runs that have not ended.
        waiting: what they wait for ("sleep", "signal", "event", "action", "retry", "start", "blocked") -> number of
            runs.
        blocked: runs that are parked because no code can take them.
        overdue: waiting runs whose deadline is past.
        mailbox: signals that no run has taken yet.
        expired_signals: signals that expired untaken, as this engine has noticed since it was opened.
        events: status -> number of events.
        planned: starts that events have planned and that are not made yet.
        failing: those of them whose create_context or should_run_for_event raised the last time. They are tried again;
            the log says why.
        blocked_starts: those of them whose workflow no worker knows. They are made when a worker has its code again.
        lag: how long the earliest of the overdue runs has been due; zero if none is.
        running_here: runs that this engine executes now.
        bytes: the size of the store, None where it has none.
    """

    runs: Mapping[str, Mapping[str, int]]
    steps: Mapping[str, Mapping[str, int]]
    waiting: Mapping[str, int]
    blocked: int
    overdue: int
    mailbox: int
    expired_signals: int
    events: Mapping[str, int]
    planned: int
    failing: int
    blocked_starts: int
    lag: timedelta
    running_here: int
    bytes: int | None


class Client:
    """The engine's calls. The mutable state: the parts, while the engine is open.

    Args:
        registry: the workflows that it knows.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._parts: Parts | None = None

    def _open_for(self, call: str) -> Parts:
        if self._parts is None:
            raise EngineClosed(f"engine.{call}")
        if self._parts.loop is not asyncio.get_running_loop():
            raise OtherLoop(f"engine.{call}")
        return self._parts

    @property
    def registry(self) -> Registry:
        """The workflows that it knows."""
        return self._registry

    def definition_of(self, run: Run) -> WorkflowDefinition | None:
        """The code of a stored run, if this process has it."""
        return self.registry.get(run.workflow, run.version)

    async def reread(self, run_id: int) -> Run:
        """The row of a run as it stands now. Raises RunNotFound."""
        parts = self._open_for("get()")
        rows = await parts.store.load([check_id(run_id)], parts.clock.micros())
        if not rows:
            raise RunNotFound(run_id)
        return rows[0]

    async def start_run(
        self, workflow: object, options: StartOptions, keywords: Mapping[str, Any], *, from_json: bool = False
    ) -> WorkflowRun[Any]:
        """The same as ``start``, for code that forwards calls; raises the same errors.

        ``from_json``: the Context's keywords come from JSON, where a date is a string, even if the Context is strict.
        """
        parts = self._open_for("start()")
        if not isinstance(options, StartOptions):
            raise TypeError(
                f"start() takes StartOptions(...) after the workflow, and the Context's values as keywords; "
                f"got {type(options).__name__}."
            )
        definition = parts.registry.find(workflow)
        start = await parts.office.start_of(
            definition, options, keywords, from_json=from_json, patience=PATIENCE, promise=parts.slots.promise
        )
        result = await parts.committer.submit(start, PATIENCE, parts.slots, start.run.owner)
        assert result.run is not None
        return WorkflowRun(self, result.run, created=result.outcome == "applied")

    async def get(self, run_id: int) -> WorkflowRun[Any]:
        """The run with this id.

        Args:
            run_id: as ``WorkflowRun.id`` gives it.

        Returns:
            The run as it stands.

        Raises:
            RunNotFound: there is none.
            TypeError: the id is not an int.
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        return WorkflowRun(self, await self.reread(run_id))

    async def _find(self, workflow: object, key: str) -> WorkflowRun[Any]:
        parts = self._open_for("find()")
        name = workflow_name(workflow)
        query = RunQuery(workflow=(name,), key=(check_name("find(key)", key),), order="created_at", limit=1)
        rows = await parts.store.select(query, parts.clock.micros())
        if not rows:
            raise RunNotFound(workflow=name, key=key)
        return WorkflowRun(self, rows[0])

    async def iterate(self, query: RunQuery, page: int = 500) -> AsyncGenerator[WorkflowRun[Any], None]:
        """All runs that match a query of the port: for edges, which resume from a position. Users call ``iter_runs``.

        Args:
            query: which runs; its limit is ignored.
            page: how many are read at once.

        Raises:
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        parts = self._open_for("iter_runs()")
        while True:
            rows = await parts.store.select(dataclasses.replace(query, limit=page), parts.clock.micros())
            for row in rows:
                yield WorkflowRun(self, row)
            if len(rows) < page:
                return
            query = dataclasses.replace(query, after=(getattr(rows[-1], query.order), rows[-1].id))

    async def _count(self, query: RunQuery) -> int:
        parts = self._open_for("count()")
        return await parts.store.count(query, parts.clock.micros())

    async def history(self, run_id: int, *, after: int | None = None, limit: int = 1000) -> list[Transition]:
        """The committed transitions of a run, oldest first.

        Args:
            run_id: the run's id.
            after: only transitions with a higher seq.
            limit: how many at most, from 1 to 10 000.

        Returns:
            Transitions, with seq (1, 2, 3 … without gaps), at, step, attempt, kind, duration and error.

        Raises:
            RunNotFound: there is no such run.
            TypeError, ValueError: an argument of the wrong type or out of its range.
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        parts = self._open_for("history()")
        check_id(run_id)
        check_limit(limit)
        if after is not None and not isinstance(after, int):
            raise TypeError(f"history(after=...) takes a seq as an int, got {type(after).__name__}.")
        found = await parts.store.history(run_id, after or 0, limit, parts.clock.micros())
        if not found:
            await self.reread(run_id)
        return found

    async def cancel(self, run_id: int, reason: str | None = None) -> bool:
        """Cancel a run that has not ended. Its running step is cancelled; one in a thread runs on, its result dropped.

        Args:
            run_id: the run's id.
            reason: kept as ``run.error``, like that of ``fail``.

        Returns:
            True if this call cancelled it; False if it had ended already.

        Raises:
            RunNotFound: there is no such run.
            TypeError: an argument of the wrong type.
            EngineClosed, StoreUnavailable: the store cannot be written.
        """
        parts = self._open_for("cancel()")
        check_id(run_id)
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"cancel(reason) takes a string, got {type(reason).__name__}.")
        (result,) = await self._cancel_all(parts, [run_id], reason)
        if result.run is None:
            raise RunNotFound(run_id)
        return result.outcome == "applied"

    async def _cancel_all(self, parts: Parts, run_ids: Iterable[int], reason: str | None) -> list[Result]:
        """Cancel several runs, in one batch if there is room. A result for each."""
        before: list[Run] = []
        changes = [self._cancellation(parts, run_id, reason, before) for run_id in run_ids]
        results = await asyncio.gather(*[parts.committer.submit(change, PATIENCE) for change in changes])
        for row in before:
            parts.scheduler.disarm(row)
        return results

    def _cancellation(self, parts: Parts, run_id: int, reason: str | None, before: list[Run]) -> Amend:
        """The change that cancels a run; when it is applied, it appends the row as it was to ``before``."""
        now = parts.clock.micros()
        commit_id = next(parts.commit_ids)

        def decide(row: Run) -> tuple[Run, Transition] | None:
            before.append(row)
            return interventions.cancel(row, reason, now=now, commit_id=commit_id)

        return Amend(run_id, decide, commit_id)

    async def wait(
        self, run_id: int, timeout: float | timedelta | None = None, *, until: Until = "ended"
    ) -> WorkflowRun[Any]:
        """Wait for a run, whichever process executes it.

        Args:
            run_id: the run's id.
            timeout: seconds or a timedelta, after which the wait ends; 0 reads the run once; None waits for ever.
            until: "ended" (completed, failed or cancelled), or "parked" (ended or waiting).

        Returns:
            The run as it stood then, whatever its status.

        Raises:
            TimeoutError: it took longer.
            RunNotFound: there is no such run.
            TypeError, ValueError: an argument of the wrong type or out of its range.
            EngineClosed: the engine is not open, or was closed meanwhile.
            StoreUnavailable: the store cannot be asked.
        """
        return WorkflowRun(self, await self.row_when(run_id, timeout, until))

    async def row_when(self, run_id: int, timeout: float | timedelta | None, until: Until) -> Run:
        """``wait`` for the row; raises the same errors."""
        parts = self._open_for("wait()")
        if until not in ("ended", "parked"):
            raise ValueError(f"wait(until=...) takes 'ended' or 'parked', got {until!r}.")
        seconds = seconds_of(timeout)
        future = parts.waiters.add(check_id(run_id), until)
        try:
            here = parts.slots.drives(run_id)  # if so, its waiters hear of its next commit
            once = seconds is not None and seconds <= 0
            limit = parts.clock.limit(None if once else seconds)
            if here and limit is UNLIMITED and not once:
                return await future
            async with limit:
                if (once or not here) and reached(row := await self.reread(run_id), until):
                    return row
                if once:
                    raise TimeoutError
                return await future
        except TimeoutError:
            raise TimeoutError(f"Run {run_id} has not {until} within {seconds or 0:g} s.") from None
        finally:
            parts.waiters.remove(run_id, future)

    async def result(self, run_id: int, timeout: float | timedelta | None = None) -> BaseModel:
        """Wait for a run to end, and give its final Context.

        Args:
            run_id: the run's id.
            timeout: seconds or a timedelta; None waits for ever.

        Returns:
            The Context, an instance of the workflow's Context class.

        Raises:
            RunFailed, RunCancelled: it did not complete.
            TimeoutError: it took longer.
            Others: as ``wait``, and as ``WorkflowRun.context``.
        """
        try:
            run = await self.wait(run_id, timeout)
        except (EngineClosed, OtherLoop) as error:
            raise type(error)("engine.result()") from None
        return cast("BaseModel", run.outcome())

    async def process_scheduled(self) -> int:
        """Process all that is due now: waiting runs, planned events and planned starts.

        A working engine does so by itself; scripts and tests may not want to wait.

        Returns:
            How many runs this call has woken, plus how many plans it has processed.

        Raises:
            EngineClosed, StoreUnavailable: the store cannot be asked or written.
        """
        parts = self._open_for("process_scheduled()")
        return await parts.planner.fire_all() + await parts.scheduler.fire_all()

    async def stats(self) -> Stats:
        """Count what is in the store. This reads all runs, several times, and all events: do not call it in a loop.

        Raises:
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        parts = self._open_for("stats()")
        now = parts.clock.micros()
        found = await parts.store.stats(now)
        lag = 0 if found.oldest_due is None else max(now - found.oldest_due, 0)
        return Stats(
            runs=found.runs,
            steps=found.steps,
            waiting=found.waiting,
            blocked=found.waiting.get("blocked", 0),
            overdue=found.overdue,
            mailbox=found.mailbox,
            expired_signals=parts.delivery.expired,
            events=found.events,
            planned=found.planned,
            failing=found.failing,
            blocked_starts=found.blocked,
            lag=timedelta(microseconds=lag),
            running_here=parts.running(),
            bytes=found.bytes,
        )
