"""What a step can ask about the run that it is part of: ``get_context`` and ``get_run``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel

from aioflow.clock import Clock, to_datetime
from aioflow.errors import UndeclaredField, UsageError
from aioflow.model import Failure, Resumption, Run, StartOptions, failure_of
from aioflow.shapes import ArgumentsDoNotFitCreateContext, BuildsContext, C, CreatesContext, Entity, HasCreateContext, P

M = TypeVar("M", bound=BaseModel)


_DEFAULT = StartOptions()


class Outbox(Protocol):
    """Collects what a step starts, sends and emits, until it is closed."""

    closed: bool

    def start(self, workflow: object, options: StartOptions, keywords: Mapping[str, Any]) -> None:
        """Start a run."""
        ...

    def signal(self, name_or_message: object, payload: object, **address: Any) -> None:
        """Send a signal."""
        ...

    def emit(self, name: object, entity: object, **how: Any) -> None:
        """Emit an event."""
        ...


_OUTSIDE: Final = (
    "{} works inside a step, while it runs. Nothing runs here. A thread that a step starts has no part of it: use "
    "asyncio.to_thread(), or run it in contextvars.copy_context()."
)
#: Several threads of one step may need its outbox at once; one makes it.
_MAKING = threading.Lock()


class CurrentRun:
    """The run that the calling step is part of."""

    __slots__ = ("_clock", "_closed", "_context", "_make_outbox", "_outbox", "_run", "_store_id")

    def __init__(
        self, run: Run, context: BaseModel, store_id: str, clock: Clock, make_outbox: Callable[[Run], Outbox]
    ) -> None:
        self._make_outbox = make_outbox
        self._outbox: Outbox | None = None
        self._closed = False
        self._run = run
        self._context = context
        self._store_id = store_id
        self._clock = clock

    def close(self) -> Outbox | None:
        """Let the step, which has returned, start and send nothing more. Returns its outbox, None if it used none."""
        self._closed = True
        if self._outbox is not None:
            self._outbox.closed = True
        return self._outbox

    @property
    def closed(self) -> bool:
        """Whether the step has returned."""
        return self._closed

    @property
    def _orders(self) -> Outbox:
        if self._outbox is None:
            with _MAKING:
                if self._outbox is None:
                    outbox = self._make_outbox(self._run)
                    self._outbox = outbox
                    if self._closed:  # it was closed meanwhile; if it is closed later, ``close`` finds the outbox
                        outbox.closed = True
        return self._outbox

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.workflow!r}, attempt {self.attempt} of step {self.step!r}>"

    @property
    def id(self) -> int:
        """The run's id."""
        return self._run.id

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self._run.workflow

    @property
    def step(self) -> str:
        """The name of the step that runs."""
        return self._run.step

    @property
    def attempt(self) -> int:
        """Committed failures of this visit of the step, plus 1."""
        return self._run.failures + 1

    @property
    def key(self) -> str | None:
        """The caller's own name for the run, if it was started with one."""
        return self._run.key

    @property
    def step_key(self) -> str:
        """The idempotency key for the outside world.

        The same for every attempt, crash and takeover of this visit of the step, and never the same for anything else.
        """
        return f"{self._store_id}:{self._run.id}:{self._run.visit}"

    @property
    def now(self) -> datetime:
        """The engine's time: aware, UTC; virtual in tests."""
        return self._clock.now()

    @property
    def deadline(self) -> datetime | None:
        """When the timeout of the whole run (``@workflow(timeout=...)``) is over: aware, UTC."""
        return None if self._run.deadline is None else to_datetime(self._run.deadline)

    @property
    def timed_out(self) -> bool:
        """Whether the step runs because the timeout of a wait, or of the whole run, was over."""
        resumption = Resumption.of(self._run)
        return resumption is not None and resumption.kind == "timeout"

    @property
    def failure(self) -> Failure | None:
        """The failure that led to an ``on_fail`` step, also in the steps after that; a later failure replaces it."""
        return failure_of(self._run)

    @overload
    def start(
        self, workflow: CreatesContext[P, C], options: StartOptions = ..., /, *args: P.args, **context: P.kwargs
    ) -> None: ...
    @overload
    def start(
        self, workflow: HasCreateContext, options: StartOptions = ..., /, *args: Any, **context: Any
    ) -> ArgumentsDoNotFitCreateContext: ...
    @overload
    def start(
        self, workflow: BuildsContext[P, C], options: StartOptions = ..., /, *args: P.args, **context: P.kwargs
    ) -> None: ...
    @overload
    def start(self, workflow: str, options: StartOptions = ..., /, **context: Any) -> None: ...
    def start(self, workflow: Any, options: StartOptions = _DEFAULT, /, *args: Any, **context: Any) -> Any:
        """Start a run with this step's transition: both are committed, or neither. Not awaited; works in sync steps.

        Args:
            workflow: the workflow class, or its name.
            options: key, reuse, delay or start_at. A key that is taken starts nothing.
            args: none; keywords only.
            context: what ``create_context`` takes, or without one the fields of the Context; lists, tuples, sets, dicts
                and models are copied now.

        Raises:
            TypeError: a keyword does not fit. Values that make no valid Context fail the step when it has returned.
            WorkflowUnknown: the engine knows no such workflow.
            UsageError: the step has returned already.
            LimitExceeded: one step starts, sends and emits at most 1 000.
        """
        if args:
            raise TypeError("start() takes the Context's values as keywords: start(Order, order_id=1).")
        self._orders.start(workflow, options, context)

    def signal(
        self,
        name_or_message: str | BaseModel,
        payload: Mapping[str, Any] | None = None,
        *,
        run_id: int | None = None,
        key: str | None = None,
        workflow: Any = None,
        signal_id: str | None = None,
        ttl: timedelta | None = None,
    ) -> None:
        """Send a signal with this step's transition: both are committed, or neither. Not awaited; works in sync steps.

        Args:
            name_or_message: the signal's name, or a pydantic model that is the message itself.
            payload: with a name: what is merged into the Context of the run.
            run_id: the run that it is for; if that has ended by then, nothing is sent.
            key: the key that it is for.
            workflow: with a key: the run of this workflow that was started with the key.
            signal_id: makes it idempotent.
            ttl: how long it waits to be taken. For all of these, see ``Engine.signal``.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range, or more than 1 000
                starts, signals and events of one step. If there is no run of the workflow and key, the step fails with
                RunNotFound when it has returned.
            SignalInvalid: the payload or message cannot be stored.
            UsageError: the step has returned already.
        """
        self._orders.signal(
            name_or_message, payload, run_id=run_id, key=key, workflow=workflow, signal_id=signal_id, ttl=ttl
        )

    def emit(
        self,
        name: str,
        entity: Entity = None,
        *,
        entity_id: str | int | UUID | None = None,
        at: datetime | None = None,
        namespace: str = "*",
        event_id: str | None = None,
        replace: bool = False,
    ) -> None:
        """Emit an event with this step's transition: both are committed, or neither. Not awaited; works in sync steps.

        Args:
            name: the event's name.
            entity: what it is about: a pydantic model, a dataclass or a mapping.
            entity_id: the entity's id, if that is not its ``id``.
            at: when it occurs, an aware datetime; if not given, when the step has returned.
            namespace: which event workflows it is for.
            event_id: makes it idempotent.
            replace: replace the event that has the event_id. For all of these, see ``Engine.emit``. Of several events
                that a step emits with one event_id, the last with ``replace`` and the name of the first is emitted; if
                there is none, the first.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range, or more than 1 000
                starts, signals and events of one step.
            EventInvalid: the entity cannot be stored.
            UsageError: the step has returned already.
        """
        self._orders.emit(
            name, entity, entity_id=entity_id, at=at, namespace=namespace, event_id=event_id, replace=replace
        )


