"""What a step returns: frozen records that say what happens next.

A command does nothing by itself. The engine commits the transition that it describes, and then acts on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeAlias, overload

from pydantic import BaseModel

from aioflow import clock
from aioflow.shapes import C, HasContext, P


class Command:
    """The type that every step returns: made by ``goto``, ``sleep``, ``wait``, ``complete`` and ``fail`` only."""

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker must see that a command cannot be awaited

        def __await__(self) -> NoReturn:
            raise AwaitedCommand(type(self).__name__.lower())


class AwaitedCommand(TypeError):
    """Raised at ``await goto(...)``; the executor adds run and step."""

    def __init__(self, command: str) -> None:
        self.command = command
        super().__init__(f"{command}(...) is to be returned, not awaited: write 'return {command}(...)'.")


#: What calling a step gives.
Returned: TypeAlias = Command | Awaitable[Command]


class BoundAction(Generic[P]):
    """The static type of ``self.review``, an action: a target, whatever it takes. At runtime it is the bound method."""

    def __call__(self, *args: P.args, **input: P.kwargs) -> Returned:  # noqa: A002, D102 - never run
        raise NotImplementedError


class UnboundAction(Generic[C, P]):
    """The static type of ``Order.review``, an action: its parameters and its Context. At runtime it is the function."""

    def __call__(self, instance: Any, *args: P.args, **input: P.kwargs) -> Returned:  # noqa: A002, D102 - never run
        raise NotImplementedError


class Action(Generic[P]):
    """The static type of an action as an attribute of its class. At runtime it is the decorated function."""

    @overload
    def __get__(self, instance: None, owner: HasContext[C]) -> UnboundAction[C, P]: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> BoundAction[P]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:  # never run
        raise NotImplementedError


#: What a command can name: a step of the same workflow that needs no arguments (``self.ship``), an action, or a name.
Target: TypeAlias = Callable[[], Returned] | BoundAction[...] | str
#: The step after a wait: it may take parameters, filled from what ended the wait.
ThenTarget: TypeAlias = Callable[..., Returned] | str


@dataclass(frozen=True, slots=True)
class Goto(Command):
    """Run another step next."""

    target: Target
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Sleep(Command):
    """Park the run, then run ``then``, or the same step again. Exactly one of ``duration`` and ``until`` is set."""

    duration: clock.Micros | None
    until: clock.Micros | None
    then: Target | None = None


@dataclass(frozen=True, slots=True)
class Complete(Command):
    """End the run as completed, merging ``data`` into its Context."""

    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fail(Command):
    """End the run as failed, for exactly this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class WaitArm:
    """One arm of a wait, made by ``on``. ``model``: the model that named it, if one did."""

    kind: Literal["signal", "event", "action"]
    name: str
    key: str | None
    then: ThenTarget | None
    model: type[BaseModel] | None = None


@dataclass(frozen=True, slots=True)
class Wait(Command):
    """Park the run until one of the arms gets what it waits for, or the time is over."""

    arms: tuple[WaitArm, ...]
    timeout: clock.Micros | None
    until: clock.Micros | None
    on_timeout: Target | None


#: The commands, closed: transitions.py matches them exhaustively.
AnyCommand: TypeAlias = Goto | Sleep | Wait | Complete | Fail


def goto(target: Target, *, progress: float | None = None) -> Command:
    """Run another step next.

    Args:
        target: a step of the same workflow, as a bound method (``self.ship``) or by its name.
        progress: how far the run has come, from 0.0 to 1.0; kept on the run as ``run.progress``.

    Returns:
        The command, for the step to return.

    Raises:
        TypeError: the target is neither a method nor a name.
        ValueError: progress is outside 0.0 to 1.0.
    """
    check_target("goto", target)
    if progress is not None and not (isinstance(progress, (int, float)) and 0.0 <= progress <= 1.0):
        raise ValueError(f"goto(progress=...) takes a number from 0.0 to 1.0, got {progress!r}.")
    return Goto(target, None if progress is None else float(progress))


def sleep(duration_or_until: timedelta | datetime, *, then: Target | None = None) -> Command:
    """Park the run for a time; nothing but a row in the store remembers it.

    Args:
        duration_or_until: a timedelta (not negative), or the aware datetime at which to go on; one that is past
            goes on at once.
        then: the step to go on with. Without it the step that sleeps runs again, which makes a reminder loop.

    Returns:
        The command, for the step to return.

    Raises:
        TypeError: neither a timedelta nor a datetime, or a target that is neither a method nor a name.
        ValueError: a negative duration or a naive datetime.
    """
    if then is not None:
        check_target("sleep", then)
    match duration_or_until:
        case datetime():
            return Sleep(None, clock.to_micros(duration_or_until, "sleep(until)"), then)
        case timedelta():
            return Sleep(clock.duration_micros(duration_or_until, "sleep(duration)"), None, then)
        case _:
            raise TypeError(
                f"sleep() takes a timedelta or an aware datetime, got {type(duration_or_until).__name__}. "
                "Write sleep(timedelta(seconds=5))."
            )


def complete(**data: Any) -> Command:
    """End the run as completed.

    Args:
        data: merged into the Context before it is stored for the last time. Names that the Context does not declare
            are kept too, unless its ``model_config`` says otherwise.

    Returns:
        The command, for the step to return.
    """
    return Complete(data)


def fail(reason: str) -> Command:
    """End the run as failed; ``run.error`` is exactly the reason. No retry, no ``on_fail``.

    Args:
        reason: the sentence that ``run.error`` will hold: up to 64 KiB of characters are kept as they are, and 2 000 in
            the history; NULs and lone surrogates, which not every store can hold, are written as escapes.

    Returns:
        The command, for the step to return.

    Raises:
        TypeError: the reason is not a string.
    """
    if not isinstance(reason, str):
        raise TypeError(f"fail() takes the reason as a string, got {type(reason).__name__}.")
    return Fail(reason)


def check_target(command: str, target: object) -> None:
    """Raise TypeError for what cannot be a target."""
    if not callable(target) and not isinstance(target, str):
        raise TypeError(
            f"{command}() takes a step of the same workflow, as self.step_name or 'step_name', "
            f"got {type(target).__name__}."
        )
