"""The entities of events: written as JSON, and read back as objects by a registry of their types.

An entity is stored with the name of its type. It reads back as an instance of the class that this process has
registered under that name, never of a class that is looked up by the data; without such a class it is a mapping.
``emit`` registers the type of its entity in its own process; in others ``@entity_type`` does.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar, overload

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json
from pydantic_core import to_json as write_json

from aioflow.canon import beyond, check_json, doubled, id_text
from aioflow.errors import EventInvalid, LimitExceeded
from aioflow.likeness import difference, explain, one_line
from aioflow.model import check_name

K = TypeVar("K", bound=type)
T = TypeVar("T")
L = TypeVar("L", bound=Callable[[str], Any])

#: How many calls of one sync loader run at once.
_THREADS = 40


class Known:
    """A registered type: the name that its entities are stored under, and the class."""

    def __init__(self, name: str, cls: type) -> None:
        self.name = name
        self.cls = cls

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Writes and reads the entities. Made when first needed: the class may name others that are defined later."""
        return TypeAdapter(self.cls)


class Loader:
    """A function decorated with ``@entity_loader``. Each has its own limit of threads: one that hangs blocks no other.

    The mutable state, for each event loop: how many calls run.
    """

    def __init__(self, function: Callable[[str], Any]) -> None:
        self._function = function
        self._limiter: RunVar[CapacityLimiter] = RunVar("calls of an entity's loader")
        inner = inspect.unwrap(function)
        self._is_async = any(map(inspect.iscoroutinefunction, (inner, getattr(inner, "__call__", None))))  # noqa: B004 - a callable object's method

    async def load(self, entity_id: str) -> Any:
        """The entity. Raises what the function raises."""
        if self._is_async:
            return await self._function(entity_id)
        limiter = self._limiter.get(None)
        if limiter is None:
            self._limiter.set(limiter := CapacityLimiter(_THREADS))
        call = partial(self._function, entity_id)
        loaded = await to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)
        return await loaded if inspect.isawaitable(loaded) else loaded


class Entity(NamedTuple):
    """An entity as it is stored: the name of its type, its JSON, its id."""

    type: str | None
    json: str | None
    entity_id: str | None


#: Types by name, of which a class may have had several; by class, with the name it is stored under; loaders by class.
_by_name: dict[str, Known] = {}
_by_class: dict[type, Known] = {}
_loaders: dict[type, Loader] = {}


@overload
def entity_type(cls: K, /) -> K: ...
@overload
def entity_type(name: str, /) -> Callable[[K], K]: ...
def entity_type(cls_or_name: Any, /) -> Any:
    """Register a pydantic model or dataclass as a type of entities: ``@entity_type``, or ``@entity_type("order")``.

    A process that has not registered the type of an event's entity gets the entity as a mapping.

    Args:
        cls_or_name: the class; or the name that is stored with its entities, up to 200 characters. If not given, the
            name is the class's module and qualified name, so that a class that has moved is another type.

    Returns:
        The class, or a decorator that gives it back.

    Raises:
        TypeError: neither a pydantic model nor a dataclass, nor a name.
        ValueError: another class has the name.
        LimitExceeded: the name is too long or holds characters that cannot be stored.
    """
    if isinstance(cls_or_name, type):
        _register(cls_or_name, _default_name(cls_or_name))
        return cls_or_name
    if not isinstance(cls_or_name, str):
        raise TypeError(f"@entity_type decorates a class, or takes a name, got {type(cls_or_name).__name__}.")
    name = check_name("@entity_type(name)", cls_or_name)

    def decorate(cls: K) -> K:
        _register(cls, name)
        return cls

    return decorate


def entity_loader(cls: type[T], /) -> Callable[[L], L]:
    """Load entities of a type afresh, instead of using what was stored with the event: ``@entity_loader(Order)``.

    The function is called with the entity_id whenever an event with such an entity reaches a workflow; what it returns
    is ``event.entity``. An async function runs on the event loop, a sync one in a thread of anyio, up to 40 calls at
    once. An error is raised where the event was to be used, and retried as errors there are. An event without entity_id
    keeps the stored entity. Give a sync function a timeout of its own: the step or start that waits for it may time
    out, but its thread is occupied until it returns.

    Args:
        cls: the pydantic model or dataclass; it is registered, if ``@entity_type`` has not done so.

    Returns:
        A decorator that gives the function back.

    Raises:
        TypeError: neither a pydantic model nor a dataclass, or no function.
    """
    if cls not in _by_class:
        entity_type(cls)

    def decorate(function: L) -> L:
        if not callable(function):
            raise TypeError(f"@entity_loader decorates a function, got {type(function).__name__}.")
        _loaders[cls] = Loader(function)
        return function

    return decorate