_current: ContextVar[CurrentRun] = ContextVar("aioflow_current_run")


def current_run() -> CurrentRun | None:
    """The current run of the step that this code is part of, or was started by; None outside of steps."""
    return _current.get(None)


def in_step() -> bool:
    """Whether this code is part of a step, or was started by one."""
    return _current.get(None) is not None


def run_on(clock: Clock) -> int | None:
    """The id of the run whose step calls this, if its engine uses this very clock; else None."""
    current = _current.get(None)
    return current.id if current is not None and current._clock is clock else None


def get_run() -> CurrentRun:
    """The run that the calling step is part of.

    Returns:
        The run, with id, workflow, step, attempt, key, step_key, now, deadline, timed_out and failure, and with
        ``start``, ``signal`` and ``emit``.

    Raises:
        UsageError: not called from a step.
    """
    try:
        return _current.get()
    except LookupError:
        raise UsageError(_OUTSIDE.format("get_run()")) from None


@overload
def get_context() -> Any: ...
@overload
def get_context(context: type[M], /) -> M: ...
def get_context(context: type[M] | None = None, /) -> Any:
    """The Context of the run that the calling step is part of. What the step changes in it is committed with it.

    Args:
        context: the workflow's Context class, for the type checker: ``get_context(self.Context)``.

    Returns:
        The Context: an instance of the class given.

    Raises:
        UsageError: not called from a step.
        TypeError: the run's Context is of another class.
    """
    try:
        current = _current.get()
    except LookupError:
        raise UsageError(_OUTSIDE.format("get_context()")) from None
    if context is not None and not isinstance(current._context, context):
        raise TypeError(
            f"get_context({context.__qualname__}): run {current.id} of workflow {current.workflow!r} "
            f"has a {type(current._context).__qualname__}. Write get_context(self.Context)."
        )
    return current._context


def undeclared_field(context: str, field: str, declared: Sequence[str]) -> AttributeError:
    """The error for assigning a name that the Context neither declares nor holds."""
    current = _current.get(None)
    if current is None:
        return AttributeError(f"{context} does not declare {field!r} (fields: {', '.join(declared) or 'none'}).")
    return UndeclaredField(current.id, current.workflow, current.step, context, field, declared)
