"""What a step can ask about the run that it is part of: ``get_context`` and ``get_run``."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TypeVar, overload

from pydantic import BaseModel

from aioflow.clock import Clock
from aioflow.errors import UndeclaredField, UsageError
from aioflow.model import Run

M = TypeVar("M", bound=BaseModel)


class CurrentRun:
    """The run that the calling step is part of."""

    __slots__ = ("_clock", "_context", "_run", "_store_id")

    def __init__(self, run: Run, context: BaseModel, store_id: str, clock: Clock) -> None:
        self._run = run
        self._context = context
        self._store_id = store_id
        self._clock = clock

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


_current: ContextVar[CurrentRun] = ContextVar("aioflow_current_run")


def run_on(clock: Clock) -> int | None:
    """The id of the run whose step calls this, if an engine on this very clock runs it; else None."""
    current = _current.get(None)
    return current.id if current is not None and current._clock is clock else None


def get_run() -> CurrentRun:
    """The run that the calling step is part of.

    Returns:
        Its id, workflow, step, attempt, key, step_key and now.

    Raises:
        UsageError: not called from a step.
    """
    try:
        return _current.get()
    except LookupError:
        raise UsageError("get_run() works inside a step, while it runs. Nothing runs here.") from None


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
        raise UsageError("get_context() works inside a step, while it runs. Nothing runs here.") from None
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