def to_json(event: str, entity: object, entity_id: object = None) -> Entity:
    """The entity as it is stored.

    Args:
        event: the event's name, for errors.
        entity: a pydantic model, a dataclass, a mapping, or None.
        entity_id: its id, if that is not its ``id``.

    Raises:
        TypeError, ValueError: the entity is none of those, or the id is not a valid one.
        LimitExceeded: it is too large or too deep, or it or its id holds what cannot be stored.
        EventInvalid: it cannot be written, or does not read back equal.
    """
    if isinstance(entity, type):
        raise TypeError(f"emit() takes an entity, not its class: write emit(name, {entity.__name__}(...)).")
    kind, raw = None, None
    if isinstance(entity, BaseModel) or dataclasses.is_dataclass(entity):
        known = _by_class.get(type(entity)) or _register(type(entity), _default_name(type(entity)))
        kind, raw = known.name, _write(event, known, entity)
    elif isinstance(entity, Mapping):
        raw = _write_mapping(event, entity)
    elif entity is not None:
        raise TypeError(
            f"emit(entity) takes a pydantic model, a dataclass, a mapping or None, got {type(entity).__name__}."
        )
    what = "emit(entity_id=...)"
    if entity_id is None:
        entity_id, what = _id_of(event, entity), f"Event {event!r}: without emit(entity_id=...) the id of its entity"
    id_ = None if entity_id is None else id_text(what, entity_id)
    return Entity(kind, None if raw is None else raw.decode(), id_)


def rebuild(event: str, kind: str | None, json: str | None) -> Any:
    """The stored entity: an instance of its type, or a mapping if this process does not know the type.

    Raises:
        EventInvalid: its class, as it is now, does not accept what is stored.
    """
    if json is None:
        return None
    known = _by_name.get(kind) if kind is not None else None
    if known is None:
        return from_json(json)
    try:
        return known.adapter.validate_json(json, by_alias=False, by_name=True)
    except Exception as error:  # a validator may raise anything
        problem = f"what is stored of its entity is no {known.cls.__qualname__} as that is now: {explain(error)}"
        raise EventInvalid(event, problem) from error


async def load(event: str, kind: str | None, json: str | None, entity_id: str | None) -> Any:
    """The entity, loaded afresh if its type has a loader and there is an entity_id, else as stored.

    Raises:
        EventInvalid: as ``rebuild``.
        Others: what the loader raises.
    """
    known = _by_name.get(kind) if kind is not None else None
    loader = None if known is None else _loaders.get(known.cls)
    if loader is None or entity_id is None:
        return rebuild(event, kind, json)
    return await loader.load(entity_id)


def _default_name(cls: type) -> str:
    return check_name("The name of an entity's type", f"{cls.__module__}.{cls.__qualname__}")


def _register(cls: type, name: str) -> Known:
    """Register the class; it replaces one of the same module and qualified name."""
    if not (isinstance(cls, type) and (issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls))):
        what = cls.__qualname__ if isinstance(cls, type) else f"an instance of {type(cls).__qualname__}"
        raise TypeError(f"@entity_type takes a pydantic model or a dataclass: {what} is neither. Write it above these.")
    other = _by_name.get(name)
    if other is not None and _default_name(other.cls) != _default_name(cls):
        raise ValueError(
            f"@entity_type: {name!r} is {_default_name(other.cls)} already. Give one of them another name."
        )
    known = Known(name, cls)
    _by_name[name] = _by_class[cls] = known
    return known


def _write(event: str, known: Known, entity: Any) -> bytes:
    try:
        raw = known.adapter.dump_json(entity, by_alias=False, round_trip=True, warnings="error")
        check_json(raw, f"Event {event!r}")
        again = known.adapter.validate_json(raw, by_alias=False, by_name=True)
    except LimitExceeded:
        raise
    except Exception as error:  # serializers and validators may raise anything
        raise _cannot(event, entity, error) from error
    if not raw.startswith(b"{"):
        raise EventInvalid(event, "an entity is a model with fields; a RootModel has none.")
    if (problem := difference(entity, again)) is not None:
        raise EventInvalid(event, f"its entity does not survive JSON: {problem}")
    return raw


def _write_mapping(event: str, entity: Mapping[Any, Any]) -> bytes:
    for key in entity:
        check_name(f"Event {event!r}: a key of its entity", key)
    try:
        raw = write_json(dict(entity), inf_nan_mode="constants")
    except Exception as error:  # serializers may raise anything
        raise _cannot(event, entity, error) from error
    check_json(raw, f"Event {event!r}")
    if (key := doubled(raw)) is not None:
        problem = f"its entity has a mapping with the key {key!r} twice, once it is JSON, where all keys are text"
        raise EventInvalid(event, f"{problem}: a value would be lost. Use text for keys.")
    return raw


def _cannot(event: str, entity: Any, error: Exception) -> Exception:
    """The error for an entity that could not be written."""
    try:
        limit = beyond(entity if isinstance(entity, Mapping) else _values(entity), f"Event {event!r}")
    except Exception:  # noqa: BLE001 - a user's mapping may raise anything; the first error is the one to explain
        limit = None
    return limit or EventInvalid(event, f"its entity cannot be stored: {explain(error)}")


def _values(entity: Any) -> dict[str, Any]:
    if isinstance(entity, BaseModel):
        return dict(entity)
    return {field.name: getattr(entity, field.name, None) for field in dataclasses.fields(entity)}


def _id_of(event: str, entity: object) -> Any:
    if isinstance(entity, Mapping):
        return entity.get("id")
    try:
        return getattr(entity, "id", None)
    except Exception as error:  # a property may raise anything
        raise EventInvalid(event, f"its entity's id cannot be read: {one_line(error)}") from error
