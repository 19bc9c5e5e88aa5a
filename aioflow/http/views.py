"""The models of response bodies. All datetimes are UTC, and end in ``Z``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import Response

from aioflow.actions import OpenAction
from aioflow.causes import is_told
from aioflow.events import Event
from aioflow.model import Transition, WorkflowStatus
from aioflow.run import WorkflowRun
from aioflow.signals import SignalReceipt

#: What is told in place of a text that may be an exception's: by the kind of transition; ``_RAISED`` for all others.
_INSTEAD: Final = {
    "block": "Its code cannot take it as it is stored. The log of the server has more.",
    "reject": "What was sent does not fit.",
}
_RAISED: Final = "An error was raised. The log of the server has more."


def error_of(run: WorkflowRun[Any]) -> str | None:
    """Why a run failed, was cancelled or is blocked, in the words of ``fail``, ``cancel``, GiveUp and the engine alone.

    The text of any other exception was not written for callers. Only a run that an exception failed has a traceback.
    """
    if run.error is None or run.status == WorkflowStatus.CANCELLED:
        return run.error
    if run.status != WorkflowStatus.FAILED:
        return _INSTEAD["block"]
    return run.error if run.row.traceback is None or is_told(run.row.traceback) else _RAISED


class View(BaseModel):
    """The base of all response bodies."""

    model_config = ConfigDict(from_attributes=True)

    def response(self, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A response with this body."""
        return Response(
            self.model_dump_json(),
            status,
            {"cache-control": "no-store", **(headers or {})},
            media_type="application/json",
        )


class RunSummary(View):
    """A run, without its Context."""

    id: int
    workflow: str
    version: str
    key: str | None
    status: WorkflowStatus
    current_step: Annotated[str, Field(description="The step that runs, that returned the wait, or that ran last.")]
    waiting_for: str | None
    waiting_signal: str | None
    waiting_key: str | None
    on_timeout: Annotated[str | None, Field(description="The step that the run goes on with when its wait times out.")]
    wake_at: datetime | None
    deadline: Annotated[datetime | None, Field(description="When the whole run times out.")]
    attempt: int
    progress: float | None
    error: Annotated[
        str | None, Field(description="Why it failed, was cancelled or is blocked; not the text of an exception.")
    ]
    parent_id: int | None
    event_id: str | None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, run: WorkflowRun[Any]) -> Self:
        """What is shown of a run."""
        shown = cls.model_validate(run)
        shown.error = error_of(run)
        return shown


class RunView(RunSummary):
    """A run."""

    data: Annotated[dict[str, JsonValue], Field(description="The Context.")]


class RunPage(View):
    """Runs, in order. A page may have fewer than asked for, and still a next one, if many others may not be shown."""

    runs: list[RunSummary]
    next: Annotated[str | None, Field(description="The cursor of the next page; null at the end.")]


class TransitionView(View):
    """A committed transition of a run."""

    seq: Annotated[int, Field(description="1, 2, 3 … without gaps.")]
    at: datetime
    step: str
    attempt: int
    kind: str
    duration: Annotated[float, Field(description="How many seconds the step ran.")]
    error: str | None

    @classmethod
    def of(cls, transition: Transition, run: WorkflowRun[Any]) -> TransitionView:
        """What is shown of a transition. ``run``: its run, as of the transition if that ended it."""
        error = transition.error
        if transition.kind == "fail":
            error = error_of(run)
        elif error is not None and transition.kind != "cancel":
            error = _INSTEAD.get(transition.kind, _RAISED)
        return cls(
            seq=transition.seq,
            at=transition.at,
            step=transition.step,
            attempt=transition.attempt,
            kind=transition.kind,
            duration=transition.duration.total_seconds(),
            error=error,
        )


class HistoryPage(View):
    """Transitions of a run, oldest first."""

    transitions: list[TransitionView]
    next: Annotated[int | None, Field(description="What to ask for as `after` to see more; null at the end.")]


class ReceiptView(View):
    """What became of a signal."""

    state: Literal["delivered", "buffered", "rejected", "none"]
    delivered: Annotated[list[int], Field(description="The runs that took it.")]
    rejected: Annotated[list[int], Field(description="The runs that wait for it, and for which it is invalid.")]

    @classmethod
    def of(cls, receipt: SignalReceipt) -> ReceiptView:
        """What is shown of a receipt: not why a run rejects a signal, which would reveal its Context."""
        return cls(state=receipt.state, delivered=receipt.delivered, rejected=sorted(receipt.rejected))


class EventView(View):
    """An event, without its entity."""

    id: str
    name: str
    namespace: str
    entity_id: str | None
    at: datetime
    status: str
    occurrence: Annotated[int, Field(description="From 1; rises whenever the event is replaced.")]
    recorded_at: datetime
    occurred_at: datetime | None

    @classmethod
    def of(cls, event: Event) -> EventView:
        """What is shown of an event."""
        return cls.model_validate(event)


class CancelView(View):
    """The result of a cancellation."""

    cancelled: Annotated[bool, Field(description="False if the run had ended already.")]


class ActionView(View):
    """An action that can be called now."""

    name: str
    step: str
    title: str | None
    description: str | None
    input_schema: Annotated[dict[str, JsonValue], Field(description="The JSON Schema of its input.")]

    @classmethod
    def of(cls, action: OpenAction) -> ActionView:
        """What is shown of an action."""
        return cls(
            name=action.name,
            step=action.step,
            title=action.title,
            description=action.description,
            input_schema=action.schema,
        )


class OpenActionsView(View):
    """The actions that are open on a run."""

    actions: list[ActionView]


class HealthView(View):
    """The app's health."""

    status: Literal["ok"] = "ok"
