"""Runs one step alone, as the engine would, and stores nothing."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Generic, Self, TypeAlias

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import from_json

from aioflow import events, interventions
from aioflow.callers import Callers
from aioflow.changes import Emit, Post, Start
from aioflow.clock import SECOND, Clock, Micros
from aioflow.codec import Unstorable
from aioflow.commands import Command, WaitArm
from aioflow.definition import WorkflowDefinition
from aioflow.errors import ContextInvalid, EventInvalid, SignalInvalid, TargetUnknown, UsageError
from aioflow.events import Event, EventDraft
from aioflow.executor import Executor, Ran, Stopped, Watch
from aioflow.inputs import REQUEST, ActionDefinition
from aioflow.likeness import explain
from aioflow.model import Failure, Resumption, Run, StartOptions, check_name
from aioflow.openings import called
from aioflow.outbox import Order, Outbox, StartOrder
from aioflow.registry import Registry, definition_of
from aioflow.shapes import C
from aioflow.signals import Draft, Misfit, draft, laid_over, with_event
from aioflow.tasks import TaskSet
from aioflow.telemetry import Telemetry
from aioflow.transitions import Raised

#: The fields of commands that name steps.
_TARGETS = frozenset({"target", "then", "on_timeout"})
#: What ``run_step(resumed_by=...)`` takes.
ResumedBy: TypeAlias = BaseModel | Mapping[str, Any] | Failure | Event | None
_STORE_ID = "00000000-0000-0000-0000-000000000000"


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult(Generic[C]):
    """The result of a step that was run alone.

    Attributes:
        command: the command that the step returned. Steps in it are given by name, so that commands can be compared:
            ``result.command == goto("ship")``, ``result.command == sleep(timedelta(days=1))``. The name of an action in
            a wait also equals the action: ``result.command == wait.any(on(Order().review), on("stop", then="end"))``.
        context: the Context as it would be stored, including the data of ``complete(**data)``. The Context that was
            passed in is not changed.
        started: the runs that it started with ``get_run().start``: (workflow's name, options, keywords).
        sent: the signals that it sent with ``get_run().signal``: (name, payload as JSON values, run_id, key).
        emitted: the events that it emitted with ``get_run().emit``, as they would be stored; the id of an event that
            was emitted without an event_id is "".
    """

    command: Command
    context: C
    started: tuple[tuple[str, StartOptions, Mapping[str, Any]], ...] = ()
    sent: tuple[tuple[str, JsonValue, int | None, str | None], ...] = ()
    emitted: tuple[Event, ...] = ()


class _ActionName(str):
    """The name of an action in an arm of a wait; it also equals the action itself, as in ``on(Order().review)``."""

    __slots__ = ("_function",)
    _function: object

    def __new__(cls, name: str, function: object) -> Self:
        made = super().__new__(cls, name)
        made._function = function
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return str.__eq__(self, other)
        return getattr(other, "__func__", other) is self._function

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class _Kept:
    """Keeps a step's orders instead of committing them. The mutable state: the orders in the step's outbox."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.orders: list[Order] = []

    def outbox(self, run: Run) -> Outbox:
        """See outbox.Orders."""
        outbox = Outbox(self._registry, run)
        self.orders = outbox.orders
        return outbox

    async def changes(self, outbox: Outbox) -> tuple[Start | Post | Emit, ...]:
        """See outbox.Orders. Nothing is committed; a start that is invalid still raises."""
        for order in outbox.orders:
            if isinstance(order, StartOrder):
                context = order.definition.new_context(order.keywords)
                if not isinstance(context, BaseModel):
                    await context
        return ()


class _Alarm(Watch):
    """Enforces the step's timeout. The mutable state: the task that runs the step, and the loop's timer."""

    def __init__(self) -> None:
        super().__init__()
        self.task: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def began(self, limit: Micros) -> None:
        """See executor.Watch."""
        self._alarm = asyncio.get_running_loop().call_later(limit / SECOND, self._time_out)

    def over(self) -> None:
        """See executor.Watch."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _time_out(self) -> None:
        assert self.task is not None
        self.timed_out = True
        self.task.cancel()


async def run_alone(
    clock: Clock,
    registry: Registry,
    step: object,
    context: BaseModel | Mapping[str, Any] | None,
    *,
    workflow: type | None,
    key: str | None,
    attempt: int,
    resumed_by: ResumedBy,
    timed_out: bool,
) -> StepResult[Any]:
    """See ``TimeMachine.run_step``."""
    if isinstance(attempt, bool) or not isinstance(attempt, int):
        raise TypeError(f"run_step(attempt=...) takes an int, got {type(attempt).__name__}.")
    if attempt < 1:
        raise ValueError(f"run_step(attempt=...) counts from 1, got {attempt}.")
    if key is not None:
        check_name("run_step(key=...)", key)
    definition, name = _find(registry, step, context, workflow)
    action = definition.steps[name].action
    _check(resumed_by, action, timed_out)
    data, live = _context(definition, context)
    begun = interventions.start(
        definition, data, run_id=0, key=key, reuse="never", due=None, owner=None, now=clock.micros(), commit_id=0
    )
    run = begun.run._replace(
        status="running", step=name, next_step=None, waiting_for=None, wake_at=None, arms=None, failures=attempt - 1
    )
    request = None
    if action is None or isinstance(resumed_by, Failure):
        run = _resumed(run, resumed_by, timed_out)
        if isinstance(resumed_by, Mapping | Event):
            run, live = _with_payload(run, definition)
    else:
        assert not isinstance(resumed_by, Event)
        run, request = _called(run, action, resumed_by)
    kept, callers = _Kept(registry), Callers()
    executor = Executor(clock, Telemetry(), _STORE_ID, 1, kept, callers)
    try:
        with callers.calling(0, 0, request):
            ran = await _execute(executor, run, definition, live)
    finally:
        executor.close()
    if isinstance(ran.outcome, Raised):
        raise ran.outcome.error
    assert ran.live is not None
    started = [order for order in kept.orders if isinstance(order, StartOrder)]
    sent = [order for order in kept.orders if isinstance(order, Draft)]
    emitted = [order for order in kept.orders if isinstance(order, EventDraft)]
    now = clock.micros()
    return StepResult(
        _named(run, definition, ran.outcome.command),
        ran.live,
        tuple((order.definition.name, order.options, order.keywords) for order in started),
        tuple((order.name, from_json(order.payload), order.run_id, order.key) for order in sent),
        tuple(events.shown(order.record(0, 0, "", now)) for order in emitted),
    )


def _check(by: object, action: ActionDefinition | None, timed_out: bool) -> None:
    """Check that a step can be resumed by this. Raises TypeError."""
    what = "run_step(resumed_by=...)"
    if by is not None and not isinstance(by, BaseModel | Mapping | Failure | Event):
        raise TypeError(
            f"{what} takes a message, the payload of a signal (a mapping), an Event, a Failure, or what an action is "
            f"called with, got {type(by).__name__}."
        )
    if action is not None and isinstance(by, Event):
        raise TypeError(f"{what} takes what an action is called with, got Event: no event leads to {action.name!r}.")
    if timed_out and by is not None and not isinstance(by, Failure):
        raise TypeError(f"run_step(timed_out=True) takes no resumed_by= but a Failure, got {type(by).__name__}.")


def _resumed(run: Run, by: ResumedBy, timed_out: bool) -> Run:
    """The run after a signal, an event, a failure or a timeout has resumed it."""
    if isinstance(by, Failure):
        run = run._replace(failure=json.dumps(dataclasses.asdict(by)))
    elif isinstance(by, Event):
        record = events.record_of(by)
        run = run._replace(input=f'["event", {json.dumps(record.name)}, {record.payload}]')
    elif by is not None:
        asked = draft(by if isinstance(by, BaseModel) else "signal", None if isinstance(by, BaseModel) else by)
        kind = "message" if asked.message else "signal"
        run = run._replace(input=json.dumps([kind, asked.name, json.loads(asked.payload)]))
    return run._replace(input='["timeout"]') if timed_out else run


def _with_payload(run: Run, definition: WorkflowDefinition) -> tuple[Run, BaseModel]:
    """The run and its Context, with the signal's payload or the event's fields merged into it."""
    resumption = Resumption.of(run)
    assert resumption is not None
    assert isinstance(resumption.payload, dict)
    if resumption.kind == "event" and definition.event is not None and run.step == definition.start:
        return run._replace(event_id=str(resumption.payload["event_id"])), definition.codec.decode(run.data)
    lay, refused = (with_event, EventInvalid) if resumption.kind == "event" else (laid_over, SignalInvalid)
    try:
        run = run._replace(data=lay(run, definition, resumption.payload))
    except Misfit as error:
        raise refused(resumption.name, str(error)) from error
    return run, definition.codec.decode(run.data)


def _called(run: Run, action: ActionDefinition, by: BaseModel | Mapping[str, Any] | None) -> tuple[Run, object]:
    """The run with the input of a call of the action, and the HTTP request of that call, if one is given."""
    given = dict(by or {})
    request = given.pop(REQUEST, None) if action.takes_request else None
    input_ = action.read(given, 0, request=request is not None)
    return run._replace(input=called(action.name, input_, request is not None, run, 0)), request


async def _execute(executor: Executor, run: Run, definition: WorkflowDefinition, live: BaseModel) -> Ran:
    ran: list[Ran] = []
    watch = _Alarm()

    async def execute() -> None:
        try:
            ran.append(await executor.run(run, definition, live, watch))
        except Stopped:  # this call of _execute was cancelled
            pass

    # In a task with its own context, so that contextvars that the step sets do not leak into the test.
    watch.task = TaskSet().spawn(execute(), name="aioflow step", context=contextvars.copy_context())
    try:
        await asyncio.wait({watch.task})
    finally:
        watch.stop = True
        watch.task.cancel()
    return ran[0]


def _find(registry: Registry, step: object, context: object, workflow: type | None) -> tuple[WorkflowDefinition, str]:
    """The workflow and the name of a step, given as ``Order.refund``."""
    function = getattr(step, "__func__", step)
    if not callable(function):
        raise TypeError(f"run_step() takes a step, as Order.refund, got {type(step).__name__}.")
    known = [registry.get(*each) for each in registry.known()] if workflow is None else [definition_of(workflow)]
    found = [
        (definition, name)
        for definition in known
        if definition is not None
        for name, each in definition.steps.items()
        if each.function is function
    ]
    if len(found) > 1:  # an inherited step: the class of the Context may tell which workflow
        found = [each for each in found if isinstance(context, each[0].codec.context)] or found
    what = getattr(function, "__qualname__", repr(function))
    if not found:
        where = "any workflow that this engine knows" if workflow is None else workflow.__qualname__
        raise UsageError(
            f"run_step(): {what} is no step of {where}. Pass a method decorated with @step, as Order.refund."
        )
    if len(found) > 1:
        names = ", ".join(definition.cls.__qualname__ for definition, _ in found)
        raise UsageError(f"run_step(): {what} is a step of several workflows ({names}). Say which: workflow=....")
    return found[0]


def _context(definition: WorkflowDefinition, context: object) -> tuple[str, BaseModel]:
    """The Context, as JSON and as it would be read back from the store."""
    codec = definition.codec
    try:
        if context is None or isinstance(context, Mapping):
            live = codec.build(context or {})
        elif isinstance(context, codec.context):
            live = codec.adopt(context)
        else:
            raise TypeError(
                f"run_step() takes a {codec.context.__qualname__} or a mapping of its values, "
                f"got {type(context).__name__}."
            )
        return codec.encode(live)
    except ValidationError as error:
        raise ContextInvalid(definition.name, explain(error)) from error
    except Unstorable as error:
        raise ContextInvalid(definition.name, f"it cannot be stored: {error}") from error


def _named(run: Run, definition: WorkflowDefinition, value: Any, field: str = "") -> Any:
    """A command, or a part of one, with each step in it replaced by its name."""
    if field in _TARGETS and value is not None:
        name = definition.resolve(value)
        if name is None:
            written = repr(value) if isinstance(value, str) else getattr(value, "__qualname__", type(value).__name__)
            raise TargetUnknown(run.id, run.workflow, run.step, written, "a command", definition.steps)
        return name
    if isinstance(value, tuple):
        return tuple(_named(run, definition, each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
        named = {name: _named(run, definition, part, name) for name, part in parts.items()}
        if isinstance(value, WaitArm) and value.kind == "action":
            named["then"] = _ActionName(named["then"], definition.steps[named["then"]].function)
        return type(value)(**named)
    return value
