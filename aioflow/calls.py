"""The calls whose types depend on the workflow class: typed signatures, which delegate to the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any, Unpack, overload

from aioflow.actions import Acting
from aioflow.model import StartOptions
from aioflow.query import run_query
from aioflow.run import WorkflowRun
from aioflow.shapes import (
    ArgumentsDoNotFitCreateContext,
    BuildsContext,
    C,
    CreatesContext,
    HasContext,
    HasCreateContext,
    P,
    RunFilters,
)

_DEFAULT = StartOptions()


class Calls(Acting):
    """``start``, ``find``, ``runs``, ``iter_runs`` and ``count``, typed by the workflow class they are given."""

    @overload
    def start(
        self, workflow: CreatesContext[P, C], options: StartOptions = ..., /, *args: P.args, **context: P.kwargs
    ) -> Coroutine[Any, Any, WorkflowRun[C]]: ...
    @overload
    def start(
        self, workflow: HasCreateContext, options: StartOptions = ..., /, *args: Any, **context: Any
    ) -> ArgumentsDoNotFitCreateContext: ...
    @overload
    def start(
        self, workflow: BuildsContext[P, C], options: StartOptions = ..., /, *args: P.args, **context: P.kwargs
    ) -> Coroutine[Any, Any, WorkflowRun[C]]: ...
    @overload
    def start(
        self, workflow: str, options: StartOptions = ..., /, **context: Any
    ) -> Coroutine[Any, Any, WorkflowRun[Any]]: ...
    def start(self, workflow: Any, options: StartOptions = _DEFAULT, /, *args: Any, **context: Any) -> Any:
        """Start a run. When it returns, the run is committed.

        Args:
            workflow: the workflow class, or its name.
            options: key, reuse, delay or start_at: ``StartOptions(key="order-1")``.
            args: none; keywords only.
            context: what ``create_context`` takes, or without one the fields of the Context.

        Returns:
            The run: running at its start step, waiting if it is delayed or if that step is an action, which has to be
            called; or the run that has the key already, with ``run.created`` False.

        Raises:
            Whatever ``create_context`` raises.
            TypeError: a keyword does not fit; the message mentions StartOptions.
            ContextInvalid: the values do not make a Context, or not one that can be stored.
            LimitExceeded: the Context is too large or too deep, or holds what cannot be stored.
            WorkflowUnknown: the engine knows no such workflow.
            EngineClosed: the engine is not open.
            StoreUnavailable: the store did not answer for 15 s. It is not known whether the run was started: with a
                key, repeating the call tells.
        """
        if args:
            raise TypeError("start() takes the Context's values as keywords: start(Order, order_id=1).")
        return self.start_run(workflow, options, context)

    @overload
    async def find(self, workflow: HasContext[C], key: str) -> WorkflowRun[C]: ...
    @overload
    async def find(self, workflow: str, key: str) -> WorkflowRun[Any]: ...
    async def find(self, workflow: Any, key: str) -> Any:
        """The newest run of a workflow with this key.

        Args:
            workflow: the workflow class, or its name.
            key: as it was given in StartOptions.

        Returns:
            The run as it stands.

        Raises:
            RunNotFound: there is none.
            TypeError, ValueError, LimitExceeded: not a workflow class or name, or an invalid key.
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        return await self._find(workflow, key)

    @overload
    async def runs(
        self,
        *,
        workflow: HasContext[C],
        order: str = ...,
        limit: int = ...,
        after: WorkflowRun[Any] | int | None = ...,
        **filters: Unpack[RunFilters],
    ) -> list[WorkflowRun[C]]: ...
    @overload
    async def runs(
        self,
        *,
        workflow: Any = ...,
        order: str = ...,
        limit: int = ...,
        after: WorkflowRun[Any] | int | None = ...,
        **filters: Unpack[RunFilters],
    ) -> list[WorkflowRun[Any]]: ...
    async def runs(
        self,
        *,
        workflow: Any = None,
        order: str = "-id",
        limit: int = 100,
        after: WorkflowRun[Any] | int | None = None,
        **filters: Any,
    ) -> Any:
        """The runs that match every filter; a filter takes one value or several, of which any may match.

        An empty collection (``key=[]``) matches no run; None is no filter.

        Args:
            workflow: workflow classes or names.
            order: "id", "created_at" or "updated_at", with "-" before it for the latest first.
            limit: how many at most, from 1 to 10 000.
            after: the last run of the page before (or its id, when the order is by id).
            filters: ``status``; ``step`` (names or methods); ``waiting_for`` ("sleep", "signal", "event", "action",
                "retry", "start", "blocked"), ``waiting_signal`` (names or models) and ``waiting_key``, each matched by
                any arm of a wait; ``key``; ``event_id`` (of the event that started it); ``data`` (a mapping: each key
                of it must be in the Context with a matching value, nested mappings likewise; up to 200 values, 8 deep);
                ``created_after``, ``created_before``, ``updated_after``, ``updated_before`` (aware datetimes,
                exclusive).

        Returns:
            Runs as they stand, in order.

        Raises:
            TypeError, ValueError: an unknown filter, or a value of the wrong type or out of its range.
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        query = run_query("runs", filters, workflow=workflow, order=order, limit=limit, after=after)
        parts = self._open_for("runs()")
        return [WorkflowRun(self, row) for row in await parts.store.select(query, parts.clock.micros())]

    @overload
    def iter_runs(
        self, *, workflow: HasContext[C], order: str = ..., **filters: Unpack[RunFilters]
    ) -> AsyncIterator[WorkflowRun[C]]: ...
    @overload
    def iter_runs(
        self, *, workflow: Any = ..., order: str = ..., **filters: Unpack[RunFilters]
    ) -> AsyncIterator[WorkflowRun[Any]]: ...
    def iter_runs(self, *, workflow: Any = None, order: str = "-id", **filters: Any) -> Any:
        """All runs that match, read in pages: ``async for run in engine.iter_runs(status="failed")``.

        Args:
            workflow: as for ``runs``.
            order: as for ``runs``.
            filters: as for ``runs``.

        Returns:
            An async iterator of runs.

        Raises:
            As ``runs``.
        """
        return self.iterate(run_query("iter_runs", filters, workflow=workflow, order=order))

    async def count(self, *, workflow: Any = None, **filters: Unpack[RunFilters]) -> int:
        """How many runs match.

        Args:
            workflow: as for ``runs``.
            filters: as for ``runs``.

        Returns:
            Their number.

        Raises:
            As ``runs``.
        """
        return await self._count(run_query("count", filters, workflow=workflow))
