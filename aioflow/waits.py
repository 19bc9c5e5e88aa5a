"""``wait`` and ``on``: the commands that park a run until something happens."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel

from aioflow import clock
from aioflow.canon import id_text
from aioflow.commands import BoundAction, Command, Returned, Target, ThenTarget, Wait, WaitArm, check_target
from aioflow.model import check_name

M = TypeVar("M", bound=BaseModel)


class _Arms:
    """``on``: one arm of ``wait.any``: what may end the wait, and the step that the run then goes on with."""

    @overload
    def __call__(
        self,
        name: type[M],
        *,
        key: str | None = None,
        then: Callable[[Any, M], Returned] | Callable[[M], Returned] | Target,
    ) -> WaitArm: ...
    @overload
    def __call__(self, name: str, *, key: str | None = None, then: ThenTarget) -> WaitArm: ...
    @overload
    def __call__(self, name: BoundAction[...]) -> WaitArm: ...
    def __call__(self, name: Any, *, key: str | None = None, then: Any = None) -> WaitArm:
        """An arm for a signal, or for the call of an action.

        Args:
            name: the signal's name, whose payload is merged into the Context; or a pydantic model, whose class name is
                the signal's name and which is handed to the step's parameter; or an action of the same workflow
                (``on(self.review)``), which is the step to go on with and takes nothing else.
            key: take signals sent to this key; the run's own key if not given. Signals to the run itself always fit.
            then: the step to go on with.

        Returns:
            The arm, for ``wait.any``.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
        """
        if callable(name) and not isinstance(name, type):
            if key is not None or then is not None:
                raise TypeError("on(self.action) takes nothing else: the action is the step to go on with.")
            return WaitArm("action", "", None, name)
        if then is None:
            raise TypeError("on(...) takes then=, the step to go on with: on('paid', then=self.ship).")
        return _signal("on", name, key, then)

    def event(self, name: str, *, entity_id: str | int | UUID | None = None, then: ThenTarget) -> WaitArm:
        """An arm for an event.

        Args:
            name: the event's name, in any namespace.
            entity_id: only an event of this entity (17 is "17"), which may also have occurred since the run started
                (see ``wait_for_event``). Such an arm takes precedence over one without an entity_id.
            then: the step to go on with; its parameter ``event: Event`` is given the event.

        Returns:
            The arm, for ``wait.any``.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
        """
        if then is None:
            raise TypeError("on.event(...) takes then=, the step to go on with: on.event('paid', then=self.ship).")
        return _event("on.event", name, entity_id, then)


#: One arm of ``wait.any``.
on = _Arms()


class _Waits:
    """``wait``: the commands that park a run until something happens."""

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
            on_timeout: the step for that case; required with a timeout.
            then: the step to go on with. Without it the next declared step that is not the ``on_timeout``.

        Returns:
            The command, for the step to return.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
        """
        return _wait("wait.for_signal", (_signal("wait.for_signal", name, key, then),), timeout, on_timeout)

    def for_event(
        self,
        name: str,
        *,
        entity_id: str | int | UUID | None = None,
        timeout: timedelta | datetime | None = None,
        on_timeout: Target | None = None,
        then: ThenTarget | None = None,
    ) -> Command:
        """Park the run until an event occurs. Its Context then has ``event_id``, ``event_name`` and ``entity_id``.

        A Context with ``extra="forbid"`` gets only those of the three that it declares. An event without an entity
        leaves the Context's ``entity_id`` as it is, if that cannot be None. A run cannot wait for the occurrence that
        has started it, even if its offset was before that: use ``sleep(event.at)``.

        Args:
            name: the event's name, in any namespace.
            entity_id: only an event of this entity (17 is "17"). It may also have occurred since the run started (a run
                that an event starts: since that start was due), or at that very instant (where time stands still, that
                may be just before the start), if the run has not taken it before. Without an entity_id, only what
                occurs while the run waits.
            timeout: a timedelta, or the aware datetime, after which the run goes on with ``on_timeout``.
            on_timeout: the step for that case; required with a timeout.
            then: the step to go on with; its parameter ``event: Event`` is given the event. Without it the next declared
                step that is not the ``on_timeout``.

        Returns:
            The command, for the step to return.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
        """
        return _wait("wait_for_event", (_event("wait_for_event", name, entity_id, then),), timeout, on_timeout)

    def any(
        self,
        *arms: WaitArm,
        timeout: timedelta | datetime | None = None,
        on_timeout: Target | None = None,
    ) -> Command:
        """Park the run until the first of several things happens.

        Args:
            arms: made by ``on``, at least one.
            timeout: a timedelta, or the aware datetime, after which the run goes on with ``on_timeout``.
            on_timeout: the step for that case; required with a timeout.

        Returns:
            The command, for the step to return.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of its range.
        """
        if not arms or not all(isinstance(arm, WaitArm) for arm in arms):
            raise TypeError(
                "wait.any() takes arms: wait.any(on('paid', then=self.ship), on('cancel', then=self.stop))."
            )
        return _wait("wait.any", arms, timeout, on_timeout)


#: The commands that park a run until something happens.
wait = _Waits()
#: The same as ``wait.for_event``.
wait_for_event = wait.for_event


def _signal(command: str, name: object, key: str | None, then: Any) -> WaitArm:
    if key is not None:
        check_name(f"{command}(key=...)", key)
    if then is not None:
        check_target(command, then)
    if isinstance(name, type) and issubclass(name, BaseModel):
        return WaitArm("signal", check_name(f"{command}(name)", name.__name__), key, then, name)
    if not isinstance(name, str):
        raise TypeError(f"{command}() takes a signal's name or a pydantic model, got {type(name).__name__}.")
    return WaitArm("signal", check_name(f"{command}(name)", name), key, then)


def _event(command: str, name: object, entity_id: object, then: Any) -> WaitArm:
    if then is not None:
        check_target(command, then)
    if not isinstance(name, str):
        raise TypeError(f"{command}() takes an event's name, got {type(name).__name__}.")
    key = None if entity_id is None else id_text(f"{command}(entity_id=...)", entity_id)
    return WaitArm("event", check_name(f"{command}(name)", name), key, then)


def _wait(
    command: str, arms: tuple[WaitArm, ...], timeout: timedelta | datetime | None, on_timeout: Target | None
) -> Wait:
    if on_timeout is not None:
        check_target(command, on_timeout)
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
