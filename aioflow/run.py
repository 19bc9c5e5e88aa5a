"""``WorkflowRun``: what callers hold of a run."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast

from pydantic import BaseModel, JsonValue
from pydantic_core import from_json

from aioflow.causes import trace_in
from aioflow.clock import Micros, to_datetime
from aioflow.definition import WorkflowDefinition
from aioflow.errors import ContextInvalid, EngineClosed, OtherLoop, RunCancelled, RunFailed, WorkflowUnknown
from aioflow.likeness import explain
from aioflow.model import Run, WorkflowStatus, arms_of
from aioflow.waiters import Until

if TYPE_CHECKING:
    # WorkflowRun alone is WorkflowRun[Any], for strict checkers.
    from typing_extensions import TypeVar

    C = TypeVar("C", bound=BaseModel, default=Any)
else:
    from typing import TypeVar

    C = TypeVar("C", bound=BaseModel)


class Source(Protocol):
    """Where a WorkflowRun was read from, and can be read again."""

    def definition_of(self, run: Run) -> WorkflowDefinition | None:
        """The code of the run, if this process has it."""
        ...

    async def reread(self, run_id: int) -> Run:
        """The run as it stands now."""
        ...

    def row_when(self, run_id: int, timeout: float | timedelta | None, until: Until) -> Awaitable[Run]:
        """The run once it has ended, or is parked."""
        ...


class WorkflowRun(Generic[C]):
    """A run as it stood when it was read; ``refresh`` reads it again. All datetimes are aware UTC.

    Attributes:
        created: whether the ``start`` call that gave this object started the run; False if the key already had a run.
    """

    __slots__ = ("_row", "_source", "created")

    def __init__(self, source: Source, row: Run, created: bool = False) -> None:
        self._source = source
        self._row = row
        self.created = created

    def __repr__(self) -> str:
        row = self._row
        waiting = f" for {row.waiting_for}" if row.waiting_for else ""
        return f"<WorkflowRun {row.id} of {row.workflow!r}: {row.status}{waiting} at {row.step!r}>"

    def __eq__(self, other: object) -> bool:
        return self._row == other._row if isinstance(other, WorkflowRun) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._row.id)

    @property
    def row(self) -> Run:
        """The stored record that this object shows."""
        return self._row

    @property
    def id(self) -> int:
        """The run's id, unique in its store, below 2**53."""
        return self._row.id

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self._row.workflow

    @property
    def name(self) -> str:
        """The workflow's name: an alias of ``workflow``."""
        return self._row.workflow

    @property
    def version(self) -> str:
        """The version of the workflow that the run started with."""
        return self._row.version

    @property
    def key(self) -> str | None:
        """The caller's own name for the run."""
        return self._row.key

    @property
    def status(self) -> WorkflowStatus:
        """running, waiting, completed, failed or cancelled."""
        return WorkflowStatus(self._row.status)

    @property
    def current_step(self) -> str:
        """The step that runs, that returned the wait, or that ran last."""
        return self._row.step

    @property
    def data(self) -> dict[str, JsonValue]:
        """The Context as stored, as JSON values."""
        return cast("dict[str, JsonValue]", from_json(self._row.data))

    @property
    def context(self) -> C:
        """The Context as an instance of the workflow's Context class; changing it changes nothing in the store.

        Raises:
            WorkflowUnknown: this process does not have the workflow's code; ``data`` can still be read.
            ContextInvalid: the Context, as it is declared now, does not accept what is stored.
        """
        definition = self._source.definition_of(self._row)
        if definition is None:
            raise WorkflowUnknown(self.workflow, version=self.version)
        try:
            return cast("C", definition.codec.decode(self._row.data))
        except Exception as error:  # a validator may raise anything
            raise ContextInvalid(self.workflow, explain(error), self.id) from error

    @property
    def error(self) -> str | None:
        """Why it failed, was cancelled or is blocked; what ``fail(reason)`` gave, exactly."""
        return self._row.error

    @property
    def traceback(self) -> str | None:
        """The traceback of the error that failed the run, bounded."""
        return trace_in(self._row.traceback)

    @property
    def waiting_for(self) -> str | None:
        """While it waits: "sleep", "signal", "event", "action" (the first arm's), "retry", "start" or "blocked"."""
        return self._row.waiting_for

    @property
    def waiting_signal(self) -> str | None:
        """The signal that it waits for; of several, the first."""
        return next((arm.name for arm in arms_of(self._row) if arm.kind == "signal"), None)

    @property
    def waiting_key(self) -> str | None:
        """The key of the signal that it waits for: the wait's own, else the run's; of several, the first."""
        return next((arm.key for arm in arms_of(self._row) if arm.kind == "signal"), None)

    @property
    def on_timeout(self) -> str | None:
        """The step that the run goes on with when its wait times out."""
        return self._row.next_step if self._row.arms is not None else None

    @property
    def deadline(self) -> datetime | None:
        """When the whole run times out."""
        return _instant(self._row.deadline)

    @property
    def parent_id(self) -> int | None:
        """The run whose step started it, if one did."""
        return self._row.parent_id

    @property
    def event_id(self) -> str | None:
        """The id of the event that started it, if one did."""
        return self._row.event_id

    @property
    def wake_at(self) -> datetime | None:
        """When a waiting run goes on by itself."""
        return _instant(self._row.wake_at)

    @property
    def attempt(self) -> int:
        """Committed failures of the current visit of the step, plus 1."""
        return self._row.failures + 1

    @property
    def progress(self) -> float | None:
        """The last ``goto(progress=...)``, from 0.0 to 1.0."""
        return self._row.progress

    @property
    def created_at(self) -> datetime:
        """When it was started; if by an event, when that start was due, however late it was made."""
        return to_datetime(self._row.created_at)

    @property
    def updated_at(self) -> datetime:
        """When its last transition was committed."""
        return to_datetime(self._row.updated_at)

    @property
    def ended_at(self) -> datetime | None:
        """When it completed, failed or was cancelled."""
        return _instant(self._row.ended_at)

    async def refresh(self) -> None:
        """Read the run again, in place.

        Raises:
            RunNotFound: it is no longer in the store.
            EngineClosed, StoreUnavailable: it cannot be read.
        """
        try:
            self._row = await self._source.reread(self._row.id)
        except (EngineClosed, OtherLoop) as error:
            raise type(error)("run.refresh()") from None

    async def wait(self, timeout: float | timedelta | None = None, *, until: Until = "ended") -> WorkflowRun[C]:
        """Wait until the run has ended, whatever its status, or is parked; updates this object. See ``Engine.wait``."""
        try:
            self._row = await self._source.row_when(self._row.id, timeout, until)
        except (EngineClosed, OtherLoop) as error:
            raise type(error)("run.wait()") from None
        return self

    async def result(self, timeout: float | timedelta | None = None) -> C:
        """Its final Context, once it has completed; updates this object. See ``Engine.result``."""
        try:
            self._row = await self._source.row_when(self._row.id, timeout, "ended")
        except (EngineClosed, OtherLoop) as error:
            raise type(error)("run.result()") from None
        return self.outcome()

    def outcome(self) -> C:
        """The final Context of a run that has ended.

        Raises:
            RunFailed, RunCancelled: it did not complete.
            WorkflowUnknown, ContextInvalid: as ``context``.
        """
        if self.status == WorkflowStatus.FAILED:
            raise RunFailed(self.id, self.workflow, self.current_step, self.error)
        if self.status == WorkflowStatus.CANCELLED:
            raise RunCancelled(self.id, self.workflow, self.current_step, self.error)
        return self.context


def _instant(micros: Micros | None) -> datetime | None:
    return None if micros is None else to_datetime(micros)
