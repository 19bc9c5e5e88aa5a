"""What a step returns: frozen records that say what happens next.

A command does nothing by itself. The engine commits the transition that it describes, and then acts on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, overload

from pydantic import BaseModel

from aioflow import clock
from aioflow.model import check_name

M = TypeVar("M", bound=BaseModel)


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
#: What a command can name: a step of the same workflow that needs no arguments (``self.ship``), or a step's name.
Target: TypeAlias = Callable[[], Returned] | str
#: Where a wait goes on: a step that may take parameters, filled from what ended the wait.
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
    """End the run well, merging ``data`` into its Context."""

    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fail(Command):
    """End the run as failed, for exactly this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class SignalArm:
    """One arm of a wait, made by ``on``. ``model``: the model that named it, if one did."""

    name: str
    key: str | None
    then: ThenTarget | None
    model: type[BaseModel] | None


@dataclass(frozen=True, slots=True)
class Wait(Command):
    """Park the run until one of the arms is answered, or the time is over."""

    arms: tuple[SignalArm, ...]
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
    _check_target("goto", target)
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
        _check_target("sleep", then)
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


@overload
def on(
    name: type[M], *, key: str | None = None, then: Callable[[Any, M], Returned] | Callable[[M], Returned] | Target
) -> SignalArm: ...
@overload
def on(name: str, *, key: str | None = None, then: ThenTarget) -> SignalArm: ...
def on(name: Any, *, key: str | None = None, then: Any) -> SignalArm:
    """One arm of ``wait.any``: what may end the wait, and where the run then goes on.

    Args:
        name: the signal's name, whose payload is merged into the Context; or a pydantic model, whose class name is the
            signal's name and which is handed to the step's parameter.
        key: take signals sent to this key; the run's own key if not given. Signals to the run itself always fit.
        then: the step to go on with.

    Returns:
        The arm, for ``wait.any``.

    Raises:
        TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
    """
    if then is None:
        raise TypeError("on(...) takes then=, the step to go on with: on('paid', then=self.ship).")
    return _arm("on", name, key, then)


class _Waits:
    """``wait``: the commands that park a run until somebody sends it a signal."""

    @overload
    def for_signal(
        self,
        name: type[M],
        *,
        key: str | None = None,
        timeout: timedelta | datetime | None = None,
        on_timeout: Target | None = None,
        then: Callable[[M], Returned] | Target | None = None,
    ) -> Command: ...
    @overload
    def for_signal(
        self,
        name: str,
        *,
        key: str | None = None,
        timeout: timedelta | datetime | None = None,
        on_timeout: Target | None = None,
        then: ThenTarget | None = None,
    ) -> Command: ...
    def for_signal(
        self,
        name: Any,
        *,
        key: str | None = None,
        timeout: timedelta | datetime | None = None,
        on_timeout: Target | None = None,
        then: Any = None,
    ) -> Command:
        """Park the run until it is sent a signal.

        Args:
            name: the signal's name, whose payload is merged into the Context; or a pydantic model, whose class name
                is the signal's name and which is handed to the next step's parameter.
            key: take signals sent to this key; the run's own key if not given. Signals to the run itself always fit.
            timeout: a timedelta, or the aware datetime, after which the run goes on with ``on_timeout``.
            on_timeout: the step for that case; a timeout needs it.
            then: the step to go on with. Without it the next declared step that is not the ``on_timeout``.

        Returns:
            The command, for the step to return.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
        """
        return _wait("wait.for_signal", (_arm("wait.for_signal", name, key, then),), timeout, on_timeout)

    def any(
        self,
        *arms: SignalArm,
        timeout: timedelta | datetime | None = None,
        on_timeout: Target | None = None,
    ) -> Command:
        """Park the run until the first of several things happens.

        Args:
            arms: made by ``on``, at least one.
            timeout: a timedelta, or the aware datetime, after which the run goes on with ``on_timeout``.
            on_timeout: the step for that case; a timeout needs it.

        Returns:
            The command, for the step to return.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of its range.
        """
        if not arms or not all(isinstance(arm, SignalArm) for arm in arms):
            raise TypeError(
                "wait.any() takes arms: wait.any(on('paid', then=self.ship), on('cancel', then=self.stop))."
            )
        return _wait("wait.any", arms, timeout, on_timeout)


#: The commands that park a run until somebody sends it a signal.
wait = _Waits()


def _arm(command: str, name: object, key: str | None, then: Any) -> SignalArm:
    if key is not None:
        check_name(f"{command}(key=...)", key)
    if then is not None:
        _check_target(command, then)
    if isinstance(name, type) and issubclass(name, BaseModel):
        return SignalArm(check_name(f"{command}(name)", name.__name__), key, then, name)
    if not isinstance(name, str):
        raise TypeError(f"{command}() takes a signal's name or a pydantic model, got {type(name).__name__}.")
    return SignalArm(check_name(f"{command}(name)", name), key, then, None)


def _wait(
    command: str, arms: tuple[SignalArm, ...], timeout: timedelta | datetime | None, on_timeout: Target | None
) -> Wait:
    if on_timeout is not None:
        _check_target(command, on_timeout)
    duration: clock.Micros | None = None
    instant: clock.Micros | None = None
    match timeout:
        case None:
            if on_timeout is not None:
                raise TypeError(f"{command}() has on_timeout= and no timeout=. Say how long to wait.")
            return Wait(arms, None, None, None)
        case datetime():
            instant = clock.to_micros(timeout, f"{command}(timeout=...)")
        case timedelta():
            duration = clock.duration_micros(timeout, f"{command}(timeout=...)")
        case _:
            raise TypeError(
                f"{command}(timeout=...) takes a timedelta or an aware datetime, got {type(timeout).__name__}."
            )
    if on_timeout is None:
        raise TypeError(f"{command}() has timeout= and no on_timeout=. Name the step that goes on when time is over.")
    return Wait(arms, duration, instant, on_timeout)


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
        reason: the sentence that ``run.error`` will hold.

    Returns:
        The command, for the step to return.

    Raises:
        TypeError: the reason is not a string.
    """
    if not isinstance(reason, str):
        raise TypeError(f"fail() takes the reason as a string, got {type(reason).__name__}.")
    return Fail(reason)


def _check_target(command: str, target: object) -> None:
    if not isinstance(target, str) and not callable(target):
        raise TypeError(
            f"{command}() takes a step of the same workflow, as self.step_name or 'step_name', "
            f"got {type(target).__name__}."
        )
