"""``TimeMachine``: an engine on virtual time, so that a month of waiting is tested in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypedDict, Unpack, cast, overload

from pydantic import BaseModel

from aioflow.changes import Change, Result
from aioflow.clock import LAST_INSTANT, Micros, duration_micros, to_micros
from aioflow.commands import Returned
from aioflow.context import run_on
from aioflow.discovery import find_store
from aioflow.errors import UsageError
from aioflow.runtime import Engine
from aioflow.shapes import C
from aioflow.store import EventQuery, RunQuery, Store
from aioflow.testing.alone import ResumedBy, StepResult, run_alone
from aioflow.testing.travel import Travel
from aioflow.testing.virtual import Activity, Counted, VirtualClock

#: The default ``now``: a Monday, and the first day of a month and of a year.
_BEGINNING = datetime(2029, 1, 1, tzinfo=UTC)
#: So long that no other process takes the machine's runs over, however far its time jumps.
_LEASE = timedelta(days=365 * 5_000)


class Span(TypedDict, total=False):
    """A length of time, in timedelta's own keywords."""

    weeks: float
    days: float
    hours: float
    minutes: float
    seconds: float
    milliseconds: float
    microseconds: float


class TimeMachine(Engine):
    """An engine on virtual time: time passes when the test advances it, or when everything else only waits for it.

    ``async with TimeMachine() as flow: ...`` has everything that an ``Engine`` has. Time moves in two ways:

    - ``await flow.advance(hours=24)``: all that becomes due meanwhile happens in order, each at its own instant.
    - While ``run.wait()``, ``run.result()`` or ``engine.wait()`` is awaited, be it by the test, a step or a request
      handler, time jumps to the next timer, as often as needed, whenever nothing else can happen: no step executes
      (except steps that wait for runs themselves), no call of the engine is under way, and every task of the event loop
      that was ready has run. Time does not wait for a task's I/O elsewhere: await that first.

    Timeouts of waits and of runs, sleeps, delayed starts and the delays of retries are virtual. Steps run in real time,
    so a step's own ``timeout`` is real time, and so is ``shutdown_timeout``.

    Args:
        url_or_store: as for ``Engine``; in memory if not given, whatever ``AIOFLOW_DATABASE_URL`` says.
        now: the aware datetime at which it begins. If not given, the latest instant in the store at which a run changed
            or an event was first emitted or occurred, but at least 2029-01-01 00:00 UTC.
        workflows, max_running, threads, shutdown_timeout: as for ``Engine``.
        patience: the real time for which a wait that no timer can end goes on, as another task of the test may end it,
            before it raises TimeStandsStill.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    The mutable state, beside that of an Engine: the clock, and what moves it while the engine is open.
    """

    def __init__(
        self,
        url_or_store: str | Store = "memory://",
        *,
        now: datetime | None = None,
        workflows: Iterable[type] | None = None,
        max_running: int = 1000,
        threads: int = 40,
        shutdown_timeout: timedelta = timedelta(seconds=10),
        patience: timedelta = timedelta(seconds=5),
    ) -> None:
        if now is not None and not isinstance(now, datetime):
            raise TypeError(f"TimeMachine(now=...) takes a datetime, got {type(now).__name__}.")
        if not isinstance(patience, timedelta):
            raise TypeError(f"TimeMachine(patience=...) takes a timedelta, got {type(patience).__name__}.")
        self._activity = Activity()
        self._time = VirtualClock(to_micros(now or _BEGINNING, "TimeMachine(now=...)"), self._activity)
        self._continues = now is None
        self._patience = duration_micros(patience, "TimeMachine(patience=...)")
        self._source = url_or_store
        self._travel: Travel | None = None
        super().__init__(
            url_or_store,
            workflows=workflows,
            max_running=max_running,
            threads=threads,
            shutdown_timeout=shutdown_timeout,
            lease=_LEASE,
            clock=self._time,
        )

    def __repr__(self) -> str:
        state = "closed" if self._parts is None else f"open on {self._parts.store.name}"
        return f"<TimeMachine {state}, at {self.now}>"

    @property
    def now(self) -> datetime:
        """The present instant: aware, UTC."""
        return self._time.now()

    async def advance(self, span_or_until: timedelta | datetime | None = None, /, **span: Unpack[Span]) -> None:
        """Let time pass. All that becomes due happens in order, each at its own instant, and settles before the next.

        Args:
            span_or_until: how much time, as a timedelta; or the aware datetime to move to.
            span: instead, timedelta's own keywords: ``advance(hours=23, minutes=59)``.

        Raises:
            TypeError: neither or both are given, or one of another type.
            ValueError, OverflowError: time would go back, or beyond the year 9999; or the datetime is naive.
            UsageError: called from inside a step, or while another ``advance`` is under way; or a run wakes again and
                again without any time passing.
            EngineClosed: the machine is not open, or was closed meanwhile.
            StoreUnavailable: the store did not answer.
        """
        travel = self._travel_for("advance()")
        await travel.advance(lambda: self._target(span_or_until, span), "flow.advance()")

    async def settle(self) -> None:
        """Wait, in real time, until nothing more can happen without time passing.

        That is: no step executes, except those that wait for runs themselves; nothing is being committed; nothing is
        due. It does not wait for a thread that a cancelled run has left behind.

        Raises:
            UsageError: called from inside a step; or a run wakes again and again without any time passing.
            EngineClosed: the machine is not open, or was closed meanwhile.
        """
        await self._travel_for("settle()").settle("flow.settle()")

    @overload
    async def run_step(
        self,
        step: Callable[..., Returned],
        context: C,
        /,
        *,
        workflow: type | None = ...,
        key: str | None = ...,
        attempt: int = ...,
        resumed_by: ResumedBy = ...,
        timed_out: bool = ...,
    ) -> StepResult[C]: ...
    @overload
    async def run_step(
        self,
        step: Callable[..., Returned],
        context: Mapping[str, Any] | None = ...,
        /,
        *,
        workflow: type | None = ...,
        key: str | None = ...,
        attempt: int = ...,
        resumed_by: ResumedBy = ...,
        timed_out: bool = ...,
    ) -> StepResult[Any]: ...
    async def run_step(
        self,
        step: Callable[..., Returned],
        context: BaseModel | Mapping[str, Any] | None = None,
        /,
        *,
        workflow: type | None = None,
        key: str | None = None,
        attempt: int = 1,
        resumed_by: ResumedBy = None,
        timed_out: bool = False,
    ) -> StepResult[Any]:
        """Run one step alone, as the engine would: with its Context, its timeout, and a sync step in a thread.

        There is no run: nothing is stored, no step follows, and ``get_run().id`` is 0. The machine need not be open.

        Args:
            step: the step, as ``Order.refund``.
            context: the Context that the step gets, or a mapping of its values; by default one made without values.
            workflow: the workflow class, if several have inherited the step from a base class.
            key: the value of ``get_run().key``.
            attempt: the value of ``get_run().attempt``, from 1.
            resumed_by: fills the step's parameters: a message, the payload of a signal (also merged into the Context),
                an Event (whose ids and name the Context gets), a Failure, or the input that an action is called with.
            timed_out: the value of ``get_run().timed_out``; if it is true, ``resumed_by`` can only be a Failure.

        Returns:
            The command that it returned, the Context as it would be stored, and what it started, sent and emitted.

        Raises:
            Whatever the step raises, including RetryLater and GiveUp.
            ContextInvalid, LimitExceeded: the Context that is passed in is invalid, or cannot be stored.
            SignalInvalid, EventInvalid, ActionInputInvalid: the payload or the event does not fit the Context, or
                cannot be stored; or the action's input is invalid.
            ArgumentsMissing: nothing fills a parameter that the step requires, or its value is invalid.
            NoCommand, CommandAwaited, TargetUnknown, ContextNotStorable: the returned command or the changed Context is
                invalid.
            StepTimeout: it took longer than its timeout.
            UsageError: it is not a step of a workflow that the machine knows, or it is a step of several.
            TypeError, ValueError: an argument of the wrong type or out of its range.
        """
        return await run_alone(
            self._time,
            self._registry,
            step,
            context,
            workflow=workflow,
            key=key,
            attempt=attempt,
            resumed_by=resumed_by,
            timed_out=timed_out,
        )

    def _travel_for(self, call: str) -> Travel:
        self._open_for(call)
        if run_on(self._time) is not None:
            raise UsageError(
                f"flow.{call} is called from inside a step, which it would wait for. "
                "A step that awaits run.wait() lets time pass by itself."
            )
        assert self._travel is not None
        return self._travel

    def _target(self, span_or_until: object, span: Span) -> Micros:
        if (span_or_until is None) == (not span):
            raise TypeError(
                "advance() takes how much time is to pass, once: advance(timedelta(hours=1)), advance(hours=1)."
            )
        if span_or_until is None:
            span_or_until = timedelta(**span)
        now = self._time.micros()
        match span_or_until:
            case datetime():
                target = to_micros(span_or_until, "advance(until)")
                if target < now:
                    raise ValueError(f"advance() cannot go back: it is {self.now}, later than {span_or_until}.")
            case timedelta():
                target = now + duration_micros(span_or_until, "advance(span)")
            case _:
                raise TypeError(
                    f"advance() takes a timedelta or an aware datetime, got {type(span_or_until).__name__}."
                )
        if target > LAST_INSTANT:
            raise ValueError(f"advance({span_or_until}) goes beyond the year 9999.")
        return target

    # ---- the engine's life

    async def __aenter__(self) -> Self:
        """Open the store and begin to work; time stands still. See ``Engine``."""
        self._url_or_store = cast("Store", Counted(find_store(self._source), self._activity))
        return await super().__aenter__()

    async def _compose(self, store: Store) -> None:
        self._activity.tell()  # makes a new Event: this may be another event loop than last time
        if self._continues:
            await self._catch_up(store)
        await super()._compose(store)
        assert self._parts is not None
        assert self._worker is not None
        counted = cast("Counted", store)
        self._travel = Travel(
            self._time,
            self._activity,
            counted,
            self._parts,
            self._worker,
            patience=self._patience,
        )
        self._tasks.keep(self._travel.drive, name="aioflow time")

    async def _catch_up(self, store: Store) -> None:
        """Move time to the latest instant in the store, if that is later."""
        now = self._time.micros()
        await store.open(now)
        try:
            instants = [run.updated_at for run in await store.select(RunQuery(order="updated_at", limit=1), now)]
            query = EventQuery(limit=1_000)
            while found := await store.select(query, now):
                instants += [max(event.recorded_at, event.occurred_at or 0) for event in found]
                query = replace(query, after=found[-1].id)
        finally:
            await store.close()
        self._time.move(max([now, *instants]))

    def _committed(self, applied: Iterable[tuple[Change, Result]]) -> None:
        super()._committed(self._seen(applied))

    def _seen(self, applied: Iterable[tuple[Change, Result]]) -> Iterator[tuple[Change, Result]]:
        for change, result in applied:
            yield change, result
            if self._travel is None:
                continue
            self._travel.committed()
            transition = result.transition or getattr(change, "transition", None)
            if transition is not None and transition.kind == "wake":
                self._travel.woke(transition.run_id)

    async def _close(self) -> None:
        if self._worker is not None:
            self._worker.draining = True
        self._activity.tell()
        await super()._close()
