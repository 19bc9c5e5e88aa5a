"""``@event_workflow``: a workflow whose runs are started by events."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from aioflow.clock import Micros
from aioflow.decorators import StepName, checked_options, define
from aioflow.definition import EventTrigger
from aioflow.model import check_name
from aioflow.retry import Retry

K = TypeVar("K", bound=type)

#: The fields that are filled, if the Context declares them, when there is no create_context.
TOLD: Final = ("event_id", "event_name", "entity_id")
#: The longest offset: an instant plus that is one that every store can hold.
LONGEST: Final = timedelta(days=36_525)
_MICROSECOND: Final = timedelta(microseconds=1)


class EventContext(BaseModel):
    """The Context of an event workflow that has none of its own."""

    event_id: str | None = None
    event_name: str | None = None
    entity_id: str | None = None


def event_workflow(
    event_name: str,
    *,
    offset_minutes: float = 0,
    offsets: Sequence[timedelta] | None = None,
    name: str | None = None,
    namespace: str = "*",
    version: str = "1",
    default_retry: Retry = Retry(),  # noqa: B008 - frozen
    timeout: timedelta | None = None,
    on_timeout: StepName | None = None,
    on_fail: StepName | None = None,
    max_transitions: int = 10_000,
) -> Callable[[K], K]:
    """Make a class a workflow that events start, one run for each event, occurrence and offset, and register it.

    The class is as for ``@workflow``, and may have two more classmethods, each sync or async. ``should_run_for_event``
    is called with the ``Event``; a run is started if it returns a true value. Then ``create_context`` is called with
    the ``Event`` and returns the Context; without it the run gets those of event_id, event_name and entity_id that its
    Context declares. A class without a Context gets one of these three fields. If either method raises, or is async and
    takes longer than a minute, that is logged, and both are called again later. Up to 100 starts of a workflow are
    under way at once, and do not hold up those of other workflows.

    Args:
        event_name: the events' name, as ``emit`` is given it; up to 200 characters.
        offset_minutes: how many minutes after the event's ``at`` the run starts; negative: before. If that moment is
            past when the event is recorded, it starts at once. A run cannot wait for the occurrence that has started
            it: one that starts before the event returns ``sleep(event.at)``.
        offsets: several offsets, as different timedeltas of up to 100 years, each for a run of its own; not together
            with offset_minutes.
        name: what runs are stored under; ``event:`` and the class's name if not given.
        namespace: "*" takes the events of every namespace, any other only its own.
        version: as for ``@workflow``, and so all that follow. Of several, events start the version registered last.
        default_retry: for the steps that have no policy of their own.
        timeout: how long a run may take from its start in all.
        on_timeout: the step, or its name, for a run whose timeout is over.
        on_fail: the step, or its name, for a run of which a step has failed for good.
        max_transitions: how many steps a run may take without waiting.

    Returns:
        A decorator that gives the class back.

    Raises:
        DefinitionError: the class cannot work as it is written; the error lists every reason.
        TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
    """
    check_name("@event_workflow(event_name)", event_name)
    check_name("@event_workflow(namespace=...)", namespace)
    if name is not None:
        check_name("@event_workflow(name=...)", name)
    options = checked_options(
        "@event_workflow",
        version=version,
        default_retry=default_retry,
        timeout=timeout,
        on_timeout=on_timeout,
        on_fail=on_fail,
        max_transitions=max_transitions,
    )
    options["event"] = EventTrigger(event_name, namespace, _offsets(offset_minutes, offsets))

    def decorate(cls: K) -> K:
        if not isinstance(cls, type):
            raise TypeError(f"@event_workflow decorates a class, got {type(cls).__name__}.")
        called = name or check_name("@event_workflow: the name of the workflow", f"event:{cls.__name__}")
        if getattr(cls, "Context", None) is None:
            cls.Context = EventContext  # type: ignore[attr-defined]
        return define(cls, {**options, "name": called}, _problems(cls))

    return decorate


def _offsets(minutes: object, several: object) -> tuple[Micros, ...]:
    if isinstance(minutes, bool) or not isinstance(minutes, int | float):
        raise TypeError(f"@event_workflow(offset_minutes=...) takes a number, got {type(minutes).__name__}.")
    if several is None:
        try:
            offset = timedelta(minutes=minutes)
        except (ValueError, OverflowError):
            raise ValueError(f"@event_workflow(offset_minutes=...) cannot be {minutes}.") from None
        return (_micros("offset_minutes", offset),)
    if minutes:
        raise TypeError("@event_workflow takes offset_minutes= or offsets=, not both.")
    if isinstance(several, str | bytes) or not isinstance(several, Sequence):
        raise TypeError(f"@event_workflow(offsets=...) takes a sequence of timedeltas, got {type(several).__name__}.")
    found = []
    for offset in several:
        if not isinstance(offset, timedelta):
            raise TypeError(f"@event_workflow(offsets=...) takes timedeltas, got {type(offset).__name__}.")
        found.append(_micros("offsets", offset))
    if not found:
        raise ValueError("@event_workflow(offsets=...) is empty: no event would start it.")
    if len(set(found)) < len(found):
        raise ValueError("@event_workflow(offsets=...) has an offset twice. One run is started for each.")
    return tuple(found)


def _micros(option: str, offset: timedelta) -> Micros:
    if abs(offset) > LONGEST:
        raise ValueError(f"@event_workflow({option}=...) takes no offset beyond 100 years, got {offset}.")
    return offset // _MICROSECOND


def _problems(cls: type) -> Iterator[str]:
    """Why no event could start the workflow: sentences for DefinitionError."""
    should_run = inspect.getattr_static(cls, "should_run_for_event", None)
    if should_run is not None:
        if not isinstance(should_run, classmethod):
            yield "its should_run_for_event is asked before there is an instance. Make it a classmethod."
        elif not _takes_event(cls.should_run_for_event):  # type: ignore[attr-defined]
            yield "its should_run_for_event does not take the event alone. Write should_run_for_event(cls, event)."
    create = inspect.getattr_static(cls, "create_context", None)
    context: Any = getattr(cls, "Context", None)
    if create is not None:
        if not inspect.isfunction(create) and not _takes_event(cls.create_context):  # type: ignore[attr-defined]
            yield "its create_context does not take the event alone. Write create_context(cls, event)."
    elif isinstance(context, type) and issubclass(context, BaseModel):
        needed = [name for name, field in context.model_fields.items() if field.is_required() and name not in TOLD]
        if needed:
            yield (
                f"its Context needs {', '.join(needed)}, which an event does not tell. Add a create_context(cls, event), "
                "or give defaults."
            )


def _takes_event(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True
